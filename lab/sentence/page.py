"""docs/sentence_pools.md: the article's tables beside ours, from the runs' files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lab.pages import render
from lab.tables.quoted import quoted
from memslots.evaluation.intervals import with_interval

Measure = dict[str, Any]
Rows = list[list[Any]]

SETUPS = (
    ("one sentence, one vector", "one_sentence", "one sentence one vector"),
    ("the same, trained longer", "one_sentence_longer", None),
    ("five sentences, one vector", "one_vector", "five sentences one vector"),
    ("five sentences, five vectors", "five_vectors", "five sentences five vectors"),
    ("the same, trained longer", "five_vectors_longer", None),
    ("five vectors, 100 steps of mixed batches", "five_vectors_mixed", None),
)
"""What a row is called, its measure, and the article's row where it has one."""

READ = {
    "memory_first": "first token",
    "another": "control",
    "none": "no context",
    "cut": "text cut",
    "text": "text",
}
"""Shares beside the answers that are right, and their columns' titles."""

FIVE = ("one_vector", "five_vectors", "five_vectors_longer")
"""Measures of five sentences, which ask the same questions."""

NUMBERS = (
    ("from the vectors alone", "numbers", "0"),
    ("from the vectors alone, encoder trained too", "numbers_joint", "-"),
    ("numbers kept as verbatim tokens", "numbers_passthrough", "95.5 (counts)"),
)

ENCODERS = (("frozen", "numbers_answers"), ("trained too", "joint_answers"))


def write_sentence_page(recipe: dict[str, Any], folder: Path, page: Path) -> None:
    """Writes the page from the measures that are there, and its picture beside it.

    Args:
        recipe: the settings of `tables-sentence`; its `title` and `intro` begin the page, its
            `notes`, by section, stand under the tables, and `curves` are the runs that are drawn
            while they train, by what they are called.
        folder: its output.
        page: a `.md` file.

    Raises:
        ValueError: nothing has been measured.
    """
    found = {
        file.stem: json.loads(file.read_text("utf-8"))
        for file in sorted((folder / "measures").glob("*.json"))
    }
    if not found:
        raise ValueError(f"{folder} holds no measures yet; run `make tables-sentence` first.")
    runs = _runs(folder, recipe["compressor"]["stages"])
    read = [name for name in READ if any(name in m["samples"][0] for m in _asked(found))]
    text = render(
        Path(__file__).with_name("page.md.jinja"),
        title=recipe["title"],
        intro=recipe["intro"],
        notes=recipe.get("notes", {}),
        answers=["ours", "95% interval", *(READ[name] for name in read), "n"],
        setups=_setups(found, read),
        facts=_facts(found),
        lengths=_lengths(found),
        shortcut=_shortcut(folder, recipe.get("curves", {}), page.with_suffix("")),
        scaling=_scaling(found),
        numbers=_numbers(found),
        encoder=_encoders(found, read),
        code=_code(found, read),
        runs=runs,
        minutes=sum(run[-1] for run in runs) / 60,
    )
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(text, encoding="utf-8")


def _asked(found: dict[str, Measure]) -> list[Measure]:
    return [measure for measure in found.values() if measure.get("samples")]


def _setups(found: dict[str, Measure], read: Sequence[str]) -> Rows:
    article = {row["setup"]: row["exact"] for row in quoted("article_setups")["rows"]}
    return [
        [
            label,
            _positions(found[name]),
            f"{article[there]}%" if there else "",
            *_cells(found[name], read),
        ]
        for label, name, there in SETUPS
        if name in found
    ]


def _cells(measure: Measure, read: Sequence[str]) -> list[str]:
    own = _interval(measure["samples"], "memory")
    shares = [_share(measure["samples"], name) for name in read]
    return [_percent(own["value"]), _range(own), *shares, str(own["n"])]


def _positions(measure: Measure) -> str:
    return f"{measure['positions']:g} for {measure['text_tokens']:g} tokens"


def _facts(found: dict[str, Measure]) -> dict[str, Any] | None:
    if "five_vectors" not in found:
        return None
    measured = {name: found[name]["samples"] for name in FIVE if name in found}
    article = {row["fact"]: row for row in quoted("article_facts")["rows"]}
    five = found["five_vectors"]["samples"]
    rows = []
    for fact in sorted({s["fact"] for s in five}, key=lambda f: (f not in article, f)):
        there = article.get(fact, {})
        reported = [there.get("single", ""), there.get("chunked", "")]
        ours = [_both(_of(samples, fact)) for samples in measured.values()]
        counts = dict.fromkeys(len(_of(samples, fact)) for samples in measured.values())
        n = ", then ".join(map(str, counts))
        rows.append([fact, *reported, *ours, _share(_of(five, fact), "text"), n])
    ours = [name.replace("_", " ") for name in measured]
    return {
        "columns": ["fact", "article, one", "article, five", *ours, "text", "n"],
        "rows": rows,
    }


def _lengths(found: dict[str, Measure]) -> Rows:
    rows = []
    for label, name, _ in SETUPS:
        if name in found:
            samples = found[name]["samples"]
            single = [s for s in samples if s["tokens"] == 1]
            several = [s for s in samples if s["tokens"] > 1]
            rows.append([label, _both(single), _both(several), f"{len(single)}, {len(several)}"])
    return rows


def _shortcut(folder: Path, runs: Mapping[str, str], pictures: Path) -> dict[str, Any] | None:
    curves = {}
    for label, name in runs.items():
        file = folder / "compressor" / name / "losses.json"
        if file.is_file():
            logged = json.loads(file.read_text("utf-8"))
            curves[label] = [entry for entry in logged if "first_token_accuracy" in entry]
    if not any(curves.values()):
        return None
    rows = []
    for label, entries in curves.items():
        shown = entries[:: max(1, len(entries) // 6)]
        if entries and entries[-1] not in shown:
            shown.append(entries[-1])
        for entry in shown:
            names = ("first_token_accuracy", "exact_match", "exact_match_others_memory")
            rows.append([label, entry["step"], *(_percent(entry[name]) for name in names)])
    picture = _plot_shortcut(curves, pictures)
    return {"rows": rows, "picture": f"{pictures.name}/{picture.name}"}


def _plot_shortcut(curves: dict[str, list[dict[str, Any]]], pictures: Path) -> Path:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pictures.mkdir(parents=True, exist_ok=True)
    figure, axes = pyplot.subplots(1, len(curves), figsize=(5 * len(curves), 3.4), sharey=True)
    drawn = [axes] if len(curves) == 1 else axes
    for axis, (label, entries) in zip(drawn, curves.items(), strict=True):
        steps = [entry["step"] for entry in entries]
        for name, shown in (
            ("first_token_accuracy", "first token"),
            ("exact_match", "exact match"),
            ("exact_match_others_memory", "with the control"),
        ):
            axis.plot(steps, [100 * entry[name] for entry in entries], label=shown)
        axis.set_title(label)
        axis.set_xlabel("steps")
        axis.grid(alpha=0.3)
    pyplot.legend()
    figure.supylabel("% of held-out questions")
    figure.tight_layout()
    file = pictures / "shortcut.png"
    figure.savefig(file, dpi=110)
    pyplot.close(figure)
    return file


def _scaling(found: dict[str, Measure]) -> Rows:
    article = {row["pools"]: row for row in quoted("article_scaling")["rows"]}
    measured = {m["measure"]["source"]["people"]: m for n, m in found.items() if "pools" in n}
    rows = []
    for people, measure in sorted(measured.items()):
        there, samples = article.get(people, {}), measure["samples"]
        own = _interval(samples, "memory")
        facts = [
            f"{_share(_of(samples, fact), 'memory')} ({there.get(fact, '-')})"
            for fact in ("profession", "country", "city")
        ]
        single = _share([s for s in samples if s["tokens"] == 1], "memory")
        several = _share([s for s in samples if s["tokens"] > 1], "memory")
        others = [_share(samples, "another"), _share(samples, "text"), own["n"]]
        overall = [there.get("overall", "-"), _percent(own["value"]), _range(own)]
        rows.append([people, *overall, *facts, single, several, *others])
    return rows


def _numbers(found: dict[str, Measure]) -> Rows:
    rows = []
    for label, name, there in NUMBERS:
        if name in found:
            measure = found[name]
            ages, counts = (_of(measure["samples"], fact) for fact in ("age", "count"))
            read = [_positions(measure), f"{measure['literal_tokens']:g}", there]
            n = f"{len(ages)}, {len(counts)}"
            rows.append([label, *read, _both(ages), _both(counts), n])
    return rows


def _encoders(found: dict[str, Measure], read: Sequence[str]) -> Rows:
    rows = [
        [label, _positions(found[name]), *_cells(found[name], read)]
        for label, name in ENCODERS
        if name in found
    ]
    return rows if len(rows) > 1 else []


def _code(found: dict[str, Measure], read: Sequence[str]) -> dict[str, Any] | None:
    if "code" not in found:
        return None
    named = (
        ("text about a person, one sentence", "one_sentence", "76.0%"),
        ("code", "code", "6.0%"),
    )
    samples = found["code"]["samples"]
    return {
        "rows": [
            [label, _positions(found[name]), there, *_cells(found[name], read)]
            for label, name, there in named
            if name in found
        ],
        "facts": [
            f"{fact} {_both(_of(samples, fact))}" for fact in sorted({s["fact"] for s in samples})
        ],
    }


def _runs(folder: Path, stages: Sequence[dict[str, Any]]) -> Rows:
    """Of each stage that has been run: its compressor's fingerprint, start, steps and seconds."""
    rows: Rows = []
    for stage in stages:
        run = folder / "compressor" / stage["name"]
        if (run / "time.json").is_file():
            logged = json.loads((run / "losses.json").read_text("utf-8"))
            steps = max(entry["step"] for entry in logged)
            seconds = json.loads((run / "time.json").read_text("utf-8"))["cpu_seconds"]
            config = json.loads((run / "config.json").read_text("utf-8"))
            about = [
                stage["name"],
                f"`{config['fingerprint'][:12]}`",
                stage.get("after") or "nothing",
            ]
            rows.append([*about, steps, round(seconds)])
    return rows


def _of(samples: Sequence[dict[str, Any]], fact: str) -> list[dict[str, Any]]:
    return [sample for sample in samples if sample["fact"] == fact]


def _interval(samples: Sequence[dict[str, Any]], name: str) -> dict[str, Any]:
    return with_interval([float(sample[name]) for sample in samples if name in sample])


def _share(samples: Sequence[dict[str, Any]], name: str) -> str:
    return _percent(_interval(samples, name)["value"])


def _both(samples: Sequence[dict[str, Any]]) -> str:
    own = _interval(samples, "memory")
    return f"{_percent(own['value'])} ({_range(own)})" if own["n"] else ""


def _range(own: dict[str, Any]) -> str:
    return f"{_percent(own['low'])} to {_percent(own['high'])}" if own["n"] else ""


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}%"
