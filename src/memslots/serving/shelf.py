"""Where the gateway keeps memories: a `MemoryStore`, or this process while it runs."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch

from memslots.modeling import Memory
from memslots.modeling.memory_files_memslots import segments_to_json

from .store import MemoryStore
from .store_format import SEGMENT_COLUMNS, check_ids, encode_memory, encode_metadata

CREATED = "memslots_created"
"""Key of the metadata under which the gateway notes when a memory was made."""


class UnknownMemory(KeyError):
    """An id under which there is no memory."""

    def __str__(self) -> str:
        return str(self.args[0])


class TakenId(ValueError):
    """An id under which there is another memory."""


class ShelfFull(RuntimeError):
    """There is no room for another memory."""


class DamagedMemory(RuntimeError):
    """A memory that is here and cannot be read."""


def derived_id(memory: Memory) -> str:
    """An id that the same text, compressor and rate have again.

    Args:
        memory: One document.
    """
    documents = [
        [{name: getattr(segment, name) for name in SEGMENT_COLUMNS} for segment in document]
        for document in memory.documents
    ]
    named = [memory.fingerprint, memory.rate, memory.text_sha256, documents]
    beside = segments_to_json(memory.segments)
    literals: list[Any] = list(beside.get("literals", []))
    if "checks" in beside:
        literals.append(beside["checks"])
    if memory.texts:
        literals.append([text is not None for text in memory.texts])
    text = json.dumps([*named, literals])
    return f"mem-{hashlib.sha256(text.encode()).hexdigest()[:32]}"


class Shelf(Protocol):
    """Memories of one document by id; every method may be called from any thread."""

    slot_dtype: torch.dtype | None
    """What slots are rounded to when they are kept, None where they stay as they are or have no
    floating type: what is verified has to be what will be read."""

    def put(self, key: str, memory: Memory, metadata: dict[str, Any] | None) -> None:
        """Keep a memory; keeping the same one again changes nothing.

        Raises:
            TakenId: Another memory has this id.
            ShelfFull: No room.
            ValueError: An id or metadata that cannot be kept.
        """

    def get(self, ids: Sequence[str]) -> list[Memory]:
        """The memories of these ids, in order.

        Raises:
            UnknownMemory: One of them is not here.
            DamagedMemory: One of them cannot be read.
        """

    def metadata(self, key: str) -> dict[str, Any]:
        """What was kept with a memory.

        Raises:
            UnknownMemory: It is not here.
        """

    def delete(self, key: str) -> None:
        """Forget a memory.

        Raises:
            UnknownMemory: It is not here.
        """

    def __len__(self) -> int:
        """How many there are."""


class ProcessShelf:
    """Memories in this process; they are gone when it ends.

    Args:
        max_bytes: Of all that is kept; a memory beyond that is refused, none is dropped for it.
    """

    slot_dtype: torch.dtype | None = None

    def __init__(self, max_bytes: int = 2**30):
        self.max_bytes = max_bytes
        self._kept: dict[str, tuple[Memory, bytes, int]] = {}
        self._bytes = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def put(self, key: str, memory: Memory, metadata: dict[str, Any] | None) -> None:
        """See `Shelf`."""
        check_ids(key, new=True)
        # As text: an object of JSON takes many times its length.
        packed = encode_metadata(metadata).encode()
        memory = memory.to("cpu")
        size = _size(memory) + len(packed) + len(key.encode())
        with self._lock:
            if key in self._kept:
                _check_same(key, self._kept[key][0], memory)
                return
            if self._bytes + size > self.max_bytes:
                raise ShelfFull(
                    f"this memory takes {size} bytes with its metadata, and the gateway holds "
                    f"{self._bytes} of at most {self.max_bytes}; delete some memories, or run it "
                    "with --store FOLDER."
                )
            self._kept[key] = memory, packed, size
            self._bytes += size

    def get(self, ids: Sequence[str]) -> list[Memory]:
        """See `Shelf`."""
        with self._lock:
            return [self._entry(key)[0] for key in ids]

    def metadata(self, key: str) -> dict[str, Any]:
        """See `Shelf`."""
        with self._lock:
            return json.loads(self._entry(key)[1])

    def delete(self, key: str) -> None:
        """See `Shelf`."""
        with self._lock:
            self._bytes -= self._entry(key)[2]
            del self._kept[key]

    def _entry(self, key: str) -> tuple[Memory, bytes, int]:
        if key not in self._kept:
            raise _unknown(key)
        return self._kept[key]


class StoreShelf:
    """Memories in a `MemoryStore`: kept over restarts, and shared with other processes.

    Args:
        store: Of the compressor that is served, or empty.
    """

    def __init__(self, store: MemoryStore):
        self._store = store
        self.slot_dtype = torch.bfloat16 if store.slot_dtype == "bfloat16" else None

    def __len__(self) -> int:
        return len(self._store)

    def put(self, key: str, memory: Memory, metadata: dict[str, Any] | None) -> None:
        """See `Shelf`."""
        check_ids(key, new=True)
        rows = encode_memory([key], memory, [encode_metadata(metadata)], self._store.slot_dtype)
        with _damaged_where_refused():
            # Another process may store it, or delete it, between the looks.
            while not self._store.add_rows(rows, "skip"):
                if key in self._store:
                    _check_same(key, self._store.get(key), memory)
                    return

    def get(self, ids: Sequence[str]) -> list[Memory]:
        """See `Shelf`."""
        with _damaged_where_refused():
            places = self._store.places(list(dict.fromkeys(ids)))
            for key in ids:
                if key not in places:
                    raise _unknown(key)
            memories = self._store.read(ids)
        return [memories[key] for key in ids]

    def metadata(self, key: str) -> dict[str, Any]:
        """See `Shelf`."""
        with _damaged_where_refused():
            place = self._store.places([key]).get(key)
        if place is None:
            raise _unknown(key)
        return json.loads(place.metadata or "{}")

    def delete(self, key: str) -> None:
        """See `Shelf`."""
        with _damaged_where_refused():
            if key not in self._store:
                raise _unknown(key)
            self._store.delete(key)


@contextlib.contextmanager
def _damaged_where_refused() -> Iterator[None]:
    """If a store refuses ids and rows that were checked, no user made a mistake: it is damaged, or
    another compressor's. Its message names files, which are the operator's to know.
    """
    try:
        yield
    except TakenId:
        raise
    except ValueError as error:
        raise DamagedMemory(str(error)) from error


def described(key: str, memory: Memory, metadata: dict[str, Any]) -> dict[str, Any]:
    """What the gateway tells about a memory, of one document."""
    return {
        "id": key,
        "object": "memory",
        "created": metadata.get(CREATED),
        "rate": memory.rate,
        "tokens": sum(memory.n_tokens),
        "slots": sum(memory.n_slots),
        "segments": len(memory.segments),
        "literals": sum(memory.n_literals),
        "unknown_tokens": sum(memory.unknown_tokens),
        "segments_as_text": memory.segment_rates.count(0),
        "fidelity": [check.fidelity for check in memory.checks],
        "bytes": memory.nbytes,
        "text_sha256": list(memory.text_sha256),
        "fingerprint": memory.fingerprint,
        "metadata": {name: value for name, value in metadata.items() if name != CREATED},
    }


_SEGMENT_BYTES = 500
"""Of a segment in this process beside its slots, with its check; and of a literal or lost token."""


def _size(memory: Memory) -> int:
    """Bytes that a memory takes in this process: numbers of Python count too."""
    lost = sum(len(check.lost or ()) for check in memory.checks)
    texts = sum(len(literal.text) for literals in memory.literals for literal in literals)
    parts = len(memory.segments) + sum(memory.n_literals) + lost
    return memory.nbytes + texts + _SEGMENT_BYTES * parts


def _unknown(key: str) -> UnknownMemory:
    return UnknownMemory(f"there is no memory {key[:80]!r}; POST /v1/memories makes one.")


_ROUNDING = 0.1
"""Share of a slot's length that rounding may move it by: bfloat16 and int8 stay far below."""


def _check_same(key: str, kept: Memory, memory: Memory) -> None:
    if derived_id(kept) != derived_id(memory) or not _same_slots(kept.slots, memory.slots):
        raise TakenId(
            f"there is another memory with the id {key!r}; delete it first, or choose another id."
        )


def _same_slots(kept: torch.Tensor, slots: torch.Tensor) -> bool:
    """Whether `(slots, width)` differ by rounding alone: a sent file may hold any, and what it says
    of its text is no proof that they are that text's.
    """
    if kept.shape != slots.shape:
        return False
    kept, slots = (each.detach().to("cpu", torch.float32) for each in (kept, slots))
    distance, length = (of.square().sum(dim=1).sqrt() for of in (kept - slots, slots))
    return bool((distance <= _ROUNDING * length).all())
