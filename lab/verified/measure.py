"""What verified memory keeps of exact strings on SmolLM2, and what it costs (docs/verified.md).

    python -m lab.verified.measure runs/verified --books BOOKS --page docs/verified.md

A number, a UUID, a name or a code stands in a passage of a held-out book and is asked for after
worked examples with other strings, from memories, from the text, from the text cut to the memory's
prompt tokens, from another passage's memory and from nothing. Every answer is kept as soon as it is
there, so a stopped run goes on.
"""

from __future__ import annotations

import json
import random
import re
import statistics
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from lab.asked import Asked, Record
from lab.compare.samples import Sample
from lab.data.exact_strings import BOILERPLATE, VALUES, asked_for, places_of, stated
from lab.pages import books_to_page
from lab.verified.page import page
from memslots import Memory, MemslotsModel, verified
from memslots.data.books import iterate_books
from memslots.evaluation.asking import BETWEEN, INSTRUCTION, Asking
from memslots.evaluation.worked_examples import WorkedExample
from memslots.verified.fidelity import read, teacher_forced

DEPTHS = (0.0, 0.5, 1.0)
LENGTHS = (2_000, 8_000)
"""Of passages, in characters."""
FIDELITY = 0.85
FULL, CUT, CONTROL, NOTHING = "full text", "text cut to {}", "control: {}", "nothing"


class Needle(NamedTuple):
    """A string in a passage; `sample.other` is another of its length, with a string of its own."""

    sample: Sample
    value: str
    fields: Record


def needles(books: Sequence[str], rounds: int, lengths: Sequence[int] = LENGTHS) -> list[Needle]:
    """Passages with a string in each, every round of all lengths, depths and kinds.

    Args:
        books: to take passages from.
        rounds: how often other passages and strings are drawn.
        lengths: of passages in characters.
    """
    shown = Asking(instruction=INSTRUCTION, examples=worked_strings()).shown()
    made = []
    for round_ in range(rounds):
        for length in lengths:
            drawn = []
            for depth in DEPTHS:
                for kind, draw in VALUES.items():
                    rng = random.Random(f"{length}-{depth}-{kind}-{round_}")
                    book = rng.choice(books)
                    start = rng.randrange(len(book) - length)
                    parts = re.split(r"(?<=[.!?])\s+", book[start : start + length])
                    place, value = rng.choice(places_of("test")), draw(rng)
                    parts.insert(round(depth * len(parts)), stated(kind, place, value))
                    asked = Asking().question.replace("{question}", asked_for(kind, place))
                    sample = Sample(
                        "question", shown, " ".join(parts), BETWEEN + asked, f" {value}", ""
                    )
                    fields = {"characters": length, "depth": depth, "kind": kind, "round": round_}
                    drawn.append(Needle(sample, value, fields))
            for i, needle in enumerate(drawn):
                other = drawn[i - 1].sample.context
                made.append(needle._replace(sample=needle.sample._replace(other=other)))
    return made


def worked_strings() -> tuple[WorkedExample, ...]:
    """One example of each kind of string, at places of the training split among stock sentences."""
    rng = random.Random(0)
    examples = []
    for kind, draw in VALUES.items():
        place, value = rng.choice(places_of("train")), draw(rng)
        before, after = (rng.choice(BOILERPLATE).partition(". ")[0] for _ in range(2))
        passage = f"{before}. {stated(kind, place, value)} {after}."
        examples.append(WorkedExample(passage, asked_for(kind, place), value))
    return tuple(examples)


def ways(rates: Sequence[int]) -> dict[str, tuple[int, bool]]:
    """Memories by name: their rate, and whether exact spans are kept beside the slots."""
    finest, coarsest = min(rates), max(rates)
    return {
        f"rate {finest}": (finest, False),
        f"rate {coarsest}": (coarsest, False),
        f"rate {coarsest}, exact spans": (coarsest, True),
    }


def measure_strings(asked: Asked, made: Sequence[Needle]) -> Iterator[Needle]:
    """Is the string in what the decoder reads or reads back, and in its answer?

    Yields:
        Each needle when it was asked for in every way.
    """
    model = asked.model
    rates = model.config.compression_rates
    compared = f"rate {max(rates)}, exact spans"
    compressed: dict[str, Memory] = {}  # by text, for the control of the next needle
    for needle in made:
        sample, text = needle.sample, needle.sample.context
        tokens = len(asked.reader.ids(text))
        most = len(asked.reader.ids(sample.answer)) + 4
        for way in [*ways(rates), FULL, CUT.format(compared), CONTROL.format(compared), NOTHING]:
            place = {"way": way, **needle.fields}
            if asked.find(**place):
                continue
            seconds = 0.0
            if way in ways(rates):
                started = time.process_time()
                memory = compress(model, text, *ways(rates)[way])
                seconds = time.process_time() - started
                if way == compared:
                    compressed[text] = memory
                kept = keeps(memory, text, needle.value)
                make = partial(asked.of_memory, [sample], memory)
            elif way == CONTROL.format(compared):
                kept = False
                other = sample.other
                memory = compressed.get(other) or compress(model, other, *ways(rates)[compared])
                make = partial(asked.of_memory, [sample], memory)
            else:
                context = "" if way == NOTHING else text
                if way == CUT.format(compared):
                    positions = asked.find(**{**place, "way": compared})
                    assert positions is not None, "memories come before what is cut to them"
                    context = asked.cut(text, positions["context_tokens"])
                kept = needle.value in context
                make = partial(asked.of_text, [sample], context)
            figures = asked.ask(sample, lambda: make()[0], most)  # noqa: B023
            answered = needle.value in figures["said"]
            asked.keep(
                {
                    **place,
                    **figures,
                    "kept": kept,
                    "answered": answered,
                    "text_tokens": tokens,
                    "compress_s": seconds,
                }
            )
        yield needle


def compress(model: MemslotsModel, text: str, rate: int, keep: bool) -> Memory:
    """A checked memory; names, which are not a kind of `DETECTORS`, are found by a function."""
    exact: list[Any] = ["numbers", "identifiers", names] if keep else []
    return verified.compress(model, text, rate, exact=exact, progress=False)


def names(text: str) -> list[tuple[int, int]]:
    """Two capitalised words in a row, as a user may look for names."""
    return [match.span() for match in re.finditer(r"\b[A-Z][a-z]+ [A-Z][a-z]+\b", text)]


def keeps(memory: Memory, text: str, value: str) -> bool:
    """Whether all of a string comes back: verbatim, as text or read back from the slots."""
    if any(value in literal.text for held in memory.literals for literal in held):
        return True  # held by the segment that it begins in, wherever it ends
    start = text.index(value)
    lost = [place for check in memory.checks if check.text is None for place in check.lost or ()]
    return not any(first < start + len(value) and start < last for first, last in lost)


@torch.no_grad()
def cost_ratios(model: MemslotsModel, text: str) -> list[Record]:
    """CPU seconds of verification at each rate, as a ratio of one prefill of the text; in turns."""
    processor = model.processor
    ids = torch.tensor([processor.decoder_text.encode(text)])
    records = []
    for rate in model.config.compression_rates:
        memory = model.compress(text, rate=rate, progress=False)
        readings = [read(processor, text[s.start : s.end]) for s in memory.segments]
        beside: list[list[int]] = [[] for _ in readings]
        times: dict[str, list[float]] = {"prefill": [], "verify": []}
        for _ in range(4):
            for what in times:
                started = time.process_time()
                if what == "prefill":
                    model.decoder(input_ids=ids, logits_to_keep=1)
                else:
                    teacher_forced(model, memory, readings, beside)
                times[what].append(time.process_time() - started)
        prefill, verify = (statistics.median(one[1:]) for one in times.values())
        records.append({"rate": rate, "tokens": ids.shape[1], "ratio": verify / prefill})
    return records


def lost_tokens(model: MemslotsModel, name: str, text: str) -> Record:
    """Tokens lost at equal prompt tokens: one rate throughout, and as many slots by a budget.

    The rate is the middle one: with the coarsest, no segment can give slots to another.
    """
    rates = sorted(model.config.compression_rates)
    fixed = verified.compress(model, text, rate=rates[len(rates) // 2], exact=[])
    budget = verified.compress(model, text, max_slots=sum(fixed.n_slots))
    served = verified.compress(model, text, fidelity=FIDELITY)
    return {
        "set": name,
        "rate": rates[len(rates) // 2],
        "tokens": sum(c.tokens or 0 for c in fixed.checks),
        "fixed": sum(len(c.lost or ()) for c in fixed.checks),
        "budget": sum(len(c.lost or ()) for c in budget.checks),
        "served": sum(len(c.lost or ()) for c in served.checks if c.text is None),
        "segments": len(fixed.segments),
        "positions": sum(model.memory_positions(fixed)),
        "served_positions": sum(model.memory_positions(served)),
        "as_text": served.segment_rates.count(0),
    }


def check_same_compressor(file: Path, fingerprint: str) -> None:
    """Remember whose results a folder holds; `ValueError` where they are another compressor's."""
    if file.is_file() and (measured := file.read_text("utf-8")) != fingerprint:
        raise ValueError(
            f"{file.parent} holds results of compressor {measured[:12]}, and this one is "
            f"{fingerprint[:12]}; give another folder of results."
        )
    file.write_text(fingerprint, "utf-8")


def main(arguments: list[str] | None = None) -> None:
    """Measure what is missing, then write the page."""
    parser = books_to_page((__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=1, help="Of 24 strings each.")
    given = parser.parse_args(arguments)
    made = needles(list(iterate_books(given.books, "validation")), given.rounds)
    asked = Asked(given.model, given.results / "strings.jsonl")
    cost = given.results / "cost.json"
    check_same_compressor(given.results / "compressor.txt", asked.model.fingerprint)
    if not cost.is_file():
        ratios = cost_ratios(asked.model, made[0].sample.context)
        cost.write_text(json.dumps(ratios), "utf-8")
    costs = json.loads(cost.read_text("utf-8"))
    for _ in measure_strings(asked, made):
        given.page.write_text(page(asked.records, costs, asked.model.fingerprint), "utf-8")


if __name__ == "__main__":
    main()
