"""Samples that every method reads: questions about articles, and passages with what follows them.

python -m lab.compare.samples OUTPUT --questions xquad.json.gz --books books.jsonl.gz
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
from itertools import accumulate, chain
from pathlib import Path
from typing import NamedTuple

PASSAGE_TOKENS = 320
FOLLOWING_TOKENS = 64
CUE_TOKENS = 4


class Sample(NamedTuple):
    """A context between other words.

    Args:
        task: "question" or "following".
        shown: what stands before the context: instruction and worked examples.
        context: what is compressed.
        asked: what stands after it.
        answer: what is scored after that.
        other: another sample's context, the control.
    """

    task: str
    shown: str
    context: str
    asked: str
    answer: str
    other: str


def read_samples(file: Path) -> list[Sample]:
    """What `main` wrote."""
    with file.open(encoding="utf-8") as lines:
        return [Sample(**json.loads(line)) for line in lines]


def question_samples(file: Path, count: int, seed: int) -> list[Sample]:
    """Questions in SQuAD's layout, one a paragraph, in the yardstick's words."""
    from memslots.evaluation.asking import BETWEEN, INSTRUCTION, Asking
    from memslots.evaluation.worked_examples import worked_examples

    with gzip.open(file, "rt", encoding="utf-8") as opened:
        articles = json.load(opened)["data"]
    paragraphs = [paragraph for article in articles for paragraph in article["paragraphs"]]
    draw = random.Random(seed)
    draw.shuffle(paragraphs)
    paragraphs = paragraphs[:count]
    words = Asking(instruction=INSTRUCTION, examples=worked_examples(3))
    samples = []
    for i, paragraph in enumerate(paragraphs):
        asked = draw.choice(paragraph["qas"])
        samples.append(
            Sample(
                "question",
                words.shown(),
                paragraph["context"],
                BETWEEN + words.question.replace("{question}", asked["question"]),
                " " + asked["answers"][0]["text"],
                paragraphs[i - 1]["context"],
            )
        )
    return samples


def following_samples(file: Path, count: int, seed: int, decoder: str) -> list[Sample]:
    """Passages of books, the first words of what follows, and what follows these."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(decoder)
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        books = [json.loads(line)["text"] for line in lines]
    draw = random.Random(seed)
    pieces: list[list[str]] = []
    while len(pieces) < count:
        book = draw.choice(books)
        start = draw.randrange(max(1, len(book) - 4000))
        ids = tokenizer(book[start : start + 4000], add_special_tokens=False)["input_ids"]
        ends = list(accumulate((PASSAGE_TOKENS, CUE_TOKENS, FOLLOWING_TOKENS)))
        if len(ids) >= ends[-1]:
            parts = zip((0, *ends), ends, strict=False)
            pieces.append([tokenizer.decode(ids[first:end]) for first, end in parts])
    return [
        Sample("following", "", context, cue, after, pieces[i - 1][0])
        for i, (context, cue, after) in enumerate(pieces)
    ]


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    from memslots.smollm2 import smollm2

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("output", type=Path, help="JSON lines to write.")
    parser.add_argument("--questions", type=Path, required=True, help="SQuAD's layout, gzip.")
    parser.add_argument("--books", type=Path, required=True, help="books-validation.jsonl.gz")
    parser.add_argument("--count", type=int, default=40, help="Samples of each task.")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    questions = question_samples(options.questions, options.count, options.seed)
    passages = following_samples(options.books, options.count, options.seed, smollm2())
    # In turns, so that a run that is stopped has both.
    samples = chain.from_iterable(zip(questions, passages, strict=True))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with options.output.open("w", encoding="utf-8") as file:
        for sample in samples:
            file.write(json.dumps(sample._asdict(), ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
