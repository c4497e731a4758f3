"""Spans that must be exact: those that the slots would lose become literals beside them."""

from collections.abc import Sequence

from memslots.modeling import MemslotsModel
from memslots.modeling.texts_memslots import Detector, Literal

from .drafts import Draft, ask, beside_ids, trial_memory
from .exact_spans import exact_spans
from .fidelity import Places, free_running

ROUNDS = 3
"""How often new literals may change what else is lost; then all of a segment's spans are kept."""


def keep_exact_spans(
    model: MemslotsModel,
    texts: Sequence[str],
    parts: list[Draft],
    detectors: list[Detector],
    progress: bool | None = None,
) -> None:
    """Make literals of the spans of which anything is lost, teacher-forced or free-running."""
    open_spans: list[tuple[Literal, list[int]]] = []
    for t, text in enumerate(texts):
        text_parts = [i for i, part in enumerate(parts) if part.text == t]
        placed = _owners(exact_spans(text, detectors), [parts[i] for i in text_parts])
        open_spans += [(span, [text_parts[n] for n in places]) for span, places in placed if places]
    due = {i for _, places in open_spans for i in places}
    lost: dict[int, Places] = {}
    for round_ in range(ROUNDS + 1):
        lost.update(_lost_either_way(model, parts, sorted(due), progress))
        hit = [exact for exact in open_spans if _hit(exact, lost) and not _held(exact, parts)]
        if round_ == ROUNDS:
            changed = {places[0] for _, places in hit}
            hit = [exact for exact in open_spans if not changed.isdisjoint(exact[1])]
        if not hit:
            return
        open_spans = [exact for exact in open_spans if exact not in hit]
        before = [part.literals for part in parts]
        for span, places in hit:
            if not _held((span, places), parts):
                parts[places[0]].literals += (span,)
        _set_apart(texts, parts)
        due = {
            i
            for i, part in enumerate(parts)
            if part.slots is not None and part.literals != before[i]
        }
        order = sorted(due)
        slots = [kept for i in order if (kept := parts[i].slots) is not None]
        for i, right in zip(order, ask(model, parts, order, slots, progress), strict=True):
            parts[i].right = right


def _set_apart(texts: Sequence[str], parts: Sequence[Draft]) -> None:
    """Order each text's literals; those that overlap become one, where the first of them is."""
    apart: list[list[Literal]] = [[] for _ in parts]
    owner: int | None = None  # of the literal before
    for i, literal in sorted(
        ((i, literal) for i, part in enumerate(parts) for literal in part.literals),
        key=lambda pair: (parts[pair[0]].text, pair[1]),
    ):
        text = parts[i].text
        same_text = owner is not None and parts[owner].text == text
        if owner is not None and same_text and literal.start < apart[owner][-1].end:
            first = apart[owner].pop()
            end = max(first.end, literal.end)
            apart[owner].append(Literal(first.start, end, texts[text][first.start : end]))
        else:
            apart[i].append(literal)
            owner = i
    for part, literals in zip(parts, apart, strict=True):
        part.literals = tuple(literals)


def _owners(spans: Sequence[Literal], parts: Sequence[Draft]) -> list[tuple[Literal, list[int]]]:
    """For each span, which of a text's parts it lies in and are not read as text."""
    placed: list[tuple[Literal, list[int]]] = []
    first = 0
    for span in spans:
        while first < len(parts) - 1 and parts[first].span.end <= span.start:
            first += 1
        places, n = [], first
        while n < len(parts) and parts[n].span.start < span.end:
            if parts[n].slots is not None:
                places.append(n)
            n += 1
        placed.append((span, places))
    return placed


def _lost_either_way(
    model: MemslotsModel,
    parts: Sequence[Draft],
    chosen: Sequence[int],
    progress: bool | None,
) -> dict[int, Places]:
    """Characters that the chosen parts lose, teacher-forced or free-running."""
    if not chosen:
        return {}
    chosen_parts = [parts[i] for i in chosen]
    trial = trial_memory(
        model, chosen_parts, [part.slots for part in chosen_parts if part.slots is not None]
    )
    readings, beside = [part.reading for part in chosen_parts], beside_ids(model, chosen_parts)
    # What is lost nearly whole need not be written too.
    some = [n for n, part in enumerate(chosen_parts) if 2 * sum(part.right) > len(part.right)]
    written = free_running(model, trial, readings, beside, some, progress=progress)
    free = dict(zip(some, written, strict=True))
    lost = {}
    for n, (i, part) in enumerate(zip(chosen, chosen_parts, strict=True)):
        again = free.get(n, [False] * len(part.right))
        both = [a and b for a, b in zip(part.right, again, strict=True)]
        lost[i] = part.lost(both, held=False)
    return lost


def _hit(exact: tuple[Literal, list[int]], lost: dict[int, Places]) -> bool:
    span, places = exact
    return any(a < span.end and b > span.start for i in places for a, b in lost[i])


def _held(exact: tuple[Literal, list[int]], parts: Sequence[Draft]) -> bool:
    span, places = exact
    return any(
        literal.start <= span.start and span.end <= literal.end
        for i in places
        for literal in parts[i].literals
    )
