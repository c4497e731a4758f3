"""Every set of the seeds under one name and in one schema: `load_rows("squad", "validation")`.

What the rows look like is said in `schema.py`; what is known of each set, in its adapter.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from itertools import chain, islice
from pathlib import Path
from typing import Any

from memslots.data.example_sets import GSM8K, HPD, SST2, WSC
from memslots.data.question_sets import ADVERSARIAL_QA, HOTPOT_QA, NATURAL_QUESTIONS, SQUAD
from memslots.data.raw_rows import RawRow, ending_of, find_files, hub_rows, local_rows
from memslots.data.schema import Adapter, BadRow, DataNotFound, LeftOut, LoadReport, Row
from memslots.data.text_sets import FINEWEB, JSONL, PARQUET, PG19, TEXT

logger = logging.getLogger(__name__)

ADAPTERS: dict[str, Adapter] = {
    adapter.name: adapter
    for adapter in (
        FINEWEB,
        SQUAD,
        HOTPOT_QA,
        ADVERSARIAL_QA,
        NATURAL_QUESTIONS,
        GSM8K,
        SST2,
        WSC,
        HPD,
        PG19,
        TEXT,
        JSONL,
        PARQUET,
    )
}
"""All adapters by name; a program may add its own."""

_PEEKED_ROWS = 100
_SHUFFLE_BUFFER = 10_000


class LoadedRows:
    """The rows of a split, read as they are iterated; every iteration reads them again.

    Args:
        adapter: Of the set.
        split: One of its splits or of its paper's splits.
        source: Where the rows come from, for the report.
        open_rows: Opens the source and yields its raw rows.
        limit: Rows to hand out at most; None hands out all.
        seed: Of the order; without it the source's own order.

    Attributes:
        report: What became of the rows of the latest iteration.
    """

    def __init__(
        self,
        adapter: Adapter,
        split: str,
        source: str,
        open_rows: Callable[[], Iterator[RawRow]],
        limit: int | None = None,
        seed: int | None = None,
    ):
        self.adapter = adapter
        self.split = split
        self.source = source
        self.limit = limit
        self.seed = seed
        self.report = self._new_report()
        self._open_rows = open_rows

    def __iter__(self) -> Iterator[Row]:
        report = self.report = self._new_report()
        if self.split in self.adapter.paper:
            yield from self._paper_rows(report)
        else:
            yield from islice(self._usable_rows(report), self.limit)
        report.finished = True
        logger.log(logging.WARNING if report.bad else logging.INFO, report.summary())

    def _new_report(self) -> LoadReport:
        return LoadReport(self.adapter.name, self.split, self.source, self.adapter.stands_for)

    def _usable_rows(self, report: LoadReport) -> Iterator[Row]:
        raw_rows = self._open_rows()
        first = list(islice(raw_rows, _PEEKED_ROWS))
        self._check_columns(first)
        raw_rows = chain(first, raw_rows)
        for raw in raw_rows if self.seed is None else _shuffled(raw_rows, self.seed):
            report.read += 1
            try:
                row = self._convert(raw)
            except BadRow as bad:
                report.add_bad(str(bad))
            except LeftOut as left_out:
                report.left_out[str(left_out)] += 1
            else:
                report.kept += 1
                yield row
        if not report.kept:
            raise ValueError(
                f"{report.summary()}. None of the rows can be used: check that these are the "
                f"rows of {self.adapter.title}, or choose another split."
            )

    def _check_columns(self, first: list[RawRow]) -> None:
        """Tells a set without a needed column from one with some bad rows."""
        if not first:
            raise ValueError(
                f"{self.adapter.name}/{self.split} is empty: {self.source} has no rows; download "
                "its files again, or choose another split."
            )
        # Rows read from JSON need not have the same columns.
        columns = list(dict.fromkeys(c for raw in first if isinstance(raw, Mapping) for c in raw))
        layouts = self.adapter.layouts
        if columns and not any(set(layout.columns) <= set(columns) for layout in layouts):
            needed = ", or ".join(" + ".join(layout.columns) for layout in layouts)
            raise ValueError(
                f"{self.adapter.name}/{self.split} lacks a column: {self.source} has "
                f"{', '.join(columns)}; {self.adapter.title} needs {needed}. Rename the "
                f"columns, or load it with the adapter of the set that it is."
            )

    def _convert(self, raw: RawRow) -> Row:
        if isinstance(raw, BadRow):
            raise raw
        for layout in self.adapter.layouts:
            if all(column in raw for column in layout.columns):
                row = layout.convert(raw)
                if self.adapter.stands_for:
                    row["stand_in"] = self.adapter.stands_for
                return row
        # Of the layout that the row comes nearest to: one with a context lacks no text.
        nearest = max(
            self.adapter.layouts,
            key=lambda layout: (len(set(layout.columns) & set(raw)), -len(layout.columns)),
        )
        missing = [column for column in nearest.columns if column not in raw]
        raise BadRow(f"no {' and no '.join(repr(column) for column in missing)}")

    def _paper_rows(self, report: LoadReport) -> Iterator[Row]:
        """Reads the whole source split before the first row: its size is part of the split."""
        paper = self.adapter.paper[self.split]
        rows = list(self._usable_rows(report))
        if len(rows) != paper.total:
            parts = " + ".join(
                f"{each.count:,}"
                for each in self.adapter.paper.values()
                if each.source == paper.source
            )
            raise ValueError(
                f"{self.adapter.name}/{self.split} needs the {paper.total:,} usable rows of its "
                f"{paper.source!r} split (PCC, table 1: {parts}), but {self.source} has "
                f"{len(rows):,}. Give the complete release, or choose "
                f"{' or '.join(map(repr, self.adapter.splits))} to take what is there."
            )
        chosen = paper.choose(rows)
        if len(chosen) < len(rows):
            report.left_out["in the paper's other split"] = len(rows) - len(chosen)
        limited = chosen[: self.limit]
        if len(limited) < len(chosen):
            report.left_out["beyond the limit"] = len(chosen) - len(limited)
        report.kept = len(limited)
        yield from limited


def load_rows(
    name: str,
    split: str,
    data_dir: str | Path | None = None,
    limit: int | None = None,
    seed: int | None = None,
    streaming: bool | None = None,
    allow_stand_in: bool = False,
) -> LoadedRows:
    """Opens a split of a set.

    Args:
        name: One of `ADAPTERS`.
        split: One of the set's splits, or `paper_train` or `paper_test`, the splits of table 1 of
            the PCC paper, for `squad`, `gsm8k` and `hpd`. These are read whole, and their counts
            checked, before the first row.
        data_dir: A folder with local copies under the names in the adapter's `files` (also with
            `.gz`, also in a folder named after the set), or one file that is the split. With it
            nothing is taken from the Hub.
        limit: Rows to hand out at most.
        seed: Shuffles the rows: through a buffer of 10,000, so larger sets stay roughly in their
            order. Without it they come as they are stored. A generated set draws by it.
        streaming: Read the Hub's copy over the network (True) or download it first (False).
            Without it FineWeb, PG-19 and Natural Questions are streamed. Local files always are.
        allow_stand_in: Where a set cannot be had and its adapter names a stand-in, take that; its
            rows and report say so.

    Returns:
        The rows; iterate them, then read their `report`.

    Raises:
        ValueError: Unknown name or split, or a limit below 1. While iterating: a source that is
            empty, lacks a needed column or has no usable row, and a paper's split whose source
            has another number of rows.
        DataNotFound: (a ValueError) There are no such files, or the Hub does not give the set.
    """
    adapter = _adapter(name)
    _check_split(adapter, split)
    paper = adapter.paper.get(split)
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit} is not possible; give 1 or more, or None for all rows.")
    try:
        stored_split = paper.source if paper else split
        source, open_rows = _open(adapter, stored_split, data_dir, seed, streaming)
    except DataNotFound:
        if not allow_stand_in or adapter.stand_in is None:
            raise
        stand_in = ADAPTERS[adapter.stand_in]
        return load_rows(stand_in.name, split.removeprefix("paper_"), data_dir, limit, seed)
    return LoadedRows(adapter, split, source, open_rows, limit, seed)


def source_rows(source: str, data_dir: str | Path | None = None, **options: Any) -> LoadedRows:
    """Opens what a user names in one word: a split of a set, or a file.

    Args:
        source: "set/split", such as "squad/validation", or the path of a file. A file's name ends
            in `.jsonl`, `.json` (also a SQuAD release), `.parquet` or `.txt`.
        data_dir: As `load_rows` takes it, for a set.
        options: `limit`, `seed`, `streaming` and `allow_stand_in` of `load_rows`.

    Raises:
        ValueError: Neither a set and its split nor a file; or as `load_rows`.
    """
    name, split, file = named_source(source)
    return load_rows(name, split, file or data_dir, **options)


def named_source(source: str) -> tuple[str, str, Path | None]:
    """What a source of `source_rows` names: set, split, and the file where it is one.

    Raises:
        ValueError: Neither a set and its split nor a file.
    """
    name, slash, split = source.partition("/")
    file = Path(source).expanduser()
    if slash and name in ADAPTERS and not file.is_file():
        _check_split(ADAPTERS[name], split)
        return name, split, None
    if file.is_dir():
        raise ValueError(
            f"{source} is a folder; name one file in it, or give the folder as data_dir "
            "(--data-dir) and name a set, such as squad/validation."
        )
    endings = {ending: adapter.name for adapter in ADAPTERS.values() for ending in adapter.suffixes}
    ending = ending_of(file)
    if file.is_file():
        if ending not in endings:
            raise ValueError(
                f"{source} cannot be read: its name ends in {ending or 'nothing'!r}; allowed are "
                f"{', '.join(endings)}. Convert or rename it."
            )
        return endings[ending], "test", file
    if ending in endings or source.startswith(("/", "~", ".")):
        raise ValueError(f"there is no file {source}; check its path.")
    if slash:
        raise ValueError(f"{_unknown(name)}, or give the path of a file.")
    raise ValueError(
        f"{source!r} must be a set and its split, such as squad/validation, or the path of a file "
        f"({', '.join(endings)})."
    )


def _check_split(adapter: Adapter, split: str) -> None:
    splits = [*adapter.splits, *adapter.paper]
    if split not in splits:
        raise ValueError(
            f"split={split!r} is not a split of {adapter.name}; choose one of {', '.join(splits)}."
        )


def _adapter(name: str) -> Adapter:
    if not isinstance(name, str) or name not in ADAPTERS:
        raise ValueError(f"{_unknown(name)}.")
    return ADAPTERS[name]


def _unknown(name: str) -> str:
    near = get_close_matches(str(name), ADAPTERS, n=1)
    return (
        f"dataset {name!r} is unknown{f' (did you mean {near[0]!r}?)' if near else ''}; choose one "
        f"of {', '.join(ADAPTERS)}"
    )


def _open(
    adapter: Adapter,
    split: str,
    data_dir: str | Path | None,
    seed: int | None,
    streaming: bool | None,
) -> tuple[str, Callable[[], Iterator[RawRow]]]:
    generate = adapter.generate
    if generate is not None:
        generate(split, data_dir, seed or 0)  # finds out now whether its own sources are there
        source = adapter.title if data_dir is None else f"{adapter.title} ({data_dir})"
        return source, lambda: iter(generate(split, data_dir, seed or 0))
    if data_dir is not None:
        files = find_files(adapter, split, data_dir)
        return ", ".join(file.name for file in files), local_rows(adapter, files)
    if adapter.suffixes:
        raise DataNotFound(f"{adapter.title} are local, and no data_dir is given; {adapter.where}.")
    source = " ".join(filter(None, (adapter.hub_id, adapter.hub_config, adapter.splits[split])))
    whether = adapter.streaming if streaming is None else streaming
    return source, hub_rows(adapter, split, whether)


def _shuffled(rows: Iterator[Any], seed: int) -> Iterator[Any]:
    """Yields all items in another order, holding `_SHUFFLE_BUFFER` of them at a time."""
    rng = random.Random(seed)
    buffer = list(islice(rows, _SHUFFLE_BUFFER))
    for item in rows:
        at = rng.randrange(len(buffer))
        yield buffer[at]
        buffer[at] = item
    rng.shuffle(buffer)
    yield from buffer
