"""Every family as encoder and as decoder: what holds for one architecture holds for all."""

import pytest
import torch
from safetensors import safe_open
from tiny_models import DECODERS, QUESTIONS, TEXTS
from transformers import AutoModel, AutoModelForCausalLM

from memslots import MemslotsModel

# Each decoder once, each encoder twice.
PAIRS = [
    ("gpt2", "llama"),
    ("bert", "qwen2"),
    ("llama", "qwen3"),
    ("qwen3", "mistral"),
    ("gpt2", "gemma3"),
    ("llama", "gemma4"),
    ("bert", "phi3"),
    ("llama", "gpt2"),
    ("qwen3", "gpt_neox"),
]
GREEDY = {"max_new_tokens": 6, "do_sample": False}


@pytest.fixture(params=PAIRS, ids=lambda pair: f"{pair[0]}-to-{pair[1]}", scope="module")
def pair(request):
    return request.param


@pytest.fixture(scope="module")
def compressor(zoo, pair):
    return zoo.shared(*pair)


def test_every_decoder_family_is_covered():
    assert {decoder for _, decoder in PAIRS} == set(DECODERS)


def test_creation_leaves_both_models_as_they_were(zoo, pair, compressor):
    encoder, decoder = pair
    before = AutoModel.from_pretrained(zoo.folder(encoder, "encoder")).state_dict()
    after = compressor.encoder.state_dict()
    assert {key for key in before if not key.startswith("pooler")} == set(after)
    for key, value in after.items():
        assert torch.equal(value, before[key]), key
    before = AutoModelForCausalLM.from_pretrained(zoo.folder(decoder, "decoder")).state_dict()
    after = compressor.decoder.state_dict()
    assert set(before) == set(after)
    for key, value in after.items():
        assert torch.equal(value, before[key]), key
    assert not any(p.requires_grad for p in compressor.decoder.parameters())


def test_causality_is_probed(pair, compressor):
    assert compressor.config.encoder_is_causal == (pair[0] != "bert")


def test_batched_compress_equals_one_by_one(compressor):
    together = compressor.compress(TEXTS)
    for i, text in enumerate(TEXTS):
        alone = compressor.compress(text)
        assert together[i].segments == alone.segments
        torch.testing.assert_close(together[i].slots, alone.slots, rtol=1e-4, atol=1e-5)


def test_slots_depend_on_the_text(compressor):
    first = compressor.compress("The treaty was signed in Lagos.").slots
    other = compressor.compress("The treaty was signed in March.").slots
    assert (first[-1] - other[-1]).abs().max() > 1e-3


def test_batched_generate_equals_one_by_one(compressor):
    together = compressor.generate(context=TEXTS, question=QUESTIONS, **GREEDY)
    alone = [
        compressor.generate(context=text, question=question, **GREEDY)
        for text, question in zip(TEXTS, QUESTIONS, strict=True)
    ]
    assert together == alone
    assert len(set(alone)) > 1  # answers that are all alike would prove nothing


def test_padding_side_changes_no_loss(compressor):
    losses = []
    for side in ("left", "right"):
        inputs = compressor.processor(
            TEXTS, QUESTIONS, ["Lagos", "no", "it rained"], rate=4, padding_side=side
        )
        with torch.no_grad():
            losses.append(compressor(**inputs).loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_saved_equals_loaded(zoo, pair, compressor):
    folder = zoo.saved(*pair)
    loaded = MemslotsModel.from_pretrained(folder)
    assert loaded.fingerprint == compressor.fingerprint
    loaded._fingerprint = None  # computed from what was loaded, not taken from the config
    assert loaded.fingerprint == compressor.fingerprint
    assert torch.equal(loaded.compress(TEXTS).slots, compressor.compress(TEXTS).slots)
    arguments = {"context": TEXTS[1], "question": QUESTIONS, **GREEDY}
    assert loaded.generate(**arguments) == compressor.generate(**arguments)
    assert not loaded.training


def test_checkpoint_holds_no_decoder_weights(zoo, pair, compressor):
    with safe_open(f"{zoo.saved(*pair)}/model.safetensors", "pt") as file:
        keys = set(file.keys())
    assert {key.split(".")[0] for key in keys} == {
        "encoder",
        "memory_tokens",
        "converter",
        "markers",
    }
    assert not any("lm_head" in key or "embed_out" in key for key in keys)
