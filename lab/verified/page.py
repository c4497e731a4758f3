"""The page of verified memory, docs/verified.md, from what `measure.py` measured."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lab.pages import chosen, distinct, interval, percent, render
from memslots.evaluation.intervals import with_interval

Record = dict[str, Any]


def page(results: dict[str, list[Record]], fingerprint: str) -> str:
    """docs/verified.md, of results that the compressor of this fingerprint gave."""
    strings, losses = results["strings"], results["losses"]
    kinds, places = distinct(strings, "kind"), distinct(strings, "hidden_in")
    kept, by_depth = [], []
    for way in distinct(strings, "way"):
        own = chosen(strings, way=way)
        shares = [share(own, "kept"), share(own, "answered"), f"{effective_rate(own):.2f}"]
        kept.append([way, *_by_kind(own, kinds, "kept"), *shares])
        by_depth.append([way, *(_depths(chosen(own, hidden_in=place)) for place in places)])
    questions = []
    for way in distinct(results["questions"], "way"):
        own = chosen(results["questions"], way=way)
        shares = [share(chosen(own, number=number), "right") for number in (True, False)]
        questions.append([way, *shares, f"{effective_rate(own):.2f}"])
    return render(
        Path(__file__).with_name("page.md.jinja"),
        compressor=fingerprint[:12],
        kinds=kinds,
        places=places,
        kept=kept,
        by_depth=by_depth,
        answered=answered(results["strings_after_training"], kinds),
        questions=questions,
        losses=[_lost(name, chosen(losses, set=name)) for name in distinct(losses, "set")],
        costs=[
            _costs(measured, chosen(results["cost"], measured=measured))
            for measured in ("texts", "shapes")
        ],
        bars=bars(results),
    )


def share(records: Sequence[Record], key: str) -> str:
    """A mean with its interval, in percent."""
    return interval(with_interval([float(record[key]) for record in records]))


def effective_rate(records: Sequence[Record]) -> float:
    """Encoder tokens a decoder position."""
    return sum(r["tokens"] for r in records) / sum(r["positions"] for r in records)


def answered(records: Sequence[Record], kinds: Sequence[str]) -> list[list[str]]:
    """The strings answered by kind, a row a way."""
    ways = ((way, chosen(records, way=way)) for way in distinct(records, "way"))
    return [[way, *_by_kind(own, kinds, "answered"), share(own, "answered")] for way, own in ways]


def _by_kind(records: Sequence[Record], kinds: Sequence[str], key: str) -> list[str]:
    return [percent(_mean(chosen(records, kind=kind), key), 0) for kind in kinds]


def _mean(records: Sequence[Record], key: str) -> float:
    return statistics.mean(record[key] for record in records)


def _depths(records: Sequence[Record]) -> str:
    depths = sorted(distinct(records, "depth"))
    shares = " / ".join(percent(_mean(chosen(records, depth=d), "kept"), 0) for d in depths)
    return f"{shares}, at {effective_rate(records):.2f}"


def _lost(name: str, records: Sequence[Record]) -> list[str]:
    total = {key: sum(r[key] for r in records) for key in records[0] if key != "set"}
    cut = sum(max(0, r["tokens"] - r["positions"]) for r in records)
    ratio = with_interval(
        records, lambda rs: sum(r["budget"] for r in rs) / max(1, sum(r["fixed"] for r in rs))
    )
    fixed, budget, lost, served = (
        percent(part / total["tokens"])
        for part in (total["fixed"], total["budget"], cut, total["served"])
    )
    return [
        name,
        str(total["tokens"]),
        fixed,
        budget,
        f"{ratio['value']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})",
        lost,
        served,
        f"{total['as_text']} of {total['segments']}",
        f"{total['served_positions'] / total['positions']:.2f}",
    ]


def _costs(measured: str, records: Sequence[Record]) -> tuple[str, list[str], list[list[str]]]:
    rates = sorted(distinct(records, "rate"))
    rows = [
        [name, *(f"{_median(chosen(records, set=name, rate=rate)):.2f}" for rate in rates)]
        for name in distinct(records, "set")
    ]
    return measured, [f"rate {rate}" for rate in rates], rows


def _median(records: Sequence[Record]) -> float:
    return statistics.median(record["ratio"] for record in records)


def bars(results: dict[str, list[Record]]) -> dict[str, Any]:
    """What was aimed at, and what was reached of it."""
    strings = chosen(results["strings"], way="rate 16, exact spans")
    by_place = []
    for place in distinct(strings, "hidden_in"):
        own = chosen(strings, hidden_in=place)
        kept, rate = _mean(own, "kept"), effective_rate(own)
        reached = kept >= 0.99 and rate >= 8
        by_place.append({"place": place, "kept": kept, "rate": rate, "reached": reached})
    costs = []
    for measured, what in (("texts", "this checkpoint"), ("shapes", "the larger decoder")):
        own = chosen(results["cost"], measured=measured)
        worst = max(record["ratio"] for record in own)
        costs.append({"what": what, "median": _median(own), "worst": worst})
    losses = results["losses"]
    return {
        "strings": by_place,
        "fixed": _mean(chosen(results["strings"], way="fixed rate 16"), "kept"),
        "answered": _mean(strings, "answered"),
        "ratio": sum(r["budget"] for r in losses) / sum(r["fixed"] for r in losses),
        "costs": costs,
    }
