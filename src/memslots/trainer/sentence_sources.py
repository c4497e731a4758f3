"""Sources of a stage that keep a held-out split and another's context: sentences, pools, code."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from memslots.data.code_facts import code_rows
from memslots.data.personas import persona_rows
from memslots.data.sentence_facts import pool_rows, sentence_rows

Row = dict[str, Any]


def _personas(split: str, n: int, seed: int, **options: Any) -> Iterator[Row]:
    options.pop("sentences", None)
    for row in persona_rows(split, n, seed=seed, **options):
        lists = {name: row[name] for name in ("question", "answer", "fact")}
        if isinstance(row["question"], str):
            lists = {name: [value] for name, value in lists.items()}
        yield {**row, **lists}


_MAKERS: dict[str, Callable[..., Iterator[Row]]] = {
    "personas": _personas,
    "persona_sentences": lambda split, n, seed, **o: sentence_rows(split, n, seed=seed, **o),
    "persona_pools": lambda split, n, seed, **o: pool_rows(split, n, seed=seed, **o),
    "code_snippets": lambda split, n, seed, **o: code_rows(split, n, seed=seed, **o),
}

SENTENCE_SOURCES = tuple(kind for kind in _MAKERS if kind != "personas")
"""Kinds of sources that `stage_dataset` reads through `source_rows`."""


def source_rows(source: dict[str, Any], split: str, n: int, seed: int) -> Iterator[Row]:
    """Rows of a generated source, with the facts asked and another's context beside.

    Args:
        source: `{"kind", ...}` as a stage lists it; its `rows` and `seed` do not count here.
        split: "train", "validation" or "test".
        n: number of rows.
        seed: of the drawing.

    Yields:
        `{"context", "question", "answer", "fact", "other_context"}`, the middle three as lists.

    Raises:
        ValueError: a kind that is not generated, or options that its generator does not have.
    """
    kind = source["kind"]
    if kind not in _MAKERS:
        raise ValueError(
            f"source kind {kind!r} has no held-out rows with another's context; those of "
            f"{sorted(_MAKERS)} have."
        )
    options = {key: value for key, value in source.items() if key not in ("kind", "rows", "seed")}
    try:
        yield from _MAKERS[kind](split, n, seed, **options)
    except TypeError as error:
        if "unexpected keyword" not in str(error):
            raise
        raise ValueError(f"source {kind!r} with {options}: {error}.") from error


def contrast_of(sources: list[dict[str, Any]]) -> int:
    """Rows in a row that a stage's sources want in one batch.

    Raises:
        ValueError: the sources want different numbers, or rows that are no multiple of it.
    """
    wanted = {source.get("contrast", 1) for source in sources}
    if len(wanted) > 1:
        raise ValueError(
            f"all of a stage's sources must have the same contrast, they have {sorted(wanted)}."
        )
    contrast = wanted.pop()
    uneven = [source["rows"] for source in sources if source.get("rows", 0) % contrast]
    if uneven:
        raise ValueError(
            f"contrast={contrast} puts so many rows into one batch, so each source's rows must be "
            f"a multiple of it; they are {uneven}."
        )
    return contrast
