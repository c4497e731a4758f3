"""What the commands share: their options, reading texts, and loading checkpoints."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from memslots.checkpoints import default_checkpoint, embedded, embedded_names

if TYPE_CHECKING:
    from memslots.modeling import MemslotsModel

DTYPES = ("auto", "float32", "bfloat16", "float16")

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="Folder or Hub repository, or smol or tiny, which come with the package. Default: "
        "MEMSLOTS_CHECKPOINT, or smol where SmolLM2 is available, else tiny.",
    ),
]
Revision = Annotated[
    str | None, typer.Option("--revision", help="Commit, branch or tag of the Hub repository.")
]
Device = Annotated[
    str | None,
    typer.Option("--device", help="cpu, cuda, mps, ... Default: an accelerator if there is one."),
]
Dtype = Annotated[
    str | None, typer.Option("--dtype", help=f"{', '.join(DTYPES)}. Default on a CPU: float32.")
]
Rate = Annotated[
    int | None,
    typer.Option("--rate", help="Tokens for each slot. Default: the checkpoint's finest rate."),
]
Literals = Annotated[
    str | None,
    typer.Option(
        "--literals",
        metavar="NAMES",
        help="Kinds of verbatim tokens to keep beside the slots, comma-separated: numbers, dates, "
        "identifiers, urls, code, quotes; or none. Default: the checkpoint's.",
    ),
]
Rates = Annotated[
    str | None,
    typer.Option(
        "--rates",
        help="With --fidelity or --max-slots: rates to choose from, such as 4,8. Default: all of "
        "the checkpoint's.",
    ),
]
Fidelity = Annotated[
    float | None,
    typer.Option(
        "--fidelity",
        help="Share of tokens that the slots must give back, such as 0.99. Each segment gets the "
        "coarsest rate that does; if none does, it stays text.",
    ),
]
MaxSlots = Annotated[
    int | None,
    typer.Option("--max-slots", help="Most slots for each text. They go where they save most."),
]
Exact = Annotated[
    str | None,
    typer.Option(
        "--exact",
        metavar="NAMES",
        help="Kinds of strings that must come back exactly, named as for --literals; all (also "
        "stores the whole text), or none (only checks what the slots lose).",
    ),
]
KeepText = Annotated[
    bool, typer.Option("--keep-text", help="Store the text itself in the memory too, compressed.")
]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Set one value, written as YAML. May be repeated."
    ),
]
Stage = Annotated[str | None, typer.Option(help="Run this stage only.")]
Books = Annotated[
    str | None, typer.Option(help="JSONL file or folder of books; PG-19 from the Hub without.")
]
RunFolder = Annotated[
    Path | None, typer.Option(help="Folder of the run; runs/RECIPE by default. Resumes.")
]
Install = Annotated[
    Path | None, typer.Option(help="Copy the finished checkpoint into this folder.")
]
DataFolder = Annotated[str | None, typer.Option(help="Folder with local copies of the data sets.")]
CONTEXT_HELP = "Text file in UTF-8; - reads standard input."


def read_text(path: str) -> str:
    """Reads a UTF-8 text; `-` is standard input.

    Raises:
        ValueError: Nothing but white space, or bytes that are no UTF-8, with their position.
        OSError: No such file, or one that cannot be read.
    """
    name = "standard input" if path == "-" else path
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
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{name} is not UTF-8 text: byte {data[error.start]:#04x} at position {error.start} "
            f"({error.reason}); convert it first, for example with iconv."
        ) from None
    if not text.strip():
        raise ValueError(f"{name} is empty or only white space; give some text.")
    return text


def resolve_model(model: str | None) -> str:
    """The folder or repository to load; an embedded checkpoint where none is named.

    Raises:
        ValueError: No embedded checkpoint in this installation, or a path that is no folder.
        FileNotFoundError: `smol` is named, and SmolLM2 is not to be had.
    """
    model = model or os.environ.get("MEMSLOTS_CHECKPOINT")
    if model is None:
        model, why = default_checkpoint()
        if why is not None:
            err.print(Text(f"using the checkpoint tiny: {why}"), soft_wrap=True)
    if model in (*embedded_names(), "tiny", "smol") and not Path(model).is_dir():
        return embedded(model)
    if not Path(model).is_dir() and (model.count("/") != 1 or model[0] in "./~" or "\\" in model):
        raise ValueError(f"--model {model}: there is no such folder (a repository is owner/name).")
    return model


def words(given: str) -> list[str]:
    """What stands between the commas."""
    return [word for word in given.replace(" ", "").split(",") if word]


def numbers(given: str | None, option: str) -> list[int] | None:
    """The numbers between the commas of `option`, None where it is not given."""
    if given is None:
        return None
    try:
        return [int(word) for word in words(given)]
    except ValueError:
        raise ValueError(f"{option} {given}: must be numbers with commas, such as 4,16.") from None


def verification(
    rate: int | None = None,
    rates: str | None = None,
    fidelity: float | None = None,
    max_slots: int | None = None,
    exact: str | None = None,
    keep_text: bool = False,
) -> dict[str, Any]:
    """What the options of these names ask of `compress`; empty where nothing is to be verified.

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
            f"--rates {rates} are to choose from, by --fidelity or --max-slots; give one of these, "
            "or a fixed --rate."
        )
    if rate is not None and chosen:
        raise ValueError(
            f"--rate {rate} fixes what --fidelity and --max-slots choose; give --rates {rate}, or "
            "the rates to choose from."
        )
    asked: dict[str, Any] = {
        "rates": numbers(rates, "--rates"),
        "fidelity": fidelity,
        "max_slots": max_slots,
        "exact": True if exact == "all" else literal_names(exact, "--exact", ", all"),
        "keep_text": keep_text or None,
    }
    if asked["rates"] == []:
        raise ValueError(f"--rates {rates}: must be numbers with commas, such as 4,16.")
    return {name: value for name, value in asked.items() if value is not None}


def literal_names(
    given: str | None, option: str = "--literals", also: str = ""
) -> list[str] | None:
    """What `--literals` names: a list for `compress`, None where the checkpoint decides.

    Args:
        given: the option's value.
        option: its name, for the message.
        also: what else it takes.

    Raises:
        ValueError: a name that is no detector's.
    """
    if given is None:
        return None
    names = [name for name in given.replace(" ", "").split(",") if name]
    if names == ["none"]:
        return []
    from memslots.modeling.texts_memslots import DETECTORS

    unknown = sorted(set(names) - set(DETECTORS))
    if unknown or not names:
        raise ValueError(
            f"{option} {given}: {', '.join(unknown) or 'nothing'} is no detector; name some of "
            f"{', '.join(DETECTORS)}, with commas between{also}, or none."
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

    found, _ = MemslotsConfig.get_config_dict(name, **({"revision": revision} if revision else {}))
    if found.get("model_type") != MemslotsConfig.model_type:
        raise ValueError(
            f"{name} is no memslots checkpoint but a {found.get('model_type', 'nameless')!r} "
            "model; make a compressor for it with `memslots init`."
        )
    return MemslotsConfig.from_dict(found)


def choose_device(device: str | None):
    """The device asked for, or the accelerator where there is one, or the CPU."""
    import torch

    if device is None:
        found = (
            torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        )
        return found or torch.device("cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"--device {device} cannot be used: {reason}") from error
    return torch.device(device)


def quiet() -> None:
    """Loading is quick here; transformers' bars and advice would hide what the command says."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    if not os.environ.get("MEMSLOTS_DEBUG"):
        logging.set_verbosity_error()


def exactly_one(**given: object) -> None:
    """Raises `ValueError` unless one of the arguments, by the names that users know, is given."""
    if sum(value is not None for value in given.values()) != 1:
        names = " or ".join(given)
        raise ValueError(f"give exactly one of {names}; see --help for an example.")
