"""What serving long contexts costs with and without memory slots, from a decoder's configuration.

The sums of the sentence-pool blog post ("What this means at scale"), for any decoder: bytes of the
key-value cache, users that fit on a GPU, GPUs and money a month, time to the first token. Nothing
is loaded but the configuration. Another thing than the plan of a training run (`trainer/plan.py`).

What is estimated: the first token's time is the prefill's operations at 40% of the GPU's peak, and
a GPU's memory is used at 90%. What is left out: batching's own buffers, prefix caches that users
share, and the time to compress, which falls to the writing of a memory and not to its reading.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from memslots.modeling.layout_memslots import max_positions

HOURS_A_MONTH = 730
_PREFILL_USE = 0.4
_MEMORY_USE = 0.9


@dataclass(frozen=True)
class CachedLayer:
    """The key-value cache of one attention layer.

    Args:
        numbers: kept of one token: 2 * key-value heads * head dimension.
        window: most tokens that are kept; None for all.
    """

    numbers: int
    window: int | None

    def kept(self, tokens: int) -> int:
        """Numbers kept after so many tokens."""
        return self.numbers * (tokens if self.window is None else min(tokens, self.window))


def cached_layers(config: PreTrainedConfig) -> list[CachedLayer]:
    """The layers of a decoder that keep keys and values, as transformers' own cache has them.

    Grouped-query and multi-query attention, sliding windows, layers that reuse an earlier one's
    keys and values, and head sizes that differ between layers are told apart.

    Args:
        config: the configuration of a causal LM.

    Raises:
        ValueError: attention that keeps something else: latent (MLA) or linear.
    """
    text = config.get_text_config()
    if getattr(text, "kv_lora_rank", None) is not None:
        raise ValueError(
            f"{text.model_type} keeps latent keys and values (MLA), whose size depends on the "
            "engine; `memslots plan` counts decoders with plain, grouped or sliding attention."
        )
    per_layer = list(getattr(text, "per_layer_config", None) or [])
    layers = []
    for index, layer in enumerate(DynamicCache(config=text).layers):
        kind = type(layer)
        if kind.__name__ == "DummyLayer":  # another layer's keys and values, or no attention
            continue
        if kind not in (DynamicLayer, DynamicSlidingWindowLayer):
            raise ValueError(
                f"layer {index} of {text.model_type} keeps a {kind.__name__}, which `memslots "
                "plan` cannot count; name a decoder with plain, grouped or sliding attention."
            )
        layer_config = per_layer[index] if index < len(per_layer) else text
        window = layer.sliding_window if kind is DynamicSlidingWindowLayer else None
        layers.append(
            CachedLayer(2 * _key_value_heads(layer_config) * _head_size(layer_config), window)
        )
    if not layers:
        raise ValueError(f"{text.model_type} has no attention layer with a key-value cache.")
    return layers


def _key_value_heads(config: Any) -> int:
    if getattr(config, "multi_query", False) and not getattr(
        config, "new_decoder_architecture", False
    ):
        return 1  # Falcon 7B, GPT-BigCode
    for name in ("num_key_value_heads", "num_kv_heads"):
        heads = getattr(config, name, None)
        if isinstance(heads, int):
            return heads
    return config.num_attention_heads


def _head_size(config: Any) -> int:
    size = getattr(config, "head_dim", None)
    return size if isinstance(size, int) else config.hidden_size // config.num_attention_heads


def cache_bytes(layers: list[CachedLayer], tokens: int, bits: float = 16) -> float:
    """Bytes of the cache after so many tokens.

    Args:
        layers: what `cached_layers` gave.
        tokens: how many tokens are read.
        bits: the bits of a number in the cache.
    """
    return sum(layer.kept(tokens) for layer in layers) * bits / 8


@dataclass(frozen=True)
class Fleet:
    """How many users fit, and what they cost.

    Args:
        positions: prompt tokens that a user's context takes.
        bytes_per_user: the bytes of a user's cache.
        gpus_per_copy: how many GPUs one copy of the decoder needs, with room for a user.
        users_per_gpu: users served at once; a fraction if a copy needs several GPUs.
        gpus: how many GPUs serve all users.
        dollars_a_month: the cost of all GPUs.
        first_token_seconds: how long reading context and question takes.
    """

    positions: int
    bytes_per_user: float
    gpus_per_copy: int
    users_per_gpu: float
    gpus: int
    dollars_a_month: float
    first_token_seconds: float


def fleet(
    positions: int,
    bytes_per_user: float,
    weights_bytes: float,
    users: int,
    gpu_bytes: float,
    gpu_dollars_an_hour: float,
    first_token_seconds: float,
) -> Fleet:
    """Users of a GPU, GPUs and money: the blog post's sums.

    Args:
        positions: prompt tokens of a user's context.
        bytes_per_user: the bytes of a user's cache.
        weights_bytes: the bytes of one copy of the decoder.
        users: users served at once, in all.
        gpu_bytes: usable memory of one GPU.
        gpu_dollars_an_hour: price of one GPU.
        first_token_seconds: passed on.
    """
    gpus_per_copy = max(1, math.ceil((weights_bytes + bytes_per_user) / gpu_bytes))
    fit = max(1, int((gpus_per_copy * gpu_bytes - weights_bytes) // bytes_per_user))
    gpus = math.ceil(users / fit) * gpus_per_copy
    return Fleet(
        positions=positions,
        bytes_per_user=bytes_per_user,
        gpus_per_copy=gpus_per_copy,
        users_per_gpu=fit / gpus_per_copy,
        gpus=gpus,
        dollars_a_month=gpus * gpu_dollars_an_hour * HOURS_A_MONTH,
        first_token_seconds=first_token_seconds,
    )


@dataclass(frozen=True)
class Demand:
    """What is to be served, and on what.

    Args:
        tokens: the length of a user's context.
        rate: context tokens per slot.
        users: users served at once.
        gpu_gigabytes: memory of a GPU, in 10^9 bytes.
        gpu_dollars_an_hour: its price.
        gpu_teraflops: its peak, 10^12 operations a second; 989 is an H100's in 16 bit.
        weight_bits: the bits of a weight of the decoder.
        cache_bits: the bits of a number in its cache.
        question_tokens: read after the context, by both.
        slot_width: numbers of a slot before the converter; the decoder's width without.
        slot_bits: the bits of a number of a kept slot.
    """

    tokens: int
    rate: float
    users: int
    gpu_gigabytes: float = 80
    gpu_dollars_an_hour: float = 2.7
    gpu_teraflops: float = 989
    weight_bits: float = 16
    cache_bits: float = 16
    question_tokens: int = 64
    slot_width: int | None = None
    slot_bits: float = 16

    def __post_init__(self):
        for name, value in vars(self).items():
            if name == "slot_width" and value is None:
                continue
            if not math.isfinite(value) or value <= 0:
                raise ValueError(f"{name}={value!r} must be greater than 0.")
        if self.rate < 1:
            raise ValueError(f"rate={self.rate} must be at least 1 context token per slot.")


@dataclass(frozen=True)
class ServingCost:
    """The plan of `plan_serving`.

    Args:
        model_type: the decoder's `model_type`.
        parameters: how many the decoder has.
        active_parameters: used for one token; fewer than all in a mixture of experts.
        cache_bytes_per_token: while no window is full.
        cache_bytes_per_late_token: once every window is full.
        slots: how many slots a user's context has.
        slot_bytes: the bytes of these slots as they are kept.
        weights_bytes: the bytes of one copy of the decoder.
        plain: the plan with the context as text.
        compressed: the plan with the context as slots.
        fits_as_text: whether the decoder can read the context as text.
    """

    model_type: str
    parameters: int
    active_parameters: int
    cache_bytes_per_token: float
    cache_bytes_per_late_token: float
    slots: int
    slot_bytes: float
    weights_bytes: float
    plain: Fleet
    compressed: Fleet
    fits_as_text: bool


def plan_serving(config: PreTrainedConfig, demand: Demand) -> ServingCost:
    """Plans serving a decoder with contexts as text and as slots.

    Args:
        config: the configuration of a causal LM.
        demand: what is to be served.

    Raises:
        ValueError: attention that cannot be counted, or a context longer than the decoder reads.
    """
    layers = cached_layers(config)
    text = config.get_text_config()
    slots = math.ceil(demand.tokens / demand.rate)
    most = max_positions(text)
    if most is not None and slots + demand.question_tokens > most:
        raise ValueError(
            f"{slots} slots and {demand.question_tokens} question tokens are more than the {most} "
            f"tokens that {text.model_type} reads; plan for fewer tokens or a higher rate."
        )
    parameters, active = count_decoder(config)
    weights = parameters * demand.weight_bits / 8
    fleets = []
    for positions in (demand.tokens, slots):
        read = positions + demand.question_tokens
        fleets.append(
            fleet(
                positions,
                cache_bytes(layers, read, demand.cache_bits),
                weights,
                demand.users,
                demand.gpu_gigabytes * 1e9 * _MEMORY_USE,
                demand.gpu_dollars_an_hour,
                prefill_operations(text, active, layers, read)
                / (demand.gpu_teraflops * 1e12 * _PREFILL_USE),
            )
        )
    width = demand.slot_width or text.hidden_size
    late = sum(layer.numbers for layer in layers if layer.window is None)
    return ServingCost(
        model_type=text.model_type,
        parameters=parameters,
        active_parameters=active,
        cache_bytes_per_token=cache_bytes(layers, 1, demand.cache_bits),
        cache_bytes_per_late_token=late * demand.cache_bits / 8,
        slots=slots,
        slot_bytes=slots * width * demand.slot_bits / 8,
        weights_bytes=weights,
        plain=fleets[0],
        compressed=fleets[1],
        fits_as_text=most is None or demand.tokens + demand.question_tokens <= most,
    )


def count_decoder(config: PreTrainedConfig) -> tuple[int, int]:
    """Parameters of a decoder, all and those that one token uses; nothing is loaded.

    Args:
        config: the configuration of a causal LM.
    """
    text = config.get_text_config()
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(text)
    total = sum(parameter.numel() for parameter in model.parameters())
    experts = sum(p.numel() for name, p in model.named_parameters() if ".experts." in name)
    experts_per_token, n_experts = None, None
    for name in ("num_experts_per_tok", "top_k_experts", "moe_topk"):
        experts_per_token = experts_per_token or getattr(text, name, None)
    for name in ("num_local_experts", "num_experts", "n_routed_experts"):
        n_experts = n_experts or getattr(text, name, None)
    if not experts or not experts_per_token or not n_experts:
        return total, total
    return total, total - round(experts * (1 - experts_per_token / n_experts))


def prefill_operations(
    config: Any, active_parameters: int, layers: list[CachedLayer], positions: int
) -> float:
    """Operations of reading so many positions: 2 a weight and position, and attention's products.

    Args:
        config: the decoder's text configuration.
        active_parameters: used for one token; its input embeddings are only looked up.
        layers: what `cached_layers` gave.
        positions: read at once.
    """
    embeddings = config.vocab_size * config.hidden_size
    weights = 2 * (active_parameters - embeddings) * positions
    width = config.num_attention_heads * _head_size(config)
    attention = 0.0
    for layer in layers:
        seen = positions if layer.window is None else min(positions, layer.window)
        # Position i sees at most `seen` before it: the sum is a triangle, or a band.
        pairs = seen * (seen + 1) / 2 + (positions - seen) * seen
        attention += 4 * width * pairs
    return weights + attention
