"""Several threads before one decoder: what reads it is serialised, and every answer is right."""

import copy
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from tiny_models import QUESTIONS, TEXTS

import lab.capacity.latent_converters  # noqa: F401 - a converter that draws
from memslots import prefill
from memslots.evaluation.likelihood import target_losses

THREADS = 8
ROUNDS = 2
GREEDY = {"max_new_tokens": 6, "do_sample": False}


def with_lora(zoo, seed: int = 0, decoder: str = "llama", **config):
    model = zoo.compressor("gpt2", decoder, seed, decoder_lora={"r": 4}, **config).eval()
    torch.manual_seed(seed)
    for pair in model.decoder_lora.pairs.values():
        torch.nn.init.normal_(pair.up.weight, std=0.5)
    return model


def all_at_once(calls):
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(lambda call: call(), calls * ROUNDS))


@pytest.mark.parametrize("decoder", ["llama", "gemma4"])  # gemma4: per-layer embeddings
def test_each_memory_gets_its_own_answers(zoo, decoder):
    model = with_lora(zoo, decoder=decoder)
    memory = model.compress(TEXTS, rate=4)
    prefixes = [prefill(model, memory[i]) for i in range(len(TEXTS))]
    calls = [
        lambda i=i, q=q, read=read: model.generate(memory=read[i], question=q, **GREEDY)
        for i in range(len(TEXTS))
        for q in QUESTIONS
        for read in (memory, prefixes)
    ]
    calls += [lambda i=i: model.reconstruct(memory[i], **GREEDY) for i in range(len(TEXTS))]
    expected = [call() for call in calls]
    assert len(set(expected)) > 3
    assert all_at_once(calls) == expected * ROUNDS
    assert [call() for call in calls] == expected  # and afterwards


def test_compressors_that_share_a_decoder_do_not_meet_each_others_hooks(zoo):
    tuned = with_lora(zoo)
    other, plain = with_lora(zoo, seed=1), zoo.compressor(seed=2).eval()
    for model in (other, plain):
        model.attach_decoder(tuned.decoder)
    calls = [
        lambda model=model, text=text: model.generate(context=text, question=QUESTIONS[0], **GREEDY)
        for model in (tuned, other, plain)
        for text in TEXTS
    ]
    expected = [call() for call in calls]
    assert all_at_once(calls) == expected * ROUNDS


def test_a_model_in_training_compresses_without_dropout_and_stays_in_training(zoo):
    model = zoo.compressor(converter_type="vae")  # the lab's: it draws in training
    expected = model.compress(TEXTS, rate=4).slots
    model.train()
    for slots in all_at_once([lambda: model.compress(TEXTS, rate=4).slots] * 16):
        torch.testing.assert_close(slots, expected)
    assert model.encoder.training
    assert model.converter.training


def test_a_decoder_that_is_attached_while_another_reads_gets_the_lora_too(zoo):
    model = with_lora(zoo)
    memory, reached, go = model.compress(TEXTS[0]), threading.Event(), threading.Event()
    expected = model.generate(memory=memory, question=QUESTIONS[0], **GREEDY)

    def read():
        with model.reading():
            reached.set()
            assert go.wait(60)

    with ThreadPoolExecutor(1) as pool:
        reader = pool.submit(read)
        assert reached.wait(60)
        model.attach_decoder(copy.deepcopy(model.decoder))
        for hooks in (module._forward_hooks for module in model.decoder.modules()):
            hooks.clear()  # copied with the modules
        answer = model.generate(memory=memory, question=QUESTIONS[0], **GREEDY)
        go.set()
        reader.result()
    assert answer == expected


def test_what_reads_no_memory_waits_for_what_does(zoo):
    """Else it would be read with `decoder_lora`, which is for memories alone."""
    model = with_lora(zoo)
    memory, prompt = model.compress(TEXTS[0]), model.processor.prompt(question=QUESTIONS[0])
    ids = torch.tensor([[5, 6, 7]])

    def plain():
        with model.reading(with_lora=False):
            return model.decoder(input_ids=ids).logits.sum().item()

    calls = [
        plain,
        lambda: target_losses(model, [prompt], [[5, 6]])[0].nll,
        lambda: len(model.generate(memory=memory, question=QUESTIONS[0], **GREEDY)),
    ]
    expected = [call() for call in calls]
    assert all_at_once(calls * 8) == pytest.approx(expected * 8 * ROUNDS)


def test_a_reading_that_raises_leaves_nothing_behind(zoo):
    model = with_lora(zoo)
    ids = torch.tensor([[5, 6, 7]])
    before = model.decoder(input_ids=ids).logits
    with model.reading(), model.reading():
        changed = model.decoder(input_ids=ids).logits
    assert not torch.allclose(before, changed)
    with pytest.raises(RuntimeError, match="stop"), model.reading():
        raise RuntimeError("stop")
    with ThreadPoolExecutor(1) as pool:  # the lock is free for others
        after = pool.submit(lambda: model.decoder(input_ids=ids).logits).result()
        again = pool.submit(model.generate, TEXTS[0], QUESTIONS[0], **GREEDY).result(timeout=60)
    torch.testing.assert_close(after, before)
    assert again == model.generate(TEXTS[0], QUESTIONS[0], **GREEDY)
