"""Results as Markdown: tables, notes and what they were measured on, by one template."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from typing import Any, NamedTuple

from jinja2 import Environment, StrictUndefined


class Table(NamedTuple):
    """A table of strings.

    Args:
        title: what stands above it.
        header: the columns' names.
        rows: a cell for each column.
        left: columns that are aligned to the left, counted from 0.
    """

    title: str
    header: list[str]
    rows: list[list[str]]
    left: tuple[int, ...] = (0,)

    @property
    def alignment(self) -> list[str]:
        """What Markdown writes below the header."""
        return ["---" if i in self.left else "---:" for i in range(len(self.header))]


def footnote(results: dict[str, Any], how: str) -> str:
    """What was run, in a line.

    Args:
        results: with `checkpoint`, `machine` and `seconds`.
        how: the sampling, in words.
    """
    machine, checkpoint = results["machine"], results["checkpoint"]
    return (
        f"Greedy decoding, {how}. Compressor {checkpoint['fingerprint'][:12]}, "
        f"{machine['hardware']}, {machine['dtype']}, torch {machine['torch']}, transformers "
        f"{machine['transformers']}, {results['seconds']:.0f} seconds in all."
    )


def markdown_page(tables: Sequence[Table], footnote: str, notes: Sequence[str] = ()) -> str:
    """Tables, notes and what was run."""
    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    text = files("memslots.evaluation").joinpath("page.md.jinja").read_text("utf-8")
    return environment.from_string(text).render(tables=tables, notes=notes, footnote=footnote)
