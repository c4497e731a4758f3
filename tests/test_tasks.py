"""The papers' tasks, against examples computed by hand and against the model's own forward."""

import json
import math
import sys

import pytest
import sacrebleu
import torch
from tiny_models import TEXTS, words

from memslots.cli import main
from memslots.evaluation import example_tasks, needle, tasks
from memslots.evaluation.conditions import conditions
from memslots.evaluation.intervals import with_interval
from memslots.evaluation.likelihood import target_losses
from memslots.evaluation.llmlingua_baseline import shorten_to
from memslots.evaluation.metrics import bleu_counts, bleu_of_counts, rouge_l, squad_scores
from memslots.evaluation.suite import evaluate_tasks
from memslots.evaluation.tables import markdown, plot
from memslots.modeling.layout_memslots import IGNORE, Prompt


@pytest.fixture(scope="module")
def model(zoo):
    return zoo.compressor("gpt2", "llama", compression_rates=[4, 8], segment_length=16)


def question(i, n=30):
    row = {"id": str(i), "context": words(n, i), "question": words(3, 40 + i)}
    return {**row, "answer": words(1, 80 + i), "answers": [words(1, 80 + i), "nobody"]}


@pytest.mark.parametrize(
    ("answer", "accepted", "f1", "exact"),
    [
        ("The Rhine.", ["rhine"], 1.0, 1.0),  # case, article and full stop do not count
        ("in the Rhine valley", ["the Rhine"], 0.5, 0.0),  # 1 of 3 words and 1 of 1
        ("the red house", ["blue house", "red car house"], 0.8, 0.0),  # best: 2 of 2 and 2 of 3
        ("", ["x"], 0.0, 0.0),
    ],
)
def test_squad_scores_by_hand(answer, accepted, f1, exact):
    scores = squad_scores(answer, accepted)
    assert scores["f1"] == pytest.approx(f1, abs=1e-6)
    assert scores["exact_match"] == exact


def test_bleu_and_rouge_by_hand():
    text = "the cat sat on the mat today"
    assert bleu_of_counts([bleu_counts(text, text)]) == pytest.approx(100)
    # 6 of 7, 4 of 6, 2 of 5 and 1 of 4 n-grams are right, no brevity penalty.
    produced = "the cat sat on a mat today"
    precisions = [6 / 7, 4 / 6, 2 / 5, 1 / 4]
    expected = 100 * math.exp(sum(map(math.log, precisions)) / 4)
    assert bleu_of_counts([bleu_counts(produced, text)]) == pytest.approx(expected)
    assert rouge_l(produced, text) == pytest.approx(100 * 6 / 7)
    assert rouge_l("the cat", text) == pytest.approx(100 * 2 * (2 / 7) / (1 + 2 / 7))


def test_bleu_of_summed_counts_is_that_of_the_corpus():
    produced = ["the cat sat on a mat", "It's 3,5 dogs.", "", "x", words(30, 1)]
    reference = ["the cat sat on the mat", "It is 3,5 dogs!", "gone", words(3), words(30, 2)]
    counts = [bleu_counts(*pair) for pair in zip(produced, reference, strict=True)]
    for some in ([0, 1, 2, 3, 4], [1, 1, 0], [2], [3], [4, 2, 4]):
        texts = [produced[i] for i in some], [[reference[i] for i in some]]
        expected = sacrebleu.corpus_bleu(*texts).score
        assert bleu_of_counts([counts[i] for i in some]) == expected


def test_intervals():
    scored = with_interval([1.0] * 50 + [0.0] * 50)
    assert scored["value"] == 0.5
    assert 0.35 < scored["low"] < 0.45 < 0.55 < scored["high"] < 0.65
    assert with_interval([1.0, 1.0, 1.0])["low"] == 1.0
    assert with_interval([])["value"] is None


def test_losses_after_a_memory_are_those_of_forward(model):
    rows = [question(i, n) for i, n in enumerate((20, 45, 9))]
    processor = model.processor
    memory = model.compress([row["context"] for row in rows], rate=4)
    prompts = [processor.prompt(question=row["question"]) for row in rows]
    targets = [processor.answer_ids(row["answer"]) for row in rows]
    found = target_losses(model, prompts, targets, memory)
    for row, loss in zip(rows, found, strict=True):
        inputs = processor(row["context"], row["question"], row["answer"], rate=4)
        with torch.no_grad():
            output = model(**inputs)
        assert loss.tokens == int((inputs["labels"] != IGNORE).sum())
        assert loss.nll / loss.tokens == pytest.approx(output.loss.item(), rel=1e-4)


def test_losses_after_tokens_are_the_decoders_own(model):
    processor = model.processor
    ids = processor.decoder_text.encode(words(20))
    (loss,) = target_losses(model, [Prompt([*processor.bos_ids, *ids[:5]])], [ids[5:]], unscored=1)
    whole = torch.tensor([[*processor.bos_ids, *ids]])
    with torch.no_grad():
        logits = model.decoder(input_ids=whole).logits[0].log_softmax(-1)
    start = len(processor.bos_ids) + 5
    expected = -sum(logits[i - 1, whole[0, i]].item() for i in range(start + 1, whole.shape[1]))
    assert loss.tokens == len(ids) - 6
    assert loss.nll == pytest.approx(expected, rel=1e-4)


def test_conditions_read_what_they_say(model):
    rows = [question(i, 30 + i) for i in range(3)]
    contexts = [row["context"] for row in rows]
    made = {(c.name, c.rate): c for c in conditions(model, contexts, [4, 8])}
    assert set(made) == {("full", None), ("none", None)} | {
        (name, rate) for name in ("memory", "head", "tail", "another") for rate in (4, 8)
    }
    encode = model.processor.decoder_text.encode
    for text, head, tail in zip(
        contexts, made["head", 4].contexts, made["tail", 4].contexts, strict=True
    ):
        assert text.startswith(head)
        assert text.endswith(tail)
    slots = made["memory", 4].memory.n_slots
    segments = [len(document) for document in made["memory", 4].memory.documents]
    positions = [s + 2 * k for s, k in zip(slots, segments, strict=True)]
    assert made["memory", 4].positions == pytest.approx(sum(positions) / 3)
    assert len(encode(made["head", 4].contexts[0])) <= positions[0]
    assert made["another", 4].positions == made["memory", 4].positions  # markers counted in both
    assert torch.equal(made["another", 4].memory[0].slots, made["memory", 4].memory[1].slots)
    with pytest.raises(ValueError, match=r"baselines \['plain'\] are unknown"):
        conditions(model, contexts, [4], ["plain"])


def test_llmlingua_gets_the_budget_of_the_memory():
    """A shortener that keeps whole words, and more of them than asked, as LLMLingua-2 may."""
    asked = []

    def shorten(text, share):
        asked.append(share)
        words = text.split()
        return " ".join(words[: round(1.5 * share * len(words))])

    def decode(ids):
        return " ".join(f"w{i}" for i in ids)

    def encode(text):
        return [int(word[1:]) for word in text.split()]

    texts = [decode(range(20)), decode(range(4)), decode(range(10))]
    made = shorten_to(texts, [8, 9, 0], encode, decode, shorten)
    assert made[0] == decode(range(8))
    assert made[1] == texts[1]  # shorter than its budget
    assert made[2] is None
    assert asked[:2] == [0.4, pytest.approx(0.4 * 8 / 12)]


def test_llmlingua_is_asked_for_by_name(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "llmlingua", None)
    with pytest.raises(ImportError, match="pip install llmlingua; or leave it out"):
        conditions(model, TEXTS, [4], ["llmlingua2"])


def test_mistakes_are_found_before_any_data_are_read(model):
    with pytest.raises(ValueError, match=r"baselines \['some'\] are unknown"):
        evaluate_tasks(model, ["qa"], baselines=["some"])
    with pytest.raises(ValueError, match="rate 5 is not one"):
        evaluate_tasks(model, ["qa"], rates=[5])


def test_question_answering_counts_right_answers(model, monkeypatch):
    rows = [question(i) for i in range(4)]
    said = [rows[0]["answer"], "x", "nobody\nQuestion: more", "nobody else"]
    given = dict(zip((row["question"] for row in rows), said, strict=True))
    processor = model.processor

    def answers(model, prompts, memory, most, stops):
        asked = [processor.decode(prompt.after) for prompt in prompts]
        return [next(a for q, a in given.items() if f" {q}" in text) for text in asked]

    monkeypatch.setattr("memslots.evaluation.conditions.answer_in_these_words", answers)
    records = tasks.question_answering(model, rows, [4], baselines=[])
    values = {record["metric"]: record["value"] for record in records}
    assert values["exact_match"] == 0.5
    assert values["f1"] == pytest.approx((1 + 0 + 1 + 2 / 3) / 4, abs=1e-3)


def test_completion_scores_the_same_tokens_in_every_condition(model):
    rows = [{"id": str(i), "text": words(120, i)} for i in range(3)]
    records = tasks.completion(model, rows, [4], lengths=[64, 10_000])
    assert {(r["condition"], r["length"]) for r in records} == {
        (name, 64) for name in ("full", "none", "memory", "head", "tail", "another")
    }
    found = {r["condition"]: r["value"] for r in records if r["metric"] == "perplexity"}
    assert all(value > 1 for value in found.values())
    assert len(set(found.values())) == len(found)
    nats = {r["condition"]: r["value"] for r in records if r["metric"] == "nats"}
    assert nats == {name: pytest.approx(math.log(found[name]), abs=1e-3) for name in found}
    with pytest.raises(ValueError, match="at least 4096 decoder tokens"):
        tasks.completion(model, rows, [4], lengths=[4096])


def test_in_context_learning_decides_by_likelihood_or_by_number(model):
    labelled = [{**question(i), "context": "", "answer": "yes no".split()[i % 2]} for i in range(8)]
    for row in labelled:
        row["label"] = row["answer"]
    records = example_tasks.in_context_learning(model, labelled[:4], labelled, [4], lengths=[60])
    assert [(r["condition"], r["length"]) for r in records] == [
        ("none", 0),
        ("full", 60),
        ("memory", 60),
    ]
    assert all(r["value"] * 4 == int(r["value"] * 4) for r in records)
    assert example_tasks._last_number("It is 3 + 1,204 = 1,207. So: 1,207.") == "1207"
    assert example_tasks._last_number("none") == ""


def test_needles_stand_where_they_should(model):
    text = ". ".join(words(12, i).capitalize() for i in range(300)) + "."
    rows = needle.needle_rows(model, [text], [200], [0.0, 0.5, 1.0], ["number", "uuid"])
    assert len(rows) == 6
    encode = model.processor.decoder_text.encode
    for row in rows:
        at = row["context"].index("The secret") / len(row["context"])
        assert abs(at - row["depth"]) < 0.35
        assert row["answer"] in row["context"]
        assert 120 < len(encode(row["context"])) <= 215
    with pytest.raises(ValueError, match="needle kinds"):
        needle.needle_rows(model, [text], [200], [0.0], ["colour"])


def test_every_task_runs_from_local_data_and_is_reported(model, tmp_path, capsys):
    with (tmp_path / "pg19-validation.jsonl").open("w") as file:
        for i in range(3):
            text = ". ".join(words(9, 50 * i + j).capitalize() for j in range(120)) + "."
            file.write(json.dumps({"text": text}) + "\n")
    rows = [question(i) for i in range(5)]
    (tmp_path / "jsonl").mkdir()
    (tmp_path / "jsonl" / "test.jsonl").write_text("\n".join(map(json.dumps, rows)))
    chosen = ["reconstruction", "completion", "qa", "cloze", "roleplay", "needle"]
    read = ("reconstruction", "completion", "cloze", "needle")
    sets = {name: ["pg19/validation"] for name in read}
    (tmp_path / "squad-validation.jsonl").write_text(
        "\n".join(
            json.dumps({**row, "answers": {"text": row["answers"], "answer_start": [0, 0]}})
            for row in rows
        )
    )
    sets |= {"qa": ["squad/validation"], "roleplay": ["squad/validation"]}
    results = evaluate_tasks(
        model, chosen, [4], data=sets, data_dir=str(tmp_path), samples=3, lengths=[64]
    )
    assert {record["task"] for record in results["records"]} == set(chosen)
    table = markdown(results)
    assert "memory, rate 4" in table
    assert "3 of 3 kept" in table
    files = plot(results, tmp_path / "plots")
    assert all(file.stat().st_size > 1000 for file in files)
    # Few samples: some resamples have no gap of which a share could be closed.
    for record in results["records"]:
        record |= {"low": None, "high": None}
    assert len(plot(results, tmp_path / "plots")) == len(files)
    assert "None" not in markdown(results)

    folder = tmp_path / "checkpoint"
    model.save_pretrained(folder)
    arguments = ["eval", "--model", str(folder), "--tasks", "qa", "--data", "qa=squad/validation"]
    arguments += ["--data-dir", str(tmp_path), "--rates", "4", "--baselines", "full,none"]
    output = tmp_path / "out.json"
    assert main([*arguments, "--output", str(output)]) == 0
    assert {r["condition"] for r in json.loads(output.read_text())["records"]} == {
        "full",
        "none",
        "memory",
    }
    assert (tmp_path / "out.md").is_file()
    kept = (tmp_path / "out.samples.jsonl").read_text().splitlines()
    assert sum("scores" in json.loads(line) for line in kept) == 3 * 5
    assert not (tmp_path / "out.partial.jsonl").exists()
    assert list((tmp_path / "out").glob("*.png"))
    arguments[6] = f"qa={tmp_path / 'jsonl' / 'test.jsonl'}"  # a file in place of a set
    again = [*arguments[:7], *arguments[9:], "--output", str(output)]
    capsys.readouterr()
    assert main(again) == 2
    assert "out.json exists; --force replaces it" in capsys.readouterr().err
    assert main([*again, "--force"]) == 0
    assert {r["data"] for r in json.loads(output.read_text())["records"]} == {arguments[6][3:]}
    capsys.readouterr()
    for data, message in (
        ("qa=nowhere/asked.json", "--data qa=nowhere/asked.json: there is no file nowhere/"),
        ("squad/validation", "must be TASK=SET/SPLIT or TASK=FILE"),
    ):
        assert main(["eval", "--model", "nowhere/at/all", "--data", data]) == 2
        assert message in capsys.readouterr().err  # before the checkpoint is looked for
    with pytest.raises(ValueError, match=r"the file .*test\.jsonl lacks; name a set"):
        evaluate_tasks(model, ["icl"], data={"icl": [arguments[6][3:]]})
    assert main(["eval", "--model", str(folder), "--tasks", "quiz"]) == 2
    assert "choose some of reconstruction" in capsys.readouterr().err
