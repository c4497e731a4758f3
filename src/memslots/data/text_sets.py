"""Adapters of the sets of texts (FineWeb, PG-19) and of plain local files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from memslots.data.books import PG19 as PG19_ON_HUB
from memslots.data.question_sets import squad_articles
from memslots.data.schema import (
    Adapter,
    BadRow,
    Layout,
    LeftOut,
    QuestionRow,
    TextRow,
    items_of_list,
    question_row,
    records,
    text_row,
)


def _text(raw: Mapping[str, Any]) -> TextRow:
    return text_row(raw["text"], raw.get("id"))


def _book(raw: Mapping[str, Any]) -> TextRow:
    return text_row(raw["text"], raw["url"])


def _question(raw: Mapping[str, Any]) -> QuestionRow:
    """`answer` may be one text or a list of accepted ones, as may `answers`, or be SQuAD's."""
    columns = {name: raw[name] for name in ("answer", "answers") if raw.get(name) is not None}
    if not columns:
        raise BadRow("no 'answer'")
    answers: list[Any] = []
    for name, value in columns.items():
        listed = value if isinstance(value, list) else [value]
        if any(isinstance(answer, Mapping) for answer in listed):  # SQuAD's, with `answer_start`
            listed = [answer.get("text") for answer in records(value, name)]
        answers += listed
    if not answers:
        raise LeftOut("unanswerable")
    return question_row(raw["context"], raw["question"], answers, raw.get("id"))


def _rows_of_json(document: Any) -> Iterator[Any]:
    """Of a list of rows, or of SQuAD's articles."""
    nested = isinstance(document, Mapping) and "data" in document
    return squad_articles(document) if nested else items_of_list(document)


FINEWEB = Adapter(
    name="fineweb",
    title="FineWeb",
    licence="ODC-By 1.0",
    # The paper's 5 B tokens are half of this sample. Its 19,167,479 training samples are pieces
    # of about 256 tokens, not documents, so they are not a split of the set.
    hub_id="HuggingFaceFW/fineweb",
    hub_config="sample-10BT",
    streaming=True,
    splits={"train": "train"},
    files={"train": ("sample/10BT/*.parquet", "sample/*/*.parquet", "data/*/*.parquet")},
    layouts=(Layout(("text", "id"), _text),),
)

PG19 = Adapter(
    name="pg19",
    title="PG-19",
    licence="Apache-2.0 (the collection); the books are in the public domain in the USA",
    hub_id=PG19_ON_HUB,
    streaming=True,
    splits={"train": "train", "validation": "validation", "test": "test"},
    files={
        split: (f"{split}/*.txt", f"books-{split}*.jsonl")
        for split in ("train", "validation", "test")
    },
    layouts=(
        Layout(("short_book_title", "publication_date", "url", "text"), _book),
        Layout(("text",), _text),  # local books
    ),
)

_PLAIN_SPLITS = {"train": "train", "validation": "validation", "test": "test"}
_PLAIN_LAYOUTS = (
    Layout(("context", "question", "answer"), _question),
    Layout(("context", "question", "answers"), _question),
    Layout(("text",), _text),
)
_PLAIN_WHERE = "give data_dir= (--data-dir) a file, or a folder of files named after their splits"

TEXT = Adapter(
    name="text",
    title="plain text files",
    licence="yours",
    suffixes=(".txt",),
    splits=_PLAIN_SPLITS,
    layouts=(Layout(("text",), _text),),
    where=_PLAIN_WHERE,
)

JSONL = Adapter(
    name="jsonl",
    title="JSON files",
    licence="yours",
    suffixes=(".jsonl", ".json"),
    unnest=_rows_of_json,
    splits=_PLAIN_SPLITS,
    layouts=_PLAIN_LAYOUTS,
    where=_PLAIN_WHERE,
)

PARQUET = Adapter(
    name="parquet",
    title="Parquet files",
    licence="yours",
    suffixes=(".parquet",),
    splits=_PLAIN_SPLITS,
    layouts=_PLAIN_LAYOUTS,
    where=_PLAIN_WHERE,
)
