"""Draws the documentation's figure, fidelity and speed by compression rate, from committed numbers.

    python tools/rates_figure.py          # or make figure

Fidelity is what `make tiny-suite` wrote beside the embedded checkpoint. Speed is what
`benchmarks/table_a7.py` wrote: keep its JSON as docs/images/speed.json to draw another machine's.
The numbers are in the figure's metadata, and a test compares them with the files.
"""

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
FIDELITY = ROOT / "src" / "memslots" / "assets" / "tiny" / "results.json"
SPEED = ROOT / "docs" / "images" / "speed.json"
FIGURE = ROOT / "docs" / "images" / "rates.svg"


def read_numbers() -> dict[str, Any]:
    """What the figure shows.

    Returns:
        `fidelity`: for each rate, the text and the control, the share of right answers with
        its 95% interval; `speed`: for each length (tokens) and rate, how many times faster than
        full text an answer of 32 tokens is, with compression and from a kept memory.
    """
    measured = json.loads(FIDELITY.read_text("utf-8"))
    people = measured["one_person"]

    def share(outcome: dict[str, Any]) -> list[float]:
        return [outcome["all"][key] for key in ("share", "low", "high")]

    fidelity = {rate: share(people["memory"][rate]) for rate in people["memory"]}
    fidelity["text"] = share(people["plain"])
    fidelity["another"] = share(people["another"])
    timed = json.loads(SPEED.read_text("utf-8"))
    longest = max(row["length"] for row in timed["rows"])
    speed = {
        row["reads"].removeprefix("rate "): [row["total_ratio"], row["cached_ratio"]]
        for row in timed["rows"]
        if row["length"] == longest and row["reads"].startswith("rate ") and "total_ratio" in row
    }
    machine = timed["setup"]["gpu"] or f"{timed['setup']['cores']} CPU cores"
    return {"fidelity": fidelity, "speed": speed, "tokens": longest, "machine": machine}


def draw(numbers: dict[str, Any], file: Path) -> None:
    """Writes the figure; the same bytes for the same numbers and the same matplotlib."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "memslots", "font.size": 9})
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(8, 2.9), layout="constrained")
    rates = [name for name in numbers["fidelity"] if name.isdigit()]
    shares = [[100 * value for value in numbers["fidelity"][rate]] for rate in rates]
    errors = [[s - low for s, low, _ in shares], [high - s for s, _, high in shares]]
    left.bar(rates, [s for s, _, _ in shares], yerr=errors, capsize=3, color="#3f6fb5", width=0.55)
    for (s, _, _), rate in zip(shares, rates, strict=True):
        left.annotate(f"{s:.1f}%", (rate, s / 2), ha="center", color="white")
    for name, label, style in (
        ("text", "the full text", "--"),
        ("another", "control (another text's memory)", ":"),
    ):
        left.axhline(100 * numbers["fidelity"][name][0], ls=style, color="black", lw=1, label=label)
    left.set(xlabel="compression rate", ylabel="exact match, %", ylim=(0, 118))
    left.set_title("1,000 questions, embedded checkpoint", fontsize=9)
    left.legend(loc="upper center", ncols=2, frameon=False, fontsize=8)

    places = range(len(numbers["speed"]))
    for shift, which, label in ((-0.2, 0, "compression included"), (0.2, 1, "memory kept")):
        heights = [ratios[which] for ratios in numbers["speed"].values()]
        color = ("#9db8dd", "#3f6fb5")[which]
        bars = right.bar([p + shift for p in places], heights, 0.38, color=color, label=label)
        right.bar_label(bars, fmt="%.1fx", padding=1, fontsize=8)
    right.axhline(1, ls="--", color="black", lw=1)
    right.set_xticks(list(places), list(numbers["speed"]))
    right.margins(y=0.28)
    right.set(xlabel="compression rate", ylabel="times faster than full text")
    title = f"{numbers['tokens']:,} tokens, random weights, {numbers['machine']}"
    right.set_title(title, fontsize=9)
    right.legend(loc="upper left", frameon=False, fontsize=8)
    file.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"Date": None, "Description": json.dumps(numbers)}
    figure.savefig(file, metadata=metadata, facecolor="white")
    pyplot.close(figure)


if __name__ == "__main__":
    draw(read_numbers(), FIGURE)
    print(FIGURE.relative_to(ROOT))
