"""The sentence-pools recipe: three steps of every phase, tiny models' names in it."""

import pytest
from sentence_encoders import sentence_encoder

from lab import sources  # noqa: F401, whose kinds are named below
from lab.recipes import lab_recipe
from lab.training.run import run_recipe
from memslots import MemslotsModel
from memslots.trainer.plan import plan_recipe
from memslots.trainer.pool_units import change_pool_unit
from memslots.trainer.stage_data import Sources, stage_dataset


@pytest.fixture(scope="module")
def recipe(zoo, tmp_path_factory):
    recipe = lab_recipe("sentence_pools")
    section = recipe["compressor"]
    section["encoder"] = sentence_encoder(tmp_path_factory.mktemp("sentence"))
    section["decoder"] = zoo.folder("gemma4", "decoder")
    section["training"].update(per_device_train_batch_size=2, use_cpu=True, warmup_steps=0)
    for stage in section["stages"]:
        stage["training"].update(max_steps=2, per_device_train_batch_size=2)
        stage["training"].pop("gradient_accumulation_steps", None)
        for source in stage["data"]:
            source["rows"] = 6
            if "contrast" in source:
                source["contrast"] = 2
            if "people" in source:
                source.update(people=2, population=20)
    return recipe


def test_two_steps_of_every_phase(recipe, tmp_path):
    assert {plan.name for plan in plan_recipe(recipe)} == {
        stage["name"] for stage in recipe["compressor"]["stages"]
    }
    run_recipe(recipe, tmp_path)
    folder = tmp_path / "compressor" / "people"
    units = {}
    for stage in recipe["compressor"]["stages"]:
        model = MemslotsModel.from_pretrained(tmp_path / "compressor" / stage["name"])
        units[stage["name"]] = model.config.pool_unit
        memory = model.compress("She is 34. She lives in Lagos. He left.")
        assert memory.slots.shape[0] == (1 if units[stage["name"]] == "text" else 3)
        assert model.generate(memory=memory, question="Age?", max_new_tokens=3) is not None
    assert units == {
        "phase_1": "sentence", "phase_1_5": "text", "phase_3": "sentence",
        "reconstruct": "sentence", "people": "sentence", "joint": "sentence",
    }  # fmt: skip
    assert not (folder / "model.safetensors").stat().st_size > 100_000  # no encoder in it


def test_rows_of_some_sentences_hold_their_answers(recipe, zoo, model):
    for sentences in (1, 5):
        source = {"kind": "personas", "rows": 40, "questions": 3, "sentences": sentences}
        rows = list(stage_dataset([source], Sources(seed=0), model.processor))
        assert len(rows) > 30
        for row in rows:
            assert row["context"].count(". ") <= sentences
            assert row["answer"]
            assert all(answer in row["context"] for answer in row["answer"])


def test_only_sentence_compressors_have_units(model):
    with pytest.raises(ValueError, match="pool_unit is for pooling='sentence'"):
        change_pool_unit(model, "text")
