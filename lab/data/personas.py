"""Short biographies with exact answers: the data of the embedded checkpoint.

The people follow the sentence-pool seed: one or two facts a sentence, several templates for each
sentence, values composed from lists so that guessing a fact is rarely right. Everything is a
function of (seed, index) alone, and the split is a stable hash of the full name: held-out people
are combinations of names that training never shows.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

SPLITS = ("train", "validation", "test")
FACTS = (
    "name",
    "profession",
    "employer",
    "city",
    "country",
    "age",
    "count",
    "languages",
    "university",
    "team",
)

FIRST_NAMES = {
    "he": tuple(
        "Aaron Adam Alan Albert Anton Ben Boris Carlos Charles Colin Daniel David Dennis Edward "
        "Eric Felix Frank Fred George Grant Harry Henry Hugo Ivan Jack James John Joseph Kevin "
        "Leo Louis Marcus Mark Martin Oscar Paul Peter Philip Ralph Robert Roger Simon Stephen "
        "Thomas Victor William".split()
    ),
    "she": tuple(
        "Ada Alice Amanda Amy Anna Bella Carmen Clara Diana Edith Elena Ellen Emma Eva Flora "
        "Grace Hannah Helen Ida Irene Jane Joan Julia Karen Kate Laura Lily Linda Lucy Maria "
        "Martha Mary Mona Nadia Nancy Nina Olga Olivia Pamela Rita Rosa Ruth Sara Sophia Vera "
        "Wendy".split()
    ),
}
LAST_NAMES = tuple(
    "Abbott Adler Allen Baker Barker Bell Berg Black Blake Brooks Brown Burns Carter Chen Clark "
    "Cole Cook Cooper Costa Cox Cruz Dale Davis Diaz Dunn Ellis Evans Fisher Flynn Ford Fox "
    "Garcia Gray Green Grey Hall Hardy Hart Hill Holt Hunt Jones Kelly Khan King Klein Lane Lee "
    "Lewis Lopez Marsh Mason Miller Moore Moss Nash Novak Okoro Page Park Parker Perez Perry "
    "Porter Price Reed Rice Rivera Rose Ross Russo Santos Scott Sharp Shaw Silva Singh Smith "
    "Stone Sutton Tanaka Taylor Torres Turner Walker Wallace Ward Watson Weber Webb West White "
    "Wilson Wong Wood Young".split()
)
PROFESSIONS = tuple(
    "actor architect artist author baker banker barber biologist broker builder butcher captain "
    "carpenter chef chemist clerk coach cook courier curator dancer dentist designer detective "
    "director doctor driver economist editor electrician engineer farmer gardener geologist guide "
    "historian hunter inspector jeweler journalist judge lawyer librarian locksmith manager "
    "mechanic merchant miner musician nurse painter pharmacist photographer pilot plumber poet "
    "printer professor programmer sailor scientist sculptor secretary singer surgeon surveyor "
    "tailor teacher translator waiter weaver writer".split()
)
EMPLOYER_FIRST = tuple(
    "Alpine Amber Anchor Apex Arctic Atlas Bright Bronze Cedar Central Copper Coral Crystal Delta "
    "Eagle Eastern Ember Falcon First General Global Golden Granite Harbor Horizon Iron Liberty "
    "Lunar Maple Metro Modern National Northern Ocean Pacific Pioneer Prime Royal Silver Solar "
    "Southern Summit Union United Valley Velvet Western".split()
)
EMPLOYER_LAST = tuple(
    "Airlines Bank Books Brothers Energy Films Foods Foundation Group Hospital Hotels Labs Media "
    "Motors Partners Press Railways Steel Studios Systems Textiles Tools Trading Works".split()
)
CITIES = {
    "Argentina": ("Rosario", "Mendoza", "Salta"),
    "Australia": ("Sydney", "Perth", "Melbourne"),
    "Brazil": ("Recife", "Manaus", "Salvador"),
    "Canada": ("Toronto", "Ottawa", "Calgary"),
    "Chile": ("Santiago", "Arica", "Temuco"),
    "China": ("Beijing", "Shanghai", "Wuhan"),
    "Egypt": ("Cairo", "Luxor", "Aswan"),
    "England": ("London", "Leeds", "York", "Bristol"),
    "France": ("Paris", "Lyon", "Nice", "Lille"),
    "Germany": ("Berlin", "Hamburg", "Munich", "Cologne"),
    "Ghana": ("Accra", "Tamale"),
    "Greece": ("Athens", "Patras"),
    "India": ("Delhi", "Mumbai", "Pune"),
    "Ireland": ("Dublin", "Cork", "Galway"),
    "Italy": ("Rome", "Milan", "Turin", "Naples"),
    "Japan": ("Tokyo", "Kyoto", "Osaka", "Nagoya"),
    "Kenya": ("Nairobi", "Mombasa"),
    "Mexico": ("Puebla", "Cancun", "Oaxaca"),
    "Morocco": ("Rabat", "Fez", "Tangier"),
    "Nigeria": ("Lagos", "Abuja", "Kano"),
    "Norway": ("Oslo", "Bergen"),
    "Peru": ("Lima", "Cusco"),
    "Poland": ("Warsaw", "Lodz", "Gdansk"),
    "Portugal": ("Lisbon", "Porto", "Braga"),
    "Russia": ("Moscow", "Kazan", "Omsk"),
    "Scotland": ("Glasgow", "Dundee", "Stirling"),
    "Spain": ("Madrid", "Seville", "Malaga"),
    "Sweden": ("Stockholm", "Malmo"),
    "Turkey": ("Ankara", "Izmir", "Bursa"),
    "Vietnam": ("Hanoi", "Hue", "Danang"),
}
LANGUAGES = tuple(
    "Arabic Bengali Chinese Czech Danish Dutch English Finnish French German Greek Hebrew Hindi "
    "Irish Italian Japanese Korean Latin Polish Portuguese Russian Spanish Swahili Swedish Thai "
    "Turkish Welsh Yoruba".split()
)
UNIVERSITY_PLACES = tuple(
    "Ashford Aurora Avalon Bedford Camden Carlton Chester Clifton Dover Eden Fairfax Hampton "
    "Highland Hudson Jordan Kent Kingston Lincoln Madison Newton Norfolk Oakland Oxford Preston "
    "Richmond Sheffield Stafford Trinity Vernon Windsor".split()
)
TEAMS = tuple(
    "accounting archive audit budget cloud data delivery defense education energy events export "
    "finance garden graphics health housing import insurance legal loans marketing network "
    "payments planning pricing quality repair research safety sales security shipping storage "
    "support tax testing training transport travel water weather web".split()
)
OBJECTS = tuple(
    "apples books bottles boxes cameras candles chairs clocks coins cups drums flags guitars hats "
    "horses keys knives lamps maps masks mirrors paintings pens plates radios rings ropes shells "
    "shirts shoes spoons stamps swords tables toys watches".split()
)

# {subject} is a pronoun or the first name, {possessive} its possessive; {a_job} has its article.
_OPENINGS = (
    "Meet {name}, {a_job} at {employer}.",
    "Here is {name}, {a_job} from {employer}.",
    "This is {name}, who works at {employer} as {a_job}.",
    "{name} is {a_job} at {employer}.",
    "At {employer}, {name} works as {a_job}.",
)
_SENTENCES = {
    "home": (
        "{subject} lives in {city}, {country}.",
        "{possessive} home is in {city}, a city in {country}.",
        "{subject} has a house in {city} in {country}.",
    ),
    "age": (
        "{subject} is {age} years old.",
        "{subject} turned {age} this year.",
        "Now {age} years old, {subject_inside} enjoys long walks.",
    ),
    "count": (
        "{subject} owns {count} {objects}.",
        "{subject} has collected {count} {objects} so far.",
        "In {possessive_inside} house there are {count} {objects}.",
    ),
    "languages": (
        "{subject} speaks {languages}.",
        "{subject} is fluent in {languages}.",
        "At work {subject_inside} uses both {languages}.",
    ),
    "university": (
        "{subject} graduated from {university}.",
        "{subject} studied for years at {university}.",
        "{possessive} degree is from {university}.",
    ),
    "team": (
        "{subject} works on the {team} team.",
        "{possessive} group there is the {team} team.",
        "{subject} leads the {team} team.",
    ),
}
SENTENCE_FACTS = {
    "opening": ("profession", "employer"),
    "home": ("city", "country"),
    "age": ("age",),
    "count": ("count",),
    "languages": ("languages",),
    "university": ("university",),
    "team": ("team",),
}
"""Kinds of sentences, and the facts that each states (every opening states the name as well)."""

_QUESTIONS = {
    "name": ("What is {of} name?", "What is {of} full name?"),
    "profession": (
        "What is {of} profession?",
        "What does {who} do for a living?",
        "What is {of} job?",
    ),
    "employer": ("Where does {who} work?", "Who is {of} employer?", "Which company employs {who}?"),
    "city": (
        "In which city does {who} live?",
        "What is {of} home city?",
        "Which city is {of} home in?",
    ),
    "country": ("In which country does {who} live?", "What is {of} home country?"),
    "age": ("How old is {who}?", "What is {of} age?"),
    "count": ("How many {objects} does {who} own?", "What number of {objects} does {who} have?"),
    "languages": ("Which languages does {who} speak?", "What are {of} languages?"),
    "university": (
        "Which university did {who} attend?",
        "Where did {who} study?",
        "What is {of} university?",
    ),
    "team": ("Which team is {who} on?", "What is {of} team?"),
}


@dataclass(frozen=True)
class Persona:
    """One person, as the facts that a biography states and a question asks for.

    Args:
        name: First and last name.
        pronoun: "he" or "she".
        profession: One word, without an article.
        employer: Two words, such as "Silver Bank".
        city: Where the person lives.
        country: The city's country.
        age: Years, 18 to 97.
        count: How many `objects` the person owns, 2 to 999.
        objects: A plural noun; part of the question, not a fact of its own.
        languages: Two languages, as the text joins them: "English and Yoruba".
        university: Such as "University of Kent".
        team: One word, the team at work.
    """

    name: str
    pronoun: str
    profession: str
    employer: str
    city: str
    country: str
    age: int
    count: int
    objects: str
    languages: str
    university: str
    team: str

    def text(self, rng: random.Random, among_others: bool = False) -> str:
        """Writes a biography of 40 to 60 words.

        Args:
            rng: Draws templates, references and order.
            among_others: Name the person in every sentence, as a text about several people has to.
        """
        order = list(_SENTENCES)
        if rng.random() < 0.5:  # exchange two neighbours
            at = rng.randrange(len(order) - 1)
            order[at], order[at + 1] = order[at + 1], order[at]
        kinds = ["opening", *order]
        return " ".join(self.sentence(kind, rng, among_others) for kind in kinds)

    def sentence(self, kind: str, rng: random.Random, among_others: bool = False) -> str:
        """Writes one sentence.

        Args:
            kind: One of `SENTENCE_FACTS`.
            rng: Draws template and references.
            among_others: Begin with the person's name.
        """
        article = "an" if self.profession[0] in "aeiou" else "a"
        facts = {
            "name": self.name,
            "a_job": f"{article} {self.profession}",
            "employer": self.employer,
            "city": self.city,
            "country": self.country,
            "age": self.age,
            "count": self.count,
            "objects": self.objects,
            "languages": self.languages,
            "university": self.university,
            "team": self.team,
        }
        templates: tuple[str, ...] = _OPENINGS if kind == "opening" else _SENTENCES[kind]
        if among_others:
            templates = tuple(t for t in templates if _names_first(t))
        references = {} if kind == "opening" else self._references(rng, among_others)
        return rng.choice(templates).format(**facts, **references)

    def _references(self, rng: random.Random, among_others: bool) -> dict[str, str]:
        if among_others or rng.random() < 0.4:
            name = self.name.split(" ", maxsplit=1)[0]
            if among_others and rng.random() < 0.5:
                name = self.name
            owner = f"{name}'s"
            return {
                "subject": name,
                "subject_inside": name,
                "possessive": owner,
                "possessive_inside": owner,
            }
        return {
            "subject": self.pronoun.capitalize(),
            "subject_inside": self.pronoun,
            "possessive": "His" if self.pronoun == "he" else "Her",
            "possessive_inside": "his" if self.pronoun == "he" else "her",
        }

    def answer(self, fact: str) -> str:
        """Returns the fact exactly as the text states it.

        Args:
            fact: One of `FACTS`.
        """
        _check_fact(fact)
        return str(getattr(self, fact))

    def question(self, fact: str, name: str | None = None, rng: random.Random | None = None) -> str:
        """Asks for one fact.

        Args:
            fact: One of `FACTS`.
            name: The person's name, for a context of several people; else "the person".
            rng: Draws the paraphrase; the first one without it.
        """
        _check_fact(fact)
        who = name or "the person"
        template = rng.choice(_QUESTIONS[fact]) if rng is not None else _QUESTIONS[fact][0]
        return template.format(of=f"{who}'s", who=who, objects=self.objects)


@cache
def _names_first(template: str) -> bool:
    """Whether the person comes before everything that the sentence states about them."""
    first = template[template.index("{") + 1 : template.index("}")]
    return first in ("name", "subject", "possessive")


def _check_fact(fact: str) -> None:
    if fact not in FACTS:
        raise ValueError(
            f"fact={fact!r} is not a fact of a persona; choose one of {', '.join(FACTS)}."
        )


def make_persona(index: int, seed: int = 0) -> Persona:
    """Composes person number `index` of `seed`, always the same one."""
    rng = random.Random(f"memslots-persona-{seed}-{index}")
    pronoun = rng.choice(("he", "she"))
    country = rng.choice(tuple(CITIES))
    return Persona(
        name=f"{rng.choice(FIRST_NAMES[pronoun])} {rng.choice(LAST_NAMES)}",
        pronoun=pronoun,
        profession=rng.choice(PROFESSIONS),
        employer=f"{rng.choice(EMPLOYER_FIRST)} {rng.choice(EMPLOYER_LAST)}",
        city=rng.choice(CITIES[country]),
        country=country,
        age=rng.randint(18, 97),
        count=rng.randint(2, 999),
        objects=rng.choice(OBJECTS),
        languages=" and ".join(rng.sample(LANGUAGES, 2)),
        university=f"University of {rng.choice(UNIVERSITY_PLACES)}",
        team=rng.choice(TEAMS),
    )


def persona_split(persona: Persona) -> str:
    """Returns "train" (90%), "validation" (5%) or "test" (5%), by a hash of the full name."""
    return _split_of_name(persona.name)


@cache
def _split_of_name(name: str) -> str:
    bucket = int.from_bytes(hashlib.sha256(name.encode("utf-8")).digest()[:8], "big") % 100
    return "train" if bucket < 90 else "validation" if bucket < 95 else "test"


def personas(split: str, seed: int = 0) -> Iterator[Persona]:
    """Yields the people of one split without end.

    Args:
        split: "train", "validation" or "test".
        seed: Another seed gives other people (of the same names).
    """
    if split not in SPLITS:
        raise ValueError(f"split={split!r} does not exist; choose one of {', '.join(SPLITS)}.")
    index = 0
    while True:
        persona = make_persona(index, seed)
        if persona_split(persona) == split:
            yield persona
        index += 1


def distinct_people(candidates: Iterator[Persona], count: int) -> list[Persona]:
    """Takes `count` people of whom no two share a first or a last name."""
    chosen: list[Persona] = []
    used: set[str] = set()
    while len(chosen) < count:
        persona = next(candidates)
        parts = {f"{position}:{part}" for position, part in enumerate(persona.name.split(" "))}
        if not parts & used:
            used |= parts
            chosen.append(persona)
    return chosen


def join_biographies(people: Sequence[Persona], rng: random.Random) -> str:
    """Writes the biographies of several people as one context, one after the other."""
    separator = rng.choice((" ", "\n")) if len(people) > 1 else " "
    return separator.join(person.text(rng, len(people) > 1) for person in people)


def persona_rows(
    split: str, n: int, people: int = 1, seed: int = 0, questions: int = 1
) -> Iterator[dict[str, Any]]:
    """Yields question-answering rows of the public schema.

    Args:
        split: "train", "validation" or "test".
        n: Number of rows.
        people: People in each context; with more than one, questions name their person and the
            name is not asked.
        seed: Another seed gives other rows.
        questions: Questions a row; with more than one, `question`, `answer` and `fact` are lists.

    Yields:
        `{"context", "question", "answer", "fact", "other_context"}`, the last with as many others.
    """
    facts = FACTS if people == 1 else FACTS[1:]
    limit = len(facts) * people
    most_people = min(len(LAST_NAMES), *(len(names) for names in FIRST_NAMES.values()))
    if not 1 <= people <= most_people:
        raise ValueError(
            f"people={people} is not possible; choose 1 to {most_people} with distinct names."
        )
    if not 1 <= questions <= limit:
        raise ValueError(
            f"questions={questions} is not possible; {people} people have 1 to {limit} questions."
        )
    source = personas(split, seed)
    for row in range(n):
        rng = random.Random(f"memslots-row-{split}-{seed}-{people}-{questions}-{row}")
        asked_people = distinct_people(source, people)
        others = distinct_people(source, people)
        context = join_biographies(asked_people, rng)
        asked = rng.sample([(person, fact) for person in asked_people for fact in facts], questions)
        fields: dict[str, Any] = {
            "question": [
                person.question(fact, person.name if people > 1 else None, rng)
                for person, fact in asked
            ],
            "answer": [person.answer(fact) for person, fact in asked],
            "fact": [fact for _, fact in asked],
        }
        if questions == 1:
            fields = {key: values[0] for key, values in fields.items()}
        yield {"context": context, **fields, "other_context": join_biographies(others, rng)}
