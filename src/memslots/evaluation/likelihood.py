"""Log-likelihood of texts under the frozen decoder, after a memory, after tokens, or after both."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from memslots.evaluation.shared_start import SharedStart, read_shared_start
from memslots.modeling import Memory, MemslotsModel
from memslots.modeling.encoders_memslots import token_batches
from memslots.modeling.layout_memslots import ANSWER, IGNORE, Prompt, Row

BATCH_POSITIONS = 16384


@dataclass(frozen=True)
class TargetLoss:
    """What a target cost.

    Args:
        nll: summed negative log-likelihood of its predicted tokens, in nats.
        tokens: how many were predicted.
        right: how many of them were the likeliest token where they stood (teacher-forced).
    """

    nll: float
    tokens: int
    right: int = 0


@torch.no_grad()
def target_losses(
    model: MemslotsModel,
    prompts: Sequence[Prompt],
    targets: Sequence[list[int]],
    memory: Memory | None = None,
    unscored: int = 0,
    task: int = ANSWER,
) -> list[TargetLoss]:
    """Scores one target a row, in order.

    Args:
        model: its frozen decoder scores.
        prompts: decoder tokens before and after the memory; as many as targets.
        targets: decoder tokens.
        memory: one document a row, or none at all.
        unscored: how many tokens of each target are read without being scored.
        task: of the rows; with RECONSTRUCTION, `<AE>` stands before the targets.

    Raises:
        ValueError: no decoder, or numbers of rows that differ.
    """
    if not model.has_decoder:
        raise ValueError("scoring needs the decoder; load the model with load_decoder=True.")
    n = len(targets)
    if len(prompts) != n or (memory is not None and len(memory) != n):
        documents = "" if memory is None else f", {len(memory)} documents"
        raise ValueError(f"got {len(prompts)} prompts, {n} targets{documents}; give as many each.")
    slots = [] if memory is None else [segment.slots for segment in memory.segments]
    if memory is None:
        rows = [Row([], prompt) for prompt in prompts]
    else:
        rows = model.memory_rows(memory, list(enumerate(prompts)))
    for row, prompt, target in zip(rows, prompts, targets, strict=True):
        row.prompt = prompt  # these words and no others, whatever the memory ends in
        row.target, row.input_only, row.task = list(target), unscored, task
    lengths = [model.processor.row_length(row, slots) for row in rows]
    losses: list[TargetLoss] = [TargetLoss(0.0, 0)] * n
    start = read_shared_start(model, rows, lengths, memory)
    for batch in token_batches(lengths, [0] * n, BATCH_POSITIONS):
        scored = _batch_losses(model, [rows[i] for i in batch], memory, start)
        for i, loss in zip(batch, scored, strict=True):
            losses[i] = loss
    return losses


def _batch_losses(
    model: MemslotsModel, rows: list[Row], memory: Memory | None, start: SharedStart | None
) -> list[TargetLoss]:
    inputs = model.row_inputs(rows, memory, padding_side="right")
    labels = inputs.pop("labels")[:, 1:]
    if start is not None:
        inputs["past_key_values"] = start.copies(len(rows))
        inputs["inputs_embeds"] = inputs["inputs_embeds"][:, start.tokens :]
        labels = labels[:, start.tokens :]
    columns = (labels != IGNORE).any(dim=0).nonzero().flatten()
    # Logits of every position would be gigabytes where the vocabulary is large.
    some = {"logits_to_keep": columns} if _keeps_logits(model.decoder) else {}
    with model.reading(with_lora=memory is not None):
        logits = model.decoder(  # type: ignore[misc]
            **inputs, **some, use_cache=start is not None
        ).logits
    labels = labels[:, columns]
    if not some:
        logits = logits[:, columns]
    nll = torch.nn.functional.cross_entropy(
        logits.float().transpose(1, 2), labels, ignore_index=IGNORE, reduction="none"
    )
    scored = labels != IGNORE
    right = (logits.argmax(dim=-1) == labels) & scored
    counts = zip(*(values.sum(dim=1).tolist() for values in (nll, scored, right)), strict=True)
    return [TargetLoss(total, tokens, hits) for total, tokens, hits in counts]


def _keeps_logits(decoder: Any) -> bool:
    """Whether the decoder computes the logits of chosen positions alone."""
    return "logits_to_keep" in inspect.signature(decoder.forward).parameters
