"""The one schema that every dataset is read into, and what an adapter states about its set.

A *text row* is for pre-training (reconstruction and completion)::

    {"id": "...", "text": "..."}

A *question row* is for fine-tuning and for the tables::

    {"id": "...", "context": "...", "question": "...", "answer": "...", "answers": ["...", ...]}

A *questions row* asks several questions of one context, which is then encoded once::

    {"id": "...", "context": "...", "question": ["...", ...], "answer": ["...", ...],
     "answers": [["...", ...], ...]}

`answer` is the text to learn and always the first of `answers`, which holds every accepted text.
Sets for in-context learning (GSM8K, SST-2, WSC) have the empty context: theirs is made of other
rows' questions and answers. Some rows say more:

- `label`: what is compared in scoring, if that is less than the answer (GSM8K's final number;
  the label's word in SST-2 and WSC).
- `character`: whose reply the answer is (HPD and its stand-in).
- `stand_in`: present when the row is not of the set that was asked for, and says what it is.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NotRequired, TypedDict


class TextRow(TypedDict):
    """A text to compress; see the module."""

    id: str
    text: str
    stand_in: NotRequired[str]


class QuestionRow(TypedDict):
    """A question about a context; see the module."""

    id: str
    context: str
    question: str
    answer: str
    answers: list[str]
    label: NotRequired[str]
    character: NotRequired[str]
    stand_in: NotRequired[str]


class QuestionsRow(TypedDict):
    """Several questions about one context, see the module; `kind` says what each asks for."""

    id: str
    context: str
    question: list[str]
    answer: list[str]
    answers: list[list[str]]
    kind: NotRequired[list[str]]


Row = TextRow | QuestionRow


def by_context(rows: Iterable[QuestionRow], most: int | None = None) -> list[QuestionsRow]:
    """The questions of each context in one row, in the order in which contexts first come.

    Args:
        rows: question rows in any order; the same context may come often.
        most: questions of a row; a context with more gives several rows.

    Raises:
        ValueError: `most` below 1.
    """
    if most is not None and most < 1:
        raise ValueError(f"questions={most}: give 1 or more per context.")
    open_rows: dict[str, QuestionsRow] = {}
    grouped: list[QuestionsRow] = []
    for row in rows:
        context = row["context"]
        group = open_rows.get(context)
        if group is None or len(group["question"]) == most:
            group = {
                "id": row["id"],
                "context": context,
                "question": [],
                "answer": [],
                "answers": [],
            }
            open_rows[context] = group
            grouped.append(group)
        group["question"].append(row["question"])
        group["answer"].append(row["answer"])
        group["answers"].append(row["answers"])
    return grouped


class BadRow(Exception):
    """A row that is not as its set promises. The loader counts it under its message.

    Args:
        reason: Short and without the row's own text, so that equal faults are counted together.
    """


class LeftOut(Exception):
    """A sound row that its task cannot use: unanswerable, unlabelled. Counted apart."""


class DataNotFound(ValueError):
    """The set cannot be had here: no such files, or the Hub cannot be reached."""


@dataclass(frozen=True)
class Layout:
    """One way in which a set's rows come.

    Args:
        columns: The columns that it needs; a row with all of them has this layout.
        convert: Makes a row of the schema from a raw row, or raises `BadRow` or `LeftOut`.
    """

    columns: tuple[str, ...]
    convert: Callable[[Mapping[str, Any]], Row]


@dataclass(frozen=True)
class PaperSplit:
    """A split of the PCC paper's table 1.

    Args:
        source: The set's own split that it is taken from.
        count: Rows in it, as the table says.
        total: Usable rows that `source` must have; above `count` where the paper's train and
            test rows are both drawn from `source`.
        held_out: Whether these are the rows held out of `source`, or those that remain.
    """

    source: str
    count: int
    total: int
    held_out: bool = False

    def choose(self, rows: list[Row]) -> list[Row]:
        """Returns the split's rows, in their order.

        Which rows the paper drew is not published. Here the rows whose hashed ids come first are
        held out: the same ones whatever the order of the files, the machine and the seed.

        Args:
            rows: All `total` usable rows of `source`.
        """
        held_out = self.count if self.held_out else self.total - self.count
        by_hash = sorted(range(len(rows)), key=lambda i: (_split_hash(rows[i]["id"]), i))
        chosen = set(by_hash[:held_out] if self.held_out else by_hash[held_out:])
        return [row for i, row in enumerate(rows) if i in chosen]


def _split_hash(row_id: str) -> bytes:
    return hashlib.sha256(f"memslots-paper-split-{row_id}".encode()).digest()


def items_of_list(document: Any) -> Iterator[Any]:
    """Yields the rows of a JSON file that is one list of rows."""
    if not isinstance(document, list):
        raise BadRow(f"a JSON list of rows was expected, not a {type(document).__name__}")
    yield from document


@dataclass(frozen=True)
class Adapter:
    """What is known of a set: where it is, how its rows come, what may be done with it.

    Args:
        name: What `load_rows` calls it.
        title: What its authors call it.
        licence: Of the data.
        splits: Names of the splits, and what the Hub calls each.
        layouts: The layouts of its rows; the first that fits a row reads it.
        hub_id: Dataset on the Hub; none if it is not there.
        hub_config: Configuration on the Hub; none for the default one.
        streaming: Whether the Hub's copy is streamed unless the caller says otherwise.
        files: For each split, patterns of the release's file names under `data_dir`, preferred
            ones first. Each may also have `.gz` at the end.
        suffixes: Of a plain local set, which has no names of its own: the endings it reads.
        unnest: Yields the rows of a whole JSON file (`.json`).
        tsv_columns: Columns of tab-separated files without a header.
        paper: Splits of the PCC paper's table 1, by name.
        where: How to get the set, when neither Hub nor `data_dir` has it.
        stand_in: Name of the adapter that stands in for this one.
        stands_for: Of a stand-in: a sentence that says so.
        generate: Of a stand-in: yields raw rows for (split of `splits`, data_dir, seed).
    """

    name: str
    title: str
    licence: str
    splits: Mapping[str, str]
    layouts: tuple[Layout, ...]
    hub_id: str | None = None
    hub_config: str | None = None
    streaming: bool = False
    files: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    suffixes: tuple[str, ...] = ()
    unnest: Callable[[Any], Iterator[Any]] = items_of_list
    tsv_columns: tuple[str, ...] = ()
    paper: Mapping[str, PaperSplit] = field(default_factory=dict)
    where: str = "give data_dir= (--data-dir) a folder with its files"
    stand_in: str | None = None
    stands_for: str | None = None
    generate: Callable[[str, str | Path | None, int], Iterator[Mapping[str, Any]]] | None = None


@dataclass
class LoadReport:
    """What became of a set's rows. Complete once the rows were iterated to their end.

    `read` is `kept` + all of `bad` + all of `left_out`.

    Args:
        name: Name of the adapter.
        split: Split that was asked for.
        source: The files or the Hub's dataset that the rows come from.
        stand_in: A sentence that says so, where the rows stand in for another set's.
        read: Raw rows read; with a limit, those read until it was reached.
        kept: Rows handed out.
        bad: Rows that are not as their set promises, counted by reason.
        left_out: Sound rows that the task cannot use, counted by reason.
        first_bad: Position and reason of the first ten bad rows.
        finished: Whether the iteration came to its end or its limit.
    """

    name: str
    split: str
    source: str
    stand_in: str | None = None
    read: int = 0
    kept: int = 0
    bad: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    first_bad: list[str] = field(default_factory=list)
    finished: bool = False

    def add_bad(self, reason: str) -> None:
        """Counts the row read last as bad."""
        self.bad[reason] += 1
        if len(self.first_bad) < 10:
            self.first_bad.append(f"row {self.read}: {reason}")

    def summary(self) -> str:
        """Says it in one line, fit for a log or the foot of a table."""
        parts = [
            f"{self.name}/{self.split} from {self.source}: {self.kept:,} of {self.read:,} kept"
        ]
        if self.bad:
            parts.append(f"{self.bad.total():,} bad ({_counts(self.bad)})")
        if self.left_out:
            parts.append(f"{self.left_out.total():,} left out ({_counts(self.left_out)})")
        if self.stand_in:
            parts.append(self.stand_in)
        if not self.finished:
            parts.append("not finished")
        return "; ".join(parts)


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{reason}: {count:,}" for reason, count in counter.most_common())


def text_row(text: Any, row_id: Any = None) -> TextRow:
    """Makes a text row.

    Args:
        text: Not blank; kept as it is.
        row_id: Any string or number; without one, a hash of the text.

    Raises:
        BadRow: The text is missing, blank or no string.
    """
    text = filled(text, "text")
    return {"id": _id(row_id, text), "text": text}


def question_row(
    context: Any, question: Any, answers: Any, row_id: Any = None, **more: str
) -> QuestionRow:
    """Makes a question row.

    Args:
        context: Not blank, or None for a set whose context is made of other rows.
        question: Not blank.
        answers: Accepted answers, the one to learn first; repeated ones are merged.
        row_id: Any string or number; without one, a hash of the texts.
        more: `label` or `character`.

    Raises:
        BadRow: A text is missing, blank or no string, or there is no answer.
    """
    context = "" if context is None else filled(context, "context")
    question = filled(question, "question")
    texts = list(dict.fromkeys(filled(answer, "answer") for answer in answers))
    if not texts:
        raise BadRow("no answer")
    row: QuestionRow = {
        "id": _id(row_id, context, question, texts[0]),
        "context": context,
        "question": question,
        "answer": texts[0],
        "answers": texts,
    }
    return row | more  # type: ignore[return-value]


def filled(value: Any, column: str) -> str:
    """Returns a text that is there and not blank.

    Raises:
        BadRow: It is not.
    """
    if value is None:
        raise BadRow(f"no '{column}'")
    if not isinstance(value, str):
        raise BadRow(f"'{column}' is a {type(value).__name__}, not text")
    if not value.strip():
        raise BadRow(f"empty '{column}'")
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, as JSON can hold: no tokenizer takes it
        raise BadRow(f"'{column}' is not valid Unicode") from None
    return value


def records(value: Any, column: str) -> list[Mapping[str, Any]]:
    """Returns a nested column as a list of records.

    `datasets` gives a sequence of structs as one dict of lists, other readers as a list of dicts.

    Raises:
        BadRow: It is neither.
    """
    if isinstance(value, Mapping) and all(isinstance(each, list) for each in value.values()):
        if len({len(each) for each in value.values()}) > 1:
            raise BadRow(f"'{column}' has lists of unequal length")
        return [dict(zip(value, each, strict=True)) for each in zip(*value.values(), strict=True)]
    if isinstance(value, list) and all(isinstance(each, Mapping) for each in value):
        return value
    raise BadRow(f"'{column}' is not a list of records")


def _id(stated: Any, *texts: str) -> str:
    if isinstance(stated, str) and stated:
        return filled(stated, "id")
    if isinstance(stated, int) and not isinstance(stated, bool):
        return str(stated)
    # Of the content, not of the position: it survives reordering, and the splits depend on it.
    return hashlib.sha256("\x1f".join(texts).encode()).hexdigest()[:16]
