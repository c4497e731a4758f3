"""Pools of token states for table 2 of the capacity report: last state, smallest, attention.

After "LLM context compression" (AIRI Summer School 2025, section 4.1). They gave back no more than
the mean did (docs/capacity_compressors.md), so the package does not carry them: importing this
module adds them to it, and a checkpoint of theirs is read where it was imported. A memory of
theirs has one rate: to read it at a coarser one, compress the text again.
"""

import math

import torch
from torch import nn

from memslots.modeling.encoders_memslots import POOLS, group_sizes


class LastPool(nn.Module):
    """A slot is the last state of its group; arguments as for `GroupPool`."""

    def forward(self, embeds, states, groups, n_groups, places=None) -> torch.Tensor:
        """Slots `(groups, width)`."""
        return states[group_sizes(groups, n_groups).cumsum(dim=0) - 1]


class MinPool(nn.Module):
    """A slot is the smallest value of each dimension in its group; arguments as for `GroupPool`."""

    def forward(self, embeds, states, groups, n_groups, places=None) -> torch.Tensor:
        """Slots `(groups, width)`."""
        index = groups.unsqueeze(1).expand_as(states)
        empty = states.new_zeros(n_groups, states.shape[1])
        return empty.scatter_reduce(0, index, states, "amin", include_self=False)


class AttentionPool(nn.Module):
    """A slot is the mean of its group's states weighted by a learned query; all alike at first.

    Args:
        width: of states and slots.
    """

    def __init__(self, width: int):
        super().__init__()
        self.query = nn.Parameter(torch.zeros(width))

    def forward(self, embeds, states, groups, n_groups, places=None) -> torch.Tensor:
        """Slots `(groups, width)`; arguments as for `GroupPool`."""
        wide = states.float()
        scores = (wide @ self.query.float()) / math.sqrt(states.shape[1])
        highest = scores.detach().new_zeros(n_groups)
        highest = highest.scatter_reduce(0, groups, scores.detach(), "amax", include_self=False)
        weights = (scores - highest[groups]).exp().unsqueeze(1)
        totals = weights.new_zeros(n_groups, 1).index_add(0, groups, weights)
        sums = wide.new_zeros(n_groups, states.shape[1]).index_add(0, groups, wide * weights)
        return (sums / totals).to(states.dtype)


POOLS.update(
    last=lambda config: LastPool(),
    min=lambda config: MinPool(),
    attention=lambda config: AttentionPool(config.slot_size),
)
