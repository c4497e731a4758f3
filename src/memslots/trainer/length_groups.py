"""Batches of rows of like length: `train_sampling_strategy="group_by_length"` for our rows."""

from collections.abc import Callable, Iterator, Sequence

import torch
from datasets import Dataset
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices

from memslots.modeling.processing_memslots import MemslotsProcessor

GROUPED = ("group_by_length", "batch_rebalance")
"""Strategies of `TrainingArguments` that need every row's length."""


class LengthGroupedRows(Sampler[int]):
    """Every row once an epoch, neighbours alike in length, in an order of the seed and the epoch.

    transformers' own sampler draws from the global generator, whose state when the epoch began is
    lost when a run is resumed in it.

    Args:
        lengths: of the rows.
        batch_size: rows of one optimizer step, over all processes and accumulated batches.
        seed: of the order.
        epoch: gives the epoch that is about to be read.
    """

    def __init__(
        self, lengths: Sequence[int], batch_size: int, seed: int, epoch: Callable[[], int]
    ):
        self.lengths = list(lengths)
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch())
        return iter(get_length_grouped_indices(self.lengths, self.batch_size, generator=generator))


def row_lengths(
    dataset: Dataset, processor: MemslotsProcessor, training_segments: int, column: str
) -> list[int]:
    """Encoder tokens that each row compresses, from `column` where the dataset has it.

    Args:
        dataset: rows of `text`, or of `context`, `question` and `answer`.
        processor: counts the tokens.
        training_segments: most segments of a text that are compressed.
        column: name of a column of lengths, `length_column_name` of the training arguments.
    """
    if column in dataset.column_names:
        return list(dataset[column])
    most = training_segments * processor.segment_length
    lengths = []
    for row in dataset:
        text = row.get("text")
        text = None if text is None else text[: row.get("compress_until")]
        tokens = len(processor.encoder_text.encode(row["context"] if text is None else text))
        lengths.append(tokens if text is None else min(tokens, most))
    return lengths
