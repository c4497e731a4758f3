"""The catalogue of a memory store: which document is in which row of which file.

It is an SQLite database (of Python's standard library), and it alone says what is in the store: a
file of slots that it does not name is not there. So its transactions are the store's, its write
lock is the one that keeps writers apart, and what it has committed survives the death of the
process and, as it is synchronised with the disk, of the machine.

The journal is SQLite's rollback journal, not the write-ahead log, which needs memory shared
between all processes and so cannot be read from a second machine over a network file system.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .store_format import FORMAT, FORMAT_VERSION, MADE_WITH, text_key

NAME = "catalogue.sqlite"

_TABLES = """
CREATE TABLE store (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE files (file INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, rows INTEGER NOT NULL,
                    bytes INTEGER NOT NULL);
CREATE TABLE documents (id TEXT PRIMARY KEY, file INTEGER NOT NULL REFERENCES files, row INTEGER
                        NOT NULL, text_key TEXT NOT NULL, rate INTEGER NOT NULL, tokens INTEGER
                        NOT NULL, slots INTEGER NOT NULL, metadata TEXT NOT NULL) WITHOUT ROWID;
CREATE INDEX documents_by_text ON documents (text_key, rate);
CREATE UNIQUE INDEX documents_by_place ON documents (file, row);
"""

_UNUSABLE = {
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_CANTOPEN,
}
_AT_ONCE = 500  # ids in one query: SQLite bounds the number of parameters


class Place(NamedTuple):
    """Where a document's row is.

    Args:
        file: Name of the Arrow file.
        row: Its row in that file.
        text_key: Of `store_format.text_key`.
        rate: Encoder tokens per slot.
        tokens: Encoder tokens of its text.
        slots: Its memory slots.
        metadata: Of `store_format.encode_metadata`.
    """

    file: str
    row: int
    text_key: str
    rate: int
    tokens: int
    slots: int
    metadata: str

    @classmethod
    def of(cls, file: str, row: int, columns: Mapping[str, Any]) -> Place:
        """The entry of a row.

        Args:
            file: Where it is.
            row: Which row of that file.
            columns: Its contents, those of the slots not needed.
        """
        segments = columns["segments"]
        return cls(
            file=file,
            row=row,
            text_key=text_key([value.hex() for value in columns["text_sha256"]]),
            rate=columns["rate"],
            tokens=sum(segment["tokens"] for segment in segments),
            slots=sum(segment["slots"] for segment in segments),
            metadata=columns["metadata"],
        )

    @property
    def made_with(self) -> dict[str, Any]:
        """Options of `store add` beside the rate; empty if there were none."""
        return json.loads(self.metadata).get(MADE_WITH, {})


class Catalogue:
    """The SQLite file; opened anew for each use, so that threads and forks share nothing.

    Args:
        folder: The store's.
        wait: Seconds to wait for another writer.
    """

    def __init__(self, folder: Path, wait: float):
        self.path = folder / NAME
        self.wait = wait

    def create(self, slot_dtype: str) -> None:
        """Makes the tables if there are none; of two that try, one does."""
        self.path.touch()
        with self.write() as db:
            if db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0:
                for statement in _TABLES.split(";"):
                    db.execute(statement)
                header = {"format": FORMAT, "version": FORMAT_VERSION, "slot_dtype": slot_dtype}
                db.executemany(
                    "INSERT INTO store VALUES (?, ?)", [(k, str(v)) for k, v in header.items()]
                )

    def has_tables(self) -> bool:
        """Whether it was made to the end."""
        with self.read() as db:
            return db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] > 0

    @contextlib.contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """One consistent view. Keep it short: a writer waits for it before it commits."""
        with self._connection() as db:
            db.execute("BEGIN")
            yield db
            db.execute("COMMIT")

    @contextlib.contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """A transaction that nobody else can write beside; all of it happens, or nothing."""
        with self._connection() as db:
            db.execute("BEGIN IMMEDIATE")
            yield db
            db.execute("COMMIT")

    @contextlib.contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        with self._plain_errors():
            where = f"{self.path.absolute().as_uri()}?mode=rw"
            db = sqlite3.connect(where, self.wait, isolation_level=None, uri=True)
            with contextlib.closing(db):  # closing rolls an open transaction back
                db.execute("PRAGMA synchronous = EXTRA")
                db.execute("PRAGMA secure_delete = ON")
                # A transaction that outgrew the cache would keep readers away until it ends.
                db.execute("PRAGMA cache_spill = OFF")
                yield db

    @contextlib.contextmanager
    def _plain_errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise TimeoutError(
                    f"another process has been writing to {self.path.parent} for more than "
                    f"{self.wait:g} seconds; nothing was changed. Try again."
                ) from error
            if code in _UNUSABLE:
                raise OSError(
                    f"the catalogue {self.path} cannot be used ({error}); nothing was changed. "
                    "Check the disk's free space and the permissions, and try again."
                ) from error
            raise ValueError(
                f"the catalogue {self.path} is damaged or not a catalogue ({error}); move it away, "
                "and make it again from the documents with `memslots store rebuild --store "
                f"{self.path.parent}`. (A backup of it lacks the documents that were added since, "
                "and compacting would remove those.)"
            ) from error

    # -- queries -----------------------------------------------------------------------------------

    def header(self, db: sqlite3.Connection) -> dict[str, str]:
        """What the store says of itself.

        Raises:
            ValueError: Another format, or a newer version of it.
        """
        header = dict(db.execute("SELECT key, value FROM store"))
        version = header.get("version", "")
        if header.get("format") != FORMAT or not version.isdecimal():
            raise ValueError(f"{self.path} is not a catalogue of a memory store.")
        if int(version) > FORMAT_VERSION:
            raise ValueError(
                f"{self.path.parent} has store format {version}; this memslots reads it up to "
                f"version {FORMAT_VERSION}. Update memslots."
            )
        return header

    def places(self, db: sqlite3.Connection, ids: Sequence[str]) -> dict[str, Place]:
        """Where those of `ids` are that are in the store."""
        return dict(self._documents(db, "d.id", ids))

    def texts(self, db: sqlite3.Connection, text_keys: Sequence[str]) -> list[Place]:
        """Where those texts are that are in the store, by whatever ids."""
        return [place for _, place in self._documents(db, "d.text_key", text_keys)]

    def in_file(self, db: sqlite3.Connection, name: str) -> Iterator[tuple[str, Place]]:
        """The documents of one file, in the order of its rows."""
        return self._documents(db, "f.name", [name])

    @staticmethod
    def _documents(
        db: sqlite3.Connection, column: str, values: Sequence[str]
    ) -> Iterator[tuple[str, Place]]:
        """Ids and places of the documents with one of these values, file by file."""
        for start in range(0, len(values), _AT_ONCE):
            part = list(values[start : start + _AT_ONCE])
            rows = db.execute(
                "SELECT d.id, f.name, d.row, d.text_key, d.rate, d.tokens, d.slots, d.metadata "
                f"FROM documents d JOIN files f USING (file) WHERE {column} IN "
                f"({', '.join('?' * len(part))}) ORDER BY d.file, d.row",
                part,
            )
            for key, *place in rows:
                yield key, Place(*place)

    def ids_after(self, last: str | None, most: int) -> list[str]:
        """The next ids in order, at most so many, after `last` (None: from the first)."""
        with self.read() as db:
            query = "SELECT id FROM documents WHERE id > ? ORDER BY id LIMIT ?"
            return [row[0] for row in db.execute(query, (last or "", most))]

    def find(self, metadata: Mapping[str, Any], text_key: str | None) -> list[str]:
        """Ids of the documents with all of these metadata, in order.

        Compared here, since SQLite ends a text at NUL and knows no integer beyond 64 bits.
        """
        condition, values = ("", []) if text_key is None else ("WHERE text_key = ?", [text_key])
        with self.read() as db:
            rows = db.execute(f"SELECT id, metadata FROM documents {condition} ORDER BY id", values)
            return [key for key, text in rows if _holds(json.loads(text), metadata)]

    def left_over(self, db: sqlite3.Connection, data: Path) -> list[str]:
        """Files in the folder `data` that the catalogue does not name."""
        named = {row[0] for row in db.execute("SELECT name FROM files")}
        return sorted(file.name for file in data.iterdir() if file.name not in named)

    # -- changes, inside `write` -------------------------------------------------------------------

    def set_header(self, db: sqlite3.Connection, **values: str) -> None:
        """Sets facts of the store."""
        db.executemany("INSERT OR REPLACE INTO store VALUES (?, ?)", list(values.items()))

    def insert(
        self, db: sqlite3.Connection, name: str, size: int, documents: Iterable[tuple[str, Place]]
    ) -> None:
        """Enters a file and its documents; those whose id is there now point to the new row."""
        rows = [(key, *place[1:]) for key, place in documents]
        cursor = db.execute(
            "INSERT INTO files (name, rows, bytes) VALUES (?, ?, ?)", (name, len(rows), size)
        )
        db.executemany(
            f"INSERT OR REPLACE INTO documents VALUES (?, {cursor.lastrowid}, ?, ?, ?, ?, ?, ?)",
            rows,
        )

    def forget_files(self, db: sqlite3.Connection, files: Sequence[str]) -> None:
        """Takes files out, with all documents in them."""
        for name in files:
            query = "DELETE FROM documents WHERE file = (SELECT file FROM files WHERE name = ?)"
            db.execute(query, (name,))
            db.execute("DELETE FROM files WHERE name = ?", (name,))

    def delete(self, db: sqlite3.Connection, ids: Sequence[str]) -> None:
        """Takes documents out; their rows stay in their files until the store is compacted."""
        db.executemany("DELETE FROM documents WHERE id = ?", [(key,) for key in ids])


def _holds(metadata: Mapping[str, Any], asked: Mapping[str, Any]) -> bool:
    return all(name in metadata and _same(metadata[name], asked[name]) for name in asked)


def _same(stored: Any, asked: Any) -> bool:
    """Whether two values are one in JSON, where 1 is 1.0 and true is neither."""
    if isinstance(stored, bool) or isinstance(asked, bool):
        return stored is asked
    if isinstance(stored, list):
        same_kind = isinstance(asked, list | tuple) and len(stored) == len(asked)
        return same_kind and all(map(_same, stored, asked))
    if isinstance(stored, dict):
        return isinstance(asked, Mapping) and len(stored) == len(asked) and _holds(stored, asked)
    return stored == asked
