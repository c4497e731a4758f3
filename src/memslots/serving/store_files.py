"""The Arrow files of a memory store: written once, synchronised with the disk, never changed.

They are Arrow IPC files, uncompressed and read through a memory map: of a file of thousands of
documents, reading one touches the pages of that one. (Slots are as good as random numbers to a
general compressor; smaller slots come from int8.)
"""

from __future__ import annotations

import errno
import json
import os
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .store_format import FORMAT, FORMAT_VERSION, SCHEMA, CorruptRow, decode_row, pa

ENDING = ".arrow"
FILE_BYTES = 128 * 2**20
"""A file is closed when its slots take this many bytes: what compacting has to copy at once."""
_AT_ONCE = 64  # rows that are read together


def write_files(folder: Path, rows: pa.Table) -> list[tuple[str, pa.Table]]:
    """Writes rows to new files, all of them on the disk when this returns.

    Args:
        folder: Where the files go.
        rows: Of `SCHEMA`.

    Returns:
        The files' names and their rows.

    Raises:
        OSError: The disk is full, or cannot be written; no file is left then.
    """
    written: list[tuple[str, pa.Table]] = []
    try:
        for part in _parts(rows):
            name = uuid.uuid4().hex + ENDING
            written.append((name, part))
            with open(folder / name, "xb") as file:
                with pa.ipc.new_file(file, SCHEMA) as writer:
                    writer.write_table(part)
                file.flush()
                os.fsync(file.fileno())
        _sync_folder(folder)
    except BaseException as error:
        remove_files(folder, [name for name, _ in written])
        if isinstance(error, OSError):
            full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            raise OSError(
                error.errno,
                f"{'the disk is full' if full else 'writing failed'} ({error.strerror or error}): "
                "nothing of this call was stored and nothing that was there is lost. "
                + ("Free some space and try again" if full else "Check the disk and try again"),
                str(folder),
            ) from error
        raise
    return written


def read_rows(path: Path, rows: Sequence[int]) -> list[dict[str, Any]]:
    """Some rows of one file, without reading the others' slots.

    Args:
        path: Of the file.
        rows: Which.

    Raises:
        FileNotFoundError: There is no such file.
        CorruptRow: The file cannot be read, or has no such rows.
    """
    return _take(open_file(path), path, rows)


def sound_rows(
    path: Path, problems: dict[str, str], numbers: Sequence[int] | None = None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Numbers and columns of those rows of a file that are as they were written.

    Args:
        path: Of the file.
        problems: Gets what is wrong with others, and which.
        numbers: Rows to look at; by default all.
    """
    try:
        table = open_file(path)
    except (ValueError, OSError) as error:
        problems[path.name] = str(error)
        return
    numbers = range(len(table)) if numbers is None else numbers
    for start in range(0, len(numbers), _AT_ONCE):
        part = numbers[start : start + _AT_ONCE]
        try:
            rows = _take(table, path, part)
        except CorruptRow as error:
            problems[f"{path.name}, rows {part[0]} to {part[-1]}"] = str(error)
            continue
        for number, row in zip(part, rows, strict=True):
            try:
                decode_row(row)
                json.loads(row["metadata"])
            except ValueError as error:
                problems[f"{path.name}, row {number}"] = str(error)
            else:
                yield number, row


def _take(table: pa.Table, path: Path, rows: Sequence[int]) -> list[dict[str, Any]]:
    try:
        return table.take(pa.array(rows, pa.int64())).to_pylist()
    except (pa.ArrowException, ValueError, IndexError) as error:
        raise CorruptRow(f"{path} is cut off or damaged ({first_line(error)})") from error


def open_file(path: Path) -> pa.Table:
    """All rows of a file, mapped and not yet read.

    Raises:
        FileNotFoundError: There is no such file.
        CorruptRow: It is not a file of a store, or its structure is damaged.
        ValueError: It was written by a newer memslots.
    """
    try:
        with pa.memory_map(str(path)) as source:
            table = pa.ipc.open_file(source).read_all()
        table.validate(full=True)  # offsets in bounds: what is read by them must be in the file
        metadata = table.schema.metadata or {}
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        raise CorruptRow(f"{path} is cut off or damaged ({first_line(error)})") from error
    version = metadata.get(b"version", b"").decode("utf-8", "replace")
    if metadata.get(b"format") == FORMAT.encode() and version.isdecimal():
        if int(version) > FORMAT_VERSION:
            raise ValueError(
                f"{path} has store format {version}; this memslots reads it up to version "
                f"{FORMAT_VERSION}. Update memslots."
            )
        if table.schema.equals(SCHEMA):
            return table
    raise CorruptRow(f"{path} is damaged, or no file of a memory store")


def remove_files(folder: Path, names: Sequence[str]) -> None:
    """Removes files that the catalogue does not name."""
    for name in names:
        (folder / name).unlink(missing_ok=True)


def _parts(rows: pa.Table) -> list[pa.Table]:
    """The rows cut where `FILE_BYTES` of slots are reached; at least one row each."""
    if not len(rows):
        return []
    parts, start, size = [], 0, 0
    lengths = [len(slots.as_buffer()) for slots in rows["slots"]]
    for i, length in enumerate(lengths):
        if i > start and size + length > FILE_BYTES:
            parts.append(rows.slice(start, i - start))
            start, size = i, 0
        size += length
    parts.append(rows.slice(start))
    # One dictionary a file, as the format demands, also of rows from several files.
    return [part.unify_dictionaries().combine_chunks() for part in parts]


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":  # elsewhere a folder cannot be opened
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def first_line(error: Exception) -> str:
    """What an error says, at most a line of it."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
