"""Questions made from raw text, without labels: something is left out of it and asked for.

Any paragraph gives questions whose answers stand in it word for word::

    >>> text = ("The light at Corran Point was finished in 1847. Agnes Marwick built it. "
    ...         "Its keeper said “nobody sails here twice” and meant it.")
    >>> row = next(cloze_rows([text], questions=3, characters=(20, 400)))
    >>> all(answer in row["context"] for answer in row["answer"])
    True

Names, numbers, dates and quoted strings are left out of a sentence ("Fill in the blank: ..."),
what follows some words is asked for, and the sentence that mentions something. Nothing is drawn
but by the seed and the text, so the same text gives the same questions in every run and order.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterable, Iterator, Sequence

from memslots.data.schema import QuestionsRow

BLANK = "____"

KINDS = ("date", "number", "quote", "name", "follows", "sentence")
"""What a question asks for: something left out (the first four), what follows, a sentence."""

LEFT_OUT = KINDS[:4]
"""Kinds whose answer is a few words that were left out."""

CHARACTERS = (200, 1200)
"""Shortest and longest context, unless told otherwise."""

_MONTHS = "January|February|March|April|May|June|July|August|September|October|November|December"
_PATTERNS = {
    "date": re.compile(
        rf"\b(?:\d{{1,2}}(?:st|nd|rd|th)? (?:{_MONTHS})(?:,? \d{{4}})?"
        rf"|(?:{_MONTHS}) \d{{1,2}}(?:st|nd|rd|th)?(?:,? \d{{4}})?"
        rf"|(?:{_MONTHS}),? \d{{4}}|\d{{4}}-\d{{2}}-\d{{2}}|1\d{{3}}|20\d{{2}})\b"
    ),
    "number": re.compile(r"(?<![\w.,])[$£€]?\d+(?:[.,]\d+)*%?(?![\w]|[.,]\d)"),
    "quote": re.compile(r"“([^“”\n]{4,80})”|\"([^\"\n]{4,80})\""),
    # Two capitalised words or more, or one inside a sentence.
    "name": re.compile(
        r"\b[A-Z][\w’'-]+(?: (?:of |de |von |van |the )?[A-Z][\w’'-]+)+\b"
        r"|(?<=[a-z,;] )[A-Z][a-z’'-]{2,}\b"
    ),
}
_ABBREVIATIONS = (
    "Mr.",
    "Mrs.",
    "Ms.",
    "Dr.",
    "St.",
    "No.",
    "Prof.",
    "Capt.",
    "Col.",
    "vs.",
    "etc.",
)
_FOLLOWING = 6  # words that are asked for after those given
_MOST_FOLLOWS = 2  # of a context: any words give such a question
_SENTENCE = (30, 240)  # characters of a sentence that is asked about


def cloze_rows(
    texts: Iterable[str],
    seed: int = 0,
    questions: int = 4,
    rows: int | None = None,
    characters: tuple[int, int] = CHARACTERS,
    kinds: Sequence[str] = KINDS,
) -> Iterator[QuestionsRow]:
    """Rows of one context and several questions about it.

    Args:
        texts: raw texts of any length; each is cut into contexts at its paragraphs, or at its
            sentences where a paragraph is too long.
        seed: the seed of the draw.
        questions: most questions of a context.
        rows: most rows; all that the texts give without it.
        characters: shortest and longest context.
        kinds: what may be asked, of `KINDS`.

    Raises:
        ValueError: an unknown kind, no question, or lengths that are not a range.
    """
    unknown = sorted(set(kinds) - set(KINDS))
    if unknown or not kinds:
        raise ValueError(f"cloze kinds {unknown} are unknown; choose from {', '.join(KINDS)}.")
    shortest, longest = characters
    if not 0 < shortest <= longest:
        raise ValueError(
            f"characters={list(characters)}: give the shortest and the longest context, such as "
            f"{list(CHARACTERS)}."
        )
    for name, value in (("questions", questions), ("rows", rows)):
        if value is not None and value < 1:
            raise ValueError(f"{name}={value}: give 1 or more.")
    count = 0
    for text in texts:
        for context in contexts_of(text, shortest, longest):
            asked = questions_of(context, seed, questions, kinds)
            if not asked:
                continue
            yield {
                "id": hashlib.sha256(context.encode()).hexdigest()[:16],
                "context": context,
                "question": [question for question, _, _ in asked],
                "answer": [answer for _, answer, _ in asked],
                "answers": [[answer] for _, answer, _ in asked],
                "kind": [kind for _, _, kind in asked],
            }
            count += 1
            if count == rows:
                return


def contexts_of(text: str, shortest: int, longest: int) -> Iterator[str]:
    """Whole paragraphs of a text, joined or cut at sentences to `shortest` to `longest` characters.

    What is shorter, or a single sentence that is longer, is left out.
    """
    kept: list[str] = []
    size = 0
    for paragraph in re.split(r"\n\s*\n", text):
        paragraph = " ".join(paragraph.split())
        pieces = [paragraph] if len(paragraph) <= longest else sentences(paragraph)
        for number, piece in enumerate(pieces):
            # Sentences of a paragraph are joined by a space, paragraphs by an empty line.
            gap = "" if not kept else " " if number else "\n\n"
            if size + len(gap) + len(piece) > longest:
                if size >= shortest:
                    yield "".join(kept)
                kept, size, gap = [], 0, ""
            if piece and len(piece) <= longest:
                kept.append(gap + piece)
                size += len(gap) + len(piece)
    if size >= shortest:
        yield "".join(kept)


def sentences(text: str) -> list[str]:
    """The sentences of a text, by their ends; its own words, in its own order."""
    parts: list[str] = []
    for part in re.split(r"(?<=[.!?])[\"”’)]?\s+(?=[\"“‘(]?[A-Z0-9])", text):
        if parts and parts[-1].endswith(_ABBREVIATIONS):
            parts[-1] += " " + part
        else:
            parts.append(part)
    return [part.strip() for part in parts if part.strip()]


def questions_of(
    context: str, seed: int, most: int, kinds: Sequence[str]
) -> list[tuple[str, str, str]]:
    """Questions, answers and kinds; one per sentence and kind, kinds by turns."""
    rng = random.Random(f"cloze-{seed}-{context}")
    usable = [s for s in sentences(context) if _SENTENCE[0] <= len(s) <= _SENTENCE[1]]
    by_kind = {kind: _candidates(kind, context, usable) for kind in kinds}
    for kind, candidates in by_kind.items():
        rng.shuffle(candidates)
        if kind == "follows":
            del candidates[_MOST_FOLLOWS:]
    order = list(kinds)
    rng.shuffle(order)
    asked: list[tuple[str, str, str]] = []
    answers: set[str] = set()
    while len(asked) < most and any(by_kind.values()):
        for kind in order:
            while by_kind[kind]:
                question, answer = by_kind[kind].pop()
                if answer not in answers:
                    answers.add(answer)
                    asked.append((question, answer, kind))
                    break
            if len(asked) == most:
                break
    return asked


def _candidates(kind: str, context: str, usable: list[str]) -> list[tuple[str, str]]:
    if kind == "follows":
        return _what_follows(context, usable)
    if kind == "sentence":
        return _which_sentence(context, usable)
    return [
        (f"Fill in the blank: {sentence[:start]}{BLANK}{sentence[end:]}", sentence[start:end])
        for sentence in usable
        for start, end in _found(kind, sentence)
        if context.count(sentence[start:end]) == 1  # elsewhere it would give itself away
    ]


def _found(kind: str, sentence: str) -> list[tuple[int, int]]:
    places = []
    for match in _PATTERNS[kind].finditer(sentence):
        group = match.lastindex or 0  # of a quote, what stands between the marks
        start, end = match.span(group)
        is_date = kind == "number" and any(
            a <= start < b for a, b in (m.span() for m in _PATTERNS["date"].finditer(sentence))
        )
        said = sentence[start:end]
        if kind == "quote":  # its last comma belongs to what stands around it
            end -= len(said) - len(said.rstrip(",; "))
        if kind == "name" and start == 0:  # "Even Sophy": the first word begins the sentence
            start += len(said.partition(" ")[0]) + 1
        if not is_date and start < end and said[:1] != " ":
            places.append((start, end))
    return places


def _what_follows(context: str, usable: list[str]) -> list[tuple[str, str]]:
    pairs = []
    for sentence in usable:
        words = sentence.split(" ")
        if len(words) < 2 * _FOLLOWING:
            continue
        for at in range(_FOLLOWING, len(words) - _FOLLOWING + 1, 3):
            before = " ".join(words[at - _FOLLOWING : at])
            if context.count(before) == 1:
                answer = " ".join(words[at : at + _FOLLOWING])
                pairs.append((f"Which words follow “{before}” in the text?", answer))
    return pairs


def _which_sentence(context: str, usable: list[str]) -> list[tuple[str, str]]:
    pairs = []
    for sentence in usable:
        for kind in ("name", "date", "number"):
            for start, end in _found(kind, sentence):
                mentioned = sentence[start:end]
                if context.count(mentioned) == 1:
                    pairs.append((f"Which sentence of the text mentions {mentioned}?", sentence))
    return pairs
