"""Text and memory asked in the same words, scores kept as they come, and shares of a gap."""

import io
import json
import math
from dataclasses import replace

import pytest
import torch
from rich.console import Console
from tiny_models import SENTENCES, words

from memslots.cli import measure
from memslots.evaluation import example_tasks, tasks
from memslots.evaluation.answering import answer_in_these_words
from memslots.evaluation.asking import BETWEEN, INSTRUCTION, Asking
from memslots.evaluation.asking_choice import asking_of, choose_asking
from memslots.evaluation.conditions import conditions, other_texts
from memslots.evaluation.likelihood import target_losses
from memslots.evaluation.sample_log import SampleLog
from memslots.evaluation.shares import mean_of, prompt_warnings, ratio_of, records_of
from memslots.evaluation.suite import evaluate_tasks
from memslots.evaluation.worked_examples import other_examples, worked_examples
from memslots.modeling.layout_memslots import RECONSTRUCTION, Prompt, Row

TEXT = "The treaty was signed in Lagos. Carmen owns twenty seven maps."
ASKED = "Where was the treaty signed?"


@pytest.fixture(scope="module")
def model(zoo):
    return zoo.compressor("gpt2", "llama", compression_rates=[4, 8], segment_length=16)


def row(i, n=30):
    answer = words(1, 80 + i)
    made = {"id": str(i), "context": words(n, i), "question": words(3, 40 + i)}
    return {**made, "answer": answer, "answers": [answer, "nobody"]}


# -- the words -------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["plain", "chat"])
@pytest.mark.parametrize("examples", [0, 2])
def test_text_and_memory_are_asked_in_the_same_words(model, format, examples):
    processor = model.processor
    asking = Asking.of(processor, examples, format)
    (text,) = asking.prompts(processor, [ASKED], [TEXT])
    (memory,) = asking.prompts(processor, [ASKED], None)
    (nothing,) = asking.prompts(processor, [ASKED], [None])

    def read(ids):
        return processor.decode(ids, skip_special_tokens=False)

    around = read(memory.before), read(memory.after)
    assert read(text.before) == TEXT.join(around)
    assert around[1].startswith(BETWEEN)
    assert read(nothing.before) == around[0] + around[1].removeprefix(BETWEEN)
    assert (INSTRUCTION in around[0]) == (examples > 0)
    for shown in asking.examples:
        assert around[0].index(shown.passage) < around[0].index(shown.question)
        assert around[0].index(shown.question) < around[0].rindex(shown.answer)
    # Before a memory stand the tokens that stand before a text.
    assert text.before[: len(memory.before)] == memory.before


def test_eval_asks_an_older_checkpoint_without_a_lone_space(zoo):
    model = zoo.compressor(plain_prompt="Question: {question}\n\nAnswer: ")
    processor = model.processor
    asking = Asking.of(processor)
    (prompt,) = asking.prompts(processor, [ASKED], [TEXT])
    assert processor.decode(prompt.before[-1:]) == ":"
    assert processor.decode(asking.answer_ids(processor, "Lagos")) == " Lagos"
    (whole,) = example_tasks._whole_answers(model, ["Lagos"])
    assert processor.decode([*prompt.before, *whole]).endswith("\n\nAnswer: Lagos")
    with pytest.raises(ValueError, match="end without white space"):
        Asking("Question: {question} ")


def test_answers_end_at_a_newline(model):
    processor = model.processor
    asking = Asking.of(processor)
    stops = asking.stop_ids(processor)
    newline = processor.decoder_text.encode("\n")
    assert set(newline + processor.eos_ids) <= set(stops)
    assert all(
        "\n" in processor.decode([i], skip_special_tokens=False) or i in processor.eos_ids
        for i in stops
    )
    assert replace(asking, one_line=False).stop_ids(processor) == processor.eos_ids
    assert asking.cut(" Lagos \nQuestion: what?") == "Lagos"
    assert asking.cut("\n") == ""


def test_generation_stops_where_an_answer_ends(model):
    processor = model.processor
    prompts = Asking.of(processor).prompts(processor, [ASKED] * 2, [TEXT, words(9)])
    given = {"max_new_tokens": 12, "do_sample": False, "return_dict_in_generate": True}
    rows = [Row([], prompt) for prompt in prompts[:1]]
    ids = model.answer_rows(rows, None, 1, given).sequences[0].tolist()
    end = next(i for i in range(2, 12) if ids[i] not in ids[:i])
    whole, short = (
        answer_in_these_words(model, prompts, None, 12, stops)[0] for stops in ([], [ids[end]])
    )
    assert whole == processor.decode(ids).strip()
    assert short == processor.decode(ids[: end + 1]).strip()
    with pytest.raises(ValueError, match="ask with fewer examples"):
        answer_in_these_words(model, [Prompt(list(range(500)))], None, 30, [])


def test_examples_are_of_passages_that_do_not_repeat():
    shown = worked_examples(3)
    assert len({each.passage for each in shown}) == 3
    assert shown == worked_examples(3) != worked_examples(3, seed=1)
    assert all(each.answer in each.passage for each in [*shown, *other_examples(shown)])
    assert {each.passage for each in shown}.isdisjoint(e.passage for e in other_examples(shown))
    with pytest.raises(ValueError, match="examples=9: there are 0 to 5"):
        worked_examples(9)


def test_the_words_that_cost_less_are_chosen(model, monkeypatch):
    asking, cost = choose_asking(model)
    assert len(asking.examples) == min(cost, key=cost.get)
    for best in (0, 3):
        monkeypatch.setattr(
            "memslots.evaluation.asking_choice._nats",
            lambda model, asking, seed, best=best: float(len(asking.examples) != best),
        )
        assert len(choose_asking(model)[0].examples) == best
    asking, said = asking_of(model, 2, "chat")
    assert (len(asking.examples), asking.format) == (2, "chat")
    assert said == "asked in chat words, 2 worked examples"


# -- what is read ----------------------------------------------------------------------------------


def test_every_text_is_encoded_once(model, monkeypatch):
    contexts = [words(30, i // 2) for i in range(4)]
    seen = []
    compress = model.compress
    monkeypatch.setattr(
        model, "compress", lambda texts, *a, **k: (seen.extend(texts), compress(texts, *a, **k))[1]
    )
    made = {c.name: c for c in conditions(model, contexts, [4], ["full", "another"])}
    assert seen == list(dict.fromkeys(contexts))
    alone = compress(contexts[2:3], rate=4)
    torch.testing.assert_close(made["memory"].memory[3].slots, alone.slots)
    torch.testing.assert_close(made["another"].memory[0].slots, alone.slots)
    assert other_texts(["a", "a", "b"]) == ["b", "b", "a"]


@pytest.mark.parametrize("task", [RECONSTRUCTION, 2])
def test_what_is_generated_is_right_when_it_is_given(model, task):
    """Teacher forcing and greedy generation agree on every token."""
    memory = model.compress([SENTENCES[0], SENTENCES[3]], rate=4)
    alone = replace(memory, documents=tuple((s,) for s in memory.segments))
    prompts = [Prompt(model.processor.bos_ids) for _ in range(len(alone))]
    given = {"max_new_tokens": 9, "min_new_tokens": 9, "do_sample": False}
    targets = []
    for i, prompt in enumerate(prompts):
        asked = [Row([i], prompt, task=task)]
        output = model.answer_rows(asked, alone, 1, {**given, "return_dict_in_generate": True})
        targets.append(output.sequences[0].tolist())
    losses = target_losses(model, prompts, targets, alone, task=task)
    assert [loss.right for loss in losses] == [loss.tokens for loss in losses] == [9] * len(alone)
    wrong = [[*ids[:-1], (ids[-1] + 1) % 300] for ids in targets]
    assert all(loss.right == 8 for loss in target_losses(model, prompts, wrong, alone, task=task))


def test_logits_of_chosen_positions_are_those_of_all(model, monkeypatch):
    processor = model.processor
    prompts = [
        Prompt([*processor.bos_ids, *processor.decoder_text.encode(words(n))]) for n in (3, 9)
    ]
    targets = [processor.decoder_text.encode(words(n, 1)) for n in (7, 2)]
    chosen = target_losses(model, prompts, targets, unscored=1)
    monkeypatch.setattr("memslots.evaluation.likelihood._keeps_logits", lambda decoder: False)
    for a, b in zip(chosen, target_losses(model, prompts, targets, unscored=1), strict=True):
        assert (a.tokens, a.right) == (b.tokens, b.right)
        assert a.nll == pytest.approx(b.nll, rel=1e-5)


def test_questions_of_a_table_are_scored_under_every_condition(model):
    rows = [row(i) for i in range(4)]
    asking = Asking.of(model.processor)
    records = tasks.question_answering(model, rows, [4], asking=asking, max_new_tokens=4)
    kinds = {(r["condition"], r["metric"]) for r in records}
    assert {m for c, m in kinds if c == "full"} == {"f1", "exact_match", "nats"}
    assert {c for c, m in kinds if m == "nats"} == {
        "full", "none", "memory", "head", "tail", "another"
    }  # fmt: skip
    value = {(r["condition"], r["metric"]): r["value"] for r in records}
    here, none, full = (value[c, "nats"] for c in ("memory", "none", "full"))
    closed = (here - none) / (full - none)
    assert value["memory", "nats_gap_closed"] == pytest.approx(
        closed, abs=0.02 * abs(closed) + 0.01
    )
    prompts = asking.prompts(model.processor, [r["question"] for r in rows], None)
    targets = [asking.answer_ids(model.processor, r["answer"]) for r in rows]
    memory = model.compress([r["context"] for r in rows], rate=4)
    losses = target_losses(model, prompts, targets, memory)
    expected = sum(loss.nll for loss in losses) / sum(loss.tokens for loss in losses)
    assert here == pytest.approx(expected, abs=1e-3)


def test_reconstruction_is_measured_free_and_forced(model):
    rows = [{"id": str(i), "text": words(40, i)} for i in range(2)]
    records = tasks.reconstruction(model, rows, [4], samples=3)
    found = {(r["condition"], r["metric"]): r for r in records}
    assert found["memory", "tokens_right"]["n"] == 3
    for condition in ("full", "none", "memory", "head", "another"):
        assert 0 <= found[condition, "tokens_right_forced"]["value"] <= 1
        assert found[condition, "nats"]["value"] > 0
    assert ("full", "tokens_right") not in found


def test_passages_are_taken_evenly_out_of_long_texts(model):
    rows = [{"id": "1", "text": words(400)}]
    records = tasks.completion(model, rows, [4], lengths=[64], baselines=["full"], samples=4)
    assert {r["n"] for r in records} == {4}
    starts = tasks._inputs([list(range(100)), list(range(5))], 10, 5)
    assert [ids[0] for ids in starts] == [0, 20, 40, 60, 80]


def test_cloze_asks_what_the_text_lost(model):
    text = "We saw Agnes Marwick in the harbour of Tolm on that day. " * 1
    text += "They said that 212 barrels were lost and that Otto Lindqvist knew of it. " + words(30)
    rows = [{"id": "1", "text": text}, {"id": "2", "text": text.replace("Marwick", "Holt")}]
    records = tasks.cloze(model, rows, [4], ["full", "none"], samples=4)
    assert {r["task"] for r in records} == {"cloze"}
    assert {r["n"] for r in records if r["metric"] == "nats"} == {4}
    with pytest.raises(ValueError, match="none of 1 texts has a paragraph"):
        tasks.cloze(model, [{"id": "1", "text": "so it is"}], [4])


# -- shares, warnings, and what is kept ------------------------------------------------------------


def scores(condition, nats, rate=None):
    return [
        {
            "sample": i,
            "condition": condition,
            "rate": rate,
            "positions": 1.0,
            "nats": n,
            "tokens": 2,
        }
        for i, n in enumerate(nats)
    ]


def test_shares_of_the_gap_by_hand():
    measured = scores("full", [2.0, 4.0]) + scores("none", [8.0, 6.0]) + scores("memory", [4, 6], 4)
    metrics = {"nats": ratio_of("nats", "tokens"), "tokens": mean_of("tokens")}
    records = records_of(measured, metrics, ["nats"], ["a", "b"], task="qa", data="d")
    value = {(r["condition"], r["metric"]): r["value"] for r in records}
    assert value["full", "nats"] == 6 / 4
    assert value["none", "nats"] == 14 / 4
    assert value["memory", "nats"] == 10 / 4
    assert value["memory", "nats_gap_closed"] == 0.5  # (14 - 10) of (14 - 6)
    assert ("full", "nats_gap_closed") not in value
    share = next(r for r in records if r["metric"] == "nats_gap_closed")
    assert (share["low"], share["high"]) == (0.0, pytest.approx(4 / 6, abs=1e-3))
    one_context = records_of(measured, metrics, ["nats"], ["a", "a"])
    assert all(r["low"] == r["high"] == r["value"] for r in one_context)  # nothing to draw from
    # A text that costs as much as nothing, or more, leaves nothing to close.
    for full in (2.0, 3.0):
        no_gap = scores("full", [full]) + scores("none", [2.0]) + scores("memory", [1], 4)
        assert "nats_gap_closed" not in {r["metric"] for r in records_of(no_gap, metrics, ["nats"])}


def test_the_table_of_eval_stands_whole_on_a_terminal_of_80_columns(monkeypatch):
    metrics = {"nats": ratio_of("nats", "tokens"), "exact_match": lambda _: 0.5}
    measured = scores("full", [2.0, 4.0]) + scores("none", [8.0, 6.0])
    measured += scores("memory", [4, 6], 4) + scores("tail", [5, 6], 4)
    records = records_of(measured, metrics, ["nats"], task="qa", data="asked.jsonl")
    console = Console(width=80, file=io.StringIO())
    monkeypatch.setattr(measure, "out", console)
    measure._show({"records": records})
    shown = console.file.getvalue()
    assert "\u2026" not in shown
    assert shown.count("nats_gap_closed") == 2
    assert shown.count("memory, rate 4") == 1
    assert "input" not in shown


def test_where_the_text_answers_worse_than_nothing_no_share_of_f1_is_told():
    def f1(condition, value, rate=None):
        place = {"sample": 0, "condition": condition, "rate": rate, "positions": 1.0}
        return [{**place, "f1": value}]

    for full, told in ((0.5, 0.5), (0.1, None)):
        measured = f1("full", full) + f1("none", 0.2) + f1("memory", 0.35, 4)
        records = records_of(measured, {"f1": mean_of("f1")}, ["f1"])
        share = [r["value"] for r in records if r["metric"] == "f1_gap_closed"]
        assert share == ([] if told is None else [pytest.approx(told)])


def test_a_prompt_that_the_full_text_fails_is_named():
    def record(condition, metric, value):
        return {
            "task": "qa", "data": "squad", "condition": condition, "length": None,
            "metric": metric, "value": value,
        }  # fmt: skip

    good = [record("full", "f1", 0.27), record("full", "nats", 1.2), record("none", "nats", 3.6)]
    assert prompt_warnings(good) == []
    (said,) = prompt_warnings([record("full", "f1", 0.09), *good[1:]])
    assert said.startswith("qa on squad: the full text scores 0.09 F1: mend the prompt first")
    (said,) = prompt_warnings([good[0], record("full", "nats", 4.0), good[2]])
    assert "there is no gap to close" in said


def test_a_broken_run_goes_on_where_it_was(tmp_path):
    file, said = tmp_path / "x.partial.jsonl", []

    def measure(places):
        seen.extend(places)
        if breaks and max(places) >= 5:
            raise KeyboardInterrupt
        return [{"sample": i, "condition": "full", "value": i * i} for i in places]

    seen, breaks = [], True
    with pytest.raises(KeyboardInterrupt):
        SampleLog(file, {"rates": [4]}, batch=3).collect(("qa", "d", None), 9, measure)
    lines = file.read_text().splitlines()
    assert sum("scores" in json.loads(line) for line in lines) == 5  # two, then a batch of three
    file.write_text(file.read_text() + '{"scores": {"sample": 5, "condition"')  # and was killed
    seen, breaks = [], False
    log = SampleLog(file, {"rates": [4]}, said.append, batch=3)
    found = log.collect(("qa", "d", None), 9, measure)
    assert seen == [5, 6, 7, 8]
    assert [s["value"] for s in found] == [i * i for i in range(9)]
    assert said[0] == "qa on d: resuming after 5 of 9 samples"
    assert said[-1] == "qa on d: 9 of 9 samples, 0:00 left"
    seen.clear()
    assert SampleLog(file, {"rates": [4]}).collect(("qa", "d", None), 9, measure) == found
    assert seen == []
    assert len(SampleLog(file, {"rates": [4]}).collect(("qa", "e", None), 2, measure)) == 2
    with pytest.raises(ValueError, match=r"with rates \[4\] \(now \[8\]\): remove it"):
        SampleLog(file, {"rates": [8]})
    file.write_text('{"settings": {"rates": [4]}}\n')  # of a run that measured nothing
    assert len(SampleLog(file, {"rates": [8]}).collect(("qa", "e", None), 2, measure)) == 2
    (tmp_path / "other.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match="not a file of partial results"):
        SampleLog(tmp_path / "other.jsonl", {})


def test_an_evaluation_that_was_broken_ends_with_the_same_table(model, tmp_path, monkeypatch):
    (tmp_path / "squad-validation.jsonl").write_text(
        "\n".join(
            json.dumps({**row(i), "answers": {"text": row(i)["answers"], "answer_start": [0, 0]}})
            for i in range(5)
        )
    )
    options = {"data": {"qa": ["squad/validation"]}, "data_dir": str(tmp_path), "samples": 5}
    options |= {"baselines": ["full", "none"]}
    said = []
    whole = evaluate_tasks(model, ["qa"], [4], **options, progress=said.append)
    assert any("mend the prompt first" in note for note in whole["notes"])
    assert any(line.startswith("warning: qa on squad/validation") for line in said)
    partial = tmp_path / "out.partial.jsonl"
    compress, calls = model.compress, []

    def breaks(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return compress(*args, **kwargs)

    monkeypatch.setattr(model, "compress", breaks)
    with pytest.raises(KeyboardInterrupt):
        evaluate_tasks(model, ["qa"], [4], **options, partial=partial)
    again = evaluate_tasks(model, ["qa"], [4], **options, partial=partial)
    assert len(calls) == 3
    for a, b in zip(whole["records"], again["records"], strict=True):
        assert a["value"] == pytest.approx(b["value"], abs=1e-3)
        assert (a["metric"], a["condition"], a["n"]) == (b["metric"], b["condition"], b["n"])
    assert not math.isnan(again["records"][0]["value"])


@pytest.mark.parametrize("changed", ["file", "converter"])
def test_scores_of_other_rows_or_of_another_converter_do_not_count(zoo, tmp_path, changed):
    asked, partial = tmp_path / "asked.jsonl", tmp_path / "out.partial.jsonl"
    model, options = zoo.compressor(), {"data": {"qa": [str(asked)]}, "baselines": ["full"]}

    def ask(question):
        asked.write_text(json.dumps({**row(1), "question": question}))

    ask("Who?")
    evaluate_tasks(model, ["qa"], [4], **options, partial=partial)
    if changed == "file":
        ask("Who was it, and where?")
    else:
        with torch.no_grad():
            model.markers += 1.0
        with pytest.raises(ValueError, match=r"holds the results of another run, with converter"):
            evaluate_tasks(model, ["qa"], [4], **options, partial=partial)
        return
    resumed = evaluate_tasks(model, ["qa"], [4], **options, partial=partial)["records"]
    assert resumed == evaluate_tasks(model, ["qa"], [4], **options)["records"]


@pytest.mark.parametrize(("task", "column"), [("qa", "context"), ("needle", "text")])
def test_rows_that_a_task_cannot_read_are_named(model, tmp_path, task, column):
    rows = {"qa": {"text": "Ann is here."}, "needle": row(1)}
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(rows[task]))
    with pytest.raises(ValueError, match=rf"{task} on .*: its rows have .*none a {column}"):
        evaluate_tasks(model, [task], [4], data={task: [str(file)]})
