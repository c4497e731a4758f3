"""The comparison: each method leaves what it says, and figures are the decoder's."""

import json
from itertools import chain

import pytest
import torch
from tiny_models import TEXTS, words
from transformers import AutoModelForCausalLM, AutoTokenizer

from lab.compare.__main__ import arguments, compare
from lab.compare.methods import METHODS
from lab.compare.page import main as write_page
from lab.compare.page import rows_of
from lab.compare.reading import Reader, ask
from lab.compare.samples import Sample, read_samples

SAMPLES = [
    Sample("question", "Shown.\n\n", words(40), "\n\nQuestion: Who?\nAnswer:", " Ann", words(30)),
    Sample("following", "", words(50), TEXTS[0][:20], TEXTS[1], words(20)),
]


@pytest.fixture
def reader(zoo):
    folder = zoo.folder("llama", "decoder")
    return Reader(
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(),
        AutoTokenizer.from_pretrained(folder),
    )


def test_a_text_that_is_read_in_parts_costs_what_it_costs_at_once(reader):
    for sample in SAMPLES:
        figures = ask(reader, lambda s=sample: METHODS["text"](reader, s, 1), sample.answer)
        before, within, after = reader.split(sample.shown, sample.context, sample.asked)
        gold = reader.ids(sample.answer)
        ids = [reader.tokenizer.bos_token_id, *before, *within, *after, *gold]
        log_probs = reader.model(torch.tensor([ids])).logits[0, -len(gold) - 1 : -1].log_softmax(-1)
        expected = -log_probs[range(len(gold)), gold].sum().item()
        assert figures["nats"] == pytest.approx(expected, rel=1e-4)
        assert figures["context_tokens"] == len(within)


def test_parts_are_tokenised_as_one_text(reader):
    parts = ("One two.\n\n", "Three four.", "\n\nFive?")
    split = reader.split(*parts)
    assert list(chain(*split)) == reader.ids("".join(parts))


def test_methods_resume_and_make_a_page(zoo, model, tmp_path):
    checkpoint = str(tmp_path / "checkpoint")
    model.save_pretrained(checkpoint)
    samples, figures = tmp_path / "samples.jsonl", tmp_path / "figures.jsonl"
    lines = [json.dumps(sample._asdict()) for sample in SAMPLES * 2]
    samples.write_text("\n".join(lines) + "\n")
    assert read_samples(samples) == SAMPLES * 2
    options = ["--decoder", zoo.folder("llama", "decoder"), "--checkpoint", checkpoint]
    options += ["--rates", "4", "--threads", "1"]
    run = [str(samples), str(figures), *options, "--methods"]
    compare(arguments([*run, "text,none"]))
    compare(arguments([*run, "text,none,cut,tail,memory,memory and tail,control"]))
    records = [json.loads(line) for line in figures.read_text().splitlines()]
    assert len(records) == 4 * 7
    rows = rows_of(records)
    for row in rows:
        if row["method"] in ("text", "none"):
            assert row["share"]["value"] == pytest.approx(float(row["method"] == "text"), abs=1e-6)
        elif row["method"] == "memory":
            assert 0.2 < row["of_text"] < 0.45
    costs = {r["method"]: r["context_tokens"] for r in records if r["sample"] == 1}
    # At rate 8 the early text, and an eighth of the tokens as they are.
    assert 0 < costs["memory and tail"] < costs["memory"] + costs["text"] // 8
    page = tmp_path / "page.md"
    write_page([str(samples), str(figures), "--output", str(page)])
    assert "| memory | 4 | 2 |" in page.read_text()
    assert page.with_suffix(".png").stat().st_size > 10_000
    with pytest.raises(SystemExit, match=r"unknown methods \['lingua'\]; there are text"):
        compare(arguments([*run, "lingua"]))
    with pytest.raises(ValueError, match="measure the methods 'text' and 'none'"):
        rows_of([record for record in records if record["method"] == "memory"])


def test_a_sample_on_which_a_tool_fails_is_left_out(zoo, tmp_path, monkeypatch, capsys):
    samples, figures = tmp_path / "samples.jsonl", tmp_path / "figures.jsonl"
    samples.write_text("\n".join(json.dumps(sample._asdict()) for sample in SAMPLES) + "\n")

    def failing(reader, sample, rate):
        if sample.task == "question":
            raise ValueError("too many values to unpack")
        return METHODS["text"](reader, sample, rate)

    monkeypatch.setitem(METHODS, "llmlingua", failing)
    options = ["--decoder", zoo.folder("llama", "decoder"), "--rates", "4", "--threads", "1"]
    compare(arguments([str(samples), str(figures), *options, "--methods", "llmlingua"]))
    records = [json.loads(line) for line in figures.read_text().splitlines()]
    assert [record["task"] for record in records] == ["following"]
    assert "llmlingua at rate 4 fails on sample 0, left out: too many" in capsys.readouterr().out
    monkeypatch.setitem(METHODS, "cut", failing)
    with pytest.raises(ValueError, match="too many values"):
        compare(arguments([str(samples), str(figures), *options, "--methods", "cut"]))
