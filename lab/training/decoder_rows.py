"""Training rows of the tiny decoder: questions on contexts, repeats, and books."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from tokenizers import Tokenizer
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerFast

from lab.data.exact_strings import exact_string_document
from lab.data.personas import (
    FACTS,
    SENTENCE_FACTS,
    Persona,
    distinct_people,
    join_biographies,
    make_persona,
    persona_split,
)

QUESTION = "\n\nQuestion: {}\n\nAnswer:"
REPEAT = "\n\nRepeat:\n"


class DecoderRows(Dataset):
    """One item a training step: `input_ids` and `weights` of the loss, both (rows, length).

    Args:
        recipe: The recipe's `decoder` section.
        tokenizer: The decoder's tokenizer.
        books: Book texts.
    """

    def __init__(
        self, recipe: dict[str, Any], tokenizer: PreTrainedTokenizerFast, books: list[str]
    ):
        self.recipe = recipe
        self.stages = recipe["curriculum"]
        self.books = books
        self.encoder: Tokenizer = tokenizer.backend_tokenizer
        self.bos, self.eos, self.pad = (
            tokenizer.bos_token_id,
            tokenizer.eos_token_id,
            tokenizer.pad_token_id,
        )
        self.ordinary = [
            i for i in range(len(tokenizer)) if i not in (self.bos, self.eos, self.pad)
        ]
        self.repeat_ids = self._encode(REPEAT)
        self.known: dict[str, list[int]] = {}

    def __len__(self) -> int:
        return sum(stage["steps"] for stage in self.stages)

    def __getitem__(self, step: int) -> dict[str, torch.Tensor]:
        rng = random.Random(f"memslots-decoder-{self.recipe['seed']}-{step}")
        stage = self._stage(step)
        length = _draw(stage["lengths"], rng)
        rows = []
        for _ in range(max(1, self.recipe["tokens_per_step"] // length)):
            rows.append(self._row(_draw(stage["kinds"], rng), length, rng))
        input_ids = torch.full((len(rows), length), self.pad)
        weights = torch.zeros(len(rows), length)
        for row, (ids, row_weights) in enumerate(rows):
            kept = min(length, len(ids))
            input_ids[row, :kept] = torch.tensor(ids[:kept])
            weights[row, :kept] = torch.tensor(row_weights[:kept])
        return {"input_ids": input_ids, "weights": weights}

    def _stage(self, step: int) -> dict[str, Any]:
        for stage in self.stages:
            if step < stage["steps"]:
                return stage
            step -= stage["steps"]
        return self.stages[-1]

    def _encode(self, text: str) -> list[int]:
        return self.encoder.encode(text, add_special_tokens=False).ids

    def _encode_known(self, text: str) -> list[int]:
        """Encodes a question or an answer; the few thousand of them are remembered."""
        if text not in self.known:
            if len(self.known) > 50_000:
                self.known.clear()
            self.known[text] = self._encode(text)
        return self.known[text]

    def _row(self, kind: str, length: int, rng: random.Random) -> tuple[list[int], list[float]]:
        weight = self.recipe["loss_weights"]
        if kind == "person":
            return self._question_row(1, length, rng)
        if kind == "people":
            most = max(2, (length - 90) // 80)
            return self._question_row(rng.randint(2, most), length, rng)
        if kind == "same_fact":
            return self._same_fact_row(length, rng)
        if kind == "exact_strings":
            return self._exact_strings_row(length, rng)
        if kind == "book":
            ids = [self.bos, *self._book_span(length - 1, rng)]
            return ids, [weight["book"]] * len(ids)
        if kind == "cycle":
            return self._cycle_row(length, rng)
        room = (length - len(self.repeat_ids) - 2) // 2
        if kind == "repeat_random":
            span = rng.choices(self.ordinary, k=rng.randint(room // 2, room))
        elif kind == "repeat_book":
            span = self._book_span(rng.randint(room // 2, room), rng)
        elif kind == "repeat_persona":
            people = distinct_people(_train_people(rng), max(1, room // 72))
            span = self._encode(join_biographies(people, rng))[:room]
        else:
            raise ValueError(
                f"kind={kind!r} of a row is unknown; see `DecoderRows` for those there are."
            )
        ids = [self.bos, *span, *self.repeat_ids, *span, self.eos]
        first = 1 + len(span) + len(self.repeat_ids)
        return ids, [0.0] * first + [weight["repeat"]] * (len(ids) - first)

    def _question_row(
        self, people: int, length: int, rng: random.Random
    ) -> tuple[list[int], list[float]]:
        persons = distinct_people(_train_people(rng), people)
        facts = FACTS if people == 1 else FACTS[1:]
        asked = [(person, fact) for person in persons for fact in facts]
        return self._ask(join_biographies(persons, rng), asked, people > 1, length, rng)

    def _same_fact_row(self, length: int, rng: random.Random) -> tuple[list[int], list[float]]:
        """One sentence each about several people, all of one kind: what teaches to use the name."""
        people = distinct_people(_train_people(rng), rng.randint(2, max(2, length // 40)))
        kind = rng.choice(list(SENTENCE_FACTS))
        context = " ".join(person.sentence(kind, rng, among_others=True) for person in people)
        asked = [(person, fact) for person in people for fact in SENTENCE_FACTS[kind]]
        return self._ask(context, asked, True, length, rng)

    def _ask(
        self,
        context: str,
        asked: list[tuple[Persona, str]],
        by_name: bool,
        length: int,
        rng: random.Random,
    ) -> tuple[list[int], list[float]]:
        """A context and as many of the questions on it, in random order, as the row holds."""
        rng.shuffle(asked)
        said = (
            (
                person.question(fact, person.name if by_name else None, rng),
                person.answer(fact),
                fact,
            )
            for person, fact in asked
        )
        return self._answered([self.bos, *self._encode(context)], said, length)

    def _exact_strings_row(self, length: int, rng: random.Random) -> tuple[list[int], list[float]]:
        """Strings to be copied; every document that is drawn leaves room for some questions."""
        while True:
            context, asked = exact_string_document(
                "train", _train_people(rng), rng, books=self.books
            )
            ids = [self.bos, *self._encode(context)]
            if len(ids) <= 0.8 * length:
                rng.shuffle(asked)
                return self._answered(ids, asked, length)

    def _answered(
        self, ids: list[int], asked: Iterable[tuple[str, str, str]], length: int
    ) -> tuple[list[int], list[float]]:
        """A context's tokens and as many `(question, answer, fact)` as the row holds."""
        weight = self.recipe["loss_weights"]
        weights = [weight["context"]] * len(ids)
        for question, answer, fact in asked:
            prompt = self._encode_known(QUESTION.format(question))
            target = [*self._encode_known(" " + answer), self.eos]
            if len(ids) + len(prompt) + len(target) > length:
                break
            ids = ids + prompt + target
            learned = weight["answer"] * self.recipe["fact_weights"].get(fact, 1.0)
            weights += [0.0] * len(prompt) + [learned] * len(target)
        return ids, weights

    def _cycle_row(self, length: int, rng: random.Random) -> tuple[list[int], list[float]]:
        """A few distinct tokens, over and over: what teaches copying soonest."""
        pool = self.ordinary
        if rng.random() < 0.6:
            people = distinct_people(_train_people(rng), 3)
            pool = list(dict.fromkeys(self._encode(join_biographies(people, rng))))
        period = rng.randint(4, 24) if rng.random() < 0.7 else rng.randint(24, 60)
        span = rng.sample(pool, period)
        ids = [self.bos, *(span * (length // period + 1))][:length]
        first = period + 2  # the second round's first token is not to be foreseen
        return ids, [0.0] * first + [self.recipe["loss_weights"]["repeat"]] * (length - first)

    def _book_span(self, tokens: int, rng: random.Random) -> list[int]:
        text = rng.choice(self.books)
        start = rng.randrange(max(1, len(text) - 6 * tokens))
        return self._encode(text[start : start + 6 * tokens])[:tokens]


def _train_people(rng: random.Random) -> Iterator[Persona]:
    while True:
        persona = make_persona(rng.getrandbits(48))
        if persona_split(persona) == "train":
            yield persona


def _draw(shares: dict[Any, float], rng: random.Random) -> Any:
    return rng.choices(list(shares), weights=list(shares.values()))[0]
