"""Writes docs/performance.md and its plots from the JSON that the benchmarks left.

    python benchmarks/page.py --results runs/bench --page docs/performance.md

A benchmark that was not run is named as such. To add one: a script with `section(results,
pictures)` and `bars(results)`, and its name in `SECTIONS`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from types import ModuleType

import against_published
import alternatives
import gateway_load
import scaling
import summary
import table_a7
import training_throughput
from measuring import Results

SECTIONS: dict[str, ModuleType] = {
    "table_a7": table_a7,
    "against_published": against_published,
    "training_throughput": training_throughput,
    "scaling": scaling,
    "alternatives": alternatives,
    "gateway_load": gateway_load,
}

HEAD = """# Speed and memory: all figures

[Results](findings.md#speed-and-memory) has three findings and a picture. `make bench` writes this
page (`make bench DEVICE=cuda` on a GPU): edit `benchmarks/`, not the page.

## In short

{takeaways}

## How it was measured

Each comparison is a ratio of things measured by turns in one run: medians of {repeats} after a
warm-up. Weights are random, since only their shapes matter for speed; for the quality of answers
see [PCC's tables](results.md). "Positions" are prompt tokens: BOS, slots, markers, verbatim tokens
and the question. On a CPU the models are small, in the proportions of the paper's (GPT2-large
before Llama-3-8B): ratios carry over roughly, milliseconds do not.
"""

MINUTES = 20
"""Most that `make bench` may take on two CPU cores."""


def met(bar: Results) -> bool:
    """Whether a bar is met: at least `wanted`, or at most, where it says so."""
    if bar.get("at_most"):
        return bar["found"] <= bar["wanted"]
    return bar["found"] >= bar["wanted"]


def hardware(setup: Results) -> str:
    """One line of what a benchmark ran on."""
    gpu = f"{setup['gpu']} ({setup['gpu_gib']} GiB), " if setup["gpu"] else ""
    return (
        f"{gpu}{setup['processor']}, {setup['cores']} cores ({setup['threads']} threads, "
        f"{setup['cpu_capability']}), {setup.get('memory_gib', '?')} GiB; {setup['dtype']}; "
        f"Python {setup['python']}, torch {setup['torch']}, transformers {setup['transformers']}, "
        f"memslots {setup['memslots']}; {setup['date']}"
    )


def time_bars(found: dict[str, Results]) -> list[Results]:
    """Whether all benchmarks together, where all were run on a CPU, took as long as they may."""
    took = [results["setup"].get("took_seconds") for results in found.values()]
    on_cpu = all(results["setup"]["device"] == "cpu" for results in found.values())
    if set(found) != set(SECTIONS) or not on_cpu or None in took:
        return []
    minutes = sum(took) / 60
    what = "minutes of `make bench` (at most)"
    return [{"bar": what, "wanted": MINUTES, "found": minutes, "at_most": True}]


def shape(preset: str, sizes: Results) -> str:
    """One line of a preset's sizes."""
    parts = [
        f"{role} {one['type']}, width {one['width']}, {one['layers']} layers, "
        f"{one['parameters'] / 1e6:,.1f}M parameters and {one['vocabulary']:,} words"
        for role, one in sizes.items()
        if isinstance(one, dict)
    ]
    return f"{preset}: {'; '.join(parts)}; segments of {sizes['segment_length']}"


def write_page(found: dict[str, Results], page: Path) -> None:
    """Writes the page; its plots go to a folder of its name beside it.

    Args:
        found: the results by benchmark; those that are missing are said to be.
        page: the Markdown file.

    Raises:
        ValueError: no results at all.
    """
    if not found:
        raise ValueError("there are no results to write; run `make bench`, or one script of it.")
    pictures = page.with_suffix("")
    repeats = min(results["setup"]["repeats"] for results in found.values())
    takeaways = "\n".join(f"- {line}" for line in summary.takeaways(found))
    lines = [HEAD.format(repeats=repeats, takeaways=takeaways), "Machine:", ""]
    for line in dict.fromkeys(hardware(results["setup"]) for results in found.values()):
        lines.append(f"- {line}")
    shapes = {r["setup"]["preset"]: r["shapes"] for r in found.values() if "shapes" in r}
    lines += ["", "Shapes:", "", *(f"- {shape(*one)}" for one in shapes.items())]
    if all(results["setup"]["device"] == "cpu" for results in found.values()):
        lines += [
            "",
            "Nothing was measured on a GPU. `--device cuda --preset gpt2-large-llama3` would run "
            "the paper's shapes.",
        ]
    lines.append("")
    for name, module in SECTIONS.items():
        if name in found:
            lines.append(module.section(found[name], pictures))
        else:
            lines.append(f"`benchmarks/{name}.py` was not run.\n")
    bars = [
        bar
        for name, module in SECTIONS.items()
        if name in found
        for bar in module.bars(found[name])
    ]
    bars += time_bars(found)
    missed = [bar for bar in bars if not met(bar)]
    lines += [
        "## Targets",
        "",
        f"{len(bars) - len(missed)} of {len(bars)} met.",
        "",
        "| What | target | measured | |",
        "|---|---:|---:|---|",
    ]
    for bar in bars:
        verdict = "met" if met(bar) else "**missed**"
        lines.append(f"| {bar['bar']} | {bar['wanted']:.4g} | {bar['found']:.3g} | {verdict} |")
    reasons = [bar["why"] for bar in missed if "why" in bar]
    if reasons:
        lines += ["", "Why they are missed:", "", *(f"- {why}" for why in dict.fromkeys(reasons))]
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text("\n".join(lines).rstrip() + "\n", "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=Path("runs/bench"))
    parser.add_argument("--page", type=Path, default=Path("docs/performance.md"))
    options = parser.parse_args()
    files = {name: options.results / f"{name}.json" for name in SECTIONS}
    found = {
        name: json.loads(file.read_text("utf-8")) for name, file in files.items() if file.exists()
    }
    if not found:
        parser.error(f"no results in {options.results}; run `make bench`, or one script of it.")
    write_page(found, options.page)
    print(options.page)


if __name__ == "__main__":
    main()
