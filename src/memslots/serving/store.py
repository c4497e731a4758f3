"""MemoryStore: a folder of memories, for millions of documents.

    store = MemoryStore("memories")
    store.add(["a.txt", "b.txt"], model.compress([text_a, text_b]), metadata={"year": 1920})
    model.generate(memory=store.get("a.txt"), question="Who signed?")

Slots and all that belongs to them are Arrow files, which never change (`store_files`); which
document is in which row is an SQLite catalogue (`catalogue`). A writer holds the catalogue's write
lock from before its file is written until after it is entered, so a file that the catalogue does
not name was left by a writer that died, and may be removed by whoever holds the lock.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from memslots.modeling.memory_memslots import Memory

from . import store_files
from .catalogue import NAME, Catalogue, Place
from .maintenance import Verification, compacted, suspects
from .quantise import SLOT_DTYPES, check_slot_dtype
from .store_format import (
    CorruptRow,
    check_ids,
    check_strings,
    decode_row,
    encode_memory,
    encode_metadata,
    is_unicode,
    pa,
    shorten,
)
from .uncompressed import joined

DATA = "data"
_COMPACTED_MEANWHILE = 5  # times that a reader looks a row up again when its file is gone


@dataclass(frozen=True)
class StoreInfo:
    """What a store holds.

    Args:
        documents: How many.
        tokens: Encoder tokens of their texts.
        slots: Memory slots.
        bytes: What the files and the catalogue take on the disk.
        files: Arrow files.
        deleted: Rows in them that were deleted or replaced; compacting removes them.
        rates: Documents at each rate.
        slot_dtype: Of `quantise.SLOT_DTYPES`.
        fingerprint: The compressor's; None while the store is empty.
        d_encoder: Width of a slot; None while the store is empty.
    """

    documents: int
    tokens: int
    slots: int
    bytes: int
    files: int
    deleted: int
    rates: dict[int, int]
    slot_dtype: str
    fingerprint: str | None
    d_encoder: int | None


class MemoryStore:
    """Memories by id in a folder, of one compressor.

    Any number of threads and processes may read and write. What a method has returned from is on
    the disk. Reads see the store as of one moment.

    Args:
        path: The folder.
        slot_dtype: For a new store, how slots are kept ("bfloat16" by default, or "int8"); an
            existing store has its own.
        create: Whether to make a store if there is none.
        wait: Seconds that a writer waits for another.

    Raises:
        FileNotFoundError: `create=False` and no store there.
        ValueError: Not a store, one of a newer memslots, or one with another `slot_dtype`; a `wait`
            that is no number of seconds.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        slot_dtype: str | None = None,
        create: bool = True,
        wait: float = 60.0,
    ):
        if isinstance(wait, bool) or not isinstance(wait, (int, float)) or not 0 <= wait < math.inf:
            raise ValueError(f"wait must be seconds, 0 or more, got {wait!r}.")
        self.path = Path(path)
        self._data = self.path / DATA
        self._catalogue = Catalogue(self.path, wait)
        if slot_dtype is not None:
            check_slot_dtype(slot_dtype)
        if not self._exists():
            if not create:
                self._check_not_lost()
                raise FileNotFoundError(
                    f"there is no memory store at {str(self.path)!r}; `memslots store add` or "
                    "MemoryStore(path) makes one."
                )
            self._check_empty()
            try:
                self._data.mkdir(parents=True, exist_ok=True)
            except (FileExistsError, NotADirectoryError) as error:
                raise ValueError(
                    f"cannot make a memory store at {str(self.path)!r}: a file or a broken link is "
                    "in the way; name a new folder."
                ) from error
            self._catalogue.create(slot_dtype or SLOT_DTYPES[0])
        with self._catalogue.read() as db:
            self.slot_dtype = self._catalogue.header(db)["slot_dtype"]
        if slot_dtype not in (None, self.slot_dtype):
            raise ValueError(
                f"the store {str(self.path)!r} keeps slots in {self.slot_dtype}, not {slot_dtype}; "
                "leave slot_dtype out, or make another store."
            )

    def _exists(self) -> bool:
        # One without tables was begun by a process that died; making it again finishes it.
        return self._catalogue.path.is_file() and self._catalogue.has_tables()

    def _check_empty(self) -> None:
        parts = {NAME, f"{NAME}-journal", DATA}
        if self.path.exists() and (
            not self.path.is_dir() or {f.name for f in self.path.iterdir()} - parts
        ):
            raise ValueError(
                f"{str(self.path)!r} is not a memory store and not empty; name a new folder."
            )
        self._check_not_lost()

    def _check_not_lost(self) -> None:
        # Looked at again, since another process may be making this store now.
        if self._data.is_dir() and any(self._data.iterdir()) and not self._exists():
            raise ValueError(
                f"{str(self.path)!r} holds documents, but the catalogue {NAME} that lists them is "
                "lost: make it again from the documents with `memslots store rebuild --store "
                f"{self.path}`, or restore a backup of it. (A backup lacks the documents that were "
                "added since, and compacting would remove those.)"
            )

    def __repr__(self) -> str:
        return f"MemoryStore({str(self.path)!r}, {len(self)} documents, {self.slot_dtype})"

    # -- what is there -----------------------------------------------------------------------------

    def __len__(self) -> int:
        with self._catalogue.read() as db:
            return db.execute("SELECT count(*) FROM documents").fetchone()[0]

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and is_unicode(key) and bool(self.places([key]))

    def ids(self) -> Iterator[str]:
        """All ids in order; those that are added or deleted meanwhile may be missed or named."""
        last: str | None = None
        while part := self._catalogue.ids_after(last, 1000):
            yield from part
            last = part[-1]

    def find(
        self, metadata: Mapping[str, Any] | None = None, text_sha256: str | None = None
    ) -> list[str]:
        """Ids of the documents with all of these metadata, and of this text.

        Args:
            metadata: Keys and the values that they must have, compared as JSON.
            text_sha256: SHA-256 of the source text (UTF-8).
        """
        if text_sha256 is not None:
            check_strings([text_sha256], "text_sha256")
        return self._catalogue.find(json.loads(encode_metadata(metadata)), text_sha256)

    def places(self, ids: Sequence[str]) -> dict[str, Place]:
        """The catalogue's entries of those of `ids` that are in the store."""
        ids = check_strings(ids, "an id")
        with self._catalogue.read() as db:
            return self._catalogue.places(db, ids)

    def texts(self, text_keys: Sequence[str]) -> list[Place]:
        """The catalogue's entries of those texts (SHA-256) that are in the store."""
        text_keys = check_strings(text_keys, "a text's SHA-256")
        with self._catalogue.read() as db:
            return self._catalogue.texts(db, text_keys)

    @property
    def fingerprint(self) -> str | None:
        """The compressor whose memories these are; None while the store is empty."""
        with self._catalogue.read() as db:
            return self._compressor(db)[0]

    def info(self) -> StoreInfo:
        """What the store holds."""
        with self._catalogue.read() as db:
            rates = dict(db.execute("SELECT rate, count(*) FROM documents GROUP BY rate"))
            sums = "SELECT count(*), total({}), total({}) FROM {}".format
            documents, tokens, slots = map(
                int, db.execute(sums("tokens", "slots", "documents")).fetchone()
            )
            files, rows, size = map(int, db.execute(sums("rows", "bytes", "files")).fetchone())
            fingerprint, d_encoder = self._compressor(db)
        return StoreInfo(
            documents=documents,
            tokens=tokens,
            slots=slots,
            bytes=size + self._catalogue.path.stat().st_size,
            files=files,
            deleted=rows - documents,
            rates=rates,
            slot_dtype=self.slot_dtype,
            fingerprint=fingerprint,
            d_encoder=d_encoder,
        )

    # -- reading -----------------------------------------------------------------------------------

    def get(
        self,
        ids: str | Sequence[str],
        rate: int | None = None,
        device: str | torch.device = "cpu",
    ) -> Memory:
        """The memory of one document, or of several in the order of `ids`.

        Nothing but these documents is read, and what is read is checked against its checksum.

        Args:
            ids: An id, or several.
            rate: A coarser rate than they were stored at; needed where they have several rates,
                and none of them has segments with rates of their own (a verified memory).
            device: Where the slots go.

        Returns:
            A `Memory` whose slots are bfloat16, or float32 in a store that keeps int8.

        Raises:
            ValueError: No ids, unknown ids, several rates, a rate that cannot be made of the
                stored slots, or a document that is damaged.
        """
        ids = [ids] if isinstance(ids, str) or not isinstance(ids, Iterable) else list(ids)
        if not ids:
            raise ValueError("get needs at least one id, got none.")
        memories = self.read(ids)
        return joined([memories[key] for key in ids], rate).to(device)

    def read(self, ids: Sequence[str]) -> dict[str, Memory]:
        """The memories of some documents by id, each at the rate that it is stored at.

        Raises:
            ValueError: Unknown ids, or a document that is damaged.
        """
        ids = list(dict.fromkeys(check_strings(ids, "an id")))
        for attempt in range(_COMPACTED_MEANWHILE + 1):
            places = self.places(ids)
            if unknown := [key for key in ids if key not in places]:
                raise ValueError(
                    f"{shorten(unknown)} not in the store {str(self.path)!r}; `memslots store "
                    "list` shows what is."
                )
            by_file: dict[str, list[str]] = {}
            for key, place in places.items():
                by_file.setdefault(place.file, []).append(key)
            memories = {}
            try:
                for file, members in by_file.items():
                    numbers = [places[key].row for key in members]
                    rows = store_files.read_rows(self._data / file, numbers)
                    for key, row in zip(members, rows, strict=True):
                        memories[key] = _memory_at(key, row, places[key])
                break
            except FileNotFoundError as error:
                # Compacted between the look-up and the reading: the row is elsewhere now.
                if attempt == _COMPACTED_MEANWHILE:
                    raise self._damaged(f"the file {self._data / file} is missing") from error
            except CorruptRow as error:
                raise self._damaged(str(error)) from error
        return memories

    def _damaged(self, what: str) -> ValueError:
        return ValueError(
            f"{what}. `memslots store verify --store {self.path}` lists all documents that are "
            "damaged; delete those and add their texts again."
        )

    # -- changing ----------------------------------------------------------------------------------

    def add(
        self,
        ids: str | Sequence[str],
        memory: Memory,
        metadata: Mapping[str, Any] | Sequence[Mapping[str, Any] | None] | None = None,
        replace: bool = False,
    ) -> None:
        """Stores documents; when this returns they are on the disk, and before, none of them is.

        Args:
            ids: One per document.
            memory: n documents.
            metadata: One dict per document, of what JSON can hold; a single dict is for them all.
            replace: Whether ids that are there get the new documents; otherwise they are an error.

        Raises:
            ValueError: Ids that are there already, come twice or do not match the documents,
                another compressor's memory, or slots that cannot be kept.
            OSError: The disk is full or cannot be written.
            TimeoutError: Another writer has not finished in time.
        """
        ids = check_ids(ids, new=True)
        if metadata is None or isinstance(metadata, Mapping):
            metadata = [metadata] * len(ids)
        rows = encode_memory(ids, memory, [encode_metadata(m) for m in metadata], self.slot_dtype)
        self.add_rows(rows, "replace" if replace else "refuse")

    def add_rows(
        self, rows: pa.Table, existing: Literal["refuse", "replace", "skip"] = "refuse"
    ) -> int:
        """As `add`, of rows that `store_format.encode_memory` made, perhaps in another process.

        Args:
            rows: Of `store_format.SCHEMA`.
            existing: What becomes of a row whose id is there already.

        Returns:
            How many rows were stored.
        """
        if not len(rows):
            return 0
        ids = check_ids(rows["id"].to_pylist(), new=True)
        columns = (rows[name].to_pylist() for name in ("fingerprint", "d_encoder"))
        compressors = set(zip(*columns, strict=True))
        with self._writing() as (db, written):
            here = self._compressor(db)
            if len(compressors) > 1 or (here[0] is not None and {here} != compressors):
                other = next(iter(compressors - {here}))
                raise ValueError(
                    f"the store {str(self.path)!r} holds memories of compressor {_short(here)}; "
                    f"this one is of {_short(other)}, whose slots mean something else. Use another "
                    "store for it, or compress with the same checkpoint."
                )
            there = self._catalogue.places(db, ids)
            if there and existing == "skip":
                rows = rows.filter(pa.array([key not in there for key in ids]))
            elif there and existing == "refuse":
                raise ValueError(
                    f"{shorten(sorted(there))} in the store {str(self.path)!r} already; choose "
                    "other ids, delete those, or replace them (replace=True, --replace)."
                )
            if len(rows):
                self._enter(db, rows, written)
            if here[0] is None:
                ((fingerprint, width),) = compressors
                self._catalogue.set_header(db, fingerprint=fingerprint, d_encoder=str(width))
        return len(rows)

    def delete(self, ids: str | Sequence[str]) -> None:
        """Takes documents out of the store, all of them or none.

        Their slots stay in a file, found by nobody, until `compact` has rewritten it.

        Raises:
            ValueError: Unknown ids.
        """
        ids = check_ids(ids)
        with self._catalogue.write() as db:
            there = self._catalogue.places(db, ids)
            if unknown := [key for key in ids if key not in there]:
                raise ValueError(
                    f"{shorten(unknown)} not in the store {str(self.path)!r}; nothing was deleted."
                )
            self._catalogue.delete(db, ids)

    def verify(self, progress: bool | None = None) -> Verification:
        """Reads every document and compares it with its checksum and with the catalogue.

        Args:
            progress: Show a progress bar; by default from 1,000 documents on.
        """
        report = Verification()
        for key in suspects(self._catalogue, self._data, report, progress):
            # Again and by itself, to learn what is wrong; what was compacted, replaced or deleted
            # since the catalogue was read is found elsewhere or gone by now.
            try:
                self.read([key])
            except ValueError as error:
                if key in self:
                    report.problems[key] = str(error)
        return report

    def compact(self, progress: bool | None = None) -> None:
        """Joins small files, and removes deleted documents and left-over files from the disk.

        Other writers wait meanwhile, readers do not. A file with damaged rows is left as it is.

        Args:
            progress: Show a progress bar; by default from 1,000 documents on.
        """
        with self._writing() as (db, written):
            for files, rows in compacted(db, self._data, progress):
                self._catalogue.forget_files(db, files)
                if len(rows):
                    self._enter(db, rows, written)
        self._sweep()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[tuple[sqlite3.Connection, list[str]]]:
        """The write lock, and a list for the names of the files that are written under it."""
        written: list[str] = []
        try:
            with self._catalogue.write() as db:
                yield db, written
        except BaseException:
            # The catalogue says whether it was entered: an interrupt may come after that. Where
            # it cannot be asked, the files are left over, and `compact` removes them later.
            if written:
                with contextlib.suppress(OSError, ValueError):
                    self._sweep(written)
            raise

    def _sweep(self, names: Sequence[str] | None = None) -> None:
        """Removes files that the catalogue does not name: under its lock nobody is writing one.

        Args:
            names: Only these; by default all.
        """
        with self._catalogue.write() as db:
            left = self._catalogue.left_over(db, self._data)
            store_files.remove_files(self._data, [n for n in left if names is None or n in names])

    def _enter(self, db: sqlite3.Connection, rows: pa.Table, written: list[str]) -> None:
        for name, part in store_files.write_files(self._data, rows):
            written.append(name)
            documents = part.drop_columns(["slots", "scales", "literals"]).to_pylist()
            self._catalogue.insert(
                db,
                name,
                (self._data / name).stat().st_size,
                [(row["id"], Place.of(name, i, row)) for i, row in enumerate(documents)],
            )

    def _compressor(self, db: sqlite3.Connection) -> tuple[str | None, int | None]:
        """Fingerprint and slot width of what is in the store."""
        if db.execute("SELECT 1 FROM documents LIMIT 1").fetchone() is None:
            return None, None
        header = self._catalogue.header(db)
        return header["fingerprint"], int(header["d_encoder"])


def _memory_at(key: str, row: Mapping[str, Any], place: Place) -> Memory:
    memory = decode_row(row)
    if row["id"] != key or Place.of(place.file, place.row, row) != place:
        raise CorruptRow(
            f"the catalogue and the file {place.file} do not agree about {key[:80]!r}, one of "
            "them was altered"
        )
    return memory


def _short(compressor: tuple[str | None, int | None]) -> str:
    return f"{str(compressor[0])[:12]} (slots of {compressor[1]})"
