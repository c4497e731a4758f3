"""Pooling of states into slots, and slots at a coarser rate, without encoding again."""

import math
import warnings
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional

POOLED = ("mean", "last", "min", "attention", "groups")
"""Values of `MemslotsConfig.pooling` that pool token states: their mean (LCLM, 2026), the last one,
the smallest value of each dimension, their mean weighted by a learned query (the last three: AIRI
report, section 4.1), or `GroupPool`, which starts from the tokens' own embeddings (ours)."""

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


class GroupPool(nn.Module):
    """A slot from the embeddings and states of its group of tokens, told apart by their places.

    `slot = sum_j skip_j e_j + down(GELU(sum_j up_j norm(h_j) + bias))`, where token j counts back
    from the group's last one, e is its input embedding and h its state. `down` starts at zero and
    `skip` as a falling multiple of the identity, so that untrained slots are sums of embeddings: in
    the geometry that the decoder reads. Rates share their weights: a coarser one has more places.

    Args:
        width: of embeddings, states and slots.
        hidden: width inside.
        places: tokens of the largest group.
    """

    def __init__(self, width: int, hidden: int, places: int):
        super().__init__()
        self.skip = nn.Parameter(torch.empty(places, width, width))
        self.norm = nn.RMSNorm(width, eps=1e-6)
        self.up = nn.Parameter(torch.empty(places, hidden, width))
        self.bias = nn.Parameter(torch.empty(hidden))
        self.down = nn.Linear(hidden, width)

    def forward(
        self,
        embeds: torch.Tensor,
        states: torch.Tensor,
        groups: torch.Tensor,
        n_groups: int,
        places: int | None = None,
    ) -> torch.Tensor:
        """Slots `(groups, width)`.

        Args:
            embeds: `(tokens, width)`, group after group.
            states: `(tokens, width)`.
            groups: `(tokens,)`, the group of each, rising from 0.
            n_groups: groups, none empty.
            places: tokens of the largest group here, where that is known to be fewer than `places`
                of the module.
        """
        places = places or len(self.skip)
        sizes = groups.new_zeros(n_groups).index_add(0, groups, torch.ones_like(groups))
        ends = sizes.cumsum(dim=0)
        back = ends[groups] - 1 - torch.arange(len(groups), device=groups.device)
        index = groups * places + back
        width = embeds.shape[1]

        def grouped(tokens: torch.Tensor) -> torch.Tensor:  # a short group ends in zeros
            rows = tokens.new_zeros(n_groups * places, width).index_copy(0, index, tokens)
            return rows.view(n_groups, places * width)

        embeds = embeds.to(self.down.weight.dtype)
        skip = self.skip[:places].transpose(0, 1).flatten(1)
        up = self.up[:places].transpose(0, 1).flatten(1)
        normed = self.norm(states.to(embeds.dtype))
        inner = functional.linear(grouped(normed), up, self.bias)
        return functional.linear(grouped(embeds), skip) + self.down(functional.gelu(inner))

    @torch.no_grad()
    def init_weights(self) -> None:
        """Untrained weights: slots are sums of embeddings, the last token's the largest."""
        places, _, width = self.skip.shape
        for place in range(places):
            nn.init.eye_(self.skip[place])
            self.skip[place] *= 1 / (1 + 0.9 * place)
        nn.init.ones_(self.norm.weight)
        nn.init.normal_(self.up, std=1 / math.sqrt(4 * width))
        for tensor in (self.bias, self.down.weight, self.down.bias):
            nn.init.zeros_(tensor)


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


def coarsened(memory, rate: int):
    """See `Memory.at_rate`."""
    if rate not in memory.rates:
        raise ValueError(
            f"rate {rate!r} is not one that the compressor was trained for: {list(memory.rates)}."
        )
    if rate < memory.rate:
        raise ValueError(
            f"this memory has rate {memory.rate}; the finer rate {rate} needs slots that it does "
            "not hold. Compress the text again with that rate."
        )
    if rate == memory.rate:
        return memory
    if not memory.coarsens_to(rate):
        raise ValueError(
            f"the slots of rate {rate} cannot be made of those of rate {memory.rate} "
            + (
                "(only those of its multiples can)"
                if memory.pooling in MERGED
                else "(attention's weights are not kept)"
                if memory.pooling == "attention"
                else "(the encoder is not causal)"
            )
            + f"; compress the text again with rate={rate}."
        )
    checked = sum(0 < check.rate < rate and check.lost is not None for check in memory.checks)
    if checked:
        warnings.warn(
            f"at rate {rate} {checked} of {len(memory.segments)} segments have other slots than "
            "those that were checked: what these lose is not known. Literals, kept texts and "
            "segments read as text stay. To have it checked, call verified.compress with "
            f"rate={rate} or rates=[{rate}]",
            stacklevel=3,
        )
    kept: list[torch.Tensor] = []
    documents, checks, start = [], list[Any](), 0
    rates = iter(memory.segment_rates)
    for document in memory.documents:
        coarse = []
        for segment in document:
            slots, finer = memory.slots[start : start + segment.slots], next(rates)
            start += segment.slots
            check = memory.checks[len(checks)] if memory.checks else None
            if 0 < finer < rate:  # else it is text, or as coarse already
                count = -(-segment.tokens // rate)
                if memory.pooling in MERGED:
                    slots = merge_slots(slots, segment.tokens, finer, rate, memory.pooling)
                slots = slots[:count]
                check = check and check.with_other_slots(rate, segment.slots - count)
                segment = replace(segment, slots=count)
            kept.append(slots)
            coarse.append(segment)
            if check is not None:
                checks.append(check)
        documents.append(tuple(coarse))
    return replace(
        memory,
        slots=torch.cat(kept) if kept else memory.slots[:0],
        documents=tuple(documents),
        rate=rate,
        checks=tuple(checks),
    )
