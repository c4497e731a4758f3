"""Slots without memory tokens: one vector of the states of every `rate` tokens of a segment."""

import math

import torch

POOLED = ("mean", "last", "min", "attention")
"""Values of `MemslotsConfig.pooling` that pool token states: their mean (LCLM, 2026), the last one,
the smallest value of each dimension, or their mean weighted by a learned query (the last three:
AIRI report, section 4.1)."""

MERGED = ("mean", "last", "min")
"""Those of `POOLED` whose coarse slots can be made of finer ones: attention's weights are lost."""


def pool_groups(
    states: torch.Tensor,
    groups: torch.Tensor,
    n_groups: int,
    pooling: str,
    query: torch.Tensor | None = None,
) -> torch.Tensor:
    """One vector a group of token states.

    Args:
        states: `(tokens, d)`, group after group.
        groups: `(tokens,)`, the group of each, rising from 0.
        n_groups: groups, none empty.
        pooling: one of `POOLED`.
        query: `(d,)` for "attention".

    Returns:
        `(groups, d)`.
    """
    # Not `bincount`, which waits for a GPU to tell its largest group.
    sizes = groups.new_zeros(n_groups).index_add(0, groups, torch.ones_like(groups))
    if pooling == "last":
        return states[sizes.cumsum(dim=0) - 1]
    index = groups.unsqueeze(1).expand_as(states)
    if pooling == "min":
        empty = states.new_zeros(n_groups, states.shape[1])
        return empty.scatter_reduce(0, index, states, "amin", include_self=False)
    wide = states.float()
    empty = wide.new_zeros(n_groups, states.shape[1])
    if query is None:
        return (empty.index_add(0, groups, wide) / sizes.unsqueeze(1)).to(states.dtype)
    scores = (wide @ query.float()) / math.sqrt(states.shape[1])
    highest = scores.detach().new_zeros(n_groups)
    highest = highest.scatter_reduce(0, groups, scores.detach(), "amax", include_self=False)
    weights = (scores - highest[groups]).exp().unsqueeze(1)
    totals = weights.new_zeros(n_groups, 1).index_add(0, groups, weights)
    return (empty.index_add(0, groups, wide * weights) / totals).to(states.dtype)


def merge_slots(
    slots: torch.Tensor, tokens: int, rate: int, coarser: int, pooling: str
) -> torch.Tensor:
    """A segment's slots at a coarser rate, made of those of a finer one.

    Args:
        slots: `(slots, d_encoder)` at `rate`.
        tokens: encoder tokens of the segment.
        rate: of `slots`.
        coarser: a multiple of it.
        pooling: one of `MERGED`.

    Returns:
        `(coarser slots, d_encoder)`.
    """
    index = torch.arange(len(slots), device=slots.device)
    groups = index // (coarser // rate)
    n_groups = -(-tokens // coarser)
    if pooling != "mean":
        return pool_groups(slots, groups, n_groups, pooling)
    # Each counts as many times as the tokens it stands for.
    counts = (tokens - index * rate).clamp(max=rate).unsqueeze(1)
    sums = slots.new_zeros(n_groups, slots.shape[1], dtype=torch.float32)
    sums = sums.index_add(0, groups, slots.float() * counts)
    weights = torch.zeros_like(sums[:, :1]).index_add(0, groups, counts.float())
    return (sums / weights).to(slots.dtype)
