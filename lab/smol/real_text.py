"""What the slots of `smol` keep of books that they were not trained on: forward passes alone.

    python -m lab.smol.real_text runs/real_text --books FOLDER --page docs/smollm2.md

How well the second half of a passage is foreseen (PCC, table A1), which tokens each segment gives
back, what the decoder repeats by itself (figure 2, table A5), what a rate for each segment saves.
Each part is kept as JSON and not run again.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from lab.pages import books_to_page, chosen, distinct, interval, render
from lab.verified.measure import check_same_compressor, lost_tokens
from memslots import MemslotsModel
from memslots.cli.options import resolve_model
from memslots.data import TextRow
from memslots.data.books import iterate_books
from memslots.evaluation.conditions import BASELINES
from memslots.evaluation.intervals import with_interval
from memslots.evaluation.metrics import bleu_counts, bleu_of_counts
from memslots.evaluation.sample_log import SampleLog
from memslots.evaluation.tasks import completion
from memslots.verified.fidelity import read, teacher_forced

Record = dict[str, Any]

LENGTHS = (256, 512)
PASSAGE_CHARACTERS = 1200
SHOWN_CHARACTERS = 600


def measure_following(
    model: MemslotsModel, books: Sequence[str], samples: int, partial: Path
) -> list[Record]:
    """Perplexity of second halves by length, rate and what is read of the first (table A1)."""
    rates = model.config.compression_rates
    settings = {"checkpoint": model.fingerprint, "samples": samples, "lengths": list(LENGTHS)}
    log = SampleLog(partial, settings, print, batch=2)
    rows: list[TextRow] = [
        {"id": str(number), "text": book[: 400 * samples * max(LENGTHS)]}
        for number, book in enumerate(books)
    ]
    return completion(model, rows, rates, LENGTHS, "books", BASELINES, samples, log)


def passages(books: Sequence[str], count: int) -> list[str]:
    """Passages evenly out of the books, in turns."""
    rounds = -(-count // len(books))
    return [
        book[start : start + PASSAGE_CHARACTERS]
        for place in range(rounds)
        for book in books
        for start in [len(book) * (place + 1) // (rounds + 1)]
    ][:count]


@torch.no_grad()
def measure_fidelity(model: MemslotsModel, texts: Sequence[str]) -> list[Record]:
    """Tokens of each segment that come back teacher-forced, by rate, and by another's memory."""
    records = []
    for rate in model.config.compression_rates:
        memory = model.compress(list(texts), rate=rate)
        readings = [read(model.processor, texts[s.text][s.start : s.end]) for s in memory.segments]
        beside: list[list[int]] = [[] for _ in readings]
        right = teacher_forced(model, memory, readings, beside)
        # The control: each segment is asked of the slots of the one before it.
        shifted = [*readings[1:], readings[0]]
        control = teacher_forced(model, memory, shifted, beside)
        control = [control[-1], *control[:-1]]
        without = teacher_forced(model, None, readings, beside)
        for number, segment in enumerate(memory.segments):
            records.append(
                {
                    "rate": rate,
                    "text": segment.text,
                    "segment": sum(s.text == segment.text for s in memory.segments[:number]),
                    "tokens": len(right[number]),
                    "right": sum(right[number]),
                    "another": sum(control[number]),
                    "none": sum(without[number]),
                    "slots": segment.slots,
                }
            )
    return records


def measure_repeated(model: MemslotsModel, texts: Sequence[str]) -> list[Record]:
    """What the decoder writes from the slots of each text, and what BLEU counts of it, by rate."""
    records = []
    for rate in model.config.compression_rates:
        memory = model.compress(list(texts), rate=rate)
        for text, repeated in zip(texts, model.reconstruct(memory), strict=True):
            counts = bleu_counts(repeated, text)
            records.append({"rate": rate, "text": text, "repeated": repeated, "counts": counts})
    return records


def bleu(records: Sequence[Record]) -> float:
    """Of all records together, from 0 to 1."""
    return bleu_of_counts([record["counts"] for record in records]) / 100


def one_line(text: str) -> str:
    """The beginning of a text with single spaces, as a line of Markdown shows it."""
    return textwrap.shorten(text, SHOWN_CHARACTERS, placeholder=" ...")


def share_right(records: Sequence[Record], key: str) -> str:
    """Share of tokens with its interval over segments, in percent."""

    def share(some: Sequence[Record]) -> float:
        return sum(r[key] for r in some) / sum(r["tokens"] for r in some)

    return interval(with_interval(list(records), share))


def page(results: dict[str, list[Record]], fingerprint: str) -> str:
    """docs/smollm2.md; without `losses` it leaves their section out."""
    following, fidelity, repeated = (
        results[part] for part in ("following", "fidelity", "repeated")
    )
    by_condition = []
    for record in chosen(following, metric="perplexity"):
        place = {key: record[key] for key in ("condition", "rate", "length")}
        closed = chosen(following, metric="nats_gap_closed", **place)
        by_condition.append({**record, "share": closed[0] if closed else None})
    rates = distinct(fidelity, "rate")
    by_rate: list[list[Any]] = []
    by_segment: list[list[Any]] = []
    for rate in rates:
        own = chosen(fidelity, rate=rate)
        tokens, slots = (sum(record[key] for record in own) for key in ("tokens", "slots"))
        come_back = [share_right(own, key) for key in ("right", "another", "none")]
        cut = f"{100 * min(1.0, slots / tokens):.1f}"
        by_rate.append([rate, len(own), tokens, f"{tokens / slots:.2f}", *come_back, cut])
    for place in sorted(distinct(fidelity, "segment")):
        own = chosen(fidelity, segment=place)
        come_back = [share_right(chosen(own, rate=rate), "right") for rate in rates]
        by_segment.append([place + 1, len(chosen(own, rate=rates[0])), *come_back])
    return render(
        Path(__file__).with_name("real_text.md.jinja"),
        fingerprint=fingerprint[:12],
        lengths=distinct(by_condition, "length"),
        following=by_condition,
        rates=rates,
        by_rate=by_rate,
        by_segment=by_segment,
        by_bleu=[
            [rate, len(own), interval(with_interval(own, bleu))]
            for rate in rates
            for own in [chosen(repeated, rate=rate)]
        ],
        case=one_line(repeated[0]["text"]),
        cases=[one_line(chosen(repeated, rate=rate)[0]["repeated"]) for rate in rates],
        losses=lost_row(results["losses"]) if results.get("losses") else None,
        samples=len(results.get("losses", ())),
    )


def lost_row(records: Sequence[Record]) -> dict[str, Any]:
    """Tokens lost by a fixed rate, a budget and a cut at equal prompt tokens."""
    apart = ("set", "rate")
    total = {key: sum(r[key] for r in records) for key in records[0] if key not in apart}
    cut = sum(max(0, r["tokens"] - r["positions"]) for r in records)
    ratio = with_interval(
        list(records), lambda rs: sum(r["budget"] for r in rs) / max(1, sum(r["fixed"] for r in rs))
    )
    return {**total, "rate": records[0]["rate"], "cut": cut, "ratio": ratio}


def main(arguments: list[str] | None = None) -> None:
    """Measure what is missing, then write the page."""
    parser = books_to_page((__doc__ or "").partition("\n")[0])
    parser.add_argument("--samples", type=int, default=8, help="Passages of each table.")
    given = parser.parse_args(arguments)
    name = resolve_model(given.model)
    model = MemslotsModel.from_pretrained(name, dtype=torch.bfloat16).eval()
    books = list(iterate_books(given.books, "validation"))
    texts = passages(books, given.samples)
    given.results.mkdir(parents=True, exist_ok=True)
    check_same_compressor(given.results / "compressor.txt", model.fingerprint)
    parts: dict[str, Callable[[], list[Record]]] = {
        "fidelity": lambda: measure_fidelity(model, texts),
        "repeated": lambda: measure_repeated(model, texts),
        "following": lambda: measure_following(
            model, books, given.samples, given.results / "following.jsonl"
        ),
        "losses": lambda: [lost_tokens(model, "books", text) for text in texts],
    }
    results = {}
    for part, measure in parts.items():
        file = given.results / f"{part}.json"
        if not file.is_file():
            file.write_text(json.dumps(measure()), "utf-8")
        results[part] = json.loads(file.read_text("utf-8"))
        if "following" in results:  # the last part is the longest
            given.page.write_text(page(results, model.fingerprint), "utf-8")


if __name__ == "__main__":
    main()
