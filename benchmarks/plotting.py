"""The benchmarks' plots: ratios as grouped bars, and growth on two logarithmic axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path


def grouped_bars(
    labels: Sequence[str], groups: Mapping[str, Sequence[float]], title: str, file: Path
) -> None:
    """Bars of every group beside each other at every label, and a line at 1.

    Args:
        labels: below the bars.
        groups: by name a figure for each label.
        title: of the axis.
        file: a PNG.
    """
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(figsize=(2.5 + 1.3 * len(labels), 3.8))
    width = 0.8 / len(groups)
    for offset, (name, values) in enumerate(groups.items()):
        axes.bar([i + offset * width for i in range(len(labels))], values, width, label=name)
    axes.axhline(1, color="black", linewidth=0.8, linestyle="--")
    middle = width * (len(groups) - 1) / 2
    axes.set_xticks([i + middle for i in range(len(labels))], labels)
    axes.set_ylabel(title)
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    _save(figure, file)
    pyplot.close(figure)


def named_bars(values: Mapping[str, float], title: str, file: Path) -> None:
    """A horizontal bar with its figure for each name, from the top; those of memories are dark.

    Args:
        values: by name.
        title: of the axis.
        file: a PNG.
    """
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(figsize=(8, 0.8 + 0.34 * len(values)))
    colors = ["#3f6fb5" if name.startswith("memory") else "#9db8dd" for name in values]
    bars = axes.barh(list(values), list(values.values()), color=colors)
    axes.bar_label(bars, fmt="%.1fx", padding=3, fontsize=9)
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.set_xlabel(title)
    _save(figure, file)
    pyplot.close(figure)


def growth(lines: Mapping[str, Sequence[tuple[float, float]]], x: str, y: str, file: Path) -> None:
    """Lines on two logarithmic axes.

    Args:
        lines: by name their points.
        x: title of the axis.
        y: title of the axis.
        file: a PNG.
    """
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(figsize=(5.5, 3.8))
    for name, points in lines.items():
        axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=name)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.legend(fontsize="small")
    _save(figure, file)
    pyplot.close(figure)


def _save(figure, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=120, bbox_inches="tight")


def _pyplot():
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot
