import copy
import json
from importlib.resources import files

import pytest

from lab import sources  # noqa: F401, whose kinds are named below
from lab.data.personas import FACTS, persona_rows, persona_split
from lab.suite.people import demo_people, demo_text
from lab.suite.tiny_suite import evaluate_tiny
from memslots.evaluation import report
from memslots.evaluation.answering import (
    answer_from_text,
    compare_segments,
    memories_at_rates,
    reconstruct_segments,
)
from memslots.evaluation.demo import QUESTIONS, demo_paragraphs
from memslots.evaluation.metrics import (
    exact_match,
    score,
    tokens_aligned,
    tokens_right,
    wilson_interval,
)


@pytest.fixture(scope="module")
def model(zoo):
    return zoo.compressor(segment_length=96, compression_rates=[4, 8, 16], bundle_decoder=True)


@pytest.fixture(scope="module")
def results(model):
    lines = []
    found = evaluate_tiny(
        model,
        n_questions=6,
        n_reconstructions=2,
        n_many=2,
        long_context_tokens=400,
        progress=lines.append,
    )
    assert lines
    return found


def test_metrics_by_hand():
    assert exact_match(" Silver Bank\n", "Silver Bank")
    assert not exact_match("silver Bank", "Silver Bank")
    assert tokens_right([1, 2, 3, 4], [1, 9, 3]) == [True, False, True, False]
    assert tokens_right([1, 2], [1, 2, 3]) == [True, True]
    assert tokens_aligned([1, 2, 3, 4], [9, 1, 2, 3, 4]) == 4
    assert sum(tokens_right([1, 2, 3, 4], [9, 1, 2, 3, 4])) == 0
    assert tokens_aligned([1, 2, 3], []) == 0


def test_wilson_interval_by_hand():
    # 8 of 10 at z = 1.96: centre 0.716738, half width 0.226576 (Wilson 1927).
    low, high = wilson_interval(8, 10)
    assert (round(low, 4), round(high, 4)) == (0.4902, 0.9433)
    assert wilson_interval(0, 0) == (0.0, 1.0)
    assert wilson_interval(5, 5)[1] == 1.0
    assert wilson_interval(0, 5)[0] == 0.0
    assert score([True, False])["share"] == 0.5
    assert score([])["share"] is None


def test_suite_has_all_fields(results):
    assert json.loads(json.dumps(results)) == results
    one = results["one_person"]
    conditions = [one["plain"], *one["memory"].values(), one["another"], one["none"]]
    assert list(one["memory"]) == ["4", "8", "16"]
    for condition in conditions:
        assert condition["all"]["n"] == 6
        assert condition["numbers"]["n"] + condition["words"]["n"] == 6
        assert sum(fact["n"] for fact in condition["facts"].values()) == 6
    assert results["reconstruction"]["4"]["texts"] == 2
    few, long = results["many_people"]["few"], results["many_people"]["long"]
    assert few["people"] == 4
    assert long["people"] >= 2
    assert few["memory"]["16"]["all"]["n"] == 2
    slots = results["slots"]["8"]
    assert slots["positions"] > slots["slots"] >= slots["encoder_tokens"] / 8
    assert results["checkpoint"]["decoder"]["weights_sha256"]
    assert results["machine"]["hardware"].endswith(("cores", "device"))


def test_suite_is_of_held_out_people_and_repeatable(model, results):
    again = evaluate_tiny(model, n_questions=6, n_reconstructions=1, n_many=0)
    for name in ("plain", "another", "none"):
        assert again["one_person"][name]["all"] == results["one_person"][name]["all"]
    assert {persona_split(person) for person in demo_people()} == {"test"}


def test_suite_leaves_out_untrained_rates_and_says_so(model):
    found = evaluate_tiny(model, n_questions=1, rates=(4, 64), n_reconstructions=1, n_many=0)
    assert found["rates_missing"] == [64]
    with pytest.raises(ValueError, match="was trained for rates"):
        evaluate_tiny(model, n_questions=1, rates=(64,))


def test_plain_answers_do_not_depend_on_the_batch(model):
    rows = list(persona_rows("validation", 3))
    contexts, questions = [r["context"] for r in rows], [r["question"] for r in rows]
    together = answer_from_text(model, contexts, questions, 4)
    alone = [
        answer_from_text(model, [c], [q], 4)[0] for c, q in zip(contexts, questions, strict=True)
    ]
    assert together == alone


def test_reconstruction_is_compared_segment_by_segment(model):
    text = next(persona_rows("validation", 1, people=2))["context"]
    memory = memories_at_rates(model, [text], [4, 16])[16]
    assert len(memory.segments) > 1
    originals = [text[s.start : s.end] for s in memory.segments]
    perfect = compare_segments(model, memory, [text], originals)
    assert all(segment["exact"] and all(segment["right"]) for segment in perfect)
    assert "".join(model.processor.decode(s["tokens"]) for s in perfect) == text
    wrong = compare_segments(model, memory, [text], ["", *originals[1:]])
    assert not any(wrong[0]["right"])
    assert all(wrong[1]["right"])
    assert len(reconstruct_segments(model, memory)) == len(memory.segments)


def passing(results):
    """Results that reach each target exactly."""
    found = copy.deepcopy(results)
    one = found["one_person"]
    one["plain"]["all"]["share"] = 0.98
    for rate, share in (("4", 0.97), ("8", 0.92), ("16", 0.80)):
        one["memory"][rate]["all"]["share"] = share
    one["another"]["all"]["share"] = one["none"]["all"]["share"] = 0.20
    found["reconstruction"]["4"]["tokens_right"] = 0.98
    return found


def test_targets(results):
    found = passing(results)
    assert [target.ok for target in report.targets(found)] == [True] * 8
    found["one_person"]["plain"]["all"]["share"] = 0.995
    assert [target.name for target in report.targets(found) if not target.ok] == [
        "plain text less memory at rate 4"
    ]
    found = passing(results)
    found["one_person"]["none"]["all"]["share"] = 0.21
    del found["one_person"]["memory"]["16"]
    missed = {target.name: target.reached for target in report.targets(found) if not target.ok}
    assert missed == {"memory at rate 16": None, "no memory": 0.21}


def test_reports(results, tmp_path):
    markdown = report.markdown_report(results)
    assert "| memory, rate 16 |" in markdown
    assert "contexts of 4 people" in markdown
    assert len(report.markdown_report(results, full=False)) < len(markdown)
    path = tmp_path / "README.md"
    path.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    report.fill_block(path, results)
    report.fill_block(path, results)
    text = path.read_text()
    assert text.startswith("before\n")
    assert text.endswith(f"{report.END}\nafter\n")
    assert "old" not in text
    assert text.count("no memory") == 1
    path.write_text("nothing to fill")
    with pytest.raises(ValueError, match="results:begin"):
        report.fill_block(path, results)


def test_demo_text_and_questions_are_what_the_generator_writes():
    assert files("memslots").joinpath("assets", "demo.txt").read_text("utf-8") == demo_text()
    for person, asked in zip(demo_people(), QUESTIONS, strict=True):
        facts = {person.question(fact): person.answer(fact) for fact in FACTS}
        assert (person.name, facts[asked.question]) == (asked.name, asked.answer)
    people = [asked.name.split()[0] for asked in QUESTIONS]
    assert all(n in text for n, text in zip(people, demo_paragraphs(), strict=True))
