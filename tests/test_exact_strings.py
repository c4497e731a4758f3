"""Documents with strings to be read, and the recipe that goes on from a checkpoint with them."""

import json
import random
import re
import shutil

import pytest
import torch
from tiny_models import words
from transformers import AutoModelForCausalLM, AutoTokenizer

from lab.data.exact_strings import VALUES, exact_string_rows, places_of
from lab.recipes import lab_recipe
from lab.training.decoder_rows import DecoderRows
from lab.training.run import run_recipe
from memslots import MemslotsModel
from memslots.configuration import load_recipe
from memslots.trainer.compressor_config import recipe_fields
from memslots.trainer.plan import plan_recipe
from memslots.trainer.step_cost import Machine

BOOK = "It was late. " + words(900, seed=4)


@pytest.fixture(scope="module")
def books(tmp_path_factory):
    path = tmp_path_factory.mktemp("books") / "books.jsonl"
    path.write_text(json.dumps({"id": "1", "title": "A book", "text": words(4000)}) + "\n")
    return str(path)


@pytest.fixture(scope="module")
def start(zoo, tmp_path_factory):
    """A checkpoint that carries its decoder."""
    folder = tmp_path_factory.mktemp("start")
    zoo.compressor("llama", bundle_decoder=True).save_pretrained(folder)
    return folder


def small(start):
    recipe = lab_recipe("exact_strings", ["compressor.threads=1"])
    recipe["decoder"].update(
        checkpoint=str(start), threads=1, compile=False, tokens_per_step=512, evaluate_every=1000
    )
    recipe["decoder"]["curriculum"][0].update(steps=2, lengths={256: 1.0})
    recipe["compressor"]["checkpoint"] = str(start)
    (stage,) = recipe["compressor"]["stages"]
    stage["training"].update(
        max_steps=2,
        per_device_train_batch_size=2,
        training_rates=[8],
        questions_per_context=1,
        learning_rate=1e-3,
    )
    for source in stage["data"]:
        source["rows"] = 6
    return recipe


@pytest.fixture(scope="module")
def decoder_run(start, books, tmp_path_factory):
    """A run whose decoder has gone on training."""
    output = tmp_path_factory.mktemp("run")
    run_recipe(small(start), output, stage="decoder", books=books)
    return output


def test_every_answer_stands_in_its_document_once():
    rows = list(exact_string_rows("test", 80, seed=5, questions=5, books=[BOOK]))
    assert rows == list(exact_string_rows("test", 80, seed=5, questions=5, books=[BOOK]))
    kinds = set()
    for row in rows:
        for question, answer, fact in zip(row["question"], row["answer"], row["fact"], strict=True):
            if fact in VALUES and "secret" in question:
                kinds.add(fact)
                assert row["context"].count(f" is {answer}.") == 1
                place = re.fullmatch(r"What is the secret \w+ of the (\w+)\?", question)[1]
                assert place in places_of("test")
    assert kinds == set(VALUES)


def test_places_of_the_test_split_are_never_trained_on():
    assert not set(places_of("test")) & set(places_of("train"))
    with pytest.raises(ValueError, match=r"one of \['train', .*got 'dev'"):
        next(exact_string_rows("dev", 1))
    with pytest.raises(ValueError, match="must be 1 or more, got 0 and 4"):
        next(exact_string_rows("train", 1, most_strings=0))


def test_decoder_rows_ask_for_the_strings(start, decoder_run):
    section = small(start)["decoder"]
    section["curriculum"][0]["kinds"] = {"exact_strings": 1.0}
    tokenizer = AutoTokenizer.from_pretrained(decoder_run / "decoder")
    rows = DecoderRows({**section, "tokens_per_step": 4096}, tokenizer, [BOOK])
    section["curriculum"][0]["lengths"] = {1024: 1.0}
    step = rows[0]
    assert torch.equal(step["input_ids"], rows[0]["input_ids"])
    asked = 0
    for ids, weights in zip(step["input_ids"], step["weights"], strict=True):
        text = tokenizer.decode(ids[weights == 0])
        learned = tokenizer.decode(ids[weights >= 1])
        asked += "What is the secret" in text
        assert "What is the secret" not in learned
    assert asked


def test_a_recipe_goes_on_from_a_checkpoint(start, books, decoder_run, tmp_path):
    recipe = small(start)
    shutil.copytree(decoder_run, tmp_path, dirs_exist_ok=True)
    before = MemslotsModel.from_pretrained(start)
    (plan,) = plan_recipe({"compressor": recipe["compressor"]}, machine=Machine(1e9, 1e9))
    folder = run_recipe(recipe, tmp_path, books=books)
    after = MemslotsModel.from_pretrained(folder)

    assert plan.after == str(start)
    assert plan.frozen == sum(p.numel() for p in before.decoder.parameters())
    assert plan.trained == sum(p.numel() for p in after.parameters()) - plan.frozen
    moved = {
        name: (a - b).norm() / b.norm()
        for (name, a), (_, b) in zip(
            after.named_parameters(), before.named_parameters(), strict=True
        )
        if b.norm() > 0
    }
    # Two small steps from where the checkpoint was: both parts moved, neither was drawn anew.
    for part in ("encoder.", "decoder."):
        ours = [value for name, value in moved.items() if name.startswith(part)]
        assert 0 < max(ours) < 0.5
    trained = AutoModelForCausalLM.from_pretrained(tmp_path / "decoder")
    for ours, kept in zip(after.decoder.parameters(), trained.parameters(), strict=True):
        assert torch.equal(ours, kept)
    assert all(p.requires_grad for p in after.encoder.parameters())


def test_a_decoder_that_goes_on_training_must_fit(start, books, decoder_run, tmp_path):
    shutil.copytree(decoder_run, tmp_path, dirs_exist_ok=True)
    wide = AutoModelForCausalLM.from_pretrained(tmp_path / "decoder").config
    wide.hidden_size *= 2
    AutoModelForCausalLM.from_config(wide).save_pretrained(tmp_path / "decoder")
    with pytest.raises(ValueError, match="writes for a decoder with hidden_size"):
        run_recipe(small(start), tmp_path, stage="exact_strings", books=books)


def test_fixed_settings_do_not_go_with_a_checkpoint(start, books, decoder_run, tmp_path):
    shutil.copytree(decoder_run, tmp_path, dirs_exist_ok=True)
    recipe = small(start)
    recipe["compressor"]["stages"][0]["config"] = {"segment_length": 16}
    with pytest.raises(ValueError, match="starts from another one's weights"):
        run_recipe(recipe, tmp_path, books=books)


def test_strings_are_drawn_anew():
    values = {kind: {make(random.Random(i)) for i in range(50)} for kind, make in VALUES.items()}
    assert all(len(found) > 45 for found in values.values())


def test_any_recipe_may_go_on_from_a_compressor(start, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"text": words(60)}) + "\n")
    recipe = load_recipe("pcc_lite", [f"compressor.checkpoint={start}"], recipe_fields())
    section = recipe["compressor"]
    section["stages"] = [s for s in section["stages"] if s["name"] == "warmup"]
    section["stages"][0].update(batch_size=2, tokens=2 * 2 * 24)
    section["stages"][0]["data"] = [{"kind": "jsonl", "split": "train", "tokens": 24}]
    section["training"].update(per_device_train_batch_size=2, use_cpu=True, learning_rate=1e-4)
    section["training"]["training_rates"] = [4]
    (plan,) = plan_recipe({"compressor": recipe["compressor"]}, machine=Machine(1e9, 1e9))
    before = MemslotsModel.from_pretrained(start)
    after = MemslotsModel.from_pretrained(run_recipe(recipe, tmp_path / "run", data_dir=str(rows)))
    assert plan.after == str(start)
    assert after.config.encoder_config.to_dict() == before.config.encoder_config.to_dict()
    distance = (after.converter.up.weight - before.converter.up.weight).norm()
    assert 0 < distance < 0.1 * before.converter.up.weight.norm()
