"""How the demonstration looks in a terminal."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from memslots.evaluation.answering import processor_of
from memslots.evaluation.metrics import exact_match
from memslots.modeling import MemslotsModel

MIN_WIDTH = 118
"""Columns of the table of answers; output that goes to a file or pipe has no width of its own."""


def show_demo(
    out: Console,
    model: MemslotsModel,
    paragraphs: Sequence[str],
    found: dict[str, Any],
    is_embedded: bool,
) -> None:
    """Prints the text, the slots that it became, the answers, and a reconstruction.

    Args:
        out: Where to print.
        model: What made `found`; it turns tokens into text.
        paragraphs: The notes.
        found: What `run_demo` returned.
        is_embedded: Whether the model is the embedded checkpoint, which answers in the notes' words
            or not at all. Another one may be right in words of its own, so nothing is marked wrong.
    """
    if not out.is_terminal:
        out.width = max(out.width, MIN_WIDTH)
    unseen = " whom training never showed" if is_embedded else ""
    out.print(f"\n[bold]The text[/bold]: notes on {len(paragraphs)} people{unseen}\n")
    for paragraph in paragraphs:
        out.print(Text(paragraph, style="cyan"))
    out.print("\n[bold]Compressed once[/bold], each paragraph a document of its own")
    for rate, memory in found["memories"].items():
        tokens, slots = sum(memory.n_tokens), sum(memory.n_slots)
        out.print(f"  rate {rate:>3}: {tokens} tokens -> {slots} slots ({memory.nbytes} bytes)")
    out.print()
    out.print(_answers(found, is_embedded))
    marks = (
        "Red and ✗: not the expected answer." if is_embedded else "Green: says what is expected."
    )
    out.print(f"{marks} Another's memory shows what is guessed.\n")
    for rate, segments in found["reconstruction"].items():
        right = sum(sum(segment["right"]) for segment in segments)
        total = sum(len(segment["tokens"]) for segment in segments)
        out.print(
            f"[bold]Read back from the slots[/bold], rate {rate}: "
            f"{right} of {total} tokens right (wrong ones red)"
        )
        for segment in segments:
            out.print(_marked(model, segment))
        out.print()
    times = ", ".join(f"{part} {seconds:.2f} s" for part, seconds in found["seconds"].items())
    out.print(f"{times}.", style="dim")


def _answers(found: dict[str, Any], is_embedded: bool) -> Table:
    rates = list(found["memories"])
    table = Table(title="Answers", title_justify="left", title_style="bold")
    columns = ["Question", "Expected", "Full text", *(f"Memory, rate {rate}" for rate in rates)]
    for column in [*columns, "Another's memory"]:
        table.add_column(column)
    for row in found["rows"]:
        given = [row["plain"], *(row["memory"][rate] for rate in rates), row["another"]]
        table.add_row(
            Text.assemble((row["name"], "bold"), "\n", row["question"]),
            Text(row["expected"]),
            *(judged(answer, row["expected"], is_embedded) for answer in given),
        )
    return table


def judged(answer: str, expected: str, exact: bool) -> Text:
    """An answer, green where it is right; red only where all other words than these are wrong."""
    if exact and not exact_match(answer, expected):
        return Text(f"{answer} ✗", style="red")
    says_it = re.search(rf"(?<!\w){re.escape(expected)}(?!\w)", answer, re.IGNORECASE)
    return Text(answer, style="green" if says_it else "")


def _marked(model: MemslotsModel, segment: dict[str, Any]) -> Text:
    """A reconstruction with each token that is not the reference's at its position in red.

    A character can take several tokens, so tokens are put together before they are decoded.
    """
    reference, shown = segment["tokens"], Text()
    run: list[int] = []
    run_right = True
    for position, token in enumerate([*segment["produced_tokens"], None]):
        right = position < len(reference) and reference[position] == token
        if token is None or right != run_right:
            style = "" if run_right else "bold red"
            shown.append(processor_of(model).decode(run) if run else "", style=style)
            run, run_right = [], right
        if token is not None:
            run.append(token)
    return shown
