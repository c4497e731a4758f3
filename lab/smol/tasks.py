"""What is asked of a memory beside its text: what follows, its words by place, questions about it.

A compressor that has only repeated texts repeats whatever is asked of it (docs/log.md), so these
rows come in every form that a memory is read in: of one segment or several, at the start of a
prompt or after other text. All rows of a step have texts of one length; what follows is padded.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from lab.smol.factbook import Country, fact_row
from memslots.data.cloze import LEFT_OUT, questions_of
from memslots.evaluation.asking import INSTRUCTION, Asking, before_text
from memslots.evaluation.worked_examples import worked_examples

REPEAT, COMPLETE, RECALL, CLOZE = "repeat", "complete", "recall", "cloze"
FACTS = "facts"

CUE = 4
"""Tokens of a text that say which place is to be recalled."""

SEGMENTS = (1, 1, 2, 3)
QUESTIONS = 4
"""About a text, asked one after another."""

SHOWN = 0.6
"""Share of the steps of questions that show worked examples first."""

LONGEST_PREFIX = 48
CHARACTERS = 760  # of facts told together at most; about 190 tokens
MOST_TRIES = 1000


class Rows(NamedTuple):
    """Arguments of `Slots.complete`.

    Args:
        ids: `(rows, tokens)`.
        following: `(rows, length)`, padded at the right.
        scored: `(rows, length)`, which of these count.
        before: `(rows, any)`, or None for nothing.
        shown: ids that all rows begin with, BOS first, or None for BOS alone.
        distilled: weight of the divergence from the decoder that reads the text.
    """

    ids: torch.Tensor
    following: torch.Tensor
    scored: torch.Tensor
    before: torch.Tensor | None
    shown: tuple[int, ...] | None = None
    distilled: float = 0.5


class Tasks:
    """Draws rows from one long text.

    Args:
        texts: ids of all texts, one after another.
        world: countries whose facts are asked for.
        tokenizer: of the decoder.
        device: of the rows.
    """

    def __init__(
        self,
        texts: torch.Tensor,
        world: Sequence[Country],
        tokenizer: PreTrainedTokenizerBase,
        device: str,
    ):
        self.texts, self.world = texts, [country for country in world if country.facts]
        self.tokenizer, self.device = tokenizer, device

    def rows(self, task: str, segments: int, tokens: int, draw: random.Random) -> Rows:
        """Rows of one task.

        Args:
            task: `COMPLETE`, `RECALL`, `CLOZE` or `FACTS`.
            segments: of all rows together, about.
            tokens: of a segment.
            draw: decides everything.
        """
        length = tokens * draw.choice(SEGMENTS)
        ids: list[torch.Tensor] = []
        following: list[torch.Tensor] = []
        scored: list[torch.Tensor] = []
        wanted, tries = max(1, segments * tokens // length), 0
        while len(ids) < wanted:
            tries += 1
            if tries > MOST_TRIES * wanted:
                raise ValueError("these texts hold no name, number, date or quotation to ask for.")
            start = draw.randrange(len(self.texts) - length - tokens)
            text = self.texts[start : start + length]
            if task == COMPLETE:
                after = self.texts[start + length : start + length + tokens]
                counted = torch.arange(tokens) >= 1
            elif task == RECALL:
                place = draw.randrange(length - tokens // 2)
                after = text[place : place + tokens // 2]
                counted = torch.arange(len(after)) >= CUE
            elif task == FACTS:
                text, after, counted = self._facts(text, draw)
            else:
                words = self.tokenizer.decode(text)
                kinds = draw.choice((LEFT_OUT, LEFT_OUT, ("follows",)))
                asked = questions_of(words, draw.randrange(2**31), QUESTIONS, kinds)
                if not asked:
                    continue
                after, counted = self._asked([(question, answer) for question, answer, _ in asked])
            ids.append(text)
            following.append(after)
            scored.append(counted)
        padded, counted = (
            pad_sequence(column, batch_first=True).to(self.device) for column in (following, scored)
        )
        before = shown = None
        prefix = draw.choice((0, 0, LONGEST_PREFIX // 2, LONGEST_PREFIX))
        if task in (FACTS, CLOZE) and draw.random() < SHOWN:
            shown = self._shown(draw)
        elif prefix:
            starts = [draw.randrange(len(self.texts) - prefix) for _ in ids]
            break_ids = torch.tensor(self._encode("\n\n"))
            before = torch.stack(
                [torch.cat([self.texts[start : start + prefix], break_ids]) for start in starts]
            ).to(self.device)
        return Rows(torch.stack(ids).to(self.device), padded, counted, before, shown)

    def _facts(
        self, text: torch.Tensor, draw: random.Random
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Facts beside so much of a text as fills its length, questions and what counts of them."""
        for tries in range(1, MOST_TRIES):
            drawn = draw.sample(self.world, min(draw.choice((1, 1, 2, 3)), len(self.world)))
            row = fact_row(drawn, draw, CHARACTERS // tries)
            told = torch.tensor(self._encode(row["context"]))
            if len(told) <= len(text):
                break
        else:
            raise ValueError(f"no fact of the factbook is told in {len(text)} tokens.")
        filler = text[len(told) :]
        parts = (told, filler) if draw.random() < 0.5 else (filler, told)
        pairs = list(zip(row["question"], row["answer"], strict=True))
        return torch.cat(parts), *self._asked(pairs)

    def _asked(self, pairs: list[tuple[str, str]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Questions and answers one after another, and where the answers stand."""
        ids: list[int] = []
        counted: list[bool] = []
        for question, answer in pairs:
            asked = self._encode(f"\n\nQuestion: {question}\nAnswer:")
            answered = self._encode(f" {answer}")
            # The empty line that ends an answer is part of it.
            counted += [bool(ids), *[False] * (len(asked) - 1), *[True] * len(answered)]
            ids += asked + answered
        ids += self._encode("\n\n")
        counted += [True] * (len(ids) - len(counted))
        return torch.tensor(ids), torch.tensor(counted)

    def _shown(self, draw: random.Random) -> tuple[int, ...]:
        """Worked examples as `Asking` shows them, of a dozen that are often the same."""
        count, seed = draw.choice((1, 2, 3, 3)), draw.randrange(3)
        words = Asking(
            instruction=draw.choice(("", INSTRUCTION)) if count < 3 else INSTRUCTION,
            examples=worked_examples(count, seed),
        ).shown()
        return (self.tokenizer.bos_token_id, *before_text(self._encode, words))

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]
