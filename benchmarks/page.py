"""Writes docs/performance.md and its plots from the JSON that the benchmarks left.

    PYTHONPATH=. python benchmarks/page.py --results runs/bench --page docs/performance.md

A benchmark that was not run is named as such. To add one: a script with `shown(results, pictures)`
and `bars(results)`, its part of the page in a jinja2 template of its name, and that in `SECTIONS`.
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

from lab.pages import render

SECTIONS: dict[str, ModuleType] = {
    "table_a7": table_a7,
    "against_published": against_published,
    "training_throughput": training_throughput,
    "scaling": scaling,
    "alternatives": alternatives,
    "gateway_load": gateway_load,
}

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
    setups = [results["setup"] for results in found.values()]
    on_cpu = all(setup["device"] == "cpu" for setup in setups)
    sizes = {r["setup"]["preset"]: r["shapes"] for r in found.values() if "shapes" in r}
    chosen = {name: module for name, module in SECTIONS.items() if name in found}
    bars = [bar for name, module in chosen.items() for bar in module.bars(found[name])]
    bars += time_bars(found)
    missed = [bar for bar in bars if not met(bar)]
    pictures = page.with_suffix("")
    text = render(
        Path(__file__).with_name("page.md.jinja"),
        repeats=min(setup["repeats"] for setup in setups),
        machines=list(dict.fromkeys(map(hardware, setups))),
        shapes=[shape(*preset) for preset in sizes.items()],
        on_cpu=on_cpu,
        answers=summary.answers(found["table_a7"]) if "table_a7" in found else None,
        bars=bars,
        missed=missed,
        reasons=list(dict.fromkeys(bar["why"] for bar in missed if "why" in bar)),
        sections=list(SECTIONS),
        results=found,
        shown={name: module.shown(found[name], pictures) for name, module in chosen.items()},
        pictures=pictures.name,
    )
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(text.rstrip() + "\n", "utf-8")


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
