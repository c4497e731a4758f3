"""Pages of `docs/` from jinja templates, which stand beside the code that measures."""

from __future__ import annotations

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
    environment = Environment(
        loader=FileSystemLoader([template.parent, Path(__file__).parent]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(percent=percent, interval=interval)
    return environment.get_template(template.name).render(**values)


def percent(share: float | None, digits: int = 1) -> str:
    """A share of 1 in percent, without the sign."""
    return "-" if share is None else f"{100 * share:.{digits}f}"


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
