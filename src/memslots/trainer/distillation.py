"""Distillation from the full text: the decoder that reads a text teaches itself to read its memory.

Teacher and student are one frozen decoder. Where it reads the text, its next-token distributions
say all that a memory should tell it; the divergence of what it predicts from the memory needs no
labels and keeps the decoder's own style (KV-Distill, arXiv 2503.10337; Cartridges, arXiv
2506.06266).
"""

from typing import NamedTuple

import torch


class Teacher(NamedTuple):
    """What the decoder predicts from the full text, a row for each target token.

    Args:
        log_probs: `(targets, k)`, of the k likeliest tokens.
        token_ids: `(targets, k)`.
        temperature: that both distributions are softened by.
    """

    log_probs: torch.Tensor
    token_ids: torch.Tensor
    temperature: float = 1.0

    def part(self, first: int, last: int) -> "Teacher":
        """Of the targets from `first` up to `last`."""
        return self._replace(
            log_probs=self.log_probs[first:last], token_ids=self.token_ids[first:last]
        )

    def divergence(self, logits: torch.Tensor) -> torch.Tensor:
        """KL(teacher || student) in nats, summed over targets, times the squared temperature.

        The tokens that the teacher leaves out count as one, so that equal distributions give 0 and
        no others do better (Hinton, Vinyals and Dean 2015, for the temperature).

        Args:
            logits: `(targets, vocabulary)`, the student's.

        Examples:
            >>> logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
            >>> round(teach(logits, top_k=2).divergence(logits).item(), 4)
            0.0
        """
        student = (logits.float() / self.temperature).log_softmax(dim=-1)
        kept = student.gather(1, self.token_ids)
        total = (self.log_probs.exp() * (self.log_probs - kept)).sum()
        if self.token_ids.shape[1] < logits.shape[-1]:
            # log(1 - sum), with the sum kept away from 1 where rounding would reach it
            left = [
                (-log_probs.exp().sum(dim=1).clamp(max=1 - 1e-6)).log1p()
                for log_probs in (self.log_probs, kept)
            ]
            total = total + (left[0].exp() * (left[0] - left[1])).sum()
        return total * self.temperature**2


def teach(logits: torch.Tensor, top_k: int, temperature: float = 1.0) -> Teacher:
    """The `top_k` likeliest tokens of `(targets, vocabulary)` logits, and how likely they are."""
    log_probs = (logits.float() / temperature).log_softmax(dim=-1)
    kept = log_probs.topk(min(top_k, logits.shape[-1]), dim=-1)
    return Teacher(kept.values, kept.indices, temperature)
