"""The rows of a recipe's stage, from the sources that the stage lists."""

import random
from collections.abc import Callable
from typing import Any

from datasets import Dataset

from memslots.data.books import iterate_books
from memslots.data.personas import persona_rows


def stage_dataset(sources: list[dict[str, Any]], seed: int, books: str | None) -> Dataset:
    """A dataset of text and question-answering rows, the same for the same arguments.

    Args:
        sources: each `{"kind", "rows", ...}`: `personas` (`people`, `questions` a context),
            `persona_texts` (plain text of at most `sentences` sentences), `books` (`characters` a
            row).
        seed: of the drawing.
        books: where the books are; see `iterate_books`.

    Raises:
        ValueError: an unknown kind of source, or a stage without rows.
    """
    rows: list[dict[str, Any]] = []
    for number, source in enumerate(sources):
        options = {key: value for key, value in source.items() if key not in ("kind", "rows")}
        if source["kind"] not in _SOURCES:
            raise ValueError(
                f"source kind {source['kind']!r} is unknown; there are {sorted(_SOURCES)}."
            )
        # Seeds of training differ from those of every evaluation, and the split does anyway.
        drawn = f"stage-{seed}-{number}"
        rows += _SOURCES[source["kind"]](source["rows"], drawn, books, **options)
    if not rows:
        raise ValueError("the stage lists no rows to train on.")
    return Dataset.from_list(rows)


def _row(**given: Any) -> dict[str, Any]:
    return {"text": None, "context": None, "question": None, "answer": None, **given}


def _personas(rows: int, seed: str, books: str | None, people: int = 1, questions: int = 4):
    drawn = persona_rows("train", rows, people=people, seed=_number(seed), questions=questions)
    return [_row(context=r["context"], question=r["question"], answer=r["answer"]) for r in drawn]


def _persona_texts(rows: int, seed: str, books: str | None, sentences: int = 2):
    rng = random.Random(seed)
    texts: list[dict[str, Any]] = []
    for row in persona_rows("train", rows, seed=_number(seed)):
        parts = row["context"].split(". ")
        count = min(len(parts), rng.randint(1, sentences))
        start = rng.randint(0, len(parts) - count)
        texts.append(_row(text=". ".join(parts[start : start + count]).rstrip(".") + "."))
    return texts


def _books(rows: int, seed: str, books: str | None, characters: int = 900):
    rng = random.Random(seed)
    library = list(iterate_books(books, limit=40))
    texts: list[dict[str, Any]] = []
    while len(texts) < rows:
        book = rng.choice(library)
        start = rng.randrange(max(1, len(book) - characters))
        text = book[start : start + characters].partition(" ")[2]  # from a word's beginning
        if text.strip():
            texts.append(_row(text=text))
    return texts


def _number(seed: str) -> int:
    return random.Random(seed).getrandbits(31)


_SOURCES: dict[str, Callable[..., list[dict[str, Any]]]] = {
    "personas": _personas,
    "persona_texts": _persona_texts,
    "books": _books,
}
