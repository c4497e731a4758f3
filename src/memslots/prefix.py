"""Prefix: a memory that the decoder has already read, so that questions share the reading.

    prefix = prefill(model, memory)
    model.generate(memory=prefix, question=["Who signed?", "Where?"])

Kept are the decoder's keys and values of what stands before the first token that depends on the
question: BOS, the template's text before the memory, markers, slots and verbatim tokens. Each batch
gets them copied into a cache of its own, cut where the batch's longest question begins: a shorter
question's row is padded on the left as in a run without a prefix, and reads the prefix's last few
tokens anew. So the rows of both runs are the same, sliding windows included.
"""

import inspect
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn import functional
from transformers import DynamicCache, PreTrainedModel

from memslots.modeling.decoders_memslots import (
    check_generate_kwargs,
    check_values,
    reading,
    run_decoder,
)
from memslots.modeling.layout_memslots import Prompt, Row, check_room
from memslots.modeling.memory_memslots import Memory
from memslots.modeling.modeling_memslots import MemslotsModel

States = dict[int, tuple[torch.Tensor, torch.Tensor]]
"""Keys and values of one document by layer, each `(heads, positions, head size)`."""

_KEPT = {"DynamicLayer", "DynamicSlidingWindowLayer", "DummyLayer"}
"""Kinds of cache layers that hold keys and values; the last, those of another layer. By name, since
not every supported transformers has all of them."""


@dataclass(eq=False)
class Prefix:
    """What `prefill` returns; `generate` takes it in the place of the memory.

    Args:
        memory: what was read.
        before: decoder tokens before the memory.
        states: the states of each document of `memory`, by layer.
        marks: the marks of the weights that read it, see `_Marks`.
    """

    memory: Memory
    before: list[int]
    states: list[States]
    marks: "_Marks"
    _documents: dict[tuple[int, ...], int] = field(init=False, repr=False)

    def __post_init__(self):
        starts = [0]
        for document in self.memory.documents:
            starts.append(starts[-1] + len(document))
        self._documents = {
            tuple(range(start, starts[i + 1])): i for i, start in enumerate(starts[:-1])
        }

    def __len__(self) -> int:
        return len(self.memory)

    def __repr__(self) -> str:
        return f"Prefix({self.positions} prompt tokens, {self.nbytes:,} bytes, of {self.memory!r})"

    @property
    def positions(self) -> list[int]:
        """Prompt tokens kept for each document."""
        return [next(iter(states.values()))[0].shape[1] for states in self.states]

    @property
    def nbytes(self) -> int:
        """Bytes that the keys and values take."""
        return sum(
            tensor.numel() * tensor.element_size()
            for states in self.states
            for pair in states.values()
            for tensor in pair
        )

    def check(self, model, prompts: list[Prompt], rate: int | None, kwargs: dict) -> None:
        """Refuse what this prefix was not made for.

        Args:
            model: the model that is asked.
            prompts: the prompts of the questions.
            rate: the rate that is asked for, or None.
            kwargs: arguments of `generate`.

        Raises:
            ValueError: another decoder, device, dtype or trained state than the one that read it,
                other text before the memory, another rate, or another kind of cache.
        """
        self.marks.check(model)
        if rate not in (None, self.memory.rate):
            raise ValueError(
                f"this prefix was read at rate {self.memory.rate}, so rate={rate} needs another "
                "one: prefill(model, memory.at_rate(rate))."
            )
        cache = check_generate_kwargs(kwargs).get("cache_implementation")
        cache = cache or model.decoder.generation_config.cache_implementation
        if cache is not None:
            raise ValueError(
                "a prefix is continued in a dynamic cache; leave out cache_implementation="
                f"{cache!r} (an argument, or in model.decoder.generation_config), or give the "
                "memory instead of its prefix."
            )
        for prompt in prompts:
            if prompt.before != self.before:
                decode = model.processor.tokenizer.decode
                raise ValueError(
                    f"this question has {decode(prompt.before)[-80:]!r} before the memory, and "
                    f"the prefix was read with {decode(self.before)[-80:]!r}; make one with "
                    "prefill(model, memory, messages=...), giving what stands before the memory."
                )

    def cache(
        self, decoder: PreTrainedModel, rows: Sequence[Row], kwargs: dict[str, Any]
    ) -> DynamicCache | None:
        """A cache of its own for a batch of rows that read this memory.

        Args:
            decoder: the decoder that continues it.
            rows: the rows of one batch, padded on the left.
            kwargs: arguments of `generate`.

        Returns:
            The states of `(rows * sequences)` sequences (beams, or samples) up to the position
            where the longest question begins; None if no row has anything before that.
        """
        copies = sequences_of(decoder, kwargs)
        documents = [self._documents[tuple(row.segments)] for row in rows]
        asked = [len(row.prompt.after) for row in rows]
        ends = [self.positions[i] + n for i, n in zip(documents, asked, strict=True)]
        length = max(ends) - max(asked)
        if length <= 0:
            return None
        kept = [max(0, end - max(asked)) for end in ends]
        cache = DynamicCache(config=decoder.config.get_text_config(decoder=True))
        for layer in self.states[0]:
            filled = []
            for part in (0, 1):
                parts = [
                    functional.pad(self.states[i][layer][part][:, :n], (0, 0, length - n, 0))
                    for i, n in zip(documents, kept, strict=True)
                ]
                filled.append(torch.stack(parts).repeat_interleave(copies, dim=0))
            cache.update(*filled, layer)
        return cache


@torch.no_grad()
def prefill(
    model: MemslotsModel,
    memory: Memory,
    messages: list[dict[str, Any]] | None = None,
    batch_size: int = 32,
    chat_template_kwargs: dict[str, Any] | None = None,
) -> Prefix:
    """Let the decoder read a memory once, for any number of questions about it.

    Worth it from the second question on: a prefix takes as many bytes as the decoder's KV cache of
    the memory (`Prefix.nbytes`), far more than the memory.

    Args:
        model: a compressor with its decoder.
        memory: one document or several.
        messages: what stands before the memory in a chat, such as a system message; what
            follows it is ignored. By default what stands there for `question=...`.
        batch_size: documents that are read at once.
        chat_template_kwargs: passed to the chat template; as in `generate` later.

    Raises:
        ValueError: another compressor's memory, more tokens than the decoder reads, or a decoder
            whose state is more than keys and values (recurrent layers).

    Examples:
        >>> prefix = prefill(model, model.compress("Ann is here."))
        >>> isinstance(model.generate(memory=prefix, question="Who?", max_new_tokens=2), str)
        True
    """
    processor, decoder = model.processor, model.decoder
    check_values({"batch_size": batch_size})
    model.check_memory(memory)
    check_keeps_states(decoder)
    template = chat_template_kwargs or {}
    if messages is None:
        before = processor.prompt(question="?", **template).before
    else:
        asked = any(
            isinstance(message, dict) and message.get("role") == "user" for message in messages
        )
        chat = list(messages) if asked else [*messages, {"role": "user", "content": "?"}]
        before = processor.prompt(messages=chat, **template).before
    documents = range(len(memory))
    rows = model.memory_rows(memory, [(i, Prompt(before)) for i in documents])
    check_room(model, memory, rows, documents, {})
    lengths = [positions + len(before) for positions in model.memory_positions(memory)]
    order = sorted(documents, key=lengths.__getitem__)
    states: list[States] = [{} for _ in rows]
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        inputs = model.row_inputs([rows[i] for i in batch], memory, "right")
        for layer, keys, values in read_states(decoder, model.decoder_lora, inputs):
            for i, row_keys, row_values in zip(batch, keys, values, strict=True):
                states[i][layer] = (
                    row_keys[:, : lengths[i]].clone(),
                    row_values[:, : lengths[i]].clone(),
                )
    return Prefix(memory, before, states, _Marks(model))


def read_states(
    decoder: PreTrainedModel, lora, inputs: dict[str, Any]
) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    """Layer, keys and values `(rows, heads, length, head size)` of right-padded rows."""
    embeds, mask = inputs["inputs_embeds"], inputs["attention_mask"]
    # Not of the decoder's configuration, with which a sliding layer would forget what a batch's
    # shorter questions read anew.
    cache = DynamicCache()
    with reading(decoder, lora):
        run_decoder(
            decoder,
            embeds,
            mask,
            start=embeds.shape[1] - 1,
            per_layer=inputs.get("per_layer_inputs"),
            past_key_values=cache,
            use_cache=True,
        )
    layers = [
        (i, layer.keys, layer.values)
        for i, layer in enumerate(cache.layers)
        if layer.is_initialized  # those that share another's keys and values have none
    ]
    if not layers or any(keys.shape[2] != mask.shape[1] for _, keys, _ in layers):
        raise _cannot_keep(decoder)
    yield from layers


def check_keeps_states(decoder: PreTrainedModel) -> None:
    """Refuse a decoder whose state is more than keys and values.

    Raises:
        ValueError: recurrent or other layers.
    """
    layers = DynamicCache(config=decoder.config.get_text_config(decoder=True)).layers
    kinds = {type(layer).__name__ for layer in layers}
    if kinds - _KEPT or "past_key_values" not in inspect.signature(decoder.forward).parameters:
        raise _cannot_keep(decoder)


def _cannot_keep(decoder: PreTrainedModel) -> ValueError:
    return ValueError(
        f"{type(decoder).__name__} keeps more of what it has read than keys and values by "
        "position, so no prefix can be shared; give generate the memory itself."
    )


def sequences_of(decoder: PreTrainedModel, kwargs: dict[str, Any]) -> int:
    """How many sequences `generate` makes of each row: beams, or samples."""
    configs = [kwargs.get("generation_config"), decoder.generation_config]
    counts = [1]
    for name in ("num_beams", "num_return_sequences"):
        values = [kwargs.get(name), *(getattr(config, name, None) for config in configs)]
        counts.append(next((value for value in values if value is not None), 1))
    return max(counts)


class _Marks:
    """What tells that the weights which read a memory have since changed.

    Args:
        model: a `MemslotsModel` with its decoder.
    """

    def __init__(self, model):
        decoder = model.decoder
        self._decoder = weakref.ref(decoder)
        self._place = str(decoder.device), str(decoder.dtype)
        self._versions = _versions(decoder)
        self._sample = _sample(model)

    def check(self, model) -> None:
        """Raise `ValueError` where `model` would read the memory otherwise now."""
        decoder = model.decoder
        place = str(decoder.device), str(decoder.dtype)
        if self._decoder() is not decoder:
            raise ValueError(
                "this prefix was read by another decoder than the one that is attached now; call "
                "prefill(model, memory) again."
            )
        if place != self._place:
            raise ValueError(
                f"this prefix was read by the decoder on {' in '.join(self._place)}, which is now "
                f"on {' in '.join(place)}; call prefill(model, memory) again."
            )
        if self._versions != _versions(decoder) or not _equal(self._sample, _sample(model)):
            raise ValueError(
                "weights that read this prefix (decoder, converter, markers or decoder_lora) have "
                "changed since; call prefill(model, memory) again."
            )


def _versions(decoder: PreTrainedModel) -> tuple[int, ...]:
    return tuple(0 if weight.is_inference() else weight._version for weight in decoder.parameters())


def _sample(model) -> list[torch.Tensor]:
    # Values, since fused optimizers change weights without counting it; a few of each tensor, since
    # a training step moves all.
    weights = [model.markers, *model.converter.parameters()]
    weights += [] if model.decoder_lora is None else [*model.decoder_lora.parameters()]
    return [weight.detach().flatten()[:256].clone() for weight in weights]


def _equal(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return len(first) == len(second) and all(
        ours.device == theirs.device and torch.equal(ours, theirs)
        for ours, theirs in zip(first, second, strict=True)
    )
