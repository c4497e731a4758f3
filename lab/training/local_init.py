"""Initial weights of a small Llama encoder whose memory tokens already gather their neighbourhood.

Slots are easy to learn where they start in the geometry of the decoder's embeddings: a free map
from four tokens to a slot answered 87% of its target tokens after 75 steps from a sum of
embeddings, and 51% from random weights (docs/log.md, 2026-11-23). So the encoder's first dimensions
hold the decoder's embeddings, some heads of its first layer write the mean of the last few of
them, others tell their places apart, the second layer looks further back, and the converter starts
as the identity on those dimensions. Training does the rest. After "Mimetic Initialization of
Self-Attention Layers" (Trockman and Kolter 2023), as `induction_init`.
"""

import math

import torch
from torch import nn
from transformers import LlamaModel

from lab.training.induction_init import orthogonal
from memslots.modeling import MemslotsModel
from memslots.modeling.encoders_memslots import Converter

_CONSTANT = 0.25
"""Length of the constant direction in every embedding, which heads of fixed distance read."""


@torch.no_grad()
def initialize_local(model: MemslotsModel, rows: torch.Tensor) -> None:
    """Writes encoder, memory tokens and converter in place (torch's global random state is used).

    Where slots are pooled there are no memory tokens to write, and a converter other than an MLP is
    left as it is.

    Args:
        model: a compressor with a Llama encoder that is wider than the decoder, and a converter
            that is at least twice as wide as the decoder inside where it is an MLP.
        rows: `(encoder vocabulary, d_decoder)`, the decoder's embedding of each encoder token.

    Raises:
        ValueError: the encoder is another architecture, or a width or a number of heads is too
            small.
    """
    encoder, config = model.encoder, model.encoder.config
    heads = config.num_attention_heads
    if not isinstance(encoder, LlamaModel) or config.num_key_value_heads != heads:
        raise ValueError(
            "initialize_local writes a Llama encoder with as many key-value heads as heads."
        )
    aligned, width, size = rows.shape[1], config.hidden_size, config.head_dim
    window = model.config.compression_rates[0]
    mean_heads = aligned // size
    converter = model.converter if isinstance(model.converter, Converter) else None
    hidden = 2 * aligned if converter is None else converter.up.out_features
    if width <= aligned or heads < mean_heads + window or hidden < 2 * aligned:
        raise ValueError(
            f"initialize_local needs an encoder wider than {aligned}, at least "
            f"{mean_heads + window} heads of {size} and a converter of at least {2 * aligned}; got "
            f"{width}, {heads} and {hidden}."
        )
    spare = width - aligned
    length = rows.norm(dim=1).mean()
    embeddings = encoder.get_input_embeddings().weight
    embeddings.normal_(0, 0.02)
    embeddings[:, :aligned] = rows / length
    embeddings[:, -1] = _CONSTANT
    memory_tokens = model.memory_tokens
    if memory_tokens is not None:
        memory_tokens.normal_(0, 0.02)
        memory_tokens[:, :aligned] = 0
        memory_tokens[:, aligned:] += nn.functional.normalize(torch.randn(spare), dim=0)
        memory_tokens[:, -1] = _CONSTANT

    values = orthogonal(aligned)
    n_place = heads - mean_heads
    read = mean_heads * size
    for depth, layer in enumerate(encoder.layers):
        attention = layer.self_attn
        for projection in (attention.q_proj, attention.k_proj):
            projection.weight.normal_(0, 0.03)
        attention.v_proj.weight.zero_()
        attention.v_proj.weight[:read, :aligned] = values[:read]
        for head in range(n_place):
            start = read + head * size
            attention.v_proj.weight[start : start + size, :aligned] = orthogonal(aligned)[:size]
        attention.o_proj.weight.normal_(0, 0.005)
        first = depth == 0
        attention.o_proj.weight[:aligned, :read] = values[:read].T * (0.5 if first else 0.1)
        attention.o_proj.weight[aligned:-1, read:].normal_(0, 0.1 if first else 0.2)
        attention.o_proj.weight[aligned:-1, read:] /= math.sqrt(n_place * size)
        if first:
            for head in range(mean_heads):
                _fix_distance(attention, config, head, (window - 1) / 2, 0.5)
            for head in range(n_place):
                # Two heads a place where there are enough, the last ones beyond the window.
                distance = head // 2 if n_place >= 2 * window else head
                _fix_distance(attention, config, mean_heads + head, distance, 3.0)
        else:
            for head in range(mean_heads):
                distance = round(head * 3.25 * window / max(1, mean_heads - 1))
                _fix_distance(attention, config, head, distance, 0.25)
        layer.mlp.gate_proj.weight.normal_(0, 0.05)
        layer.mlp.up_proj.weight.normal_(0, 0.05)
        layer.mlp.down_proj.weight.normal_(0, 0.01)

    if converter is not None:
        _start_as_identity(converter, aligned, rows.std().item())


def _fix_distance(attention, config, head: int, distance: float, sharpness: float) -> None:
    """Makes a head look `distance` tokens back: its score falls with the square of the error."""
    size = config.head_dim
    half = size // 2
    turns = config.rope_parameters["rope_theta"] ** (-torch.arange(half) / half)  # radians a token
    # What RMSNorm makes of the constant, where the rest of an embedding has length 1.
    read = math.sqrt(config.hidden_size / (1 + _CONSTANT**2)) * _CONSTANT
    gain = math.sqrt(sharpness * math.sqrt(size)) / read
    for projection in (attention.q_proj, attention.k_proj):
        projection.weight[head * size : (head + 1) * size] *= 0.3
    low = head * size + torch.arange(half)
    attention.q_proj.weight[low, -1] += gain
    attention.k_proj.weight[low, -1] += torch.cos(turns * distance) * gain
    attention.k_proj.weight[low + half, -1] += torch.sin(turns * distance) * gain


def _start_as_identity(converter, aligned: int, scale: float) -> None:
    """GELU(x) - GELU(-x) = x: pairs of hidden units pass the aligned dimensions on."""
    nn.init.normal_(converter.up.weight, std=1 / math.sqrt(converter.up.in_features))
    nn.init.normal_(converter.down.weight, std=0.002)
    nn.init.zeros_(converter.up.bias)
    nn.init.zeros_(converter.down.bias)
    one = torch.eye(aligned, device=converter.up.weight.device)
    converter.up.weight[: 2 * aligned] *= 0.05
    converter.up.weight[:aligned, :aligned] += one
    converter.up.weight[aligned : 2 * aligned, :aligned] -= one
    converter.down.weight[:, :aligned] += one * scale
    converter.down.weight[:, aligned : 2 * aligned] -= one * scale
