"""The page of verified memory, docs/verified.md, from what `measure.py` measured."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lab.asked import whole
from lab.pages import chosen, distinct, interval, percent, render
from memslots.evaluation.intervals import with_interval

Record = dict[str, Any]


def page(records: Sequence[Record], costs: Sequence[Record], fingerprint: str) -> str:
    """docs/verified.md.

    Args:
        records: answers of `measure_strings`.
        costs: of `cost_ratios`.
        fingerprint: of the compressor.
    """
    records = whole(records, "characters", "depth", "kind", "round")
    kinds, lengths = distinct(records, "kind"), sorted(distinct(records, "characters"))
    depths = sorted(distinct(records, "depth"))
    by_way, by_depth = [], []
    for way in distinct(records, "way"):
        own = chosen(records, way=way)
        by_way.append(
            [
                way,
                len(own),
                share(own, "kept"),
                share(own, "answered"),
                *(answered(chosen(own, kind=kind)) for kind in kinds),
                f"{nats(own):.2f}",
                effective_rate(own),
            ]
        )
        by_depth.append([way, *(by_place(chosen(own, characters=n), depths) for n in lengths)])
    return render(
        Path(__file__).with_name("page.md.jinja"),
        compressor=fingerprint[:12],
        kinds=kinds,
        lengths=[f"{length:,} characters" for length in lengths],
        by_way=by_way,
        by_depth=by_depth,
        compress=[
            [way, *(prefills(records, way, n) for n in lengths)]
            for way in distinct(records, "way")
            if any(record["compress_s"] for record in chosen(records, way=way))
        ],
        costs=[
            [record["rate"], f"{record['tokens']:,}", f"{record['ratio']:.2f}"] for record in costs
        ],
        bars=bars(records, costs),
    )


def share(records: Sequence[Record], key: str) -> str:
    """A mean with its interval, in percent."""
    return interval(with_interval([float(record[key]) for record in records]), 0)


def mean(records: Sequence[Record], key: str) -> float:
    """Of one at least."""
    return statistics.mean(float(record[key]) for record in records)


def nats(records: Sequence[Record]) -> float:
    """Of a token of the right answer."""
    return sum(r["nats"] for r in records) / sum(r["tokens"] for r in records)


def effective_rate(records: Sequence[Record]) -> str:
    """Tokens of the text for each prompt token that stands for it; nothing where none does."""
    positions = sum(record["context_tokens"] for record in records)
    return f"{sum(r['text_tokens'] for r in records) / positions:.2f}" if positions else "-"


def answered(records: Sequence[Record]) -> str:
    """Percent of them; a dash where none was asked."""
    return percent(mean(records, "answered"), 0) if records else "-"


def by_place(records: Sequence[Record], depths: Sequence[float]) -> str:
    """Answered by depth, and the effective rate."""
    shares = " / ".join(answered(chosen(records, depth=depth)) for depth in depths)
    return f"{shares}, at {effective_rate(records)}" if records else "-"


def prefills(records: Sequence[Record], way: str, length: int) -> str:
    """CPU time of compression and verification, in readings of the full text by the decoder."""
    own = chosen(records, way=way, characters=length)
    full = chosen(records, way="full text", characters=length)
    if not own or not full:
        return "-"
    text = statistics.median(record["prepare_s"] for record in full)
    return f"{statistics.median(record['compress_s'] for record in own) / text:.1f}"


def bars(records: Sequence[Record], costs: Sequence[Record]) -> dict[str, Any]:
    """What was aimed at, and what was reached of it."""
    full = mean(chosen(records, way="full text"), "answered")
    ways = []
    for way in distinct(records, "way"):
        if not way.endswith("exact spans") or way.startswith(("control", "text cut")):
            continue
        own = chosen(records, way=way)
        kept, answered = mean(own, "kept"), mean(own, "answered")
        ways.append(
            {
                "way": way,
                "rate": effective_rate(own),
                "kept": kept,
                "behind": 100 * (full - answered),
            }
        )
    ratios = [record["ratio"] for record in costs]
    return {"ways": ways, "median": statistics.median(ratios), "worst": max(ratios)}
