"""Prompts that begin alike are read as if each were read whole, and their start only once."""

import pytest
import torch
from tiny_models import DECODERS, QUESTIONS, TEXTS, words

from memslots.evaluation import shared_start
from memslots.evaluation.answering import answer_in_these_words
from memslots.evaluation.likelihood import target_losses
from memslots.modeling.layout_memslots import Prompt

NEW = 6
START = 60
TARGETS = [[5, 6, 7], [8], [9, 10]]


def prompts_of(model, memory):
    """Three of unlike length with START tokens before the memory, or all of each before nothing."""
    encode = model.processor.decoder_text.encode
    start = encode(words(80))[:START]
    asked = [encode(question) for question in QUESTIONS]
    if memory is None:
        return [Prompt(start + ids) for ids in asked]
    return [Prompt(start, ids) for ids in asked]


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("reads", ["memory", "text"])
def test_answers_and_losses_are_those_of_whole_prompts(zoo, decoder, reads, monkeypatch):
    """Windows of mistral, gemma3 and gemma4 are 32 positions, fewer than the start has."""
    model = zoo.shared("gpt2", decoder)
    memory = model.compress(TEXTS) if reads == "memory" else None
    prompts = prompts_of(model, memory)

    read = 0

    def count(_module, _inputs, kwargs, _output):
        nonlocal read
        embeds = kwargs.get("inputs_embeds")
        read += 0 if embeds is None else embeds.shape[0] * embeds.shape[1]

    def measured():
        nonlocal read
        read = 0
        losses = target_losses(model, prompts, TARGETS, memory)
        return answer_in_these_words(model, prompts, memory, NEW, []), losses, read

    hook = model.decoder.register_forward_hook(count, with_kwargs=True)
    answers, losses, positions = measured()
    monkeypatch.setattr(shared_start, "LEAST", 10_000)
    whole_answers, whole_losses, whole_positions = measured()
    hook.remove()
    # Of three rows two are spared the start, once for losses and once for answers; the embeddings
    # of each layer that gemma4 has are not shared.
    spared = 0 if decoder == "gemma4" else 2 * 2 * START
    assert whole_positions - positions == spared
    assert answers == whole_answers
    for loss, whole in zip(losses, whole_losses, strict=True):
        assert (loss.tokens, loss.right) == (whole.tokens, whole.right)
        assert loss.nll == pytest.approx(whole.nll, rel=1e-4)


@pytest.mark.parametrize("before", [[7] * 20, [7] * 16, [7] * 17])
def test_a_row_reads_the_last_token_before_its_target(model, before):
    alike = [Prompt(list(before)) for _ in TARGETS]
    losses = target_losses(model, alike, TARGETS)
    for prompt, target, loss in zip(alike, TARGETS, losses, strict=True):
        (alone,) = target_losses(model, [prompt], [target])
        assert loss.nll == pytest.approx(alone.nll, rel=1e-4)
        assert loss.tokens == len(target)


def test_a_lora_reads_the_start_of_memories_and_not_of_texts(zoo):
    model = zoo.compressor("gpt2", "llama", decoder_lora={}).eval()
    for name, weight in model.decoder_lora.named_parameters():
        torch.nn.init.normal_(weight, std=0.3, generator=torch.Generator().manual_seed(len(name)))
    memory = model.compress(TEXTS)
    for read in (memory, None):
        prompts = prompts_of(model, read)
        together = target_losses(model, prompts, TARGETS, read)
        for i, loss in enumerate(together):
            part = None if read is None else read[i]
            (alone,) = target_losses(model, [prompts[i]], [TARGETS[i]], part)
            assert loss.nll == pytest.approx(alone.nll, rel=1e-4)
