"""Contexts for in-context learning: other rows' questions and answers, up to a token budget."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from memslots.data.schema import QuestionRow

DEMONSTRATION = "Question: {question}\nAnswer: {answer}"


def demonstration_context(
    rows: Sequence[QuestionRow],
    tokens: int,
    count_tokens: Callable[[str], int],
    rng: random.Random,
    leave_out: str | None = None,
) -> str:
    """Joins randomly drawn rows by blank lines, as long as they fit.

    Args:
        rows: to draw from, each at most once.
        tokens: most tokens of the context (the paper's are 150 and 750).
        count_tokens: of a text, by the tokenizer that the budget is meant in.
        rng: draws the rows and their order.
        leave_out: the id of the row that is asked about.

    Raises:
        ValueError: not one row fits.
    """
    parts: list[str] = []
    used = 0
    for row in _draws(rows, rng):
        if row["id"] == leave_out:
            continue
        text = DEMONSTRATION.format(question=row["question"], answer=row["answer"])
        length = count_tokens(f"\n\n{text}" if parts else text)
        if used + length > tokens:
            if parts:
                break
            continue
        parts.append(text)
        used += length
    if not parts:
        raise ValueError(
            f"no demonstration fits into {tokens} tokens; the shortest of {len(rows)} rows is "
            "longer. Give a larger budget."
        )
    return "\n\n".join(parts)


def _draws(rows: Sequence[QuestionRow], rng: random.Random):
    """Rows in random order, without shuffling a whole set for the few that are used."""
    seen: set[int] = set()
    while len(seen) < len(rows):
        at = rng.randrange(len(rows))
        if at not in seen:
            seen.add(at)
            yield rows[at]
