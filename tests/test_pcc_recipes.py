"""The paper's recipes: three steps of every stage of the YAML, tiny models' names in it."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from tiny_models import words

from lab import sources  # noqa: F401, whose kinds are named below
from lab.recipes import lab_recipe
from lab.training.donor import take_decoder
from memslots import MemslotsModel
from memslots.cli import main
from memslots.configuration import load_recipe
from memslots.making import new_compressor
from memslots.trainer.plan import plan_recipe
from memslots.trainer.run import previous_stage, run_recipe, training_arguments
from memslots.trainer.stage_data import Sources, stage_dataset
from memslots.trainer.step_cost import Machine

ROWS = Path(__file__).parent / "data_rows"
SLOW = Machine(operations=1e9, bytes=1e9)
RECIPES = {"pcc_lite": "gpt2", "pcc_large": "llama"}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Local copies of every set that the recipes name."""
    folder = tmp_path_factory.mktemp("data")
    with (folder / "fineweb-train.jsonl").open("w") as file:
        for number in range(4):
            file.write(json.dumps({"id": str(number), "text": words(400, number)}) + "\n")
    for name in ("squad", "gsm8k"):
        shutil.copy(ROWS / f"{name}.jsonl", folder / f"{name}-train.jsonl")
    shutil.copy(ROWS / "hpd-train.json", folder / "en_train_set.json")
    return folder


def small(name, zoo):
    recipe = load_recipe(name)
    section = recipe["compressor"]
    section["encoder"] = zoo.folder(RECIPES[name], "encoder")
    section["decoder"] = zoo.folder("llama", "decoder")
    section["config"]["segment_length"] = 32
    section["training"].update(per_device_train_batch_size=1, use_cpu=True, save_steps=2)
    for stage in section["stages"]:
        stage["batch_size"] = 2
        for source in stage["data"]:
            if "tokens" in source:
                source["tokens"] //= 8
                stage["tokens"] = 3 * 2 * source["tokens"]
            else:
                source["split"] = "train"
                stage["training"]["max_steps"] = 3
            if "demonstrations" in source:
                source["demonstrations"] = 120
        stage.pop("by_name_only", None)
        if "adapt" in stage:
            stage["adapt"]["decoder"] = zoo.folder("qwen3", "decoder")
    return recipe


@pytest.mark.parametrize("name", RECIPES)
def test_three_steps_of_every_stage(name, zoo, data_dir, tmp_path):
    recipe = small(name, zoo)
    run_recipe(recipe, tmp_path, data_dir=str(data_dir))

    models = {}
    for stage in recipe["compressor"]["stages"]:
        folder = tmp_path / "compressor" / stage["name"]
        assert yaml.safe_load((folder / "recipe.yaml").read_text()) == recipe
        models[stage["name"]] = MemslotsModel.from_pretrained(folder)
    for stage in recipe["compressor"]["stages"]:
        before = previous_stage(recipe["compressor"]["stages"], stage["name"])
        if before is not None:  # every stage starts from the right one, and moves
            old, new = models[before].memory_tokens, models[stage["name"]].memory_tokens
            assert 0 < (old - new).abs().max() < 0.05
    assert models["adapt_qa"].decoder.config.model_type == "qwen3"
    assert models["finetune_qa"].decoder.config.model_type == "llama"
    answer = models["adapt_qa"].generate(context=words(40), question="who?", max_new_tokens=3)
    assert isinstance(answer, str)


def test_the_mean_pooling_recipe_runs(zoo, data_dir, tmp_path):
    recipe = load_recipe("mean_pool")
    section = recipe["compressor"]
    section["encoder"], section["decoder"] = (
        zoo.folder("qwen3", "encoder"),
        zoo.folder("qwen3", "decoder"),
    )
    section["config"].update(
        segment_length=32, prompt_format="plain"
    )  # tiny models have no template
    section["training"].update(per_device_train_batch_size=1, use_cpu=True)
    pretrain, finetune = section["stages"]
    pretrain.update(batch_size=2, tokens=3 * 2 * 32)
    pretrain["data"][0]["tokens"] = 32
    finetune.update(batch_size=2)
    finetune["data"][0]["split"] = "train"
    finetune["training"]["max_steps"] = 3
    folder = run_recipe(recipe, tmp_path, data_dir=str(data_dir))
    model = MemslotsModel.from_pretrained(folder)
    assert model.memory_tokens is None
    memory = model.compress(words(40), rate=4)
    assert isinstance(
        model.generate(memory=memory.at_rate(16), question="who?", max_new_tokens=3), str
    )
    first = MemslotsModel.from_pretrained(tmp_path / "compressor" / "pretrain")
    assert first.fingerprint != model.fingerprint  # the encoder moved
    assert [plan.name for plan in plan_recipe(recipe, machine=SLOW)] == ["pretrain", "finetune_qa"]


@pytest.mark.parametrize("start", ["random", "embeddings"])
def test_converter_only_adaptation_leaves_memories_as_they_were(start, zoo, data_dir, tmp_path):
    recipe = small("pcc_lite", zoo)
    section = recipe["compressor"]
    section["stages"] = [s for s in section["stages"] if s["name"] in ("warmup", "adapt")]
    section["stages"][1]["after"] = "warmup"
    section["stages"][1]["adapt"].update(train="converter", start=start)
    run_recipe(recipe, tmp_path, data_dir=str(data_dir))

    before = MemslotsModel.from_pretrained(tmp_path / "compressor" / "warmup")
    after = MemslotsModel.from_pretrained(tmp_path / "compressor" / "adapt")
    memory = before.compress(words(40))
    assert torch.equal(memory.slots, after.compress(words(40)).slots)
    assert after.fingerprint == before.fingerprint
    assert isinstance(after.generate(memory=memory, question="who?", max_new_tokens=3), str)
    assert not torch.equal(before.converter.up.weight, after.converter.up.weight)


def test_what_an_adaptation_freezes_stays_frozen_after_it(zoo, data_dir, tmp_path):
    recipe = small("pcc_lite", zoo)
    section = recipe["compressor"]
    kept = ("warmup", "adapt", "adapt_qa")
    section["stages"] = [s for s in section["stages"] if s["name"] in kept]
    section["stages"][1]["after"] = "warmup"
    section["stages"][1]["adapt"]["train"] = "converter"
    run_recipe(recipe, tmp_path, data_dir=str(data_dir))

    models = [MemslotsModel.from_pretrained(tmp_path / "compressor" / name) for name in kept]
    assert models[0].fingerprint == models[1].fingerprint == models[2].fingerprint
    assert not torch.equal(models[1].converter.up.weight, models[2].converter.up.weight)


def test_the_plan_follows_the_decoder_of_an_adaptation(zoo, tmp_path):
    recipe = small("pcc_lite", zoo)
    plans = {plan.name: plan for plan in plan_recipe(recipe, machine=SLOW)}
    assert plans["adapt"].frozen == plans["adapt_qa"].frozen != plans["finetune_qa"].frozen
    for stage in recipe["compressor"]["stages"]:
        if "adapt" in stage:
            stage["adapt"]["train"] = "converter"
    plans = {plan.name: plan for plan in plan_recipe(recipe, machine=SLOW)}
    assert plans["adapt"].trained == plans["adapt_qa"].trained < plans["finetune_qa"].trained


def test_a_stage_touches_nothing_of_those_it_does_not_run(zoo, data_dir, tmp_path):
    recipe = small("pcc_lite", zoo)
    packaged = {s["name"]: s for s in load_recipe("pcc_lite")["compressor"]["stages"]}
    stages = recipe["compressor"]["stages"]
    stages = recipe["compressor"]["stages"] = [s for s in stages if s["name"] != "finetune_icl"]
    for stage in stages:
        if "adapt" in stage:
            stage["adapt"]["decoder"] = "nobody/has-this-decoder"
        if packaged[stage["name"]].get("by_name_only"):
            stage["by_name_only"] = True
    with pytest.raises(OSError, match=r"nobody/has-this-decoder|couldn't connect"):
        plan_recipe(recipe, machine=SLOW, stage="adapt")
    (plan,) = plan_recipe(recipe, machine=SLOW, stage="pretrain")
    assert (plan.name, plan.after) == ("pretrain", "warmup")
    run_recipe(recipe, tmp_path, stage="warmup", data_dir=str(data_dir))
    assert run_recipe(recipe, tmp_path, stage="pretrain", data_dir=str(data_dir)).name == "pretrain"
    last = run_recipe(recipe, tmp_path, data_dir=str(data_dir))
    assert last.name == "finetune_roleplay"
    model = MemslotsModel.from_pretrained(last)
    assert model.config.decoder_name_or_path == zoo.folder("llama", "decoder")


def test_text_pieces_are_whole_segments_followed_by_the_next(zoo, data_dir):
    processor = zoo.shared().processor
    source = {"kind": "fineweb", "split": "train", "tokens": 16}
    origin = Sources(data_dir=str(data_dir))
    with_next = list(stage_dataset([source], origin, processor))
    alone = list(stage_dataset([{**source, "completion": False}], origin, processor))
    assert len(with_next) == len(alone) > 20
    for long, short in zip(with_next, alone, strict=True):
        assert long["text"].startswith(short["text"])
        assert 15 <= len(processor.encoder_text.encode(short["text"])) <= 16
    assert sum(len(a["text"]) > len(b["text"]) for a, b in zip(with_next, alone, strict=True)) > 20


def test_demonstrations_are_other_rows_within_the_budget(zoo, data_dir):
    processor = zoo.shared().processor
    source = {"kind": "gsm8k", "split": "train", "demonstrations": 120}
    rows = list(stage_dataset([source], Sources(data_dir=str(data_dir)), processor))
    assert rows
    for row in rows:
        assert row["question"][0] not in row["context"]
        assert row["context"].startswith("Question: ")
        assert len(processor.decoder_text.encode(row["context"])) <= 120


def test_batch_sizes_and_tokens_become_steps():
    recipe = load_recipe("pcc_lite")["compressor"]
    warmup, pretrain = recipe["stages"][:2]
    on_four = training_arguments(recipe, warmup, world_size=4)
    assert on_four["gradient_accumulation_steps"] == 256 // (4 * 8)
    assert on_four["max_steps"] == 32_000_000 // (256 * 128)
    assert training_arguments(recipe, pretrain)["max_steps"] == 5_000_000_000 // (256 * 256)
    with pytest.raises(ValueError, match=r"batch_size 256, which is not a multiple of 24"):
        training_arguments(recipe, warmup, world_size=3)


def test_the_plan_counts_what_is_trained(zoo):
    recipe = small("pcc_large", zoo)
    plans = {plan.name: plan for plan in plan_recipe(recipe, machine=SLOW)}
    model = new_compressor(
        recipe["compressor"]["encoder"],
        recipe["compressor"]["decoder"],
        **recipe["compressor"]["config"],
    )
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert plans["warmup"].trained == trained
    assert plans["warmup"].frozen == sum(p.numel() for p in model.parameters()) - trained
    assert plans["warmup"].steps == 3
    assert plans["finetune_qa"].after == "pretrain"
    assert plans["warmup"].seconds > 0


def test_the_plan_of_a_70b_encoder_needs_no_memory(zoo, tmp_path, capsys):
    folder = tmp_path / "big"
    folder.mkdir()
    config = {"model_type": "llama", "hidden_size": 8192, "num_hidden_layers": 80}
    config |= {"num_attention_heads": 64, "num_key_value_heads": 8, "intermediate_size": 28672}
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 128256}))
    recipe = small("pcc_lite", zoo)
    recipe["compressor"]["encoder"] = str(folder)
    file = tmp_path / "big.yaml"
    file.write_text(yaml.safe_dump(recipe))
    assert main(["train", str(file), "--dry-run", "--output", str(tmp_path / "run")]) == 0
    printed = capsys.readouterr().out
    assert "69." in printed or "70." in printed
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"after": "adapt"}, "which is not an earlier stage"),
        ({"data": [{"kind": "fine_web", "tokens": 8}]}, "source kind 'fine_web' is unknown"),
        ({"adapt": {"decoder": "x", "train": "encoder"}}, "train must be one of"),
        ({"adapt": {"decoder": "x", "start": "old"}}, "start must be one of"),
        ({"data": [{"kind": "fineweb"}, {"kind": "personas"}]}, "must say how many"),
    ],
)
def test_mistakes_in_a_recipe_are_named(change, message, zoo, data_dir, tmp_path):
    recipe = small("pcc_lite", zoo)
    section = recipe["compressor"]
    section["stages"] = section["stages"][:2]
    run_recipe(recipe, tmp_path, stage="warmup", data_dir=str(data_dir))
    section["stages"][1].update(change)
    with pytest.raises(ValueError, match=message):
        run_recipe(recipe, tmp_path, data_dir=str(data_dir))


@pytest.mark.parametrize("name", ["small_world", "tiny"])
def test_a_recipe_that_makes_its_own_decoder_names_the_lab(name, tmp_path):
    for refuse in (plan_recipe, lambda recipe: run_recipe(recipe, tmp_path)):
        with pytest.raises(ValueError, match="python -m lab train"):
            refuse(lab_recipe(name))
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_that_carries_no_decoder_gives_none(zoo, tmp_path):
    zoo.compressor(bundle_decoder=False).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="carries no decoder of its own"):
        take_decoder(str(tmp_path), tmp_path / "run")
