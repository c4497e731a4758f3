import pytest
import yaml

from lab.recipes import lab_recipe, recipe_file
from memslots.configuration import apply_overrides, load_recipe, packaged_recipes
from memslots.modeling.configuration_memslots import PLAIN_PROMPT
from memslots.trainer.recipe_checks import check_recipe

RECIPE = {"seed": 0, "training": {"learning_rate": 0.1}, "stages": [{"steps": 5}, {"steps": 7}]}


def test_packaged_recipe_by_name_and_overrides():
    assert packaged_recipes() == ["mean_pool", "pcc_large", "pcc_lite"]
    plain = lab_recipe("tiny")
    changed = lab_recipe("tiny", ["decoder.seed=7", "decoder.training.learning_rate=0.5"])
    assert changed["decoder"]["seed"] == 7
    assert changed["decoder"]["training"]["learning_rate"] == 0.5
    changed["decoder"]["seed"] = plain["decoder"]["seed"]
    changed["decoder"]["training"] = plain["decoder"]["training"]
    assert changed == plain


@pytest.mark.parametrize(
    "recipe", [*packaged_recipes(), *sorted(recipe_file("tiny").parent.glob("*.yaml"))]
)
def test_no_recipe_asks_with_a_lone_space(recipe):
    loaded = load_recipe(recipe)
    check_recipe(loaded, makes_models="decoder" not in loaded)  # and none has a key that is unknown
    config = loaded.get("compressor", {}).get("config", {})
    words = config.get("plain_prompt", PLAIN_PROMPT)
    assert words == words.rstrip()


def test_recipe_from_a_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    assert load_recipe(path) == RECIPE


def test_values_are_yaml_and_the_input_stays():
    changed = apply_overrides(RECIPE, ["stages.1.steps=[4, 16]", "seed={a: true}"])
    assert changed["stages"] == [{"steps": 5}, {"steps": [4, 16]}]
    assert changed["seed"] == {"a": True}
    assert RECIPE["stages"][1] == {"steps": 7}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seeed=1", "did you mean 'seed'"),
        ("training.learning_rat=1", "in training, did you mean 'learning_rate'"),
        ("stages.2.steps=1", "no key '2' in stages"),
        ("seed.deeper=1", "has no keys below"),
        ("seed", "must be key=value"),
        ("=1", "must be key=value"),
        ("seed=[1", "not valid YAML"),
    ],
)
def test_bad_overrides(override, message):
    with pytest.raises(ValueError, match=message):
        apply_overrides(RECIPE, [override])


def test_fields_that_a_recipe_leaves_out_can_be_set_where_they_belong():
    fields = {"training": ["warmup_steps"], "stages.*.training": ["warmup_steps"]}
    recipe = {"training": {"learning_rate": 0.1}, "stages": [{"training": {}}], "data": {}}
    sets = ["training.warmup_steps=5", "stages.0.training.warmup_steps=7"]
    changed = apply_overrides(recipe, sets, fields)
    assert changed["training"] == {"learning_rate": 0.1, "warmup_steps": 5}
    assert changed["stages"] == [{"training": {"warmup_steps": 7}}]
    with pytest.raises(ValueError, match=r"in training, did you mean 'warmup_steps'.*1 more"):
        apply_overrides(recipe, ["training.warm_up_steps=5"], fields)
    with pytest.raises(ValueError, match="no key 'warmup_steps' in data"):
        apply_overrides(recipe, ["data.warmup_steps=5"], fields)


def test_every_setting_of_the_trainer_and_the_model_can_be_set():
    from memslots.trainer.compressor_config import recipe_fields

    sets = [
        "compressor.training.activation_checkpointing=true",
        "compressor.stages.1.training.max_grad_norm=0.5",
        "compressor.config.memory_positions=spread",
    ]
    changed = load_recipe("pcc_lite", sets, recipe_fields())["compressor"]
    assert changed["training"]["activation_checkpointing"] is True
    assert changed["stages"][1]["training"]["max_grad_norm"] == 0.5
    assert changed["config"]["memory_positions"] == "spread"
    with pytest.raises(ValueError, match="did you mean 'learning_rate'"):
        load_recipe("pcc_lite", ["compressor.training.learning_rat=1"], recipe_fields())


def test_bad_recipes(tmp_path):
    with pytest.raises(ValueError, match="did you mean 'pcc_lite'"):
        load_recipe("pcc_light")
    for text, message in (("", "mapping"), ("- 1", "mapping"), ("a: [", "not valid YAML")):
        path = tmp_path / "bad.yaml"
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            load_recipe(path)


def test_a_power_of_ten_is_a_number(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("training: {learning_rate: 1e-4, weight_decay: 5E-2, run_name: 1e-4b}")
    recipe = load_recipe(path, ["training.learning_rate=2e-5"])
    assert recipe["training"] == {"learning_rate": 2e-5, "weight_decay": 0.05, "run_name": "1e-4b"}


STAGE = {"name": "first", "data": [{"kind": "jsonl"}], "training": {"learning_rate": 1}}
SECTION = {"seed": 0, "config": {}, "training": {}, "encoder": "e", "decoder": "d"}


@pytest.mark.parametrize(
    ("section", "stage", "message"),
    [
        ({"train": {}}, {}, r"^compressor: 'train' is unknown \(did you mean 'training'"),
        ({"seed": None}, {}, r"^compressor: seed is None; it must be an integer"),
        (
            {"decoder_kwargs": None},
            {"minute": 30},
            r"stage 'first': 'minute' is unknown.*'minutes'",
        ),
        ({}, {"minutes": "2h"}, r"stage 'first': minutes is '2h'; it must be a number"),
        ({}, {"minutes": 0}, r"stage 'first': minutes is 0; it must be above 0"),
        ({}, {"data": {"kind": "jsonl"}}, r"stage 'first': data is .*; it must be a list"),
        ({}, {"data": []}, r"stage 'first' lists no source"),
        ({}, {"training": None}, r"stage 'first': training is None; it must be a mapping"),
        ({}, {"training": {"learn_rate": 1.0}}, r"training: 'learn_rate' is unknown.*_rate'"),
        ({}, {"training": {"learning_rate": "fast"}}, r"learning_rate is 'fast'; it must be a num"),
        (
            {},
            {"training": {"training_rates": 4}},
            r"training_rates is 4; it must be a list or null",
        ),
        (
            {},
            {"training": {"training_rates": ["4"]}},
            r"training_rates is \['4'\]; it must be a li",
        ),
        ({}, {"training": {"bf16": "yes"}}, r"bf16 is 'yes'; it must be true or false or null"),
        ({"config": {"segments_length": 8}}, {}, r"config: 'segments_length' is unknown.*_length'"),
        ({}, {"adapt": {"train": "all"}}, r"stage 'first': adapt lacks 'decoder'"),
        ({}, {"name": 1}, r"stage 1: name is 1; it must be text"),
        ({"stages": [STAGE, STAGE]}, {}, r"two stages are named 'first'"),
        ({"stages": []}, {}, r"compressor.stages lists no stage"),
    ],
)
def test_a_key_that_nothing_reads_or_of_another_kind_is_named(section, stage, message):
    recipe = {"compressor": {**SECTION, "stages": [STAGE | stage], **section}}
    with pytest.raises(ValueError, match=message):
        check_recipe(recipe)


@pytest.mark.parametrize("missing", ["seed", "config", "training", "decoder", "stages"])
def test_a_key_that_is_missing_is_named(missing):
    section = {**SECTION, "stages": [STAGE]}
    check_recipe({"compressor": section})
    del section[missing]
    with pytest.raises(ValueError, match=f"compressor lacks '{missing}'; it needs seed"):
        check_recipe({"compressor": section})
    for other in ({"training": {}}, {"compressor": None}):
        with pytest.raises(ValueError, match=r"`compressor` is None; it must be a mapping"):
            check_recipe(other)


def test_config_is_re_exported():
    from memslots import MemslotsConfig, configuration

    assert configuration.MemslotsConfig is MemslotsConfig


@pytest.mark.parametrize("stage", ["one_person", "rates"])
def test_a_stage_without_its_predecessor_says_so(tmp_path, stage):
    from lab.training.run import run_recipe

    with pytest.raises(ValueError, match="starts from the one before it"):
        run_recipe(lab_recipe("tiny"), tmp_path, stage=stage)
