"""The order of rows in which those that are told apart by their context alone share a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch.utils.data import Sampler


class ContrastGroups(Sampler[int]):
    """Shuffles blocks of successive rows; rows of a block follow one another.

    Args:
        rows: in the dataset.
        size: of a block; a divisor of the batch size, so that no batch divides a block.
        seed: of the shuffling.
        epoch: the current epoch, which is shuffled in its own way.
    """

    def __init__(self, rows: int, size: int, seed: int, epoch: Callable[[], int]):
        self.rows = rows
        self.size = size
        self.seed = seed
        self.epoch = epoch

    def __len__(self) -> int:
        return self.rows

    def __iter__(self) -> Iterator[int]:
        """Rows of one epoch; a last block that is short stays last."""
        generator = torch.Generator().manual_seed(self.seed + 1_000_003 * self.epoch())
        whole = self.rows // self.size
        for block in torch.randperm(whole, generator=generator).tolist():
            yield from range(block * self.size, (block + 1) * self.size)
        yield from range(whole * self.size, self.rows)
