"""Worked examples that show a small decoder what an answer looks like.

Written for this package (Apache-2.0, as the rest of it), about places and people that do not exist,
so that no evaluation set can hold them and none of their answers helps with another passage.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class WorkedExample:
    """A passage, a question about it, and the answer in the passage's own words."""

    passage: str
    question: str
    answer: str


_PASSAGES: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = (
    (
        "The lighthouse at Corran Point was finished in 1847 by the engineer Agnes Marwick. Its "
        "lamp burned whale oil for thirty years, until the harbour board paid for a gas works on "
        "the mainland. Ships could see the light from eighteen miles away in clear weather.",
        (
            ("Who built the lighthouse at Corran Point?", "Agnes Marwick"),
            ("What did the lamp burn at first?", "whale oil"),
            ("From how far away could ships see the light?", "eighteen miles"),
        ),
    ),
    (
        "Lake Umbra lies in a valley that a glacier carved. It is 212 metres deep, and its water "
        "stays cold all summer. Two rivers, the Sel and the Orra, flow into it; only the Orra "
        "flows out again. The fishermen of Tolm catch mostly trout there.",
        (
            ("How deep is Lake Umbra?", "212 metres"),
            ("Which river flows out of the lake?", "the Orra"),
            ("What fish is mostly caught in Lake Umbra?", "trout"),
        ),
    ),
    (
        "The town of Vessel Ferry holds a bread fair every September. Bakers from eleven villages "
        "bring their loaves, and a jury of children chooses the best. In 1968 the prize went for "
        "the first time to a rye loaf, baked by a retired postman named Otto Lindqvist.",
        (
            ("When is the bread fair held?", "every September"),
            ("Who chooses the best loaf?", "a jury of children"),
            ("What had Otto Lindqvist been before he retired?", "postman"),
        ),
    ),
    (
        "Maren Holt studied the songs of wrens for most of her life. She found that a young wren "
        "learns its song from its neighbours and not from its father. Her notebooks, which fill "
        "forty boxes, are kept in the library of the college at Brae.",
        (
            ("From whom does a young wren learn its song?", "its neighbours"),
            ("Where are Maren Holt's notebooks kept?", "the library of the college at Brae"),
            ("How many boxes do the notebooks fill?", "forty"),
        ),
    ),
    (
        "A tram line has joined the two halves of Ostvar Bay since 1903. The cars were drawn by "
        "horses at first, and by electric motors after the great flood. The line was closed for "
        "six years when the iron bridge was replaced by one of concrete.",
        (
            ("What replaced the iron bridge?", "one of concrete"),
            ("What drew the tram cars at first?", "horses"),
            ("For how long was the line closed?", "six years"),
        ),
    ),
)


def worked_examples(count: int, seed: int = 0) -> tuple[WorkedExample, ...]:
    """Examples of different passages, the same for the same arguments.

    Args:
        count: how many, at most one per passage.
        seed: the seed of the draw.

    Raises:
        ValueError: more than there are passages, or fewer than none.

    Examples:
        >>> [example.answer for example in worked_examples(1)] != []
        True
    """
    if not 0 <= count <= len(_PASSAGES):
        raise ValueError(f"examples={count}: there are 0 to {len(_PASSAGES)} worked examples.")
    rng = random.Random(f"worked-examples-{seed}")
    chosen = rng.sample(_PASSAGES, count)
    return tuple(WorkedExample(passage, *rng.choice(questions)) for passage, questions in chosen)


def other_examples(shown: Sequence[WorkedExample]) -> tuple[WorkedExample, ...]:
    """All examples of the passages that are not shown, to try a prompt on."""
    seen = {example.passage for example in shown}
    return tuple(
        WorkedExample(passage, *asked)
        for passage, questions in _PASSAGES
        if passage not in seen
        for asked in questions
    )
