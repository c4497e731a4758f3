"""How much a memory vector holds: in theory, and the longest text that is given back."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from memslots.cramming.frozen_decoder import FrozenDecoder
from memslots.cramming.per_text import Progress, cram
from memslots.cramming.reading import Reading, read_back
from memslots.cramming.settings import CrammingSettings

THRESHOLD = 0.99
"""Mean accuracy from which a length counts as decodable (AIRI report, section 3.4)."""


def theoretical_capacity(width: int, vocabulary: int, bits: int = 16, vectors: int = 1) -> float:
    """Most tokens that fit into the bits of memory vectors: d b / log2 |V| of each.

    The AIRI report (section 3.3) gives "768 * 16 / log2 50,000 = 351"; that is a slip, it is 787.

    Args:
        width: d, numbers of a vector.
        vocabulary: |V|, equally likely tokens.
        bits: b, of a number.
        vectors: memory vectors.
    """
    if vocabulary < 2:
        raise ValueError(
            f"a vocabulary of {vocabulary} carries no information; it needs 2 or more."
        )
    return vectors * width * bits / math.log2(vocabulary)


@dataclass(frozen=True)
class LongestLength:
    """Result of a search.

    Args:
        length: the longest that reached the threshold; 0 if none did.
        accuracies: mean accuracy of every length that was tried.
        searched_to: the longest candidate; where it is `length`, more may fit.
    """

    length: int
    accuracies: dict[int, float]
    searched_to: int


def longest_length(
    accuracy: Callable[[int], float], lengths: Sequence[int], threshold: float = THRESHOLD
) -> LongestLength:
    """Searches the longest length at or above a mean accuracy: L_max = max{L: Acc(L) >= 0.99}.

    Steps upwards that double, then halving: accuracy is taken to fall with length.

    Args:
        accuracy: mean accuracy of a length; asked once each.
        lengths: candidates, ascending.
        threshold: the lowest accuracy that counts.
    """
    if not lengths or list(lengths) != sorted(set(lengths)) or lengths[0] < 1:
        raise ValueError(f"lengths={list(lengths)} must be ascending numbers of at least 1.")
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold={threshold} must be greater than 0 and at most 1.")
    tried: dict[int, float] = {}

    def holds(index: int) -> bool:
        tried[lengths[index]] = accuracy(lengths[index])
        return tried[lengths[index]] >= threshold

    good, step = -1, 1  # index of the longest known to hold
    bad = len(lengths)
    while good + 1 < bad:
        probe = min(good + step, len(lengths) - 1)
        if not holds(probe):
            bad = probe
            break
        good, step = probe, step * 2
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if holds(middle) else (good, middle)
    return LongestLength(
        lengths[good] if good >= 0 else 0, dict(sorted(tried.items())), lengths[-1]
    )


def search_longest(
    decoder: FrozenDecoder,
    texts: Sequence[Sequence[int]],
    lengths: Sequence[int],
    settings: CrammingSettings,
    seeds: int | Sequence[int] = 0,
    threshold: float = THRESHOLD,
    progress: Callable[[int], Progress | None] = lambda length: None,
) -> tuple[LongestLength, dict[int, list[Reading]]]:
    """The longest length at which the texts' heads are given back, teacher-forced.

    Args:
        decoder: the frozen decoder.
        texts: token ids, each at least as long as the longest candidate.
        lengths: candidates, ascending.
        settings: `first_token` says which accuracy counts.
        seeds: see `cram`.
        threshold: the lowest mean accuracy over texts that counts.
        progress: gives `cram`'s callback for a length.

    Returns:
        The result, and the readings at every length tried.

    Raises:
        ValueError: a text that is shorter than the longest candidate.
    """
    shortest = min(map(len, texts), default=0)
    if lengths and shortest < lengths[-1]:
        raise ValueError(
            f"a text of {shortest} tokens is shorter than the longest length, {lengths[-1]}; give "
            "a longer text or shorter lengths."
        )
    readings: dict[int, list[Reading]] = {}

    def accuracy(length: int) -> float:
        heads = [list(text[:length]) for text in texts]
        crammed = cram(decoder, heads, settings, seeds, progress(length))
        readings[length] = read_back(decoder, crammed)
        values = [r.metrics(settings.first_token)["accuracy"] for r in readings[length]]
        return sum(values) / len(values)

    return longest_length(accuracy, lengths, threshold), readings
