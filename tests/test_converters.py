"""Autoencoder and vae converters, and pooling by the last state, the smallest or attention."""

import math

import pytest
import torch
from datasets import Dataset
from tiny_models import LONG, QUESTIONS, TEXTS, words

from memslots.modeling import Memory, MemslotsConfig, MemslotsModel
from memslots.modeling.converters_memslots import SlotNorm, VariationalConverter
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
    norm = model.config.converter_regularization
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
        values = values.relu() if model.config.converter_layers > 1 else values
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
    assert first.kl_loss > 0
    assert third.kl_loss == 0
    plain = (third.task_losses * torch.tensor([1.0, 1.0, 1.0])).sum()
    assert third.loss == plain
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


def test_the_divergence_is_the_closed_form(zoo):
    model = zoo.compressor(**KINDS["vae"]).train()
    slots = torch.randn(6, model.config.slot_size)
    normed = model.converter.norm(slots)
    deviation = (0.5 * model.converter.to_log_variance(normed)).exp()
    posterior = torch.distributions.Normal(model.converter.to_latent(normed), deviation)
    expected = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0))
    torch.testing.assert_close(model.converter.with_divergence(slots)[1], expected.sum())


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_the_divergence_enters_the_loss_with_its_weight(zoo, weight):
    model = zoo.compressor(**KINDS["vae"], kl_weight=weight).train()
    outputs = model(**model.processor(TEXTS, QUESTIONS, ["a", "b", "c"]))
    torch.testing.assert_close(outputs.loss.detach() - outputs.task_losses.sum(),
                               weight * outputs.kl_loss)  # fmt: skip
    outputs.loss.backward()
    assert model.converter.to_log_variance.weight.grad.abs().sum() > 0


def test_the_trainer_weighs_and_logs_it_and_evaluates_without(zoo, tmp_path):
    model = zoo.compressor(**KINDS["vae"], compression_rates=[8], kl_weight=0.25)
    args = settings(tmp_path, eval_strategy="steps", eval_steps=1)
    trainer = CompressorTrainer(model, args, rows(), eval_dataset=rows(4))
    trainer.train()
    steps = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(steps) == 2
    for entry in steps:
        assert entry["kl_loss"] > 0
        expected = entry["reconstruction_loss"] + 0.25 * entry["kl_loss"]
        assert entry["loss"] == pytest.approx(expected, rel=1e-3)
    for entry in trainer.state.log_history:
        if "eval_loss" in entry:
            assert entry["eval_loss"] == pytest.approx(entry["eval_reconstruction_loss"], rel=1e-3)
            assert not any("kl_loss" in name for name in entry)


def test_accumulated_batches_weigh_every_slot_alike(zoo, tmp_path, monkeypatch):
    """Of texts of unequal lengths, so that a mean of the batches' means would be another."""
    noise = torch.zeros_like  # a draw would differ between one batch and several
    monkeypatch.setattr("memslots.modeling.converters_memslots.torch.randn_like", noise)
    texts = Dataset.from_list([{"text": words(n, n)} for n in (3, 30, 4, 25)])
    logged = []
    for size in (4, 1):
        model = zoo.compressor("llama", **KINDS["vae"], compression_rates=[8], seed=3)
        args = settings(tmp_path, gradient_accumulation_steps=4 // size)
        args.per_device_train_batch_size = size
        trainer = CompressorTrainer(model, args, texts)
        trainer.train()
        history = [entry for entry in trainer.state.log_history if "loss" in entry]
        names = ("loss", "kl_loss", "grad_norm")
        logged.append([entry[name] for entry in history for name in names])
    assert logged[0] == pytest.approx(logged[1], rel=2e-3)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"converter_type": "ae"}, r"converter_type must be one of .*'autoencoder', 'vae'"),
        ({"converter_layers": 4}, "converter_layers=4 is for converter_type 'autoencoder' and"),
        ({"latent_size": 4, "converter_type": "linear"}, r"latent_size=4 is for .*'linear'"),
        ({**KINDS["ae"], "converter_layers": 0}, "converter_layers must be at least 1, got 0"),
        ({**KINDS["vae"], "latent_size": 0}, "latent_size must be at least 1, got 0"),
        ({**KINDS["ae"], "converter_dropout": 1.0}, "converter_dropout must be .*below 1, got 1.0"),
        ({**KINDS["vae"], "kl_weight": -0.1}, "kl_weight must be 0 or more and finite, got -0.1"),
        ({**KINDS["vae"], "kl_weight": math.inf}, "kl_weight must be 0 or more and finite"),
        (
            {"pooling": "min", "memory_positions": "spread"},
            "and this one is 'min'",
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
    if model.pooling_query is not None:
        torch.manual_seed(1)
        torch.nn.init.normal_(model.pooling_query, std=3.0)
    return model.eval()


@pytest.mark.parametrize("rate", [4, 24])
def test_slots_pool_the_states_of_rate_tokens(pooler, rate):
    memory = pooler.compress([LONG, *TEXTS], rate=rate)
    start = 0
    for document, text in zip(memory.documents, [LONG, *TEXTS], strict=True):
        for segment, span in zip(document, pooler.processor.segment(text), strict=True):
            with torch.no_grad():
                states = pooler.encoder(input_ids=torch.tensor([span.ids])).last_hidden_state[0]
                expected = torch.stack(
                    [
                        pooled(group, pooler.config.pooling, pooler.pooling_query)
                        for group in states.split(rate)
                    ]
                )
            assert segment.slots == len(expected)
            own = memory.slots[start : start + segment.slots]
            torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-5)
            start += segment.slots


def test_coarser_rates_are_merged_or_refused(pooler):
    fine, fresh = pooler.compress([*TEXTS, LONG], rate=2), pooler.compress([*TEXTS, LONG], rate=4)
    if pooler.config.pooling == "attention":
        with pytest.raises(ValueError, match=r"attention's weights are not kept.*rate=4"):
            fine.at_rate(4)
    else:
        coarse = fine.at_rate(4)
        assert coarse.documents == fresh.documents
        torch.testing.assert_close(coarse.slots, fresh.slots, rtol=1e-4, atol=1e-5)


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
    assert model.pooling_query.abs().sum() > 0
    changed = model.fingerprint
    assert changed != before
    with torch.no_grad():
        model.pooling_query.add_(1.0)
    assert model.fingerprint not in (before, changed)


def test_remote_code_carries_them(zoo, tmp_path):
    from transformers import AutoModel

    model = zoo.compressor(pooling="attention", **KINDS["vae-1-reg"], bundle_decoder=True).eval()
    model.save_pretrained(tmp_path)
    remote = AutoModel.from_pretrained(tmp_path, trust_remote_code=True)
    assert type(remote) is not MemslotsModel
    assert type(remote.converter).__name__ == VariationalConverter.__name__
    asked = {"context": TEXTS, "question": QUESTIONS, **GREEDY}
    assert remote.generate(**asked) == model.generate(**asked)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"inject_layer": 1}, "inject_layer was tried, gained nothing"),
        ({"converter_queries": 8}, "converter_queries was tried, gained nothing"),
        ({"converter_type": "queries"}, "converter_type must be one of"),
    ],
)
def test_what_was_cut_is_named(config, message):
    with pytest.raises(ValueError, match=message):
        MemslotsConfig(**config)
    assert not hasattr(MemslotsConfig(inject_layer=None, converter_queries=4), "inject_layer")
