"""What `summary.md.jinja` says of answers: where compressing begins to pay."""

from __future__ import annotations

import math

from measuring import Results

RATE = "rate 16"


def pays_from(compress: float, full: float, answered: float) -> int | None:
    """The question about one text from which on compressing it first is quicker; None for never.

    Args:
        compress: seconds of compressing.
        full: seconds of an answer from full text.
        answered: seconds of an answer from the memory.
    """
    if answered >= full:
        return None
    return max(1, math.ceil(compress / (full - answered)))


def answers(results: Results) -> Results | None:
    """The longest text at `RATE`, and the question from which on compressing it pays.

    Args:
        results: of `table_a7`.
    """
    rows = [row for row in results["rows"] if row["reads"] == RATE and "total_ratio" in row]
    if not rows:
        return None
    row = max(rows, key=lambda row: row["length"])
    whole = (row["batch"], row["length"], "full text")
    full = next(r for r in results["rows"] if (r["batch"], r["length"], r["reads"]) == whole)
    turn = pays_from(
        row["compress"], full["prefill"] + full["decode"], row["prefill"] + row["decode"]
    )
    return {"row": row, "pays_from": turn}
