"""forward: the loss of PCC's eq. 5, what gets a gradient, and what stays as it is."""

import math

import pytest
import torch
from tiny_models import QUESTIONS, TEXTS
from torch.nn import functional

from memslots.embedding_map import embedding_scale
from memslots.modeling.encoders_memslots import Converter
from memslots.modeling.layout_memslots import ANSWER, COMPLETION, RECONSTRUCTION, Prompt, Row
from memslots.modeling.memory_memslots import slots_for
from memslots.start_weights import match_scales
from memslots.trainer.losses import TaskLosses

ANSWERS = ["Lagos", "Carmen Moss, and there are twenty seven", "because it rained"]


def task_inputs(model, tasks=(RECONSTRUCTION, COMPLETION, RECONSTRUCTION, COMPLETION, ANSWER)):
    """One row a task over the same segments, of ragged lengths."""
    processor = model.processor
    spans = [span for text in TEXTS for span in processor.segment(text)][:5]
    targets = ["The treaty", "was signed in Lagos by all", "no", "and she owns many", "it is"]
    rows = [
        Row(
            segments=[i] if task == RECONSTRUCTION else [i, (i + 1) % len(spans)],
            prompt=Prompt(processor.bos_ids, [9, 8, 7] if task == ANSWER else []),
            target=processor.decoder_text.encode(target),
            input_only=2 if task == COMPLETION else 0,
            task=task,
        )
        for i, (task, target) in enumerate(zip(tasks, targets, strict=False))
    ]
    slots = [slots_for(len(span.ids), 4) for span in spans]
    return {
        **processor.collate_segments(spans),
        "segment_rates": torch.full((len(slots),), 4),
        **processor.lay_out(rows, slots),
    }


@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0])
def test_loss_is_equation_5(model, weight):
    inputs = task_inputs(model)
    labels = inputs["labels"]
    with torch.no_grad():
        without = {k: v for k, v in inputs.items() if k not in ("labels", "task_ids")}
        logits = model(**without).logits
        output = model(**inputs, criterion=TaskLosses((1 - weight, weight, 0.0)))
        plain = model(**inputs)
    means = []
    for task in (RECONSTRUCTION, COMPLETION, ANSWER):
        losses = [
            functional.cross_entropy(logits[row, t - 1], labels[row, t]).item()
            for row in range(len(labels))
            for t in range(1, labels.shape[1])
            if inputs["task_ids"][row] == task and labels[row, t] != -100
        ]
        assert output.task_counts[task] == len(losses) > 0
        means.append(sum(losses) / len(losses))
    assert output.task_losses.tolist() == pytest.approx(means, rel=1e-4)
    expected = (1 - weight) * means[RECONSTRUCTION] + weight * means[COMPLETION]
    assert output.loss.item() == pytest.approx(expected, rel=1e-4)
    assert plain.loss.item() == pytest.approx(sum(means), rel=1e-4)
    assert means[RECONSTRUCTION] != pytest.approx(means[COMPLETION], rel=5e-4)


def test_given_tokens_are_read_and_not_predicted(model):
    inputs = task_inputs(model)
    predicted = (inputs["labels"] != -100).sum(dim=1)
    lengths = inputs["attention_mask"].sum(dim=1)
    targets = ["The treaty", "was signed in Lagos by all"]
    ids = [model.processor.decoder_text.encode(text) for text in targets]
    assert predicted[:2].tolist() == [len(ids[0]), len(ids[1]) - 2]
    assert lengths[1] > predicted[1] + 2


def test_accumulation_changes_nothing(zoo):
    model = zoo.compressor()
    weights = (0.75, 0.25, 0.5)
    names = [name for name, p in model.named_parameters() if p.requires_grad]

    def gradients(loss):
        model.zero_grad()
        loss.backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}

    inputs = task_inputs(model)
    whole = model(**inputs, criterion=TaskLosses(weights))
    expected = gradients(whole.loss)
    parts = []
    for rows in ([0], [1, 4], [2, 3]):
        part = {k: v if k.startswith("segment") else v[rows] for k, v in inputs.items()}
        parts.append(model(**part, criterion=TaskLosses(weights, whole.task_counts)))
    total = sum(part.loss for part in parts)
    assert total.item() == pytest.approx(whole.loss.item(), rel=1e-5)
    assert sum(part.task_counts for part in parts).tolist() == whole.task_counts.tolist()
    found = gradients(total)
    for name in names:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-3, atol=1e-5, msg=name)


def test_loss_depends_on_the_context(model):
    def loss(texts):
        with torch.no_grad():
            return model(**model.processor(texts, QUESTIONS, ANSWERS)).loss.item()

    assert abs(loss(TEXTS) - loss([TEXTS[1], TEXTS[2], TEXTS[0]])) > 1e-3
    assert abs(loss(TEXTS) - loss([TEXTS[0].replace("Lagos", "March"), *TEXTS[1:]])) > 1e-6


@pytest.mark.parametrize("encoder", ["gpt2", "bert"])
def test_compressor_learns_and_decoder_stays(zoo, encoder):
    model = zoo.compressor(encoder, "qwen3")
    before = {name: p.clone() for name, p in model.decoder.state_dict().items()}
    model.train()
    assert model.encoder.training
    assert not model.decoder.training
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=3e-3)
    inputs = task_inputs(model)

    def loss_without_dropout():
        # Which units are dropped differs between makes of CPU for the same seed.
        model.eval()
        with torch.no_grad():
            loss = model(**inputs).loss.item()
        model.train()
        return loss

    first = loss_without_dropout()
    for _ in range(5):
        optimizer.zero_grad()
        model(**inputs).loss.backward()
        optimizer.step()
    assert loss_without_dropout() < first - 0.5
    for name, parameter in model.named_parameters():
        if name.startswith("decoder."):
            assert parameter.grad is None, name
        elif parameter.grad is None or not parameter.grad.abs().sum() > 0:
            pytest.fail(f"{name} gets no gradient")
    assert not model.decoder.training
    for name, value in model.decoder.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_rows_without_targets_cost_nothing(model):
    inputs = task_inputs(model)
    inputs["labels"] = torch.full_like(inputs["labels"], -100)
    for output in (model(**inputs), model(**inputs, criterion=TaskLosses())):
        assert output.loss.item() == 0
        assert output.loss.requires_grad
    assert output.task_counts.tolist() == [0, 0, 0]


def test_converter_is_its_formula():
    torch.manual_seed(0)
    converter = Converter(6, 10, 8)
    for parameter in converter.parameters():
        torch.nn.init.normal_(parameter)
    slots = torch.randn(5, 6)
    rms = slots / torch.sqrt((slots**2).mean(dim=1, keepdim=True) + 1e-6) * converter.norm.weight
    hidden = rms @ converter.up.weight.T + converter.up.bias
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
    expected = hidden @ converter.down.weight.T + converter.down.bias
    torch.testing.assert_close(converter(slots), expected)


def test_converter_hidden_size_and_no_markers(zoo):
    model = zoo.compressor(converter_hidden_size=20, markers="none")
    assert model.converter.up.out_features == 20
    assert model.converter.down.out_features == 32
    with_markers = zoo.shared().processor(TEXTS, QUESTIONS)["memory_ids"]
    without = model.processor(TEXTS, QUESTIONS)["memory_ids"]
    assert {1, 2} <= set(with_markers.unique().tolist())
    assert {1, 2}.isdisjoint(without.unique().tolist())
    assert isinstance(model.generate(context=TEXTS[0], question="Why?", max_new_tokens=2), str)


@pytest.mark.parametrize("decoder", ["llama", "gemma3", "gpt2"])
def test_new_vectors_have_the_decoders_scale(zoo, decoder):
    model = zoo.compressor("gpt2", decoder)
    match_scales(model)
    ids = torch.arange(model.decoder.config.vocab_size)
    scale = model.decoder.get_input_embeddings()(ids).std().item()
    assert embedding_scale(model.decoder) == pytest.approx(scale, rel=0.1)
    if decoder == "gemma3":  # scaled inside its embedding layer
        raw = model.decoder.get_input_embeddings().weight.std().item()
        assert scale > 2 * raw
    with torch.no_grad():
        converted = model.converter(model.compress(TEXTS).slots)
    for vectors in (model.markers, converted):
        assert 1 / 1.5 < vectors.std().item() / scale < 1.5


def test_memory_tokens_have_the_encoders_scale(zoo):
    for encoder in ("gpt2", "bert"):
        model = zoo.compressor(encoder, "llama")
        match_scales(model)
        scale = model.encoder.get_input_embeddings().weight.std().item()
        assert 1 / 1.5 < model.memory_tokens.std().item() / scale < 1.5


def test_gradient_checkpointing_changes_no_gradient(zoo):
    model = zoo.compressor("llama", "llama").train()
    inputs = task_inputs(model)
    model(**inputs).loss.backward()
    expected = model.memory_tokens.grad.clone()
    model.zero_grad()
    model.gradient_checkpointing_enable()
    model(**inputs).loss.backward()
    torch.testing.assert_close(model.memory_tokens.grad, expected, rtol=1e-4, atol=1e-6)
