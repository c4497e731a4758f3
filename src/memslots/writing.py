"""Files that are whole or absent, and a full disk that says so."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FULL_WORDS = ("no space left", "storagefull", "disk quota", "file too large", "filetoolarge")
_TORCH_WRITER = ("PytorchStreamWriter", "inline_container", "unexpected pos")
"""What `torch.save` says of any write that failed; it does not say why."""


@contextmanager
def whole_file(file: Path) -> Iterator[Path]:
    """Gives the name of a draft, which takes the place of `file` once all of it is written.

    Args:
        file: may exist, and stays as it is where writing fails; its folder exists.

    Raises:
        OSError: see `saying_when_full`.

    Examples:
        >>> with whole_file(folder / "notes.txt") as draft:
        ...     _ = draft.write_text("Ann is here.")
        >>> (folder / "notes.txt").read_text()
        'Ann is here.'
    """
    draft = file.with_name(file.name + ".unfinished")
    try:
        with saying_when_full(file):
            yield draft
            os.replace(draft, file)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


@contextmanager
def whole_folder(folder: Path) -> Iterator[None]:
    """Removes what the block wrote to `folder` where writing fails, so that it can be made again.

    Args:
        folder: absent or empty.

    Raises:
        OSError: see `saying_when_full`.

    Examples:
        >>> with whole_folder(folder / "made"):
        ...     model.save_pretrained(folder / "made")
    """
    try:
        with saying_when_full(folder):
            yield
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


@contextmanager
def saying_when_full(place: Path) -> Iterator[None]:
    """Turns what libraries raise where a write fails into one line that says what to do.

    Args:
        place: the file or folder that is written.

    Raises:
        OSError: the disk is full, the quota used up, a file too large for it, or `place` cannot be
            written for another reason.
    """
    try:
        yield
    except Exception as error:  # `tokenizers` raises nothing more special
        if is_full(error):
            raise OSError(
                f"no room to write {place} ({free_space(place)} free on its disk); free some "
                "space, or write elsewhere."
            ) from error
        if isinstance(error, SafetensorError):
            raise OSError(f"cannot write {place}: {error}.") from error
        raise


def is_full(error: BaseException | None) -> bool:
    """Whether a write failed for want of room, by what the libraries that write say of it."""
    while error is not None:
        text = str(error)
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        if any(word in text.lower() for word in _FULL_WORDS):
            return True
        if isinstance(error, RuntimeError) and any(word in text for word in _TORCH_WRITER):
            return True
        error = error.__cause__ or error.__context__
    return False


def free_space(place: Path) -> str:
    """Megabytes that are free where `place` is or will be, for messages."""
    return f"{shutil.disk_usage(existing(place)).free / 1e6:,.0f} MB"


def existing(place: Path) -> Path:
    """The place, or the nearest folder above it that is there."""
    return next(path for path in (place.absolute(), *place.absolute().parents) if path.exists())
