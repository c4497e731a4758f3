"""Memories that the decoder has read already, so that later questions about them start there.

The first question about a memory lets the decoder read its slots (`prefill`); what that
leaves, the decoder's keys and values, is kept for the questions after it, the least recently asked
dropped first. Every answer works on a copy (`Prefix.cache`), so what is kept stays as it is.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from memslots.modeling import Memory
from memslots.prefix import Prefix

from .shelf import derived_id

Key = tuple[str, tuple[int, ...]]


def prefix_key(memory: Memory, before: Sequence[int]) -> Key:
    """What two questions must agree in to share a prefix: all that stands before the question.

    Args:
        memory: One document.
        before: Decoder tokens before it.
    """
    # The slots too: a file that somebody sent may say of its slots what is true of others.
    slots = memory.slots.detach().to("cpu").contiguous()
    digest = hashlib.sha256(f"{derived_id(memory)} {slots.dtype} {tuple(slots.shape)}".encode())
    digest.update(slots.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest(), tuple(before)


@dataclass(frozen=True)
class PrefixCounts:
    """What a cache has done and holds.

    Args:
        hits: Questions that began at a kept prefix.
        misses: Questions for which the decoder had to read the memory.
        evictions: Prefixes that made room for others.
        entries: Prefixes that are kept.
        bytes: That they take, on the decoder's device.
    """

    hits: int
    misses: int
    evictions: int
    entries: int
    bytes: int


class PrefixCache:
    """Prefixes up to so many bytes; every method may be called from any thread.

    Args:
        max_bytes: Of all keys and values together, on the decoder's device.
    """

    def __init__(self, max_bytes: int):
        if max_bytes < 1:
            raise ValueError(
                f"a prefix cache holds 1 byte or more, got {max_bytes}; to have none, leave it out."
            )
        self.max_bytes = max_bytes
        self._kept: OrderedDict[Key, tuple[Prefix, frozenset[str]]] = OrderedDict()
        self._bytes = self._hits = self._misses = self._evictions = 0
        self._forgets = 0  # how often something was forgotten
        self._position_bytes = 0.0  # of the largest position that was seen
        self._lock, self._making = threading.Lock(), threading.Lock()

    def get(
        self, key: Key, ids: Sequence[str], positions: int, make: Callable[[], Prefix]
    ) -> Prefix | None:
        """The prefix of `key`, made if it is not kept.

        Args:
            key: Of `prefix_key`.
            ids: Under which the memories that it is of are kept, for `forget`.
            positions: That the decoder reads of it; where they are known to take more than
                `max_bytes`, nothing is made, since it could not be kept.
            make: Lets the decoder read; called by one thread at a time.

        Returns:
            The prefix; None if it would be too large.
        """
        if (kept := self._find(key)) is not None:
            return kept
        with self._making:  # so that several first questions read a memory once
            if (kept := self._find(key)) is not None:
                return kept
            with self._lock:
                self._misses += 1
                if positions * self._position_bytes > self.max_bytes:
                    return None
                forgets = self._forgets
            prefix = make()
            self._keep(key, prefix, frozenset(ids), forgets)
            return prefix

    def _find(self, key: Key) -> Prefix | None:
        with self._lock:
            if key not in self._kept:
                return None
            self._hits += 1
            self._kept.move_to_end(key)
            return self._kept[key][0]

    def _keep(self, key: Key, prefix: Prefix, ids: frozenset[str], forgets: int) -> None:
        with self._lock:
            self._position_bytes = max(
                self._position_bytes, prefix.nbytes / max(1, sum(prefix.positions))
            )
            # What was forgotten while the decoder read it must not come back.
            if prefix.nbytes > self.max_bytes or forgets != self._forgets:
                return
            while self._bytes + prefix.nbytes > self.max_bytes:
                self._drop(next(iter(self._kept)))
                self._evictions += 1
            self._kept[key] = prefix, ids
            self._bytes += prefix.nbytes

    def forget(self, memory_id: str) -> None:
        """Drop what was made of the memory with this id."""
        with self._lock:
            self._forgets += 1
            for key in [key for key, (_, ids) in self._kept.items() if memory_id in ids]:
                self._drop(key)

    def clear(self) -> None:
        """Drop all."""
        with self._lock:
            self._forgets += 1
            self._kept.clear()
            self._bytes = 0

    def _drop(self, key: Key) -> None:
        prefix, _ = self._kept.pop(key)
        self._bytes -= prefix.nbytes

    def counts(self) -> PrefixCounts:
        """What it has done and holds."""
        with self._lock:
            return PrefixCounts(
                self._hits, self._misses, self._evictions, len(self._kept), self._bytes
            )
