"""How the demonstration looks in a terminal."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from memslots.evaluation.demo import Asked, FirstToken, Page, Reading

MIN_WIDTH = 118
"""Columns of the table of answers; output that goes to a file or pipe has no width of its own."""


def show_answers(out: Console, page: Page, readings: Sequence[Reading]) -> None:
    """Prints what each condition answered, and what it cost.

    Args:
        out: where to print.
        page: what was asked.
        readings: what `run_demo` returned.
    """
    if not out.is_terminal:
        out.width = max(out.width, MIN_WIDTH)
    asked = [each for questions in page.asked for each in questions]
    known = any(each.answer is not None for each in asked)
    answers = Table(title="Answers", title_justify="left", title_style="bold")
    for column in [
        "Question",
        *(["Expected"] if known else []),
        *(r.name.capitalize() for r in readings),
    ]:
        answers.add_column(column, overflow="fold")
    for i, each in enumerate(asked):
        read = [judged(r.answers[i], each.answer) if r.answers else Text("") for r in readings]
        expected = [Text(each.answer or "")] if known else []
        answers.add_row(_question(each), *expected, *read)
    out.print(answers)
    if known:
        out.print("✓: the answer has the expected words; ✗: it does not.", style="dim")
    out.print()
    out.print(_costs(asked, readings, known))
    out.print(
        "Prompt tokens and KV cache: of the text or its slots, without the question. Texts are "
        "compressed and read once for all questions. Nats a token: the loss of the expected "
        "answers; lower is better. Text kept: the share of the text's tokens that the decoder "
        "gets right when it repeats the text from the slots, given the true tokens before each. "
        "Control: the answers from another text's memory; what is right there is guessed.",
        style="dim",
    )
    for reading in readings:
        if reading.answers is None:
            out.print(
                f"{reading.name}: {reading.positions:,.0f} prompt tokens do not fit the decoder.",
                style="yellow",
            )


def as_object(
    page: Page, readings: Sequence[Reading], waits: Sequence[FirstToken]
) -> dict[str, Any]:
    """What the tables show, for `--json`: sizes in prompt tokens and bytes, times in seconds.

    Args:
        page: what was asked.
        readings: what `run_demo` returned.
        waits: what `first_tokens` returned.
    """
    asked = [each for questions in page.asked for each in questions]
    return {
        "texts": page.title,
        "questions": [{"question": each.question, "expected": each.answer} for each in asked],
        "readings": [
            {
                "name": reading.name,
                "prompt_tokens": reading.positions,
                "cache_bytes": reading.cache_bytes,
                "compress_seconds": reading.compressing,
                "read_seconds": reading.reading,
                "answer_seconds": reading.answering,
                "answers": reading.answers,
                "nats_per_token": reading.nats,
                "text_kept": reading.read_back,
            }
            for reading in readings
        ],
        "first_tokens": [
            {
                "name": wait.name,
                "prompt_tokens": wait.positions,
                "compress_seconds": wait.compressing,
                "seconds": wait.seconds,
            }
            for wait in waits
        ],
    }


def show_first_tokens(out: Console, title: str, waits: Sequence[FirstToken]) -> None:
    """Prints how long each condition waits for its first token.

    Args:
        out: where to print.
        title: of the text.
        waits: what `first_tokens` returned, the full text first.
    """
    table = Table(title=f"First token, {title}", title_justify="left", title_style="bold")
    table.add_column("The decoder reads", no_wrap=True)
    for column in ("Prompt tokens", "Compress, once", "First token", "Sooner by"):
        table.add_column(column, justify="right")
    plain = waits[0].seconds
    for wait in waits:
        sooner = ""
        if plain is not None and wait.seconds is not None and wait is not waits[0]:
            sooner = f"{plain / wait.seconds:.1f} times"
        seconds = "does not fit" if wait.seconds is None else _seconds(wait.seconds)
        compress = _seconds(wait.compressing)
        table.add_row(wait.name, f"{wait.positions:,}", compress, seconds, sooner)
    out.print(table)


def _costs(asked: Sequence[Asked], readings: Sequence[Reading], known: bool) -> Table:
    table = Table(title="Cost", title_justify="left", title_style="bold")
    table.add_column("The decoder reads", no_wrap=True)
    columns = ["Prompt tokens", "KV cache", "Compress", "Read", "An answer"]
    for column in [*columns, *(["Right", "Nats a token"] if known else []), "Text kept"]:
        table.add_column(column, justify="right")
    for reading in readings:
        cells = [reading.name, f"{reading.positions:,.0f}"]
        if reading.answers is not None:
            cells += [
                f"{reading.cache_bytes / 1e6:.1f} MB",
                _seconds(reading.compressing),
                _seconds(reading.reading),
                _seconds(reading.answering),
            ]
            if known:
                pairs = zip(reading.answers, asked, strict=True)
                right = sum(says(answer, each.answer or "") for answer, each in pairs)
                cells += [f"{right} of {len(asked)}", f"{reading.nats or 0:.2f}"]
            cells.append("" if reading.read_back is None else f"{reading.read_back:.0%}")
        table.add_row(*cells)
    return table


def _question(asked: Asked) -> Text:
    if not asked.name:
        return Text(asked.question)
    return Text.assemble((asked.name, "bold"), "\n", asked.question)


def _seconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:.2f} s"


def says(answer: str, expected: str) -> bool:
    """Whether an answer has the expected words, whatever else it has; an article may be missing."""
    words = re.escape(re.sub(r"^(the|an?) ", "", expected))
    return re.search(rf"(?<!\w){words}(?!\w)", answer, re.IGNORECASE) is not None


def judged(answer: str, expected: str | None) -> Text:
    """An answer, marked where the right one is known."""
    if expected is None:
        return Text(answer)
    right = says(answer, expected)
    return Text(f"{answer} {'✓' if right else '✗'}", style="green" if right else "red")
