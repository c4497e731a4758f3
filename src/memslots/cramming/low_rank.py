"""LoRA of the attention's projections with one pair of matrices a text, in one batch.

PEFT holds one adapter for a whole training batch, and changes a fused projection (GPT-2, GPT-NeoX,
Phi-3) only as one. Here every row of a batch has its own A and B, so texts run side by side, and q,
k, v of a fused projection are told apart, so that `qk` means the same in every decoder. The sums
are PEFT's (tested): W0 x + (alpha / r) B A x.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

Params = dict[str, torch.Tensor]

_SEPARATE = {
    "q_proj": "q",
    "k_proj": "k",
    "v_proj": "v",
    "o_proj": "o",
    "out_proj": "o",  # OPT
    "c_proj": "o",  # GPT-2; its MLP's is told by the parent's name
    "dense": "o",  # GPT-NeoX
}
_FUSED = ("c_attn", "qkv_proj", "query_key_value")


@dataclass(frozen=True)
class Projection:
    """One of q, k, v, o of one attention layer.

    Args:
        key: layer's name and letter, for parameters.
        module: the linear layer that computes it, alone or with others.
        rows: which of that layer's outputs it is, None for all.
        d_in: its inputs.
        d_out: its outputs.
    """

    key: str
    module: nn.Module
    rows: torch.Tensor | None
    d_in: int
    d_out: int


def find_projections(model: Any, targets: str) -> list[Projection]:
    """The projections that `targets` names, of every attention layer.

    Args:
        model: a decoder of transformers.
        targets: letters of q, k, v, o.

    Raises:
        ValueError: one of the letters is found in no layer.
    """
    projections = []
    for name, module in model.named_modules():
        parent, _, leaf = name.rpartition(".")
        if "att" not in parent.rpartition(".")[2] or not isinstance(module, nn.Linear | Conv1D):
            continue
        if leaf in _SEPARATE:
            d_in, d_out = _sizes(module)
            projections.append(Projection(f"{parent}.{_SEPARATE[leaf]}", module, None, d_in, d_out))
        elif leaf in _FUSED:
            projections += _split(parent, leaf, module, model.config.get_text_config())
    letters = {projection.key[-1] for projection in projections}
    missing = [letter for letter in targets if letter not in letters]
    if missing:
        kind = model.config.get_text_config().model_type
        known = ", ".join([*_SEPARATE, *_FUSED])
        raise ValueError(
            f"targets={targets!r}: {type(model).__name__} ({kind}) has no attention projection "
            f"{', '.join(missing)} that memslots knows; it has "
            f"{', '.join(sorted(letters)) or 'none'}. Known names are {known}; use the methods mem "
            "or dense."
        )
    return [projection for projection in projections if projection.key[-1] in targets]


def _sizes(module: nn.Module) -> tuple[int, int]:
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    weight: Any = module.weight  # Conv1D keeps it transposed
    return weight.shape[0], weight.shape[1]


def _split(parent: str, leaf: str, module: nn.Module, config) -> list[Projection]:
    d_in, d_out = _sizes(module)
    heads = config.num_attention_heads
    groups = getattr(config, "num_key_value_heads", None) or heads
    head = d_out // (heads + 2 * groups)
    rows = torch.arange(d_out)
    if leaf == "query_key_value":  # GPT-NeoX: q, k, v of the first head, then of the second, ...
        parts = [part.reshape(-1) for part in rows.view(heads, 3, head).unbind(1)]
    else:
        parts = list(rows.split([heads * head, groups * head, groups * head]))
    return [
        Projection(f"{parent}.{letter}", module, part, d_in, len(part))
        for letter, part in zip("qkv", parts, strict=True)
    ]


class LowRankChanges:
    """Adds B A x to projections while it is applied; the decoder's weights stay as they are.

    Args:
        model: the decoder.
        targets: letters of q, k, v, o.
        rank: r.
        alpha: the change is scaled by alpha / r.
    """

    def __init__(self, model: Any, targets: str, rank: int, alpha: float):
        self.projections = find_projections(model, targets)
        self.rank = rank
        self.scale = alpha / rank

    def new(self, texts: int, generator: torch.Generator) -> Params:
        """Fresh A `(texts, r, d_in)`, uniform as in PEFT and alike for all, and B of zeros."""
        params = {}
        for projection in self.projections:
            bound = 1 / math.sqrt(projection.d_in)
            a = torch.rand(self.rank, projection.d_in, generator=generator) * 2 * bound - bound
            params[f"{projection.key}.A"] = a.repeat(texts, 1, 1)
            params[f"{projection.key}.B"] = torch.zeros(texts, projection.d_out, self.rank)
        return params

    @contextlib.contextmanager
    def applied(self, params: Mapping[str, torch.Tensor]) -> Iterator[None]:
        """While inside, row i of every batch gets the change of text i.

        Args:
            params: what `new` made, or trained, with as many texts as the batch has rows.
        """
        handles = [
            projection.module.register_forward_hook(self._hook(projection, params))
            for projection in self.projections
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, projection: Projection, params: Mapping[str, torch.Tensor]):
        def add(module, inputs, output):
            x = inputs[0]  # (texts, positions, d_in)
            a = params[f"{projection.key}.A"].to(x)
            b = params[f"{projection.key}.B"].to(x)
            change = self.scale * (x @ a.mT @ b.mT)
            if projection.rows is None:
                return output + change
            return output.index_add(-1, projection.rows.to(x.device), change)

        return add
