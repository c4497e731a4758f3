"""A chat of real talk: an article of the first turn, read in every way after many turns."""

import gzip
import json

import pytest

from lab import long_chat
from lab.asked import Asked

ARTICLE = "The bridge at Tolm was built in 1911 by Ada Wren. It is made of oak."
QUESTIONS = {"Who built the bridge?": "Ada Wren", "What is it made of?": "oak"}


@pytest.fixture
def squad(tmp_path):
    def paragraph(number: int) -> dict:
        qas = [
            {"id": q, "question": q, "answers": [{"text": a, "answer_start": 0}]}
            for q, a in QUESTIONS.items()
        ]
        return {"context": f"{ARTICLE} It has {number} arches.", "qas": qas}

    articles = [{"title": "Tolm", "paragraphs": [paragraph(number) for number in range(3)]}]
    path = tmp_path / "xquad.json.gz"
    path.write_bytes(gzip.compress(json.dumps({"version": "1.1", "data": articles}).encode()))
    return path


def test_spoken_lines_are_talk_in_its_order():
    book = (
        'A storm came.\n\n"How cold it is," said Anne; "sit down."\n\nHe sat. “Thank\nyou.”\n\n'
        f'"{"word " * 31}"'
    )
    assert long_chat.spoken_lines(book) == ["How cold it is, sit down.", "Thank you."]


def test_chats_begin_with_their_article_and_differ_in_talk(squad):
    lines = [f"Line {number}." for number in range(8)]
    made = long_chat.chats(squad, lines, 2, 5)
    assert [chat.turns[0].startswith(ARTICLE) for chat in made] == [True, True]
    assert made[0].turns[1:] == lines[:5]
    assert made[1].turns[1:] == [*lines[4:], lines[0]]
    assert {sample.answer.strip() for sample in made[0].samples} == set(QUESTIONS.values())
    assert long_chat.written(["a", "b"], first=1) == "Assistant: a\nUser: b\n"


def test_every_way_is_asked_once_and_written_into_the_page(squad, tmp_path, monkeypatch):
    made = long_chat.chats(
        squad, [f"It is {n} miles to the sea, I think." for n in range(40)], 2, 20
    )
    asked = Asked("tiny", tmp_path / "answers.jsonl")
    assert list(long_chat.measure(asked, made[:1], [20])) == made[:1]
    names = long_chat.ways([4, 8, 16])
    assert [record["way"] for record in asked.records] == [name for name in names for _ in "ab"]
    positions = {record["way"]: record["context_tokens"] for record in asked.records}
    assert positions["nothing"] == 0
    assert 0 < positions["last turns as text"] <= positions["memory, rate 4"]
    assert max(positions.values()) == positions["all turns as text"]
    assert len({record["answer"] for record in asked.records}) == 2

    monkeypatch.setattr(long_chat, "read", lambda *_: pytest.fail("read again"))
    again = Asked("tiny", tmp_path / "answers.jsonl")
    list(long_chat.measure(again, made[:1], [20]))
    assert again.records == asked.records
    said = long_chat.said(again.records, again.model.fingerprint)
    assert f"Compressor {again.model.fingerprint[:12]} in bfloat16." in said
    assert all(f"| 20 | {name} | 1 | 2 |" in said for name in names)
