"""A compressor knows the decoder that it was trained for, whatever precision it is loaded in."""

import warnings

import pytest
import torch
from test_decoder_precision import QUANTIZED, wide_decoder  # noqa: F401 a fixture
from tiny_models import SENTENCES
from transformers import AutoModelForCausalLM

from memslots import MemslotsModel
from memslots.modeling.decoders_memslots import has_other_weights, weights_sample
from memslots.trainer.adapt import adapt_to_decoder

OTHER = "has other weights than the one that this compressor was trained for"


def changed(decoder, by: float):
    """The same decoder after a little training."""
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in decoder.parameters():
            weight += by * weight.abs().mean() * torch.randn_like(weight)
    return decoder


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma4"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_another_precision_is_no_other_decoder(zoo, family, dtype):
    folder = zoo.folder(family, "decoder")
    whole = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    sample = weights_sample(whole)
    assert len(sample) == 256
    assert not has_other_weights(whole.to(dtype), sample)
    assert not has_other_weights(whole.to(torch.float32), sample)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma4"])
@pytest.mark.parametrize("by", [0.02, 1.0])
def test_other_weights_are_told_apart(zoo, family, by):
    decoder = AutoModelForCausalLM.from_pretrained(zoo.folder(family, "decoder"))
    sample = weights_sample(decoder)
    assert has_other_weights(changed(decoder, by), sample)


@pytest.mark.parametrize("layer", QUANTIZED)
def test_a_quantized_decoder_is_known_by_what_is_not_packed(wide_decoder, tmp_path, layer):  # noqa: F811
    pytest.importorskip("bitsandbytes")
    packed = {"quantization_config": QUANTIZED[layer]}
    whole = AutoModelForCausalLM.from_pretrained(wide_decoder)
    quantized = AutoModelForCausalLM.from_pretrained(wide_decoder, **packed)
    changed(AutoModelForCausalLM.from_pretrained(wide_decoder), 0.02).save_pretrained(tmp_path)
    other = AutoModelForCausalLM.from_pretrained(tmp_path, **packed)
    for sample in (weights_sample(whole), weights_sample(quantized)):
        assert not has_other_weights(whole, sample)
        assert not has_other_weights(quantized, sample)
        assert has_other_weights(other, sample)


def test_a_checkpoint_warns_of_another_decoder_and_names_both(zoo, tmp_path):
    folder = tmp_path / "llm"
    decoder = AutoModelForCausalLM.from_pretrained(zoo.folder("llama", "decoder"))
    model = MemslotsModel.from_pretrained(zoo.saved(), load_decoder=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        MemslotsModel.from_pretrained(zoo.saved(), dtype=torch.float16)
        model.attach_decoder(decoder)
    changed(decoder, 0.02).save_pretrained(folder)
    tuned = AutoModelForCausalLM.from_pretrained(folder)
    with pytest.warns(UserWarning, match=OTHER) as caught:
        model.attach_decoder(tuned)
    said = str(caught[0].message)
    assert str(folder) in said
    assert zoo.folder("llama", "decoder") in said
    # The folder that the checkpoint names holds another model by now.
    model.config.decoder_name_or_path = str(folder)
    model.save_pretrained(tmp_path / "saved")
    with pytest.warns(UserWarning, match=OTHER):
        read = MemslotsModel.from_pretrained(tmp_path / "saved")
    assert isinstance(read.generate(context=SENTENCES[0], question="Where?"), str)


def test_checkpoints_that_remember_no_decoder_say_nothing(zoo):
    model = zoo.compressor()
    model.config.decoder_fingerprint = None  # as of an earlier version
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.attach_decoder(changed(model.decoder, 1.0))


def test_an_adapted_compressor_remembers_its_new_decoder(zoo, tmp_path):
    model = zoo.compressor()
    before = model.config.decoder_fingerprint
    adapt_to_decoder(model, zoo.folder("qwen2", "decoder"))
    assert model.config.decoder_fingerprint == weights_sample(model.decoder) != before
    model.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        MemslotsModel.from_pretrained(tmp_path)
