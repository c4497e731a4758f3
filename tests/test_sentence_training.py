"""Training sentence pools: contrastive rows, kept slots, the shortcut check, and stages."""

import json
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from datasets import Dataset
from sentence_encoders import sentence_encoder

from lab import sources  # noqa: F401, whose kinds are named below
from lab.data.code_facts import CODE_FACTS, code_rows
from lab.data.personas import make_persona, persona_split
from lab.data.sentence_facts import PARAGRAPH, POOL_FACTS, pool_rows, sentence_rows
from lab.training.run import run_recipe
from memslots import MemslotsModel
from memslots.making import new_compressor
from memslots.trainer import CompressorConfig, CompressorTrainer
from memslots.trainer.contrast_groups import ContrastGroups
from memslots.trainer.row_sources import contrast_of, source_rows
from memslots.trainer.run import previous_stage, training_arguments
from memslots.trainer.shortcut_check import ShortcutCheck
from memslots.trainer.slot_cache import cached_slots
from memslots.trainer.stage_changes import change_stage
from memslots.trainer.stage_data import FEATURES


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return sentence_encoder(tmp_path_factory.mktemp("sentence"))


@pytest.fixture(scope="module")
def make(zoo, folder):
    def compressor(**config) -> MemslotsModel:
        torch.manual_seed(0)
        config = {"pooling": "sentence", "markers": "memory", "converter_type": "linear", **config}
        return new_compressor(folder, zoo.folder("llama", "decoder"), **config)

    return compressor


def arguments(tmp_path, **changes) -> CompressorConfig:
    given = {
        "output_dir": str(tmp_path),
        "per_device_train_batch_size": 4,
        "max_steps": 3,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "completion_weight": 0.0,
        "reconstruction_share": 0.0,
        "learning_rate": 0.01,
        "dataloader_pin_memory": False,
    }
    return CompressorConfig(**{**given, **changes})


def dataset(rows) -> Dataset:
    kept = [{k: row[k] for k in ("context", "question", "answer")} for row in rows]
    whole = [{**dict.fromkeys(FEATURES), **row} for row in kept]
    return Dataset.from_list(whole, features=FEATURES)


@pytest.mark.parametrize("sentences", [1, 3, None])
def test_contrastive_rows_differ_in_their_context_alone(sentences):
    rows = list(sentence_rows("train", 24, sentences=sentences, questions=3, contrast=6))
    for start in range(0, 24, 6):
        block = rows[start : start + 6]
        assert len({tuple(row["question"]) for row in block}) == 1
        assert len({tuple(row["fact"]) for row in block}) == 1
        for answers in zip(*(row["answer"] for row in block), strict=True):
            assert len(set(answers)) == 6
        for row in block:
            assert row["context"].count(".") == (sentences or len(PARAGRAPH))
            assert all(answer in row["context"] for answer in row["answer"])
            assert not any(answer in row["other_context"] for answer in row["answer"])
    assert len({tuple(row["question"]) for row in rows}) > 1
    assert rows == list(sentence_rows("train", 24, sentences=sentences, questions=3, contrast=6))


@pytest.mark.parametrize("brief", [False, True])
def test_pools_name_each_person_once_and_hold_the_answer(brief):
    for row in pool_rows("test", 20, people=30, population=120, brief=brief):
        sentences = row["context"].split(". ")
        assert len(sentences) == 30
        (question,), (answer,), (fact,) = row["question"], row["answer"], row["fact"]
        named = [one for one in sentences if any(name in one for name in [_asked(question, one)])]
        assert fact in POOL_FACTS
        assert not brief or question == f"{_asked(question, named[0])}'s {fact}"
        assert len(named) == 1
        assert answer in named[0]
        assert split_of(_asked(question, named[0])) == "test"
        other = [one for one in row["other_context"].split(". ") if _asked(question, one) in one]
        assert len(other) == 1
        assert other != named


def split_of(name: str) -> str:
    return persona_split(replace(make_persona(0), name=name))


def _asked(question: str, sentence: str) -> str:
    words = question.replace("'s", "").replace("?", "").split()
    pairs = [f"{a} {b}" for a, b in pairwise(words)]
    return next((pair for pair in pairs if pair in sentence and pair.istitle()), "no one")


def test_pools_of_namesakes_have_few_names():
    def names(row):
        return [" ".join(said.split()[:2]).strip(",") for said in row["context"].split(". ")]

    def first_names(rows):
        return sum(len({name.split()[0] for name in names(row)}) for row in rows)

    asked = {"people": 20, "questions": 6, "population": 1000, "brief": True}
    rows, others = ([*pool_rows("train", 8, **asked, namesakes=same)] for same in (True, False))
    assert all(len(set(names(row))) == 20 for row in rows)
    assert len({tuple(names(row)) for row in rows}) == 8
    assert 1.2 * first_names(rows) < first_names(others)
    for row in rows:
        for question, answer in zip(row["question"], row["answer"], strict=True):
            (said,) = [one for one in row["context"].split(". ") if _asked(question, one) in one]
            assert answer in said
    (row,) = pool_rows("test", 1, people=4, questions=2, population=200, namesakes=True)
    assert len(row["question"]) == 2


def test_pools_of_a_thousand_and_of_more_than_there_are():
    row = next(iter(pool_rows("test", 1, people=1000, population=1000)))
    assert row["context"].count(". ") == 999
    with pytest.raises(ValueError, match="people=11 must be 1 to 10"):
        next(iter(pool_rows("train", 1, people=11, population=10)))
    with pytest.raises(ValueError, match=r"population=20000, but there are \d+ names"):
        next(iter(pool_rows("train", 1, people=5, population=20_000)))
    # More than its names, an eighth of which are to be held out, are no endless search.
    assert next(iter(pool_rows("validation", 1, people=5, population=4000)))["question"]


def test_code_rows_hold_their_answers_and_keep_the_splits_apart():
    for row in code_rows("train", 12, questions=3, contrast=4):
        assert sorted(row["fact"]) == sorted(CODE_FACTS)
        assert all(answer in row["context"] for answer in row["answer"])
        assert all("?" in question for question in row["question"])
    for row in code_rows("train", 4, questions=2, brief=True):
        assert row["question"] == row["fact"]
    names = {
        split: {row["answer"][0] for row in code_rows(split, 300) if row["fact"] == ["function"]}
        for split in ("train", "test")
    }
    assert names["train"]
    assert names["test"]
    assert not names["train"] & names["test"]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"kinds": ["hobby"]}, "hobby"),
        ({"sentences": 9}, "sentences=9 must be 1 to 5"),
        ({"contrast": 0}, "must be at least 1"),
        ({"facts": ["age"]}, "state none of them"),
    ],
)
def test_impossible_rows_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        next(iter(sentence_rows("train", 1, **kwargs)))


def test_sources_name_their_mistakes():
    with pytest.raises(ValueError, match="'books' has no held-out rows"):
        next(source_rows({"kind": "books"}, "test", 1, 0))
    with pytest.raises(ValueError, match=r"persona_sentences.*unexpected"):
        next(source_rows({"kind": "persona_sentences", "sentence": 1}, "test", 1, 0))
    with pytest.raises(ValueError, match="multiple of it; they are \\[10\\]"):
        contrast_of([{"kind": "persona_sentences", "rows": 10, "contrast": 4}])
    with pytest.raises(ValueError, match="same contrast"):
        contrast_of([{"rows": 8, "contrast": 4}, {"rows": 8}])


def test_blocks_stay_together_and_every_row_comes_once(tmp_path):
    sampler = ContrastGroups(22, 4, seed=3, epoch=lambda: 0)
    order = list(sampler)
    assert sorted(order) == list(range(22))
    assert order[:20] != list(range(20))
    for start in range(0, 20, 4):
        assert order[start] % 4 == 0
        assert order[start : start + 4] == list(range(order[start], order[start] + 4))
    assert order != list(ContrastGroups(22, 4, seed=3, epoch=lambda: 1))
    with pytest.raises(ValueError, match="contrast_rows=3"):
        arguments(tmp_path, contrast_rows=3)


def test_the_trainer_reads_contrastive_rows_in_blocks(make, tmp_path):
    rows = list(sentence_rows("train", 16, sentences=1, contrast=4))
    trainer = CompressorTrainer(make(), arguments(tmp_path, contrast_rows=4), dataset(rows))
    questions = []
    for batch in trainer.get_train_dataloader():
        questions.append({tuple(row.prompt.after) for row in batch["batch"].rows})
    assert [len(asked) for asked in questions] == [1] * 4


def test_kept_slots_are_those_of_the_encoder(make, tmp_path):
    model = make().eval()
    texts = ["She is 34. He left. She is 34.", "He left. The river is cold."]
    plain = model.compress(texts).slots
    calls = []
    compute = type(model).encode

    def counted(self, ids, mask, rates):
        calls.append(len(ids))
        return compute(self, ids, mask, rates)

    file = tmp_path / "slots.safetensors"
    model.encode = counted.__get__(model)
    for expected in ([3], []):  # three sentences, and none of them again from the file
        calls.clear()
        with cached_slots(model, most=10, file=file):
            torch.testing.assert_close(model.compress(texts).slots, plain, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(model.compress(texts).slots, plain, rtol=1e-5, atol=1e-6)
        assert calls == expected
    calls.clear()
    with cached_slots(model, most=2):
        for _ in range(2):
            torch.testing.assert_close(model.compress(texts).slots, plain, rtol=1e-5, atol=1e-6)
    assert calls == [3, 1]
    with torch.no_grad():
        next(model.encoder.parameters()).add_(0.1)
    model._fingerprint = None
    calls.clear()
    with cached_slots(model, most=10, file=file):  # another encoder's file
        model.compress(texts)
    assert calls == [3]


def test_slots_of_an_encoder_that_is_trained_are_not_kept(make):
    model = make(train_encoder=True)
    with cached_slots(model, most=10):
        assert "encode" not in vars(model)
    with cached_slots(make(), most=0) as _:
        pass


def test_training_is_the_same_with_kept_slots_and_checks(make, tmp_path):
    rows = list(sentence_rows("train", 8, questions=2))
    weights, logs = [], []
    for kept, check in ((0, False), (100, True)):
        model = make(decoder_lora={"dropout": 0.5})
        trainer = CompressorTrainer(
            model,
            arguments(tmp_path / str(kept), cached_slots=kept),
            dataset(rows),
        )
        if check:
            trainer.add_callback(ShortcutCheck(trainer, rows[:5], every=2, batch_size=2))
        trainer.train()
        assert "encode" not in vars(model)
        weights.append({k: v.clone() for k, v in model.state_dict().items()})
        logs.append(trainer.state.log_history)
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-4, atol=1e-5, msg=name)
    checks = [entry for entry in logs[1] if "exact_match_others_memory" in entry]
    assert [entry["step"] for entry in checks] == [2]
    assert {"first_token_accuracy", "exact_match"} <= set(checks[0])
    assert [e["answer_loss"] for e in logs[0] if "answer_loss" in e] == pytest.approx(
        [e["answer_loss"] for e in logs[1] if "answer_loss" in e], rel=1e-3
    )


def test_the_check_agrees_with_generating(make, tmp_path):
    """Learned by heart, so that something is right at all."""
    rows = list(sentence_rows("train", 2, kinds=["team"], contrast=2))
    model = make(decoder_lora={"target_modules": ["q_proj", "v_proj", "down_proj"], "dropout": 0.0})
    trainer = CompressorTrainer(
        model,
        arguments(tmp_path, max_steps=120, learning_rate=0.03, per_device_train_batch_size=2),
        dataset(rows),
    )
    trainer.train()
    values = ShortcutCheck(trainer, rows, every=1).check()
    model.eval()
    shares = []
    for key in ("context", "other_context"):
        given = model.generate(
            context=[row[key] for row in rows],
            question=[row["question"][0] for row in rows],
            max_new_tokens=40,
            do_sample=False,
        )
        right = [a.strip() == row["answer"][0] for a, row in zip(given, rows, strict=True)]
        shares.append(sum(right) / len(rows))
    assert [values["exact_match"], values["exact_match_others_memory"]] == shares
    assert values["exact_match"] >= 0.5
    assert values["first_token_accuracy"] >= values["exact_match"]


def test_stages_start_anew_change_fields_and_get_new_encoders(make, folder, zoo, tmp_path):
    stages = [{"name": "a"}, {"name": "b", "after": None}, {"name": "c"}]
    assert [previous_stage(stages, name) for name in "abc"] == [None, None, "b"]
    recipe = {
        "compressor": {
            "seed": 0,
            "encoder": folder,
            "decoder": zoo.folder("llama", "decoder"),
            "config": {"pooling": "sentence", "markers": "memory"},
            "training": {
                "max_steps": 1,
                "per_device_train_batch_size": 4,
                "use_cpu": True,
                "report_to": "none",
                "completion_weight": 0.0,
                "shortcut_check_steps": 1,
                "shortcut_check_rows": 2,
            },
            "stages": [
                {
                    "name": "one",
                    "data": [{"kind": "persona_sentences", "rows": 8, "contrast": 4}],
                },
                {
                    "name": "tuned",
                    "config": {"train_encoder": True, "literals": ["numbers"]},
                    "data": [{"kind": "persona_pools", "rows": 8, "people": 3, "population": 9}],
                },
                {
                    "name": "scratch",
                    "after": None,
                    "config": {"train_encoder": True, "converter_type": "linear"},
                    "new_encoder": {"num_hidden_layers": 1},
                    "data": [{"kind": "code_snippets", "rows": 8}],
                },
            ],
        }
    }
    section = recipe["compressor"]
    assert training_arguments(section, section["stages"][0])["contrast_rows"] == 4
    run_recipe(recipe, tmp_path)
    made = {
        name: MemslotsModel.from_pretrained(tmp_path / "compressor" / name)
        for name in ("one", "tuned", "scratch")
    }
    assert [m.config.literals for m in made.values()] == [None, ["numbers"], None]
    assert [m.config.converter_type for m in made.values()] == ["mlp", "mlp", "linear"]
    assert made["one"].fingerprint == make(converter_type="mlp").fingerprint
    assert len({m.fingerprint for m in made.values()}) == 3
    layers = [m.config.encoder_config.num_hidden_layers for m in made.values()]
    assert layers[2] == 1 < layers[0] == layers[1]
    logged = json.loads((tmp_path / "compressor" / "one" / "losses.json").read_text())
    assert any("exact_match_others_memory" in entry for entry in logged)
    assert (tmp_path / "slot_cache.safetensors").is_file()
    assert made["scratch"].compress("She is 34. He left.").n_slots == (2,)


def test_stages_name_what_they_cannot_change(make):
    with pytest.raises(ValueError, match="not \\['converter_type'\\]"):
        change_stage(make(), {"name": "b", "config": {"converter_type": "mlp"}}, is_new=False)
    with pytest.raises(ValueError, match="train_encoder=True"):
        change_stage(make(), {"name": "b", "new_encoder": {}}, is_new=True)
    with pytest.raises(ValueError, match="no fields \\['layers'\\]"):
        change_stage(
            make(train_encoder=True), {"name": "b", "new_encoder": {"layers": 1}}, is_new=True
        )


def test_held_out_people_are_of_their_split():
    for row in sentence_rows("test", 10, kinds=["opening"], questions=3):
        name = dict(zip(row["fact"], row["answer"], strict=True))["name"]
        assert split_of(name) == "test"
