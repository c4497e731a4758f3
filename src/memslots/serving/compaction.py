"""Which files of a store are worth writing again, and what of them is kept."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from . import store_files
from .store_format import SCHEMA, CorruptRow, decode_row, pa

_AT_ONCE = 64  # rows that are checked together


def compacted(db: sqlite3.Connection, data: Path) -> Iterator[tuple[list[str], pa.Table]]:
    """Files to take out of the catalogue, each time with the rows to enter in their stead.

    Rewritten are files with rows that no document points to, and small ones where there are
    several. A file with a damaged row stays as it is: copying would hide which row it was.

    Args:
        db: The catalogue, in a writing transaction.
        data: Folder of the files.
    """
    live = Counter(row[0] for row in db.execute("SELECT file FROM documents"))
    files = db.execute("SELECT file, name, rows, bytes FROM files ORDER BY file").fetchall()
    small = {file for file, _, _, size in files if size < store_files.FILE_BYTES // 2}
    names: list[str] = []
    kept: list[pa.Table] = []
    for file, name, rows, _ in files:
        if live[file] == rows and (file not in small or len(small) == 1):
            continue
        if live[file]:
            query = "SELECT row FROM documents WHERE file = ? ORDER BY row"
            remaining = _sound_rows(data / name, [row[0] for row in db.execute(query, (file,))])
            if remaining is None:
                continue
            kept.append(remaining)
        names.append(name)
        if sum(part["slots"].nbytes for part in kept) >= store_files.FILE_BYTES:
            yield names, pa.concat_tables(kept)
            names, kept = [], []
    if names:
        yield names, pa.concat_tables(kept) if kept else SCHEMA.empty_table()


def _sound_rows(path: Path, numbers: list[int]) -> pa.Table | None:
    """These rows of a file; None where the file or one of them is damaged."""
    try:
        rows = store_files.open_file(path).take(pa.array(numbers, pa.int64()))
        for start in range(0, len(rows), _AT_ONCE):
            for row in rows.slice(start, _AT_ONCE).to_pylist():
                decode_row(row)
    except (CorruptRow, OSError, pa.ArrowException):
        return None  # `verify` says what is wrong with it
    return rows
