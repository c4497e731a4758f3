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
from lab.smol.wordnet import Noun, noun_row
from memslots.data.cloze import LEFT_OUT, questions_of
from memslots.evaluation.asking import INSTRUCTION, Asking, before_text
from memslots.evaluation.worked_examples import worked_examples

REPEAT, COMPLETE, RECALL, CLOZE = "repeat", "complete", "recall", "cloze"
FACTS, NOUNS = "facts", "nouns"

CUE = 4
"""Tokens of a text that say which place is to be recalled."""

SEGMENTS = (1, 1, 2, 3)
"""Of a text, unless told otherwise."""

MOST_FOLLOWING = 4
"""Segments that follow a text; as many as it has, if these are fewer."""

SHORTER = 0.15
"""Share of the steps of repeating with texts below a segment, as the end of a text is."""

ENDED = 0.5
"""Share of the other steps, of several segments, with texts that end in a short one."""

LEAST_END = 8

QUESTIONS = 8
"""About a text, asked one after another; and places of it to be recalled, at most."""

SHOWN = 0.6
"""Share of the steps of questions that show worked examples first."""

LONGEST_PREFIX = 48
CHARACTERS = 4  # of a token, about
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

    def to(self, device: str) -> Rows:
        """The same rows on a device."""
        return self._replace(
            ids=self.ids.to(device),
            following=self.following.to(device),
            scored=self.scored.to(device),
            before=None if self.before is None else self.before.to(device),
        )


class Tasks:
    """Draws rows from one long text.

    Args:
        texts: ids of all texts, one after another.
        world: countries whose facts are asked for.
        words: nouns whose definitions are asked for.
        tokenizer: of the decoder.
    """

    def __init__(
        self,
        texts: torch.Tensor,
        world: Sequence[Country],
        words: Sequence[Noun],
        tokenizer: PreTrainedTokenizerBase,
    ):
        self.texts, self.world = texts, [country for country in world if country.facts]
        self.words, self.tokenizer = words, tokenizer

    def rows(
        self,
        task: str,
        segments: int,
        tokens: int,
        draw: random.Random,
        texts: Sequence[int] = SEGMENTS,
    ) -> Rows:
        """Rows of one task.

        Args:
            task: `REPEAT`, `COMPLETE`, `RECALL`, `CLOZE`, `FACTS` or `NOUNS`.
            segments: of all rows together, about.
            tokens: of a segment.
            draw: decides everything.
            texts: segments of a text, drawn from, one number for all rows.
        """
        if task == REPEAT:
            return self._repeated(segments, tokens, draw)
        n_segments = draw.choice(texts)
        length = tokens * n_segments
        wanted, tries = max(1, segments * tokens // length), 0
        if n_segments > 1 and draw.random() < ENDED:
            length -= draw.randrange(tokens - LEAST_END)
        ids: list[torch.Tensor] = []
        following: list[torch.Tensor] = []
        scored: list[torch.Tensor] = []
        while len(ids) < wanted:
            tries += 1
            if tries > MOST_TRIES * wanted:
                raise ValueError("these texts hold no name, number, date or quotation to ask for.")
            start = draw.randrange(len(self.texts) - 2 * length)
            text = self.texts[start : start + length]
            if task == COMPLETE:
                after = self.texts[start + length :][: tokens * min(n_segments, MOST_FOLLOWING)]
                counted = torch.arange(len(after)) >= 1
            elif task == RECALL:
                after, counted = self._recalled(text, tokens // 2, min(QUESTIONS, n_segments), draw)
            elif task in (FACTS, NOUNS):
                text, after, counted = self._told(task, text, draw)
            else:
                words = self.tokenizer.decode(text)
                kinds = draw.choice((LEFT_OUT, LEFT_OUT, ("follows",)))
                count = min(
                    QUESTIONS, 1 + n_segments
                )  # of short texts, many questions are most of a row
                asked = questions_of(words, draw.randrange(2**31), count, kinds)
                if not asked:
                    continue
                after, counted = self._asked([(question, answer) for question, answer, _ in asked])
            ids.append(text)
            following.append(after)
            scored.append(counted)
        padded, counted = (pad_sequence(column, batch_first=True) for column in (following, scored))
        before = shown = None
        prefix = draw.choice((0, 0, LONGEST_PREFIX // 2, LONGEST_PREFIX))
        if task in (FACTS, NOUNS, CLOZE) and draw.random() < SHOWN:
            shown = self._shown(draw)
        elif prefix:
            starts = [draw.randrange(len(self.texts) - prefix) for _ in ids]
            break_ids = torch.tensor(self._encode("\n\n"))
            before = torch.stack(
                [torch.cat([self.texts[start : start + prefix], break_ids]) for start in starts]
            )
        # What follows has no right answer: all of it is to be as it is after the text.
        distilled = 1.0 if task == COMPLETE else 0.5
        return Rows(torch.stack(ids), padded, counted, before, shown, distilled)

    def _repeated(self, segments: int, tokens: int, draw: random.Random) -> Rows:
        """Texts of one segment, most of them whole ones; every token counts, and EOS after them."""
        if draw.random() < SHORTER:
            tokens = draw.randint(1, tokens)
        starts = [draw.randrange(len(self.texts) - tokens) for _ in range(segments)]
        ids = torch.stack([self.texts[start : start + tokens] for start in starts])
        return Rows(ids, ids, torch.ones_like(ids, dtype=torch.bool), None)

    def _recalled(
        self, text: torch.Tensor, length: int, places: int, draw: random.Random
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Passages of a text one after another; of each all counts but its cue."""
        between = torch.tensor(self._encode("\n\n"))
        passages, counted = [], []
        for start in draw.sample(range(len(text) - length), places):
            passages += [text[start : start + length], between]
            counted += [torch.arange(length) >= CUE, torch.zeros_like(between, dtype=torch.bool)]
        return torch.cat(passages[:-1]), torch.cat(counted[:-1])

    def _told(
        self, task: str, text: torch.Tensor, draw: random.Random
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Facts beside so much of a text as fills its length, questions and what counts of them."""
        for tries in range(1, MOST_TRIES):
            characters = CHARACTERS * len(text) // tries
            if task == FACTS:
                drawn = draw.sample(self.world, min(draw.choice((1, 1, 2, 3)), len(self.world)))
                row = fact_row(drawn, draw, characters)
            else:
                enough = min(len(self.words), characters // 20 + 1)
                row = noun_row(draw.sample(self.words, enough), draw, characters)
            told = torch.tensor(self._encode(row["context"]))
            if len(told) <= len(text):
                break
        else:
            raise ValueError(f"no {task} are told in {len(text)} tokens.")
        filler = text[len(told) :]
        place = draw.choice((0, len(filler), draw.randint(0, len(filler))))
        pairs = list(zip(row["question"], row["answer"], strict=True))
        return torch.cat([filler[:place], told, filler[place:]]), *self._asked(pairs)

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
