"""What a dry run says of memory and time, and what is chosen by it."""

import io
import re

import pytest
import torch
from datasets import Dataset
from rich.console import Console
from tiny_models import SENTENCES, words

from memslots.cli import main, plan_view
from memslots.cli.plan_view import plan_table
from memslots.configuration.own import batch_sizes, own_recipe
from memslots.making import new_compressor
from memslots.trainer import plan, step_cost
from memslots.trainer.compressor_config import CompressorConfig
from memslots.trainer.compressor_trainer import CompressorTrainer
from memslots.trainer.plan import plan_recipe, plan_that_fits
from memslots.trainer.step_cost import Machine, shape_of

FAST, SLOW = Machine(1e10, 1e9), Machine(1e3, 1e3)
SHARED = {"pooling": "groups", "converter_type": "residual", "encoder_layers": 1}


@pytest.fixture
def texts(tmp_path):
    file = tmp_path / "notes.txt"
    file.write_text("\n\n".join(" ".join(SENTENCES[i % 3 :]) for i in range(12)), encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("encoder", "decoder", "config"),
    [("decoder", "llama", SHARED), ("gpt2", "gemma4", {}), ("bert", "qwen3", {"pooling": "mean"})],
)
@pytest.mark.parametrize("distilled", [0.0, 1.0])
def test_a_planned_step_takes_what_a_real_one_does(
    encoder, decoder, config, distilled, zoo, tmp_path
):
    if encoder != "decoder":
        encoder = zoo.folder(encoder, "encoder")
    model = new_compressor(
        encoder, zoo.folder(decoder, "decoder"), segment_length=48, compression_rates=[2], **config
    ).train()
    args = CompressorConfig(
        str(tmp_path), distillation_weight=distilled, use_cpu=True, report_to="none"
    )
    rows = [{"text": words(120, seed)} for seed in range(6)]
    trainer = CompressorTrainer(model, args, Dataset.from_list(rows))
    inputs = trainer.data_collator(rows)
    meter = step_cost._Meter(FAST)
    with meter:
        trainer.compute_loss(model, inputs).backward()
    planned = step_cost.step_cost(model.config, shape_of(inputs["batch"], 2), FAST)
    assert planned.bytes == pytest.approx(meter.most, rel=0.3)
    assert planned.seconds == pytest.approx(meter.seconds, rel=0.3)


def test_every_figure_of_the_table_stands_whole_on_a_terminal_of_80_columns():
    paper = plan.StagePlan(
        *("finetune", "pretrain", 135_231_234, 8_030_261_248, 256, 76_293, 5_000_000_000),
        *(12.5 * 2**30, 136_684_800.0, 1_791.6),
    )
    console = Console(width=80, file=io.StringIO())
    console.print(plan_table("pcc_lite", [paper], 24 * 2**30))
    line = next(x for x in console.file.getvalue().splitlines() if "finetune" in x)
    figures = "135.2M 8.0B 256 76,293 5.0B 12.5 4.3 y 30 min"
    assert line.split() == ["finetune", "pretrain", *figures.split()]


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.25, "0.2 s"),
        (61, "61 s"),
        (150, "2.5 min"),
        (5400, "90 min"),
        (86_400 * 3, "3.0 d"),
        (86_400 * 730, "2.0 y"),
    ],
)
def test_times_are_said_in_the_unit_that_fits(seconds, shown):
    assert plan_view._time(seconds) == shown


def small_recipes(decoder, texts):
    recipes = [
        own_recipe(decoder, texts, minutes=60, encoder_layers=1, positions=p, segment_length=s)
        for p, s in batch_sizes(on_gpu=False)
    ]
    for recipe in recipes:  # "read" alone, as the first
        recipe["compressor"]["stages"] = recipe["compressor"]["stages"][2:3]
    return recipes


def test_a_source_that_is_not_there_is_named_before_anything_is_planned(zoo, texts):
    recipe = small_recipes(zoo.folder("llama", "decoder"), texts)[0]
    (stage,) = recipe["compressor"]["stages"]
    stage["data"] = [{"kind": "jsonl", "file": "nowhere.jsonl"}]
    with pytest.raises(ValueError, match=r"stage 'read', source 1 \(jsonl\): .*nowhere\.jsonl"):
        plan_recipe(recipe, machine=FAST)


def test_the_batch_is_the_largest_that_fits(zoo, texts, monkeypatch):
    monkeypatch.setattr(plan, "measured_machine", lambda width: FAST)
    monkeypatch.setattr(plan, "_resident", lambda: 0)
    recipes = small_recipes(zoo.folder("llama", "decoder"), texts)
    needs = [max(p.memory for p in plan_recipe(r, machine=FAST)) for r in (recipes[0], recipes[2])]
    assert needs[0] > needs[1]
    assert plan_that_fits(recipes, free=2 * needs[0])[0] is recipes[0]
    smaller, plans = plan_that_fits(recipes, free=needs[1] / 0.8 + 1)
    assert smaller is recipes[2]
    assert max(p.memory for p in plans) == needs[1]
    with pytest.raises(ValueError, match=r"GiB with the smallest batch, and 0\.0 GiB are free"):
        plan_that_fits(recipes[-1:], free=1000)


def test_a_budget_without_some_steps_is_refused_and_the_least_named(zoo, texts, monkeypatch):
    """The least that any stage needs, with all of their shares, and hardly less will do."""
    monkeypatch.setattr(plan, "measured_machine", lambda width: SLOW)
    positions, segment_length = batch_sizes(on_gpu=False)[-1]

    def recipe(minutes):
        return own_recipe(
            zoo.folder("llama", "decoder"), texts, minutes=minutes, encoder_layers=1,
            positions=positions, segment_length=segment_length,
        )  # fmt: skip

    with pytest.raises(ValueError, match=r"budget is too small: a step of stage") as told:
        plan_that_fits([recipe(60)])
    minutes = float(re.search(r"--budget (\d+)m", str(told.value))[1])
    enough = recipe(minutes)
    assert plan_that_fits([enough])[0] is enough
    with pytest.raises(ValueError, match="budget is too small"):
        plan_that_fits([recipe(0.98 * minutes - 5)])


def test_a_plan_of_some_minutes_says_how_many_steps_they_are(zoo, texts):
    recipe = small_recipes(zoo.folder("llama", "decoder"), texts)[0]
    (read,) = plan_recipe(recipe, machine=FAST, stage="read")
    assert read.seconds == 60 * 24
    assert read.steps == read.seconds // read.step_seconds
    (slower,) = plan_recipe(recipe, machine=Machine(1e9, 1e8), stage="read")
    assert 0.08 < slower.steps / read.steps < 0.6


def test_a_machine_is_as_fast_when_others_come_between(monkeypatch):
    """Two dry runs gave steps of 3.8 and 4.9 s: one call in three was slowed by others' work."""
    slowed = iter([1.0, 0.1, 0.1, 0.3, 0.1] * 9)
    clock = [0.0]

    def call():
        clock[0] += next(slowed)
        return torch.zeros(1)

    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    measured = [step_cost._usual_seconds(call, least) for least in (0.1, 0.5, 2.0)]
    assert measured == pytest.approx([0.1] * 3)


def test_planning_says_how_far_it_is(zoo, texts):
    recipe = own_recipe(zoo.folder("llama", "decoder"), texts, minutes=60, encoder_layers=1)
    told = []
    plan_that_fits([recipe], progress=told.append)
    assert told == ["begin", "grow", "read", "questions"]


def refused(capsys, *arguments):
    assert main(["train", "own", *map(str, arguments)]) == 2
    return re.sub(r"\s+", " ", capsys.readouterr().err)


def test_bad_input_is_told_before_a_model_loads(zoo, texts, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(plan, "measured_machine", lambda width: FAST)
    monkeypatch.setattr("memslots.trainer.run.run_recipe", None)  # nothing may come to that
    decoder = zoo.folder("llama", "decoder")
    asks = tmp_path / "asks.jsonl"
    asks.write_text('{"context": "a", "question": "b", "answer": "c"}\n{"context": "a"}\n')
    said = refused(capsys, "--decoder", decoder, "--texts", texts, "--questions", asks)
    assert "row 2" in said
    assert "'question'" in said
    assert "'answer'" in said
    short = tmp_path / "short.txt"
    short.write_text("On 3 May 1871 Ann came home. Bob left in 1872, and said nothing to her.")
    made = {"--set": "compressor.stages.3.data.0.characters=[20, 400]"}
    said = refused(capsys, "--decoder", decoder, "--texts", short, *next(iter(made.items())))
    assert "stage 'grow' compresses 32 tokens" in said or "stage 'read' compresses 64" in said
    assert "give longer texts" in said
    lora = "compressor.config.encoder_lora={r: 2, alpha: 4, dropout: 0, target_modules: [nope]}"
    said = refused(capsys, "--decoder", decoder, "--texts", texts, "--set", lora)
    assert "the encoder has no layers named ['nope']; there are ['down_proj', " in said


def test_a_decoders_adapter_is_planned_as_its_base(zoo, texts, tmp_path):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = zoo.folder("llama", "decoder")
    llm = AutoModelForCausalLM.from_pretrained(base)
    adapter = LoraConfig(r=2, target_modules=["v_proj"], task_type="CAUSAL_LM")
    get_peft_model(llm, adapter).save_pretrained(tmp_path / "adapter")
    plans = [
        plan_recipe(small_recipes(str(d), texts)[0], machine=FAST, stage="read")
        for d in (base, tmp_path / "adapter")
    ]
    assert plans[0][0].trained == plans[1][0].trained
    model = new_compressor(
        "decoder", str(tmp_path / "adapter"),
        **small_recipes(base, texts)[0]["compressor"]["config"],
    )  # fmt: skip
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert plans[1][0].trained == trained
