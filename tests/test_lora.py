"""LoRA encoders (PCC-Large): the checkpoint holds the adapter, the base loads by reference."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_remote_code import run_isolated
from tiny_models import QUESTIONS, TEXTS

from memslots import MemslotsModel
from memslots.making import merge_encoder, new_compressor

pytest.importorskip("peft")
pytestmark = pytest.mark.timeout(900)  # other processes import transformers

LORA = {"r": 4, "alpha": 8, "dropout": 0.5, "target_modules": ["q_proj", "v_proj"]}


@pytest.fixture(scope="module")
def lora(zoo) -> MemslotsModel:
    """A LoRA compressor whose adapter is not zero."""
    model = zoo.compressor("llama", "llama", encoder_lora=LORA)
    for name, parameter in model.encoder.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    return model


@pytest.fixture(scope="module")
def folder(lora, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("lora")
    lora.save_pretrained(folder)
    return folder


def test_only_the_adapter_trains(lora):
    trained = {name for name, p in lora.named_parameters() if p.requires_grad}
    encoder = {name for name in trained if name.startswith("encoder.")}
    assert encoder
    assert all(".lora_" in name for name in encoder)
    assert {name.split(".")[0] for name in trained - encoder} == {
        "memory_tokens",
        "converter",
        "markers",
    }


def test_adapter_gets_a_gradient_and_its_base_none(zoo):
    model = zoo.compressor("llama", "llama", encoder_lora={**LORA, "dropout": 0.0})
    model.train()
    model(**model.processor(TEXTS, QUESTIONS, ["yes", "no", "it rained"])).loss.backward()
    for name, parameter in model.encoder.named_parameters():
        if "lora_B" in name:
            assert parameter.grad.abs().sum() > 0, name
        elif ".lora_" not in name:
            assert parameter.grad is None, name


def test_checkpoint_holds_the_adapter_only(folder):
    with safe_open(folder / "model.safetensors", "pt") as file:
        keys = set(file.keys())
    encoder = {key for key in keys if key.startswith("encoder.")}
    assert encoder
    assert all(".lora_" in key for key in encoder)
    assert not any(key.startswith("decoder.") for key in keys)
    assert not (folder / "adapter_config.json").exists()


def test_saved_equals_loaded(lora, folder, tmp_path):
    loaded = MemslotsModel.from_pretrained(folder)
    assert torch.equal(loaded.compress(TEXTS).slots, lora.compress(TEXTS).slots)
    loaded._fingerprint = None
    assert loaded.fingerprint == lora.fingerprint
    trained = {name for name, p in loaded.named_parameters() if p.requires_grad}
    assert trained == {name for name, p in lora.named_parameters() if p.requires_grad}
    loaded.save_pretrained(tmp_path)
    again = MemslotsModel.from_pretrained(tmp_path)
    assert torch.equal(again.compress(TEXTS).slots, lora.compress(TEXTS).slots)


def test_adapter_changes_the_slots(lora, zoo):
    plain = zoo.compressor("llama", "llama")
    assert (plain.compress(TEXTS).slots - lora.compress(TEXTS).slots).abs().max() > 1e-2


def test_missing_adapter_weight_is_an_error(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "c")
    weights = load_file(folder / "model.safetensors")
    lost = next(key for key in weights if ".lora_A" in key)
    del weights[lost]
    save_file(weights, tmp_path / "c" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"lacks 1 weights.*{lost}"):
        MemslotsModel.from_pretrained(tmp_path / "c")


PEFTLESS = """
import sys
import torch
from transformers import AutoModel
adapter, merged, text = sys.argv[1:]
model = AutoModel.from_pretrained(merged, trust_remote_code=True, load_decoder=False)
torch.save(model.compress(text).slots, "slots.pt")
try:
    AutoModel.from_pretrained(adapter, trust_remote_code=True)
except ImportError as error:
    print(f"RESULT{error}")
"""


def test_merged_needs_no_peft_and_the_adapter_says_that_it_does(folder, lora, tmp_path):
    merged = MemslotsModel.from_pretrained(folder)
    before = merged.fingerprint
    assert merge_encoder(merged) is merged
    assert merged.config.encoder_lora is None
    assert merged.fingerprint != before
    expected = lora.compress(TEXTS[1]).slots
    torch.testing.assert_close(merged.compress(TEXTS[1]).slots, expected, rtol=1e-3, atol=1e-4)
    assert all(p.requires_grad for p in merged.encoder.parameters())
    merged.save_pretrained(tmp_path / "merged")
    with safe_open(tmp_path / "merged" / "model.safetensors", "pt") as file:
        assert not any("lora" in key or "base_layer" in key for key in file.keys())  # noqa: SIM118
    run = run_isolated(PEFTLESS, str(folder), str(tmp_path / "merged"), TEXTS[1], cwd=tmp_path)
    assert run.returncode == 0, run.stderr[-3000:]
    assert "needs peft: pip install peft" in run.stdout.partition("RESULT")[2]
    slots = torch.load(tmp_path / "slots.pt", weights_only=True)
    torch.testing.assert_close(slots, expected, rtol=1e-3, atol=1e-4)


def test_defaults_are_those_of_pcc_large(zoo):
    model = zoo.compressor("llama", "llama", encoder_lora={})
    assert model.config.encoder_lora["r"] == 64
    assert model.config.encoder_lora["alpha"] == 32


def test_lora_mistakes(zoo):
    with pytest.raises(ValueError, match=r"unknown keys \['rank'\]; allowed are \['alpha'"):
        zoo.compressor("llama", "llama", encoder_lora={"rank": 4})
    decoder = zoo.folder("llama", "decoder")
    for encoder in (zoo.folder("llama", "encoder"), "decoder"):
        for some in (["nothing_proj"], ["q_proj", "nothing_proj"]):
            with pytest.raises(ValueError, match=r"no layers named \['nothing_proj'\]; .*'v_proj'"):
                new_compressor(encoder, decoder, encoder_lora={**LORA, "target_modules": some})
