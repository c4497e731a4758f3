"""`python -m lab tables-sentence` on tiny models: runs, measures, page, and going on."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from sentence_encoders import sentence_encoder

from lab import sources  # noqa: F401, whose kinds are named below
from lab.__main__ import lab
from lab.data.sentence_facts import pool_rows, sentence_rows
from lab.sentence.measure import measure_answers
from lab.sentence.page import write_sentence_page
from memslots.configuration import load_recipe
from memslots.making import new_compressor
from memslots.trainer.run import previous_stage

SOURCE = {"kind": "persona_sentences"}


@pytest.fixture(scope="module")
def settings(zoo, tmp_path_factory) -> str:
    """The packaged settings, with tiny models, two steps a run and four questions a measure."""
    folder = tmp_path_factory.mktemp("settings")
    recipe = load_recipe("lab/sentence/tables.yaml")
    section = recipe["compressor"]
    section["encoder"] = sentence_encoder(folder)
    section["decoder"] = zoo.folder("llama", "decoder")
    lora = section["config"]["decoder_lora"]
    lora.update(r=2, target_modules=["q_proj", "v_proj"])
    for stage in section["stages"]:
        stage.pop("minutes", None)
        stage["training"] = {"max_steps": 2, "shortcut_check_steps": 1, "shortcut_check_rows": 2}
        stage["training"] |= {"per_device_train_batch_size": 8, "warmup_steps": 0}
        for source in stage["data"]:
            source["rows"] = 8
            if "population" in source:
                few = {"people": min(source["people"], 20), "questions": 4}
                source.update(population=30, **few)
    for measure in recipe["measures"]:
        measure["samples"] = 4
        measure["options"] = {**measure["options"], "examples": 0}  # too long for the tiny decoder
        if "people" in measure["source"]:
            people = measure["source"]["people"]
            measure["source"] = {**measure["source"], "people": min(people, 12), "population": 16}
    file = folder / "settings.yaml"
    file.write_text(yaml.safe_dump(recipe))
    return str(file)


def run(settings, folder, *only) -> int:
    arguments = ["--settings", settings, "--output", str(folder), *only]
    return lab(["tables-sentence", *arguments, "--report", str(folder / "page.md")])


def test_runs_measures_and_page(settings, tmp_path, capsys):
    wanted = "sentence_vectors,numbers,numbers_passthrough,numbers_joint,pools_500_finer"
    assert run(settings, tmp_path, "--only", wanted) == 0, capsys.readouterr().err
    made = sorted(path.name for path in (tmp_path / "compressor").iterdir())
    before = ["pools", "pools_100", "pools_500", "pools_500_longer"]
    assert made == sorted([*wanted.split(","), *before])
    file = tmp_path / "measures" / "numbers_passthrough.json"
    measure = json.loads(file.read_text())
    assert measure["literal_tokens"] > 0
    assert {sample["fact"] for sample in measure["samples"]} <= {"age", "count"}
    assert {"memory", "another"} <= set(measure["samples"][0])
    page = (tmp_path / "page.md").read_text()
    for title in ("The three set-ups", "Scaling", "Numbers", "Training the encoder", "The runs"):
        assert f"## {title}" in page
    assert (tmp_path / "page" / "shortcut.png").is_file() == ("shortcut.png" in page)
    weights = tmp_path / "compressor" / "numbers" / "model.safetensors"
    before = weights.stat().st_mtime_ns, file.stat().st_mtime_ns
    assert run(settings, tmp_path, "--only", "numbers,numbers_passthrough") == 0
    assert before == (weights.stat().st_mtime_ns, file.stat().st_mtime_ns)
    config = json.loads(
        (tmp_path / "compressor" / "numbers_passthrough" / "config.json").read_text()
    )
    assert measure["fingerprint"] == config["fingerprint"]
    assert (
        f"| numbers_passthrough | `{config['fingerprint'][:12]}` | sentence_vectors | 2 |" in page
    )
    file.write_text(json.dumps({**measure, "fingerprint": "of a training before"}))
    assert run(settings, tmp_path, "--only", "numbers_passthrough") == 0
    assert json.loads(file.read_text())["fingerprint"] == measure["fingerprint"]


def test_dry_run_and_mistakes(settings, tmp_path, capsys):
    assert run(settings, tmp_path, "--dry-run") == 0
    lines = capsys.readouterr().out.splitlines()
    section = yaml.safe_load(Path(settings).read_text())["compressor"]
    assert lines == [f"to do  {stage['name']}" for stage in section["stages"]]
    assert run(settings, tmp_path, "--only", "phase_9") == 2
    assert "phase_9" in capsys.readouterr().err
    with pytest.raises(ValueError, match="holds no measures yet"):
        write_sentence_page({"compressor": {"stages": []}}, tmp_path / "none", tmp_path / "x.md")


def test_every_measure_is_of_a_run_and_every_run_is_measured_or_gone_on_from():
    recipe = load_recipe("lab/sentence/tables.yaml")
    stages = recipe["compressor"]["stages"]
    started_from = {previous_stage(stages, stage["name"]) for stage in stages} - {None}
    measured = {measure["run"] for measure in recipe["measures"]}
    assert measured | started_from == {stage["name"] for stage in stages}
    names = [measure["name"] for measure in recipe["measures"]]
    assert len(set(names)) == len(names)


@pytest.fixture
def pools(zoo, tmp_path):
    torch.manual_seed(0)
    lora = {"r": 2, "alpha": 4, "dropout": 0.0, "target_modules": ["q_proj", "v_proj"]}
    return new_compressor(
        sentence_encoder(tmp_path),
        zoo.folder("llama", "decoder"),
        pooling="sentence",
        decoder_lora=lora,
    )


def test_answers_are_those_of_generate(pools):
    model = pools
    rows = list(sentence_rows("test", 3, questions=1))
    given = model.generate(
        context=[row["context"] for row in rows],
        question=[row["question"][0] for row in rows],
        max_new_tokens=16,
        do_sample=False,
    )
    for row, answer in zip(rows, given, strict=True):
        row["answer"] = [answer.strip()]
    measured = measure_answers(model, rows, ["memory", "another"])
    assert all(sample["memory"] for sample in measured["samples"])
    assert measured["slots"] >= 5  # more where a sentence is longer than the tiny window
    assert measured["positions"] > measured["slots"]
    assert not any("text" in sample for sample in measured["samples"])


def test_texts_are_read_with_the_lora_if_asked_and_cut_to_as_many_tokens(pools, monkeypatch):
    read, acting = [], []

    def answer(model, contexts, questions, most):
        read.append(list(contexts))
        acting.append(id(model.decoder) in model.decoder_lora._acting)
        return ["?"] * len(questions)

    monkeypatch.setattr("lab.sentence.measure.answer_from_text", answer)
    rows = list(sentence_rows("test", 2, brief=True))
    measure_answers(pools, rows, ["text", "cut", "none"], with_lora=True)
    assert acting == [True, True, True]
    text, cut, none = read
    assert text == [row["context"] for row in rows]
    encode = pools.processor.decoder_text.encode
    for whole, beginning in zip(text, cut, strict=True):
        assert whole.startswith(beginning)
        (kept,) = pools.memory_positions(pools.compress([whole]))
        assert len(encode(beginning)) == kept < len(encode(whole))
    assert none == [None, None]
    measure_answers(pools, rows, ["text"])
    assert not acting[-1]


def test_after_worked_examples_a_text_is_asked_in_whole_questions(pools, monkeypatch):
    read = []

    def answer(model, prompts, memory, most, stops):
        assert memory is None
        read.extend(model.processor.decode(prompt.before) for prompt in prompts)
        return ["a teacher\nand more"] * len(prompts)

    monkeypatch.setattr("lab.sentence.measure.answer_in_these_words", answer)
    rows = [dict(row, answer=["teacher"]) for row in pool_rows("test", 2, people=3, brief=True)]
    measured = measure_answers(pools, rows, ["text"], examples=2)
    assert all(sample["text"] for sample in measured["samples"])
    for row, prompt in zip(rows, read, strict=True):
        assert prompt.count("Question:") == 3
        assert prompt.endswith(f"Question: What is {row['question'][0]}?\nAnswer:")
        assert row["context"] in prompt


def test_a_fact_is_asked_for_in_a_word():
    for row in sentence_rows("train", 8, ["opening", "home", "count"], questions=9, brief=True):
        asked = dict(zip(row["fact"], row["question"], strict=True))
        (count,) = (a for f, a in zip(row["fact"], row["answer"], strict=True) if f == "count")
        assert f"{count} {asked.pop('count')}" in row["context"]
        assert asked.keys() == {"name", "profession", "employer", "city", "country"}
        assert list(asked) == list(asked.values())
