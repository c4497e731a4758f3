"""The demonstration on the embedded checkpoint: notes on people that training never showed."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from typing import Any

from memslots.data.personas import Persona, distinct_people, personas
from memslots.evaluation.answering import (
    answer_from_memory,
    answer_from_text,
    compare_segments,
    memories_at_rates,
    reconstruct_segments,
)
from memslots.modeling import Memory, MemslotsModel

DEMO_SEED = 70_000
ASKED = ("profession", "city", "age", "languages", "university", "count")
"""The fact asked about each person of the notes, in order."""

MAX_NEW_TOKENS = 16


def demo_people() -> list[tuple[Persona, str]]:
    """The people of `assets/demo.txt`, all of the test split, and their paragraphs."""
    people = distinct_people(personas("test", seed=DEMO_SEED), len(ASKED))
    return [
        (person, person.text(random.Random(f"memslots-demo-{index}")))
        for index, person in enumerate(people)
    ]


def demo_text() -> str:
    """What `assets/demo.txt` holds: one person a paragraph."""
    return "\n\n".join(text for _, text in demo_people()) + "\n"


def run_demo(model: MemslotsModel, text: str, rates: Sequence[int]) -> dict[str, Any]:
    """Compresses each paragraph at each rate, asks, and reconstructs the first at the finest.

    Args:
        model: A model with its decoder.
        text: The notes as read from the file; paragraphs are parted by blank lines.
        rates: Encoder tokens per slot.

    Returns:
        `rows` (a dict a question: `question`, `expected`, `plain`, `memory` by rate, `another`),
        `memories` by rate, `reconstruction` at the finest rate (see `compare_segments`), and
        `seconds`.

    Raises:
        ValueError: The text is not that of `demo_people`, so no expected answer is known.
    """
    people = demo_people()
    paragraphs = [part for part in text.strip().split("\n\n") if part.strip()]
    if paragraphs != [paragraph for _, paragraph in people]:
        raise ValueError("the demo's text was changed; use `memslots ask` for a text of your own.")
    asked = [(person, fact) for (person, _), fact in zip(people, ASKED, strict=True)]
    questions = [person.question(fact) for person, fact in asked]
    seconds: dict[str, float] = {}
    started = time.perf_counter()
    memories = memories_at_rates(model, paragraphs, rates)
    seconds["compressing"] = time.perf_counter() - started
    started = time.perf_counter()
    plain = answer_from_text(model, paragraphs, questions, MAX_NEW_TOKENS)
    seconds["answering from the full text"] = time.perf_counter() - started
    started = time.perf_counter()
    from_memory = {
        rate: answer_from_memory(model, memory, questions, MAX_NEW_TOKENS)
        for rate, memory in memories.items()
    }
    seconds["answering from memory, each rate"] = (time.perf_counter() - started) / len(memories)
    finest = memories[min(memories)]
    shifted = Memory.cat([finest[1:], finest[:1]])  # everyone gets the next one's memory
    another = answer_from_memory(model, shifted, questions, MAX_NEW_TOKENS)
    started = time.perf_counter()
    # At the finest rate alone: it is the one that learned to reconstruct (`reconstruction_rates`).
    first = finest[:1]
    produced = reconstruct_segments(model, first)
    reconstruction = {finest.rate: compare_segments(model, first, paragraphs[:1], produced)}
    seconds["reconstructing"] = time.perf_counter() - started
    return {
        "rows": [
            {
                "name": person.name,
                "question": questions[i],
                "expected": person.answer(fact),
                "plain": plain[i],
                "memory": {rate: answers[i] for rate, answers in from_memory.items()},
                "another": another[i],
            }
            for i, (person, fact) in enumerate(asked)
        ],
        "memories": memories,
        "reconstruction": reconstruction,
        "seconds": seconds,
    }
