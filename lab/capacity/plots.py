"""Figures 2 and 3 of the AIRI report, from our cells."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Record = dict[str, Any]


def plot_utilisation(records: Sequence[Record], file: Path) -> None:
    """Figure 2: bars of token gain over theoretical capacity, with deviations over the seeds.

    Args:
        records: search cells of mem and dense on prose.
        file: a PNG.
    """
    pyplot = _pyplot()
    decoders = list(dict.fromkeys(record["cell"]["decoder"] for record in records))
    methods = list(dict.fromkeys(record["cell"]["method"] for record in records))
    figure, axes = pyplot.subplots(figsize=(1.6 + 1.8 * len(decoders), 3.6))
    width = 0.8 / len(methods)
    for offset, method in enumerate(methods):
        means, deviations = [], []
        for decoder in decoders:
            values = [
                record["result"]["utilisation"]
                for record in records
                if (record["cell"]["decoder"], record["cell"]["method"]) == (decoder, method)
            ]
            means.append(statistics.fmean(values))
            deviations.append(statistics.stdev(values) if len(values) > 1 else 0.0)
        places = [index + offset * width for index in range(len(decoders))]
        axes.bar(places, means, width, yerr=deviations, capsize=4, label=method)
    axes.set_xticks([i + width * (len(methods) - 1) / 2 for i in range(len(decoders))], decoders)
    axes.set_ylabel("token gain / theoretical capacity")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(methods), frameon=False)
    figure.savefig(file, dpi=120, bbox_inches="tight")
    pyplot.close(figure)


def plot_cross_entropy(records: Sequence[Record], file: Path) -> None:
    """Figure 3: cross-entropy of texts without (x) and with the memory (y), a panel a model.

    Rings are prose, edged points random words, the colour is the length. The dashed line is
    y = x + b, where -b is the mean gain of texts that are not given back; the red one stands at
    x = -b, from where on a text has more information than a vector took of those.

    Args:
        records: search cells of mem and dense.
        file: a PNG.
    """
    pyplot = _pyplot()
    panels = list(dict.fromkeys((r["cell"]["decoder"], r["cell"]["method"]) for r in records))
    columns = max(1, (len(panels) + 1) // 2)
    rows = -(-len(panels) // columns)
    figure, grid = pyplot.subplots(
        rows, columns, figsize=(3.4 * columns + 1, 3.1 * rows), squeeze=False, layout="constrained"
    )
    points = [point for record in records for point in points_of(record)]
    lengths = [point["length"] for point in points]
    limits = {"vmin": min(lengths), "vmax": max(lengths), "cmap": "viridis"}
    shown = None
    for axes, (decoder, method) in zip(grid.flat, panels, strict=False):
        own = [
            r for r in records if (r["cell"]["decoder"], r["cell"]["method"]) == (decoder, method)
        ]
        for record in own:
            prose = record["cell"]["source"] != "random"
            some = points_of(record)
            x, y = [p["bare"] for p in some], [p["with_memory"] for p in some]
            colours = [p["length"] for p in some]
            if prose:
                axes.scatter(x, y, s=90, facecolors="none", edgecolors="gray", linewidths=1)
            shown = axes.scatter(
                x, y, s=30, c=colours, edgecolors="none" if prose else "black", **limits
            )
        gained = mean_gain([p for r in own for p in points_of(r)])
        reach = [0.0, max(p["bare"] for p in points)]
        if gained is not None:
            axes.plot(reach, [x - gained for x in reach], "k--", linewidth=1)
            axes.axvline(gained, color="red", linestyle="--", linewidth=1)
        axes.set_ylim(bottom=-0.03 * reach[1])
        axes.set_title(f"{decoder}, {method}", fontsize="small")
        axes.set_xlabel("cross-entropy of the text, nats")
        axes.set_ylabel("with the memory, nats")
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_visible(False)
    if shown is not None:
        figure.colorbar(shown, ax=grid.ravel().tolist(), label="tokens")
    figure.savefig(file, dpi=120)
    pyplot.close(figure)


def points_of(record: Record) -> list[dict[str, float]]:
    """A search's texts: `length`, `accuracy` as it counts, and nats `bare` and `with_memory`."""
    accuracy = "accuracy" if record["cell"]["first_token"] else "accuracy_from_token_2"
    return [
        {
            "length": int(length),
            "accuracy": text[accuracy],
            "bare": text["bare_cross_entropy"] * int(length),
            "with_memory": text["cross_entropy"] * int(length),
        }
        for length, texts in record["result"]["lengths"].items()
        for text in texts
    ]


def mean_gain(points: Sequence[dict[str, float]]) -> float | None:
    """-b of y = x + b: the mean fall of cross-entropy where information was lost, in nats.

    Args:
        points: of `points_of`; texts given back say only that the vector was not full.
    """
    falls = [p["bare"] - p["with_memory"] for p in points if p["accuracy"] < 1]
    return statistics.fmean(falls) if falls else None


def _pyplot():
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot
