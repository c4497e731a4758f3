"""What goes through all rows of a store: verifying them, compacting files, the catalogue anew."""

from __future__ import annotations

import os
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tqdm.auto import tqdm

from . import store_files
from .catalogue import NAME, Catalogue, Place
from .store_files import open_file, sound_rows
from .store_format import SCHEMA, pa


@dataclass
class Verification:
    """What `MemoryStore.verify` found, or `rebuild_catalogue` made of the files.

    Args:
        documents: How many were read, or that the store holds again.
        problems: For each document, row or file that cannot be read, or is not what was added,
            what is wrong. After a rebuild, these are in no catalogue and compacting removes them.
        left_over: Files that the catalogue does not name, of writers that died or are at work now;
            harmless, compacting removes them.
    """

    documents: int = 0
    problems: dict[str, str] = field(default_factory=dict)
    left_over: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether every document is what was added."""
        return not self.problems


def suspects(
    catalogue: Catalogue, data: Path, report: Verification, progress: bool | None
) -> Iterator[str]:
    """Ids of documents that are not as they were added, or were changed since the catalogue was
    read. Goes file by file, so that each is read once and in order.

    Args:
        catalogue: Of the store.
        data: Folder of its files.
        report: Gets all but the problems of documents.
        progress: See `MemoryStore.verify`.
    """
    with catalogue.read() as db:
        (state,) = db.execute("PRAGMA integrity_check(1)").fetchone()
        if state != "ok":
            report.problems[catalogue.path.name] = f"the catalogue is damaged: {state}"
        total = db.execute("SELECT count(*) FROM documents").fetchone()[0]
        files = [name for (name,) in db.execute("SELECT name FROM files")]
        report.left_over = catalogue.left_over(db, data)
    with _bar("verifying", total, progress) as bar:
        for file in files:
            with catalogue.read() as db:
                documents = {place.row: (key, place) for key, place in catalogue.in_file(db, file)}
            report.documents += len(documents)
            bar.update(len(documents))
            for number, row in sound_rows(data / file, {}, list(documents)):
                if documents[number] == (row["id"], Place.of(file, number, row)):
                    del documents[number]
            yield from (key for key, _ in documents.values())


def _bar(doing: str, documents: int, progress: bool | None) -> tqdm:
    hidden = documents < 1000 if progress is None else not progress
    return tqdm(total=documents, desc=doing, unit="document", disable=hidden)


def compacted(
    db: sqlite3.Connection, data: Path, progress: bool | None
) -> Iterator[tuple[list[str], pa.Table]]:
    """Files to take out of the catalogue, each time with the rows to enter in their stead.

    Rewritten are files with rows that no document points to, and small ones where there are
    several. A file with a damaged row stays as it is: copying would hide which row it was.

    Args:
        db: The catalogue, in a writing transaction.
        data: Folder of the files.
        progress: See `MemoryStore.compact`.
    """
    live = Counter(file for (file,) in db.execute("SELECT file FROM documents"))
    files = db.execute("SELECT file, name, rows, bytes FROM files ORDER BY file").fetchall()
    small = {file for file, _, _, size in files if size < store_files.FILE_BYTES // 2}
    rewritten = [
        (file, name)
        for file, name, rows, _ in files
        if live[file] < rows or (file in small and len(small) > 1)
    ]
    names: list[str] = []
    kept: list[pa.Table] = []
    with _bar("compacting", sum(live[file] for file, _ in rewritten), progress) as bar:
        for file, name in rewritten:
            if live[file]:
                query = "SELECT row FROM documents WHERE file = ? ORDER BY row"
                numbers = [number for (number,) in db.execute(query, (file,))]
                sound = sum(bar.update() or 1 for _ in sound_rows(data / name, {}, numbers))
                if sound < len(numbers):
                    continue  # `verify` says what is wrong with it
                kept.append(open_file(data / name).take(pa.array(numbers, pa.int64())))
            names.append(name)
            if sum(part["slots"].nbytes for part in kept) >= store_files.FILE_BYTES:
                yield names, pa.concat_tables(kept)
                names, kept = [], []
        if names:
            yield names, pa.concat_tables(kept) if kept else SCHEMA.empty_table()


def rebuild_catalogue(
    path: str | os.PathLike, data: str = "data", progress: bool | None = None
) -> Verification:
    """Make the catalogue of a store again from the rows of its files.

    What only the catalogue knew is lost: documents that were deleted, and not yet compacted away,
    are there again. Of several rows with one id the one in the newest file is taken.

    Args:
        path: The store's folder, without a catalogue.
        data: Its folder of files.
        progress: See `MemoryStore.compact`.

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
    report = Verification()
    none_found = ValueError(
        f"{str(folder / data)!r} holds no document that can be read; name the folder of a store."
    )
    if not files:
        raise none_found
    with (
        _bar("rebuilding", sum(map(_rows, files)), progress) as bar,
        tempfile.TemporaryDirectory(dir=folder, prefix=".rebuild-") as beside,
    ):
        catalogue, compressors, dtypes = Catalogue(Path(beside), 0.0), set(), set()
        catalogue.create("")
        with catalogue.write() as db:
            for file in files:
                newest: dict[str, Place] = {}  # of several rows with one id, the last
                for number, row in sound_rows(file, report.problems):
                    bar.update()
                    newest[row["id"]] = Place.of(file.name, number, row)
                    compressors.add((row["fingerprint"], row["d_encoder"]))
                    dtypes.add(row["slot_dtype"])
                if newest:
                    catalogue.insert(db, file.name, file.stat().st_size, newest.items())
            if not compressors:
                raise none_found
            if len(compressors) != 1 or len(dtypes) != 1:
                raise ValueError(
                    f"{str(folder / data)!r} holds documents of {len(compressors)} compressors in "
                    f"{len(dtypes)} kinds of slots; one is needed."
                )
            ((fingerprint, width),), (slot_dtype,) = compressors, dtypes
            catalogue.set_header(
                db, fingerprint=fingerprint, d_encoder=str(width), slot_dtype=slot_dtype
            )
            report.documents = db.execute("SELECT count(*) FROM documents").fetchone()[0]
        (folder / f"{NAME}-journal").unlink(missing_ok=True)  # of the lost one, for this none
        os.replace(catalogue.path, folder / NAME)
    return report


def _rows(file: Path) -> int:
    """How many rows a file has, damaged ones too; none if it cannot be opened."""
    try:
        return len(open_file(file))
    except (ValueError, OSError):
        return 0
