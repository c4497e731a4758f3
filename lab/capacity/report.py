"""The AIRI report's tables and figures beside ours, from the cells' files, as Markdown."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from lab.capacity.plots import mean_gain, plot_cross_entropy, plot_utilisation
from lab.pages import render
from memslots.cramming import theoretical_capacity

Record = dict[str, Any]

SEEDS_TABLE_1 = {
    ("mem", "", 1): "80 / 96",
    ("dense", "", 1): "128 / 192",
    ("lora", "qkv", 1): "16 / -",
    ("lora", "qk", 1): "16 / -",
    ("lora", "vo", 1): "16 / -",
    ("lora", "qkvo", 1): "16 / -",
}
"""AIRI report, table 1: longest length with Pythia-160M / Pythia-410M, PG-19."""


def load_records(files: Iterable[Path]) -> list[Record]:
    """The results of the cells that have one, in the given order."""
    return [json.loads(file.read_text("utf-8")) for file in files if file.is_file()]


def write_capacity_page(
    records: Sequence[Record], page: Path, missing: int = 0, chunks: Sequence[Record] = ()
) -> None:
    """Writes the Markdown page, and its pictures beside it.

    Args:
        records: of the cells.
        page: a `.md` file.
        missing: cells that have no result yet; the page says so.
        chunks: results of table 2.
    """
    by_kind: dict[str, list[Record]] = {"search": [], "scatter": [], "structure": []}
    for record in records:
        by_kind[record["cell"]["kind"]].append(record)
    searches, scatters = by_kind["search"], by_kind["scatter"]
    ours = [record for record in searches if record["cell"]["first_token"]]
    prose = [
        record
        for record in ours
        if record["cell"]["source"] == "books" and record["cell"]["method"] in ("mem", "dense")
    ]
    utilisation = page.with_name("capacity-utilisation.png")
    if prose:
        plot_utilisation(prose, utilisation)
    scatter_picture = page.with_name("capacity-cross-entropy.png")
    if scatters:
        plot_cross_entropy(scatters, scatter_picture)
    text = render(
        Path(__file__).with_name("page.md.jinja"),
        missing=missing,
        decoders=_decoders(records),
        embedded=next((r["compressor"][:12] for r in records if r.get("compressor")), None),
        theoretical=theoretical_capacity(768, 50_000),
        longest=_table_1(ours),
        ratios=_ratios(ours),
        both_ways=_both_ways(searches),
        errors=_errors(prose),
        utilisation=utilisation.name if prose else None,
        chunks=[_chunk_cells(record) for record in chunks],
        scatter_picture=scatter_picture.name,
        scatters=[_scatter_cells(record) for record in scatters],
        structure=[_structure_cells(record) for record in by_kind["structure"]],
        lines=[
            (record["cell"]["decoder"], line["points"])
            for record in by_kind["structure"]
            for line in record["result"]["lines"][:1]
        ],
        quote=json.dumps,
        cells=len(records),
        minutes=sum(record["cpu_seconds"] for record in records) / 60,
    )
    page.write_text(text, encoding="utf-8")


def _decoders(records: Sequence[Record]) -> list[list[Any]]:
    seen = {record["cell"]["decoder"]: record["decoder"] for record in records}
    return [
        [
            name,
            f"{facts['parameters'] / 1e6:.1f}M",
            facts["width"],
            f"{facts['vocabulary']:,}",
            f"{facts['capacity']:.0f}",
        ]
        for name, facts in seen.items()
    ]


def _key(record: Record) -> tuple:
    cell = record["cell"]
    return (
        cell["decoder"],
        cell["source"],
        cell["method"],
        cell.get("targets", ""),
        cell.get("rank", 1),
    )


def _grouped(
    records: Sequence[Record], key: Callable[[Record], tuple]
) -> dict[tuple, list[Record]]:
    groups: dict[tuple, list[Record]] = {}
    for record in records:
        groups.setdefault(key(record), []).append(record)
    return groups


def _table_1(ours: Sequence[Record]) -> list[list[str]]:
    rows = []
    for (decoder, source, method, targets, rank), group in _grouped(ours, _key).items():
        results = [record["result"] for record in group]
        name = f"{method} {targets} r={rank}" if targets else method
        theirs = SEEDS_TABLE_1.get((method, targets, rank), "-") if source == "books" else "-"
        at_best = [r["lengths"][str(r["at_length"])] for r in results]
        exact = [r["steps_to_exact"] for r in results if r["steps_to_exact"] is not None]
        share = [r["utilisation"] for r in results] if "lora" not in method else []
        cells = [
            decoder,
            source,
            name,
            _spread([r["longest_length"] for r in results]),
            theirs,
            _spread([r["token_gain"] for r in results]),
            _spread(share, 3),
            _spread([v["information_gain"] for v in at_best]),
            _spread([v["accuracy_at_16_bit"] - v["accuracy"] for v in at_best], 3),
            _spread([v["free_running"] for v in at_best], 2),
            _spread(exact, 0),
            f"{results[0]['trained_parameters']:,}",
            f"{results[0]['kept_parameters']:,}",
            str(len(results)),
        ]
        rows.append(cells)
    return rows


def _ratios(ours: Sequence[Record]) -> list[tuple[str, str, str]]:
    """Dense against the plain vector, in length and in utilisation."""
    rows = []
    groups = _grouped(ours, lambda record: _key(record)[:3])
    for decoder, source in dict.fromkeys(key[:2] for key in groups):
        mem, dense = (groups.get((decoder, source, method)) for method in ("mem", "dense"))
        if not mem or not dense:
            continue
        parts = []
        for name, field in (("length", "longest_length"), ("utilisation", "utilisation")):
            plain = statistics.fmean(r["result"][field] for r in mem)
            better = statistics.fmean(r["result"][field] for r in dense)
            parts.append(f"{better / plain:.2f} times in {name}" if plain else f"no {name} of mem")
        rows.append((decoder, source, ", ".join(parts)))
    return rows


def _both_ways(searches: Sequence[Record]) -> list[list[Any]]:
    """The published way of counting beside ours."""
    rows = []
    ours = {(_key(r), r["cell"]["seed"]): r["result"] for r in searches if r["cell"]["first_token"]}
    for record in searches:
        if record["cell"]["first_token"]:
            continue
        result, beside = record["result"], ours.get((_key(record), record["cell"]["seed"]))
        longest = result["longest_length"]
        whole = f"{result['lengths'][str(longest)]['accuracy']:.3f}" if longest else "-"
        names = [record["cell"]["decoder"], record["cell"]["method"]]
        rows.append([*names, longest, beside["longest_length"] if beside else "-", whole])
    return rows


def _errors(prose: Sequence[Record]) -> list[list[Any]]:
    rows = []
    groups = _grouped(prose, lambda r: (r["cell"]["decoder"], r["cell"]["method"]))
    for (decoder, method), group in groups.items():
        totals: dict[str, list[int]] = {}
        for record in group:
            errors = record["result"]["errors"]
            for table in ("position", "frequency", "kind"):
                for name, cell in errors[table].items():
                    sums = totals.setdefault(f"{table}: {name}", [0, 0, 0])
                    for place, field in enumerate(("tokens", "wrong", "free_wrong")):
                        sums[place] += cell[field]
        for name in sorted(totals, key=lambda n: ("pfk".index(n[0]), n)):
            tokens, wrong, free = totals[name]
            rows.append(
                [decoder, method, name, tokens, f"{wrong / tokens:.1%}", f"{free / tokens:.1%}"]
            )
    return rows


def _chunk_cells(record: Record) -> list[Any]:
    size, test, tokens = record["size"], record["test"], record["test"]["tokens"]
    return [
        record["column"],
        f"{size['chunks']:,}",
        f"{size['test']:,}",
        f"{tokens['share']:.3f}",
        f"{tokens['low']:.3f} to {tokens['high']:.3f}",
        f"{test['chunks']['share']:.3f}",
        f"{record['train']['tokens']['share']:.3f}",
        record["asked"]["tokens"],
        size["max_steps"],
        f"{record['trained_parameters']:,}",
    ]


def _scatter_cells(record: Record) -> list[str]:
    cell, points = record["cell"], record["result"]["points"]
    gained = mean_gain(points)
    exact = sum(point["accuracy"] == 1.0 for point in points)
    names = [cell["decoder"], cell["method"], cell["source"]]
    return [*names, "-" if gained is None else f"{-gained:.1f}", f"{exact} of {len(points)}"]


def _structure_cells(record: Record) -> list[str]:
    result = record["result"]

    def mean(field: str) -> float:
        return statistics.fmean(entry[field] for entry in result["neighbours"])

    reaches = [reach for line in result["lines"] for reach in line["reach"].values()]
    return [
        record["cell"]["decoder"],
        f"{sum(result['exact'])} of {len(result['exact'])}",
        f"{mean('norm'):.1f}",
        f"{mean('highest_cosine'):.2f}",
        f"{mean('in_text'):.1%} ({mean('in_text_by_chance'):.1%})",
        _number(result["cosine_of_one_text"]),
        _number(result["cosine_of_two_texts"]),
        f"{statistics.fmean(reaches):.2f}" if reaches else "-",
    ]


def _spread(values: Sequence[float], digits: int = 1) -> str:
    """Mean and standard deviation."""
    if not values:
        return "-"
    mean = f"{statistics.fmean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
