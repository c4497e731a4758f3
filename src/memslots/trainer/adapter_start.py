"""A linear adapter that starts where the decoder's own embeddings of the text lie.

Slots are easy to learn where they start in the geometry of the decoder's embeddings (docs/log.md,
2026-11-23). A sentence encoder's vectors lie elsewhere, but what words a sentence has can be read
from them linearly to a good part, so the adapter starts as the least-squares map from a sentence's
vector to the sum of its tokens' embeddings, weighted by how rare a token is (TF-IDF), and training
goes on from there.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional

from memslots.embedding_map import embedding_scale
from memslots.modeling import MemslotsModel
from memslots.modeling.encoders_memslots import LinearConverter

RIDGE = 0.03
"""Strength of the penalty on the map's weights, in units of the number of sentences."""


@torch.no_grad()
def start_from_embeddings(model: MemslotsModel, texts: Sequence[str]) -> float:
    """Writes the adapter of a compressor in place, from some texts of the kind it will read.

    Args:
        model: a compressor with `converter_type="linear"` and its decoder.
        texts: a few times as many units as a slot is wide.

    Returns:
        The share of the targets' variance that the map explains on these texts.

    Raises:
        ValueError: another converter, or texts without two different units.
    """
    converter = model.converter
    if not isinstance(converter, LinearConverter):
        raise ValueError(
            "starting from the decoder's embeddings fits a linear adapter; use "
            "converter_type='linear', or leave `start` out."
        )
    processor = model.processor
    memory = model.compress(list(texts), progress=False)
    segment_of: dict[str, int] = {}
    for number, segment in enumerate(memory.segments):
        segment_of.setdefault(texts[segment.text][segment.start : segment.end].strip(), number)
    if len(segment_of) < 2:
        raise ValueError("starting from the decoder's embeddings needs at least two sentences.")
    slots = memory.slots[list(segment_of.values())].float()
    targets = _weighted_sums(model, [processor.decoder_text.encode(f" {t}") for t in segment_of])
    targets = targets.to(slots.device)
    middle = targets.mean(dim=0)
    inputs = functional.rms_norm(slots, (slots.shape[1],), eps=1e-6)
    inputs = torch.cat([inputs, torch.ones(len(inputs), 1, device=inputs.device)], dim=1).double()
    penalty = RIDGE * len(inputs) * torch.eye(inputs.shape[1], device=inputs.device).double()
    centred = (targets - middle).double()
    weights = torch.linalg.solve(inputs.T @ inputs + penalty, inputs.T @ centred)
    predicted = inputs @ weights
    scale = embedding_scale(model.decoder) / predicted.std()
    converter.norm.weight.fill_(1.0)
    converter.map.weight.copy_((weights[:-1] * scale).T)
    converter.map.bias.copy_(weights[-1] * scale)
    missed = (predicted - centred).pow(2).sum() / centred.pow(2).sum()
    return 1 - missed.item()


def _weighted_sums(model: MemslotsModel, texts: list[list[int]]) -> torch.Tensor:
    """`(texts, d_decoder)`: sums of token embeddings, each times log(texts / texts with it)."""
    embed = model.decoder.get_input_embeddings()
    device = embed.weight.device
    counts = torch.ones(embed.weight.shape[0])
    for ids in texts:
        counts[torch.tensor(ids).unique()] += 1
    rarity = (len(texts) / counts).log().clamp(min=0).to(device)
    sums = []
    for ids in texts:
        tokens = torch.tensor(ids, device=device)
        sums.append((embed(tokens).float() * rarity[tokens].unsqueeze(1)).sum(dim=0))
    return torch.stack(sums)
