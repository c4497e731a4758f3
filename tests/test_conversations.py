"""Conversations: reproducible, with the facts in the first turn, small talk of the split's own."""

import random
import subprocess
import sys

import pytest

from lab import sources  # noqa: F401, whose kinds are named below
from lab.data.conversations import conversation_rows, small_talk, written
from lab.data.personas import persona_rows
from memslots import ChatMemory
from memslots.trainer import CompressorConfig
from memslots.trainer.collator import CompressorCollator
from memslots.trainer.stage_data import Sources, stage_dataset


def test_same_arguments_give_same_rows_in_another_process():
    code = (
        "from lab.data.conversations import conversation_rows as rows;"
        "print(list(rows('test', 3, questions=4)))"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONHASHSEED": "7", "PYTHONPATH": "src"},
    ).stdout
    assert printed == f"{list(conversation_rows('test', 3, questions=4))}\n"


def test_the_first_turn_is_the_biography_and_no_other_says_anything_of_it():
    people = list(persona_rows("test", 5, seed=3, questions=4))
    rows = list(conversation_rows("test", 5, turns=30, seed=3, questions=4))
    for row, person in zip(rows, people, strict=True):
        assert row["turns"][0] == person["context"]
        assert row["question"] == person["question"]
        assert len(row["turns"]) == 30
        later = " ".join(row["turns"][1:])
        assert not any(answer in later for answer in row["answer"])
        assert row["context"].count("\n") == 30


def test_lengths_are_drawn_from_one_turn_to_two_hundred():
    counts = [len(row["turns"]) for row in conversation_rows("train", 200)]
    assert min(counts) == 1
    assert 150 < max(counts) <= 200
    assert 8 < sorted(counts)[100] < 25  # the middle of a logarithmic scale is 14


def test_composed_turns_belong_to_one_split():
    drawn = {
        split: {small_talk(split, random.Random(i)) for i in range(500)}
        for split in ("train", "validation", "test")
    }
    shared = drawn["train"] & drawn["test"]
    assert shared == drawn["train"] & drawn["validation"]  # the stock phrases
    assert 0 < len(shared) < 60 < len(drawn["test"])


def test_they_are_written_as_a_chat_memory_writes_them(zoo):
    chat = ChatMemory(zoo.compressor(), keep_last=50, block_tokens=0)
    turns = ["I am Ada.", "Good.", "So it is."]
    for i, turn in enumerate(turns):
        chat.add(("user", "assistant")[i % 2], turn)
    assert written(turns) == "".join(map(chat._text, chat.turns))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: next(conversation_rows("train", 1, turns=0)), "turns must be 1 or more, got 0"),
        (lambda: small_talk("dev", random.Random(0)), r"one of \['train', .*got 'dev'"),
        (lambda: CompressorConfig("x", literals_share=1.5), "literals_share must be between 0"),
        (
            lambda: CompressorConfig("x", training_literals=["digits"]),
            "'digits' is not a kind of verbatim tokens",
        ),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_stage_may_list_them(zoo):
    source = {"kind": "conversations", "rows": 4, "turns": 5, "questions": 3}
    rows = stage_dataset([source], Sources(), zoo.shared().processor)
    assert [len(row["question"]) for row in rows] == [3] * 4
    assert all(row["context"].startswith("User: ") for row in rows)


@pytest.mark.parametrize(("share", "low", "high"), [(0.0, 0, 0), (1.0, 99, 99), (0.3, 15, 45)])
def test_a_share_of_the_contexts_has_literals(share, low, high, zoo, tmp_path):
    processor = zoo.shared().processor
    args = CompressorConfig(
        tmp_path, training_literals=["numbers"], literals_share=share, reconstruction_share=0.0
    )
    rows = [
        {"context": f"{'and so on ' * (1 + i % 3)}{i + 100}", "question": "What?", "answer": "That"}
        for i in range(99)
    ]
    batch = CompressorCollator(processor, args)(rows)["batch"]
    beside = [i for i, row in enumerate(batch.rows) if any(row.literals)]
    assert low <= len(beside) <= high
    again = CompressorCollator(processor, args)(rows[50:])["batch"]
    assert [i for i, row in enumerate(again.rows) if any(row.literals)] == [
        i - 50 for i in beside if i >= 50
    ]
    for i in beside:
        assert processor.decode(batch.rows[i].literals[0]).strip() == str(i + 100)
