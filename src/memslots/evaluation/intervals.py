"""Means with bootstrap intervals, as every table reports them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

RESAMPLES = 1000


def with_interval(
    values: Sequence[Any],
    statistic: Callable[[list[Any]], float] = lambda values: float(np.mean(values)),
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> dict[str, float | int | None]:
    """A statistic of independent samples with its 95% percentile interval (Efron 1979).

    Args:
        values: one per sample: a number, or what `statistic` reads.
        statistic: of a list of samples, by default their mean.
        seed: of the resampling.
        resamples: how many.

    Returns:
        `value`, `low`, `high` and `n`; None for all but `n` if there are no samples.
    """
    n = len(values)
    if n == 0:
        return {"value": None, "low": None, "high": None, "n": 0}
    whole = float(statistic(list(values)))
    low = high = whole
    if n > 1:
        from scipy.stats import bootstrap

        drawn = bootstrap(
            (np.arange(n),),
            lambda places: statistic([values[place] for place in places]),
            method="percentile",
            n_resamples=resamples,
            vectorized=False,
            rng=np.random.default_rng(seed),
        )
        low, high = drawn.confidence_interval
    return {
        "value": round(whole, 4),
        "low": round(float(low), 4),
        "high": round(float(high), 4),
        "n": n,
    }
