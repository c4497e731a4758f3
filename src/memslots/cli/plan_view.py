"""The table that `memslots train RECIPE --dry-run` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

if TYPE_CHECKING:
    from memslots.trainer.plan import StagePlan


def plan_table(recipe: str, stages: list[StagePlan], free: float) -> Table:
    """One line per stage; what the size of a data set decides is left open.

    Args:
        recipe: its name.
        stages: that it would run.
        free: bytes of memory that there are.
    """
    # Folded where a terminal is narrow: a number that is cut short would be another number.
    table = Table(
        title=f"{recipe}: nothing was trained; memory and time are estimates, "
        f"{free / 2**30:,.1f} GiB are free",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        collapse_padding=True,
    )
    for column in ("stage", "after"):
        table.add_column(column, overflow="fold")
    for column in (
        "trained",
        "frozen",
        "rows",
        "steps",
        "tokens",
        "GiB",
        "time",
        "a step",
    ):
        table.add_column(column, justify="right", overflow="fold")
    for stage in stages:
        table.add_row(
            stage.name,
            stage.after or "new",
            _count(stage.trained),
            _count(stage.frozen),
            f"{stage.rows_per_step:,}",
            f"{stage.steps:,}" if stage.steps is not None else "by the data",
            "-" if stage.tokens is None else _count(stage.tokens),
            f"{stage.memory / 2**30:,.1f}",
            "-" if stage.seconds is None else _time(stage.seconds),
            _time(stage.step_seconds),
        )
    return table


def _time(seconds: float) -> str:
    units = (("y", 31_536_000), ("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1))
    unit, size = next((u for u in units if seconds >= 2 * u[1]), units[-1])
    return f"{seconds / size:,.{0 if seconds >= 10 * size else 1}f} {unit}"


def _count(number: float) -> str:
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:,.1f}{unit}"
    return f"{number:,.0f}"
