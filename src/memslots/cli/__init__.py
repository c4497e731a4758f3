"""The command line. Heavy imports stand inside the commands, so that `--help` is quick."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.text import Text

from memslots import __version__

from . import ask, build, cram, demo, plan, publish, serve, store, use
from .options import err

app = typer.Typer(
    name="memslots",
    help="Compress a long text once into a few memory slots that your LLM reads in its place.",
    epilog='Example: memslots ask --text notes.txt --question "Where was the treaty signed?"',
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
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show the version."),
    ] = False,
    debug: Annotated[
        bool,
        typer.Option("--debug", help="Show tracebacks, as MEMSLOTS_DEBUG=1 does."),
    ] = False,
) -> None:
    if debug:
        os.environ["MEMSLOTS_DEBUG"] = "1"


_USE, _TRAIN, _PUBLISH, _SERVE = "Use", "Train", "Publish", "Serve"
_COMMANDS: tuple[tuple[str, Callable[..., Any], str], ...] = (
    (_USE, demo.demo, "demo"),
    (_USE, ask.ask, 'ask --text notes.txt --question "Who signed?" --json'),
    (_USE, use.compress, "compress notes.txt letter.txt --output both.safetensors --rate 4"),
    (_USE, use.reconstruct, "reconstruct --memory doc.safetensors"),
    (_USE, use.report, "report --memory doc.safetensors --text notes.txt --html map.html"),
    (_USE, build.info, "info --model path/to/checkpoint"),
    (_TRAIN, build.train, "train own --decoder my/llm --texts manuals/ --budget 2h --dry-run"),
    (_TRAIN, build.evaluate, "eval --model path/to/checkpoint --tasks qa --rates 4,16"),
    (_TRAIN, build.init, "init --decoder Qwen/Qwen3-0.6B --output new --set markers=memory"),
    (_TRAIN, cram.cram, "cram --text notes.txt --method dense --length 24"),
    (_PUBLISH, publish.card, "card --model path/to/checkpoint --license apache-2.0"),
    (_PUBLISH, publish.push, "push --model path/to/checkpoint --repo me/model --dry-run"),
    (_PUBLISH, publish.push_space, "push-space --model me/model --repo me/demo --dry-run"),
    (_SERVE, serve.serve, "serve --vllm http://localhost:8000 --store memories --port 8080"),
    (_SERVE, plan.plan, "plan --decoder Qwen/Qwen3-8B --tokens 10000 --rate 16"),
)
for _panel, _function, _example in _COMMANDS:
    app.command(
        _example.split()[0], epilog=f"Example: memslots {_example}", rich_help_panel=_panel
    )(_function)
app.add_typer(store.app, name="store", rich_help_panel=_SERVE)


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
    # Before torch loads: its threads spin while they wait for one another, and beside another busy
    # process all takes ten times as long; so they spin for a short while only.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    debug, with_source = os.environ.get("MEMSLOTS_DEBUG"), warnings.formatwarning
    warnings.formatwarning = _one_line
    interrupts: list[int] = []
    try:
        with _noting(interrupts):
            code = commands(arguments or ["--help"], prog_name=name, standalone_mode=False)
        if code == 130:  # what some versions of typer make of Ctrl-C
            err.print("\ninterrupted")
    except usage_error as error:
        message = " ".join(error.format_message().split()).partition(", unable to parse")[0]
        message = message.rstrip(".").replace("Input should be", "it must be")
        message += "" if message.endswith("?") else "."
        err.print(Text(f"error: {message} See --help for an example."), soft_wrap=True)
        return 2
    except (typer.Abort, KeyboardInterrupt):
        err.print("\ninterrupted")
        return 130
    except BrokenPipeError:  # the reader of our output left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        if interrupts:  # it met an import of a library, which says that something is missing
            err.print("\ninterrupted")
            return 130
        if os.environ.get("MEMSLOTS_DEBUG") or not _is_mistake(error):
            raise
        err.print(Text(f"error: {' '.join(str(error).split())}"), soft_wrap=True)
        return 2
    finally:  # both are for this call, also where main is called from Python
        warnings.formatwarning = with_source
        if debug is None:
            os.environ.pop("MEMSLOTS_DEBUG", None)
    return code if isinstance(code, int) else 0


@contextmanager
def _noting(interrupts: list[int]) -> Iterator[None]:
    """Every Ctrl-C is added to `interrupts`, and raises `KeyboardInterrupt` as ever."""

    def note(number: int, frame: Any) -> None:
        interrupts.append(number)
        signal.default_int_handler(number, frame)

    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _lose_nothing() -> None:
    """Characters that the terminal cannot show are escaped, where Python would raise."""
    for stream in (sys.stdout, sys.stderr):
        if getattr(stream, "errors", None) == "strict" and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    # bitsandbytes, which peft imports where it is installed, warns that a kernel is missing.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def _one_line(message: Warning | str, *where: object, **line: object) -> str:
    """A warning as a user reads it: what it says, and not which line of which file says so."""
    return f"warning: {' '.join(str(message).split())}\n"


def _is_mistake(error: Exception) -> bool:
    """Whether a user can mend it: what our code and the libraries that read files raise so."""
    libraries = ("huggingface_hub", "safetensors")
    # FloatingPointError: a loss that is not a number, which other settings may mend.
    kinds = ValueError | TypeError | OSError | ImportError | FloatingPointError
    return isinstance(error, kinds) or (type(error).__module__.split(".")[0] in libraries)
