"""The command line. Heavy imports stand inside the commands, so that `--help` is quick."""

from __future__ import annotations

import logging
import os
import sys
from typing import Annotated, Any

import typer
from rich.text import Text

from memslots import __version__

from . import (
    build,
    cram,
    plan,
    publish,
    report,
    serve,
    store,
    use,
)
from .options import err

app = typer.Typer(
    name="memslots",
    help="Compress a long text once into a few memory slots that your LLM reads in its place.",
    epilog='Example: memslots ask --context notes.txt --question "Where was the treaty signed?"',
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"memslots {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show tracebacks (also MEMSLOTS_DEBUG=1).")
    ] = False,
) -> None:
    if debug:
        os.environ["MEMSLOTS_DEBUG"] = "1"


app.command(epilog="Example: memslots demo")(use.demo)
app.command(epilog='Example: memslots ask --context notes.txt --question "Who signed?" --json')(
    use.ask
)
app.command(epilog="Example: memslots compress notes.txt letter.txt -o both.safetensors --rate 4")(
    use.compress
)
app.command(epilog="Example: memslots reconstruct doc.safetensors")(use.reconstruct)
app.command(epilog="Example: memslots report doc.safetensors --context notes.txt --html map.html")(
    report.report
)
app.command(epilog="Example: memslots train pcc_lite --output runs/lite --dry-run")(build.train)
app.command("eval", epilog="Example: memslots eval path/to/checkpoint --tasks qa --rates 4,16")(
    build.evaluate
)
app.command(epilog="Example: memslots info path/to/checkpoint")(build.info)
app.command(
    epilog="Example: memslots init openai-community/gpt2 Qwen/Qwen3-0.6B new --set markers=memory"
)(build.init)
app.command(epilog="Example: memslots cram --text notes.txt --method dense --length 24")(cram.cram)
app.command(epilog="Example: memslots plan --decoder Qwen/Qwen3-8B --tokens 10000 --rate 16")(
    plan.plan
)
app.command(
    epilog="Example: memslots card path/to/checkpoint --repo me/model --license apache-2.0"
)(publish.card)
app.command(epilog="Example: memslots push path/to/checkpoint me/model --dry-run")(publish.push)
app.command("push-space", epilog="Example: memslots push-space me/demo --model me/model --dry-run")(
    publish.push_space
)
app.command(
    epilog="Example: memslots serve --vllm http://localhost:8000 --store memories --port 8080"
)(serve.serve)
app.add_typer(store.app, name="store")


def main(
    arguments: list[str] | None = None, commands: typer.Typer = app, name: str = "memslots"
) -> int:
    """Runs the command line; a user's mistake is one line on stderr and exit code 2.

    Args:
        arguments: Without the program's name; `sys.argv` by default.
        commands: Those of another program that handles mistakes alike.
        name: Of that program.
    """
    # ClickException: recent typer brings its own copy of click, so it is found by way of typer.
    usage_error: Any = typer.BadParameter.mro()[2]
    arguments = sys.argv[1:] if arguments is None else arguments
    _lose_nothing()
    debug = os.environ.get("MEMSLOTS_DEBUG")
    try:
        code = commands(arguments or ["--help"], prog_name=name, standalone_mode=False)
    except usage_error as error:
        message = " ".join(error.format_message().split()).rstrip(".")
        err.print(Text(f"error: {message}. See --help for an example."), soft_wrap=True)
        return 2
    except (typer.Abort, KeyboardInterrupt):
        err.print("interrupted")
        return 130
    except BrokenPipeError:  # the reader of our output left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        if os.environ.get("MEMSLOTS_DEBUG") or not _is_mistake(error):
            raise
        err.print(Text(f"error: {' '.join(str(error).split())}"), soft_wrap=True)
        return 2
    finally:  # --debug is for this call, also where main is called from Python
        if debug is None:
            os.environ.pop("MEMSLOTS_DEBUG", None)
    return code if isinstance(code, int) else 0


def _lose_nothing() -> None:
    """Characters that the terminal cannot show are escaped, where Python would raise."""
    for stream in (sys.stdout, sys.stderr):
        if getattr(stream, "errors", None) == "strict" and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    # bitsandbytes, which peft imports where it is installed, warns that a kernel is missing.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def _is_mistake(error: Exception) -> bool:
    """Whether a user can mend it: what our code and the libraries that read files raise so."""
    libraries = ("huggingface_hub", "safetensors")
    # FloatingPointError: a loss that is no number, which other settings may mend.
    kinds = ValueError | TypeError | OSError | ImportError | FloatingPointError
    return isinstance(error, kinds) or (type(error).__module__.split(".")[0] in libraries)
