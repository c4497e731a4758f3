"""Sources of a stage beside the data sets: rows that a program makes itself, by their kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]


@dataclass(frozen=True)
class Sources:
    """Where a run's data come from, and its seed.

    Args:
        seed: the seed of the draw.
        books: where the books are; see `iterate_books`.
        data_dir: folder with local copies of the data sets; the Hub without it.
    """

    seed: int = 0
    books: str | None = None
    data_dir: str | None = None


ROW_SOURCES: dict[str, Callable[..., Iterator[Row]]] = {}
"""Training rows by the `kind` that a recipe's stage lists; add your own before the run.

Each is called with a seed, the run's `Sources` and the other keys of the stage's entry, and yields
`{"text", "context", "question", "answer"}`: a text and None three times, or None, a context, and as
many questions as answers.

Example:
    >>> from memslots.trainer.row_sources import ROW_SOURCES
    >>> def notes(seed, sources, rows):
    ...     for number in range(rows):
    ...         yield {"text": f"Note {number}.", "context": None, "question": None, "answer": None}
    >>> ROW_SOURCES["notes"] = notes  # a stage may now list {kind: notes, rows: 100}
"""

SPLIT_SOURCES: dict[str, Callable[..., Iterator[Row]]] = {}
"""Likewise, for kinds that have held-out rows, which `shortcut_check_steps` reads.

Each is called with a split ("train", "validation" or "test"), a number of rows, a `seed` and the
other keys, and yields `{"context", "question", "answer", "fact", "other_context"}`, the middle
three as lists.
"""


def source_rows(source: dict[str, Any], split: str, n: int, seed: int) -> Iterator[Row]:
    """Rows of a generated source, with the facts asked and another's context beside.

    Args:
        source: `{"kind", ...}` as a stage lists it; its `rows` and `seed` do not count here.
        split: "train", "validation" or "test".
        n: number of rows.
        seed: the seed of the draw.

    Yields:
        `{"context", "question", "answer", "fact", "other_context"}`, the middle three as lists.

    Raises:
        ValueError: a kind that is not generated, or options that its generator does not have.
    """
    kind = source["kind"]
    if kind not in SPLIT_SOURCES:
        raise ValueError(
            f"source kind {kind!r} has no held-out rows with another text's context; choose from "
            f"{sorted(SPLIT_SOURCES)}."
        )
    options = {key: value for key, value in source.items() if key not in ("kind", "rows", "seed")}
    try:
        yield from SPLIT_SOURCES[kind](split, n, seed=seed, **options)
    except TypeError as error:
        if "unexpected keyword" not in str(error):
            raise
        raise ValueError(f"source {kind!r} with {options}: {error}.") from error


def contrast_of(sources: list[dict[str, Any]]) -> int:
    """Rows in a row that a stage's sources want in one batch.

    Raises:
        ValueError: the sources want different numbers, or rows that are not a multiple of it.
    """
    contrasts = {source.get("contrast", 1) for source in sources}
    if len(contrasts) > 1:
        raise ValueError(
            f"all of a stage's sources must have the same contrast, they have {sorted(contrasts)}."
        )
    contrast = contrasts.pop()
    uneven = [source["rows"] for source in sources if source.get("rows", 0) % contrast]
    if uneven:
        raise ValueError(
            f"contrast={contrast} puts so many rows into one batch, so each source's rows must be "
            f"a multiple of it; they are {uneven}."
        )
    return contrast
