"""Memories whose slots are not written yet: what they take is known from their segments alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from memslots.modeling import Memory, MemslotsModel
from memslots.modeling.encoders_memslots import encode_spans
from memslots.modeling.texts_memslots import Detectors


class LaidOut:
    """Texts cut into segments, before the encoder has seen them.

    Args:
        model: The compressor.
        texts: n texts.
        rate: Encoder tokens per slot; by default the finest.
        literals: What rides beside the slots; None leaves it to the checkpoint.

    Raises:
        ValueError: As `compress`.
    """

    def __init__(
        self,
        model: MemslotsModel,
        texts: Sequence[str],
        rate: int | None = None,
        literals: Detectors | None = None,
    ):
        self._model, self._rate = model, model.processor.check_rate(rate)
        self._segments = model.segment(list(texts))
        self.memory = model.outline(texts, self._segments, self._rate, literals)
        """The memory that `compress` will return, without its slots."""

    def compress(self) -> Memory:
        """The memory with its slots, as `model.compress` makes it."""
        flat = [segment for segments in self._segments for segment in segments]
        slots = encode_spans(self._model, flat, self._rate, None, progress=False)
        return replace(self.memory, slots=slots)


def without_slots(memory: Memory) -> Memory:
    """The same memory, whose slots are on no device and take no bytes."""
    return memory.to("meta")


def no_context(model: MemslotsModel) -> Memory:
    """A document without segments: a chat about it is the decoder's alone."""
    outline = model.outline([""], [[]], model.config.compression_rates[0])
    return replace(outline, slots=torch.empty(0, model.config.slot_size))


def joined(memories: Sequence[Memory], rate: int | None = None) -> Memory:
    """The documents of several memories in one, in order.

    Args:
        memories: Of one compressor.
        rate: A coarser rate than their own.

    Raises:
        ValueError: Several rates, if none of them is of segments that have rates of their own.
    """
    if rate is not None:
        memories = [memory.at_rate(rate) for memory in memories]
    rates = sorted({memory.rate for memory in memories})
    if len(rates) > 1 and not any(memory.checks for memory in memories):
        raise ValueError(
            f"these memories have the rates {rates}; say rate={rates[-1]}, or ask for them one by "
            "one."
        )
    return Memory.cat(list(memories))
