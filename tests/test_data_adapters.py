"""Datasets in one schema: rows in each set's own layout become the rows worked out by hand.

The files in `data_rows/` are written by hand in the layouts of the sets, with faults among them.
"""

import logging

import pytest
from dataset_rows import ROWS, assert_counted
from datasets import Dataset, load_dataset

from memslots.data import ADAPTERS, load_rows

RIVER = "The Lech rises in the Bernese Alps and joins the Rhine at Koblenz. Its length is 288 km."
TOWN = "Ida\nIda was born in Thun. She paints.\n\nThun\nThun is a town. The Lech flows past it."
HISTORY = "Hagrid: Got yer list?\nHarry: Here: two pages.\nRon: Is it long?"

# (set, split, file) -> rows as (id, context, question, answers), bad rows, rows left out
QUESTIONS = {
    ("squad", "train", "squad.jsonl"): (
        [
            (
                "s1",
                RIVER,
                "Where does the Lech rise?",
                ["in the Bernese Alps", "Bernese Alps"],
            ),
            ("s4", "Das Café „Zürich“ öffnet um 7 Uhr. 営業中", "¿Cuándo abre?", ["7 Uhr"]),
        ],
        {
            "no 'question'": 1,
            "empty 'context'": 1,
            "'answers' has lists of unequal length": 1,
            "not JSON": 1,
        },
        {"unanswerable": 1},
    ),
    ("squad", "validation", "squad-release.json"): (
        [
            ("n1", RIVER, "How long is the Lech?", ["288 km", "288"]),
            ("n4", "Thun lies on it.", "Which town?", ["Thun"]),
        ],
        {"no 'answers'": 1},
        {"unanswerable": 1},
    ),
    ("adversarialqa", "train", "adversarialqa.jsonl"): (
        [("a1", "A neuron fires or stays silent.", "What fires?", ["A neuron"])],
        {"empty 'question'": 1},
        {},
    ),
    ("hotpotqa", "validation", "hotpotqa.jsonl"): (
        [("h1", TOWN, "Which river flows past the birthplace of Ida?", ["the Lech"])],
        {"no 'answer'": 1, "empty 'context'": 1},
        {},
    ),
    ("hotpotqa", "validation", "hotpotqa-release.json"): (
        [("h1", TOWN, "Which river flows past the birthplace of Ida?", ["the Lech"])],
        {
            "'context' is not a list of titles with sentences": 1,
            "a str in place of a row with columns": 1,
        },
        {},
    ),
    ("natural_questions", "validation", "natural_questions.jsonl"): (
        [("101", "The Lech is 288 km long .", "how long is the lech", ["288 km", "288"])],
        {
            "a short answer outside its long answer": 1,
            "a marked answer outside the document": 1,
        },
        {"no short answer": 1},
    ),
    ("natural_questions", "train", "natural_questions-simplified.jsonl"): (
        [
            (
                "5655493461695504401",
                "Thun , a town , lies on it .",
                "what lies on the lech",
                ["Thun , a town"],
            )
        ],
        {},
        {"no short answer": 1},
    ),
    ("natural_questions", "validation", "natural_questions-release.jsonl"): (
        [("77", "The Lech is 288 km long .", "how long is it", ["288 km"])],
        {},
        {},
    ),
    ("natural_questions", "train", "natural_questions-dpr.json"): (
        [
            (
                None,
                "The Lech is 288 km long.",
                "how long is the lech",
                ["288 km", "288 kilometres"],
            )
        ],
        {},
        {"no passage with the answer": 1},
    ),
    ("hpd", "train", "hpd-train.json"): (
        [
            (
                "Session-1",
                "Harry. name: Harry; age: 11; talents: flying, courage\n\n"
                f"Harry and Hagrid wait for the boat.\nIt rains.\n\n{HISTORY}",
                "Hagrid: Read it out.",
                ["It begins with a kettle."],
            ),
            ("Session-2", "In the train.", "Ron: Hungry?", ["Very.—"]),
            ("Session-5", "", "Ron: Ready?", ["No."]),
        ],
        {
            "a line of 'dialogue' without speaker or text": 1,
            "empty 'dialogue'": 1,
            "a NoneType in place of a row with columns": 1,
        },
        {"no reply of the character": 1},
    ),
    ("hpd", "test", "hpd-test.json"): (
        [
            (
                "Session-1",
                "In the library.\n\nHarry: What now?",
                "Hermione: Have you read it?",
                ["Not yet."],
            )
        ],
        {},
        {},
    ),
}

# (set, split, file) -> rows as (question, answer, label), bad rows, rows left out
EXAMPLES = {
    ("gsm8k", "train", "gsm8k.jsonl"): (
        [
            (
                "Ida has 2 boats with 600 oars each. How many oars?",
                "She has 2*600 = <<2*600=1200>>1200 oars.\n#### 1,200",
                "1200",
            ),
            (
                "It was 3 degrees and fell by 5.5. How many now?",
                "3 - 5.5 = -2.5\n#### -2.5",
                "-2.5",
            ),
        ],
        {
            "no final number after ####": 2,
            "no 'answer'": 1,
            "a list in place of a row with columns": 1,
        },
        {},
    ),
    ("sst2", "train", "sst2.tsv"): (
        [
            ('a "quoted , unended word', "positive", "positive"),
            ("ne\u0301anmoins dull", "negative", "negative"),
        ],
        {
            "3 tab-separated cells, not 2": 1,
            "'label' is not 0 or 1": 1,
            "empty 'sentence'": 1,
        },
        {},
    ),
    ("sst2", "train", "sst2-glue.tsv"): ([("hides nothing", "negative", "negative")], {}, {}),
    ("sst2", "validation", "sst2.jsonl"): (
        [("contains no wit", "negative", "negative"), ("warm and funny", "positive", "positive")],
        {},
        {"unlabelled": 1},
    ),
    ("wsc", "train", "wsc.jsonl"): (
        [
            (
                "Ida told Emma that (*she*) was late, and she left.\n"
                'Does the pronoun *she* refer to "Emma"?',
                "yes",
                "yes",
            ),
            (
                '*She* thanked Emma.\nDoes the pronoun *She* refer to "Emma"?',
                "no",
                "no",
            ),
        ],
        {
            "'span2_index' does not point at 'span2_text'": 1,
            "'span2_index' is outside the text": 1,
        },
        {"unlabelled": 1},
    ),
    ("wsc", "validation", "wsc-release.jsonl"): (
        [
            (
                "The cup fell off the shelf because *it* was narrow.\n"
                'Does the pronoun *it* refer to "The cup"?',
                "no",
                "no",
            )
        ],
        {"'target' is not a record": 1},
        {},
    ),
}


@pytest.mark.parametrize("case", QUESTIONS, ids="-".join)
def test_question_sets_read_their_own_layout(case):
    name, split, file = case
    expected, bad, left_out = QUESTIONS[case]
    loaded = load_rows(name, split, ROWS / file)
    rows = list(loaded)
    for row, (row_id, context, question, answers) in zip(rows, expected, strict=True):
        assert row["id"] == (row_id or row["id"])
        assert (row["context"], row["question"], row["answers"]) == (context, question, answers)
        assert row["answer"] == answers[0]
    assert_counted(loaded, len(expected), bad, left_out)


@pytest.mark.parametrize("case", EXAMPLES, ids="-".join)
def test_sets_for_in_context_learning_read_their_own_layout(case):
    name, split, file = case
    expected, bad, left_out = EXAMPLES[case]
    loaded = load_rows(name, split, ROWS / file)
    rows = list(loaded)
    assert [(row["question"], row["answer"], row["label"]) for row in rows] == expected
    assert all(row["context"] == "" and row["answers"] == [row["answer"]] for row in rows)
    assert_counted(loaded, len(expected), bad, left_out)


def test_text_sets_read_their_own_layout():
    loaded = load_rows("fineweb", "train", ROWS / "fineweb.jsonl")
    assert list(loaded) == [
        {
            "id": "<urn:uuid:39147604-bfbe-4ed5-b19c-54105f8ae8a7>",
            "text": "Wie geht’s? A page.\nTwo lines.",
        }
    ]
    assert_counted(loaded, 1, {"empty 'text'": 1, "'text' is not valid Unicode": 1}, {})
    loaded = load_rows("pg19", "train", ROWS / "pg19.jsonl")
    assert list(loaded) == [
        {"id": "http://www.gutenberg.org/ebooks/1", "text": "CHAPTER I\n\nWe set out.\n"}
    ]
    assert_counted(loaded, 1, {"empty 'text'": 1}, {})


def test_a_dialogue_row_names_its_character():
    assert {row["character"] for row in load_rows("hpd", "train", ROWS / "hpd-train.json")} == {
        "Harry"
    }


def test_bad_rows_are_placed_and_logged(caplog):
    loaded = load_rows("gsm8k", "train", ROWS / "gsm8k.jsonl")
    with caplog.at_level(logging.INFO, "memslots"):
        list(loaded)
    assert loaded.report.first_bad == [
        "row 3: no final number after ####",
        "row 4: no final number after ####",
        "row 5: no 'answer'",
        "row 6: a list in place of a row with columns",
    ]
    assert "gsm8k/train from gsm8k.jsonl: 2 of 6 kept; 4 bad" in caplog.text
    assert caplog.records[-1].levelname == "WARNING"


def test_each_iteration_reads_and_counts_anew():
    loaded = load_rows("squad", "train", ROWS / "squad.jsonl")
    assert list(loaded) == list(loaded)
    assert loaded.report.read == 7
    next(iter(loaded))
    assert (loaded.report.read, loaded.report.finished) == (1, False)
    assert "not finished" in loaded.report.summary()


def test_limit_stops_the_reading():
    loaded = load_rows("squad", "train", ROWS / "squad.jsonl", limit=1)
    assert [row["id"] for row in loaded] == ["s1"]
    assert_counted(loaded, 1, {}, {})


def test_the_sets_of_the_seeds_are_there_with_licence_and_source():
    for name in (
        "fineweb squad hotpotqa adversarialqa natural_questions gsm8k sst2 wsc hpd pg19 text jsonl "
        "parquet"
    ).split():
        adapter = ADAPTERS[name]
        assert adapter.licence
        assert adapter.hub_id or adapter.suffixes or adapter.where.startswith("get ")
        assert all(source.source in adapter.splits for source in adapter.paper.values())
    assert {name for name, adapter in ADAPTERS.items() if adapter.streaming} == {
        "fineweb",
        "natural_questions",
        "pg19",
    }


def test_rows_become_a_dataset(tmp_path):
    rows = list(load_rows("squad", "train", ROWS / "squad.jsonl"))
    file = tmp_path / "rows.parquet"
    Dataset.from_list(rows).to_parquet(file)
    again = load_dataset("parquet", data_files=str(file), split="train", streaming=True)
    assert list(again) == rows
    assert list(load_rows("parquet", "train", file)) == rows
