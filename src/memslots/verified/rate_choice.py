"""Which rate each segment gets: as much fidelity as was asked for, or as a budget buys."""

import heapq
from collections.abc import Sequence
from typing import NamedTuple


class Option(NamedTuple):
    """A way to keep a segment.

    Args:
        rate: encoder tokens per slot; 0 for its text.
        cost: prompt tokens that it takes, without markers.
        recovered: decoder tokens that the decoder gets back.
    """

    rate: int
    cost: int
    recovered: int


def check_fidelity(fidelity: float | None) -> float | None:
    """`fidelity`, if it is a share that can be asked for.

    Raises:
        ValueError: anything but a number above 0 and up to 1.
    """
    if fidelity is None:
        return None
    number = isinstance(fidelity, (int, float)) and not isinstance(fidelity, bool)
    if not number or not 0 < fidelity <= 1:
        raise ValueError(
            f"fidelity is the share of tokens to give back, above 0 and up to 1, got {fidelity!r}; "
            "for example fidelity=0.99."
        )
    return float(fidelity)


def check_budget(max_slots: int | None) -> int | None:
    """`max_slots`, if it is a count.

    Raises:
        ValueError: anything but an integer of at least 1.
    """
    if max_slots is None:
        return None
    if type(max_slots) is not int or max_slots < 1:
        raise ValueError(f"max_slots must be an integer of at least 1, got {max_slots!r}.")
    return max_slots


def spend(
    options: Sequence[Sequence[Option]], budget: int, enough: Sequence[float], name: str
) -> list[Option]:
    """An option of each segment of a text, the prompt tokens spent where they save most.

    Greedy: of all steps to a dearer option the one with the most tokens recovered per prompt token
    is taken, as long as the budget holds; a segment that has enough takes no more.

    Args:
        options: of each segment.
        budget: most prompt tokens of all together.
        enough: tokens of each segment that are enough.
        name: of the text, for errors.

    Raises:
        ValueError: not even the cheapest options fit.
    """
    chosen = [min(ways, key=lambda option: (option.cost, -option.recovered)) for ways in options]
    left = budget - sum(option.cost for option in chosen)
    if left < 0:
        least = sum(option.cost for option in chosen)
        coarsest = max((option.rate for ways in options for option in ways), default=0)
        raise ValueError(
            f"max_slots={budget} is too little: the {len(options)} segments of {name} take {least} "
            f"slots at rate {coarsest}, the coarsest that may be used. Give max_slots={least} or "
            "more, or split the text."
        )
    queue: list[tuple[float, int, Option]] = []
    for i in range(len(options)):
        _offer(queue, i, options[i], chosen[i], enough[i], left)
    while queue:
        _, i, step = heapq.heappop(queue)
        if step.cost - chosen[i].cost > left:  # another was bought since; what still fits?
            _offer(queue, i, options[i], chosen[i], enough[i], left)
            continue
        left -= step.cost - chosen[i].cost
        chosen[i] = step
        _offer(queue, i, options[i], step, enough[i], left)
    return chosen


def _offer(
    queue: list[tuple[float, int, Option]],
    i: int,
    options: Sequence[Option],
    now: Option,
    enough: float,
    left: int,
) -> None:
    """Queue the best next step of a segment, if there is one that fits."""
    if now.recovered >= enough:
        return
    steps = [
        option
        for option in options
        if option.recovered > now.recovered and 0 < option.cost - now.cost <= left
    ]
    if steps:
        best = max(
            steps, key=lambda option: (option.recovered - now.recovered) / (option.cost - now.cost)
        )
        gain = (best.recovered - now.recovered) / (best.cost - now.cost)
        heapq.heappush(queue, (-gain, i, best))
