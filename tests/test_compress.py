"""compress: bounded batches, no head, no gradients, only slots kept."""

import gc
import weakref

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset
from store_memories import same_documents
from tiny_models import LONG, QUESTIONS, SEGMENT, TEXTS, words
from transformers import AutoModelForCausalLM

from memslots.modeling.encoders_memslots import token_batches


@pytest.fixture
def passes(model):
    """Encoder passes as `(shape of inputs, weak reference to the states)`."""
    seen = []

    def note(module, args, kwargs, output):
        states = output.last_hidden_state
        seen.append((tuple(kwargs["inputs_embeds"].shape), weakref.ref(states)))

    hook = model.encoder.register_forward_hook(note, with_kwargs=True)
    yield seen
    hook.remove()


def test_batches_stay_within_the_token_budget(model, passes):
    text = words(1500)
    memory = model.compress(text, batch_tokens=512)
    assert len(passes) > 5
    assert all(rows * length <= 512 for (rows, length, _), _ in passes)
    assert len(passes) < len(memory.segments) / 4  # batches, not segments one by one
    whole = model.compress(text)
    torch.testing.assert_close(whole.slots, memory.slots, rtol=0, atol=1e-5)


def test_only_the_slots_are_held(model, passes):
    alive = []

    def count(module, args):
        alive.append(sum(reference() is not None for _, reference in passes))

    hook = model.encoder.register_forward_pre_hook(count)
    try:
        memory = model.compress(words(1500), batch_tokens=256)
    finally:
        hook.remove()
    assert max(alive) <= 1  # the last pass's states at most, never all
    gc.collect()
    assert not any(reference() is not None for _, reference in passes)
    # No view on something larger, and no graph.
    assert memory.slots.untyped_storage().nbytes() == memory.nbytes
    assert not memory.slots.requires_grad


@pytest.mark.parametrize(
    "sequence",
    [tuple, np.array, pd.Series, lambda texts: Dataset.from_dict({"text": texts})["text"]],
)
def test_columns_of_texts_are_taken(model, sequence):
    memory = model.compress(TEXTS)
    assert same_documents(model.compress(sequence(TEXTS)), memory)
    answers = model.generate(memory=memory, question=list(QUESTIONS), max_new_tokens=2)
    found = model.generate(context=sequence(TEXTS), question=sequence(QUESTIONS), max_new_tokens=2)
    assert found == answers
    with pytest.raises(ValueError, match="empty list"):
        model.compress(sequence(TEXTS)[:0])


def test_one_segment_larger_than_the_budget_still_runs(model):
    fine = model.compress(TEXTS[1])
    torch.testing.assert_close(
        model.compress(TEXTS[1], batch_tokens=1).slots, fine.slots, rtol=0, atol=1e-5
    )


def test_segments_of_all_texts_share_batches(model, passes):
    model.compress(TEXTS * 3)
    assert len(passes) == 1


def test_encoder_has_no_head(zoo):
    for encoder in ("gpt2", "llama", "qwen3"):
        model = zoo.compressor(encoder, "llama")
        names = {name for name, _ in model.encoder.named_modules()}
        assert not names & {"lm_head", "embed_out", "pooler"}
        assert model.encoder.get_output_embeddings() is None
        assert not isinstance(model.encoder, tuple(AutoModelForCausalLM._model_mapping.values()))


def test_passes_of_a_cpu_are_smaller_unless_said_otherwise(model, monkeypatch):
    passes = []
    original = model.encode
    monkeypatch.setattr(
        model,
        "encode",
        lambda segment_input_ids, **kw: (
            passes.append(segment_input_ids.numel()),
            original(segment_input_ids, **kw),
        )[1],
    )
    text = words(9000)
    model.compress(text, progress=False)
    assert max(passes) <= 4096 < sum(passes)
    passes.clear()
    model.compress(text, batch_tokens=10**6, progress=False)
    assert len(passes) == 1


def test_training_mode_is_left_and_not_used(zoo):
    model = zoo.compressor()  # GPT-2 has dropout
    expected = model.compress(TEXTS).slots
    model.train()
    assert torch.equal(model.compress(TEXTS).slots, expected)
    assert model.encoder.training


def test_progress_bar_only_on_long_work(model, capsys):
    model.compress(TEXTS)
    assert capsys.readouterr().err == ""
    model.compress(LONG, batch_tokens=2 * SEGMENT)
    assert "compressing" in capsys.readouterr().err
    model.compress(LONG, batch_tokens=2 * SEGMENT, progress=False)
    assert capsys.readouterr().err == ""
    model.compress(TEXTS[0], progress=True)
    assert "compressing: 100%" in capsys.readouterr().err


def test_long_text_in_few_seconds(model):
    text = "abcdefghij" * 2000 + words(2000)
    memory = model.compress(text, rate=8)
    assert memory.segments[-1].end == len(text)
    assert memory.slots.shape[0] < sum(memory.n_tokens) / 4


def test_token_batches():
    lengths, slots = [10, 3, 8, 10, 1], [5, 2, 4, 5, 1]
    batches = list(token_batches(lengths, slots, 30))
    assert sorted(i for batch in batches for i in batch) == [0, 1, 2, 3, 4]
    for batch in batches:
        assert max(lengths[i] + slots[i] for i in batch) * len(batch) <= 30
    assert list(token_batches([], [], 30)) == []


@pytest.mark.parametrize("encoder", ["gpt2", "llama"])
def test_what_was_compressed_may_be_trained_on(zoo, encoder):
    """Encoding runs in inference mode, of which neither slots nor the encoder keep a trace."""
    model = zoo.compressor(encoder)
    memory = model.compress(TEXTS[1], rate=4)
    assert not memory.slots.is_inference()
    assert not memory.slots.requires_grad
    weight = torch.zeros(memory.slots.shape[1], requires_grad=True)
    (memory.slots * weight).sum().backward()
    assert weight.grad is not None
    model.train()
    model(**model.processor(TEXTS, ["Where?"] * len(TEXTS), ["Lagos"] * len(TEXTS))).loss.backward()
    assert all(p.grad is not None for p in model.encoder.parameters() if p.requires_grad)
    assert torch.equal(model.eval().compress(TEXTS[1], rate=4).slots, memory.slots)
