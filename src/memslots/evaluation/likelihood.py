"""Log-likelihood of texts under the frozen decoder, after a memory, after tokens, or after both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from memslots.evaluation.answering import processor_of
from memslots.modeling import Memory, MemslotsModel
from memslots.modeling.layout_memslots import ANSWER, IGNORE, Prompt, Row, row_length

BATCH_POSITIONS = 16384


@dataclass(frozen=True)
class TargetLoss:
    """What a target cost.

    Args:
        nll: summed negative log-likelihood of its predicted tokens, in nats.
        tokens: how many were predicted.
    """

    nll: float
    tokens: int


@torch.no_grad()
def target_losses(
    model: MemslotsModel,
    prompts: Sequence[Prompt],
    targets: Sequence[list[int]],
    memory: Memory | None = None,
    given: int = 0,
) -> list[TargetLoss]:
    """Scores one target a row, in order.

    Args:
        model: its frozen decoder scores.
        prompts: decoder tokens before and after the memory; as many as targets.
        targets: decoder tokens.
        memory: one document a row, or none at all.
        given: how many tokens of each target are read without being scored.

    Raises:
        ValueError: no decoder, or numbers of rows that differ.
    """
    if model.decoder is None:
        raise ValueError("scoring needs the decoder; load the model with load_decoder=True.")
    n = len(targets)
    if len(prompts) != n or (memory is not None and len(memory) != n):
        documents = "" if memory is None else f", {len(memory)} documents"
        raise ValueError(f"got {len(prompts)} prompts, {n} targets{documents}; give as many each.")
    rows, slots = [], [] if memory is None else [segment.slots for segment in memory.segments]
    at = 0
    for i, (prompt, target) in enumerate(zip(prompts, targets, strict=True)):
        own = 0 if memory is None else len(memory.documents[i])
        rows.append(Row(list(range(at, at + own)), prompt, list(target), given, ANSWER))
        at += own
    lengths = [row_length(row, slots, model.config.use_markers) for row in rows]
    losses: list[TargetLoss] = [TargetLoss(0.0, 0)] * n
    for batch in _batches(lengths):
        scored = _batch_losses(model, [rows[i] for i in batch], memory, slots)
        for i, loss in zip(batch, scored, strict=True):
            losses[i] = loss
    return losses


def _batch_losses(
    model: MemslotsModel, rows: list[Row], memory: Memory | None, counts: list[int]
) -> list[TargetLoss]:
    used = sorted({i for row in rows for i in row.segments})
    renumber = {old: new for new, old in enumerate(used)}
    moved = [
        Row([renumber[i] for i in row.segments], row.prompt, row.target, row.given, row.task)
        for row in rows
    ]
    laid_out = processor_of(model).lay_out(moved, [counts[i] for i in used], padding_side="right")
    device = model.memory_tokens.device
    slots = model.memory_tokens.new_zeros(0, model.encoder.config.hidden_size)
    if memory is not None:
        starts = [0]
        for count in counts:
            starts.append(starts[-1] + count)
        slots = torch.cat([memory.slots[starts[i] : starts[i + 1]] for i in used]).to(device)
    mask = laid_out["attention_mask"].to(device)
    embeds = model.embed_rows(
        laid_out["input_ids"].to(device), laid_out["memory_ids"].to(device), slots
    )
    labels = laid_out["labels"].to(device)[:, 1:]
    logits = model.decoder(  # type: ignore[misc]
        inputs_embeds=embeds, attention_mask=mask, use_cache=False
    ).logits[:, :-1]
    nll = torch.nn.functional.cross_entropy(
        logits.float().transpose(1, 2), labels, ignore_index=IGNORE, reduction="none"
    )
    scored = (labels != IGNORE).sum(dim=1)
    return [
        TargetLoss(total, tokens)
        for total, tokens in zip(nll.sum(dim=1).tolist(), scored.tolist(), strict=True)
    ]


def _batches(lengths: list[int]) -> list[list[int]]:
    """Indices, longest first, in batches of at most `BATCH_POSITIONS` padded positions."""
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if not batches or lengths[batches[-1][0]] * (len(batches[-1]) + 1) > BATCH_POSITIONS:
            batches.append([])
        batches[-1].append(i)
    return batches
