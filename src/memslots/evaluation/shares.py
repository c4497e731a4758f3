"""Scores of samples as records: means over them, and the share of a gap that a memory closes.

Questions about one context are not independent samples, so intervals draw whole contexts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from memslots.evaluation.intervals import with_interval
from memslots.evaluation.sample_log import Scores

Record = dict[str, Any]

RESAMPLES = 400
"""Of a bootstrap interval: there are many records, and BLEU takes its time."""

LESS_IS_BETTER = ("nats",)
"""Of the metrics whose gap is told."""

Statistic = Callable[[Sequence[Scores]], float]


def mean_of(name: str) -> Statistic:
    """The mean of a score over samples."""
    return lambda scores: sum(s[name] for s in scores) / len(scores)


def ratio_of(above: str, below: str) -> Statistic:
    """A sum over samples through another, as nats a token are; nan where the latter is 0."""

    def ratio(scores: Sequence[Scores]) -> float:
        total = sum(s[below] for s in scores)
        return sum(s[above] for s in scores) / total if total else math.nan

    return ratio


def perplexity(scores: Sequence[Scores]) -> float:
    """E to the mean nats a token."""
    return math.exp(ratio_of("nats", "tokens")(scores))


def records_of(
    measured: Sequence[Scores],
    metrics: dict[str, Statistic],
    gaps: Sequence[str] = (),
    contexts: Sequence[Any] | None = None,
    **named: Any,
) -> list[Record]:
    """A record for each condition and metric, in the order in which the conditions come.

    Args:
        measured: scores of all samples under all conditions.
        metrics: what is computed of a condition's samples, by name.
        gaps: the metrics whose share of the gap between no context and the full text is
            a record too, as `NAME_gap_closed`, where both were measured and the text is better.
        contexts: what each sample read; samples of the same one are drawn together.
        named: further fields of every record, as `task` and `data`.
    """
    by_condition: dict[tuple, list[Scores]] = {}
    for scores in measured:
        by_condition.setdefault((scores["condition"], scores["rate"]), []).append(scores)
    none, full = by_condition.get(("none", None)), by_condition.get(("full", None))
    records = []
    for (condition, rate), samples in by_condition.items():
        positions = sum(s["positions"] for s in samples) / len(samples)
        for metric, statistic in metrics.items():
            places = {"condition": condition, "rate": rate, "length": None, **named}
            tail = {"positions": round(positions, 1)}
            scored = _interval(samples, statistic, contexts)
            records.append({**places, "metric": metric, **scored, **tail})
            if metric in gaps and none and full and condition not in ("none", "full"):
                triples = [
                    {"sample": s["sample"], "at": (s, n, f)}
                    for s, n, f in zip(samples, none, full, strict=True)
                ]
                closed = _interval(triples, _share(statistic, metric in LESS_IS_BETTER), contexts)
                if closed["value"] is not None:
                    records.append({**places, "metric": f"{metric}_gap_closed", **closed, **tail})
    return records


def _share(statistic: Statistic, less_is_better: bool) -> Statistic:
    """The share of the gap; nan where no context is as good as the text or better."""

    def share(triples: Sequence[Scores]) -> float:
        here, none, full = (statistic([t["at"][i] for t in triples]) for i in range(3))
        better = full < none if less_is_better else full > none
        return (here - none) / (full - none) if better else math.nan

    return share


def _interval(
    samples: Sequence[Scores], statistic: Statistic, contexts: Sequence[Any] | None
) -> dict[str, Any]:
    clusters: dict[Any, list[Scores]] = {}
    for scores in samples:
        place = scores["sample"]
        clusters.setdefault(contexts[place] if contexts is not None else place, []).append(scores)
    scored = with_interval(
        list(clusters.values()),
        lambda some: statistic([s for each in some for s in each]),
        resamples=RESAMPLES,
    )
    finite = {
        name: None if value is None or not math.isfinite(value) else value
        for name, value in scored.items()
    }
    return {**finite, "n": len(samples)}


LOW_F1 = 0.2
"""F1 of the full text below which a prompt is to be mended: SmolLM2-135M reaches 0.27 on XQuAD."""


def prompt_warnings(records: Sequence[Record]) -> list[str]:
    """What the full text's scores say against the prompt, a sentence a set.

    A memory's score says nothing where the decoder cannot answer from the text itself.
    """
    said = []
    fields = ("task", "data", "condition", "length", "metric")
    value = {tuple(r[name] for name in fields): r["value"] for r in records}
    for (task, data, condition, length, metric), score in value.items():
        if condition != "full" or score is None:
            continue
        where = f"{task} on {data}" if data else task
        if metric == "f1" and score < LOW_F1:
            said.append(
                f"{where}: the full text scores {score:.2f} F1: mend the prompt first (--examples, "
                "--prompt)."
            )
        empty = value.get((task, data, "none", length, metric))
        if metric == "nats" and empty is not None and score >= empty:
            said.append(
                f"{where}: the full text costs {score:.2f} nats a token and no context "
                f"{empty:.2f}, so there is no gap to close: mend the prompt first (--examples, "
                "--prompt)."
            )
    return said
