"""Texts whose capacity is measured: prose of the books, random words, and generated people."""

from __future__ import annotations

import hashlib
import random
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from lab.data.personas import persona_rows
from memslots.cramming import FrozenDecoder
from memslots.data.books import iterate_books

SOURCES = ("books", "random", "personas")

_CHARACTERS_A_TOKEN = 8
_BOOKS = 8
_MOST_PEOPLE = 46


class CapacityTexts:
    """Token ids of texts, the same for the same seed.

    Args:
        books: a JSONL file of books or a folder of them; PG-19 from the Hub without. Texts are of
            the validation split.
        seed: of the places in the books and of the words.
    """

    def __init__(self, books: str | Path | None, seed: int = 0):
        self.texts = list(iterate_books(books, "validation", limit=_BOOKS))
        self.seed = seed

    def ids(self, source: str, decoder: FrozenDecoder, count: int, length: int) -> list[list[int]]:
        """Texts of exactly `length` tokens; a shorter length gives their heads.

        Args:
            source: `books` (beginning with a sentence), `random` (words of the books, each as
                likely as any other, as in Kuratov et al.) or `personas`.
            decoder: whose tokens.
            count: texts.
            length: tokens of each.
        """
        if source == "books":
            make = self._passage
        elif source == "random":
            make = self._words
        elif source == "personas":
            make = self._people
        else:
            raise ValueError(f"source={source!r} must be one of {', '.join(SOURCES)}.")
        found = []
        for number in range(count):
            rng = random.Random(f"capacity {self.seed} {source} {number}")
            ids = decoder.encode(make(rng, number, length))
            if len(ids) < length:
                raise ValueError(
                    f"a text of {source!r} has {len(ids)} tokens, fewer than {length}; give longer "
                    "books or a smaller length."
                )
            found.append(ids[:length])
        return found

    def digest(self) -> str:
        """What tells these books from others."""
        whole = hashlib.sha256()
        for text in self.texts:
            whole.update(text.encode())
        return whole.hexdigest()[:12]

    def reference(self, decoder: FrozenDecoder, characters: int = 200_000) -> list[int]:
        """Tokens of the books' heads, for frequencies."""
        each = characters // len(self.texts)
        return [index for text in self.texts for index in decoder.encode(text[:each])]

    def _passage(self, rng: random.Random, number: int, length: int) -> str:
        text = self.texts[number % len(self.texts)]
        need = length * _CHARACTERS_A_TOKEN
        # Where it begins must not depend on the length: a shorter text is then a longer one's head.
        starts = [m.end() for m in re.finditer(r"[.!?][\"']?\s+(?=[A-Z])", text)]
        inner = starts[len(starts) // 10 : -len(starts) // 10] or starts or [0]
        start = rng.choice(inner)
        return " ".join(text[start : start + need].split())

    def _words(self, rng: random.Random, number: int, length: int) -> str:
        vocabulary = _vocabulary(self.texts)
        return " ".join(rng.choice(vocabulary) for _ in range(length))

    def _people(self, rng: random.Random, number: int, length: int) -> str:
        people = min(_MOST_PEOPLE, 1 + length // 60)  # a biography is about 70 tokens
        rows = persona_rows("test", number + 1, seed=self.seed, people=people)
        return list(rows)[number]["context"]


def _vocabulary(texts: Sequence[str]) -> list[str]:
    """Distinct words that occur at least three times, in alphabetic order."""
    counted = Counter(word for text in texts for word in re.findall(r"[a-z]+", text.lower()))
    return sorted(word for word, times in counted.items() if times >= 3)
