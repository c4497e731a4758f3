"""SegmentCheck: what is known of a segment, and what is kept of it beside its slots."""

import base64
from dataclasses import dataclass, replace
from typing import Any

from .patches_memslots import needs_slots


def slots_for(tokens: int, rate: int) -> int:
    """Slots of a segment of `tokens` encoder tokens: a short last segment gets no full set.

    Rate 0 stands for text in the slots' place.
    """
    return -(-tokens // rate) if rate else 0


@dataclass(frozen=True)
class SegmentCheck:
    """One segment of a memory that was checked while it was made.

    Args:
        rate: encoder tokens per slot of this segment; 0 where the decoder reads `text` instead.
        tokens: decoder tokens of the segment's text; None where it was not read.
        positions: decoder positions that the segment takes: slots, the tokens of its literals and
            its own markers, or the tokens of `text`; None where it was not read.
        lost: characters `(start, end)` of the source, of each decoder token that neither the slots
            (teacher-forced) nor a literal beside them give back, in order; None where this is not
            known. Of a segment that is read as text: what the slots would have lost.
        text: the segment's text, where the decoder reads it in the slots' place.
        exact: bytes that the text is made from without loss, see `patches_memslots`; empty where
            none are kept.
    """

    rate: int
    tokens: int | None = None
    positions: int | None = None
    lost: tuple[tuple[int, int], ...] | None = None
    text: str | None = None
    exact: bytes = b""

    @property
    def fidelity(self) -> float | None:
        """Share of the decoder tokens that the decoder gets; None where this is not known."""
        if self.text is not None or self.tokens == 0:
            return 1.0
        if self.lost is None or self.tokens is None:
            return None
        return 1 - len(self.lost) / self.tokens

    @property
    def standalone(self) -> bool:
        """Whether the exact text is at hand without asking a decoder."""
        return self.text is not None or (bool(self.exact) and not needs_slots(self.exact))

    def with_other_slots(self, rate: int, slots: int) -> "SegmentCheck":
        """As it is after the slots became others, `slots` fewer: what was known is no more."""
        positions = None if self.positions is None else self.positions - slots
        exact = b"" if self.exact and needs_slots(self.exact) else self.exact
        return replace(self, rate=rate, positions=positions, lost=None, exact=exact)

    def as_text(self, text: str) -> "SegmentCheck":
        """As it is when the decoder reads `text` in the slots' place."""
        exact = b"" if self.exact and needs_slots(self.exact) else self.exact
        return SegmentCheck(0, self.tokens, self.tokens, self.lost, text, exact)

    def to_json(self) -> list[Any]:
        """All but `exact`, as JSON holds it; `exact` is written as bytes."""
        lost = None if self.lost is None else [list(place) for place in self.lost]
        return [self.rate, self.tokens, self.positions, lost, self.text, len(self.exact)]


def checks_to_json(checks: tuple[SegmentCheck, ...]) -> list[Any]:
    """Checks as one JSON value, for formats that have no place for bytes."""
    return [[*one.to_json(), base64.b64encode(one.exact).decode("ascii")] for one in checks]


def checks_from_json(values: list[Any], exact: bytes | None = None) -> tuple[SegmentCheck, ...]:
    """Checks as they were before `checks_to_json`, or `to_json` with all `exact` in a row.

    Raises:
        ValueError: values of another shape, or bytes that are too few or too many.
    """
    checks, start = [], 0
    for value in values:
        if exact is None:
            *numbers, encoded = value
            own = base64.b64decode(encoded, validate=True)
        else:
            numbers = value
            own = exact[start : start + numbers[5]]
            start += numbers[5]
        rate, tokens, positions, lost, text, length = numbers
        if len(own) != length:
            raise ValueError(f"a segment's exact text has {len(own)} bytes, and had {length}.")
        places = None if lost is None else tuple((int(a), int(b)) for a, b in lost)
        checks.append(SegmentCheck(rate, tokens, positions, places, text, own))
    if exact is not None and start != len(exact):
        raise ValueError(f"{len(exact)} bytes of exact texts, and the segments have {start}.")
    return tuple(checks)
