"""Whether the documents of a store are those that were added."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from memslots.modeling.memory_memslots import Memory

from .catalogue import Catalogue, Place
from .store_files import open_file, take_rows
from .store_format import CorruptRow, decode_row, text_key

if TYPE_CHECKING:
    from .store import MemoryStore

_AT_ONCE = 64  # documents read together


@dataclass
class Verification:
    """What `MemoryStore.verify` found.

    Args:
        documents: How many were read.
        problems: For each document that cannot be read, or is not what was added, what is wrong.
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


def place_of(file: str, row: int, contents: Mapping[str, Any]) -> Place:
    """The catalogue's entry of a row.

    Args:
        file: Where it is.
        row: Which row of that file.
        contents: Its columns, those of the slots not needed.
    """
    return Place(
        file=file,
        row=row,
        text_key=text_key([value.hex() for value in contents["text_sha256"]]),
        rate=contents["rate"],
        tokens=sum(segment["tokens"] for segment in contents["segments"]),
        slots=sum(segment["slots"] for segment in contents["segments"]),
        metadata=contents["metadata"],
    )


def checked_memory(key: str, row: Mapping[str, Any], place: Place) -> Memory:
    """The memory in a row, if it is the one that the catalogue says is there.

    Args:
        key: The document's id.
        row: Its columns.
        place: The catalogue's entry.

    Raises:
        CorruptRow: It is not.
    """
    memory = decode_row(row)
    if row["id"] != key or place_of(place.file, place.row, row) != place:
        raise CorruptRow(
            f"the catalogue and the file {place.file} do not agree about {key[:80]!r}, one of "
            "them was altered"
        )
    return memory


def verify_store(
    store: MemoryStore, catalogue: Catalogue, data: Path, progress: bool | None
) -> Verification:
    """See `MemoryStore.verify`. Goes file by file, so that each is read once and in order."""
    report = Verification()
    with catalogue.read() as db:
        (state,) = db.execute("PRAGMA integrity_check(1)").fetchone()
        if state != "ok":
            report.problems[catalogue.path.name] = f"the catalogue is damaged: {state}"
        total = db.execute("SELECT count(*) FROM documents").fetchone()[0]
        files = [row[0] for row in db.execute("SELECT name FROM files")]
        report.left_over = catalogue.left_over(db, data)
    bar = tqdm(
        total=total,
        desc="verifying",
        unit="document",
        disable=total < 1000 if progress is None else not progress,
    )
    with bar:
        for file in files:
            with catalogue.read() as db:
                places = catalogue.in_file(db, file)
            for key in _suspects(data / file, places):
                # Again and by itself, to learn what is wrong; what was compacted, replaced or
                # deleted since the catalogue was read is found elsewhere or gone by now.
                try:
                    store.read([key])
                except ValueError as error:
                    if key in store:
                        report.problems[key] = str(error)
            report.documents += len(places)
            bar.update(len(places))
    return report


def _suspects(path: Path, places: Mapping[str, Place]) -> list[str]:
    """Those documents of a file that were not read as they were written."""
    suspects: list[str] = []
    ids = list(places)
    try:
        table = open_file(path)
    except (FileNotFoundError, ValueError):
        return ids
    for start in range(0, len(ids), _AT_ONCE):
        part = ids[start : start + _AT_ONCE]
        try:
            rows = take_rows(table, path, [places[key].row for key in part])
        except CorruptRow:
            suspects += part
            continue
        for key, row in zip(part, rows, strict=True):
            try:
                checked_memory(key, row, places[key])
            except ValueError:
                suspects.append(key)
    return suspects
