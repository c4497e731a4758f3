"""Measures verified memory on one checkpoint and writes docs/verified.md (`make tables-verified`).

    python -m lab.verified.measure --results runs/verified --page docs/verified.md --data DATA

Each part is kept as JSON under `--results` and not run again. DATA is a folder with
`books-train.jsonl.gz`, `books-validation.jsonl.gz` and `gsm8k-test.jsonl.gz`; without it the parts
on books and GSM8K are left out. The strings are asked a second time of what the recipe
`exact_strings` trains, since the embedded checkpoint's decoder does not answer with strings that it
never saw.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import re
import statistics
import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from benchmarks.shapes import build, context
from lab.data.conversations import conversation_rows, small_talk
from lab.data.exact_strings import BOILERPLATE, VALUES, asked_for, places_of, stated
from lab.data.personas import join_biographies, personas
from lab.recipes import lab_recipe
from lab.training.run import run_recipe
from lab.verified.page import Record, page
from memslots import Memory, MemslotsModel, verified
from memslots.cli.options import resolve_model
from memslots.evaluation.answering import answer_from_text
from memslots.evaluation.metrics import exact_match
from memslots.verified.fidelity import read, teacher_forced

DEPTHS = (0.0, 0.5, 1.0)
NUMBERS = ("age", "count")
FIDELITY = 0.85
RATES = (4, 8, 16)


def haystacks(books: Sequence[str]) -> dict[str, Callable[[random.Random], list[str]]]:
    """Parts to hide a string between: biographies, dense with facts, and passages of books."""
    people = list(islice(personas("test"), 60))

    def biographies(count: int) -> Callable[[random.Random], list[str]]:
        return lambda rng: [p.text(rng, True) for p in rng.sample(people, count)]

    def passage(characters: int) -> Callable[[random.Random], list[str]]:
        def parts(rng: random.Random) -> list[str]:
            book = rng.choice(books)
            start = rng.randrange(len(book) // 2)
            return re.split(r"(?<=[.!?])\s+", book[start : start + characters])

        return parts

    found = {f"{count} biographies": biographies(count) for count in (2, 5)}
    lengths = (2_000, 8_000) if books else ()
    return found | {f"{n:,} characters of a book": passage(n) for n in lengths}


def needle_texts(samples: int, books: Sequence[str]) -> list[Record]:
    """Texts with one string in them, by what it is hidden in, depth and kind."""
    rows = []
    for hidden_in, make_parts in haystacks(books).items():
        for depth in DEPTHS:
            for kind, make in VALUES.items():
                for sample in range(samples):
                    rng = random.Random(f"{hidden_in}-{depth}-{kind}-{sample}")
                    parts = make_parts(rng)
                    place, value = rng.choice(places_of("test")), make(rng)
                    parts.insert(round(depth * len(parts)), stated(kind, place, value))
                    rows.append(
                        {
                            "text": ("\n\n" if "biographies" in hidden_in else " ").join(parts),
                            "value": value,
                            "kind": kind,
                            "question": asked_for(kind, place),
                            "hidden_in": hidden_in,
                            "depth": depth,
                        }
                    )
    return rows


def ways(model: MemslotsModel, texts: list[str], names: set[str]) -> dict[str, Memory]:
    """Memories of texts: fixed rates, a rate a segment, exact spans, and all of it."""

    def named(text: str) -> list[tuple[int, int]]:
        # Names are no kind of DETECTORS: the user's own function knows them.
        return [(text.find(one), text.find(one) + len(one)) for one in names if one in text]

    spans: list[Any] = ["numbers", "identifiers", named]
    found = {f"fixed rate {rate}": model.compress(texts, rate=rate) for rate in RATES}
    found["per-segment rates"] = verified.compress(model, texts, fidelity=FIDELITY)
    found["rate 16, exact spans"] = verified.compress(model, texts, rate=16, exact=spans)
    found["all together"] = verified.compress(model, texts, fidelity=FIDELITY, exact=spans)
    return found


def cut_texts(
    model: MemslotsModel, texts: list[str], memories: dict[str, Memory]
) -> dict[str, list[str]]:
    """What is left of texts that are cut to the decoder positions that each way's memory takes."""
    encode = model.processor.decoder_text.encode_with_places
    ends = [[end for _, end in encode(text)[1]] for text in texts]
    return {
        f"text cut to {name}": [
            text[: own[min(most, len(own)) - 1]]
            for text, own, most in zip(texts, ends, model.memory_positions(memory), strict=True)
        ]
        for name, memory in memories.items()
    }


def measure_strings(model: MemslotsModel, samples: int, books: Sequence[str]) -> list[Record]:
    """Is the string in what the decoder reads or reads back, and in its answer?"""
    rows = needle_texts(samples, books)
    texts = [row["text"] for row in rows]
    by_way = ways(model, texts, {row["value"] for row in rows if row["kind"] == "name"})
    hits, first = [], 0
    for row, document in zip(rows, by_way["fixed rate 16"].documents, strict=True):
        at = row["text"].index(row["value"])
        end = at + len(row["value"])
        hits += [first + n for n, s in enumerate(document) if s.start < end and at < s.end]
        first += len(document)
    # The segments that an agent would ask for; their exact text is stored or patched.
    whole = by_way["fixed rate 16"]
    asked_for = {i: texts[whole.segments[i].text] for i in hits}
    asked_for = {
        i: t[whole.segments[i].start : whole.segments[i].end] for i, t in asked_for.items()
    }
    by_way["rate 16, expand"] = whole.as_text(asked_for)
    records = []
    asked = [row["question"] for row in rows]
    tokens = whole.n_tokens
    kept_fields = ("value", "kind", "hidden_in", "depth")
    for name, memory in by_way.items():
        backs = model.reconstruct(memory, max_new_tokens=160)
        answers = model.generate(memory=memory, question=asked, max_new_tokens=40)
        positions = model.memory_positions(memory)
        for i, row in enumerate(rows):
            one = memory[i]
            held = [literal.text for own in one.literals for literal in own]
            seen = " ".join([*held, *(text or "" for text in one.segment_texts), backs[i]])
            record = {key: row[key] for key in kept_fields}
            record |= {"way": name, "kept": row["value"] in seen, "tokens": tokens[i]}
            record |= {"answered": row["value"] in answers[i], "positions": positions[i]}
            records.append(record)
    encode = model.processor.decoder_text.encode_with_places
    plain = {"full text": texts, **cut_texts(model, texts, by_way)}
    for name, given in plain.items():
        answers = answer_from_text(model, given, asked, 40)
        for i, (row, text) in enumerate(zip(rows, given, strict=True)):
            record = {key: row[key] for key in kept_fields}
            record |= {"way": name, "kept": row["value"] in text, "tokens": tokens[i]}
            record |= {"answered": row["value"] in answers[i], "positions": len(encode(text)[0])}
            records.append(record)
    return records


def measure_questions(
    model: MemslotsModel, samples: int, compress: Callable[[list[str]], dict[str, Memory]]
) -> list[Record]:
    """Questions about one person each, numbers apart, from the memories that `compress` makes."""
    people = list(islice(personas("test"), samples))
    facts = ("age", "count", "city", "profession", "team")
    texts = [join_biographies([one], random.Random(n)) for n, one in enumerate(people)]
    records = []
    memories = compress(texts)
    plain = {"full text": texts, **cut_texts(model, texts, memories)}
    for name in (*memories, *plain):
        if name in plain:
            positions = [len(model.processor.decoder_text.encode(text)) for text in plain[name]]
        else:
            positions = model.memory_positions(memories[name])
        for fact in facts:
            asked = [one.question(fact, one.name) for one in people]
            if name in plain:
                answers = answer_from_text(model, plain[name], asked, 12)
            else:
                answers = model.generate(memory=memories[name], question=asked, max_new_tokens=12)
            for i, person in enumerate(people):
                record = {"way": name, "number": fact in NUMBERS, "fact": fact}
                record |= {"right": exact_match(answers[i], person.answer(fact))}
                record |= {
                    "positions": positions[i],
                    "tokens": next(iter(memories.values())).n_tokens[i],
                }
                records.append(record)
    return records


def measure_losses(model: MemslotsModel, texts: dict[str, list[str]]) -> list[Record]:
    """Of every text, see `lost_tokens`."""
    return [lost_tokens(model, name, text) for name, own in texts.items() for text in own]


def lost_tokens(model: MemslotsModel, name: str, text: str) -> Record:
    """Tokens lost at equal positions: rate 8 throughout, and the same slots spent by a budget."""
    fixed = verified.compress(model, text, rate=8, exact=[])
    budget = verified.compress(model, text, max_slots=sum(fixed.n_slots))
    served = verified.compress(model, text, fidelity=FIDELITY)
    return {
        "set": name,
        "tokens": sum(c.tokens or 0 for c in fixed.checks),
        "fixed": sum(len(c.lost or ()) for c in fixed.checks),
        "budget": sum(len(c.lost or ()) for c in budget.checks),
        "served": sum(len(c.lost or ()) for c in served.checks if c.text is None),
        "segments": len(fixed.segments),
        "positions": sum(model.memory_positions(fixed)),
        "served_positions": sum(model.memory_positions(served)),
        "as_text": served.segment_rates.count(0),
    }


def measure_cost(
    model: MemslotsModel,
    texts: dict[str, list[str]],
    lengths: Sequence[int] = (1024, 4096, 8192),
    preset: str = "small",
) -> list[Record]:
    """Cost ratios of the checkpoint on its texts, and of a larger decoder by length of the text."""
    records = [
        {"set": name, "measured": "texts", **record}
        for name, own in texts.items()
        for text in own[:2]
        for record in cost_ratios(model, text)
    ]
    shaped = build(preset, "cpu", torch.float32)
    return records + [
        {"set": f"{length:,} tokens", "measured": "shapes", **record}
        for length in lengths
        for record in cost_ratios(shaped, context(length))
    ]


@torch.no_grad()
def cost_ratios(model: MemslotsModel, text: str) -> list[Record]:
    """Seconds of verification at each rate, as a ratio of one prefill of the text; in turns."""
    processor = model.processor
    ids = torch.tensor([processor.decoder_text.encode(text)])
    records = []
    for rate in model.config.compression_rates:
        memory = model.compress(text, rate=rate)
        readings = [read(processor, text[s.start : s.end]) for s in memory.segments]
        beside: list[list[int]] = [[] for _ in readings]
        times: dict[str, list[float]] = {"prefill": [], "verify": []}
        for _ in range(4):
            for what in times:
                started = time.perf_counter()
                if what == "prefill":
                    model.decoder(input_ids=ids, logits_to_keep=1)
                else:
                    teacher_forced(model, memory, readings, beside)
                times[what].append(time.perf_counter() - started)
        prefill, verify = (statistics.median(one[1:]) for one in times.values())
        records.append({"rate": rate, "ratio": verify / prefill})
    return records


def read_books(data: Path | None) -> list[str]:
    """Books that nothing here was trained on; none without `data`."""
    if data is None:
        return []
    with gzip.open(data / "books-validation.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line)["text"] for line in file]


def passages(data: Path | None, samples: int) -> dict[str, list[str]]:
    """Texts of several segments by kind: biographies, and what `data` has."""
    people = list(islice(personas("test"), 3 * samples))
    found = {
        "biographies": [
            "\n\n".join(p.text(random.Random(i), True) for p in people[3 * i : 3 * i + 3])
            for i in range(samples)
        ]
    }
    rng = random.Random("letters")
    found["letters"] = [
        " ".join(
            [
                *rng.sample(BOILERPLATE, 3),
                people[i].text(rng, True),
                *(small_talk("test", rng) for _ in range(8)),
            ]
        )
        for i in range(samples)
    ]
    talks = conversation_rows("test", samples, turns=40)
    found["conversations"] = [row["context"] for row in talks]
    if data is not None:
        with gzip.open(data / "gsm8k-test.jsonl.gz", "rt", encoding="utf-8") as file:
            rows = [json.loads(line) for line in islice(file, 6 * samples)]
        found["GSM8K"] = [
            "\n\n".join(f"{r['question']} {r['answer']}" for r in rows[6 * i : 6 * i + 6])
            for i in range(samples)
        ]
        found["books"] = [book[20_000:22_500] for book in read_books(data)[:samples]]
        found["mixed"] = [
            "\n\n".join(parts)
            for parts in zip(found["biographies"], found["GSM8K"], found["books"], strict=False)
        ]
    return found


def check_same_compressor(file: Path, fingerprint: str) -> None:
    """Remember whose results a folder holds; `ValueError` where they are another compressor's."""
    if file.is_file() and (measured := file.read_text("utf-8")) != fingerprint:
        raise ValueError(
            f"{file.parent} holds results of compressor {measured[:12]}, and this one is "
            f"{fingerprint[:12]}; give another --results."
        )
    file.write_text(fingerprint, "utf-8")


def main() -> None:
    """Measure what is missing, then write the page."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--results", type=Path, default=Path("runs/verified"))
    arguments.add_argument("--page", type=Path, default=Path("docs/verified.md"))
    arguments.add_argument("--data", type=Path)
    arguments.add_argument("--model", default="tiny")
    arguments.add_argument("--samples", type=int, default=2)
    given = arguments.parse_args()
    model = MemslotsModel.from_pretrained(resolve_model(given.model)).eval()
    texts = passages(given.data, 4 * given.samples)
    books = read_books(given.data)

    def strings_after_training() -> list[Record]:
        folder = run_recipe(
            lab_recipe("exact_strings"),
            given.results / "exact_strings",
            books=None if given.data is None else str(given.data),
        )
        trained = MemslotsModel.from_pretrained(folder).eval()
        return measure_strings(trained, given.samples, books)

    parts: dict[str, Callable[[], list[Record]]] = {
        "losses": lambda: measure_losses(model, texts),
        "questions": lambda: measure_questions(
            model, 15 * given.samples, lambda texts: ways(model, texts, set())
        ),
        "strings": lambda: measure_strings(model, given.samples, books),
        "strings_after_training": strings_after_training,
        "cost": lambda: measure_cost(model, texts),
    }
    given.results.mkdir(parents=True, exist_ok=True)
    check_same_compressor(given.results / "compressor.txt", model.fingerprint)
    results = {}
    for name, measure in parts.items():
        file = given.results / f"{name}.json"
        if not file.is_file():
            file.write_text(json.dumps(measure()), "utf-8")
        results[name] = json.loads(file.read_text("utf-8"))
    given.page.write_text(page(results, model.fingerprint), "utf-8")


if __name__ == "__main__":
    main()
