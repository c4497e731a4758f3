"""The lab's converters with a latent, and its pools: last state, smallest, attention."""

import math

import pytest
import torch
from datasets import Dataset
from tiny_models import LONG, QUESTIONS, TEXTS, words

from lab.capacity import pools
from lab.capacity.latent_converters import SlotNorm, divergence
from memslots.modeling import Memory, MemslotsConfig, MemslotsModel
from memslots.trainer import CompressorConfig, CompressorTrainer

GREEDY = {"max_new_tokens": 5}
KINDS = {
    "ae": {"converter_type": "autoencoder"},
    "ae-4-reg": {
        "converter_type": "autoencoder",
        "converter_layers": 4,
        "converter_regularization": True,
    },
    "vae": {"converter_type": "vae", "latent_size": 10},
    "vae-1-reg": {"converter_type": "vae", "converter_regularization": True},
    "vae-4": {"converter_type": "vae", "converter_layers": 4, "converter_hidden_size": 20},
}


def settings(folder, **given) -> CompressorConfig:
    return CompressorConfig(
        output_dir=str(folder), max_steps=2, per_device_train_batch_size=4, learning_rate=0.01,
        report_to="none", use_cpu=True, save_strategy="no", logging_steps=1, completion_weight=0.0,
        **given,
    )  # fmt: skip


def rows(n: int = 8) -> Dataset:
    return Dataset.from_list([{"text": words(20, seed)} for seed in range(n)])


def reference(model: MemslotsModel, slots: torch.Tensor) -> torch.Tensor:
    """The converter in evaluation, written out."""
    made = model.converter
    weights = made.state_dict()
    values = slots / torch.sqrt((slots**2).mean(dim=1, keepdim=True) + 1e-6)
    values = values * weights["norm.weight"] @ made.to_latent.weight.T + made.to_latent.bias
    norm = getattr(model.config, "converter_regularization", False)
    names = sorted({key.split(".")[1] for key in weights if key.startswith("hidden.")}, key=int)
    for name in names:
        weight = weights[f"hidden.{name}.weight"]
        if weight.dim() == 2:
            values = values @ weight.T + weights[f"hidden.{name}.bias"]
            values = values if norm else values.relu()
            continue
        variance = weights[f"hidden.{name}.running_var"] + 1e-5
        values = (values - weights[f"hidden.{name}.running_mean"]) / variance.sqrt()
        values = values * weight + weights[f"hidden.{name}.bias"]
        values = values.relu() if getattr(model.config, "converter_layers", 1) > 1 else values
    return values @ made.down.weight.T + made.down.bias


@pytest.mark.parametrize("kind", KINDS)
def test_it_computes_what_it_says_and_survives_saving(zoo, kind, tmp_path):
    model = zoo.compressor(**KINDS[kind], compression_rates=[8])
    layers = KINDS[kind].get("converter_layers", 1)
    linear = [part for part in model.converter.hidden if isinstance(part, torch.nn.Linear)]
    assert len(linear) == layers - 1
    CompressorTrainer(model, settings(tmp_path / "run"), rows()).train()
    model.eval()
    memory = model.compress([*TEXTS, LONG])
    with torch.no_grad():
        torch.testing.assert_close(
            model.converter(memory.slots), reference(model, memory.slots), rtol=1e-4, atol=1e-5
        )
    answers = model.generate(memory=memory, question=QUESTIONS[0], **GREEDY)
    alone = [model.generate(memory=one, question=QUESTIONS[0], **GREEDY) for one in memory]
    assert answers == alone
    model.save_pretrained(tmp_path / "model")
    again = MemslotsModel.from_pretrained(tmp_path / "model")
    for name, value in model.converter.state_dict().items():
        assert torch.equal(value, again.converter.state_dict()[name]), name
    assert again.generate(memory=memory, question=QUESTIONS[0], **GREEDY) == answers


@pytest.mark.parametrize("kind", KINDS)
def test_new_outputs_have_the_embeddings_scale(zoo, kind):
    model = zoo.compressor(**KINDS[kind])
    torch.nn.init.zeros_(model.converter.down.bias)
    scale = model.decoder.get_input_embeddings().weight.std()
    slots = torch.randn(4000, model.config.slot_size)
    spread = model.converter.train()(slots).std()
    # A vae's noise, as large as its mean at first, adds half as much again.
    assert 0.7 * scale < spread < 1.6 * scale


def test_it_samples_while_training_and_nowhere_else(zoo):
    model = zoo.compressor(**KINDS["vae"])
    batch = model.processor(TEXTS, QUESTIONS, ["a", "b", "c"])
    with torch.no_grad():
        torch.manual_seed(0)
        model.train()
        first, second = model(**batch), model(**batch)
        assert first.loss != second.loss  # another draw
        model.eval()
        third, fourth = model(**batch), model(**batch)
        assert third.loss == fourth.loss
    # A model in training mode answers as in evaluation.
    memory = model.compress(TEXTS)
    answers = model.generate(memory=memory, question=QUESTIONS[0], **GREEDY)
    model.train()
    assert model.generate(memory=memory, question=QUESTIONS[0], **GREEDY) == answers
    assert model.converter.training


def test_generating_counts_nothing_into_running_statistics(zoo):
    model = zoo.compressor(**KINDS["ae-4-reg"]).train()
    norms = [part for part in model.converter.hidden if isinstance(part, SlotNorm)]
    model.generate(context=TEXTS, question=QUESTIONS, **GREEDY)
    assert all(norm.num_batches_tracked == 0 for norm in norms)
    one = model.converter(torch.randn(1, model.config.slot_size))  # one slot has no variance
    assert torch.isfinite(one).all()
    model.converter(torch.randn(5, model.config.slot_size))
    assert all(norm.num_batches_tracked == 1 for norm in norms)


def test_the_divergence_is_the_closed_form():
    mean, log_variance = torch.randn(2, 6, 10)
    posterior = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    expected = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0))
    torch.testing.assert_close(divergence(mean, log_variance), expected.sum())


def test_the_divergence_enters_the_gradient_with_its_weight(zoo):
    model = zoo.compressor(**KINDS["vae"], kl_weight=0.5).train()
    converter, slots = model.converter, torch.randn(6, model.config.slot_size)
    assert converter.kl_weight == 0.5
    weights = [converter.to_latent.weight, converter.to_log_variance.weight]

    def gradients(weight: float):
        torch.manual_seed(0)  # the same draw
        converter.kl_weight = weight
        return torch.autograd.grad(converter(slots).square().sum(), weights)

    normed = converter.norm(slots)
    nats = divergence(converter.to_latent(normed), converter.to_log_variance(normed))
    expected = torch.autograd.grad(0.5 * nats / len(slots), weights)
    for own, with_it, without in zip(expected, gradients(0.5), gradients(0.0), strict=True):
        assert own.abs().sum() > 0
        torch.testing.assert_close(with_it - without, own, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"converter_type": "ae"}, r"converter_type must be one of .*'linear', 'residual'"),
        (
            {"pooling": "min", "memory_positions": "spread"},
            "got 'min'",
        ),
    ],
)
def test_settings_that_say_nothing_are_refused(zoo, given, message):
    with pytest.raises(ValueError, match=message):
        zoo.compressor(**given)


# -- pooling ---------------------------------------------------------------------------------------


def pooled(states: torch.Tensor, pooling: str, query: torch.Tensor | None) -> torch.Tensor:
    if pooling == "last":
        return states[-1]
    if pooling == "min":
        return states.min(dim=0).values
    weights = (states @ query / math.sqrt(len(query))).softmax(dim=0)
    return weights @ states


@pytest.fixture(scope="module", params=["last", "min", "attention"])
def pooler(zoo, request) -> MemslotsModel:
    encoder = "bert" if request.param == "last" else "gpt2"
    model = zoo.compressor(encoder, pooling=request.param, compression_rates=[2, 4, 24])
    if isinstance(model.group_pool, pools.AttentionPool):
        torch.manual_seed(1)
        torch.nn.init.normal_(model.group_pool.query, std=3.0)
    return model.eval()


@pytest.mark.parametrize("rate", [4, 24])
def test_slots_pool_the_states_of_rate_tokens(pooler, rate):
    memory = pooler.compress([LONG, *TEXTS], rate=rate)
    start = 0
    for document, text in zip(memory.documents, [LONG, *TEXTS], strict=True):
        for segment, span in zip(document, pooler.processor.segment(text), strict=True):
            with torch.no_grad():
                states = pooler.encoder(input_ids=torch.tensor([span.ids])).last_hidden_state[0]
                query = getattr(pooler.group_pool, "query", None)
                expected = torch.stack(
                    [pooled(group, pooler.config.pooling, query) for group in states.split(rate)]
                )
            assert segment.slots == len(expected)
            own = memory.slots[start : start + segment.slots]
            torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-5)
            start += segment.slots


def test_coarser_rates_are_refused(pooler):
    with pytest.raises(ValueError, match=r"cannot be made of those.*rate=4"):
        pooler.compress(TEXTS, rate=2).at_rate(4)


def test_pooled_memories_and_models_survive_saving(pooler, tmp_path):
    memory = pooler.compress(TEXTS)
    answers = pooler.generate(memory=memory, question=QUESTIONS[0], **GREEDY)
    memory.save(tmp_path / "memory.safetensors")
    pooler.save_pretrained(tmp_path / "model")
    again = MemslotsModel.from_pretrained(tmp_path / "model")
    loaded = Memory.load(tmp_path / "memory.safetensors")
    assert again.generate(memory=loaded, question=QUESTIONS[0], **GREEDY) == answers
    again._fingerprint = None  # computed from what was loaded
    assert again.fingerprint == pooler.fingerprint


def test_the_query_is_trained_and_part_of_the_fingerprint(zoo, tmp_path):
    model = zoo.compressor(pooling="attention", compression_rates=[8])
    before = model.fingerprint
    CompressorTrainer(model, settings(tmp_path), rows()).train()
    assert model.group_pool.query.abs().sum() > 0
    changed = model.fingerprint
    assert changed != before
    with torch.no_grad():
        model.group_pool.query.add_(1.0)
    assert model.fingerprint not in (before, changed)


def test_remote_code_carries_the_residual_converter(zoo, tmp_path):
    from transformers import AutoModel

    model = zoo.compressor(pooling="mean", converter_type="residual", bundle_decoder=True).eval()
    model.save_pretrained(tmp_path)
    remote = AutoModel.from_pretrained(tmp_path, trust_remote_code=True)
    assert type(remote) is not MemslotsModel
    assert type(remote.converter).__name__ == "ResidualConverter"
    asked = {"context": TEXTS, "question": QUESTIONS, **GREEDY}
    assert remote.generate(**asked) == model.generate(**asked)


def test_a_pool_that_is_not_there_names_the_code_that_has_it(monkeypatch):
    monkeypatch.delitem(pools.POOLS, "min")  # as where the lab was not imported
    with pytest.raises(ValueError, match=r"pooling must be one of .*trust_remote_code=True"):
        MemslotsConfig(pooling="min")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"inject_layer": 1}, "inject_layer was removed, since it gained nothing"),
        ({"converter_queries": 8}, "converter_queries was removed, since it gained nothing"),
        ({"converter_type": "queries"}, "converter_type must be one of"),
    ],
)
def test_what_was_cut_is_named(config, message):
    with pytest.raises(ValueError, match=message):
        MemslotsConfig(**config)
    assert not hasattr(MemslotsConfig(inject_layer=None, converter_queries=4), "inject_layer")
