"""Figures that others published, kept apart from what is measured here."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import yaml


def quoted(name: str) -> dict[str, Any]:
    """`{"source", "note", "rows"}` of one table of `quoted.yaml`.

    Raises:
        ValueError: no such table.
    """
    tables = _tables()
    if name not in tables:
        raise ValueError(f"no table {name!r} is quoted; there are {', '.join(tables)}.")
    return tables[name]


def quoted_cells(name: str) -> dict[str, Any]:
    """`{"source", "note", "columns", "cells"}` of one table, the cells as text, row by row."""
    table = quoted(name)
    columns = list(dict.fromkeys(key for row in table["rows"] for key in row))
    cells = [[_text(row.get(column, "")) for column in columns] for row in table["rows"]]
    return {**table, "columns": columns, "cells": cells}


@cache
def _tables() -> dict[str, Any]:
    return yaml.safe_load(Path(__file__).with_name("quoted.yaml").read_text("utf-8"))


def _text(value: Any) -> str:
    return " / ".join(map(str, value)) if isinstance(value, list) else str(value)
