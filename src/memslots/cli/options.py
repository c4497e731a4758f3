"""What the commands share: their options, reading texts, and loading checkpoints."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text as Shown

from memslots.checkpoints import default_checkpoint, embedded, embedded_names

if TYPE_CHECKING:
    from memslots.modeling import Memory, MemslotsModel

DTYPES = ("auto", "float32", "bfloat16", "float16")

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

MODEL_PANEL = "Model and device"
MEMORY_PANEL = "What the memory keeps"

Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="CHECKPOINT",
        help="Use this checkpoint: a folder, a Hub repository, or smol or tiny, which come with "
        "the package. By default it is what MEMSLOTS_CHECKPOINT names, else smol where SmolLM2 is "
        "available, else tiny.",
        rich_help_panel=MODEL_PANEL,
    ),
]
ModelFolder = Annotated[
    Path,
    typer.Option("--model", metavar="FOLDER", help="Read the checkpoint in this folder."),
]
Repo = Annotated[
    str,
    typer.Option("--repo", metavar="OWNER/NAME", help="Publish to this repository on the Hub."),
]
Revision = Annotated[
    str | None,
    typer.Option(
        "--revision",
        help="Use this commit, branch or tag of the Hub repository.",
        rich_help_panel=MODEL_PANEL,
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        "--device",
        help="Run on this device, such as cpu, cuda or mps. By default it is an accelerator if "
        "there is one.",
        rich_help_panel=MODEL_PANEL,
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        "--dtype",
        help=f"Load the weights in this precision: {', '.join(DTYPES[:-1])} or {DTYPES[-1]}. "
        "By default it is float32 on a CPU and auto, the checkpoint's, elsewhere.",
        rich_help_panel=MODEL_PANEL,
    ),
]
Text = Annotated[
    str | None,
    typer.Option(
        "--text",
        "-t",
        metavar="FILE",
        help="Read this text file in UTF-8; - reads standard input.",
    ),
]
_TEXTS = typer.Option(
    "--text",
    "-t",
    metavar="FILE",
    help="Read this text file in UTF-8; - reads standard input. Repeat it for more files.",
)
Texts = Annotated[list[str], _TEXTS]
MaybeTexts = Annotated[list[str] | None, _TEXTS]
_MEMORY = typer.Option(
    "--memory",
    "-m",
    metavar="FILE",
    help="Read this memory file, which `memslots compress` wrote.",
)
MemoryFile = Annotated[Path, _MEMORY]
MaybeMemory = Annotated[Path | None, _MEMORY]
Questions = Annotated[
    list[str] | None,
    typer.Option(
        "--question",
        "-q",
        help="Ask this question. Repeat it for more questions. Without it, type them in the "
        "terminal.",
    ),
]
MemoryOutput = Annotated[
    Path,
    typer.Option(
        "--output", "-o", metavar="FILE", help="Write the memory to this file (safetensors)."
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Overwrite the file if it exists.")]
Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on standard output instead of text.")
]
Rate = Annotated[
    int | None,
    typer.Option(
        "--rate",
        help="Put this many tokens into each slot. By default it is the checkpoint's finest rate.",
        rich_help_panel=MEMORY_PANEL,
    ),
]
Literals = Annotated[
    str | None,
    typer.Option(
        "--literals",
        metavar="NAMES",
        help="Keep these kinds of verbatim tokens beside the slots, separated by commas: numbers, "
        "dates, identifiers, urls, code, quotes; or none. By default the checkpoint decides.",
        rich_help_panel=MEMORY_PANEL,
    ),
]
Rates = Annotated[
    str | None,
    typer.Option(
        "--rates",
        help="Choose from these rates, such as 4,8, with --fidelity or --max-slots. Without it, "
        "all rates of the checkpoint are tried.",
        rich_help_panel=MEMORY_PANEL,
    ),
]
Fidelity = Annotated[
    float | None,
    typer.Option(
        "--fidelity",
        help="Give each segment the coarsest rate whose slots give back this share of its tokens, "
        "such as 0.99. If none does, the segment stays text.",
        rich_help_panel=MEMORY_PANEL,
    ),
]
MaxSlots = Annotated[
    int | None,
    typer.Option(
        "--max-slots",
        help="Use at most this many slots for each text, where they save the most.",
        rich_help_panel=MEMORY_PANEL,
    ),
]
Exact = Annotated[
    str | None,
    typer.Option(
        "--exact",
        metavar="NAMES",
        help="Give back these kinds of strings exactly; the names are those of --literals. The "
        "word all also stores the whole text, and none only checks what the slots lose.",
        rich_help_panel=MEMORY_PANEL,
    ),
]
KeepText = Annotated[
    bool,
    typer.Option(
        "--keep-text",
        help="Store the text itself in the memory too, zipped.",
        rich_help_panel=MEMORY_PANEL,
    ),
]
MaxNewTokens = Annotated[
    int,
    typer.Option(
        "--max-new-tokens", min=1, help="Stop each answer after this many tokens at the latest."
    ),
]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Set one value, written as YAML. Repeat it for more values.",
    ),
]
Stage = Annotated[str | None, typer.Option(help="Run this stage only.")]
Books = Annotated[
    str | None,
    typer.Option(
        help="Train on the books in this JSONL file or folder. By default they are PG-19's from "
        "the Hub."
    ),
]
RunFolder = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        metavar="FOLDER",
        help="Keep the run in this folder, from which it resumes. By default it is runs/RECIPE.",
    ),
]
Install = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="Copy the finished checkpoint into this folder."),
]
DataFolder = Annotated[
    str | None,
    typer.Option(
        "--data-dir",
        metavar="FOLDER",
        help="Read the data sets from local copies in this folder.",
    ),
]


def read_text(path: str) -> str:
    """Reads a UTF-8 text; `-` is standard input.

    Raises:
        ValueError: Nothing but white space, or bytes that are not UTF-8, with their position.
        OSError: No such file, or one that cannot be read.
    """
    name = "standard input" if path == "-" else path
    if path == "-" and sys.stdin is None:  # closed, as in a service or by `<&-`
        raise ValueError("standard input is closed, so - cannot be read; give a text file.")
    try:
        data = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(
            f"No such file: {path!r}; give a text file, or - for standard input."
        ) from None
    except IsADirectoryError:
        raise IsADirectoryError(
            f"{path!r} is a folder; name the text files in it one by one."
        ) from None
    except PermissionError:
        raise PermissionError(f"you may not read {path!r}; change its permissions.") from None
    try:
        text = data.decode("utf-8")  # a byte order mark is kept, for exact reading back
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{name} is not UTF-8 text: byte {data[error.start]:#04x} at position {error.start} "
            f"({error.reason}); convert it first, for example with iconv."
        ) from None
    if not text.strip():
        raise ValueError(f"{name} is empty or only white space; give some text.")
    return text


def resolve_model(model: str | None, option: str = "--model") -> str:
    """The folder or repository to load; the default checkpoint if none is named.

    Raises:
        ValueError: No embedded checkpoint in this installation, or a path that is not a folder.
        FileNotFoundError: `smol` is named, and SmolLM2 is not available.
    """
    named_by = f"{option} "
    if model is None and (model := os.environ.get("MEMSLOTS_CHECKPOINT") or None) is not None:
        named_by = "MEMSLOTS_CHECKPOINT="
    if model is None:
        model, why = default_checkpoint()
        if why is not None:
            err.print(Shown(f"using the checkpoint tiny: {why}"), soft_wrap=True)
    if model in (*embedded_names(), "tiny", "smol") and not Path(model).is_dir():
        return embedded(model)
    if Path(model).is_file():
        raise ValueError(f"{named_by}{model} is a file; give the checkpoint's folder.")
    is_path = model.count("/") != 1 or model[0] in "./~" or "\\" in model or model[-1] == "/"
    if not Path(model).is_dir() and is_path:
        raise ValueError(
            f"{named_by}{model}: there is no such folder (a Hub repository is owner/name; smol and "
            "tiny come with the package)."
        )
    return model


def words(listed: str) -> list[str]:
    """What stands between the commas."""
    return [word for word in listed.replace(" ", "").split(",") if word]


def numbers(value: str | None, option: str) -> list[int] | None:
    """The numbers between the commas of `option`, None if it is not given."""
    if value is None:
        return None
    try:
        return [int(word) for word in words(value)]
    except ValueError:
        raise ValueError(
            f"{option} {value}: must be numbers separated by commas, such as 4,16."
        ) from None


def verification(
    rate: int | None = None,
    rates: str | None = None,
    fidelity: float | None = None,
    max_slots: int | None = None,
    exact: str | None = None,
    keep_text: bool = False,
) -> dict[str, Any]:
    """What the options of these names ask of `compress`; empty if nothing is to be verified.

    Raises:
        ValueError: what cannot be, or options that do not go together.
    """
    if fidelity is not None and not 0 < fidelity <= 1:
        raise ValueError(
            f"--fidelity {fidelity}: must be above 0 and up to 1, for example --fidelity 0.99."
        )
    if max_slots is not None and max_slots < 1:
        raise ValueError(f"--max-slots {max_slots}: must be 1 or more.")
    chosen = fidelity is not None or max_slots is not None
    if rates is not None and not chosen:
        raise ValueError(
            f"--rates {rates} needs --fidelity or --max-slots, which choose among these rates; "
            "give one of the two, or a fixed --rate."
        )
    if rate is not None and chosen:
        raise ValueError(
            f"--rate {rate} fixes the rate that --fidelity and --max-slots choose; give --rates "
            "instead, with the rates to choose from."
        )
    asked: dict[str, Any] = {
        "rates": numbers(rates, "--rates"),
        "fidelity": fidelity,
        "max_slots": max_slots,
        "exact": True if exact == "all" else literal_names(exact, "--exact", ", all"),
        "keep_text": keep_text or None,
    }
    if asked["rates"] == []:
        raise ValueError(f"--rates {rates}: must be numbers separated by commas, such as 4,16.")
    return {name: value for name, value in asked.items() if value is not None}


def literal_names(
    value: str | None, option: str = "--literals", also: str = ""
) -> list[str] | None:
    """What `--literals` names: a list for `compress`, None if the checkpoint decides.

    Args:
        value: of the option.
        option: its name, for the message.
        also: what else it takes.

    Raises:
        ValueError: a name that is not one of the detectors.
    """
    if value is None:
        return None
    names = [name for name in value.replace(" ", "").split(",") if name]
    if names == ["none"]:
        return []
    from memslots.modeling.texts_memslots import DETECTORS

    unknown = sorted(set(names) - set(DETECTORS))
    if unknown or not names:
        raise ValueError(
            f"{option} {value}: {', '.join(unknown) or 'nothing'} is not a kind of verbatim "
            f"tokens; choose from {', '.join(DETECTORS)}{also}, separated by commas, or none."
        )
    return names


def load_model(
    model: str | None,
    revision: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    load_decoder: bool = True,
) -> MemslotsModel:
    """Loads a checkpoint quietly, through the installed class: no remote code runs.

    Raises:
        ValueError: An unknown dtype or device, or a checkpoint of another kind of model.
        OSError: No such checkpoint.
    """
    name = resolve_model(model)
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"--dtype {dtype} is not known; choose one of {', '.join(DTYPES)}.")
    import torch

    from memslots.modeling import MemslotsModel

    place = choose_device(device)
    quiet()
    load_config(name, revision)
    kwargs: dict[str, Any] = {"revision": revision} if revision else {}
    if dtype is not None:
        kwargs["dtype"] = dtype if dtype == "auto" else getattr(torch, dtype)
    elif place.type == "cpu":
        kwargs["dtype"] = torch.float32
    return MemslotsModel.from_pretrained(name, load_decoder=load_decoder, **kwargs).to(place)


def load_config(name: str, revision: str | None = None):
    """A checkpoint's configuration, after checking that it is a memslots one."""
    from memslots.modeling import MemslotsConfig

    folder = Path(name)
    if folder.is_dir() and not (folder / "config.json").is_file():
        stages = sorted(folder.glob("compressor/*/config.json"), key=os.path.getmtime)
        if stages:
            raise ValueError(
                f"{name} is the folder of a training; its newest checkpoint is {stages[-1].parent}."
            )
        raise ValueError(f"{name} has no config.json, so it is not a checkpoint's folder.")
    place = {"revision": revision} if revision else {}
    try:
        stated, _ = MemslotsConfig.get_config_dict(name, **place)
    except OSError as error:
        if "couldn't connect" not in str(error):
            raise
        raise OSError(
            f"{name} is not in the Hub's cache on this machine, and the Hub cannot be reached; go "
            "online, give a folder, or take a checkpoint of the package (--model tiny)."
        ) from error
    if stated.get("model_type") != MemslotsConfig.model_type:
        raise ValueError(
            f"{name} is not a memslots checkpoint but a {stated.get('model_type')!r} model; "
            "make a compressor for it with `memslots init`."
        )
    return MemslotsConfig.from_dict(stated)


def choose_device(device: str | None):
    """The device asked for, or the accelerator if there is one, or the CPU."""
    import torch

    if device is None:
        accelerator = (
            torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        )
        return accelerator or torch.device("cpu")
    try:
        torch.zeros(1, device=device).tolist()  # meta holds no numbers
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"--device {device} cannot be used: {reason}") from error
    return torch.device(device)


def quiet() -> None:
    """Loading is quick here; transformers' bars and advice would hide what the command says."""
    from huggingface_hub.utils import enable_progress_bars
    from transformers.utils import logging

    logging.disable_progress_bar()
    enable_progress_bars()  # which that switched off too: a download takes minutes
    if not os.environ.get("MEMSLOTS_DEBUG"):
        logging.set_verbosity_error()


def for_texts(literals: str | None, asked: dict[str, Any], memory: Path | None) -> list[str] | None:
    """What `--literals` names, after a look at what only a text can be compressed with.

    Raises:
        ValueError: an unknown name, or options that cannot change a memory.
    """
    if memory is not None and (literals is not None or asked):
        named = [f"--{name.replace('_', '-')}" for name in asked]
        named += ["--literals"] if literals is not None else []
        goes = "goes" if len(named) == 1 else "go"
        raise ValueError(
            f"{', '.join(named)} {goes} with --text: a memory keeps what it was compressed with."
        )
    return literal_names(literals)


def new_file(
    path: Path, force: bool, inputs: Sequence[str | Path] = (), option: str = "--output"
) -> None:
    """Refuse, before any work, a file that cannot be written or is there already.

    Args:
        path: of the file.
        force: whether it may replace another.
        inputs: files that the command reads, which nothing replaces; `-` is none.
        option: that names it, for messages.

    Raises:
        ValueError: a folder, no folder to write it in, or a file that `--force` does not give up.
    """
    if path.is_dir():
        raise ValueError(f"{option} {path} is a folder; name a file in it.")
    if not path.resolve().parent.is_dir():
        raise ValueError(f"{option} {path}: there is no folder {path.resolve().parent}.")
    if not os.access(path.resolve().parent, os.W_OK):
        raise ValueError(
            f"{option} {path}: you may not write to {path.resolve().parent}; name another folder."
        )
    not_replaced(path, inputs, option)
    if path.exists() and not force:
        raise ValueError(f"{path} exists; --force replaces it.")


def not_replaced(path: Path, inputs: Sequence[str | Path], option: str) -> None:
    """Refuse to write to a file that the command reads.

    Raises:
        ValueError: `path` is one of `inputs`.
    """
    read = [Path(each) for each in inputs if str(each) != "-" and Path(each).exists()]
    if path.exists() and any(path.samefile(each) for each in read):
        raise ValueError(f"{option} {path} is a file that is read here; name another one.")


def check_port(host: str, port: int) -> None:
    """Refuse, before anything is loaded, an address that cannot be listened on.

    Args:
        host: address or name.
        port: 0 is any free one.

    Raises:
        ValueError: another program listens there, or the address is not of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        raise ValueError(
            f"--host {host} --port {port} cannot be listened on ({error.strerror}); choose another "
            "port (0 takes a free one), or an address of this machine."
        ) from error


def say_unknown(memory: Memory) -> None:
    """Says how many tokens no memory can hold, if there are any."""
    if lost := sum(memory.unknown_tokens):
        err.print(f"{lost} tokens are unknown to the encoder and were lost", style="yellow")


_LONG_TEXT = 4_000  # characters, that may take some seconds to compress on a CPU
_CPU_PASS = 1_024  # tokens, after each of which the bar moves


def in_steps(compressor: MemslotsModel, *texts: str) -> dict[str, Any]:
    """Arguments of `compress` with which a long text shows a bar with the time left."""
    shown = err.is_terminal and sum(map(len, texts)) > _LONG_TEXT
    size = _CPU_PASS if compressor.device.type == "cpu" else None
    return {"progress": shown or None, "batch_tokens": size}


@contextmanager
def steps(total: int) -> Iterator[Callable[..., None]]:
    """A bar with the time left, in a terminal; call what it gives with a label and steps made."""
    from rich.progress import (
        BarColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task("", total=total)
        yield lambda label, n=1: bar.update(task, advance=n, description=label)


def print_json(values: Any) -> None:
    """Prints one JSON object; escaped where standard output does not take all characters."""
    utf8 = (getattr(sys.stdout, "encoding", "") or "").lower().replace("-", "") == "utf8"
    typer.echo(json.dumps(values, ensure_ascii=not utf8))


def exactly_one(**arguments: object) -> None:
    """Raises `ValueError` unless one of the arguments, by the names that users know, is given."""
    if sum(value is not None for value in arguments.values()) != 1:
        raise ValueError(f"give either {' or '.join(arguments)}; see --help for an example.")
