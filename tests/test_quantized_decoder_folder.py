"""Decoders that are quantised on disk or on loading, and checkpoints cast to another precision."""

import pytest
import torch
from test_decoder_precision import QUANTIZED, kinds, wide_decoder  # noqa: F401 a fixture
from tiny_models import words
from transformers import AutoModelForCausalLM, AutoTokenizer

from memslots import MemslotsModel
from memslots.making import new_compressor

SETTINGS = {"compression_rates": [4], "segment_length": 16}
TEXT = words(20)


@pytest.fixture(params=QUANTIZED)
def quantized(request, wide_decoder, tmp_path):  # noqa: F811
    """The name of a layer, and a decoder's folder that transformers saved with such layers."""
    pytest.importorskip("bitsandbytes")
    AutoModelForCausalLM.from_pretrained(
        wide_decoder, quantization_config=QUANTIZED[request.param]
    ).save_pretrained(tmp_path / "quantized")
    AutoTokenizer.from_pretrained(wide_decoder).save_pretrained(tmp_path / "quantized")
    return request.param, tmp_path / "quantized"


def test_a_decoder_that_was_saved_quantized_is_loaded_again(zoo, quantized, tmp_path):
    layer, decoder = quantized
    model = new_compressor(zoo.folder("qwen3", "encoder"), decoder, **SETTINGS)
    assert layer in kinds(model.decoder)
    answer = model.generate(context=TEXT, question="who?", max_new_tokens=4)
    model.save_pretrained(tmp_path / "saved")
    # What a checkpoint says that was made before its decoder's configuration was kept plain.
    older = type(model.config).from_pretrained(tmp_path / "saved")
    older.decoder_config.quantization_config = model.decoder.config.quantization_config
    older.save_pretrained(tmp_path / "saved")
    loaded = MemslotsModel.from_pretrained(tmp_path / "saved")
    assert layer in kinds(loaded.decoder)
    assert layer not in kinds(loaded.encoder)
    assert torch.equal(loaded.compress(TEXT).slots, model.compress(TEXT).slots)
    assert loaded.generate(context=TEXT, question="who?", max_new_tokens=4) == answer


def test_quantization_on_loading_is_the_decoders(zoo, wide_decoder, tmp_path):  # noqa: F811
    pytest.importorskip("bitsandbytes")
    model = new_compressor(wide_decoder, wide_decoder, **SETTINGS)
    model.save_pretrained(tmp_path / "saved")
    for layer, how in QUANTIZED.items():
        loaded = MemslotsModel.from_pretrained(tmp_path / "saved", quantization_config=how)
        assert layer in kinds(loaded.decoder)
        assert layer not in kinds(loaded.encoder)
        assert torch.equal(loaded.compress(TEXT).slots, model.compress(TEXT).slots)
        assert isinstance(loaded.generate(context=TEXT, question="who?", max_new_tokens=2), str)


def test_a_bundled_decoder_is_not_quantized_on_loading(zoo, wide_decoder, tmp_path):  # noqa: F811
    model = new_compressor(
        zoo.folder("qwen3", "encoder"), wide_decoder, bundle_decoder=True, **SETTINGS
    )
    model.save_pretrained(tmp_path / "saved")
    with pytest.raises(ValueError, match="quantization_config.*bundled"):
        MemslotsModel.from_pretrained(
            tmp_path / "saved", quantization_config=QUANTIZED["Linear4bit"]
        )


def test_a_quantized_decoder_is_not_bundled(zoo, quantized, tmp_path):
    _, decoder = quantized
    model = new_compressor(zoo.folder("qwen3", "encoder"), decoder, **SETTINGS)
    model.config.bundle_decoder = True
    with pytest.raises(ValueError, match="quantized decoder.*bundle_decoder = False"):
        model.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_cast_model_takes_its_memory_until_a_weight_changes(zoo, tmp_path, dtype):
    made = new_compressor(zoo.folder("qwen3", "encoder"), zoo.folder("llama", "decoder"), **SETTINGS)
    made.save_pretrained(tmp_path / "saved")
    model = MemslotsModel.from_pretrained(tmp_path / "saved", dtype=dtype)
    memory = model.compress(TEXT)
    for _ in range(2):
        model.train().eval()
        model.check_memory(memory)
    model.check_memory(made.compress(TEXT))
    weight = next(model.encoder.parameters())
    model.train()
    weight.data += 1  # as a fused optimizer: no version counts it
    model.eval()
    with pytest.raises(ValueError, match="this memory was written by compressor"):
        model.check_memory(memory)


@pytest.mark.parametrize("loaded_before", [False, True])
def test_a_saved_cast_states_the_fingerprint_of_its_weights(zoo, tmp_path, loaded_before):
    model = new_compressor(zoo.folder("qwen3", "encoder"), zoo.folder("llama", "decoder"), **SETTINGS)
    if loaded_before:
        model.save_pretrained(tmp_path / "whole")
        model = MemslotsModel.from_pretrained(tmp_path / "whole")
    whole = model.fingerprint
    model.to(torch.float16).save_pretrained(tmp_path / "half")
    loaded = MemslotsModel.from_pretrained(tmp_path / "half", dtype=torch.float16)
    assert loaded.config.fingerprint == loaded.fingerprint_of(loaded.state_dict()) != whole
    assert loaded.fingerprint == model.fingerprint
    loaded.check_memory(model.compress(TEXT))


def test_a_model_that_loading_cast_saves_the_fingerprint_of_its_weights(zoo, tmp_path):
    made = new_compressor(zoo.folder("qwen3", "encoder"), zoo.folder("llama", "decoder"), **SETTINGS)
    made.save_pretrained(tmp_path / "whole")
    MemslotsModel.from_pretrained(tmp_path / "whole", dtype=torch.float16).save_pretrained(
        tmp_path / "half"
    )
    loaded = MemslotsModel.from_pretrained(tmp_path / "half", dtype=torch.float16)
    assert loaded.config.fingerprint == loaded.fingerprint_of(loaded.state_dict())


def test_a_shared_encoder_that_is_quantized_has_another_fingerprint(zoo, wide_decoder, tmp_path):  # noqa: F811
    pytest.importorskip("bitsandbytes")
    model = new_compressor(
        "decoder", wide_decoder, encoder_layers=1, encoder_lora={"r": 2}, **SETTINGS
    )
    model.save_pretrained(tmp_path / "saved")
    how = QUANTIZED["Linear4bit"]
    loaded = MemslotsModel.from_pretrained(tmp_path / "saved", quantization_config=how)
    with pytest.raises(ValueError, match="this memory was written by compressor"):
        loaded.check_memory(model.compress(TEXT))
    loaded.check_memory(loaded.compress(TEXT))
    loaded.save_pretrained(tmp_path / "quantized")
    again = MemslotsModel.from_pretrained(tmp_path / "quantized", quantization_config=how)
    again.check_memory(loaded.compress(TEXT))


def test_a_quantized_encoder_is_not_saved(zoo, wide_decoder, tmp_path):  # noqa: F811
    pytest.importorskip("bitsandbytes")
    model = new_compressor(
        wide_decoder,
        wide_decoder,
        encoder_kwargs={"quantization_config": QUANTIZED["Linear8bitLt"]},
        **SETTINGS,
    )
    with pytest.raises(ValueError, match="quantized encoder"):
        model.save_pretrained(tmp_path / "saved")


def test_new_compressors_quantization_is_the_decoders(zoo, wide_decoder):  # noqa: F811
    pytest.importorskip("bitsandbytes")
    model = new_compressor(
        wide_decoder, wide_decoder, quantization_config=QUANTIZED["Linear4bit"], **SETTINGS
    )
    assert "Linear4bit" in kinds(model.decoder)
    assert "Linear4bit" not in kinds(model.encoder)
    assert not hasattr(model.config, "quantization_config")


def test_a_gguf_decoder_is_loaded_again(zoo, tmp_path):
    gguf = pytest.importorskip("gguf")
    llm = AutoModelForCausalLM.from_pretrained(zoo.folder("llama", "decoder"))
    _write_gguf(gguf, llm, tmp_path / "models" / "small.gguf", zoo.folder("llama", "decoder"))
