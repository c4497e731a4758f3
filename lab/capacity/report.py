"""The AIRI report's tables and figures beside ours, from the cells' files, as Markdown."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from lab.capacity.plots import mean_gain, plot_cross_entropy, plot_utilisation, points_of
from lab.capacity.runs import settings_of
from lab.pages import interval, percent, render
from memslots.cramming import theoretical_capacity
from memslots.evaluation.intervals import with_interval

Record = dict[str, Any]

TABLE_1 = {
    ("mem", "", 1): "80 / 96",
    ("dense", "", 1): "128 / 192",
    ("lora", "qkv", 1): "16 / -",
}
"""AIRI report, table 1: longest length with Pythia-160M / Pythia-410M, PG-19."""


def load_records(files: Iterable[Path]) -> list[Record]:
    """The results of the cells that have one, in the given order."""
    return [json.loads(file.read_text("utf-8")) for file in files if file.is_file()]


def write_capacity_page(records: Sequence[Record], page: Path, missing: int = 0) -> None:
    """Writes the Markdown page, and its pictures beside it.

    Args:
        records: of the cells.
        page: a `.md` file.
        missing: cells that have no result yet; the page says so.
    """
    by_kind: dict[str, list[Record]] = {"search": [], "structure": []}
    for record in records:
        by_kind[record["cell"]["kind"]].append(record)
    searches = by_kind["search"]
    with_vectors = [r for r in searches if r["cell"]["method"] in ("mem", "dense")]
    # Pictures count as the report does, where that was measured.
    drawn_count = next((n for n in _COUNTS if any(_key(r)[-1] == n for r in with_vectors)), "")
    drawn = [record for record in with_vectors if _key(record)[-1] == drawn_count]
    drawn_prose = [record for record in drawn if record["cell"]["source"] == "books"]
    prose = [record for record in with_vectors if record["cell"]["source"] == "books"]
    utilisation = page.with_name("capacity-utilisation.png")
    if drawn_prose:
        plot_utilisation(drawn_prose, utilisation)
    scatter_picture = page.with_name("capacity-cross-entropy.png")
    if drawn:
        plot_cross_entropy(drawn, scatter_picture)
    text = render(
        Path(__file__).with_name("page.md.jinja"),
        missing=missing,
        decoders=_decoders(records),
        weights=sorted({r["cell"]["weights"] for r in records}),
        optimiser=settings_of(records[0]["cell"]) if records else None,
        learning_rates={r["cell"]["method"]: settings_of(r["cell"]).learning_rate for r in records},
        texts=max((r["cell"]["texts"] for r in records), default=0),
        theoretical=theoretical_capacity(768, 50_000),
        longest=_table_1(searches),
        by_length=_by_length(searches),
        ratios=_ratios(searches),
        bars=_bars(prose),
        errors=_errors(drawn_prose),
        utilisation=utilisation.name if drawn_prose else None,
        scatter_picture=scatter_picture.name,
        scatters=_scatters(drawn),
        drawn_count=drawn_count,
        structure=[_structure_cells(record) for record in by_kind["structure"]],
        lines=[
            (record["cell"]["decoder"], line["points"])
            for record in by_kind["structure"]
            for line in record["result"]["lines"][:1]
        ],
        quote=json.dumps,
    )
    page.write_text(text, encoding="utf-8")


def write_compressors_page(chunks: Sequence[Record], page: Path) -> None:
    """Writes table 2, of `run_chunks`."""
    template = Path(__file__).with_name("compressors.md.jinja")
    text = render(template, chunks=[_chunk_cells(record) for record in chunks])
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


_COUNTS = ("2 to N", "1 to N, behind BOS", "1 to N")
"""Which tokens are trained and counted, the report's way first."""


def _key(record: Record) -> tuple:
    cell = record["cell"]
    return (
        cell["decoder"],
        cell["source"],
        cell["method"],
        cell.get("targets", ""),
        cell.get("rank", 1),
        ("1 to N" if cell["first_token"] else "2 to N")
        + (", behind BOS" if cell.get("start_token") else ""),
    )


def _grouped(
    records: Sequence[Record], key: Callable[[Record], tuple]
) -> dict[tuple, list[Record]]:
    groups: dict[tuple, list[Record]] = {}
    for record in records:
        groups.setdefault(key(record), []).append(record)
    return groups


def _table_1(searches: Sequence[Record]) -> list[list[str]]:
    rows = []
    for key, group in _grouped(searches, _key).items():
        decoder, source, method, targets, rank, counted = key
        results = [record["result"] for record in group]
        comparable = source == "books" and counted == "2 to N"
        at_best = [text for r in results for text in r["lengths"][str(r["at_length"])]]
        exact = [r["steps_to_exact"] for r in results if r["steps_to_exact"] is not None]
        share = [r["utilisation"] for r in results] if "lora" not in method else []
        cells = [
            decoder,
            source,
            _named(method, targets, rank),
            counted,
            ("at least " if any(map(_may_hold_more, group)) else "")
            + _spread([r["longest_length"] for r in results], 0),
            TABLE_1.get((method, targets, rank), "-") if comparable else "-",
            _spread([r["token_gain"] for r in results]),
            _spread(share, 3),
            f"{statistics.fmean(text['information_gain'] for text in at_best):.0f}",
            _spread(exact, 0),
            f"{results[0]['trained_parameters']:,}",
            f"{results[0]['kept_parameters']:,}",
            str(len(results)),
        ]
        rows.append(cells)
    return rows


def _may_hold_more(record: Record) -> bool:
    """Whether the longest length that was tried came back: nobody knows of a longer one."""
    return record["result"]["longest_length"] == max(map(int, record["result"]["lengths"]))


def _named(method: str, targets: str, rank: int) -> str:
    return f"{method} {targets} r={rank}" if targets else method


def _by_length(searches: Sequence[Record]) -> list[list[Any]]:
    """Of each length that was tried: what comes back, and what comes back without the memory."""
    rows = []
    for key, group in _grouped(searches, _key).items():
        decoder, source, method, targets, rank, counted = key
        of_length: dict[int, list[dict[str, Any]]] = {}
        for record in group:
            for length, texts in record["result"]["lengths"].items():
                of_length.setdefault(int(length), []).extend(texts)
        field = "accuracy" if group[0]["cell"]["first_token"] else "accuracy_from_token_2"
        for length, texts in sorted(of_length.items()):
            means = {name: statistics.fmean(text[name] for text in texts) for name in _MEANS}
            rows.append(
                [
                    decoder,
                    source,
                    _named(method, targets, rank),
                    counted,
                    length,
                    interval(with_interval([text[field] for text in texts])),
                    f"{sum(text[field] == 1 for text in texts)} of {len(texts)}",
                    percent(means["free_running"]),
                    percent(means["another"]),
                    percent(means["without"]),
                    f"{means['token_gain']:.1f}",
                    f"{means['information_gain']:.0f}",
                    f"{means['steps']:.0f}",
                    f"{sum(text['stopped'] == 'max steps' for text in texts)} of {len(texts)}",
                ]
            )
    return rows


_MEANS = ("free_running", "another", "without", "token_gain", "information_gain", "steps")


def _bars(prose: Sequence[Record]) -> list[tuple[str, int]]:
    """The shortest of the longest lengths of mem over the seeds, by which tokens are counted."""
    groups = _grouped([r for r in prose if r["cell"]["method"] == "mem"], lambda r: _key(r)[-1:])
    return [
        (counted, min(record["result"]["longest_length"] for record in group))
        for (counted,), group in groups.items()
    ]


def _ratios(searches: Sequence[Record]) -> list[tuple[str, str, str, str]]:
    """Dense against the plain vector, in length and in utilisation."""
    rows = []
    groups = _grouped(searches, lambda record: (*_key(record)[:3], _key(record)[-1]))
    for decoder, source, counted in dict.fromkeys((*key[:2], key[3]) for key in groups):
        mem, dense = (groups.get((decoder, source, m, counted)) for m in ("mem", "dense"))
        if not mem or not dense:
            continue
        parts = []
        for name, field in (("length", "longest_length"), ("utilisation", "utilisation")):
            plain = statistics.fmean(r["result"][field] for r in mem)
            better = statistics.fmean(r["result"][field] for r in dense)
            parts.append(f"{better / plain:.2f} times in {name}" if plain else f"no {name} of mem")
        if open_ended := [r["cell"]["method"] for r in (*mem, *dense) if _may_hold_more(r)]:
            parts.append(f"no longer length was tried for {', '.join(dict.fromkeys(open_ended))}")
        rows.append((decoder, source, counted, ", ".join(parts)))
    return rows


def _errors(prose: Sequence[Record]) -> list[list[Any]]:
    rows = []
    groups = _grouped(prose, lambda r: (r["cell"]["decoder"], r["cell"]["method"]))
    for (decoder, method), group in groups.items():
        totals: dict[str, list[int]] = {}
        for errors in (errors for record in group for errors in record["result"]["errors"]):
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


def _scatters(records: Sequence[Record]) -> list[list[str]]:
    rows = []
    for key, group in _grouped(records, lambda record: _key(record)[:3]).items():
        texts = [text for record in group for text in points_of(record)]
        gained = mean_gain(texts)
        exact = sum(text["accuracy"] == 1.0 for text in texts)
        rows.append([*key, "-" if gained is None else f"{gained:.1f}", f"{exact} of {len(texts)}"])
    return rows


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
