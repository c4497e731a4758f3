"""The table of exact strings: memories beside the text, a cut of it and the control."""

import pytest

from lab.asked import Asked
from lab.verified import measure as verified
from lab.verified.page import bars, page
from memslots import MemslotsModel, checkpoints

BOOK = " ".join(f"Day {n} went by at sea. Nobody came, and the wind was cold." for n in range(60))

pytestmark = pytest.mark.filterwarnings("ignore:from the slots the decoder")


@pytest.fixture
def needles():
    return verified.needles([BOOK], 1, lengths=[300])


def test_a_string_of_each_kind_stands_at_each_depth(needles):
    assert len(needles) == 12
    for needle in needles:
        assert needle.sample.context.count(needle.value) == 1
        assert needle.value not in needle.sample.shown + needle.sample.asked + needle.sample.other
        assert needle.sample.answer == f" {needle.value}"
    depths = [needle.sample.context.index(needle.value) for needle in needles]
    assert max(depths[:4]) < min(depths[4:8]) < min(depths[8:])
    assert needles[0].sample.other == needles[-1].sample.context
    examples = verified.worked_strings()
    assert all(example.answer in example.passage for example in examples)


def test_every_answer_is_kept_and_none_is_asked_again(needles, tmp_path, monkeypatch):
    file = tmp_path / "strings.jsonl"
    asked = Asked("tiny", file)
    assert list(verified.measure_strings(asked, needles[:1])) == needles[:1]
    by_way = {record["way"]: record for record in asked.records}
    assert list(by_way) == [
        "rate 4",
        "rate 16",
        "rate 16, exact spans",
        "full text",
        "text cut to rate 16, exact spans",
        "control: rate 16, exact spans",
        "nothing",
    ]
    assert [way for way, record in by_way.items() if record["kept"]] == [
        "rate 16, exact spans",
        "full text",
        "text cut to rate 16, exact spans",  # the string stands at the start
    ]
    cut, memory = by_way["text cut to rate 16, exact spans"], by_way["rate 16, exact spans"]
    assert cut["context_tokens"] <= memory["context_tokens"] + 1  # a cut word may be two tokens
    assert by_way["nothing"]["context_tokens"] == 0
    assert memory["context_tokens"] < by_way["full text"]["context_tokens"]

    monkeypatch.setattr(Asked, "ask", lambda *_: pytest.fail("asked again"))
    again = Asked("tiny", file)
    assert len(list(verified.measure_strings(again, needles[:1]))) == 1
    assert again.records == asked.records
    costs = [{"rate": 4, "tokens": 90, "ratio": 0.5}, {"rate": 16, "tokens": 90, "ratio": 1.5}]
    begun = {**again.records[0], "round": 1}  # of a text that was not asked in every way
    made = page([*again.records, begun], costs, again.model.fingerprint)
    assert f"compressor {again.model.fingerprint[:12]}" in made
    assert "| control: rate 16, exact spans | 1 |" in made
    assert "| rate 4 | 1 |" in made
    assert "1.00 in the\n  median (reached), 1.50 at worst" in made


def test_another_checkpoints_answers_are_refused(tmp_path):
    file = tmp_path / "strings.jsonl"
    file.write_text('{"fingerprint": "0123456789abcdef"}\n')
    with pytest.raises(ValueError, match=r"answers of compressor 0123456789ab.*give another"):
        Asked("tiny", file)


def test_a_string_is_kept_that_a_literal_holds_across_segments():
    model = MemslotsModel.from_pretrained(checkpoints.embedded("tiny")).eval()
    texts = [f"{'cold ' * n}4839201 is the number." for n in range(150)]
    text = next(
        text
        for n, text in enumerate(texts)
        if any(5 * n < span.start < 5 * n + 7 for span in model.segment([text])[0])
    )
    memory = verified.compress(model, text, 16, True)
    assert verified.keeps(memory, text, "4839201")
    assert not verified.keeps(verified.compress(model, text, 16, False), text, "4839201")


def test_the_targets_compare_with_the_full_text():
    common = {"text_tokens": 100, "kind": "code"}
    full = {**common, "way": "full text", "answered": True, "kept": True, "context_tokens": 100}
    memory = {**full, "way": "rate 8, exact spans", "context_tokens": 20}
    costs = [{"ratio": 0.5}, {"ratio": 0.7}, {"ratio": 1.2}]
    (reached,) = bars([full, memory], costs)["ways"]
    assert (reached["behind"], reached["rate"]) == (0, "5.00")
    lost = {**memory, "answered": False}
    (missed,) = bars([full, full, memory, lost], costs)["ways"]
    assert missed["behind"] == 50
    assert bars([full, memory], costs)["worst"] == 1.2


def test_the_cost_is_a_ratio_to_a_prefill_of_the_same_text():
    model = MemslotsModel.from_pretrained(checkpoints.embedded("tiny")).eval()
    records = verified.cost_ratios(model, "Ann Lee is 47. Bo is 9. Cy is 3.")
    assert [record["rate"] for record in records] == [4, 8, 16]
    assert all(0 < record["ratio"] < 1000 for record in records)
