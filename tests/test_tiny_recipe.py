"""The tiny recipe from start to end, a few steps of each stage on a book of its own."""

import json
import random

import pytest
from tiny_models import words

from lab.recipes import lab_recipe
from lab.training.run import run_recipe
from memslots import MemslotsModel
from memslots.trainer.run import install_checkpoint

SMALL = [
    "tokenizer.vocab_size=700",
    "tokenizer.persona_texts=60",
    "encoder_tokenizer.vocab_size=720",
    "encoder_tokenizer.persona_texts=60",
    "decoder.threads=1",
    "decoder.compile=false",
    "decoder.model.hidden_size=32",
    "decoder.model.intermediate_size=32",
    "decoder.model.num_attention_heads=2",
    "decoder.model.num_key_value_heads=2",
    "decoder.tokens_per_step=512",
    "decoder.evaluate_every=1000",
    "compressor.threads=1",
    "compressor.encoder.hidden_size=64",
    "compressor.encoder.intermediate_size=32",
    "compressor.encoder.num_attention_heads=8",
    "compressor.encoder.num_key_value_heads=8",
    "compressor.encoder.head_dim=16",
    "compressor.training.per_device_train_batch_size=2",
]


@pytest.fixture(scope="module")
def recipe():
    recipe = lab_recipe("tiny", SMALL)
    for stage in recipe["decoder"]["curriculum"]:
        stage["steps"] = 1
        stage["lengths"] = {256: 1.0}
    # Every kind of row, whatever the shares are.
    kinds = {kind for stage in recipe["decoder"]["curriculum"] for kind in stage["kinds"]}
    for stage in recipe["decoder"]["curriculum"]:
        stage["kinds"] = dict.fromkeys(sorted(kinds), 1.0)
    for stage in recipe["compressor"]["stages"]:
        stage["training"]["max_steps"] = 2
        for source in stage["data"]:
            source["rows"] = 6
    return recipe


def test_every_stage_runs_and_what_is_done_is_not_run_again(recipe, tmp_path):
    rng = random.Random(0)
    book = {"id": "1", "title": "A book", "text": words(4000, rng.randrange(100))}
    books = tmp_path / "books.jsonl"
    books.write_text(json.dumps(book) + "\n")
    output = tmp_path / "run"

    last = run_recipe(recipe, output, books=str(books))

    assert last.name == recipe["compressor"]["stages"][-1]["name"]
    model = MemslotsModel.from_pretrained(last)
    assert model.encoder.config.hidden_size == 64
    assert model.decoder.config.hidden_size == 32
    assert isinstance(model.generate(context="Ada Bell is 49.", question="How old?"), str)
    weights = [path for path in output.rglob("model.safetensors") if "encoder" not in path.parts]
    before = {path: path.stat().st_mtime_ns for path in weights}
    assert run_recipe(recipe, output, books=str(books)) == last
    assert {path: path.stat().st_mtime_ns for path in weights} == before

    (tmp_path / "installed").mkdir()
    (tmp_path / "installed" / "README.md").write_text("card")
    install_checkpoint(last, tmp_path / "installed")
    assert (tmp_path / "installed" / "README.md").read_text() == "card"
    installed = MemslotsModel.from_pretrained(tmp_path / "installed")
    assert installed.fingerprint == model.fingerprint
