"""The table that `memslots train RECIPE --dry-run` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

if TYPE_CHECKING:
    from memslots.trainer.plan import StagePlan


def plan_table(recipe: str, stages: list[StagePlan]) -> Table:
    """One line a stage; what the size of a data set decides is left open."""
    table = Table(title=f"{recipe}: nothing was trained; memory and time are estimates")
    for column in ("stage", "after", "trained", "frozen", "rows a step", "steps", "tokens"):
        table.add_column(column, justify="left" if column in ("stage", "after") else "right")
    table.add_column("memory each", justify="right")
    table.add_column("hours", justify="right")
    for stage in stages:
        table.add_row(
            stage.name,
            stage.after or "new",
            _count(stage.trained),
            _count(stage.frozen),
            f"{stage.rows_per_step:,}",
            "by the data" if stage.steps is None else f"{stage.steps:,}",
            "-" if stage.tokens is None else _count(stage.tokens),
            f"{stage.memory / 2**30:,.1f} GiB",
            "-" if stage.seconds is None else f"{stage.seconds / 3600:,.1f}",
        )
    return table


def _count(number: float) -> str:
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:,.2f}{unit}"
    return f"{number:,.0f}"
