"""Book texts: from local JSONL files, or PG-19 from the Hub when no path is given."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

SUFFIXES = (".jsonl", ".jsonl.gz")
PG19 = "emozilla/pg19"


def iterate_books(
    path: str | Path | None = None, split: str = "train", limit: int | None = None
) -> Iterator[str]:
    """Yields the text of one book after the other.

    Args:
        path: A `.jsonl` or `.jsonl.gz` file whose rows have a `text` field, or a folder of them
            (files named `books-{split}*` where there are any, else all). Without it, PG-19 is
            streamed from the Hub.
        split: "train" or "validation".
        limit: Stop after so many books.
    """
    texts = _hub_books(split) if path is None else _local_books(_book_files(Path(path), split))
    for number, text in enumerate(texts):
        if limit is not None and number >= limit:
            return
        yield text


def _book_files(path: Path, split: str) -> list[Path]:
    if not path.exists():
        raise ValueError(
            f"books={str(path)!r} does not exist; give a JSONL file or a folder of them."
        )
    if path.is_file():
        return [path]
    files = sorted(file for file in path.iterdir() if file.name.endswith(SUFFIXES))
    named = [file for file in files if file.name.startswith(f"books-{split}")]
    if not files:
        raise ValueError(
            f"books={str(path)!r} holds no {' or '.join(SUFFIXES)} file; put the books there."
        )
    return named or files


def _local_books(files: list[Path]) -> Iterator[str]:
    for file in files:
        rows = 0
        opened = gzip.open if file.suffix == ".gz" else open
        with opened(file, "rt", encoding="utf-8-sig") as lines:
            for line in lines:
                if not line.strip():
                    continue
                row = json.loads(line)
                if not isinstance(row, dict) or not isinstance(row.get("text"), str):
                    raise ValueError(
                        f"{file}: row {rows + 1} has no text in a `text` field; each row needs one."
                    )
                rows += 1
                yield row["text"]
        if rows == 0:
            raise ValueError(
                f"{file} is empty; it needs one JSON object with a `text` field on each line."
            )


def _hub_books(split: str) -> Iterator[str]:
    from datasets import load_dataset

    for row in load_dataset(PG19, split=split, streaming=True):
        yield row["text"]
