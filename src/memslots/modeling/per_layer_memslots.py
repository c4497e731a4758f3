"""Decoders with per-layer embeddings (Gemma 4 E2B, Gemma 3n): slots beside token identities.

Such a decoder looks every token up a second time, for each of its layers. Given embeddings alone it
tries to find the tokens that they belong to, and slots belong to none. So the second look-up is
done here: the tokens' own, and the padding token's where slots and markers stand, which is what
Gemma 4 does with images. It is given to the prefill alone; generation goes on from its cache with
tokens.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel


def per_layer_inputs(decoder: PreTrainedModel, input_ids: torch.Tensor) -> torch.Tensor | None:
    """What each layer gets of each position's token; None where the decoder has no such thing.

    Args:
        decoder: a causal LM.
        input_ids: `(rows, length)`, the padding token's where slots and markers stand.

    Returns:
        `(rows, length, layers, hidden_size_per_layer_input)`.
    """
    if not getattr(decoder.config.get_text_config(), "hidden_size_per_layer_input", 0):
        return None
    for module in decoder.modules():
        if hasattr(module, "embed_tokens_per_layer"):
            return module.get_per_layer_inputs(input_ids).detach()  # type: ignore[operator]
    raise ValueError(
        f"{type(decoder).__name__} has per-layer embeddings that memslots does not find "
        "(embed_tokens_per_layer); it works with those of Gemma 3n and Gemma 4."
    )


@contextmanager
def prefilled_with(decoder: PreTrainedModel, given: torch.Tensor | None) -> Iterator[None]:
    """While open, a forward of `decoder` from embeddings gets `given` beside them.

    `generate` would pass it to every step, and the steps after the prefill have their own tokens.

    Args:
        decoder: a causal LM, about to generate.
        given: of `per_layer_inputs`, or None, which changes nothing.
    """
    if given is None:
        yield
        return

    def add(module: torch.nn.Module, args: tuple, kwargs: dict[str, Any]):
        embeds = kwargs.get("inputs_embeds")
        if embeds is None:
            return None
        times, rest = divmod(len(embeds), len(given))  # beams repeat each row
        if rest or embeds.shape[1] != given.shape[1]:
            raise ValueError(
                f"{type(decoder).__name__} has per-layer embeddings, which are prefilled in one "
                "pass and with a cache; leave out use_cache=False and prefill_chunk_size."
            )
        return args, {**kwargs, "per_layer_inputs": given.repeat_interleave(times, dim=0)}

    hook = decoder.register_forward_pre_hook(add, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()
