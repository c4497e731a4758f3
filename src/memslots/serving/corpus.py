"""The documents of a folder: a text or Markdown file each, or a row each of JSON lines or Parquet.

Read plainly and in order, one document at a time, so that a corpus of any size can be gone through
again when work is resumed. What cannot be used is named and passed over.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memslots.modeling.texts_memslots import check_text

from .store_files import first_line
from .store_format import check_ids, encode_metadata, pa

WHOLE = (".txt", ".md")
ROWS = (".jsonl", ".parquet")
_ROWS_AT_ONCE = 256


@dataclass(frozen=True)
class Document:
    """A text to compress.

    Args:
        id: The file's path in the folder; of a row, with `#` and its id or its number.
        text: What to compress.
        metadata: As JSON, of `encode_metadata`: `source`, the file's path in the folder, and the
            row's other columns.
        size: Bytes of the corpus that it took, for the progress bar.
    """

    id: str
    text: str
    metadata: str
    size: int


@dataclass(frozen=True)
class Unusable:
    """A place in the corpus that holds no text.

    Args:
        where: File, and row if any.
        reason: What is wrong with it.
        size: As of `Document`.
    """

    where: str
    reason: str
    size: int


def corpus_files(folder: Path, passed_over: dict[str, str] | None = None) -> list[Path]:
    """All files with documents, in a fixed order; hidden files and folders are left out.

    Args:
        folder: A folder, or one file.
        passed_over: Gets the folders in it that are not read, and why.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: It holds no file that can be read.
    """
    if not folder.exists():
        raise FileNotFoundError(f"there is no folder or file {str(folder)!r}.")
    passed_over = {} if passed_over is None else passed_over
    files = [folder] if folder.is_file() else sorted(_files_in(folder, passed_over))
    files = [path for path in files if path.suffix.lower() in WHOLE + ROWS]
    if not files:
        also = "".join(f" {at} in it was passed over: {why}." for at, why in passed_over.items())
        raise ValueError(
            f"{str(folder)!r} holds no {', '.join(WHOLE + ROWS)} file; convert or rename the texts."
            + also[:300]
        )
    return files


def _files_in(folder: Path, passed_over: dict[str, str]) -> Iterator[Path]:
    def unreadable(error: OSError) -> None:
        place = Path(error.filename).relative_to(folder).as_posix()
        passed_over[place] = f"this folder cannot be read ({error.strerror})"

    for place, folders, names in os.walk(folder, onerror=unreadable):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for link in (Path(place, name) for name in folders):
            if link.is_symlink() and not link.resolve().is_relative_to(folder.resolve()):
                passed_over[link.relative_to(folder).as_posix()] = (
                    "a link to another folder is not followed; add that folder by itself"
                )
        paths = (Path(place, name) for name in names if not name.startswith("."))
        yield from (path for path in paths if path.is_file())


def read_documents(
    folder: Path, text_column: str = "text", id_column: str = "id"
) -> Iterator[Document | Unusable]:
    """The documents of all files of `corpus_files`.

    Args:
        folder: A folder, or one file.
        text_column: Column of a row's text.
        id_column: Column of a row's id, if it has one; else its number, from 1.
    """
    passed_over: dict[str, str] = {}
    files = corpus_files(folder, passed_over)
    yield from (Unusable(place, why, 0) for place, why in passed_over.items())
    for path in files:
        name = path.name if folder.is_file() else path.relative_to(folder).as_posix()
        if path.suffix.lower() in WHOLE:
            yield _whole(path, name)
            continue
        rows = _json_lines(path) if path.suffix.lower() == ".jsonl" else _parquet(path)
        try:
            for number, (row, size) in enumerate(rows, start=1):
                yield _row(row, name, number, size, text_column, id_column)
        except (OSError, ValueError) as error:  # pyarrow's errors are ValueErrors
            yield Unusable(name, f"reading stopped: {first_line(error)}", 0)


def _whole(path: Path, name: str) -> Document | Unusable:
    try:
        data = path.read_bytes()
    except OSError as error:
        return Unusable(name, str(error.strerror or error), 0)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        return Unusable(name, f"not UTF-8 at byte {error.start}", len(data))
    return _document(name, text, {"source": name}, len(data))


def _row(
    row: Mapping[str, Any] | str,
    name: str,
    number: int,
    size: int,
    text_column: str,
    id_column: str,
) -> Document | Unusable:
    if isinstance(row, str):
        return Unusable(f"{name}#{number}", row, size)
    if not isinstance(row.get(text_column), str):
        return Unusable(f"{name}#{number}", f"no text in the column {text_column!r}", size)
    row_id = row.get(id_column)
    key = f"{name}#{row_id if isinstance(row_id, str | int) and row_id != '' else number}"
    others = {key: value for key, value in row.items() if key != text_column}
    return _document(key, row[text_column], {**others, "source": name}, size)


def _document(key: str, text: str, metadata: dict[str, Any], size: int) -> Document | Unusable:
    try:
        check_ids(key, new=True)
        return Document(key, check_text(text, "the text"), encode_metadata(metadata), size)
    except ValueError as error:
        return Unusable(key.encode("utf-8", "replace").decode(), str(error), size)


def _json_lines(path: Path) -> Iterator[tuple[Mapping[str, Any] | str, int]]:
    with open(path, "rb") as file:
        for line in file:
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:  # RecursionError: nested too deep
                yield f"not JSON: {first_line(error)}", len(line)
                continue
            yield (row if isinstance(row, dict) else "not an object with columns"), len(line)


def _parquet(path: Path) -> Iterator[tuple[Mapping[str, Any] | str, int]]:
    import pyarrow.parquet as parquet

    with parquet.ParquetFile(path) as file:
        share = path.stat().st_size // max(file.metadata.num_rows, 1)
        for batch in file.iter_batches(_ROWS_AT_ONCE):
            for row in pa.Table.from_batches([batch]).to_pylist():
                yield row, share
