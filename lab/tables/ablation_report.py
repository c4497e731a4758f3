"""Ablations side by side: a table beside PCC's table 6, and the loss curves of its figure 4."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lab.pages import table
from lab.tables.quoted import quoted

NAMES = {
    "whole": "the whole recipe",
    "no_pretraining": "without pre-training",
    "no_reconstruction": "without reconstruction (TR)",
    "no_completion": "without completion (TC)",
    "no_markers": "without `<MEM>` `</MEM>`",
    "one_marker_pair": "one pair of markers around all segments",
}


def ablation_table(results: Mapping[str, dict[str, Any]], rate: int) -> str:
    """Markdown: one line an ablation, ours and the paper's.

    Args:
        results: of `evaluate_tasks` for each ablation; every task, set and metric that reads a
            memory at `rate` becomes a column.
        rate: encoder tokens per slot.
    """
    columns = list(
        dict.fromkeys(
            (record["task"], record["data"], record["metric"])
            for each in results.values()
            for record in _at_rate(each, rate)
        )
    )
    paper = {row["name"]: row for row in quoted("pcc_table_6")["rows"]}
    heads = [f"{task} {metric}, {data}" for task, data, metric in columns]
    rows = []
    for name, each in results.items():
        values = {
            (record["task"], record["data"], record["metric"]): record
            for record in _at_rate(each, rate)
        }
        cells = [_cell(values.get(column)) for column in columns]
        theirs = paper.get(name)
        cells += [f"{theirs['f1']:.2f}", f"{theirs['em']:.2f}"] if theirs else ["", ""]
        rows.append([NAMES.get(name, name), *cells])
    return table(["", *heads, "PCC, table 6: F1", "EM"], rows)


def plot_losses(
    curves: Mapping[str, Sequence[dict[str, Any]]], metric: str, title: str, file: Path
) -> bool:
    """Draws one loss over the steps for each run; False where no run has it (PCC, figures 2 to 4).

    Args:
        curves: what each run's trainer logged (`losses.json`).
        metric: such as "reconstruction_loss".
        title: of the picture.
        file: to write.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4))
    for name, logged in curves.items():
        points = [(entry["step"], entry[metric]) for entry in logged if metric in entry]
        if points:
            axes.plot(*zip(*points, strict=True), label=NAMES.get(name, name))
    drawn = bool(axes.lines)
    if drawn:
        axes.set_xlabel("step")
        axes.set_ylabel(metric.replace("_", " "))
        axes.set_title(title)
        axes.legend(fontsize="small")
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, dpi=120, bbox_inches="tight")
    pyplot.close(figure)
    return drawn


def _at_rate(results: dict[str, Any], rate: int) -> list[dict[str, Any]]:
    return [
        record
        for record in results["records"]
        if record["condition"] == "memory" and record["rate"] == rate
    ]


def _cell(record: dict[str, Any] | None) -> str:
    if record is None:
        return ""
    low, high = record["low"], record["high"]
    interval = "" if low is None else f" ({low:.3g} to {high:.3g})"
    return f"{record['value']:.3g}{interval}"
