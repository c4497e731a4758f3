"""Documents with strings that no gist gives back, and questions for them.

A number, a UUID, a name or a code stands somewhere among biographies, stock paragraphs, small talk
or a passage of a book, and is asked for by its kind and place. Values are drawn anew for every
string and the places of the test split are never trained on, so an answer can only be read.
"""

from __future__ import annotations

import random
import re
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from lab.data.conversations import small_talk
from lab.data.personas import (
    FACTS,
    FIRST_NAMES,
    LAST_NAMES,
    SPLITS,
    Persona,
    distinct_people,
    personas,
)

VALUES: dict[str, Callable[[random.Random], str]] = {
    "number": lambda rng: str(rng.randint(10**6, 10**7 - 1)),
    "uuid": lambda rng: str(uuid.UUID(int=rng.getrandbits(128), version=4)),
    "name": lambda rng: f"{rng.choice(FIRST_NAMES['she'])} {rng.choice(LAST_NAMES)}",
    "code": lambda rng: f"{rng.choice('ABCDEFG')}{rng.randint(10, 99)}-{rng.randint(1000, 9999)}",
}
"""How a string of each kind is drawn."""

_TEST_PLACES = ("castle", "harbor", "library", "mill", "bridge", "garden", "tower", "market")
_TRAINING_PLACES = tuple(
    "house station church school farm forest island palace prison office hotel theater museum "
    "hospital factory temple cellar valley village lake river road camp court port hall shop "
    "kitchen".split()
)

BOILERPLATE = (
    "This message is meant only for the person it is addressed to. If you received it by mistake, "
    "please tell the sender and delete it from your system. Any use of it by others is not "
    "allowed, and no liability is taken for any loss that may follow from reading it.",
    "Please consider the environment before you print this page. Office hours are from nine to "
    "five on every working day. For questions about your order, write to the customer desk and "
    "always give the number that you find at the top of the letter.",
    "All rights reserved. No part of this work may be copied, stored or sent in any form or by any "
    "means without the written permission of the owner, except for short passages that are quoted "
    "in a review. The names of products belong to those who own them.",
    "The software is provided as it is, without any kind of warranty. In no event shall the "
    "authors be held liable for any claim or damage that arises from the use of the software or "
    "from other dealings in it. This notice must stand in every copy.",
    "You receive this letter because you asked for news about our work. If you do not wish to "
    "hear from us any more, follow the link at the end of this letter, and your address will be "
    "taken from the list within a week. We never give addresses to anybody else.",
    "The terms of this agreement are governed by the law of the country in which the company has "
    "its seat. Should one of the terms be void, the others remain in force. Changes must be made "
    "in writing and signed by both sides, or they have no effect.",
)
"""Stock paragraphs, the same in every split: what a compressor has seen a thousand times."""


def places_of(split: str) -> tuple[str, ...]:
    """The places at which a split's strings are.

    Raises:
        ValueError: another split.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {list(SPLITS)}, got {split!r}.")
    return _TEST_PLACES if split == "test" else _TRAINING_PLACES


def stated(kind: str, place: str, value: str) -> str:
    """The sentence that holds a string."""
    return f"The secret {kind} of the {place} is {value}."


def asked_for(kind: str, place: str) -> str:
    """The question for it."""
    return f"What is the secret {kind} of the {place}?"


def exact_string_rows(
    split: str,
    n: int,
    seed: int = 0,
    most_strings: int = 3,
    questions: int = 4,
    books: Sequence[str] = (),
) -> Iterator[dict[str, Any]]:
    """Yields question-answering rows; the first questions are for the strings.

    Args:
        split: "train", "validation" or "test".
        n: number of rows.
        seed: another seed gives other rows.
        most_strings: most strings of a document; how many is drawn.
        questions: questions a row; what the strings leave goes to the facts of a person, where the
            document has one.
        books: texts to take passages from.

    Yields:
        `{"context", "question", "answer", "fact"}`, the last three as lists.

    Raises:
        ValueError: another split, or numbers below 1.
    """
    if min(most_strings, questions) < 1:
        raise ValueError(
            f"most_strings and questions must be 1 or more, got {most_strings} and {questions}."
        )
    places_of(split)
    people = personas(split, seed)
    for number in range(n):
        rng = random.Random(f"memslots-exact-{split}-{seed}-{number}")
        context, asked = exact_string_document(split, people, rng, most_strings, books)
        asked = asked[:questions]
        yield {
            "context": context,
            "question": [question for question, _, _ in asked],
            "answer": [answer for _, answer, _ in asked],
            "fact": [fact for _, _, fact in asked],
        }


def exact_string_document(
    split: str,
    people: Iterator[Persona],
    rng: random.Random,
    most_strings: int = 3,
    books: Sequence[str] = (),
) -> tuple[str, list[tuple[str, str, str]]]:
    """One document, and `(question, answer, fact)` of its strings and then of its person.

    Args:
        split: of places and small talk.
        people: whose biographies may stand in it.
        rng: draws it.
        most_strings: most strings in it.
        books: texts to take passages from.
    """
    parts, person = _parts(split, people, rng, books)
    asked = []
    places = [(kind, place) for kind in VALUES for place in places_of(split)]
    for kind, place in rng.sample(places, rng.randint(1, most_strings)):
        value = VALUES[kind](rng)
        parts.insert(rng.randint(0, len(parts)), stated(kind, place, value))
        asked.append((asked_for(kind, place), value, kind))
    if person is not None:
        facts = rng.sample(FACTS[1:], len(FACTS) - 1)
        asked += [(person.question(f, person.name, rng), person.answer(f), f) for f in facts]
    return " ".join(parts), asked


def _parts(
    split: str, people: Iterator[Persona], rng: random.Random, books: Sequence[str]
) -> tuple[list[str], Persona | None]:
    """Sentences to hide strings between, and whose facts may be asked."""
    kind = rng.choice(("person", "person", "stock", "talk", "book" if books else "stock"))
    if kind == "book":
        book = rng.choice(books)
        start = rng.randrange(max(1, len(book) - 1500))
        passage = book[start : start + rng.randint(200, 1500)].partition(" ")[2]
        return _sentences(passage), None
    talk = [small_talk(split, rng) for _ in range(rng.randint(3, 24))]
    if kind == "talk":
        return talk, None
    stock = rng.sample(BOILERPLATE, rng.randint(1, 3))
    if kind == "stock":
        return stock, None
    (person,) = distinct_people(people, 1)
    about = _sentences(person.text(rng, True))
    others = rng.choice(([], [], stock, talk))
    return rng.choice(([*about, *others], [*others, *about])), person


def _sentences(text: str) -> list[str]:
    return re.split(r"(?<=[.!?])\s+", text.strip())
