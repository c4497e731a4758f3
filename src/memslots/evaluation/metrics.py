"""Exact match, tokens right of a reconstruction, and intervals for shares."""

from __future__ import annotations

import math
from collections.abc import Sequence
from difflib import SequenceMatcher


def exact_match(answer: str, expected: str) -> bool:
    """Whether the answer is the expected one, apart from white space around it."""
    return answer.strip() == expected.strip()


def tokens_right(reference: Sequence[int], produced: Sequence[int]) -> list[bool]:
    """For each reference token, whether the same token stands at its position.

    One token too many or too few makes all that follow wrong; see `tokens_aligned`.
    """
    shared = [a == b for a, b in zip(reference, produced, strict=False)]
    return shared + [False] * (len(reference) - len(shared))


def tokens_aligned(reference: Sequence[int], produced: Sequence[int]) -> int:
    """How many reference tokens an alignment finds again in order, wherever they stand."""
    matcher = SequenceMatcher(None, reference, produced, autojunk=False)
    return sum(block.size for block in matcher.get_matching_blocks())


def wilson_interval(right: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's score interval of a share, by default at 95% (Wilson 1927).

    Args:
        right: Successes.
        n: Trials; none of them says nothing: (0, 1).
        z: Standard normal quantile.
    """
    if n == 0:
        return 0.0, 1.0
    share = right / n
    scale = 1 + z * z / n
    middle = (share + z * z / (2 * n)) / scale
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / scale
    return max(0.0, middle - half), min(1.0, middle + half)


def score(outcomes: Sequence[bool]) -> dict[str, float | int | None]:
    """A share with its sample count and 95% interval, as results keep it.

    Args:
        outcomes: One a trial; the trials must be independent for the interval to hold.
    """
    right, n = sum(outcomes), len(outcomes)
    low, high = wilson_interval(right, n)
    return {
        "right": right,
        "n": n,
        "share": round(right / n, 4) if n else None,
        "low": round(low, 4),
        "high": round(high, 4),
    }
