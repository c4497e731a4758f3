"""What the page shows, as HTML: all text is escaped by `Markup.format`, or by a report."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from markupsafe import Markup

from .answers import CONTROL, FULL_TEXT, MEMORY, SOURCES, Answer, Document
from .reading_back import MISSING, RIGHT, WRONG, ReadBack, tokens_of

COLOURS = 4
"""Classes `s0` to `s3` of the style sheet, taken in turn by segments."""

MOST_TOKENS = 160
"""That are drawn above their slots; segments after these are counted."""

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


def notice(message: str) -> Markup:
    """A mistake and what to do about it; with a time, as Gradio draws again only what is new."""
    shown = Markup('<p class="notice" role="alert" data-time="{}">{}</p>')
    return shown.format(time.time_ns(), message)


def hint(message: str) -> Markup:
    """A quiet line."""
    return Markup('<p class="hint">{}</p>').format(message)


def progress(done: int, total: int) -> Markup:
    """How far compressing has come."""
    said = hint(f"Compressing {done:,} of {plural(total, 'segment')}")
    return Markup('{}<progress max="{}" value="{}"></progress>').format(said, total, done)


def about(document: Document, shown: Markup, question: str | None = None) -> Markup:
    """`shown` with what it is about: the browser dims it once text, rate or question are others."""
    asked = Markup("") if question is None else Markup(' data-question="{}"').format(question)
    return Markup('<div data-text="{}" data-rate="{}"{}>{}</div>').format(
        mark(document.text), document.memory.rate, asked, shown
    )


def mark(text: str) -> int:
    """A number by which the browser knows a text again: its UTF-16 units, hashed."""
    data = text.encode("utf-16-le", "surrogatepass")
    digest = 0
    for i in range(0, len(data), 2):
        digest = (digest * 31 + data[i] + 256 * data[i + 1]) & 0xFFFFFFFF
    return digest


def compressed(document: Document, warning: str) -> Markup:
    """What compressing made of the document, and why its answers may be wrong."""
    memory, lost = document.memory, sum(document.memory.unknown_tokens)
    text_bytes = readable_bytes(len(document.text.encode()))
    said = f"{text_bytes} of text became {readable_bytes(memory.nbytes)} of slots"
    said += f", encoded once in {document.seconds:.2f} s"
    if lost:
        said += f"; {plural(lost, 'token')} unknown to the encoder and lost"
    warned = Markup('<p class="warning">{}</p>').format(warning) if warning else Markup("")
    return about(document, hint(f"{said}.") + warned)


def headline(answers: Sequence[Answer], document: Document, question: str) -> Markup:
    """What the answers show, in one sentence that is true of them."""
    by_source = {answer.source: answer for answer in answers}
    memory, full, control = (by_source[source] for source in (MEMORY, FULL_TEXT, CONTROL))
    instead = f"instead of {full.prompt_tokens:,}"
    if full.problem:
        said = f"{instead}, which this decoder cannot read"
    elif memory.text != full.text:
        said = f"{instead}, a different answer"
    elif memory.text == control.text:
        said = f"{instead}, same answer, but the control gives it too"
    else:
        said = f"{instead}, same answer"
    shown = Markup('<p class="headline" role="status"><b>{:,} prompt tokens</b> {}</p>')
    return about(document, shown.format(memory.prompt_tokens, said), question)


def cards(answers: Sequence[Answer], document: Document, question: str) -> Markup:
    """The answers side by side, in the order of `SOURCES`; those that are missing are awaited."""
    by_source = {answer.source: answer for answer in answers}
    most = max((answer.prompt_tokens or 0 for answer in answers), default=0)
    shown = Markup("").join(_card(source, by_source.get(source), most) for source in SOURCES)
    return about(document, Markup('<div class="cards">{}</div>').format(shown), question)


def _card(source: str, answer: Answer | None, most: int) -> Markup:
    if answer is None:
        kind, said = "quiet", "…"
    elif answer.problem:
        kind, said = "problem", answer.problem
    else:
        kind, said = ("", answer.text) if answer.text else ("quiet", "(an empty answer)")
    shown = Markup('<section class="card {}"><h3>{}</h3><p class="answer {}">{}</p>{}</section>')
    costs = _costs(answer, most) if answer else ""
    return shown.format(source.lower().replace(" ", "-"), source, kind, said, costs)


def _costs(answer: Answer, most: int) -> Markup:
    length, seconds = answer.prompt_tokens or 0, answer.seconds
    kept = "text, kept" if answer.source == FULL_TEXT else "slots, kept"
    rows = {"prompt tokens": f"{length:,}", kept: readable_bytes(answer.kept_bytes or 0)}
    if answer.cache_bytes is not None:
        rows["KV cache"] = readable_bytes(answer.cache_bytes)
    if seconds is not None:
        rows["seconds"] = f"{seconds:.2f}"
    row = Markup("<div><dt>{}</dt><dd>{}</dd></div>")
    return Markup('<div class="bar"><i style="width:{:.1f}%"></i></div><dl>{}</dl>').format(
        100 * length / most, Markup("").join(row.format(*each) for each in rows.items())
    )


def picture(document: Document, tokenizer: Any) -> Markup:
    """The document's tokens, and below those of each segment its slots.

    Args:
        document: what was compressed.
        tokenizer: the encoder's, a `tokenizers.Tokenizer`.
    """
    memory, drawn, parts = document.memory, 0, Markup("")
    for i, segment in enumerate(memory.segments):
        drawn += segment.tokens
        if i and drawn > MOST_TOKENS:
            break
        source = document.text[segment.start : segment.end]
        tokens = [source[a:b] for a, b in pairwise(tokens_of(tokenizer, source)[1])]
        parts += Markup('<div class="segment s{}"><p>{}</p><p class="slots">{}</p></div>').format(
            i % COLOURS, _in_turn("span", tokens), _in_turn("i", [""] * segment.slots)
        )
    tokens_and_slots = sum(memory.n_tokens), sum(memory.n_slots)
    head = f"{plural(tokens_and_slots[0], 'token')} → {plural(tokens_and_slots[1], 'slot')}"
    left_out = len(memory.segments) - i if i and drawn > MOST_TOKENS else 0
    tail = plural(len(memory.segments), "segment")
    tail += ", each compressed by itself" if len(memory.segments) > 1 else ", compressed as one"
    tail += f"; {left_out:,} not drawn." if left_out else "."
    shown = Markup('<div class="picture"><b>{}</b>{}{}</div>')
    return about(document, shown.format(head, parts, hint(tail)))


def _in_turn(tag: str, texts: Sequence[str]) -> Markup:
    """An element for each text, with its place in the animation, from 0 to 1, as `--at`."""
    shown = Markup('<{0} style="--at:{1:.2f}">{2}</{0}>')
    return Markup("").join(shown.format(tag, i / len(texts), text) for i, text in enumerate(texts))


def report(document: Document) -> Markup:
    """Where the slots lose the text."""
    return about(document, Markup(document.report.to_html(whole_page=False)))


def chatted(document: Document, questions: int, prompt_tokens: int) -> Markup:
    """What the conversation takes of the decoder's prompt."""
    said = f"{plural(questions, 'question')}, the document compressed once. Memory and turns take "
    return about(document, hint(f"{said}{prompt_tokens:,} prompt tokens."))


def reconstruction(read: ReadBack, document: Document) -> Markup:
    """The text as the decoder reads it back, with what is wrong and what is missing marked."""
    share = read.right / read.total if read.total else 0.0
    head = Markup(
        "<p><b>{:,} of {:,} tokens come back</b> ({:.0%}, in order), in {:.1f} s</p>"
        '<p class="hint"><mark>red</mark> is not in the text, <del>struck out</del> is missing.</p>'
    ).format(read.right, read.total, share, read.seconds)
    parts = Markup("")
    for i, pieces in enumerate(read.segments):
        number = Markup("<sup>{}</sup>").format(i + 1) if len(read.segments) > 1 else ""
        parts += number
        for piece in pieces:
            parts += Markup("<{0}>{1}</{0}>").format(_TAGS[piece.kind], piece.text)
    left_out = f"{plural(read.left_out, 'more segment')} not read back here."
    more = hint(left_out) if read.left_out else ""
    shown = Markup('{}<div class="text">{}</div>{}').format(head, parts, more)
    return about(document, shown)
