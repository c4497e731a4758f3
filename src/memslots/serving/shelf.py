"""Where the gateway keeps memories: a `MemoryStore`, or this process while it runs."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Sequence
from typing import Any, Protocol

import torch

from memslots.modeling import Memory

from .store import MemoryStore
from .store_format import check_ids


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


def memory_id(memory: Memory) -> str:
    """An id that the same text, compressor and rate have again.

    Args:
        memory: One document.
    """
    named = [memory.fingerprint, memory.rate, memory.text_sha256, memory.documents]
    literals: list[Any] = [[tuple(one) for one in own] for own in memory.literals]
    if memory.checks:
        literals.append([check.to_json() for check in memory.checks])
    if memory.texts:
        literals.append([text is not None for text in memory.texts])
    text = json.dumps([*named, literals], default=vars)
    return f"mem-{hashlib.sha256(text.encode()).hexdigest()[:32]}"


class Shelf(Protocol):
    """Memories of one document by id; every method may be called from any thread."""

    slot_dtype: torch.dtype | None
    """What slots are rounded to when they are kept, None where they stay as they are or have no
    floating type: what is verified has to be what will be read."""

    def put(self, one: str, memory: Memory, metadata: dict[str, Any] | None) -> None:
        """Keep a memory; keeping the same one again changes nothing.

        Raises:
            TakenId: Another memory has this id.
            ShelfFull: No room.
        """

    def get(self, ids: Sequence[str]) -> list[Memory]:
        """The memories of these ids, in order.

        Raises:
            UnknownMemory: One of them is not here.
            DamagedMemory: One of them cannot be read.
        """

    def metadata(self, one: str) -> dict[str, Any]:
        """What was kept with a memory.

        Raises:
            UnknownMemory: It is not here.
        """

    def delete(self, one: str) -> None:
        """Forget a memory.

        Raises:
            UnknownMemory: It is not here.
        """

    def __len__(self) -> int:
        """How many there are."""


class ProcessShelf:
    """Memories in this process; they are gone when it ends.

    Args:
        max_bytes: Of all slots together; a memory beyond that is refused, none is dropped for it.
    """

    slot_dtype: torch.dtype | None = None

    def __init__(self, max_bytes: int = 2**30):
        self.max_bytes = max_bytes
        self._kept: dict[str, tuple[Memory, dict[str, Any]]] = {}
        self._bytes = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def put(self, one: str, memory: Memory, metadata: dict[str, Any] | None) -> None:
        """See `Shelf`."""
        check_ids(one)
        memory = memory.to("cpu")
        with self._lock:
            if one in self._kept:
                _check_same(one, self._kept[one][0], memory)
                return
            if self._bytes + memory.nbytes > self.max_bytes:
                raise ShelfFull(
                    f"this memory takes {memory.nbytes} bytes beside the {self._bytes} that are "
                    f"here, and the gateway may hold {self.max_bytes}; delete some, or run it with "
                    "--store FOLDER."
                )
            self._kept[one] = memory, dict(metadata or {})
            self._bytes += memory.nbytes

    def get(self, ids: Sequence[str]) -> list[Memory]:
        """See `Shelf`."""
        with self._lock:
            return [self._entry(one)[0] for one in ids]

    def metadata(self, one: str) -> dict[str, Any]:
        """See `Shelf`."""
        with self._lock:
            return dict(self._entry(one)[1])

    def delete(self, one: str) -> None:
        """See `Shelf`."""
        with self._lock:
            self._bytes -= self._entry(one)[0].nbytes
            del self._kept[one]

    def _entry(self, one: str) -> tuple[Memory, dict[str, Any]]:
        if one not in self._kept:
            raise _unknown(one)
        return self._kept[one]


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

    def put(self, one: str, memory: Memory, metadata: dict[str, Any] | None) -> None:
        """See `Shelf`."""
        check_ids(one)
        for again in (True, False):
            if one in self._store:
                _check_same(one, self._store.get(one), memory)
                return
            try:
                self._store.add(one, memory, metadata)
                return
            except ValueError:
                # Another process may have stored it between the look and the writing.
                if not (again and one in self._store):
                    raise

    def get(self, ids: Sequence[str]) -> list[Memory]:
        """See `Shelf`."""
        there = self._store.places(list(dict.fromkeys(ids)))
        for one in ids:
            if one not in there:
                raise _unknown(one)
        try:
            found = self._store.read(ids)
        except ValueError as error:
            raise DamagedMemory(str(error)) from error
        return [found[one] for one in ids]

    def metadata(self, one: str) -> dict[str, Any]:
        """See `Shelf`."""
        there = self._store.places([one])
        if one not in there:
            raise _unknown(one)
        return json.loads(there[one].metadata or "{}")

    def delete(self, one: str) -> None:
        """See `Shelf`."""
        if one not in self._store:
            raise _unknown(one)
        self._store.delete(one)


def described(one: str, memory: Memory, metadata: dict[str, Any]) -> dict[str, Any]:
    """What the gateway tells about a memory, of one document."""
    return {
        "id": one,
        "object": "memory",
        "created": metadata.get("created", int(time.time())),
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
        "metadata": {key: value for key, value in metadata.items() if key != "created"},
    }


def _unknown(one: str) -> UnknownMemory:
    return UnknownMemory(f"there is no memory {one[:80]!r}; POST /v1/memories makes one.")


def _check_same(one: str, kept: Memory, memory: Memory) -> None:
    if memory_id(kept) != memory_id(memory):
        raise TakenId(
            f"there is another memory with the id {one!r}; delete it first, or choose another id."
        )
