"""Pages of `docs/` from jinja templates, which stand beside the code that measures."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined


def render(template: Path, **values: Any) -> str:
    """A page's Markdown.

    Args:
        template: a file; it may `{% from "table.md.jinja" import table %}`.
        values: what it names.
    """
    return _environment(template.parent).get_template(template.name).render(**values)


def table(header: Sequence[str], rows: Iterable[Sequence[Any]], left: int = 1) -> str:
    """A Markdown table by itself.

    Args:
        header: the columns' names.
        rows: a cell for each column.
        left: columns that are aligned to the left, from the first.
    """
    module: Any = _environment().get_template("table.md.jinja").module
    return str(module.table(header, rows, left))


def _environment(*folders: Path) -> Environment:
    environment = Environment(
        loader=FileSystemLoader([*folders, Path(__file__).parent]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(percent=percent, interval=interval, number=number)
    environment.filters.update(ms=milliseconds, mib=mib, in_mib=in_mib)
    return environment


def percent(share: float | None, digits: int = 1) -> str:
    """A share of 1 in percent, without the sign."""
    return "-" if share is None else f"{100 * share:.{digits}f}"


def number(value: float | None, form: str) -> str:
    """A number as Python's `format` has it; nothing where there is none."""
    return "" if value is None else format(value, form)


def milliseconds(seconds: float | None) -> str:
    """Seconds in milliseconds, without the unit."""
    return "" if seconds is None else f"{1e3 * seconds:,.1f}"


def in_mib(size: float | None, form: str) -> str:
    """Bytes in MiB, without the unit."""
    return "" if size is None else format(size / 2**20, form)


def mib(size: float | None) -> str:
    """Bytes in whole MiB, with the unit."""
    return "" if size is None else f"{size / 2**20:,.0f} MiB"


def interval(found: dict[str, Any], digits: int = 1) -> str:
    """A share's value and interval, as `with_interval` gives them, in percent."""
    if found["value"] is None:
        return "-"
    low, high = percent(found["low"], digits), percent(found["high"], digits)
    return f"{percent(found['value'], digits)} ({low} to {high})"


def distinct(records: Iterable[dict[str, Any]], key: str) -> list[Any]:
    """The values of a key, in the order in which they come."""
    return list(dict.fromkeys(record[key] for record in records))


def chosen(records: Sequence[dict[str, Any]], **values: Any) -> list[dict[str, Any]]:
    """The records that have these values."""
    return [r for r in records if all(r[key] == value for key, value in values.items())]


def books_to_page(description: str) -> argparse.ArgumentParser:
    """The arguments of what measures a checkpoint on held-out books and writes a page of it."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("results", type=Path, help="Folder to go on with.")
    parser.add_argument("--books", required=True, help="Folder or file of held-out books.")
    parser.add_argument("--page", type=Path, required=True, help="Markdown to write.")
    parser.add_argument("--model", default="smol")
    return parser
