"""The decoder's own first layers as the encoder: weights shared, LoRA on top, no second copy.

PCC-Large starts its encoder from the decoder's weights and trains a LoRA (PCC, section 3.1.2). Here
those weights are not copied: the encoder is another tree of modules over the same parameters, so
that adapters in it leave the decoder as it is, and a compressor costs its adapter and no more.
"""

import copy

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

SHARED_ENCODER = "decoder"
"""In place of an encoder's name: the decoder's own first layers."""


def first_layers(decoder: PreTrainedModel, count: int | None = None) -> PreTrainedModel:
    """The decoder's base model, cut after its first layers, over the decoder's own parameters.

    Args:
        decoder: a causal LM.
        count: layers; all of them by default.

    Returns:
        A base model whose parameters are the decoder's, and whose modules are not.

    Raises:
        ValueError: more layers than the decoder has, or a decoder whose layers are not in one list.
    """
    body, name, layers = _body_and_layers(decoder)
    count = len(layers) if count is None else count
    if not 1 <= count <= len(layers):
        raise ValueError(
            f"encoder_layers={count}, but the decoder {type(decoder).__name__} has {len(layers)} "
            f"layers; use 1 to {len(layers)} (about a third of them makes a light encoder)."
        )
    if count < len(layers) and getattr(body.config, "hidden_size_per_layer_input", 0):
        raise ValueError(
            f"{type(decoder).__name__} has embeddings of its own for each layer, so its first "
            f"{count} layers cannot be run by themselves; leave encoder_layers out (all layers)."
        )
    encoder = _over_same_parameters(body)
    setattr(encoder, name, getattr(encoder, name)[:count])
    encoder.config = first_layers_config(body.config, count)
    return encoder


def first_layers_config(config: PreTrainedConfig, count: int) -> PreTrainedConfig:
    """A copy of a text model's configuration with its first `count` layers."""
    shorter = copy.deepcopy(config.get_text_config())
    total = shorter.num_hidden_layers
    shorter.num_hidden_layers = count
    for key, value in list(vars(shorter).items()):  # layer_types and its like: an entry a layer
        if isinstance(value, (list, tuple)) and len(value) == total:
            setattr(shorter, key, type(value)(value[:count]))
    sharing = getattr(shorter, "num_kv_shared_layers", None)
    if sharing:  # Gemma's last layers take keys and values of earlier ones: which ones stays fixed
        shorter.num_kv_shared_layers = max(0, count - (total - sharing))
    return shorter


def _body_and_layers(decoder: PreTrainedModel) -> tuple[PreTrainedModel, str, nn.ModuleList]:
    """The model that runs the decoder's layers, and the name and list of them."""
    total = decoder.config.get_text_config(decoder=True).num_hidden_layers
    places = [
        (module, name, child)
        for module in decoder.modules()
        if isinstance(module, PreTrainedModel)
        for name, child in module.named_children()
        if isinstance(child, nn.ModuleList)
        and len(child) == total
        and all(isinstance(layer, GradientCheckpointingLayer) for layer in child)
    ]
    if len(places) != 1:
        raise ValueError(
            f"encoder {SHARED_ENCODER!r} needs a decoder whose {total} layers stand in one list, "
            f"and {type(decoder).__name__} has {len(places)} such lists; name an encoder of its "
            "own instead."
        )
    return places[0]


def _over_same_parameters(module: nn.Module) -> nn.Module:
    """Another tree of modules that holds the very parameters and buffers of this one."""
    twin = copy.copy(module)
    for name in ("_parameters", "_buffers", "_non_persistent_buffers_set"):
        twin.__dict__[name] = copy.copy(module.__dict__[name])
    for name in list(twin.__dict__):
        if name.endswith("_hooks"):
            twin.__dict__[name] = type(module.__dict__[name])()
    twin.__dict__["_modules"] = {
        name: None if child is None else _over_same_parameters(child)
        for name, child in module._modules.items()
    }
    return twin
