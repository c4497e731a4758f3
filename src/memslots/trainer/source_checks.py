"""What is wrong with a stage's sources, found before any model is loaded."""

from __future__ import annotations

import inspect
from itertools import islice
from pathlib import Path
from typing import Any

from memslots.data import ADAPTERS, load_rows
from memslots.data.books import iterate_books
from memslots.data.cloze import cloze_rows
from memslots.data.raw_texts import raw_texts
from memslots.trainer.recipe_checks import check_values, near
from memslots.trainer.row_sources import ROW_SOURCES, SPLIT_SOURCES, Sources
from memslots.trainer.stage_data import data_set_rows

_CHECKED_ROWS = 100
_GIVEN = {"drawn", "origin", "processor", "kind", "sources"}  # arguments that no recipe sets
_EVERYWHERE = {"kind", "seed", "contrast"}


def check_sources(
    stage: dict[str, Any], training: dict[str, Any], origin: Sources, complete: bool = True
) -> None:
    """Refuse sources that cannot be read, or that would train less than the stage says.

    What is on the Hub is not asked for.

    Args:
        stage: of a recipe, with its `name` and its `data`.
        training: what holds for the stage of the recipe's arguments of training.
        origin: where the data come from.
        complete: whether the rows are read, and not only the sources' options and whether their
            files are there.

    Raises:
        ValueError: names the stage, the source and what is wrong: an unknown kind or option, a
            missing file, a row and what it lacks; or texts without what follows them where
            completion has a weight.
    """
    for number, source in enumerate(stage["data"], start=1):
        kind = source.get("kind") if isinstance(source, dict) else None
        where = f"stage {stage['name']!r}, source {number} ({kind or repr(source)})"
        try:
            _check_options(source)
            if complete:
                _check_rows(source, origin)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
    texts = [s for s in stage["data"] if "tokens" in s]
    weight = training.get("completion_weight", 0.5)
    if texts and weight > 0 and all(s.get("completion") is False for s in texts):
        raise ValueError(
            f"stage {stage['name']!r}: its texts say `completion: false`, but completion_weight is "
            f"{weight}, so that reconstruction would be trained at {1 - weight:g} of its weight, "
            "with nothing in place of the rest; set completion_weight: 0."
        )


def check_long_enough(stage: dict[str, Any], tokenizer: Any) -> None:
    """Refuse texts of the user's none of which fills a segment.

    Args:
        stage: of a recipe.
        tokenizer: the encoder's.

    Raises:
        ValueError: names the stage, the file and how long its texts are.
    """
    for source in stage["data"]:
        if "tokens" not in source or "file" not in source:
            continue
        longest = 0
        for text in raw_texts(source["file"]):
            longest = max(longest, len(tokenizer(text[: 64 * source["tokens"]])["input_ids"]))
            if longest >= source["tokens"]:
                break
        else:
            raise ValueError(
                f"stage {stage['name']!r} compresses {source['tokens']} tokens at a time, and the "
                f"longest text of {source['file']} has {longest}: give longer texts, or several in "
                "one file, or a shorter compressor.config.segment_length (--set)."
            )


def _check_options(source: Any) -> None:
    if not isinstance(source, dict) or not isinstance(source.get("kind"), str):
        raise ValueError("a source is a mapping with its `kind`, such as {kind: jsonl, file: ...}.")
    kind = source["kind"]
    kinds = sorted({*ROW_SOURCES, *SPLIT_SOURCES, *ADAPTERS})
    if kind not in kinds:
        raise ValueError(
            f"source kind {kind!r} is unknown{near(kind, kinds)}; there are {', '.join(kinds)}."
        )
    if kind in SPLIT_SOURCES:
        return
    reader = ROW_SOURCES.get(kind, data_set_rows)
    known = set(inspect.signature(reader).parameters) - _GIVEN | _EVERYWHERE
    parameters = inspect.signature(reader).parameters
    kinds_of = {name: parameters[name].annotation for name in sorted(known & set(parameters))}
    check_values("option ", source, dict.fromkeys(sorted(known), Any) | kinds_of)
    if (file := source.get("file")) is not None and not Path(file).exists():
        raise ValueError(f"file {file!r} does not exist; a path is taken from {Path.cwd()}.")


def _check_rows(source: dict[str, Any], origin: Sources) -> None:
    """Reads the first rows of what is on this machine."""
    kind, file = source["kind"], source.get("file")
    books = file or origin.books
    if kind == "books" and books is not None:
        next(iterate_books(books))
    elif kind == "cloze" and books is not None:
        texts = raw_texts(file) if file else iterate_books(books)
        settings = {k: source[k] for k in ("questions", "characters", "kinds") if k in source}
        if next(cloze_rows(islice(texts, _CHECKED_ROWS), **settings), None) is None:
            raise ValueError(
                f"the first texts of {books} hold no paragraph that a question can be made of; "
                f"contexts have {settings.get('characters', 'the usual')} characters."
            )
    elif kind in ADAPTERS and ADAPTERS[kind].generate is None:
        folder = file or origin.data_dir
        if folder is None and not ADAPTERS[kind].suffixes:
            return  # the Hub's
        adapter, split = ADAPTERS[kind], source.get("split", "train")
        if split in adapter.paper:
            split = adapter.paper[split].source
        rows = load_rows(kind, split, data_dir=folder, limit=_CHECKED_ROWS)
        for _ in rows:
            pass
        if adapter.suffixes and rows.report.first_bad:  # a file of the user's own
            needs = " or ".join(" + ".join(layout.columns) for layout in adapter.layouts)
            raise ValueError(f"{rows.source}, {rows.report.first_bad[0]}; each row needs {needs}.")
