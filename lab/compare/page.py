"""The page and the picture of a comparison.

python -m lab.compare.page runs/compare/samples.jsonl FIGURES... --output docs/compare.md
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

from lab.compare.samples import read_samples
from lab.pages import chosen, distinct, render
from memslots.evaluation.intervals import with_interval
from memslots.evaluation.metrics import squad_scores

TASKS = ("question", "following")


def rows_of(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row a task, method and rate, of the samples that text, nothing and the method all have.

    Raises:
        ValueError: the full text or nothing was not measured.
    """
    rows = []
    for task in TASKS:
        of_task = chosen(records, task=task)
        by_sample = {
            name: {record["sample"]: record for record in chosen(of_task, method=name)}
            for name in ("none", "text")
        }
        if of_task and not all(by_sample.values()):
            raise ValueError(f"{task}: measure the methods 'text' and 'none' too.")
        for method in distinct(of_task, "method"):
            for rate in sorted(distinct(chosen(of_task, method=method), "rate")):
                measured = [
                    record
                    for record in chosen(of_task, method=method, rate=rate)
                    if all(record["sample"] in ends for ends in by_sample.values())
                ]
                triples = [
                    (record, *(ends[record["sample"]] for ends in by_sample.values()))
                    for record in measured
                ]
                if triples:
                    rows.append({"task": task, "method": method, "rate": rate, **_row(triples)})
    return rows


def _row(triples: Sequence[Sequence[dict[str, Any]]]) -> dict[str, Any]:
    def nats(side: int, some: Sequence[Any]) -> float:
        tokens = sum(triple[side]["tokens"] for triple in some)
        return sum(triple[side]["nats"] for triple in some) / tokens

    def share(some: Sequence[Any]) -> float:
        gap = nats(1, some) - nats(2, some)
        return (nats(1, some) - nats(0, some)) / gap if gap else 0.0

    here = [triple[0] for triple in triples]
    text_tokens = sum(triple[2]["context_tokens"] for triple in triples)
    return {
        "n": len(here),
        "nats": nats(0, triples),
        "share": with_interval(list(triples), share),
        "f1": fmean(squad_scores(r["said"], [r["answer"]])["f1"] for r in here),
        "tokens": fmean(r["context_tokens"] for r in here),
        "of_text": sum(r["context_tokens"] for r in here) / text_tokens,
        "prepare_s": median(r["prepare_s"] for r in here),
        "first_token_s": median(r["first_token_s"] for r in here),
        "cache_kib": fmean(r["cache_bytes"] for r in here) / 1024,
        "stored_kib": fmean(r["stored_bytes"] for r in here) / 1024,
    }


def draw(rows: Sequence[dict[str, Any]], file: Path) -> None:
    """Share of the gap closed against the context's positions, a panel a task."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    titles = {"question": "Answers to questions", "following": "What follows a passage"}
    figure, panels = pyplot.subplots(1, 2, figsize=(10, 4), sharey=True)
    for axes, task in zip(panels, TASKS, strict=True):
        for method in distinct(rows, "method"):
            points = sorted(
                (100 * row["of_text"], 100 * row["share"]["value"])
                for row in chosen(rows, task=task, method=method)
            )
            style = {
                "memory": "C6o-",
                "memory and tail": "C6o--",
                "control": "C6x:",
                "text": "k*",
                "none": "kx",
            }
            axes.plot(*zip(*points, strict=True), style.get(method, "o-"), label=method)
        axes.set_title(titles[task], fontsize="medium")
        axes.set_xlabel("prompt tokens of the context, % of the text's")
        axes.set_ylim(-25, 110)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("gap in nats closed, %")
    panels[1].legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110, bbox_inches="tight")
    pyplot.close(figure)


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("samples", type=Path)
    parser.add_argument("figures", type=Path, nargs="+", help="Of every environment.")
    parser.add_argument("--output", type=Path, required=True, help="Markdown to write.")
    options = parser.parse_args(arguments)
    records = []
    for file in options.figures:
        records += [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    rows = rows_of(records)
    picture = options.output.with_suffix(".png")
    draw(rows, picture)
    page = render(
        Path(__file__).with_name("page.md.jinja"),
        rows=rows,
        tasks=TASKS,
        picture=picture.name,
        samples=len(read_samples(options.samples)),
        fingerprint=", ".join(sorted({r["fingerprint"] for r in records} - {""})),
    )
    options.output.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
