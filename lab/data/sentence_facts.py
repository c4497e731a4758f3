"""People in a few sentences, and pools of one sentence a person: the sentence-pools article's data.

The article trains on paragraphs of five sentences about one person, each with one or two facts, and
measures scaling on up to 1,000 pools of one sentence each, "where each pool belongs to a different
person and the question names which person to extract from". It found that a decoder learns the
*shapes* of answers without reading the vectors (94.5% of first tokens right, 0% of answers), unless
a batch holds several texts with the same type of fact and other values: `contrast` makes such rows.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from typing import Any

from lab.data.personas import (
    SENTENCE_FACTS,
    Persona,
    make_persona,
    persona_split,
    personas,
)

PARAGRAPH = ("opening", "home", "university", "languages", "team")
"""The five sentences of the article's example."""

POOL_FACTS = ("profession", "country", "city")
"""What the article asks of each of many pools; all three stand in one sentence."""

_POOL_SENTENCES = (
    "{name} is {a_job} in {city}, {country}.",
    "{name}, {a_job}, lives in {city}, {country}.",
    "{name} works in {city}, {country}, as {a_job}.",
)


def sentence_rows(
    split: str,
    n: int,
    kinds: Sequence[str] = PARAGRAPH,
    sentences: int | None = None,
    questions: int = 1,
    contrast: int = 1,
    seed: int = 0,
    facts: Sequence[str] | None = None,
    brief: bool = False,
) -> Iterator[dict[str, Any]]:
    """Yields rows about one person each, in sentences of the named kinds.

    Args:
        split: "train", "validation" or "test"; people of a split have names that others have not.
        n: number of rows.
        kinds: of `SENTENCE_FACTS`, in the order of the text (two neighbours change places in half
            of the rows).
        sentences: draw so many of the kinds for each row; all of them without it.
        questions: most questions a row, about the facts that its sentences state.
        contrast: so many rows in a row ask for the same facts in the same words, and no two of them
            have an answer in common; their sentences are of the same kinds.
        seed: another seed gives other rows.
        facts: ask for these alone; each drawn set of sentences has to state one of them.
        brief: ask in one word, "city", as the article does, instead of a whole question.

    Yields:
        `{"context", "question", "answer", "fact", "other_context"}`: three lists of equal length,
        and another person in the same kinds of sentences.

    Raises:
        ValueError: unknown kinds, or numbers that cannot be had.
    """
    unknown = sorted(set(kinds) - set(SENTENCE_FACTS))
    if unknown or not kinds:
        raise ValueError(
            f"kinds={list(kinds)}: {unknown or 'none'} given; there are {sorted(SENTENCE_FACTS)}."
        )
    if sentences is not None and not 1 <= sentences <= len(kinds):
        raise ValueError(f"sentences={sentences} must be 1 to {len(kinds)}, the kinds given.")
    if questions < 1 or contrast < 1:
        raise ValueError(f"questions={questions} and contrast={contrast} must be at least 1.")
    source = personas(split, seed)
    made = 0
    while made < n:
        block = random.Random(f"memslots-sentences-{split}-{seed}-{made}")
        chosen = sorted(block.sample(range(len(kinds)), sentences or len(kinds)))
        stated = [kinds[i] for i in chosen]
        known = [fact for kind in stated for fact in _facts_of(kind)]
        known = [fact for fact in known if facts is None or fact in facts]
        if not known:
            raise ValueError(
                f"facts={list(facts or [])}: sentences of {stated} state none of them."
            )
        asked = block.sample(known, min(questions, len(known)))
        wording = block.random()
        taken: list[set[str]] = [set() for _ in asked]
        for _ in range(min(contrast, n - made)):
            person = _another(source, asked, taken)
            rng = random.Random(f"memslots-sentence-{split}-{seed}-{made}")
            words = random.Random(wording)
            yield {
                "context": _paragraph(person, stated, rng),
                "question": [
                    _in_a_word(person, fact) if brief else person.question(fact, rng=words)
                    for fact in asked
                ],
                "answer": [person.answer(fact) for fact in asked],
                "fact": list(asked),
                "other_context": _paragraph(_another(source, asked, taken), stated, rng),
            }
            made += 1


def _facts_of(kind: str) -> tuple[str, ...]:
    return (*(("name",) if kind == "opening" else ()), *SENTENCE_FACTS[kind])


def _in_a_word(person: Persona, fact: str) -> str:
    """The fact's name; a count is asked for by what is counted, such as "radios"."""
    return person.objects if fact == "count" else fact


def _another(source: Iterator[Persona], asked: Sequence[str], taken: list[set[str]]) -> Persona:
    """The next person none of whose answers is taken; takes them."""
    while True:
        person = next(source)
        answers = [person.answer(fact) for fact in asked]
        if not any(answer in others for answer, others in zip(answers, taken, strict=True)):
            for answer, others in zip(answers, taken, strict=True):
                others.add(answer)
            return person


def _paragraph(person: Persona, kinds: Sequence[str], rng: random.Random) -> str:
    order = list(kinds)
    if len(order) > 1 and rng.random() < 0.5:
        at = rng.randrange(len(order) - 1)
        order[at], order[at + 1] = order[at + 1], order[at]
    return " ".join(person.sentence(kind, rng) for kind in order)


def pool_rows(
    split: str,
    n: int,
    people: int,
    questions: int = 1,
    population: int = 2000,
    seed: int = 0,
    brief: bool = False,
    namesakes: bool = False,
) -> Iterator[dict[str, Any]]:
    """Yields rows of many people with one sentence each; every question names its person.

    Args:
        split: of the people who are asked about; those beside them are of any split in a held-out
            row, since one split alone has not 1,000 names, and of the training split in training.
        n: number of rows.
        people: pools of a row.
        questions: questions a row, each about another person where there are as many.
        population: people that all rows are drawn from; each has one sentence, so that a sentence
            encoder has to read no more than these.
        seed: another seed gives other people.
        brief: ask in few words, "Irene Smith's city", instead of a whole question.
        namesakes: rows of few first and few last names, so that a small one is as hard to choose
            from as a large one.

    Yields:
        As `sentence_rows`; `other_context` has the same names, and the other people's facts.

    Raises:
        ValueError: more people than the population has, or a population of more than all names.
    """
    if not 1 <= people <= population:
        raise ValueError(f"people={people} must be 1 to {population}, the population.")
    everyone = _population(split, population, seed)
    own = {number for number, person in enumerate(everyone) if persona_split(person) == split}
    for row in range(n):
        rng = random.Random(f"memslots-pools-{split}-{seed}-{people}-{row}")
        drawn = _namesakes(everyone, own, people, rng) if namesakes else range(population)
        may_be_asked = [number for number in drawn if number in own]
        asked = rng.sample(may_be_asked, min(people, questions, len(may_be_asked)))
        among = set(asked)
        others = rng.sample(drawn, min(len(drawn), people + len(asked)))
        beside = [number for number in others if number not in among][: people - len(asked)]
        pool = [*asked, *beside]
        rng.shuffle(pool)
        about = [everyone[number] for number in itertools.islice(itertools.cycle(asked), questions)]
        facts = [rng.choice(POOL_FACTS) for _ in about]
        moved = [everyone[number] for number in [*pool[1:], pool[0]]]
        yield {
            "context": " ".join(_pool_sentence(everyone[number], seed) for number in pool),
            "question": [
                f"{person.name}'s {fact}" if brief else person.question(fact, person.name, rng)
                for person, fact in zip(about, facts, strict=True)
            ],
            "answer": [person.answer(fact) for person, fact in zip(about, facts, strict=True)],
            "fact": facts,
            "other_context": " ".join(
                _pool_sentence(other, seed, named=everyone[number].name)
                for number, other in zip(pool, moved, strict=True)
            ),
        }


def _namesakes(
    everyone: Sequence[Persona], own: set[int], people: int, rng: random.Random
) -> list[int]:
    """Those of the fewest first and last names that hold so many people, one of them in `own`."""
    names = [person.name.split(" ") for person in everyone]
    places = []
    for column in zip(*names, strict=True):
        distinct = sorted(set(column))
        rng.shuffle(distinct)
        places.append({name: place for place, name in enumerate(distinct)})
    # A person is among the first n first and last names where this is below n.
    reached = [max(places[0][first], places[1][last]) for first, last in names]
    enough = max(sorted(reached)[people - 1], min(reached[number] for number in own))
    return [number for number, place in enumerate(reached) if place <= enough]


def _population(split: str, count: int, seed: int) -> list[Persona]:
    """`count` people of different full names; of a held-out split at most an eighth."""
    source: Iterator[Persona]
    if split == "train":
        source = personas("train", seed)
    else:
        held_out = itertools.islice(_distinct(personas(split, seed)), max(1, count // 8))
        source = itertools.chain(held_out, (make_persona(i, seed) for i in itertools.count()))
    people = list(itertools.islice(_distinct(source), count))
    if len(people) < count:
        raise ValueError(
            f"population={count}, but there are {len(people)} names; take fewer people."
        )
    return people


def _distinct(source: Iterator[Persona]) -> Iterator[Persona]:
    """The first person of each name, until 10,000 in a row bring no new name."""
    names: set[str] = set()
    repeated = 0
    for person in source:
        repeated += 1
        if person.name not in names:
            names.add(person.name)
            repeated = 0
            yield person
        elif repeated == 10_000:
            return


def _pool_sentence(person: Persona, seed: int, named: str | None = None) -> str:
    rng = random.Random(f"memslots-pool-{seed}-{person.name}")
    article = "an" if person.profession[0] in "aeiou" else "a"
    return rng.choice(_POOL_SENTENCES).format(
        name=named or person.name,
        a_job=f"{article} {person.profession}",
        city=person.city,
        country=person.country,
    )
