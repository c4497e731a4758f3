"""A first look at what memory vectors are like: their neighbours, and what lies between two."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from memslots.cramming.frozen_decoder import FrozenDecoder
from memslots.cramming.reading import generate_from_vectors


@torch.no_grad()
def nearest_embeddings(
    decoder: FrozenDecoder, vectors: torch.Tensor, texts: Sequence[Sequence[int]], nearest: int = 10
) -> list[dict[str, Any]]:
    """The decoder's input embeddings with the highest cosine to each text's vectors.

    Args:
        decoder: the one that the vectors were made for.
        vectors: `(texts, vectors, d_decoder)`.
        texts: token ids of each.
        nearest: neighbours of a vector.

    Returns:
        For each text `tokens` (of each vector, with cosines), `highest_cosine`, `norm` (the
        vectors' mean length over the embeddings' mean length), `in_text` (share of the neighbours
        that are tokens of the text) and `in_text_by_chance` (share of the vocabulary that is).
    """
    ids = torch.arange(decoder.vocabulary, device=decoder.device)
    table = decoder.embed(ids).float()  # (vocabulary, d_decoder)
    lengths = table.norm(dim=-1)
    directions = table / lengths.clamp_min(1e-12).unsqueeze(-1)
    found = []
    for own, text in zip(vectors.float().to(table.device), texts, strict=True):
        cosines = torch.nn.functional.normalize(own, dim=-1) @ directions.T
        values, indices = cosines.topk(min(nearest, decoder.vocabulary), dim=-1)
        inside = set(text)
        near = indices.flatten().tolist()
        found.append(
            {
                "tokens": [
                    [
                        [decoder.tokenizer.decode([index]), round(value, 4)]
                        for index, value in zip(row, cosine, strict=True)
                    ]
                    for row, cosine in zip(indices.tolist(), values.tolist(), strict=True)
                ],
                "highest_cosine": round(values.max().item(), 4),
                "norm": round((own.norm(dim=-1).mean() / lengths.mean()).item(), 3),
                "in_text": round(sum(index in inside for index in near) / len(near), 4),
                "in_text_by_chance": round(len(inside) / decoder.vocabulary, 4),
            }
        )
    return found


def interpolate(
    decoder: FrozenDecoder,
    first: torch.Tensor,
    second: torch.Tensor,
    first_ids: Sequence[int],
    second_ids: Sequence[int],
    steps: int = 11,
    start_token: bool = False,
) -> list[dict[str, Any]]:
    """Free-running texts of the vectors on the straight line between two.

    Args:
        decoder: the one that the vectors were made for.
        first: `(vectors, d_decoder)` of one text.
        second: the same of the other.
        first_ids: the one text.
        second_ids: the other.
        steps: points on the line, both ends included.
        start_token: as in the settings that the vectors were made with.

    Returns:
        For each point `weight` (of the second), `first` and `second` (shares of that text's tokens
        right at their places) and the `text` that came out.

    Raises:
        ValueError: fewer than two points, or memories of different numbers of vectors.
    """
    if steps < 2:
        raise ValueError(f"steps={steps} must be at least 2: both ends of the line.")
    if first.shape != second.shape:
        raise ValueError(
            f"memories of {tuple(first.shape)} and {tuple(second.shape)} cannot be interpolated; "
            "they need as many vectors."
        )
    weights = torch.linspace(0, 1, steps)
    line = torch.stack([torch.lerp(first, second, weight) for weight in weights])
    longest = max(len(first_ids), len(second_ids))
    produced = generate_from_vectors(decoder, line, longest, start_token)
    return [
        {
            "weight": round(weight, 4),
            "first": _share(ids, first_ids),
            "second": _share(ids, second_ids),
            "text": decoder.tokenizer.decode(ids),
        }
        for weight, ids in zip(weights.tolist(), produced, strict=True)
    ]


def reach_of_ends(points: Sequence[dict[str, Any]], threshold: float = 0.99) -> dict[str, float]:
    """How far from each end its text still comes back, of `interpolate`'s points: 0 to 1.

    Args:
        points: from weight 0 to 1.
        threshold: share of tokens right.
    """
    kept = {}
    for end, order in (("first", list(points)), ("second", list(reversed(points)))):
        reach = 0.0
        for point in order:
            if point[end] < threshold:
                break
            reach = point["weight"] if end == "first" else 1 - point["weight"]
        kept[end] = round(reach, 4)
    return kept


def _share(produced: Sequence[int], wanted: Sequence[int]) -> float:
    right = sum(a == b for a, b in zip(produced, wanted, strict=False))
    return round(right / len(wanted), 4)
