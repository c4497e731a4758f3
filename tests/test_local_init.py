"""The tiny encoder's initial weights: every slot starts near the text that it stands for."""

import pytest
import torch
from transformers import LlamaConfig, LlamaModel

from lab.training.local_init import initialize_local


def _fresh(zoo, hidden=64, heads=8, converter=96):
    model = zoo.compressor(
        "llama",
        "llama",
        memory_positions="spread",
        compression_rates=[4, 8],
        converter_hidden_size=converter,
    )
    d_decoder = model.converter.down.out_features
    config = LlamaConfig(
        vocab_size=model.encoder.get_input_embeddings().weight.shape[0],
        hidden_size=hidden,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=16,
        rope_parameters={"rope_type": "default", "rope_theta": 100.0},
    )
    torch.manual_seed(0)
    model.encoder = LlamaModel(config)
    model.encoder.config.use_cache = False
    model.memory_tokens = torch.nn.Parameter(torch.empty(model.config.max_slots, hidden))
    model.converter = type(model.converter)(hidden, converter, d_decoder)
    rows = torch.randn(config.vocab_size, d_decoder) * 0.1
    return model, rows


def test_slots_start_as_the_mean_of_their_neighbourhood(zoo):
    model, rows = _fresh(zoo)
    initialize_local(model, rows)
    ids = torch.randint(5, rows.shape[0], (1, 24))
    slots = model.encode(ids, torch.ones_like(ids), torch.tensor([4]))
    places = [24, 12, 18, 6, 21, 9]  # ends of the stretches, in the order of the slots
    with torch.no_grad():
        vectors = model.converter(slots)
        tokens = rows[ids[0]]  # (24, d_decoder)
    gains = []
    for vector, end in zip(vectors, places, strict=True):
        likeness = torch.cosine_similarity(vector, tokens, dim=1)
        near = likeness[end - 4 : end].mean()
        far = torch.cat([likeness[: end - 4], likeness[end:]]).mean()
        gains.append((near - far).item())
    assert min(gains) > 0
    assert sum(gains) / len(gains) > 0.15


def test_the_converter_starts_as_the_identity(zoo):
    model, rows = _fresh(zoo)
    initialize_local(model, rows)
    slots = torch.randn(5, 64)
    expected = model.converter.norm(slots)[:, : rows.shape[1]] * rows.std()
    torch.testing.assert_close(
        torch.cosine_similarity(model.converter(slots), expected, dim=1),
        torch.ones(5),
        atol=0.05,
        rtol=0,
    )


def test_what_it_cannot_write_is_refused(zoo):
    model, rows = _fresh(zoo, converter=32)
    with pytest.raises(ValueError, match="converter of at least 64"):
        initialize_local(model, rows)
    model = zoo.compressor("gpt2", "llama", memory_positions="spread")
    with pytest.raises(ValueError, match="Llama encoder"):
        initialize_local(model, rows)
