"""Layers of a Llama in few kernels, for a GPU, where torch's compiler is to be had.

Hugging Face's layer launches two dozen kernels that each read and write the whole hidden state; a
compiled one a dozen. All layers have one function, so that it is compiled once for frozen layers,
once for those with a LoRA, and once more for those that read after a kept prefix.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional


class Projection(NamedTuple):
    """Linear layers of one input, side by side, with their adapters or none.

    Args:
        weight: `(outputs, inputs)` of all.
        downs: `(rank, inputs)` each.
        ups: `(outputs, rank)` each.
    """

    weight: torch.Tensor
    downs: list[torch.Tensor]
    ups: list[torch.Tensor]


def projection(*modules: Any) -> Projection:
    """Frozen layers, or ones that PEFT has put a LoRA of scale 1 on."""
    bases = [getattr(module, "base_layer", module) for module in modules]
    adapted = [dict(module.named_parameters()) for module in modules]
    downs, ups = (
        [weight for named in adapted for name, weight in named.items() if side in name]
        for side in ("lora_A", "lora_B")
    )
    weights = [base.weight for base in bases]
    joint = weights[0] if len(weights) == 1 else torch.cat(weights).detach()
    return Projection(joint, downs, ups)


def project(x: torch.Tensor, weights: Projection) -> torch.Tensor:
    """Adapters are held in float32 and used in the precision of `x`."""
    y = functional.linear(x, weights.weight)
    if not weights.downs:
        return y
    inner = functional.linear(x, torch.cat(weights.downs).to(x.dtype))
    parts = inner.split([len(down) for down in weights.downs], dim=-1)
    pairs = zip(parts, weights.ups, strict=True)
    return y + torch.cat([functional.linear(part, up.to(x.dtype)) for part, up in pairs], dim=-1)


def normed(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """RMSNorm, computed in float32."""
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype) * weight


def turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary positions of `(rows, heads, tokens, width)`."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def run_layer(
    x: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    past: tuple[torch.Tensor, torch.Tensor] | None,
    norms: tuple[torch.Tensor, torch.Tensor],
    projections: tuple[Projection, Projection, Projection, Projection],
    heads: tuple[int, int],
    eps: float,
) -> torch.Tensor:
    """`(rows, tokens, width)` after one layer, which attends to `past` keys and values too."""
    into, out, gates, down = projections
    query_heads, key_heads = heads
    joint = project(normed(x, norms[0], eps), into)
    split = joint.unflatten(-1, (query_heads + 2 * key_heads, -1)).transpose(1, 2)
    query, key, value = split.split([query_heads, key_heads, key_heads], dim=1)
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    query, key = turned(query, cos, sin), turned(key, cos, sin)
    if past is None:
        read = functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, enable_gqa=True
        )
    else:
        before, tokens = past[0].shape[2], x.shape[1]
        key, value = torch.cat([past[0], key], dim=2), torch.cat([past[1], value], dim=2)
        key, value = (
            part.repeat_interleave(query_heads // key_heads, dim=1) for part in (key, value)
        )
        places = torch.arange(before + tokens, device=x.device)
        mask = places <= places[before:, None]
        read = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    x = x + project(read.transpose(1, 2).flatten(2), out)
    gate, up = project(normed(x, norms[1], eps), gates).chunk(2, dim=-1)
    return x + project(functional.silu(gate) * up, down)


def compile_layers(model: nn.Module, backend: str = "inductor") -> None:
    """Compiles each layer of a `LlamaModel` in place, before its first call or later."""
    compiled = torch.compile(run_layer, backend=backend)
    config: Any = model.config
    for module in model.layers:  # type: ignore[union-attr]
        layer: Any = module
        attention, mlp = layer.self_attn, layer.mlp
        settings = {
            "norms": (layer.input_layernorm.weight, layer.post_attention_layernorm.weight),
            "projections": (
                projection(attention.q_proj, attention.k_proj, attention.v_proj),
                projection(attention.o_proj),
                projection(mlp.gate_proj, mlp.up_proj),
                projection(mlp.down_proj),
            ),
            "heads": (config.num_attention_heads, config.num_key_value_heads),
            "eps": config.rms_norm_eps,
        }
        layer.forward = partial(
            _forward, layer.forward, attention.layer_idx, partial(compiled, **settings)
        )


def _forward(
    whole: Any,
    index: int,
    run: Any,
    hidden_states: torch.Tensor,
    past_key_values: Any = None,
    position_embeddings: Any = None,
    **others: Any,
) -> torch.Tensor:
    """In place of `LlamaDecoderLayer.forward`; keys and values to be kept come from the latter."""
    cos, sin = position_embeddings
    past = None
    if past_key_values is not None:
        if not past_key_values.get_seq_length(index):
            return whole(
                hidden_states,
                past_key_values=past_key_values,
                position_embeddings=position_embeddings,
                **others,
            )
        kept = past_key_values.layers[index]
        past = kept.keys, kept.values
        for part in past:
            torch._dynamo.maybe_mark_dynamic(part, (0, 2))
    if torch.is_grad_enabled() and not hidden_states.requires_grad:
        hidden_states = (
            hidden_states.detach().requires_grad_()
        )  # else a first layer is its own kind
    torch._dynamo.maybe_mark_dynamic(hidden_states, (0, 1))
    for part in (cos, sin):
        torch._dynamo.maybe_mark_dynamic(part, 1)
    return run(hidden_states, cos, sin, past)
