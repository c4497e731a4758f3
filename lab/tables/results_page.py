"""docs/results.md: the small world's figures beside the papers', from the files of its steps."""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any

from lab.pages import render
from lab.recipes import lab_recipe
from lab.tables.ablation_report import NAMES, ablation_table, plot_losses
from lab.tables.quoted import quoted, quoted_cells
from memslots import MemslotsConfig, embedded
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
        "embedded": _embedded(folder),
        "rates": _rates(folder, pictures),
        "ablations": _ablations(folder, pictures),
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
        marked=marked,
        quoted=quoted_cells,
        **parts,
    )
    page.write_text(text, encoding="utf-8")


def _embedded(folder: Path) -> dict[str, Any] | None:
    results = _read(folder / "embedded.json")
    if results is None:
        return None
    cases, machine = results["cases"], results["machine"]
    return {
        "rows": [_record_cells(record) for record in results["records"]],
        "machine": f"{machine['hardware']}, torch {machine['torch']}, {machine['dtype']}",
        "fingerprint": results["checkpoint"]["fingerprint"][:12],
        "present": str(MemslotsConfig.from_pretrained(embedded()).fingerprint)[:12],
        "cases": cases,
        "rates": [f"rate {rate}" for rate in cases["rates"]],
        "answers": [
            [question, right, *(case["answers"][i] for case in cases["rates"].values())]
            for i, (question, right) in enumerate(
                zip(cases["questions"], cases["answers"], strict=True)
            )
        ],
    }


def _rates(folder: Path, pictures: Path) -> dict[str, Any] | None:
    found = _results(folder / "rates")
    curves = {name: _read(folder / "rates" / name / "curve.json") or [] for name in found}
    rows = [
        [name.replace("_", " "), record["rate"], *_memory_cells(record)]
        for name, results in found.items()
        for record in _memory(results)
    ]
    return {"rows": rows, "pictures": _pictures(curves, "rates", pictures)} if found else None


def _ablations(folder: Path, pictures: Path) -> dict[str, Any] | None:
    found = _results(folder / "ablations")
    found = {name: found[name] for name in NAMES if name in found}
    curves = {
        name: _read(folder / "ablations" / name / "compressor" / "pretrain" / "losses.json") or []
        for name in found
    }
    if not found:
        return None
    return {
        "table": ablation_table(found, 4),
        "note": quoted("pcc_table_6")["note"],
        "pictures": _pictures(curves, "ablations", pictures),
    }


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


def marked(text: str, produced: str) -> str:
    """`produced` with the words that `text` does not have there in bold."""
    words, own = text.split(), produced.split()
    pieces = []
    matcher = difflib.SequenceMatcher(a=words, b=own, autojunk=False)
    for kind, _, _, start, end in matcher.get_opcodes():
        some = " ".join(own[start:end])
        if some:
            pieces.append(some if kind == "equal" else f"**{some}**")
    return " ".join(pieces)


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
    for file in (folder / "embedded.json", *sorted(folder.glob("*/*/results.json"))):
        results = _read(file)
        if results is not None:
            return results["checkpoint"]["decoder"]["parameters"]
    return 0


def _read(file: Path) -> Any:
    return json.loads(file.read_text("utf-8")) if file.is_file() else None
