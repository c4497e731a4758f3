"""The suite of the embedded checkpoint: held-out people, exact match, free-running reconstruction.

Every condition answers the same questions, greedily: the full text, the memory at each rate,
another person's memory, and none. The last two say how much a right answer owes to the slots. The
people are of the test split, so their names are in no training context, and the seed is this
suite's own.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lab.data.personas import FACTS, persona_rows
from memslots.data.books import iterate_books
from memslots.evaluation.answering import (
    answer_from_memory,
    answer_from_text,
    compare_segments,
    memories_at_rates,
    processor_of,
    reconstruct_segments,
)
from memslots.evaluation.machine import describe_checkpoint, describe_machine
from memslots.evaluation.metrics import exact_match, score
from memslots.modeling import Memory, MemslotsModel

SUITE_SEED = 60_000
"""No other part of the project draws people or rows from this seed."""

RATES = (4, 8, 16)
NUMBERS = ("age", "count")
"""Facts that are digits; they are reported apart, since numbers are lost first."""

MANY_PEOPLE = 4
LONG_CONTEXT_TOKENS = 1024

Row = dict[str, Any]
Progress = Callable[[str], None]


def evaluate_tiny(
    model: MemslotsModel,
    n_questions: int = 1000,
    seed: int = SUITE_SEED,
    rates: Sequence[int] = RATES,
    n_reconstructions: int = 200,
    n_many: int = 200,
    long_context_tokens: int = LONG_CONTEXT_TOKENS,
    books: str | Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measures a compressor and its decoder on people whom neither has seen.

    Args:
        model: A model with its decoder.
        n_questions: Questions about one person each, every one on a context of its own.
        seed: Draws people, texts and questions.
        rates: Encoder tokens per slot; those that the checkpoint was not trained for are left out
            and listed in the results.
        n_reconstructions: How many of the contexts are reconstructed at each rate.
        n_many: Questions about contexts of four people, and again about long contexts; 0 leaves
            both out.
        long_context_tokens: Decoder tokens of a long context, about.
        books: A book file or folder; passages of its validation books are reconstructed as well.
        progress: Called with a line before each part.

    Returns:
        Everything as plain dicts and numbers, ready for JSON. See `report` for how it reads.

    Raises:
        ValueError: No decoder, or none of the rates.
    """
    started = time.perf_counter()
    say = progress or (lambda line: None)
    if not model.has_decoder:
        raise ValueError("the suite needs the decoder; load the model with load_decoder=True.")
    known = [rate for rate in rates if rate in model.config.compression_rates]
    if not known:
        raise ValueError(
            f"the checkpoint was trained for rates {list(model.config.compression_rates)}, and the "
            f"suite measures {list(rates)}; give rates=... that it has."
        )
    rows = list(persona_rows("test", n_questions, seed=seed))
    say(f"one person a context, {n_questions} questions")
    one, memories = _one_person(model, rows, known, say)
    results: dict[str, Any] = {
        "suite": "tiny",
        "seed": seed,
        "rates": known,
        "rates_missing": [rate for rate in rates if rate not in known],
        "questions": n_questions,
        "checkpoint": describe_checkpoint(model),
        "one_person": one,
    }
    texts = [row["context"] for row in rows]
    chosen = min(n_reconstructions, n_questions)
    results["reconstruction"] = {}
    for rate, memory in memories.items():
        say(f"reconstruction of {chosen} contexts at rate {rate}")
        results["reconstruction"][str(rate)] = reconstruction_scores(
            model, memory[:chosen], texts[:chosen]
        )
    results["slots"] = {
        str(rate): slot_counts(model, memory, texts) for rate, memory in memories.items()
    }
    if n_many:
        results["many_people"] = _many_people(model, n_many, seed, known, long_context_tokens, say)
    if books is not None:
        say("reconstruction of book passages")
        results["books"] = _book_passages(model, books, chosen, seed, known)
    results["machine"] = describe_machine(model)
    results["seconds"] = round(time.perf_counter() - started, 1)
    return results


def _one_person(
    model: MemslotsModel, rows: list[Row], rates: list[int], say: Progress
) -> tuple[dict[str, Any], dict[int, Memory]]:
    questions = [row["question"] for row in rows]
    limit = _answer_limit(model, rows)
    say("plain text")
    conditions: dict[str, Any] = {
        "plain": _condition(
            rows, lambda: answer_from_text(model, [r["context"] for r in rows], questions, limit)
        )
    }
    started = time.perf_counter()
    memories = memories_at_rates(model, [row["context"] for row in rows], rates)
    conditions["compress_seconds"] = round(time.perf_counter() - started, 2)
    conditions["memory"] = {}
    for rate, memory in memories.items():
        say(f"memory at rate {rate}")
        conditions["memory"][str(rate)] = _condition(
            rows, partial(answer_from_memory, model, memory, questions, limit)
        )
    say("another person's memory, and none")
    others = model.compress([row["other_context"] for row in rows], min(rates), progress=False)
    conditions["another"] = _condition(
        rows, lambda: answer_from_memory(model, others, questions, limit)
    )
    conditions["another"]["rate"] = others.rate
    conditions["none"] = _condition(
        rows, lambda: answer_from_text(model, [None] * len(rows), questions, limit)
    )
    return conditions, memories


def _many_people(
    model: MemslotsModel, n: int, seed: int, rates: list[int], tokens: int, say: Progress
) -> dict[str, Any]:
    """Contexts of four people, and of as many as take about `tokens` decoder tokens."""
    encode = processor_of(model).decoder_text.encode
    sample = [row["context"] for row in persona_rows("test", 20, seed=seed)]
    one = sum(len(encode(text)) for text in sample) / len(sample)
    results: dict[str, Any] = {}
    for name, people in (("few", MANY_PEOPLE), ("long", max(2, round(tokens / one)))):
        say(f"contexts of {people} people, {n} questions")
        rows = list(persona_rows("test", n, people=people, seed=seed))
        conditions, memories = _one_person(model, rows, rates, lambda line: None)
        texts = [row["context"] for row in rows]
        results[name] = {
            "people": people,
            "questions": n,
            **conditions,
            "slots": {str(rate): slot_counts(model, m, texts) for rate, m in memories.items()},
        }
    return results


def _book_passages(
    model: MemslotsModel, books: str | Path, n: int, seed: int, rates: list[int]
) -> dict[str, Any]:
    """Reconstruction of one segment each, from anywhere in the validation books."""
    rng = random.Random(f"memslots-suite-books-{seed}")
    texts = list(iterate_books(books, split="validation", limit=20))
    passages = []
    for _ in range(n):
        text = rng.choice(texts)
        start = rng.randrange(max(1, len(text) - 8 * model.config.segment_length))
        piece = text[start : start + 8 * model.config.segment_length].lstrip()
        span = processor_of(model).segment(piece)[0]
        passages.append(piece[span.start : span.end])
    return {
        str(rate): reconstruction_scores(model, memory, passages)
        for rate, memory in memories_at_rates(model, passages, rates).items()
    }


def reconstruction_scores(
    model: MemslotsModel, memory: Memory, texts: Sequence[str]
) -> dict[str, Any]:
    """How much of the texts comes back, free-running, in the decoder's tokens.

    Args:
        model: The compressor that wrote `memory`.
        memory: Memory of `texts`.
        texts: What was compressed.

    Returns:
        `tokens`, `tokens_right` (share at its own position), `tokens_aligned` (share found in
        order), `segments_exact` (a score) and `seconds`.
    """
    started = time.perf_counter()
    produced = reconstruct_segments(model, memory)
    segments = compare_segments(model, memory, texts, produced)
    tokens = sum(len(segment["tokens"]) for segment in segments)
    return {
        "texts": len(texts),
        "tokens": tokens,
        # No interval here: the tokens of one segment are not independent.
        "tokens_right": round(sum(sum(s["right"]) for s in segments) / tokens, 4),
        "tokens_aligned": round(sum(s["aligned"] for s in segments) / tokens, 4),
        "segments_exact": score([s["exact"] for s in segments]),
        "seconds": round(time.perf_counter() - started, 2),
    }


def slot_counts(model: MemslotsModel, memory: Memory, texts: Sequence[str]) -> dict[str, float]:
    """Means a context: tokens of both tokenizers, slots, and what the decoder reads.

    `effective_rate` is what the decoder saves: its own tokens of the text for each position that
    it reads instead, markers counted.
    """
    n = len(texts)
    encode = processor_of(model).decoder_text.encode
    decoder_tokens = sum(len(encode(text)) for text in texts)
    positions = sum(model.memory_positions(memory))
    return {
        "encoder_tokens": round(sum(memory.n_tokens) / n, 1),
        "decoder_tokens": round(decoder_tokens / n, 1),
        "slots": round(sum(memory.n_slots) / n, 1),
        "positions": round(positions / n, 1),
        "effective_rate": round(decoder_tokens / positions, 2),
    }


def _condition(rows: list[Row], answer: Callable[[], list[str]]) -> dict[str, Any]:
    """Exact match of one condition: in all, numbers and words apart, and each fact."""
    started = time.perf_counter()
    answers = answer()
    seconds = time.perf_counter() - started
    right = [exact_match(a, row["answer"]) for a, row in zip(answers, rows, strict=True)]
    kinds = [row["fact"] for row in rows]
    by_fact = {
        fact: score([ok for ok, kind in zip(right, kinds, strict=True) if kind == fact])
        for fact in FACTS
        if fact in kinds
    }
    return {
        "all": score(right),
        "numbers": score([ok for ok, k in zip(right, kinds, strict=True) if k in NUMBERS]),
        "words": score([ok for ok, k in zip(right, kinds, strict=True) if k not in NUMBERS]),
        "facts": by_fact,
        "seconds": round(seconds, 2),
    }


def _answer_limit(model: MemslotsModel, rows: list[Row]) -> int:
    """New tokens to allow: one more than the longest right answer and its EOS."""
    return 1 + max(len(processor_of(model).answer_ids(row["answer"])) for row in rows)
