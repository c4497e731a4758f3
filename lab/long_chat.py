"""Facts of a chat's first turn, asked after many turns of small talk, from a `ChatMemory`.

    python -m lab.long_chat --people 20 --page docs/how-to/chat.md

Beside it the same decoder reads all turns as text, and the last turns only, as many as take the
positions of the memory at the coarsest rate. People and small talk are of the test split. The table
goes between the page's marks.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch

from lab import pages
from lab.data.conversations import conversation_rows, written
from memslots import ChatMemory, MemslotsModel
from memslots.cli.options import resolve_model
from memslots.evaluation.answering import answer_from_text
from memslots.evaluation.metrics import exact_match, wilson_interval
from memslots.evaluation.report import replace_block

TURNS = (10, 50, 200)
QUESTIONS = 5
NEW_TOKENS = 14


def measure(
    model: MemslotsModel, people: int, turns: int, seed: int
) -> Iterator[tuple[str, list[bool], int]]:
    """Ways of reading chats of so many turns: what they are, which answers are right, positions."""
    rows = list(conversation_rows("test", people, turns=turns, seed=seed, questions=QUESTIONS))
    asked = [
        (row, q, a) for row in rows for q, a in zip(row["question"], row["answer"], strict=True)
    ]
    fewest = 0
    for rate in sorted(model.config.compression_rates, reverse=True):
        for keep_last in (0, 4):
            right, positions = [], 0
            for row in rows:
                chat = ChatMemory(model, keep_last=keep_last, rate=rate)
                for i, turn in enumerate(row["turns"]):
                    chat.add("assistant" if i % 2 else "user", turn)
                positions = max(positions, chat.positions)
                for question, answer in zip(row["question"], row["answer"], strict=True):
                    said = chat.ask(question, remember=False, max_new_tokens=NEW_TOKENS)
                    right.append(exact_match(said, answer))
            fewest = fewest or positions
            kept = f"last {keep_last} turns as text" if keep_last else "no turn kept as text"
            yield f"slots, rate {rate}, {kept}", right, positions
    encode = model.processor.decoder_text.encode
    for name in ("all turns as text", "last turns as text"):
        texts = []
        for row, _, _ in asked:
            turns_read = list(row["turns"])
            while name != "all turns as text" and len(encode(written(turns_read))) > fewest:
                turns_read.pop(0)
            texts.append(written(turns_read).strip())
        answers = answer_from_text(model, texts, [question for _, question, _ in asked], NEW_TOKENS)
        right = [
            exact_match(said, answer) for said, (_, _, answer) in zip(answers, asked, strict=True)
        ]
        yield name, right, max(len(encode(text)) for text in texts)


def table(model: MemslotsModel, people: int, seed: int) -> str:
    """Every way beside every number of turns."""
    cells: dict[str, list[str]] = {}
    for turns in TURNS:
        for name, right, positions in measure(model, people, turns, seed):
            low, high = wilson_interval(sum(right), len(right))
            share = 100 * sum(right) / len(right)
            cell = f"{share:.0f} ({100 * low:.0f} to {100 * high:.0f}), {positions:,}"
            cells.setdefault(name, []).append(cell)
            print(turns, name, cell, flush=True)
    header = ["what the decoder reads", *(f"{turns} turns" for turns in TURNS)]
    rows = [[name, *by_turns] for name, by_turns in cells.items()]
    return pages.table(header, rows, left=len(header)).rstrip()


def main() -> None:
    """Measure, and write the table into the page."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--model", default="tiny")
    arguments.add_argument("--people", type=int, default=20)
    arguments.add_argument("--seed", type=int, default=5)
    arguments.add_argument("--page", type=Path)
    given = arguments.parse_args()
    torch.set_num_threads(1)
    model = MemslotsModel.from_pretrained(resolve_model(given.model)).eval()
    made = table(model, given.people, given.seed)
    print(made)
    if given.page is not None:
        replace_block(given.page, f"{made}\n")


if __name__ == "__main__":
    main()
