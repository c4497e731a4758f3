"""Results as tables: for the terminal, the README and cards."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import rich.table
from rich.console import Group

from memslots.evaluation.pages import Table, footnote, markdown_page

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"


class Target(NamedTuple):
    """One target of the embedded checkpoint.

    Args:
        name: What is measured.
        required: In words, such as "at least 97%".
        reached: A share, or None if it was not measured.
        ok: Whether it is reached.
    """

    name: str
    required: str
    reached: float | None
    ok: bool


def targets(results: dict[str, Any]) -> list[Target]:
    """The targets of the embedded checkpoint, and what `results` say of each."""
    one_person = results["one_person"]
    memory = one_person["memory"]
    plain = _share(one_person["plain"])
    finest = _share(memory.get("4"))
    behind = None if plain is None or finest is None else round(plain - finest, 4)
    reconstructed = results["reconstruction"].get("4", {}).get("tokens_right")
    another = one_person["another"] if one_person["another"]["rate"] == 4 else None
    return [
        _target("plain text", plain, least=0.98),
        _target("memory at rate 4", finest, least=0.97),
        _target("plain text less memory at rate 4", behind, most=0.02),
        _target("memory at rate 8", _share(memory.get("8")), least=0.92),
        _target("memory at rate 16", _share(memory.get("16")), least=0.80),
        _target("another person's memory at rate 4", _share(another), most=0.20),
        _target("no memory", _share(one_person["none"]), most=0.20),
        _target("reconstruction at rate 4, tokens right", reconstructed, least=0.98),
    ]


def _target(name: str, value: float | None, least: float = 0.0, most: float = 1.0) -> Target:
    required = f"at least {least:.0%}" if most == 1.0 else f"at most {most:.0%}"
    return Target(name, required, value, value is not None and least <= value <= most)


def _share(condition: dict[str, Any] | None) -> float | None:
    return None if condition is None else condition["all"]["share"]


# -- tables, as a header and rows of strings -------------------------------------------------------


def _conditions(part: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Label and scores of each condition, in the order of reading."""
    yield "plain text", part["plain"]
    for rate, condition in part["memory"].items():
        yield f"memory, rate {rate}", condition
    yield f"control (another person's memory), rate {part['another']['rate']}", part["another"]
    yield "no memory", part["none"]


def _exact_match(results: dict[str, Any], part: dict[str, Any], title: str) -> Table:
    slots = part.get("slots", results["slots"])
    rows = []
    for label, condition in _conditions(part):
        rate = label.removeprefix("memory, rate ")
        read = f"{slots[rate]['positions']:g}" if rate in slots else ""
        if label == "plain text":
            read = f"{next(iter(slots.values()))['decoder_tokens']:g}"
        total = condition["all"]
        rows.append(
            [
                label,
                read,
                _percent(total["share"]),
                f"{_percent(total['low'])} to {_percent(total['high'])}",
                _percent(condition["words"]["share"]),
                _percent(condition["numbers"]["share"]),
            ]
        )
    header = [
        "The decoder reads",
        "prompt tokens",
        "exact match",
        "95% interval",
        "words",
        "numbers",
    ]
    return Table(title, header, rows)


def _facts(results: dict[str, Any]) -> Table:
    columns = list(_conditions(results["one_person"]))
    facts = list(columns[0][1]["facts"])
    rows = [
        [fact, *(_percent(c["facts"].get(fact, {}).get("share")) for _, c in columns)]
        for fact in facts
    ]
    counts = [columns[0][1]["facts"][fact]["n"] for fact in facts]
    rows = [[f"{row[0]} ({n})", *row[1:]] for row, n in zip(rows, counts, strict=True)]
    return Table("Each fact (questions)", ["Fact", *(label for label, _ in columns)], rows)


def _reconstruction(scores: dict[str, Any], slots: dict[str, Any] | None, title: str) -> Table:
    rows = []
    for rate, score in scores.items():
        row = [
            rate,
            _percent(score["tokens_right"]),
            _percent(score["tokens_aligned"]),
            f"{score['segments_exact']['right']} of {score['segments_exact']['n']}",
        ]
        if slots:
            row += [f"{slots[rate]['slots']:g}", f"{slots[rate]['effective_rate']:g}"]
        rows.append(row)
    header = ["Rate", "tokens right", "right after alignment", "segments exact"]
    header += ["slots per context", "effective rate"] if slots else []
    return Table(title, header, rows)


def _targets_table(results: dict[str, Any]) -> Table:
    rows = [
        [target.name, target.required, _percent(target.reached), "yes" if target.ok else "NO"]
        for target in targets(results)
    ]
    return Table("Targets", ["Target", "required", "reached", "ok"], rows)


def _tables(results: dict[str, Any], full: bool) -> list[Table]:
    tables = [
        _exact_match(
            results,
            results["one_person"],
            f"Exact match, {results['questions']} questions, one person a context",
        ),
        _reconstruction(
            results["reconstruction"], results["slots"], "Free-running reconstruction of the text"
        ),
    ]
    if not full:
        return tables
    tables.insert(1, _facts(results))
    for part in results.get("many_people", {}).values():
        tokens = next(iter(part["slots"].values()))["decoder_tokens"]
        title = (
            f"Exact match, {part['questions']} questions, contexts of {part['people']} people "
            f"({tokens:g} decoder tokens)"
        )
        tables.append(_exact_match(results, part, title))
    if "books" in results:
        tables.append(_reconstruction(results["books"], None, "Reconstruction of book passages"))
    return tables


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}%"


def _footnote(results: dict[str, Any]) -> str:
    return footnote(
        results,
        f"held-out people, seed {results['seed']}, Wilson intervals. Prompt tokens are "
        "means over contexts, markers included",
    )


# -- the terminal ----------------------------------------------------------------------------------


def rich_report(results: dict[str, Any]) -> Group:
    """All tables, the targets last, for `rich.print`."""
    shown: list[Any] = []
    for table in [*_tables(results, full=True), _targets_table(results)]:
        grid = rich.table.Table(title=table.title, title_justify="left", title_style="bold")
        for number, column in enumerate(table.header):
            grid.add_column(column, justify="right" if number else "left")
        for row in table.rows:
            grid.add_row(*row, style="red" if row[-1] == "NO" else None)
        shown += [grid, ""]
    return Group(*shown, _footnote(results))


# -- Markdown --------------------------------------------------------------------------------------


def markdown_report(results: dict[str, Any], full: bool = True) -> str:
    """The tables in Markdown.

    Args:
        results: What `evaluate_tiny` returned.
        full: False leaves out facts, many people and books.
    """
    return markdown_page(_tables(results, full), _footnote(results))


def fill_block(path: str | Path, results: dict[str, Any]) -> None:
    """Writes the short report between the two result comments of a Markdown file.

    Raises:
        ValueError: See `replace_block`.
    """
    replace_block(path, markdown_report(results, full=False))


def replace_block(path: str | Path, block: str) -> None:
    """Writes Markdown between the two result comments of a file.

    Args:
        path: Of the file.
        block: What stands there afterwards; it ends with a line break.

    Raises:
        ValueError: The file does not have each comment once, in order.
    """
    path = Path(path)
    text = path.read_text("utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in after:
        raise ValueError(f"{path} needs the lines {BEGIN} and {END} once each, in this order.")
    path.write_text(f"{before}{BEGIN}\n{block}{END}{after}", "utf-8")


def write_results(path: str | Path, results: dict[str, Any]) -> None:
    """Writes results as JSON."""
    Path(path).write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n", "utf-8")
