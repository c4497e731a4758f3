"""What a memory holds, segment by segment: as text, JSON, and a map over the text (HTML)."""

import hashlib
import html
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from memslots.modeling import Memory
from memslots.modeling.memory_files_memslots import SegmentCheck


@dataclass(frozen=True)
class SegmentReport:
    """One line of a report.

    Args:
        index: the segment's index in the memory.
        document: the document's index in the memory.
        start: first character in its text.
        end: one past the last.
        tokens: encoder tokens.
        decoder_tokens: what the decoder would read as text; None if nothing was checked.
        rate: encoder tokens per slot; 0 if it is read as text.
        slots: memory slots.
        literals: verbatim strings kept beside the slots.
        literal_positions: prompt tokens that they take, or the text that is read as text.
        positions: all prompt tokens of the segment, markers included; None if nothing was
            checked.
        effective_rate: encoder tokens per prompt token; if nothing was checked, a slot.
        fidelity: share of decoder tokens that slots, verbatim tokens or text give back; None if
            not known.
        lost: decoder tokens that none of these gives; None if not known.
        exact: how the exact text is kept: "text" where it is read as text, "kept" beside the slots,
            or "" for not at all.
    """

    index: int
    document: int
    start: int
    end: int
    tokens: int
    decoder_tokens: int | None
    rate: int
    slots: int
    literals: int
    literal_positions: int | None
    positions: int | None
    effective_rate: float
    fidelity: float | None
    lost: int | None
    exact: str


_COLUMNS = {
    "segment": lambda line: str(line.index),
    "characters": lambda line: f"{line.start}-{line.end}",
    "tokens": lambda line: str(line.tokens),
    "rate": lambda line: str(line.rate) if line.rate else "text",
    "slots": lambda line: str(line.slots),
    "verbatim": lambda line: str(line.literals),
    "prompt tokens": lambda line: "?" if line.positions is None else str(line.positions),
    "effective rate": lambda line: f"{line.effective_rate:.2f}",
    "fidelity": lambda line: "?" if line.fidelity is None else f"{line.fidelity:.1%}",
    "lost": lambda line: "?" if line.lost is None else str(line.lost),
    "exact text": lambda line: line.exact or "-",
}


@dataclass(frozen=True)
class MemoryReport:
    """What a memory holds, and what its slots lose.

    Args:
        segments: a line each.
        texts: the text of each segment, if it is known.
        marks: for each segment, the characters of its text that are lost or kept verbatim, as
            `(start, end, kind)` counted from its start; kinds are "lost" and "literal".
    """

    segments: tuple[SegmentReport, ...]
    texts: tuple[str | None, ...] = field(repr=False)
    marks: tuple[tuple[tuple[int, int, str], ...], ...] = field(repr=False)

    @property
    def totals(self) -> dict[str, Any]:
        """Sums over all segments; effective rate and fidelity are those of the whole."""
        lines = self.segments
        known = [line for line in lines if line.fidelity is not None and line.decoder_tokens]
        positions = None
        if all(line.positions is not None for line in lines):
            positions = sum(line.positions or 0 for line in lines)
        tokens, slots = sum(line.tokens for line in lines), sum(line.slots for line in lines)
        decoder_tokens = sum(line.decoder_tokens or 0 for line in known)
        lost = sum((line.lost or 0) for line in known if line.rate)
        return {
            "segments": len(lines),
            "tokens": tokens,
            "slots": slots,
            "as_text": sum(line.rate == 0 for line in lines),
            "literals": sum(line.literals for line in lines),
            "positions": positions,
            "effective_rate": tokens / max(1, slots if positions is None else positions),
            "fidelity": 1 - lost / decoder_tokens if len(known) == len(lines) and known else None,
            "lost": lost if len(known) == len(lines) else None,
        }

    def __str__(self) -> str:
        rows = [list(_COLUMNS)] + [
            [cell(line) for cell in _COLUMNS.values()] for line in self.segments
        ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        return "\n".join([*lines, "", self.summary])

    @property
    def summary(self) -> str:
        """The totals as a sentence."""
        totals = self.totals
        positions, fidelity = totals["positions"], totals["fidelity"]
        takes = f"{totals['slots']} slots"
        takes += f" and {totals['literals']} verbatim tokens" if totals["literals"] else ""
        if as_text := totals["as_text"]:
            takes += f", {as_text} segment{'s' * (as_text > 1)} read as text"
        takes += "" if positions is None else f": {positions} prompt tokens"
        known = "not checked" if fidelity is None else f"{fidelity:.2%} of the tokens"
        return (
            f"{totals['tokens']} tokens in {takes}, an effective rate of "
            f"{totals['effective_rate']:.2f}; given back: {known}."
        )

    def to_dict(self) -> dict[str, Any]:
        """Totals and a dict per segment, of what JSON can hold."""
        return {"totals": self.totals, "segments": [asdict(line) for line in self.segments]}

    def to_json(self, indent: int | None = None) -> str:
        """`to_dict` as JSON."""
        return json.dumps(self.to_dict(), indent=indent)

    def to_html(self, whole_page: bool = True) -> str:
        """A page with the text, what is lost, kept verbatim or read as text marked in it.

        Everything of the text is escaped: nothing in it becomes markup.

        Args:
            whole_page: whether it is a page of its own, or a style and a `div` for another page.
        """
        parts = []
        for line, text, marks in zip(self.segments, self.texts, self.marks, strict=True):
            known = "not checked" if line.fidelity is None else f"{line.fidelity:.1%} given back"
            kind = f"rate {line.rate}" if line.rate else "read as text"
            title = (
                f"segment {line.index}: {kind}, {line.tokens} tokens, {line.slots} slots, "
                f"{line.literals} literals, {known}"
            )
            shade = 0.0 if line.fidelity is None else round(1 - line.fidelity, 3)
            body = (
                _marked(text, marks)
                if text is not None
                else f"[{line.end - line.start} characters]"
            )
            parts.append(
                f'<span class="segment{"" if line.rate else " text"}" title="{html.escape(title)}" '
                f'style="--lost: {shade}">{body}</span>'
            )
        table = "".join(
            "<tr>"
            + "".join(f"<td>{html.escape(c(line))}</td>" for c in _COLUMNS.values())
            + "</tr>"
            for line in self.segments
        )
        head = "".join(f"<th>{name}</th>" for name in _COLUMNS)
        shown = _MAP.format(
            summary=html.escape(self.summary), text="".join(parts), head=head, table=table
        )
        return f"{_PAGE}{shown}" if whole_page else shown

    def save_html(self, path) -> None:
        """Write `to_html` to a file."""
        with open(path, "w", encoding="utf-8") as file:
            file.write(self.to_html())


_PAGE = """<!doctype html>
<meta charset="utf-8"><title>memslots: what a memory holds</title>
"""

_MAP = """<style>
.memslots {{ font: 15px/1.6 system-ui, sans-serif; max-width: 60em; margin: 1em auto; }}
.memslots .map {{ white-space: pre-wrap; overflow-wrap: anywhere; }}
.memslots .segment {{ background: rgba(255, 170, 0, calc(var(--lost) * 0.5)); }}
.memslots .segment.text {{ background: rgba(0, 120, 255, 0.15); }}
.memslots .lost {{ background: rgba(220, 0, 0, 0.45); }}
.memslots .literal {{ background: rgba(0, 160, 60, 0.35); }}
.memslots .text .lost {{ background: rgba(0, 120, 255, 0.35); }}
.memslots table {{ border-collapse: collapse; margin-top: 1em; }}
.memslots .lines {{ overflow-x: auto; }}
.memslots td, .memslots th {{ padding: 0 0.6em; text-align: right; white-space: nowrap; }}
</style>
<div class="memslots">
<p>{summary}</p>
<p><span class="lost">lost by the slots</span> <span class="literal">kept as a literal</span>
<span class="segment text">read as text</span></p>
<div class="map">{text}</div>
<div class="lines"><table><tr>{head}</tr>{table}</table></div>
</div>
"""


def report(memory: Memory, texts: str | Sequence[str] | None = None) -> MemoryReport:
    """What each segment of a memory takes and gives back.

    Args:
        memory: any memory; of one that `verified.compress` made, what its slots lose is known.
        texts: what was compressed, one for each of `memory.text_sha256`, for the map over the text;
            by default what the memory keeps of it.

    Returns:
        A report, which `str`, `to_json` and `to_html` of it show.

    Raises:
        ValueError: other texts than those.

    Examples:
        >>> from memslots import verified
        >>> len(verified.report(model.compress("Ann owns 27 maps.")).segments)
        1
    """
    sources = [texts] if isinstance(texts, str) else None if texts is None else list(texts)
    if sources is not None:
        hashes = tuple(hashlib.sha256(text.encode()).hexdigest() for text in sources)
        if hashes != tuple(memory.text_sha256):
            raise ValueError(
                f"report(texts=...) takes the {len(memory.text_sha256)} texts that were "
                f"compressed; those given ({len(sources)}) have another SHA-256."
            )
    lines, marks = [], []
    documents = [d for d, segments in enumerate(memory.documents) for _ in segments]
    known = memory.kept_texts(range(len(memory.segments)))
    for i, segment in enumerate(memory.segments):
        check = segment.check or SegmentCheck()
        positions = segment.slots if check.positions is None else check.positions
        lost = None if check.lost is None else len(check.lost)
        lines.append(
            SegmentReport(
                index=i,
                document=documents[i],
                start=segment.start,
                end=segment.end,
                tokens=segment.tokens,
                decoder_tokens=check.tokens,
                rate=segment.rate,
                slots=segment.slots,
                literals=len(segment.literals),
                literal_positions=None if check.positions is None else positions - segment.slots,
                positions=check.positions,
                effective_rate=segment.tokens / max(1, positions),
                fidelity=check.fidelity,
                lost=lost if check.text is None else 0,
                exact="text" if check.text is not None else "" if known[i] is None else "kept",
            )
        )
        places = [(a, b, "lost") for a, b in check.lost or ()]
        places += [(literal.start, literal.end, "literal") for literal in segment.literals]
        marks.append(
            tuple((a - segment.start, b - segment.start, kind) for a, b, kind in sorted(places))
        )
    if sources is not None:
        known = [sources[s.text][s.start : s.end] for s in memory.segments]
    return MemoryReport(tuple(lines), tuple(known), tuple(marks))


def _marked(text: str, marks: Sequence[tuple[int, int, str]]) -> str:
    """Escaped text with spans around what is marked; what is kept verbatim counts as not lost."""
    kinds = [""] * len(text)
    for start, end, kind in sorted(marks, key=lambda mark: mark[2] == "literal"):
        for i in range(max(0, start), min(end, len(text))):
            kinds[i] = kind
    parts, start = [], 0
    for i in range(1, len(text) + 1):
        if i == len(text) or kinds[i] != kinds[start]:
            piece = html.escape(text[start:i])
            parts.append(f'<span class="{kinds[start]}">{piece}</span>' if kinds[start] else piece)
            start = i
    return "".join(parts)
