"""docs/results.md: the small world's figures beside the papers', from the files of its steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lab.pages import render
from lab.recipes import lab_recipe
from lab.tables.ablation_report import plot_losses
from lab.tables.quoted import quoted_cells
from memslots.evaluation.tables import reads

Record = dict[str, Any]


def write_page(folder: Path, page: Path) -> None:
    """Writes the page from whatever steps are there, and its pictures beside it.

    Args:
        folder: of `python -m lab tables`.
        page: a `.md` file.

    Raises:
        ValueError: nothing has been run.
    """
    pictures = page.with_suffix("")
    parts = {
        "rates": _rates(folder, pictures),
        "encoders": _encoders(folder, pictures),
        "adaptation": _adaptation(folder),
    }
    if not any(parts.values()):
        raise ValueError(f"{folder} holds no results yet; run a step of `make tables` first.")
    page.parent.mkdir(parents=True, exist_ok=True)
    text = render(
        Path(__file__).with_name("results.md.jinja"),
        parameters=_decoder_parameters(folder),
        seed=lab_recipe("small_world")["compressor"]["seed"],
        quoted=quoted_cells,
        **parts,
    )
    page.write_text(text, encoding="utf-8")


def _rates(folder: Path, pictures: Path) -> dict[str, Any] | None:
    found = _results(folder / "rates")
    curves = {name: _read(folder / "rates" / name / "curve.json") or [] for name in found}
    rows = [
        [name.replace("_", " "), record["rate"], *_memory_cells(record)]
        for name, results in found.items()
        for record in _memory(results)
    ]
    return {"rows": rows, "pictures": _pictures(curves, "rates", pictures)} if found else None


def _encoders(folder: Path, pictures: Path) -> dict[str, Any] | None:
    found = _results(folder / "encoders")
    curves = {name: _read(folder / "encoders" / name / "curve.json") or [] for name in found}
    rows = [
        [
            f"{name.removeprefix('layers_')} layers",
            f"{found[name]['checkpoint']['encoder']['parameters']:,}",
            *_memory_cells(record),
        ]
        for name in sorted(found)
        for record in _memory(found[name])
    ]
    return {"rows": rows, "pictures": _pictures(curves, "encoders", pictures)} if found else None


def _adaptation(folder: Path) -> list[tuple[str, list[list[Any]]]]:
    return [
        (
            name.replace("_", " ").replace(" from", ", from"),
            [_record_cells(record) for record in results["records"]],
        )
        for name, results in _results(folder / "adaptation").items()
    ]


def _record_cells(record: Record) -> list[Any]:
    read = [reads(record), f"{record['positions']:g}", record["length"] or ""]
    what = f"{record['task']}, {record['data']}"
    return [what, *read, record["metric"], *_interval_cells(record), record["n"]]


def _memory_cells(record: Record) -> list[Any]:
    return [f"{record['task']} {record['metric']}", *_interval_cells(record), record["n"]]


def _pictures(curves: dict[str, list], name: str, pictures: Path) -> list[tuple[str, str]]:
    """Title and file of each loss that some run has, drawn."""
    drawn = []
    for task in ("reconstruction", "completion", "answer"):
        file = pictures / f"{name}-{task}.png"
        if plot_losses(curves, f"{task}_loss", f"{name}: {task} loss", file):
            drawn.append((f"{task} loss", f"{pictures.name}/{file.name}"))
    return drawn


def _results(folder: Path) -> dict[str, dict[str, Any]]:
    found = {file.parent.name: _read(file) for file in sorted(folder.glob("*/results.json"))}
    return {name: results for name, results in found.items() if results is not None}


def _memory(results: dict[str, Any]) -> list[Record]:
    return [record for record in results["records"] if record["condition"] == "memory"]


def _interval_cells(record: Record) -> list[str]:
    low, high = record["low"], record["high"]
    return [f"{record['value']:.4g}", "" if low is None else f"{low:.4g} to {high:.4g}"]


def _decoder_parameters(folder: Path) -> int:
    for file in sorted(folder.glob("*/*/results.json")):
        results = _read(file)
        if results is not None:
            return results["checkpoint"]["decoder"]["parameters"]
    return 0


def _read(file: Path) -> Any:
    return json.loads(file.read_text("utf-8")) if file.is_file() else None
