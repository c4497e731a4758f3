"""Decoders in 4 and 8 bit, checkpointed activations, and bfloat16, through the trainer."""

import pytest
import torch
from datasets import Dataset
from test_pcc_recipes import data_dir, small  # noqa: F401 a fixture
from test_trainer import first_gradients, fresh, mixed, qa_rows, settings, weights
from tiny_models import words
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from memslots import MemslotsModel
from memslots.making import new_compressor
from memslots.trainer.compressor_trainer import CompressorTrainer
from memslots.trainer.run import _first_model, _stage_model, run_recipe

QUANTIZED = {
    "Linear4bit": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
    "Linear8bitLt": BitsAndBytesConfig(load_in_8bit=True),
}


@pytest.fixture
def wide_decoder(zoo, tmp_path):
    """A decoder that bitsandbytes holds in 4 bit as it does a large one, packed where it can."""
    tokenizer = AutoTokenizer.from_pretrained(zoo.folder("llama", "decoder"))
    config = AutoConfig.from_pretrained(zoo.folder("llama", "decoder"))
    config.hidden_size = config.intermediate_size = 256
    config.head_dim = 64
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "wide")
    tokenizer.save_pretrained(tmp_path / "wide")
    return str(tmp_path / "wide")


@pytest.mark.parametrize(("width", "inner"), [(32, 32), (96, 200), (128, 96)])
def test_a_narrow_decoder_answers_in_4_bit(zoo, tmp_path, width, inner):
    pytest.importorskip("bitsandbytes")
    config = AutoConfig.from_pretrained(zoo.folder("llama", "decoder"))
    config.hidden_size, config.intermediate_size = width, inner
    config.head_dim = width // config.num_attention_heads
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "narrow")
    tokenizer = AutoTokenizer.from_pretrained(zoo.folder("llama", "decoder"))
    tokenizer.save_pretrained(tmp_path / "narrow")
    model = new_compressor(
        zoo.folder("qwen3", "encoder"),
        str(tmp_path / "narrow"),
        decoder_kwargs={"quantization_config": QUANTIZED["Linear4bit"]},
        compression_rates=[4],
        segment_length=16,
    )
    asked = {"question": "who?", "max_new_tokens": 4}
    answer = model.generate(context=words(20), **asked)
    model.save_pretrained(tmp_path / "saved")
    loaded = MemslotsModel.from_pretrained(
        tmp_path / "saved", quantization_config=QUANTIZED["Linear4bit"]
    )
    assert "Linear4bit" in kinds(loaded.decoder)
    assert loaded.generate(context=words(20), **asked) == answer


def kinds(module):
    return {type(part).__name__ for part in module.modules()}


@pytest.mark.parametrize("layer", QUANTIZED)
def test_a_quantized_decoder_stays_as_it_is_and_lets_gradients_through(
    zoo, wide_decoder, tmp_path, layer
):
    pytest.importorskip("bitsandbytes")
    quantized = {"quantization_config": QUANTIZED[layer]}
    model = new_compressor(
        zoo.folder("qwen3", "encoder"),
        wide_decoder,
        decoder_kwargs=quantized,
        compression_rates=[4],
        segment_length=16,
    )
    assert layer in kinds(model.decoder)
    assert layer not in kinds(model.encoder)
    decoder, own = weights(model, own=False), weights(model)
    trainer = CompressorTrainer(model, settings(tmp_path / "out"), mixed())
    trainer.train()
    after = model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in decoder.items())
    for part in ("encoder.", "converter.", "memory_tokens", "markers"):
        moved = [not torch.equal(after[k], v) for k, v in own.items() if k.startswith(part)]
        assert any(moved), part

    model.save_pretrained(tmp_path / "saved")
    text = words(20)
    expected = model.eval().compress(text).slots
    for kwargs in ({}, {"decoder_kwargs": quantized}):  # one checkpoint, either decoder
        loaded = MemslotsModel.from_pretrained(tmp_path / "saved", **kwargs)
        assert (layer in kinds(loaded.decoder)) is bool(kwargs)
        assert torch.equal(loaded.compress(text).slots, expected)
        assert isinstance(loaded.generate(context=text, question="who?", max_new_tokens=2), str)


def test_every_stage_of_a_recipe_reads_the_quantized_decoder(
    zoo,
    wide_decoder,
    data_dir,  # noqa: F811
    tmp_path,
):
    pytest.importorskip("bitsandbytes")
    recipe = small("pcc_lite", zoo)
    section = recipe["compressor"]
    section["decoder"] = wide_decoder
    section["decoder_kwargs"] = {"quantization_config": {"load_in_4bit": True}}
    run_recipe(recipe, tmp_path, stage="warmup", data_dir=str(data_dir))
    stages = {stage["name"]: stage for stage in section["stages"]}
    assert "Linear4bit" in kinds(
        _stage_model(recipe, stages["pretrain"], tmp_path, _first_model).decoder
    )
    stages["adapt"]["after"] = "warmup"
    adapted = _stage_model(recipe, stages["adapt"], tmp_path, _first_model)
    assert "Linear4bit" not in kinds(adapted.decoder)  # it says how it loads its own


def test_checkpointed_activations_change_no_gradient(zoo, tmp_path):
    """Of the frozen decoder as well, whose layers run a second time in the backward pass."""
    rows, seen = qa_rows(4), {}
    fresh(zoo, tmp_path)  # made outside of what is counted
    for name, given in (("kept", {}), ("checkpointed", {"gradient_checkpointing": True})):
        forward = {}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.nn.functional, "scaled_dot_product_attention", _count(forward))
            gradients, trainer = first_gradients(zoo, tmp_path, rows, training_rates=[4], **given)
        seen[name] = gradients, forward["calls"]
        decoder = trainer.model.decoder
        assert all("forward" not in vars(layer) for layer in decoder.modules())
    (kept, once), (checkpointed, twice) = seen.values()
    assert twice == 2 * once  # the encoder's layers and the decoder's
    assert kept.keys() == checkpointed.keys()
    for name, gradient in kept.items():
        torch.testing.assert_close(checkpointed[name], gradient, atol=1e-6, rtol=1e-5)


def _count(forward):
    attention = torch.nn.functional.scaled_dot_product_attention

    def counted(*args, **kwargs):
        forward["calls"] = forward.get("calls", 0) + 1
        return attention(*args, **kwargs)

    return counted


def test_bfloat16_trains(zoo, tmp_path):
    model = fresh(zoo, tmp_path)
    own = weights(model)
    args = settings(tmp_path / "out", bf16=True, training_rates=[4], gradient_checkpointing=True)
    trainer = CompressorTrainer(model, args, Dataset.from_list(qa_rows(8)))
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 2
    assert all(0 < float(loss) < 50 for loss in losses)
    after = model.state_dict()
    assert all(tensor.dtype == after[name].dtype == torch.float32 for name, tensor in own.items())
    assert any(not torch.equal(after[name], tensor) for name, tensor in own.items())
