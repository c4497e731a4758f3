"""The people of the package's `assets/demo.txt`: of the test split, so never trained on."""

import random

from lab.data.personas import Persona, distinct_people, personas
from memslots.evaluation.demo import QUESTIONS

DEMO_SEED = 70_000


def demo_people() -> list[Persona]:
    """One for each question of the demonstration."""
    return distinct_people(personas("test", seed=DEMO_SEED), len(QUESTIONS))


def demo_text() -> str:
    """What `assets/demo.txt` holds: one person a paragraph."""
    people = enumerate(demo_people())
    texts = [person.text(random.Random(f"memslots-demo-{number}")) for number, person in people]
    return "\n\n".join(texts) + "\n"
