"""What is asked of a memory beside its text: what follows, its words by place, questions about it.

A compressor that has only repeated texts repeats whatever is asked of it (docs/log.md), so these
rows come in every form that a memory is read in: of one segment or several, at the start of a
prompt or after other text. All rows of a step have texts of one length; what follows is padded.
"""

from __future__ import annotations

import random
from typing import NamedTuple

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from memslots.data.cloze import LEFT_OUT, questions_of

REPEAT, COMPLETE, RECALL, CLOZE = "repeat", "complete", "recall", "cloze"

CUE = 4
"""Tokens of a text that say which place is to be recalled."""

SEGMENTS = (1, 1, 2, 3)
LONGEST_PREFIX = 48


class Rows(NamedTuple):
    """Arguments of `Slots.complete`.

    Args:
        ids: `(rows, tokens)`.
        following: `(rows, length)`, padded at the right.
        scored: `(rows, length)`, which of these count.
        before: `(rows, any)`, or None for nothing.
        distilled: weight of the divergence from the decoder that reads the text.
    """

    ids: torch.Tensor
    following: torch.Tensor
    scored: torch.Tensor
    before: torch.Tensor | None
    distilled: float = 0.5


class Tasks:
    """Draws rows from one long text.

    Args:
        texts: ids of all texts, one after another.
        tokenizer: theirs.
        device: of the rows.
    """

    def __init__(self, texts: torch.Tensor, tokenizer: PreTrainedTokenizerBase, device: str):
        self.texts, self.tokenizer, self.device = texts, tokenizer, device

    def rows(self, task: str, segments: int, tokens: int, draw: random.Random) -> Rows:
        """Rows of one task.

        Args:
            task: `COMPLETE`, `RECALL` or `CLOZE`.
            segments: of all rows together, about.
            tokens: of a segment.
            draw: decides everything.
        """
        length = tokens * draw.choice(SEGMENTS)
        ids: list[torch.Tensor] = []
        following: list[torch.Tensor] = []
        first_scored: list[int] = []
        wanted, tries = max(1, segments * tokens // length), 0
        while len(ids) < wanted:
            tries += 1
            if tries > 1000 * wanted:
                raise ValueError("these texts hold no name, number, date or quotation to ask for.")
            start = draw.randrange(len(self.texts) - length - tokens)
            text = self.texts[start : start + length]
            if task == COMPLETE:
                after, first = self.texts[start + length : start + length + tokens], 1
            elif task == RECALL:
                place = draw.randrange(length - tokens // 2)
                after, first = text[place : place + tokens // 2], CUE
            else:
                asked = self._question(text, draw)
                if asked is None:
                    continue
                after, first = asked
            ids.append(text)
            following.append(after)
            first_scored.append(first)
        padded = pad_sequence(following, batch_first=True).to(self.device)
        places = torch.arange(padded.shape[1])
        scored = torch.stack(
            [
                (places >= first) & (places < len(after))
                for first, after in zip(first_scored, following, strict=True)
            ]
        )
        before = None
        prefix = draw.choice((0, 0, LONGEST_PREFIX // 2, LONGEST_PREFIX))
        if prefix:
            starts = [draw.randrange(len(self.texts) - prefix) for _ in ids]
            break_ids = torch.tensor(self._encode("\n\n"))
            before = torch.stack(
                [torch.cat([self.texts[start : start + prefix], break_ids]) for start in starts]
            ).to(self.device)
        return Rows(torch.stack(ids).to(self.device), padded, scored.to(self.device), before)

    def _question(self, text: torch.Tensor, draw: random.Random) -> tuple[torch.Tensor, int] | None:
        """A question's and its answer's ids, and where the answer begins."""
        kinds = draw.choice((LEFT_OUT, LEFT_OUT, ("follows",)))
        words = self.tokenizer.decode(text)
        asked = questions_of(words, draw.randrange(2**31), 1, kinds)
        if not asked:
            return None
        question, answer, _ = asked[0]
        before = self._encode(f"\n\nQuestion: {question}\nAnswer:")
        return torch.tensor(before + self._encode(f" {answer}\n")), len(before)

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]
