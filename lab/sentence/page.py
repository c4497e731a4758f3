"""docs/sentence_pools.md: the article's tables beside ours, from the files of the runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lab.tables.quoted import quoted
from memslots.evaluation.intervals import with_interval

Measure = dict[str, Any]

_HEAD = """# Sentence pools

What the tables of the article "I Compressed LLM Context 10x and Kept 89% of the Facts" look like on
a small scale: sentences about generated people, read by the frozen retrieval encoder
all-MiniLM-L6-v2 (22.7M parameters, its published weights), one vector each, and a frozen decoder
of 2.2M parameters that reads them through a linear adapter and a small LoRA; these, and the
markers' vectors, are all that is trained unless said otherwise. `make tables-sentence` makes this
page again, on one thread. The article's numbers are of EmbeddingGemma and Gemma 4 E2B and were not
measured here: **compare directions and orders, not values.**

Exact match, greedy decoding, people with names that training never showed; 95% bootstrap intervals
over the questions, one a text. "Another's" is the exact match with another person's memory, which
has to be low: what is right with it owes nothing to the slots.
"""


def write_sentence_page(recipe: dict[str, Any], folder: Path, page: Path) -> None:
    """Writes the page from the measures that are there, and its picture beside it.

    Args:
        recipe: the settings of `tables-sentence`; its `notes`, by section, stand under the tables.
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
    stages = {stage["name"]: stage for stage in recipe["compressor"]["stages"]}
    parts = {
        "setups": _setups(found),
        "facts": _facts(found),
        "lengths": _lengths(found),
        "shortcut": _shortcut(folder, page.with_suffix("")),
        "scaling": _scaling(found),
        "numbers": _numbers(found),
        "reconstruction": _reconstruction(found),
        "encoder": _variants(found),
        "layers": _layers(found),
        "code": _code(found),
        "runs": _runs(folder, stages),
    }
    notes = recipe.get("notes", {})
    told = [
        f"{part}\n{notes[name]}\n" if name in notes else part
        for name, part in parts.items()
        if part
    ]
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text("\n".join([_HEAD, *told]), encoding="utf-8")


def _setups(found: dict[str, Measure]) -> str:
    article = {row["setup"]: row["exact"] for row in quoted("article_setups")["rows"]}
    rows = [
        ("one sentence, one vector", "one_sentence", "one sentence one vector"),
        ("five sentences, one vector", "one_vector", "five sentences one vector"),
        ("one sentence, one vector, eight learned queries", "queries_one_sentence", None),
        ("five sentences, one vector, eight learned queries", "queries_one_vector", None),
        ("five sentences, five vectors", "five_vectors", "five sentences five vectors"),
        ("the same, 400 more steps", "five_vectors_long", None),
        ("the same, 800 more steps", "five_vectors_longest", None),
        ("five sentences, five vectors, straight from nothing", "straight", None),
    ]
    lines = [_title("The three set-ups"), *_columns("set-up", "positions", "article")]
    for label, name, there in rows:
        if name in found:
            given = f"{article[there]}%" if there else ""
            lines.append(f"| {label} | {_positions(found[name])} | {given} |{_cells(found[name])}")
    return _text(lines)


def _columns(*first: str) -> list[str]:
    names = [*first, "ours", "95% interval", "first token", "another's", "no context", "text", "n"]
    right = "---:|"
    return [
        "| " + " | ".join(names) + " |",
        "|---|" + right * (len(names) - 1),
    ]


def _cells(measure: Measure) -> str:
    own = _interval(measure["samples"], "memory")
    cells = [
        _percent(own["value"]),
        _range(own),
        _share(measure["samples"], "memory_first"),
        _share(measure["samples"], "another"),
        _share(measure["samples"], "none"),
        _share(measure["samples"], "text"),
        str(own["n"]),
    ]
    return " " + " | ".join(cells) + " |"


def _positions(measure: Measure) -> str:
    return f"{measure['positions']:g} for {measure['text_tokens']:g} tokens"


def _facts(found: dict[str, Measure]) -> str:
    if not {"one_vector", "five_vectors"} <= set(found):
        return ""
    names = ("five_vectors_longest", "five_vectors_long")
    longest: list[dict[str, Any]] = next(
        (found[name]["samples"] for name in names if name in found), []
    )
    more = 800 if names[0] in found else 400
    article = {row["fact"]: row for row in quoted("article_facts")["rows"]}
    single, chunked = found["one_vector"]["samples"], found["five_vectors"]["samples"]
    lines = [_title("Per fact, in one vector and in five")]
    lines += [
        "| fact | article, one | article, five | ours, one | ours, five "
        f"| five, {more} more steps | n |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    facts = sorted({s["fact"] for s in single}, key=lambda f: (f not in article, f))
    for fact in facts:
        there = article.get(fact, {})
        own = [[s for s in samples if s["fact"] == fact] for samples in (single, chunked, longest)]
        cells = " | ".join(_both(samples) for samples in own)
        lines.append(
            f"| {fact} | {there.get('single', '')} | {there.get('chunked', '')} "
            f"| {cells} | {len(own[0])} |"
        )
    return _text(lines)


def _shortcut(folder: Path, pictures: Path) -> str:
    curves = {}
    for name, label in (
        ("phase_1", "contrastive batches"),
        ("phase_1_mixed", "mixed batches"),
    ):
        file = folder / "compressor" / name / "losses.json"
        if file.is_file():
            logged = json.loads(file.read_text("utf-8"))
            curves[label] = [entry for entry in logged if "first_token_accuracy" in entry]
    if not any(curves.values()):
        return ""
    lines = [_title("The shape shortcut, while one sentence in one vector is trained")]
    lines += [
        "The article: 94.5% of first tokens right with 0% exact match, until batches held the same "
        "type of fact with other values. Logged while training, on held-out people.",
        "",
        "| batches | step | first token | exact match | exact match with another's memory |",
        "|---|---:|---:|---:|---:|",
    ]
    for label, entries in curves.items():
        chosen = entries[:: max(1, len(entries) // 6)]
        if entries and entries[-1] not in chosen:
            chosen.append(entries[-1])
        for entry in chosen:
            values = [
                _percent(entry[name])
                for name in ("first_token_accuracy", "exact_match", "exact_match_others_memory")
            ]
            lines.append(f"| {label} | {entry['step']} | {' | '.join(values)} |")
    picture = _plot_shortcut(curves, pictures)
    lines += ["", f"![Shares while training]({pictures.name}/{picture.name})"]
    return _text(lines)


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
            ("exact_match_others_memory", "with another's memory"),
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


def _scaling(found: dict[str, Measure]) -> str:
    article = {row["pools"]: row for row in quoted("article_scaling")["rows"]}
    measured = {m["measure"]["source"]["people"]: m for n, m in found.items() if "pools" in n}
    if not measured:
        return ""
    lines = [_title("Scaling: one sentence of each of many people, the question names one")]
    lines += [
        "Right by chance alone, were a value of one of the pools drawn, is 1 in as many values as "
        "the pools hold; another's memory has the same names and other people's facts.",
        "",
        "| pools | article | ours | 95% interval | profession (article) | country (article) "
        "| city (article) | one token | several tokens | another's | text | n |",
        "|---:|" + "---:|" * 11,
    ]
    for people, measure in sorted(measured.items()):
        there, samples = article.get(people, {}), measure["samples"]
        own = _interval(samples, "memory")
        facts = " | ".join(
            f"{_share([s for s in samples if s['fact'] == fact], 'memory')} "
            f"({there.get(fact, '-')})"
            for fact in ("profession", "country", "city")
        )
        single = _share([s for s in samples if s["tokens"] == 1], "memory")
        several = _share([s for s in samples if s["tokens"] > 1], "memory")
        lines.append(
            f"| {people} | {there.get('overall', '-')} | {_percent(own['value'])} | {_range(own)} "
            f"| {facts} | {single} | {several} | {_share(samples, 'another')} "
            f"| {_share(samples, 'text')} | {own['n']} |"
        )
    return _text(lines)


def _numbers(found: dict[str, Measure]) -> str:
    rows = [
        ("ages and counts, from the pools alone", "numbers", "0"),
        ("ages and counts, numbers passed through", "numbers_passthrough", "95.5 (counts)"),
        ("both losses, encoder frozen, from the pools alone", "numbers_frozen", "-"),
        ("both losses, encoder trained too, from the pools alone", "numbers_joint", "-"),
    ]
    shown = [(label, found[name], there) for label, name, there in rows if name in found]
    if not shown:
        return ""
    lines = [_title("Numbers")]
    lines += ["| what | positions | tokens passed through | article | ages | counts | n of each |"]
    lines += ["|---|---:|---:|---:|---:|---:|---:|"]
    for label, measure, there in shown:
        own = [[s for s in measure["samples"] if s["fact"] == f] for f in ("age", "count")]
        lines.append(
            f"| {label} | {_positions(measure)} | {measure['literal_tokens']:g} | {there} "
            f"| {_both(own[0])} | {_both(own[1])} | {len(own[0])}, {len(own[1])} |"
        )
    return _text(lines)


def _reconstruction(found: dict[str, Measure]) -> str:
    rows = [
        (name, found[name], found.get(f"{name}_answers"))
        for name in ("mix", "frozen_mix", "joint_mix")
        if name in found
    ]
    if not rows:
        return ""
    labels = {
        "mix": "encoder frozen, after phase 3 and 400 steps more",
        "frozen_mix": "numbers among the facts, encoder frozen, after phase 3",
        "joint_mix": "the same steps, encoder, adapter and LoRA trained together",
    }
    lines = [_title("Reading the text back, half of the loss (five sentences, five vectors)")]
    lines += [
        'The article: "near-perfectly on straightforward examples while maintaining the same 89%".',
        "",
        "| trained | sentences exact | 95% interval | tokens in order | texts | questions right |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, measure, answers in rows:
        texts: dict[int, list[bool]] = {}  # the samples: sentences of a text are not independent
        for unit in measure["units"]:
            texts.setdefault(unit["text"], []).append(unit["exact"])
        exact = with_interval([sum(own) / len(own) for own in texts.values()])
        tokens = sum(u["tokens"] for u in measure["units"])
        aligned = sum(u["aligned"] for u in measure["units"]) / max(1, tokens)
        asked = _both(answers["samples"]) if answers else ""
        lines.append(
            f"| {labels[name]} | {_percent(exact['value'])} | {_range(exact)} "
            f"| {_percent(aligned)} | {exact['n']} | {asked} |"
        )
    shown = rows[0][1]["examples"][:5]
    lines += ["", "| text | read back |", "|---|---|"]
    lines += [f"| {one['text'].strip()} | {one['read back'].strip()} |" for one in shown]
    return _text(lines)


def _variants(found: dict[str, Measure]) -> str:
    rows = [
        ("five vectors, frozen encoder, phase 3 (700 steps in all)", "five_vectors"),
        ("five vectors, an encoder of two layers from scratch (150 steps)", "scratch"),
        (
            "with numbers, both losses, encoder frozen (100 steps after phase 3)",
            "frozen_mix_answers",
        ),
        ("with numbers, both losses, encoder trained too (100 steps)", "joint_mix_answers"),
    ]
    shown = [(label, found[name]) for label, name in rows if name in found]
    if len(shown) < 2:
        return ""
    lines = [_title("Training the encoder too"), *_columns("run", "positions")]
    lines += [f"| {label} | {_positions(measure)} |{_cells(measure)}" for label, measure in shown]
    return _text(lines)


def _layers(found: dict[str, Measure]) -> str:
    rows = [
        ("in place of input embeddings (phase 1)", "one_sentence"),
        ("at the input of layer 1", "inject_1"),
        ("at the input of layer 2", "inject_2"),
    ]
    shown = [(label, found[name]) for label, name in rows if name in found]
    if len(shown) < 2:
        return ""
    lines = [_title("Slots at a middle layer of the decoder, one sentence, one vector")]
    lines += _columns("the slots stand", "positions")
    lines += [f"| {label} | {_positions(measure)} |{_cells(measure)}" for label, measure in shown]
    return _text(lines)


def _code(found: dict[str, Measure]) -> str:
    rows = [("text about a person, one sentence", "code_prose", 76.0), ("code", "code", 6.0)]
    if "code" not in found:
        return ""
    lines = [_title("Code against prose, one vector each")]
    lines += _columns("text", "positions", "article")
    for label, name, there in rows:
        if name in found:
            lines.append(f"| {label} | {_positions(found[name])} | {there}% |{_cells(found[name])}")
    facts = sorted({s["fact"] for s in found["code"]["samples"]})
    each = [
        f"{fact} {_both([s for s in found['code']['samples'] if s['fact'] == fact])}"
        for fact in facts
    ]
    return _text([*lines, "", f"Of the code: {'; '.join(each)}."])


def _lengths(found: dict[str, Measure]) -> str:
    lines = [_title("Answers of one token and of several")]
    lines += ["| set-up | one token | several tokens | n of each |", "|---|---:|---:|---:|"]
    for name in (
        "one_sentence",
        "one_vector",
        "five_vectors",
        "five_vectors_long",
        "five_vectors_longest",
    ):
        if name in found:
            samples = found[name]["samples"]
            one = [s for s in samples if s["tokens"] == 1]
            more = [s for s in samples if s["tokens"] > 1]
            label = name.replace("_", " ")
            lines.append(f"| {label} | {_both(one)} | {_both(more)} | {len(one)}, {len(more)} |")
    return _text(lines) if len(lines) > 3 else ""


def _runs(folder: Path, stages: dict[str, Any]) -> str:
    lines = [_title("The runs")]
    lines += ["| run | starts from | steps | CPU seconds |", "|---|---|---:|---:|"]
    total = 0.0
    for name, stage in stages.items():
        file = folder / "compressor" / name / "time.json"
        if file.is_file():
            spent = json.loads(file.read_text("utf-8"))["cpu_seconds"]
            total += spent
            after = stage.get("after") or "nothing"
            steps = stage["training"]["max_steps"]
            lines.append(f"| {name} | {after} | {steps} | {spent:.0f} |")
    lines += ["", f"{total / 60:.0f} minutes of one CPU core in all, beside other work."]
    return _text(lines)


def _title(text: str) -> str:
    return f"## {text}\n"


def _text(lines: Sequence[str]) -> str:
    return "\n".join(lines) + "\n"


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
