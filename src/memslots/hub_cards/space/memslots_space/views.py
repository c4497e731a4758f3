"""What the page shows, as HTML.

All text goes through `Markup.format`, which escapes it, or through a report, which does so too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from .answers import MEMORY, SOURCES, Answer, Document
from .reading_back import MISSING, RIGHT, WRONG, ReadBack

COLOURS = 4
"""Classes `s0` to `s3` of the style sheet, taken in turn by segments."""

_TAGS = {RIGHT: "span", WRONG: "mark", MISSING: "del"}


def readable_bytes(count: int) -> str:
    """`18432` as "18.4 kB"."""
    if count < 1000:
        return f"{count} B"
    size, units = float(count), ["kB", "MB", "GB"]
    for unit in units:
        size /= 1000
        if size < 999.5 or unit == units[-1]:
            break
    return f"{size:.3g} {unit}"


def plural(count: int, word: str) -> str:
    """`1, "slot"` as "1 slot", `18` as "18 slots"."""
    return f"{count:,} {word}{'s' * (count != 1)}"


def notice(message: str) -> str:
    """A mistake and what to do about it."""
    return str(Markup('<p class="notice" role="alert">{}</p>').format(message))


def hint(message: str) -> str:
    """A quiet line."""
    return str(Markup('<p class="hint">{}</p>').format(message))


def compressed(document: Document) -> str:
    """What compressing made of the document."""
    memory = document.memory
    tokens, slots = sum(memory.n_tokens), sum(memory.n_slots)
    lost = sum(memory.unknown_tokens)
    parts = [
        plural(len(memory.segments), "segment"),
        f"{readable_bytes(memory.nbytes)} of slots",
        f"encoded once, in {document.seconds:.2f} s",
    ]
    if lost:
        parts.append(f"{plural(lost, 'token')} unknown to the encoder and lost")
    return str(
        Markup(
            '<p class="compressed" role="status" data-text="{}"><b>{} → {}</b><br>{}</p>'
        ).format(
            mark(document.text), plural(tokens, "token"), plural(slots, "slot"), " · ".join(parts)
        )
    )


def mark(text: str) -> int:
    """A number by which the browser knows a text again: its UTF-16 units, hashed."""
    data = text.encode("utf-16-le", "surrogatepass")
    found = 0
    for i in range(0, len(data), 2):
        found = (found * 31 + data[i] + 256 * data[i + 1]) & 0xFFFFFFFF
    return found


def cards(answers: Sequence[Answer], rate: int, waiting: bool = False) -> str:
    """The answers side by side, in the order of `SOURCES`.

    Args:
        answers: those that are there.
        rate: of the memory.
        waiting: whether the others are on their way.
    """
    by_source: Mapping[str, Answer] = {answer.source: answer for answer in answers}
    most = max((answer.positions or 0 for answer in answers), default=0)
    shown = Markup("").join(
        _card(source, by_source.get(source), rate, most, waiting) for source in SOURCES
    )
    return str(Markup('<div class="cards">{}</div>').format(shown))


def _card(source: str, answer: Answer | None, rate: int, most: int, waiting: bool) -> Markup:
    kind = source.lower().replace(" ", "-")
    name = f"{source}, rate {rate}" if source == MEMORY else source
    if answer is None:
        said = Markup('<p class="answer quiet">{}</p>').format("…" if waiting else "–")
    elif answer.problem:
        said = Markup('<p class="answer problem">{}</p>').format(answer.problem)
    elif not answer.text:
        said = Markup('<p class="answer quiet">(an empty answer)</p>')
    else:
        said = Markup('<p class="answer">{}</p>').format(answer.text)
    return Markup('<section class="card {}"><h3>{}</h3>{}{}</section>').format(
        kind, name, said, _costs(answer, most) if answer else ""
    )


def _costs(answer: Answer, most: int) -> Markup:
    rows: list[tuple[str, str]] = []
    if answer.positions is not None:
        rows.append(("positions", f"{answer.positions:,}"))
    if answer.slot_bytes is not None:
        rows.append(("slots, kept", readable_bytes(answer.slot_bytes)))
    if answer.cache_bytes is not None:
        rows.append(("KV cache", readable_bytes(answer.cache_bytes)))
    if answer.seconds is not None:
        rows.append(("seconds", f"{answer.seconds:.2f}"))
    share = 100 * (answer.positions or 0) / most if most else 0
    bar = Markup('<div class="bar" aria-hidden="true"><i style="width:{}%"></i></div>').format(
        f"{share:.1f}"
    )
    listed = Markup("").join(
        Markup("<div><dt>{}</dt><dd>{}</dd></div>").format(*row) for row in rows
    )
    return Markup("{}<dl>{}</dl>").format(bar, listed)


def segments(document: Document) -> str:
    """The text in its segments, a colour each; or where the slots lose it, once that is known."""
    if document.report is not None:
        return document.report.to_html(whole_page=False)
    memory = document.memory
    shown = Markup("").join(
        Markup('<span class="segment s{}"><sup>{}</sup>{}</span>').format(
            i % COLOURS, i + 1, document.text[segment.start : segment.end]
        )
        for i, segment in enumerate(memory.segments)
    )
    counts = _each(memory.segments)
    return str(Markup('<p class="hint">{}</p><div class="text">{}</div>').format(counts, shown))


def _each(found: Sequence[Any]) -> str:
    if len(found) == 1:
        return (
            f"One segment: {plural(found[0].tokens, 'token')} became "
            f"{plural(found[0].slots, 'slot')}."
        )
    most = max(segment.tokens for segment in found)
    return (
        f"{plural(len(found), 'segment')} of at most {plural(most, 'token')}, each compressed by "
        "itself."
    )


def reconstruction(found: ReadBack, rate: int) -> str:
    """The text as the decoder reads it back, with what is wrong and what is missing marked."""
    share = found.right / found.total if found.total else 0.0
    head = Markup(
        '<p class="compressed"><b>{} of {} tokens come back</b> ({}, in order) at rate {}, in {} s'
        "</p>"
    ).format(f"{found.right:,}", f"{found.total:,}", f"{share:.0%}", rate, f"{found.seconds:.1f}")
    key = Markup(
        '<p class="hint"><mark>red</mark> is not in the text, <del>struck out</del> is missing.</p>'
    )
    parts = []
    for i, pieces in enumerate(found.segments):
        text = Markup("").join(
            Markup("<{0}>{1}</{0}>").format(_TAGS[piece.kind], piece.text) for piece in pieces
        )
        number = Markup("<sup>{}</sup>").format(i + 1) if len(found.segments) > 1 else ""
        parts.append(Markup('<span class="read">{}{}</span>').format(number, text))
    more = (
        Markup('<p class="hint">{}</p>').format(
            f"{plural(found.left_out, 'more segment')} not read back here."
        )
        if found.left_out
        else ""
    )
    return str(
        Markup('{}{}<div class="text">{}</div>{}').format(head, key, Markup("").join(parts), more)
    )
