"""From one model's embeddings to another's: where a converter starts.

Slots are easy to learn where they start in the geometry of the decoder's embeddings (docs/log.md,
2026-11-23). A trained converter writes into its old decoder's geometry, and the tokens that two
decoders share say how the new one's lies to it: the least-squares map between their embeddings,
put behind the old converter, is the new one's start. It costs nothing to run, since it is
multiplied into the converter's last layer. A new compressor whose slots are sums of its encoder's
embeddings (`pooling="groups"`) starts with the map from those to its decoder's. The map is the one
that Mikolov, Le and Sutskever (2013) translate words between languages with.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

RIDGE = 0.1
"""Strength of the penalty on the map's weights, in units of the embeddings' own size: of 0.0001 to
0.1 the best for held-out tokens of two small decoders (docs/log.md)."""

_WORD_STARTS = ("\u0120", "\u2581")
"""What byte-level and SentencePiece vocabularies write for the space before a word."""


def shared_tokens(
    old: PreTrainedTokenizerBase, new: PreTrainedTokenizerBase
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids of the same tokens in two vocabularies, side by side.

    Args:
        old: a tokenizer.
        new: another one; a token is the same where it is the same text, however its vocabulary
            writes the space before a word.

    Returns:
        Two tensors `(shared,)`: ids in `old` and in `new`.
    """
    ids = _ids_by_text(new)
    pairs = [(index, ids[text]) for text, index in _ids_by_text(old).items() if text in ids]
    both = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2)
    return both[:, 0], both[:, 1]


def _ids_by_text(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    special = set(tokenizer.all_special_ids)
    ids = {}
    for token, index in tokenizer.get_vocab().items():
        if index not in special:
            for mark in _WORD_STARTS:
                token = token.replace(mark, " ")
            ids[token] = index
    return ids


@torch.no_grad()
def fit_embedding_map(
    old: PreTrainedModel,
    old_tokenizer: PreTrainedTokenizerBase,
    new: PreTrainedModel,
    new_tokenizer: PreTrainedTokenizerBase,
) -> tuple[torch.Tensor, float]:
    """The ridge regression from `old`'s embeddings to `new`'s over the tokens that they share.

    Args:
        old: the decoder that a converter was trained for, or an encoder.
        old_tokenizer: its tokenizer.
        new: the decoder to come.
        new_tokenizer: its tokenizer.

    Returns:
        The map `(d_old, d_new)`, to be multiplied from the right, float32 on the CPU, scaled so
        that what it gives is as large as the new embeddings are (a regression shrinks); and the
        share of the variance of every tenth token that it explains when fitted on the others.

    Raises:
        ValueError: fewer shared tokens than twice the old embeddings' width.
    """
    old_ids, new_ids = shared_tokens(old_tokenizer, new_tokenizer)
    width = old.get_input_embeddings().weight.shape[1]
    if len(old_ids) < 2 * width:
        raise ValueError(
            f"start 'embeddings' fits a map from the old decoder's embeddings of width {width} on "
            f"the tokens that both decoders have, which are {len(old_ids)}; it needs at least "
            f"{2 * width}. Use start 'random'."
        )
    inputs = _embeddings(old, old_ids)
    targets = _embeddings(new, new_ids)
    held_out = torch.arange(len(inputs)) % 10 == 0
    trial = _ridge(inputs[~held_out], targets[~held_out])
    missed = targets[held_out] - inputs[held_out] @ trial
    explained = 1 - missed.square().sum() / targets[held_out].square().sum()
    mapping = _ridge(inputs, targets)
    mapping *= targets.std() / (inputs @ mapping).std()
    return mapping.float(), explained.item()


def _embeddings(decoder: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    """What the decoder reads for these ids, with the factor that some multiply by."""
    embed = decoder.get_input_embeddings()
    return embed(ids.to(embed.weight.device)).double().cpu()


def _ridge(inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    penalty = RIDGE * inputs.square().mean() * len(inputs)
    within = inputs.T @ inputs + penalty * torch.eye(inputs.shape[1], dtype=inputs.dtype)
    return torch.linalg.solve(within, inputs.T @ targets)


@torch.no_grad()
def carry_over(old: nn.Module, new: nn.Module, mapping: torch.Tensor) -> None:
    """Write a trained converter, followed by a map, into a new one of the same kind, in place.

    Args:
        old: the converter of the old decoder.
        new: that of the new one; its layers but the last have the old one's shapes.
        mapping: `(d_old, d_new)`, see `fit_embedding_map`.
    """
    state = old.state_dict()
    for last in ("map", "down", "skip"):  # what a converter's output is a sum of
        if hasattr(old, last):
            state[f"{last}.weight"] = mapping.T @ state[f"{last}.weight"].float().cpu()
            if f"{last}.bias" in state:
                state[f"{last}.bias"] = state[f"{last}.bias"].float().cpu() @ mapping
    new.load_state_dict(state)


@torch.no_grad()
def embedding_scale(model: PreTrainedModel) -> float:
    """Standard deviation of what the model's input embedding layer gives (some scale inside)."""
    layer = model.get_input_embeddings()
    rows = layer.weight.shape[0]
    ids = torch.arange(0, rows, max(1, rows // 4096), device=layer.weight.device)
    return layer(ids).float().std().item()
