"""`memslots plan`: cache sizes against the real caches, and the blog post's own table."""

import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from memslots.cli import main
from memslots.cli.plan import gigabytes
from memslots.serving.serving_cost import (
    HOURS_A_MONTH,
    Demand,
    cache_bytes,
    cached_layers,
    count_decoder,
    fleet,
    plan_serving,
    prefill_operations,
)

SHAPE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 16,
}
CONFIGS = {
    "llama": {"num_key_value_heads": 2},
    "gpt2": {},
    "gpt_neox": {},
    "phi3": {"num_key_value_heads": 2, "pad_token_id": 0},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 16},
    "mistral": {"num_key_value_heads": 2, "sliding_window": 6},
    "gemma3_text": {
        "num_key_value_heads": 2,
        "head_dim": 16,
        "sliding_window": 6,
        "layer_types": ["sliding_attention"] * 3 + ["full_attention"],
    },
    "gemma4_text": {
        "num_key_value_heads": 2,
        "num_global_key_value_heads": 1,
        "attention_k_eq_v": True,
        "head_dim": 8,
        "global_head_dim": 16,
        "sliding_window": 6,
        "hidden_size_per_layer_input": 0,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
    "falcon": {"multi_query": True, "new_decoder_architecture": False},
    "mixtral": {
        "num_key_value_heads": 2,
        "num_local_experts": 4,
        "num_experts_per_tok": 1,
        "sliding_window": None,
    },
}


def small(kind: str, **more):
    return AutoConfig.for_model(kind, **{**SHAPE, **CONFIGS.get(kind, {}), **more})


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("tokens", [3, 11])
def test_cache_bytes_are_those_of_the_real_cache(kind, tokens):
    config = small(kind)
    model = AutoModelForCausalLM.from_config(config).eval()
    cache = DynamicCache(config=config)
    with torch.no_grad():
        model(input_ids=torch.arange(tokens).unsqueeze(0), past_key_values=cache, use_cache=True)
    real = sum(layer.keys.numel() + layer.values.numel() for layer in cache.layers)
    # transformers keeps one token less than a window, which the next token would push out.
    missing = sum(
        layer.numbers
        for layer in cached_layers(config)
        if layer.window is not None and tokens >= layer.window
    )
    assert cache_bytes(cached_layers(config), tokens) == 2 * (real + missing)
    assert cache_bytes(cached_layers(config), tokens, bits=8) == real + missing


def test_layers_that_share_a_cache_count_once():
    shared = small("gemma4_text", num_kv_shared_layers=2)
    assert len(cached_layers(shared)) == 2
    assert len(cached_layers(small("gemma4_text"))) == 4


@pytest.mark.parametrize(
    ("kind", "message"),
    [("mamba", "cannot count"), ("deepseek_v3", r"latent keys and values \(MLA\)")],
)
def test_other_attention_is_refused_by_name(kind, message):
    with pytest.raises(ValueError, match=message):
        cached_layers(AutoConfig.for_model(kind, num_hidden_layers=2))


def test_parameters_are_the_models_and_experts_count_by_use():
    config = small("mixtral")
    model = AutoModelForCausalLM.from_config(config)
    total, active = count_decoder(config)
    experts = sum(p.numel() for name, p in model.named_parameters() if ".experts." in name)
    assert total == sum(p.numel() for p in model.parameters())
    assert total - active == experts * 3 / 4
    dense = count_decoder(small("llama"))
    assert dense[0] == dense[1]


def test_known_models_by_hand():
    """Llama 3.1 8B: 32 layers * 2 * 8 heads * 128 numbers * 2 bytes = 131,072 bytes a token."""
    llama = AutoConfig.for_model(
        "llama",
        hidden_size=4096,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        intermediate_size=14336,
        vocab_size=128256,
        max_position_embeddings=131072,
    )
    found = plan_serving(llama, Demand(tokens=10_000, rate=10, users=1000, question_tokens=1))
    assert found.cache_bytes_per_token == found.cache_bytes_per_late_token == 131_072
    assert found.parameters == 8_030_261_248
    assert found.slots == 1000
    assert found.slot_bytes == 1000 * 4096 * 2
    assert found.plain.bytes_per_user == 10_001 * 131_072
    # 72 GB usable less 16.06 GB of weights: 42 users of 1.311 GB; of slots ten times as many.
    assert found.plain.users_per_gpu == 42
    assert found.compressed.users_per_gpu == 426
    assert (found.plain.gpus, found.compressed.gpus) == (24, 3)
    assert found.plain.dollars_a_month == pytest.approx(24 * 2.7 * 730)


def test_the_blog_posts_own_table():
    """Its figures follow from each other; what does not follow from the decoder is said below."""
    free = 60e9  # what its 40 users of 1.5 GB leave of an 80 GB GPU to the weights: 20 GB
    price = 490_000 / (250 * HOURS_A_MONTH)
    assert price == pytest.approx(2.685, abs=0.001)  # dollars an hour, not given there
    plain = fleet(10_000, 1.5e9, 0, 10_000, free, price, 0.5)
    pools = fleet(1_000, 150e6, 0, 10_000, free, price, 0.05)
    assert (plain.users_per_gpu, pools.users_per_gpu) == (40, 400)
    assert (plain.gpus, pools.gpus) == (250, 25)
    assert plain.dollars_a_month == pytest.approx(490_000)
    assert pools.dollars_a_month == pytest.approx(49_000)


def test_where_the_blog_posts_rounding_is_loose():
    # 1. 31B weights in 16 bit are 62 GB: 12 users fit beside them, not 40. 20 GB are 5 bits each.
    assert fleet(10_000, 1.5e9, 62e9, 10_000, 80e9, 2.685, 0.5).users_per_gpu == 12
    bits = 20e9 * 8 / 31e9
    assert bits == pytest.approx(5.2, abs=0.1)
    # 2. A tenth of the tokens is a tenth of the cache only where no layer has a window: with five
    # of six layers at 1,024 tokens, those are full before and after.
    layers = cached_layers(
        small(
            "gemma3_text",
            num_hidden_layers=6,
            sliding_window=1024,
            layer_types=["sliding_attention"] * 5 + ["full_attention"],
        )
    )
    assert 2.4 < cache_bytes(layers, 10_000) / cache_bytes(layers, 1_000) < 2.6
    # 3. The first token's tenth leaves out the question, and that attention's part is quadratic.
    config = small("llama")
    layers = cached_layers(config)
    parameters, _ = count_decoder(config)
    long, short = (prefill_operations(config, parameters, layers, n) for n in (10_000, 1_000))
    assert long / short > 10
    with_question = prefill_operations(config, parameters, layers, 1_064)
    assert with_question > 1.06 * short


def test_a_decoder_larger_than_a_gpu_takes_several():
    found = fleet(1000, 1e9, 140e9, 100, 72e9, 2.0, 0.1)
    assert found.gpus_per_copy == 2
    assert found.users_per_gpu == 2  # 4 GB of the two are free
    assert found.gpus == 50


def test_prefill_operations_of_windows_and_triangles():
    config = small("llama")
    full = cached_layers(config)
    base = prefill_operations(config, SHAPE["vocab_size"] * 32, full, 10)  # no weights counted
    assert base == 4 * 4 * 32 * 55
    windowed = cached_layers(small("mistral"))
    assert prefill_operations(config, SHAPE["vocab_size"] * 32, windowed, 10) == 4 * 4 * 32 * (
        21 + 4 * 6
    )


def test_the_command(zoo, tmp_path, capsys):
    folder = zoo.folder("llama", "decoder")
    command = ["plan", "--decoder", folder, "--tokens", "400", "--rate", "4", "--users", "50"]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "dollars a month" in shown
    assert main([*command, "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["slots"] == 100
    assert values["demand"]["users"] == 50
    assert values["plain"]["bytes_per_user"] > 3 * values["compressed"]["bytes_per_user"] / 2
    assert values["fits_as_text"]
    for arguments, message in (
        (["--rate", "0.5"], "--rate 0.5 must be at least 1"),
        (["--gpu-memory", "0"], "--gpu-memory 0.0 must be greater than 0"),
        (["--gpu-price", "-1"], "--gpu-price -1.0 must be greater than 0"),
        (["--decoder", "nosuch"], "the decoder 'nosuch' is not a folder here"),
        (["--tokens", "4000"], "more than the 512 tokens"),
    ):
        assert main([*command, *arguments]) == 2
        assert message in capsys.readouterr().err


def test_the_command_plans_for_the_decoder_of_a_checkpoint(zoo, capsys, monkeypatch):
    """Without a word about the checkpoint's code, which is not run."""
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked to run code"))
    values = []
    for folder in (zoo.saved(), zoo.folder("llama", "decoder")):
        assert main(["plan", "--decoder", str(folder), "--tokens", "400", "--json"]) == 0
        values.append(json.loads(capsys.readouterr().out)["plain"])
    assert values[0] == values[1]


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ("80", 80.0),
        ("80GB", 80.0),
        ("80gb", 80.0),
        ("80G", 80.0),
        ("80Gi", 85.89934592),
        ("80 GiB", 85.89934592),
        ("81920MiB", 85.89934592),
    ],
)
def test_gpu_memory_takes_the_units_that_people_write(size, expected):
    assert gigabytes(size) == pytest.approx(expected)


@pytest.mark.parametrize("size", ["", "much", "80gigs", "1.2.3GB"])
def test_gpu_memory_of_no_known_unit_says_what_to_give(size):
    with pytest.raises(ValueError, match="80GB or 80GiB"):
        gigabytes(size)
