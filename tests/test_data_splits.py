"""The paper's own splits with their counts, and the stand-ins for sets that cannot be had."""

import json
import random

import pytest
from dataset_rows import ROWS, FakeHub, assert_counted
from datasets import Dataset

from lab import sources  # noqa: F401, whose kinds are named below
from lab.data.character_dialogue import book_sessions
from lab.data.personas import make_persona, persona_split
from memslots.data import DataNotFound, load_rows, raw_rows


def write_gsm8k(folder, count, shuffled=False):
    rows = [{"question": f"{n} and 1?", "answer": f"It is.\n#### {n + 1}"} for n in range(count)]
    if shuffled:
        random.Random(0).shuffle(rows)
    folder.mkdir(exist_ok=True)
    (folder / "gsm8k-train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def test_gsm8k_is_split_as_in_the_paper_whatever_the_order(tmp_path):
    def ids(folder, split, **options):
        return [row["id"] for row in load_rows("gsm8k", split, folder, **options)]

    folder = write_gsm8k(tmp_path / "a", 7_473)
    train, test = ids(folder, "paper_train"), ids(folder, "paper_test")
    assert (len(train), len(test)) == (6_725, 748)
    assert set(train) | set(test) == set(ids(folder, "train"))
    assert not set(train) & set(test)
    other = write_gsm8k(tmp_path / "b", 7_473, shuffled=True)
    assert set(ids(other, "paper_test")) == set(test)
    assert set(ids(folder, "paper_test", seed=5)) == set(test)
    assert ids(folder, "paper_test", limit=3) == test[:3]


def test_a_paper_split_reports_what_it_leaves_out(tmp_path):
    loaded = load_rows("gsm8k", "paper_test", write_gsm8k(tmp_path, 7_473), limit=700)
    assert len(list(loaded)) == 700
    assert_counted(loaded, 700, {}, {"in the paper's other split": 6_725, "beyond the limit": 48})


def test_hpd_is_split_as_in_the_paper(tmp_path):
    session = {"scene": "A lane.", "dialogue": ["Ron: Left?", "Harry: Right."]}
    sessions = {f"Session-{n}": session for n in range(1_097)}
    sessions["Session-x"] = {"scene": "A lane.", "dialogue": ["Harry: Left?", "Ron: Right."]}
    (tmp_path / "en_train_set.json").write_text(json.dumps(sessions))
    train = {row["id"] for row in load_rows("hpd", "paper_train", tmp_path)}
    test = {row["id"] for row in load_rows("hpd", "paper_test", tmp_path)}
    assert (len(train), len(test), len(train | test)) == (987, 110, 1_097)


@pytest.mark.parametrize(
    ("split", "file", "count"),
    [("paper_train", "train-v2.0.json", 86_821), ("paper_test", "dev-v2.0.json", 5_928)],
)
def test_squad_splits_are_its_answerable_questions(tmp_path, split, file, count):
    asked = [
        {"id": str(n), "question": "Which?", "answers": [{"text": "it", "answer_start": 0}]}
        for n in range(count)
    ]
    asked += [{"id": f"x{n}", "question": "Which?", "answers": []} for n in range(50)]
    document = {"data": [{"title": "t", "paragraphs": [{"context": "it is", "qas": asked}]}]}
    (tmp_path / file).write_text(json.dumps(document))
    loaded = load_rows("squad", split, tmp_path)
    assert sum(1 for _ in loaded) == count
    assert_counted(loaded, count, {}, {"unanswerable": 50})


@pytest.mark.parametrize(
    ("name", "split", "file", "message"),
    [
        ("squad", "paper_test", "squad-release.json", r"5,928 usable.*squad-release\.json has 2\."),
        ("squad", "paper_train", "squad.jsonl", r"86,821 usable.*squad\.jsonl has 2\."),
        ("gsm8k", "paper_train", "gsm8k.jsonl", r"7,473 usable.*6,725 \+ 748.* has 2\."),
        ("hpd", "paper_test", "hpd-train.json", r"1,097 usable.*987 \+ 110.* has 3\."),
    ],
)
def test_a_wrong_count_is_an_error_before_the_first_row(name, split, file, message):
    with pytest.raises(ValueError, match=message):
        next(iter(load_rows(name, split, ROWS / file)))


BOOK = """
CHAPTER I

The rain had stopped. They stood at the gate.

“Will you come?” asked Mr. Bell, and he lifted his hat.

“I may,” said Anna. “It is late, Mr. Bell.”

“Only to the bridge.”

Anna softly answered, “To the bridge, then.”

“How fine it is,” she said.

A cart went by.

The road was empty.

Night fell.

“Are you cold?” he said.

“No,” said Anna; “not at all.
“I never am,” said Anna.

"Anna whispered: nothing," wrote Mr. Bell.
"""


def test_character_dialogue_is_the_speech_of_who_speaks_most():
    sessions = list(book_sessions(BOOK, "b"))
    assert [session["dialogue"] for session in sessions] == [
        ["Mr. Bell: Will you come?", "Anna: I may, It is late, Mr. Bell."],
        [
            "Mr. Bell: Will you come?",
            "Anna: I may, It is late, Mr. Bell.",
            "Someone: Only to the bridge.",
            "Anna: To the bridge, then.",
        ],
        ["Someone: Are you cold?", "Anna: No, not at all. I never am,"],
    ]
    assert {session["character"] for session in sessions} == {"Anna"}
    assert [session["scene"] for session in sessions] == [
        "The rain had stopped. They stood at the gate."
    ] * 2 + ["Night fell."]
    assert sessions[1]["speakers"] == ["Anna", "Mr. Bell", "Someone"]


def test_a_speaker_who_is_not_named_beside_the_speech_is_not_guessed():
    book = (
        "“Why?” asked Tom.\n\nAnn turned to Tom and said, “I saw it.”\n\n“He did,” said Tom.\n\n"
        "She said: “Well.”\n\n“Then go,” said Tom."
    )
    assert [session["dialogue"][-2:] for session in book_sessions(book, "b")] == [
        ["Someone: I saw it.", "Tom: He did,"],
        ["Someone: Well.", "Tom: Then go,"],
    ]


def test_speech_that_goes_on_in_the_next_paragraph_is_one_turn():
    book = (
        "“Why?” asked Tom.\n\n“First,” said Ann, “the rain.\n\n“Then the wind.”\n\n“Oh,” said Ann."
    )
    (session,) = book_sessions(book, "b")
    assert session["dialogue"] == ["Tom: Why?", "Ann: First, the rain. Then the wind."]


def test_character_dialogue_says_that_it_stands_in(tmp_path):
    for split in ("train", "validation"):
        book = BOOK.replace("Anna", "Clara") if split == "validation" else BOOK
        (tmp_path / f"books-{split}.jsonl").write_text(json.dumps({"text": book}))
    loaded = load_rows("character_dialogue", "test", tmp_path)
    rows = list(loaded)
    assert {row["character"] for row in rows} == {"Clara"}  # the books of its own split
    assert rows[0]["question"] == "Mr. Bell: Will you come?"
    assert rows[0]["answer"] == "I may, It is late, Mr. Bell."
    assert rows[0]["context"] == "The rain had stopped. They stood at the gate."
    assert all(row["stand_in"].startswith("stand-in for HPD") for row in rows)
    assert "stand-in for HPD" in loaded.report.summary()
    assert rows == list(load_rows("hpd", "paper_test", tmp_path, allow_stand_in=True))


def test_character_dialogue_does_not_read_other_sets_files(tmp_path):
    (tmp_path / "gsm8k-train.jsonl").write_text("{}")
    with pytest.raises(DataNotFound, match=r"no books-validation\*\.jsonl"):
        load_rows("character_dialogue", "test", tmp_path)


def test_character_dialogue_takes_books_from_the_hub(monkeypatch):
    hub = FakeHub(ROWS / "pg19.jsonl")
    hub.rows = Dataset.from_list([{"text": BOOK}])
    monkeypatch.setattr(raw_rows, "_load_dataset", lambda: hub)
    rows = list(load_rows("character_dialogue", "test", limit=2))
    assert [row["character"] for row in rows] == ["Anna", "Anna"]
    assert hub.calls[0] == (("emozilla/pg19", None), {"split": "validation", "streaming": True})
    hub.errors = [ConnectionError("no route")]
    with pytest.raises(DataNotFound, match=r"PG-19.*no route"):
        load_rows("character_dialogue", "test")


def test_pronoun_pairs_turn_on_the_last_words():
    loaded = load_rows("pronoun_pairs", "validation")
    rows = list(loaded)
    assert len(rows) == 104
    for one, other in zip(rows[::2], rows[1::2], strict=True):
        assert {one["answer"], other["answer"]} == {"yes", "no"}
        before, pronoun, _ = one["question"].split("*", maxsplit=2)
        assert other["question"].startswith(f"{before}*{pronoun}*")
        assert one["question"].splitlines()[1] == other["question"].splitlines()[1]
        assert one["question"] != other["question"]
    assert all(row["stand_in"].startswith("stand-in for WSC") for row in rows)
    assert rows == list(load_rows("wsc", "validation", ROWS, allow_stand_in=True))


def test_pronoun_pairs_keep_the_splits_of_the_personas():
    split_of = {}
    for index in range(6000):
        persona = make_persona(index)
        split_of[persona.name] = (persona_split(persona), persona.pronoun)
    for split in ("train", "validation"):
        for row in load_rows("pronoun_pairs", split):
            asked = row["question"].rpartition('refer to "')[2].removesuffix('"?')
            assert split_of.get(asked, (split, ""))[0] == split
            assert split_of.get(asked, ("", pronoun_of(row)))[1] == pronoun_of(row)


def pronoun_of(row):
    return row["question"].split("*")[1]


def test_pronoun_pairs_are_the_same_for_the_same_seed():
    one = list(load_rows("pronoun_pairs", "validation", seed=4))
    assert one == list(load_rows("pronoun_pairs", "validation", seed=4))
    assert one != list(load_rows("pronoun_pairs", "validation", seed=5))
