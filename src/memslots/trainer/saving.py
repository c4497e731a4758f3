"""Checkpoints that are whole or absent, whenever a run is killed and however full the disk is."""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import nn

from memslots.writing import existing, free_space, is_full

_UNFINISHED = ".unfinished"


def last_checkpoint(folder: Path) -> str | None:
    """The newest whole `checkpoint-*` of a Trainer: its state is written last."""
    steps = {
        int(path.parent.name.removeprefix("checkpoint-")): path.parent
        for path in folder.glob("checkpoint-*/trainer_state.json")
        # A copy that a user keeps, such as checkpoint-best, is none.
        if re.fullmatch(r"checkpoint-\d+", path.parent.name) and _is_json(path)
    }
    return str(steps[max(steps)]) if steps else None


def is_saved(folder: Path) -> bool:
    """Whether a model was saved in `folder`; with `save_whole`, all of it then."""
    return (folder / "model.safetensors").exists() or any(folder.glob("*.safetensors.index.json"))


@contextmanager
def whole_or_removed(folder: Path, kept: str | None) -> Iterator[None]:
    """Removes `folder` when writing it fails, and says so in one line when the disk is full.

    Args:
        folder: what is being written; it did not exist before.
        kept: the newest checkpoint before it, if there is one.

    Raises:
        OSError: the disk is full, the quota used up, or a file too large for it.
    """
    try:
        yield
    except Exception as error:  # `tokenizers` raises nothing more special
        shutil.rmtree(folder, ignore_errors=True)
        if not is_full(error):
            raise
        safe = "there is no earlier checkpoint" if kept is None else f"{kept} is whole"
        raise OSError(
            f"no room to write {folder} ({free_space(folder)} free on its disk): what was written "
            f"of it is removed, {safe}. Free some space, or write elsewhere, and run the same "
            "command again to resume from there."
        ) from error


def check_room(folder: Path, model: nn.Module) -> None:
    """Refuse to train where the checkpoints will not fit.

    Args:
        folder: of the checkpoints; need not exist.
        model: whose trained weights and AdamW's two moments a checkpoint holds, the one before
            being kept until the next is whole.

    Raises:
        OSError: there is no room for two.
    """
    each = sum(3 * p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    free = shutil.disk_usage(existing(folder)).free
    if free < 2 * each:
        raise OSError(
            f"{folder} has {free / 1e6:,.0f} MB free on its disk, and two checkpoints of this "
            f"stage take {2 * each / 1e6:,.0f} MB; free some space, or write elsewhere (--output). "
            "Nothing was trained."
        )


def save_whole(save: Callable[[Path], None], folder: Path, kept: str | None = None) -> None:
    """Save a model so that `is_saved` is true of `folder` once all of it is there.

    Args:
        save: writes the model, and what belongs beside it, into the folder that it is given.
        folder: may exist, and keeps what the model does not replace.
        kept: what stays whole if this fails, for the message.

    Raises:
        OSError: see `whole_or_removed`.
    """
    unfinished = folder.with_name(folder.name + _UNFINISHED)
    shutil.rmtree(unfinished, ignore_errors=True)
    with whole_or_removed(unfinished, kept):
        save(unfinished)
    folder.mkdir(parents=True, exist_ok=True)
    # Renaming needs no room. What `is_saved` looks for comes last.
    for path in sorted(unfinished.iterdir(), key=_marks_the_end):
        target = folder / path.name
        if target.is_dir():
            shutil.rmtree(target)
        os.replace(path, target)
    unfinished.rmdir()


def _marks_the_end(path: Path) -> tuple[bool, bool]:
    return path.name.endswith(".safetensors.index.json"), path.name == "model.safetensors"


def _is_json(file: Path) -> bool:
    try:
        json.loads(file.read_text("utf-8"))
    except ValueError:
        return False
    return True
