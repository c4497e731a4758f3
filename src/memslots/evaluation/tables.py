"""Records of the tasks as Markdown and as plots."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from memslots.evaluation.pages import Table, footnote, markdown_page

Record = dict[str, Any]


def markdown(results: dict[str, Any]) -> str:
    """All records as one table per task and set, with intervals, counts and what was read.

    Args:
        results: what `evaluate_tasks` returned.
    """
    how = f"bootstrap intervals, seed {results['seed']}"
    return markdown_page(tables(results["records"]), footnote(results, how), results["notes"])


def tables(records: Sequence[Record]) -> list[Table]:
    """One table per task and set, a row for each condition and metric."""
    header = ["The decoder reads", "prompt tokens", "input", "metric", "value", "95% interval", "n"]
    return [
        Table(
            f"{task}, {data}",
            header,
            [_row(r) for r in records if (r["task"], r["data"]) == (task, data)],
            left=(0, 3, 5),
        )
        for task, data in _groups(records, "task", "data")
    ]


def _row(record: Record) -> list[str]:
    kind = f"{record['kind']} at {record['depth']:g}, " if "kind" in record else ""
    return [
        reads(record),
        f"{record['positions']:g}",
        str(record["length"] or ""),
        kind + record["metric"],
        _number(record["value"]),
        interval(record),
        str(record["n"]),
    ]


def interval(record: Record) -> str:
    """The interval of a record's value; a share of a gap that some resamples lack has none."""
    if record["low"] is None:
        return "-"
    return f"{_number(record['low'])} to {_number(record['high'])}"


def reads(record: Record) -> str:
    """A condition in words, as the tables name it."""
    rate = record["rate"]
    names = {
        "full": "the full text",
        "finetuned": "the full text, by the decoder fine-tuned on such texts",
        "none": "no context",
        "memory": f"memory, rate {rate}",
        "another": f"control (another text's memory), rate {rate}",
        "head": f"the text's head, as long as the memory at rate {rate}",
        "tail": f"the text's tail, as long as the memory at rate {rate}",
        "llmlingua2": f"LLMLingua-2's cut, as long as the memory at rate {rate}",
    }
    return names[record["condition"]]


def plot(results: dict[str, Any], folder: Path) -> list[Path]:
    """Writes a picture for every task, set and metric: values over rates, or a heat map of depth.

    Args:
        results: what `evaluate_tasks` returned.
        folder: is made where it is missing.

    Returns:
        The files.
    """
    import matplotlib

    matplotlib.use("Agg")
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for task, data, metric in _groups(results["records"], "task", "data", "metric"):
        group = [
            r
            for r in results["records"]
            if (r["task"], r["data"], r["metric"]) == (task, data, metric)
        ]
        name = "-".join((task, data.replace("/", "-"), metric))
        draw = _heat_map if task == "needle" else _over_rates
        draw(group, f"{task}, {data}", folder / f"{name}.png")
        files.append(folder / f"{name}.png")
    return files


def _over_rates(records: Sequence[Record], title: str, file: Path) -> None:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4))
    for condition, length in _groups(records, "condition", "length"):
        line = [r for r in records if (r["condition"], r["length"]) == (condition, length)]
        label = condition if length is None else f"{condition}, {length} tokens"
        if line[0]["rate"] is None:
            axes.axhline(line[0]["value"], linestyle="--", label=label, color="gray")
            continue
        line.sort(key=lambda record: record["rate"])
        # What has no interval is drawn without one.
        values, lows, highs = (
            np.array([record[key] for record in line], dtype=float)
            for key in ("value", "low", "high")
        )
        below, above = values - lows, highs - values
        rates = [record["rate"] for record in line]
        axes.errorbar(rates, values, yerr=[below, above], marker="o", capsize=3, label=label)
    axes.set_xscale("log", base=2)
    axes.set_xlabel("compression rate")
    axes.set_ylabel(records[0]["metric"])
    axes.set_title(title)
    axes.legend(fontsize="small")
    figure.savefig(file, dpi=120, bbox_inches="tight")
    pyplot.close(figure)


def _heat_map(records: Sequence[Record], title: str, file: Path) -> None:
    from matplotlib import pyplot

    panels = _groups(records, "condition", "rate")
    figure, grid = pyplot.subplots(
        1, len(panels), figsize=(3 * len(panels) + 1, 3.2), squeeze=False, sharey=True
    )
    lengths = sorted({record["length"] for record in records})
    depths = sorted({record["depth"] for record in records})
    for axes, (condition, rate) in zip(grid[0], panels, strict=True):
        cells = [[_mean_found(records, condition, rate, n, d) for n in lengths] for d in depths]
        shown = axes.imshow(cells, vmin=0, vmax=1, cmap="RdYlGn", aspect="auto")
        axes.set_xticks(range(len(lengths)), lengths)
        axes.set_yticks(range(len(depths)), [f"{depth:g}" for depth in depths])
        axes.set_title(condition if rate is None else f"{condition}, rate {rate}", fontsize="small")
        axes.set_xlabel("tokens")
    grid[0][0].set_ylabel("depth")
    figure.suptitle(title)
    figure.colorbar(shown, ax=grid[0].tolist(), label="found")
    figure.savefig(file, dpi=120, bbox_inches="tight")
    pyplot.close(figure)


def _mean_found(records, condition, rate, length, depth) -> float:
    cell = (condition, rate, length, depth)
    values = [
        r["value"] for r in records if (r["condition"], r["rate"], r["length"], r["depth"]) == cell
    ]
    return sum(values) / len(values)


def _groups(records: Sequence[Record], *keys: str) -> list[tuple]:
    return list(dict.fromkeys(tuple(record[key] for key in keys) for record in records))


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"
