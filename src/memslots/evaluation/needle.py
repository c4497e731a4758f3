"""Needle in a haystack for exact strings: what compression loses first, by depth and length.

One sentence with a string that cannot be guessed stands in a long text of books; the question asks
for the string, and only the string itself is right (after Kamradt 2023 and RULER, Hsieh et al.
2024, whose single-key task this is, with numbers, UUIDs and names as values).
"""

from __future__ import annotations

import random
import re
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from memslots.evaluation.answering import processor_of
from memslots.evaluation.conditions import conditions
from memslots.evaluation.intervals import with_interval
from memslots.modeling import MemslotsModel

SENTENCE = "The secret {kind} of the {place} is {value}."
QUESTION = "What is the secret {kind} of the {place}?"
PLACES = "castle harbor library mill bridge garden tower market station museum".split()

FIRST_NAMES = (
    "Amir Bela Carla Dora Elias Fatima Goran Hana Ivan Jonas Kofi Lena Mira Noor Oskar Petra "
    "Quentin Rosa Samir Tomas Uma Vera Wanda Yusuf Zoe"
).split()
LAST_NAMES = (
    "Adler Bianchi Costa Diallo Eriksen Fischer Garcia Haddad Ivanov Jensen Kowalski Lindgren "
    "Moreau Novak Okafor Petrov Quist Romano Santos Tanaka Ueda Varga Weber Yilmaz Zhang"
).split()

VALUES: dict[str, Callable[[random.Random], str]] = {
    "number": lambda rng: str(rng.randint(10**6, 10**7 - 1)),
    "uuid": lambda rng: str(uuid.UUID(int=rng.getrandbits(128), version=4)),
    "name": lambda rng: f"{rng.choice(FIRST_NAMES)} {rng.choice(LAST_NAMES)}",
}


def needle_rows(
    model: MemslotsModel,
    haystack: Sequence[str],
    lengths: Sequence[int],
    depths: Sequence[float],
    kinds: Sequence[str] = tuple(VALUES),
    samples: int = 1,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Contexts with one needle each.

    Args:
        model: its decoder's tokenizer measures the lengths.
        haystack: long texts.
        lengths: decoder tokens of the contexts, needle included, about.
        depths: where the needle stands, from 0 (the beginning) to 1.
        kinds: of values, of `VALUES`.
        samples: contexts for each length, depth and kind.
        seed: draws texts, places and values.

    Raises:
        ValueError: an unknown kind, or texts that are shorter than the longest context.
    """
    unknown = sorted(set(kinds) - set(VALUES))
    if unknown:
        raise ValueError(f"needle kinds {unknown} are unknown; choose from {', '.join(VALUES)}.")
    processor = processor_of(model)
    sentences = [re.split(r"(?<=[.!?])\s+", " ".join(text.split())) for text in haystack]
    rows = []
    for length in lengths:
        for depth in depths:
            for kind in kinds:
                for sample in range(samples):
                    rng = random.Random(f"needle-{seed}-{length}-{depth}-{kind}-{sample}")
                    place = rng.choice(PLACES)
                    value = VALUES[kind](rng)
                    needle = SENTENCE.format(kind=kind, place=place, value=value)
                    kept = _fill(processor.decoder_text.encode, sentences, length, needle, rng)
                    kept.insert(round(depth * len(kept)), needle)
                    rows.append(
                        {
                            "context": " ".join(kept),
                            "question": QUESTION.format(kind=kind, place=place),
                            "answer": value,
                            "length": length,
                            "depth": depth,
                            "kind": kind,
                        }
                    )
    return rows


def needle_in_a_haystack(
    model: MemslotsModel,
    rows: Sequence[dict[str, Any]],
    rates: Sequence[int],
    baselines: Sequence[str] = ("full", "none", "another"),
    max_new_tokens: int = 48,
    data: str = "",
) -> list[dict[str, Any]]:
    """Share of needles found, by length, depth and kind, as records of `tasks`.

    Args:
        model: the compressor with its decoder.
        rows: of `needle_rows`.
        rates: encoder tokens per slot.
        baselines: see `conditions`.
        max_new_tokens: longest answer; found means that the value stands in it.
        data: name of the haystack's set, for the records.
    """
    records = []
    questions = [row["question"] for row in rows]
    for condition in conditions(model, [row["context"] for row in rows], rates, baselines):
        answers = condition.answers(model, questions, max_new_tokens)
        hits = [float(row["answer"] in a) for a, row in zip(answers, rows, strict=True)]
        cells = sorted({(row["length"], row["depth"], row["kind"]) for row in rows})
        for length, depth, kind in cells:
            cell_hits = [
                hit
                for hit, row in zip(hits, rows, strict=True)
                if (row["length"], row["depth"], row["kind"]) == (length, depth, kind)
            ]
            records.append(
                {
                    "task": "needle",
                    "data": data,
                    "condition": condition.name,
                    "rate": condition.rate,
                    "length": length,
                    "depth": depth,
                    "kind": kind,
                    "metric": "found",
                    **with_interval(cell_hits),
                    "positions": round(condition.positions, 1),
                }
            )
    return records


def _fill(
    encode: Callable[[str], list[int]],
    texts: Sequence[Sequence[str]],
    length: int,
    needle: str,
    rng: random.Random,
) -> list[str]:
    """Sentences of one text from a random place on, up to `length` tokens with the needle."""
    room = length - len(encode(needle))
    for text in rng.sample(list(texts), len(texts)):
        start = rng.randrange(max(1, len(text) // 2))
        kept: list[str] = []
        used = 0
        for sentence in text[start:]:
            used += len(encode(" " + sentence))
            if used > room:
                return kept
            kept.append(sentence)
    raise ValueError(
        f"no text is long enough for a context of {length} tokens; give longer texts or shorter "
        "lengths."
    )
