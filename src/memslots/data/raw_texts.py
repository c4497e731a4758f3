"""Raw texts of a file or a folder, whatever their format: text, JSON lines, JSON or Parquet."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from memslots.data.adapters import ADAPTERS, load_rows
from memslots.data.raw_rows import find_files
from memslots.data.schema import DataNotFound

FORMATS = ("text", "jsonl", "parquet")
"""Adapters of plain files, in the order in which a folder is searched."""


def raw_texts(path: str | Path, split: str = "train") -> Iterator[str]:
    """Yields texts; of rows of questions their contexts, each once where they follow one another.

    Args:
        path: a `.txt`, `.jsonl`, `.json` or `.parquet` file (text also with `.gz`), or a folder of
            files of one of these formats.
        split: read only the files of this split, if their names say so.

    Raises:
        DataNotFound: (a ValueError) nothing is there, or nothing of these formats.
        ValueError: while iterating: rows without `text` or `context`.
    """
    kind = format_of(path, split)
    last = ""
    for row in load_rows(kind, split, data_dir=path):
        fields = dict(row)
        text = str(fields["text"] if "text" in fields else fields["context"])
        if text != last:
            yield text
        last = text


def format_of(path: str | Path, split: str = "train") -> str:
    """The adapter of `FORMATS` that reads a file or a folder's files.

    Raises:
        DataNotFound: nothing is there, or nothing of these formats.
    """
    path = Path(path)
    if not path.exists():
        raise DataNotFound(f"file={str(path)!r} does not exist; give a file or a folder of texts.")
    for kind in FORMATS:
        suffixes = ADAPTERS[kind].suffixes
        if path.is_file() and path.name.removesuffix(".gz").endswith(suffixes):
            return kind
        if path.is_dir():
            try:
                find_files(ADAPTERS[kind], split, path)
            except DataNotFound:
                continue
            return kind
    allowed = ", ".join(suffix for kind in FORMATS for suffix in ADAPTERS[kind].suffixes)
    raise DataNotFound(
        f"file={str(path)!r} holds no text that can be read; its name must end in one of {allowed}."
    )
