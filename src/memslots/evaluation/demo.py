"""The demonstration: notes on six people, one question about each, answered in several ways."""

from __future__ import annotations

import time
from collections.abc import Sequence
from importlib.resources import files
from typing import Any, NamedTuple

from memslots.evaluation.answering import (
    answer_from_memory,
    answer_from_text,
    compare_segments,
    memories_at_rates,
    reconstruct_segments,
)
from memslots.modeling import Memory, MemslotsModel

MAX_NEW_TOKENS = 16


class Asked(NamedTuple):
    """A question about one of the notes' people.

    Args:
        name: of the person.
        question: which names nobody.
        answer: in the words of the notes.
    """

    name: str
    question: str
    answer: str


QUESTIONS = (
    Asked("Joseph Evans", "What is the person's profession?", "professor"),
    Asked("Wendy Webb", "In which city does the person live?", "Danang"),
    Asked("Julia Hill", "How old is the person?", "93"),
    Asked("Alice Davis", "Which languages does the person speak?", "Hebrew and Spanish"),
    Asked("Rosa Rivera", "Which university did the person attend?", "University of Avalon"),
    Asked("William Hardy", "How many drums does the person own?", "960"),
)
"""One for each paragraph of the notes, in order."""


def demo_paragraphs() -> list[str]:
    """The notes, one person a paragraph; no training of the embedded checkpoint showed them."""
    text = files("memslots").joinpath("assets", "demo.txt").read_text("utf-8")
    return text.strip().split("\n\n")


def run_demo(model: MemslotsModel, rates: Sequence[int]) -> dict[str, Any]:
    """Compresses each paragraph at each rate, asks, and reconstructs the first at the finest.

    Args:
        model: A model with its decoder.
        rates: Encoder tokens per slot.

    Returns:
        `rows` (a dict a question: `question`, `expected`, `plain`, `memory` by rate, `another`),
        `memories` by rate, `reconstruction` at the finest rate (see `compare_segments`), and
        `seconds`.
    """
    paragraphs = demo_paragraphs()
    questions = [asked.question for asked in QUESTIONS]
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
                "name": asked.name,
                "question": asked.question,
                "expected": asked.answer,
                "plain": plain[i],
                "memory": {rate: answers[i] for rate, answers in from_memory.items()},
                "another": another[i],
            }
            for i, asked in enumerate(QUESTIONS)
        ],
        "memories": memories,
        "reconstruction": reconstruction,
        "seconds": seconds,
    }
