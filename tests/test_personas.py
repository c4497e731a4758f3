"""The persona generator: reproducible people, exact answers, held-out names, no lucky guesses."""

import itertools
import random
import subprocess
import sys
from collections import Counter

import pytest

from lab.data.personas import (
    FACTS,
    SPLITS,
    make_persona,
    persona_rows,
    persona_split,
    personas,
)


def test_same_arguments_give_same_rows_in_another_process():
    code = (
        "from lab.data.personas import persona_rows as rows;"
        "print(list(rows('test', 3, people=2, questions=4)))"
    )
    printed = [
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": hash_seed, "PYTHONPATH": "src"},
        ).stdout
        for hash_seed in ("1", "2")
    ]
    assert printed[0] == printed[1] == f"{list(persona_rows('test', 3, people=2, questions=4))}\n"


def test_seeds_give_different_people():
    assert [make_persona(i, seed=0) for i in range(5)] != [
        make_persona(i, seed=1) for i in range(5)
    ]


def test_splits_share_no_name_and_have_their_shares():
    names = {split: set() for split in SPLITS}
    counts = Counter()
    for index in range(4000):
        persona = make_persona(index)
        names[persona_split(persona)].add(persona.name)
        counts[persona_split(persona)] += 1
    assert not names["train"] & names["validation"]
    assert not names["train"] & names["test"]
    assert not names["validation"] & names["test"]
    assert 0.87 < counts["train"] / 4000 < 0.93
    assert min(counts["validation"], counts["test"]) > 0.03 * 4000


def test_iterator_stays_in_its_split():
    assert {persona_split(p) for p in itertools.islice(personas("test"), 50)} == {"test"}


def test_every_answer_is_in_its_text_whatever_the_templates():
    for persona in itertools.islice(personas("train"), 300):
        text = persona.text(random.Random(persona.name))
        assert 36 <= len(text.split()) <= 62
        for fact in FACTS:
            assert persona.answer(fact) in text


def test_one_person_is_not_named_in_the_question():
    for row in persona_rows("train", 50, questions=len(FACTS)):
        name = row["answer"][row["fact"].index("name")]
        assert not any(name in question for question in row["question"])
        assert all("the person" in question for question in row["question"])


def test_many_people_have_distinct_names_and_are_named():
    for row in persona_rows("validation", 10, people=12, questions=12):
        assert "name" not in row["fact"]
        assert len(row["question"]) == len(row["answer"]) == len(row["fact"]) == 12
        assert not any("the person" in question for question in row["question"])
        for answer in row["answer"]:
            assert answer in row["context"]
    people = next(persona_rows("train", 1, people=15, questions=9 * 15))
    named = {
        question
        for question, fact in zip(people["question"], people["fact"], strict=True)
        if fact == "team"
    }
    assert len(named) == 15


def test_one_question_gives_strings_and_other_people():
    row = next(persona_rows("test", 1))
    assert set(row) == {"context", "question", "answer", "fact", "other_context"}
    assert all(isinstance(value, str) for value in row.values())
    assert row["context"] != row["other_context"]


@pytest.mark.parametrize("fact", FACTS)
def test_most_frequent_value_is_a_bad_guess(fact):
    values = Counter(make_persona(index).answer(fact) for index in range(2000))
    assert values.most_common(1)[0][1] < 0.1 * 2000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "dev", "n": 1}, "split='dev'"),
        ({"split": "test", "n": 1, "people": 0}, "people=0"),
        ({"split": "test", "n": 1, "people": 500}, "people=500"),
        ({"split": "test", "n": 1, "questions": 11}, "questions=11"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        next(persona_rows(**arguments))


def test_unknown_fact_lists_the_facts():
    with pytest.raises(ValueError, match="profession"):
        make_persona(0).answer("salary")
