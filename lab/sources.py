"""The lab's rows, under the names that recipes and `--data` use; importing this adds them."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from lab.data.character_dialogue import CHARACTER_DIALOGUE
from lab.data.code_facts import code_rows
from lab.data.conversations import conversation_rows
from lab.data.exact_strings import exact_string_rows
from lab.data.persona_set import PERSONAS
from lab.data.personas import persona_rows
from lab.data.pronoun_pairs import PRONOUN_PAIRS
from lab.data.sentence_facts import pool_rows, sentence_rows
from memslots.data import ADAPTERS
from memslots.data.books import iterate_books
from memslots.trainer.row_sources import ROW_SOURCES, SPLIT_SOURCES, Sources
from memslots.trainer.stage_data import FEATURES

Row = dict[str, Any]


def _text(text: str) -> Row:
    return {**dict.fromkeys(FEATURES), "text": text}


def _question(context: str, questions: list[str], answers: list[str]) -> Row:
    asked = {"context": context, "question": questions, "answer": answers}
    return {**dict.fromkeys(FEATURES), **asked}


def _personas(
    drawn: int,
    origin: Sources,
    rows: int,
    people: int = 1,
    questions: int = 4,
    sentences: int | None = None,
) -> Iterator[Row]:
    rng = random.Random(drawn)
    for row in persona_rows("train", rows, people=people, seed=drawn, questions=questions):
        context, asked, answers = row["context"], row["question"], row["answer"]
        if questions == 1:
            asked, answers = [asked], [answers]
        if sentences is not None:
            context = _some_sentences(context, answers[0], sentences, rng)
            kept = [i for i, answer in enumerate(answers) if answer in context]
            asked, answers = [asked[i] for i in kept], [answers[i] for i in kept]
        if asked:
            yield _question(context, asked, answers)


def _conversations(
    drawn: int, origin: Sources, rows: int, turns: int | None = None, questions: int = 4
) -> Iterator[Row]:
    for row in conversation_rows("train", rows, turns, seed=drawn, questions=questions):
        yield _question(row["context"], row["question"], row["answer"])


def _exact_strings(
    drawn: int, origin: Sources, rows: int, questions: int = 4, with_books: bool = True
) -> Iterator[Row]:
    books = list(iterate_books(origin.books, limit=40)) if with_books else []
    for row in exact_string_rows("train", rows, drawn, questions=questions, books=books):
        yield _question(row["context"], row["question"], row["answer"])


def _some_sentences(text: str, answer: str, count: int, rng: random.Random) -> str:
    """`count` sentences of a text in a row, the first one with the answer among them."""
    parts = re.split(r"(?<=[.!?]) ", text)
    at = next((i for i, part in enumerate(parts) if answer in part), 0)
    start = rng.randint(max(0, at - count + 1), min(at, max(0, len(parts) - count)))
    return " ".join(parts[start : start + count])


def _persona_texts(drawn: int, origin: Sources, rows: int, sentences: int = 2) -> Iterator[Row]:
    rng = random.Random(drawn)
    for row in persona_rows("train", rows, seed=drawn):
        parts = row["context"].split(". ")
        count = min(len(parts), rng.randint(1, sentences))
        start = rng.randint(0, len(parts) - count)
        yield _text(". ".join(parts[start : start + count]).rstrip(".") + ".")


def _persona_splits(split: str, n: int, seed: int, **options: Any) -> Iterator[Row]:
    options.pop("sentences", None)
    for row in persona_rows(split, n, seed=seed, **options):
        lists = {name: row[name] for name in ("question", "answer", "fact")}
        if isinstance(row["question"], str):
            lists = {name: [value] for name, value in lists.items()}
        yield {**row, **lists}


for _adapter in (CHARACTER_DIALOGUE, PRONOUN_PAIRS, PERSONAS):
    ADAPTERS[_adapter.name] = _adapter
ADAPTERS["hpd"] = replace(ADAPTERS["hpd"], stand_in=CHARACTER_DIALOGUE.name)
ADAPTERS["wsc"] = replace(ADAPTERS["wsc"], stand_in=PRONOUN_PAIRS.name)

ROW_SOURCES.update(
    personas=_personas,
    persona_texts=_persona_texts,
    conversations=_conversations,
    exact_strings=_exact_strings,
)
SPLIT_SOURCES.update(
    personas=_persona_splits,
    persona_sentences=sentence_rows,
    persona_pools=pool_rows,
    code_snippets=code_rows,
)
