"""An article of a chat's first turn, asked about after many turns of small talk.

    python -m lab.long_chat RESULTS --questions XQUAD --books BOOKS --page docs/how-to/chat.md

The first turn is a paragraph of XQuAD; what follows are the spoken lines of a held-out novel, in
their order. The decoder reads `ChatMemory`'s slots and, beside them, all turns as text, the last
turns as text (as many as take the memory's prompt tokens), another chat's memory, and nothing.
Answers are kept and not asked again; the table goes between the page's marks.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import re
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from lab import pages
from lab.asked import Asked, Record, whole
from lab.compare.reading import Context
from lab.compare.samples import Sample
from memslots import ChatMemory
from memslots.data.books import iterate_books
from memslots.evaluation.asking import BETWEEN, INSTRUCTION, Asking
from memslots.evaluation.intervals import with_interval
from memslots.evaluation.metrics import squad_scores
from memslots.evaluation.report import replace_block
from memslots.evaluation.worked_examples import worked_examples

TURNS = (10, 200)
CHATS = 6
"""Drawn whether all are asked or some: a place in the answers names the same question always."""
QUESTIONS = 2
MOST_WORDS = 30
"""Of a spoken line, so that small talk it is and no speech."""
NEW_TOKENS = 16
COMPARED_RATE = 4
"""Whose prompt tokens the last turns get, and which another chat's memory has."""


NOTHING, ALL = "nothing", "all turns as text"
CONTROL, LAST = "control: another chat's memory", "last turns as text"


class Chat(NamedTuple):
    """Turns, the first of which the questions ask about."""

    turns: list[str]
    samples: list[Sample]


def spoken_lines(book: str) -> list[str]:
    """What is said aloud in a novel, a line a paragraph, in order."""
    lines = []
    for paragraph in re.split(r"\n\s*\n", book):
        said = re.findall(r'["“]([^"”]+)["”]', " ".join(paragraph.split()))
        line = " ".join(said).strip()
        if line and len(line.split()) <= MOST_WORDS:
            lines.append(line)
    return lines


def chats(
    questions: Path, lines: Sequence[str], count: int, turns: int, seed: int = 0
) -> list[Chat]:
    """Chats that begin with a paragraph, with `turns` turns of small talk after it.

    Args:
        questions: a file in SQuAD's layout, gzip.
        lines: spoken lines; each chat begins at another of them and goes round.
        count: how many chats.
        turns: after the first.
        seed: draws paragraphs and questions.
    """
    with gzip.open(questions, "rt", encoding="utf-8") as opened:
        articles = json.load(opened)["data"]
    draw = random.Random(seed)
    paragraphs = [p for a in articles for p in a["paragraphs"] if len(p["qas"]) >= QUESTIONS]
    asking = Asking(instruction=INSTRUCTION, examples=worked_examples(3))
    made = []
    for i, paragraph in enumerate(draw.sample(paragraphs, count)):
        start = i * len(lines) // count
        talk = [lines[(start + n) % len(lines)] for n in range(turns)]
        samples = [
            Sample(
                "question",
                asking.shown(),
                "",
                BETWEEN + asking.question.replace("{question}", asked["question"]),
                " " + asked["answers"][0]["text"],
                "",
            )
            for asked in draw.sample(paragraph["qas"], QUESTIONS)
        ]
        made.append(Chat([paragraph["context"], *talk], samples))
    return made


def written(turns: Sequence[str], first: int = 0) -> str:
    """Turns as `ChatMemory` writes them; `first` is the number of the first of them."""
    roles = ("User", "Assistant")
    return "".join(f"{roles[i % 2]}: {turn}\n" for i, turn in enumerate(turns, first))


def held(asked: Asked, turns: Sequence[str], rate: int) -> ChatMemory:
    """A chat of which every full block is compressed."""
    chat = ChatMemory(asked.model, keep_last=0, rate=rate)
    for i, turn in enumerate(turns):
        chat.add("assistant" if i % 2 else "user", turn)
    return chat


def measure(asked: Asked, made: Sequence[Chat], lengths: Sequence[int] = TURNS) -> Iterator[Chat]:
    """Asks every question of every way of reading each chat after so many turns.

    Yields:
        Each chat when all is asked.
    """
    for i, chat in enumerate(made):
        for turns in lengths:
            for way in ways(asked.model.config.compression_rates):
                places = [
                    {"way": way, "turns": turns, "chat": i, "question": question}
                    for question in range(len(chat.samples))
                ]
                if all(asked.find(**place) for place in places):
                    continue
                own, other = chat.turns[: turns + 1], made[i - 1].turns[: turns + 1]
                started = time.process_time()
                contexts = read(asked, way, chat.samples, own, other, places[0])
                seconds = time.process_time() - started
                for place, sample, context in zip(places, chat.samples, contexts, strict=True):
                    figures = asked.ask(sample, lambda: context, NEW_TOKENS)  # noqa: B023
                    f1 = squad_scores(figures["said"], [figures["answer"]])["f1"]
                    asked.keep({**place, **figures, "f1": f1, "read_s": seconds})
        yield chat


def ways(rates: Sequence[int]) -> list[str]:
    """What the decoder reads of a chat; memories come before what is cut to them."""
    memories = [f"memory, rate {rate}" for rate in rates]
    return [NOTHING, *memories, CONTROL, LAST, ALL]


def read(
    asked: Asked,
    way: str,
    samples: Sequence[Sample],
    turns: Sequence[str],
    other: Sequence[str],
    place: Record,
) -> list[Context]:
    """A context for each question.

    Args:
        asked: of the checkpoint.
        way: of `ways`.
        samples: the questions.
        turns: of the chat.
        other: of another chat.
        place: of the answer, where the memory's prompt tokens are looked up.
    """
    if way == NOTHING:
        return asked.of_text(samples, "")
    if way == ALL:
        return asked.of_text(samples, written(turns).strip())
    if way == LAST:
        memory = asked.find(**{**place, "way": f"memory, rate {COMPARED_RATE}"})
        if memory is None:
            raise ValueError(f"{place} has no memory's answer, which comes first.")
        return asked.of_text(samples, _last(asked, turns, memory["context_tokens"]))
    rate = COMPARED_RATE if way == CONTROL else int(way.rpartition(" ")[2])
    chat = held(asked, other if way == CONTROL else turns, rate)
    waiting = written([turn.content for turn in chat.turns], chat.compressed_turns)
    if chat.memory is None:
        return asked.of_text(samples, waiting.strip())
    return asked.of_memory(samples, chat.memory, waiting.rstrip())


def _last(asked: Asked, turns: Sequence[str], most: int) -> str:
    first = len(turns)
    while first and len(asked.reader.ids(written(turns[first - 1 :], first - 1))) <= most:
        first -= 1
    return written(turns[first:], first).strip()


def table(records: Sequence[Record]) -> str:
    """F1 and nats of a gold token by way and turns, and the prompt tokens that a way takes."""
    header = [
        "turns",
        "what the decoder reads",
        "chats",
        "questions",
        "F1, %",
        "nats",
        "prompt tokens",
    ]
    rows = [
        [turns, way, *_cells(own)]
        for turns in sorted(pages.distinct(records, "turns"))
        for way in pages.distinct(records, "way")
        if (own := pages.chosen(records, way=way, turns=turns))
    ]
    return pages.table(header, rows, left=2).rstrip()


def _cells(records: Sequence[Record]) -> list[str]:
    """Intervals are over chats: the questions of one chat are not independent."""
    by_chat = [pages.chosen(records, chat=chat) for chat in pages.distinct(records, "chat")]

    def f1(some: Sequence[Sequence[Record]]) -> float:
        scores = [record["f1"] for own in some for record in own]
        return sum(scores) / len(scores)

    nats = sum(r["nats"] for r in records) / sum(r["tokens"] for r in records)
    positions = max(r["context_tokens"] for r in records)
    counts = [str(len(by_chat)), str(len(records))]
    return [*counts, pages.interval(with_interval(by_chat, f1), 0), f"{nats:.2f}", f"{positions:,}"]


def main(arguments: list[str] | None = None) -> None:
    """Ask what is missing, and write the table into the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("results", type=Path, help="Folder to go on with.")
    parser.add_argument("--questions", type=Path, required=True, help="SQuAD's layout, gzip.")
    parser.add_argument("--books", required=True, help="Folder or file of held-out books.")
    parser.add_argument("--page", type=Path, required=True, help="Markdown to write into.")
    parser.add_argument("--model", default="smol")
    parser.add_argument("--chats", type=int, default=CHATS, help="So many of the first.")
    given = parser.parse_args(arguments)
    # The book with most talk: the others have too little to fill a chat.
    lines = max(map(spoken_lines, iterate_books(given.books, "validation")), key=len)
    made = chats(given.questions, lines, CHATS, max(TURNS))
    asked = Asked(given.model, given.results / "answers.jsonl")
    for _ in islice(measure(asked, made), given.chats):
        replace_block(given.page, said(asked.records, asked.model.fingerprint))


def said(records: Sequence[Record], fingerprint: str) -> str:
    """The block of the page."""
    made = table(whole(records, "turns", "chat", "question"))
    return (
        f"{made}\n\nCompressor {fingerprint[:12]} in bfloat16. Intervals are over chats; nats are "
        "of a token of the right answer.\n"
    )


if __name__ == "__main__":
    main()
