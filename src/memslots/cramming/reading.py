"""What a frozen decoder gives back from crammed texts: teacher-forced and free-running.

The published code counts tokens 2 to N and feeds the right token each time, so a text can count as
lossless whose first token no memory holds, and of which one wrong token would spoil the rest. Both
ways are reported: with and without token 1, teacher-forced and free-running.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from memslots.cramming.frozen_decoder import FrozenDecoder
from memslots.cramming.per_text import CrammedText, MemoryReader
from memslots.cramming.settings import CrammingSettings


@dataclass(frozen=True)
class Reading:
    """How well one text is given back.

    Args:
        ids: the text.
        predicted: most probable token at each place, after the right ones before it.
        losses: cross-entropy of each token with the memory, in nats.
        produced: greedy generation of as many tokens, from the memory alone.
        bare_losses: cross-entropy of each token without the memory, in nats.
        bare_right: whether the decoder foresees each token without the memory.
        right_at_16_bit: teacher-forced right tokens after rounding what is kept to bfloat16.
    """

    ids: tuple[int, ...]
    predicted: tuple[int, ...]
    losses: tuple[float, ...]
    produced: tuple[int, ...]
    bare_losses: tuple[float, ...]
    bare_right: tuple[bool, ...]
    right_at_16_bit: int

    @property
    def right(self) -> list[bool]:
        """Teacher-forced, for each token."""
        return [a == b for a, b in zip(self.ids, self.predicted, strict=True)]

    @property
    def free_right(self) -> list[bool]:
        """Free-running, for each token at its own place."""
        return [a == b for a, b in zip(self.ids, self.produced, strict=True)]

    @property
    def exact_prefix(self) -> int:
        """Tokens before the first wrong one, free-running."""
        right = self.free_right
        return right.index(False) if False in right else len(right)

    def metrics(self, first: bool = True) -> dict[str, float]:
        """Accuracy and the gains of Kuratov et al. (AIRI report, section 3.4).

        Args:
            first: count token 1; without it the figures are those of the published code.

        Returns:
            `accuracy` and `free_running` (shares), `tokens_right`, `token_gain` (more tokens
            foreseen than without the memory), `cross_entropy` and `bare_cross_entropy` (nats a
            token) and `information_gain` (bits of the whole text).
        """
        skip = 0 if first else 1
        right, free = self.right[skip:], self.free_right[skip:]
        with_memory, without = self.losses[skip:], self.bare_losses[skip:]
        count = max(1, len(right))
        return {
            "accuracy": sum(right) / count,
            "free_running": sum(free) / count,
            "tokens_right": float(sum(right)),
            "token_gain": float(sum(right) - sum(self.bare_right[skip:])),
            "cross_entropy": sum(with_memory) / count,
            "bare_cross_entropy": sum(without) / count,
            "information_gain": (sum(without) - sum(with_memory)) / math.log(2),
        }

    def record(self) -> dict[str, Any]:
        """Both ways of counting, for JSON."""
        return {
            "length": len(self.ids),
            "all_tokens": self.metrics(),
            "from_token_2": self.metrics(first=False),
            "exact_prefix": self.exact_prefix,
            "accuracy_at_16_bit": self.right_at_16_bit / len(self.ids),
        }


@torch.no_grad()
def read_back(decoder: FrozenDecoder, texts: Sequence[CrammedText]) -> list[Reading]:
    """Teacher-forced and free-running readings of crammed texts, in order, each read alone.

    Args:
        decoder: the one that they were crammed against.
        texts: texts that were crammed with the same settings.
    """
    if not texts:
        return []
    reader = MemoryReader(decoder, texts[0].settings)
    unforeseen = int(reader.prefix == 0)  # nothing predicts token 1
    readings: list[Reading] = []
    for text in texts:
        ids = torch.tensor([text.ids], device=decoder.device)
        kept = {name: part.unsqueeze(0).to(decoder.device) for name, part in text.kept.items()}
        logits = reader.logits(kept, ids)[0]
        losses = torch.nn.functional.cross_entropy(logits, ids[0], reduction="none").tolist()
        predicted = logits.argmax(-1).tolist()
        rounded = {name: part.bfloat16().float() for name, part in kept.items()}
        at_16_bit = reader.logits(rounded, ids).argmax(-1) == ids
        bare_losses, bare_right = decoder.losses(text.ids)
        if unforeseen:  # it costs what it costs without
            losses[0], predicted[0] = bare_losses[0], -1
        readings.append(
            Reading(
                ids=text.ids,
                predicted=tuple(predicted),
                losses=tuple(losses),
                produced=tuple(_generate(reader, kept, 1, len(text.ids))[0]),
                bare_losses=tuple(bare_losses),
                bare_right=tuple(bare_right),
                right_at_16_bit=int(at_16_bit[0, unforeseen:].sum()),
            )
        )
    return readings


@torch.no_grad()
def generate_from_vectors(
    decoder: FrozenDecoder, vectors: torch.Tensor, length: int, start_token: bool = False
) -> list[list[int]]:
    """Greedy tokens from memory vectors alone; EOS ends nothing.

    Args:
        decoder: the frozen decoder.
        vectors: `(texts, vectors, d_decoder)`.
        length: tokens of each.
        start_token: as in the settings that the vectors were made with.
    """
    settings = CrammingSettings(vectors=vectors.shape[1], start_token=start_token)
    reader = MemoryReader(decoder, settings)
    return _generate(reader, {"vectors": vectors}, len(vectors), length)


def _generate(
    reader: MemoryReader, kept: dict[str, torch.Tensor], texts: int, length: int
) -> list[list[int]]:
    """Greedy tokens, of every row as many; -1 stands if nothing predicts the first.

    Not `generate`: an EOS that a text holds, or that is foreseen too early, must not end it.
    """
    model = reader.decoder.model
    inputs: dict[str, torch.Tensor]
    columns: list[torch.Tensor] = []
    if reader.prefix == 0:
        # LoRA trained from token 2 on has nothing to begin from: nothing of it runs freely.
        return [[-1] * length for _ in range(texts)]
    inputs = {"inputs_embeds": reader.prefix_embeddings(kept, texts)}
    cache = None
    with reader.applied(kept):
        for _ in range(length):
            out = model(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache = out.past_key_values
            columns.append(out.logits[:, -1].argmax(-1))
            inputs = {"input_ids": columns[-1].unsqueeze(1)}
    return torch.stack(columns, 1).tolist()
