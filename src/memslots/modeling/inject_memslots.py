"""Slots that enter the decoder at a middle layer instead of among its input embeddings.

The sentence-pools article names it as a next experiment. Below the layer a slot's place holds the
`<MEM>` marker, so that positions and masks are those of any memory; at the layer's input the hidden
state there is replaced by the converter's output. Forward hooks do it while a memory is read, so
the decoder's modules, weights and state stay as they are.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer


@dataclass(eq=False)
class Injection:
    """What replaces hidden states of rows; an index takes the same part of both tensors.

    Args:
        vectors: `(rows, length, d_decoder)`.
        places: `(rows, length)`, true where a slot stands.
    """

    vectors: torch.Tensor
    places: torch.Tensor

    def __getitem__(self, index) -> "Injection":
        return Injection(self.vectors[index], self.places[index])


def decoder_layers(decoder: PreTrainedModel) -> nn.ModuleList:
    """The decoder's layers, in order.

    Raises:
        ValueError: no list of as many layers as its configuration says, or several.
    """
    count = decoder.config.get_text_config(decoder=True).num_hidden_layers
    found = [
        module
        for module in decoder.modules()
        if isinstance(module, nn.ModuleList)
        and len(module) == count
        and all(isinstance(layer, GradientCheckpointingLayer) for layer in module)
    ]
    if len(found) != 1:
        raise ValueError(
            f"inject_layer needs a decoder whose {count} layers stand in one list, and "
            f"{type(decoder).__name__} has {len(found)} such lists; leave inject_layer out."
        )
    return found[0]


@contextmanager
def injected_at(decoder: PreTrainedModel, layer: int, given: Injection | None) -> Iterator[None]:
    """While open, a forward of `decoder` from embeddings gets `given` at the input of a layer.

    The steps that follow a prefill have tokens, and are left alone.

    Args:
        decoder: a causal LM.
        layer: counted from 0.
        given: None changes nothing.
    """
    if given is None:
        yield
        return
    from_embeddings = False

    def note(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        nonlocal from_embeddings
        from_embeddings = kwargs.get("inputs_embeds") is not None

    def replace(module: nn.Module, args: tuple, kwargs: dict[str, Any]):
        if not from_embeddings:
            return None
        states = args[0] if args else kwargs["hidden_states"]
        changed = _replaced(decoder, states, given)
        if args:
            return (changed, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": changed}

    hooks = [
        decoder.register_forward_pre_hook(note, with_kwargs=True),
        decoder_layers(decoder)[layer].register_forward_pre_hook(replace, with_kwargs=True),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _replaced(decoder: PreTrainedModel, states: torch.Tensor, given: Injection) -> torch.Tensor:
    length = given.places.shape[1]
    times, rest = divmod(len(states), max(len(given.places), 1))  # beams repeat each row
    if states.dim() != 3 or rest or states.shape[1] < length:
        raise ValueError(
            f"inject_layer: {type(decoder).__name__} reads a prompt of {length} positions as "
            f"states {tuple(states.shape)}; slots are injected in one pass over (rows, positions, "
            "width), so leave out prefill_chunk_size, or inject_layer where the decoder has no "
            "such states."
        )
    vectors = given.vectors.repeat_interleave(times, dim=0).to(states)
    places = given.places.repeat_interleave(times, dim=0).unsqueeze(-1)
    read = torch.where(places, vectors, states[:, :length])
    return torch.cat([read, states[:, length:]], dim=1)  # without a cache, new tokens follow


@torch.no_grad()
def state_scale(decoder: PreTrainedModel, layer: int) -> float:
    """Standard deviation of a position's hidden state at the input of `layer`, the median of many.

    A few positions (the first, mostly) may have states a hundred times as large as all others.
    """
    seen: list[torch.Tensor] = []

    def keep(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        seen.append(args[0] if args else kwargs["hidden_states"])

    hook = decoder_layers(decoder)[layer].register_forward_pre_hook(keep, with_kwargs=True)
    embeddings = decoder.get_input_embeddings().weight
    ids = torch.arange(0, embeddings.shape[0], max(1, embeddings.shape[0] // 64))
    try:
        decoder(input_ids=ids.unsqueeze(0).to(embeddings.device), use_cache=False)
    finally:
        hook.remove()
    return seen[0].float().std(dim=-1).median().item()
