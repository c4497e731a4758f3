"""The baselines of `lab/verified`: every way beside the text cut to its positions."""

import pytest

from lab.data.exact_strings import BOILERPLATE
from memslots import MemslotsModel, checkpoints
from memslots.verified import compress

pytest.importorskip("trl", reason="the table trains too; it needs memslots[train]")

from lab.verified import measure as verified
from lab.verified import page as verified_page

pytestmark = pytest.mark.filterwarnings("ignore:from the slots the decoder")


@pytest.fixture(scope="module")
def embedded() -> MemslotsModel:
    return MemslotsModel.from_pretrained(checkpoints.embedded("tiny")).eval()


def test_every_way_has_a_cut_of_its_positions(embedded):
    texts = ["Ann Lee has 670 cups. She is 47 years old and lives in Lagos.", "Bo is 9."]
    memories = {
        "4": embedded.compress(texts, rate=4),
        "text": compress(embedded, texts, fidelity=1),
    }
    cuts = verified.cut_texts(embedded, texts, memories)
    assert list(cuts) == ["text cut to 4", "text cut to text"]
    encode = embedded.processor.decoder_text.encode
    for name, memory in memories.items():
        positions = embedded.memory_positions(memory)
        for text, cut, most in zip(texts, cuts[f"text cut to {name}"], positions, strict=True):
            assert text.startswith(cut)
            assert cut
            assert len(encode(cut)) <= max(most, 1) + 1  # a cut word may be read as two tokens
            assert cut == text or len(encode(cut)) >= most - 1
    assert cuts["text cut to 4"][0] != texts[0]


def test_the_tables_show_every_way_and_its_cut(embedded, monkeypatch):
    row = verified.needle_texts(1, [])[0]
    row["text"] = row["text"].partition("\n\n")[0]  # the needle stands at the start
    assert row["value"] in row["text"]
    monkeypatch.setattr(verified, "needle_texts", lambda samples, books: [row])
    monkeypatch.setattr(verified, "FIDELITY", 0.5)
    strings = verified.measure_strings(embedded, 1, [])
    ways = list(dict.fromkeys(record["way"] for record in strings))
    memories = [name for name in ways if not name.startswith(("text cut", "full"))]
    assert len(memories) == 7
    assert {f"text cut to {name}" for name in memories} == {n for n in ways if n[:4] == "text"}
    by_way = {name: [r["positions"] for r in strings if r["way"] == name] for name in ways}
    for name in memories:
        for own, cut, full in zip(
            by_way[name], by_way[f"text cut to {name}"], by_way["full text"], strict=True
        ):
            assert cut <= min(own + 1, full)
    questions = verified.measure_questions(
        embedded, 1, lambda texts: {"fixed rate 4": embedded.compress(texts, rate=4)}
    )
    assert {record["way"] for record in questions} == {
        "fixed rate 4",
        "full text",
        "text cut to fixed rate 4",
    }
    losses = [
        {"set": "one", "tokens": 100, "fixed": 50, "budget": 40, "served": 0, "segments": 2}
        | {"positions": 30, "served_positions": 60, "as_text": 1}
    ]
    cost = [
        {"set": "one", "measured": measured, "rate": 4, "ratio": 0.5}
        for measured in ("texts", "shapes")
    ]
    page = verified_page.page(
        {
            "strings": strings,
            "strings_after_training": strings,
            "questions": questions,
            "losses": losses,
            "cost": cost,
        },
        "0123456789abcdef",
    )
    assert "compressor 0123456789ab, the checkpoint inside" in page
    assert "| text cut to rate 16, exact spans |" in page
    assert "| one | 100 | 50.0 | 40.0 | 0.80 (0.80 to 0.80) | 70.0 | 0.0 | 1 of 2 | 2.00 |" in page
    assert "they lose 0.80 times as many (missed)." in page
    assert "this checkpoint 0.50 in the median (reached), 0.50 at worst;" in page


def test_the_cost_is_a_ratio_to_a_prefill_of_the_same_text(embedded):
    texts = {"one": ["Ann Lee is 47.", "Bo is 9.", "Cy is 3."]}
    records = verified.measure_cost(embedded, texts, lengths=[64], preset="tiny")
    assert [(r["measured"], r["set"], r["rate"]) for r in records] == [
        *([("texts", "one", rate) for rate in (4, 8, 16)] * 2),
        *(("shapes", "64 tokens", rate) for rate in (4, 16)),
    ]
    assert all(0 < r["ratio"] < 1000 for r in records)


def test_a_missed_bar_of_either_measurement_is_said():
    cost = [
        {"set": "a", "measured": "texts", "rate": 4, "ratio": 1.5},
        {"set": "b", "measured": "shapes", "rate": 4, "ratio": 0.5},
    ]
    losses = [{"budget": 9, "fixed": 10}]
    fixed = {"way": "fixed rate 16", "kept": False}
    exact = {"way": "rate 16, exact spans", "kept": True, "answered": True, "hidden_in": "a book"}
    strings = [fixed, exact | {"tokens": 16, "positions": 4}]
    said = verified_page.bars({"cost": cost, "losses": losses, "strings": strings})
    assert said["strings"] == [{"place": "a book", "kept": 1, "rate": 4, "reached": False}]
    assert said["ratio"] == 0.9
    assert [(bar["what"], bar["median"], bar["worst"]) for bar in said["costs"]] == [
        ("this checkpoint", 1.5, 1.5),
        ("the larger decoder", 0.5, 0.5),
    ]


def test_the_texts_to_lose_from():
    found = verified.passages(None, 2)
    assert list(found) == ["biographies", "letters", "conversations"]
    assert all(len(own) == 2 and len(set(own)) == 2 for own in found.values())
    assert all(any(stock in text for stock in BOILERPLATE) for text in found["letters"])
