"""docs/results.md: the small world's figures beside the papers', from the files of its steps."""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any

from lab.tables.ablation_report import NAMES, ablation_table, plot_losses
from lab.tables.quoted import quoted, quoted_markdown
from memslots.evaluation.tables import reads

Record = dict[str, Any]

_HEAD = """# Results

What PCC's tables look like on the project's own small world: a decoder of {parameters:,} parameters
that reads short biographies, compressors trained on a CPU in minutes. `make tables` makes this page
again. The paper's numbers are of 8B decoders, FineWeb and real question sets: **compare directions
and orders, not values.** Everything under "quoted" was published by others and not measured here.
Intervals are 95% bootstrap intervals over the samples; decoding is greedy.
"""

_BESIDE = {
    "sentence_pools.md": "[sentence pools](sentence_pools.md), the article's tables",
    "capacity.md": "[the capacity of a vector](capacity.md), the AIRI report's",
    "verified.md": "[verified memory](verified.md), ours",
    "performance.md": "[speed and memory](performance.md), with PCC's table A7",
}
"""Pages of the same folder, and what they hold."""

_CONTRADICTION = """
The paper's abstract of its results says that rate 256 "outperforms w/ Context"; its own table has
an F1 of 25.85 against 66.29 with the context, so w/o context (19.79) must be meant.
"""


def write_page(folder: Path, page: Path) -> None:
    """Writes the page from whatever steps are there, and its pictures beside it.

    Args:
        folder: of `python -m lab tables`.
        page: a `.md` file.

    Raises:
        ValueError: nothing has been run.
    """
    pictures = page.with_suffix("")
    parts = [
        part
        for part in (
            _embedded(folder),
            _rates(folder, pictures),
            _ablations(folder, pictures),
            _encoders(folder, pictures),
            _adaptation(folder),
        )
        if part
    ]
    if not parts:
        raise ValueError(f"{folder} holds no results yet; run a step of `make tables` first.")
    page.parent.mkdir(parents=True, exist_ok=True)
    head = _HEAD.format(parameters=_decoder_parameters(folder))
    beside = [told for name, told in _BESIDE.items() if (page.parent / name).is_file()]
    if beside:
        head += f"\nOther results: {'; '.join(beside)}.\n"
    page.write_text("\n".join([head, *parts, _quoted()]), encoding="utf-8")


def _embedded(folder: Path) -> str:
    results = _read(folder / "embedded.json")
    if results is None:
        return ""
    lines = ["## The embedded checkpoint on the tasks", "", *_record_lines(results["records"])]
    lines += ["", f"Measured on {_machine(results)}.", "", *_case_lines(results["cases"])]
    return "\n".join(lines) + "\n"


def _rates(folder: Path, pictures: Path) -> str:
    found = _results(folder / "rates")
    if not found:
        return ""
    lines = ["## Rates, one at a time and all in one (figures 2 and 3, and beyond)", ""]
    lines += [
        "Each checkpoint had the same steps of fine-tuning alone, half of the contexts "
        "reconstructed too; those of any rate drew a rate for each step, one of them after a first "
        "part at the finest rate alone.",
        "",
    ]
    lines += ["| checkpoint | read at rate | metric | value | 95% interval | n |"]
    lines += ["|---|---:|---|---:|---|---:|"]
    for name, results in found.items():
        for record in _memory(results):
            lines.append(
                f"| {name.replace('_', ' ')} | {record['rate']} | {record['task']} "
                f"{record['metric']} | {_interval_cells(record)} | {record['n']} |"
            )
    curves = {name: _read(folder / "rates" / name / "curve.json") or [] for name in found}
    lines += _pictures(curves, "rates", pictures)
    lines += ["", quoted_markdown("pcc_reconstruction")]
    return "\n".join(lines) + "\n"


def _ablations(folder: Path, pictures: Path) -> str:
    found = _results(folder / "ablations")
    if not found:
        return ""
    found = {name: found[name] for name in NAMES if name in found}
    lines = ["## Ablations (table 6 and figure 4)", ""]
    lines += ["Where intervals overlap, a difference says nothing.", "", ablation_table(found, 4)]
    lines += [f"*Quoted beside ours: {quoted('pcc_table_6')['note']}.*"]
    curves = {
        name: _read(folder / "ablations" / name / "compressor" / "pretrain" / "losses.json") or []
        for name in found
    }
    lines += _pictures(curves, "ablations", pictures)
    return "\n".join(lines) + "\n"


def _encoders(folder: Path, pictures: Path) -> str:
    found = _results(folder / "encoders")
    if not found:
        return ""
    lines = ["## Quality against encoder size", ""]
    lines += ["| encoder | parameters | metric at rate 4 | value | 95% interval | n |"]
    lines += ["|---|---:|---|---:|---|---:|"]
    for name in sorted(found):
        size = found[name]["checkpoint"]["encoder"]["parameters"]
        for record in _memory(found[name]):
            lines.append(
                f"| {name.removeprefix('layers_')} layers | {size:,} | {record['task']} "
                f"{record['metric']} | {_interval_cells(record)} | {record['n']} |"
            )
    curves = {name: _read(folder / "encoders" / name / "curve.json") or [] for name in found}
    lines += _pictures(curves, "encoders", pictures)
    return "\n".join(lines) + "\n"


def _adaptation(folder: Path) -> str:
    found = _results(folder / "adaptation")
    if not found:
        return ""
    lines = ["## A further decoder by adaptation (tables 5 and A2)", ""]
    lines += [
        "The same steps from the same compressor. All of it trained, with a new converter, is the "
        "paper's way; from embeddings, the converter starts as the old one followed by the linear "
        "map between the two decoders' embeddings; the converter alone trained leaves the encoder, "
        "and so all memories that were made before, as they were.",
        "",
    ]
    for name, results in found.items():
        title = name.replace("_", " ").replace(" from", ", from")
        lines += [f"**Trained: {title}**", "", *_record_lines(results["records"]), ""]
    return "\n".join(lines) + "\n"


def _quoted() -> str:
    lines = ["## Quoted figures", ""]
    for name in ("pcc_table_a3_averages", "pcc_table_5", "pcc_table_a1", "lclm"):
        lines += [quoted_markdown(name)]
    return "\n".join(lines) + _CONTRADICTION


def _record_lines(records: list[Record]) -> list[str]:
    lines = ["| task | the decoder reads | positions | input | metric | value | interval | n |"]
    lines += ["|---|---|---:|---:|---|---:|---|---:|"]
    for record in records:
        lines.append(
            f"| {record['task']}, {record['data']} | {reads(record)} | {record['positions']:g} "
            f"| {record['length'] or ''} | {record['metric']} | {_interval_cells(record)} "
            f"| {record['n']} |"
        )
    return lines


def _case_lines(cases: dict[str, Any]) -> list[str]:
    lines = ["**One text read back (as table A5; what differs is bold)**", "", f"> {cases['text']}"]
    for rate, case in cases["rates"].items():
        lines += ["", f"Rate {rate}: {marked(cases['text'], case['reconstruction'])}"]
    lines += ["", "**Answers by rate (as table A6)**", ""]
    lines += ["| question | right | " + " | ".join(f"rate {r}" for r in cases["rates"]) + " |"]
    lines += ["|---|---|" + "---|" * len(cases["rates"])]
    for i, (question, answer) in enumerate(zip(cases["questions"], cases["answers"], strict=True)):
        given = " | ".join(case["answers"][i] for case in cases["rates"].values())
        lines.append(f"| {question} | {answer} | {given} |")
    return lines


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


def _pictures(curves: dict[str, list], name: str, pictures: Path) -> list[str]:
    lines = []
    for task in ("reconstruction", "completion", "answer"):
        file = pictures / f"{name}-{task}.png"
        if plot_losses(curves, f"{task}_loss", f"{name}: {task} loss", file):
            lines += ["", f"![{task} loss]({pictures.name}/{file.name})"]
    return lines


def _results(folder: Path) -> dict[str, dict[str, Any]]:
    found = {file.parent.name: _read(file) for file in sorted(folder.glob("*/results.json"))}
    return {name: results for name, results in found.items() if results is not None}


def _memory(results: dict[str, Any]) -> list[Record]:
    return [record for record in results["records"] if record["condition"] == "memory"]


def _interval_cells(record: Record) -> str:
    low, high = record["low"], record["high"]
    interval = "" if low is None else f"{low:.4g} to {high:.4g}"
    return f"{record['value']:.4g} | {interval}"


def _machine(results: dict[str, Any]) -> str:
    machine = results["machine"]
    return f"{machine['hardware']}, torch {machine['torch']}, {machine['dtype']}"


def _decoder_parameters(folder: Path) -> int:
    for file in (folder / "embedded.json", *sorted(folder.glob("*/*/results.json"))):
        results = _read(file)
        if results is not None:
            return results["checkpoint"]["decoder"]["parameters"]
    return 0


def _read(file: Path) -> Any:
    return json.loads(file.read_text("utf-8")) if file.is_file() else None
