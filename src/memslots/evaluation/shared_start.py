"""The start that all prompts of a task share, such as worked examples: the decoder reads it once.

Three worked examples are several times as long as the memory of a paragraph, so that without this
most of an evaluation goes into reading them again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional
from transformers import DynamicCache, PreTrainedModel

from memslots.modeling import Memory, MemslotsModel
from memslots.modeling.layout_memslots import Prompt, Row
from memslots.prefix import check_keeps_states, read_states, sequences_of

LEAST = 16
"""Tokens; a shorter start is not worth a pass of its own."""


class SharedStart:
    """Keys and values of the first tokens of several rows, for `MemslotsModel.answer_rows`.

    Args:
        states: of each layer of the decoder, keys and values `(1, heads, tokens, head size)`.
        lengths: prompt tokens of each row, by `id` of the row.
    """

    def __init__(
        self, states: dict[int, tuple[torch.Tensor, torch.Tensor]], lengths: dict[int, int]
    ):
        self.states, self.lengths = states, lengths
        self.tokens = next(iter(states.values()))[0].shape[2]

    def cache(
        self, decoder: PreTrainedModel, rows: Sequence[Row], kwargs: dict[str, Any]
    ) -> DynamicCache:
        """A cache of these rows, padded on the left: the start, as far as it stands in each one."""
        lengths = [self.lengths[id(row)] for row in rows]
        gaps = [min(max(lengths) - length, self.tokens) for length in lengths]
        copies = sequences_of(decoder, kwargs)

        def padded(part: torch.Tensor) -> torch.Tensor:
            kept = [functional.pad(part[:, :, : self.tokens - gap], (0, 0, gap, 0)) for gap in gaps]
            return torch.cat(kept).repeat_interleave(copies, dim=0)

        cache = DynamicCache(config=decoder.config.get_text_config(decoder=True))
        for layer, pair in self.states.items():
            cache.update(*map(padded, pair), layer)
        return cache

    def copies(self, rows: int) -> DynamicCache:
        """A cache of so many rows, padded on the right: each holds all of the start."""
        cache = DynamicCache()
        for layer, pair in self.states.items():
            cache.update(*(part.expand(rows, -1, -1, -1) for part in pair), layer)
        return cache


def read_shared_start(
    model: MemslotsModel, rows: Sequence[Row], lengths: Sequence[int], memory: Memory | None
) -> SharedStart | None:
    """Reads what all rows begin with; None where that is short, or cannot be kept.

    Args:
        model: with its decoder.
        rows: of prompts.
        lengths: prompt tokens of each.
        memory: that the rows read, or None.
    """
    if len(rows) < 2:
        return None
    # Each row itself reads the last token before its answer.
    begins = [
        row.prompt.before if row.segments or row.prompt.after else row.prompt.before[:-1]
        for row in rows
    ]
    differ = (n for n, ids in enumerate(zip(*begins, strict=False)) if len(set(ids)) > 1)
    tokens = next(differ, min(map(len, begins)))
    if tokens < LEAST:
        return None
    try:
        check_keeps_states(model.decoder)
    except ValueError:
        return None
    inputs = model.row_inputs([Row([], Prompt(begins[0][:tokens]))], None, "right")
    if "per_layer_inputs" in inputs:
        return None
    lora = None if memory is None else model.decoder_lora
    read = read_states(model.decoder, lora, inputs)
    states = {layer: (keys, values) for layer, keys, values in read}
    return SharedStart(states, {id(row): n for row, n in zip(rows, lengths, strict=True)})
