"""A store's catalogue made again from its documents, where it was lost."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .catalogue import NAME, Catalogue
from .store_files import open_file, take_rows
from .store_format import CorruptRow, decode_row
from .verification import place_of

_AT_ONCE = 64  # documents read together


@dataclass
class Rebuilt:
    """What `rebuild_catalogue` did.

    Args:
        documents: That the store holds again.
        problems: Files and rows that cannot be read, and why; they are in no catalogue now, and
            compacting removes the files.
    """

    documents: int = 0
    problems: dict[str, str] = field(default_factory=dict)


def rebuild_catalogue(path: str | os.PathLike, data: str = "data") -> Rebuilt:
    """Make the catalogue of a store again from the rows of its files.

    What only the catalogue knew is lost: documents that were deleted, and not yet compacted away,
    are there again. Of several rows with one id the one in the newest file is taken.

    Args:
        path: The store's folder, without a catalogue.
        data: Its folder of files.

    Raises:
        ValueError: There is a catalogue, no file with a readable row, or rows of several
            compressors.
    """
    folder = Path(path)
    if (folder / NAME).is_file() and Catalogue(folder, 0.0).has_tables():
        raise ValueError(
            f"{str(folder)!r} has a catalogue; `memslots store verify` says whether it is sound. "
            f"To make it again all the same, move {NAME} away first."
        )
    files = sorted((folder / data).glob("*.arrow"), key=lambda file: file.stat().st_mtime_ns)
    rebuilt = Rebuilt()
    with tempfile.TemporaryDirectory(dir=folder, prefix=".rebuild-") as beside:
        catalogue, compressors, dtypes = Catalogue(Path(beside), 0.0), set(), set()
        catalogue.create("")
        with catalogue.write() as db:
            for file in files:
                places = []
                for number, row in _readable_rows(file, rebuilt.problems):
                    places.append((row["id"], place_of(file.name, number, row)))
                    compressors.add((row["fingerprint"], row["d_encoder"]))
                    dtypes.add(row["slot_dtype"])
                if places:
                    # The last of several rows with one id: each document is in one row.
                    newest = dict(places)
                    catalogue.insert(db, file.name, file.stat().st_size, newest.items())
            if len(compressors) != 1 or len(dtypes) != 1:
                raise ValueError(
                    f"{str(folder / data)!r} holds documents of {len(compressors)} compressors in "
                    f"{len(dtypes)} kinds of slots; one is needed."
                )
            ((fingerprint, width),), (slot_dtype,) = compressors, dtypes
            catalogue.set_header(
                db, fingerprint=fingerprint, d_encoder=str(width), slot_dtype=slot_dtype
            )
            rebuilt.documents = db.execute("SELECT count(*) FROM documents").fetchone()[0]
        (folder / f"{NAME}-journal").unlink(missing_ok=True)  # of the lost one, for this none
        os.replace(catalogue.path, folder / NAME)
    return rebuilt


def _readable_rows(file: Path, problems: dict[str, str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Numbers and columns of a file's sound rows; what is wrong with others goes to `problems`."""
    try:
        table = open_file(file)
    except (ValueError, OSError) as error:
        problems[file.name] = str(error)
        return
    for start in range(0, len(table), _AT_ONCE):
        numbers = range(start, min(start + _AT_ONCE, len(table)))
        try:
            rows = take_rows(table, file, numbers)
        except CorruptRow as error:
            problems[f"{file.name}, rows {start} to {numbers[-1]}"] = str(error)
            continue
        for number, row in zip(numbers, rows, strict=True):
            try:
                decode_row(row)
                json.loads(row["metadata"])
            except ValueError as error:
                problems[f"{file.name}, row {number}"] = str(error)
            else:
                yield number, row
