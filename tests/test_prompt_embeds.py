"""Memories as prompt embeddings: the layout of `generate`, and the ways to an engine."""

import asyncio
import base64
import dataclasses
import io

import pytest
import torch
from loopback import StandIn, served
from tiny_models import QUESTIONS, TEXTS

from memslots.serving.prompt_embeds import encode_embeds, prompt_embeds
from memslots.serving.sampling import Sampling, default_sampling, end_tokens
from memslots.serving.visible_text import VisibleText
from memslots.serving.vllm_client import EngineError, PromptRefused, VllmClient

NEW = 12


def decoded(model, embeds, tokens=NEW):
    ids = model.decoder.generate(
        inputs_embeds=embeds.unsqueeze(0),
        attention_mask=torch.ones(1, len(embeds), dtype=torch.long),
        max_new_tokens=tokens,
        do_sample=False,
        pad_token_id=0,
    )[0]
    return model.processor.decode(ids).strip()


@pytest.mark.parametrize("decoder", ["llama", "qwen3", "gemma3", "gpt2"])
def test_the_plain_decoder_answers_from_them_as_generate_does(zoo, decoder):
    model = zoo.shared("gpt2", decoder)
    memory = model.compress(TEXTS)
    embeds = prompt_embeds(model, memory, question=QUESTIONS)
    expected = model.generate(memory=memory, question=QUESTIONS, max_new_tokens=NEW)
    assert len({len(one) for one in embeds}) > 1  # ragged, so padding would show
    assert [decoded(model, one) for one in embeds] == expected


def test_they_are_the_rows_of_generate_without_padding(zoo):
    model = zoo.compressor(prompt_format="chat", literals="numbers")
    memory = model.compress(["Carmen owns 27 maps and 1,934 books.", TEXTS[1]])
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "memory"}, {"type": "text", "text": "How many?"}]},
    ]
    embeds = prompt_embeds(model, memory, messages=chat, rate=4)
    coarse = memory.at_rate(4)
    rows = model.memory_rows(coarse, [(i, model.processor.prompt(messages=chat)) for i in (0, 1)])
    padded = model.row_inputs(rows, coarse)
    for one, row, mask in zip(
        embeds, padded["inputs_embeds"], padded["attention_mask"], strict=True
    ):
        assert torch.equal(one, row[int((1 - mask).sum()) :])
        assert not one.requires_grad


def test_one_document_and_many_questions_pair_as_in_generate(model):
    memory = model.compress(TEXTS[:2])
    assert len(prompt_embeds(model, memory[0], question=QUESTIONS)) == len(QUESTIONS)
    assert len(prompt_embeds(model, memory, question=QUESTIONS[0])) == 2
    with pytest.raises(ValueError, match="do not go together"):
        prompt_embeds(model, memory, question=QUESTIONS)


def test_the_payload_is_the_tensor_alone(model):
    embeds = torch.randn(1000, 8)[3:5]  # a view of a larger storage
    encoded = encode_embeds(embeds)
    back = torch.load(io.BytesIO(base64.b64decode(encoded, validate=True)), weights_only=True)
    assert torch.equal(back, embeds)
    assert len(encoded) < 4000
    for wrong in (torch.zeros(3), torch.zeros(2, 2, dtype=torch.long), torch.zeros(1, 2, 2)):
        with pytest.raises(ValueError, match="floating-point tensor"):
            encode_embeds(wrong)


def test_bad_memories_and_decoders_are_refused(zoo, model):
    memory = model.compress(TEXTS[0])
    with pytest.raises(ValueError, match="written by compressor"):
        prompt_embeds(zoo.compressor(seed=5), memory, question="Why?")
    wide = dataclasses.replace(memory, slots=memory.slots.repeat(1, 2))
    with pytest.raises(ValueError, match="slots of width"):
        prompt_embeds(model, wide, question="Why?")
    broken = dataclasses.replace(memory, slots=memory.slots * float("nan"))
    with pytest.raises(ValueError, match="not finite"):
        prompt_embeds(model, broken, question="Why?")
    with pytest.raises(ValueError, match="new tokens it takes"):
        prompt_embeds(model, memory, question="Why?", max_new_tokens=10**6)
    tuned = zoo.compressor(decoder_lora={"r": 2})
    with pytest.raises(ValueError, match="decoder_lora"):
        prompt_embeds(tuned, tuned.compress(TEXTS[0]), question="Why?")
    layered = zoo.shared("gpt2", "gemma4")
    with pytest.raises(ValueError, match="per-layer"):
        prompt_embeds(layered, layered.compress(TEXTS[0]), question="Why?")


# -- the client ------------------------------------------------------------------------------------


def through(model, stand_in, embeds, stream=False, tokens=NEW, **options):
    """Answers over HTTP, as texts."""

    async def ask(url):
        async with VllmClient(url, **options) as client:
            fields = Sampling(tokens).for_vllm(end_tokens(model))
            if not stream:
                return [one.text.strip() for one in await client.complete(embeds, fields)]
            return [one async for one in client.stream(embeds[0], fields)]

    with served(stand_in.app()) as url:
        return asyncio.run(ask(url))


def test_batches_come_back_in_order_and_streams_add_up(model):
    memory = model.compress(TEXTS)
    asked = [(i, q) for i in range(3) for q in QUESTIONS]
    embeds = [prompt_embeds(model, memory[i], question=q)[0] for i, q in asked]
    expected = [model.generate(memory=memory[i], question=q, max_new_tokens=NEW) for i, q in asked]
    stand_in = StandIn(model)
    assert through(model, stand_in, embeds, batch_size=4) == expected
    assert len(stand_in.requests) == 3
    assert {one["model"] for one in stand_in.requests} == {"decoder"}
    pieces = through(model, StandIn(model), embeds, stream=True)
    assert "".join(one.text for one in pieces).strip() == expected[0]
    assert len(pieces) > 2
    assert (pieces[-1].finish, pieces[-1].tokens) == ("length", NEW)


def test_only_what_was_not_begun_is_repeated(model):
    embeds = prompt_embeds(model, model.compress(TEXTS[0]), question="Why?")
    assert through(model, StandIn(model, failures=[503, 429, 502]), embeds)
    with pytest.raises(EngineError, match="503: not now") as raised:
        through(model, StandIn(model, failures=[503] * 3), embeds, retries=2)
    assert raised.value.status == 503
    for status, kind in ((500, EngineError), (404, EngineError), (400, PromptRefused)):
        stand_in = StandIn(model, failures=[status])
        with pytest.raises(kind, match="not now"):
            through(model, stand_in, embeds)
        assert not stand_in.requests  # not asked a second time
    with pytest.raises(EngineError, match="API key"):
        through(model, StandIn(model, api_key="secret"), embeds, api_key="wrong")
    assert through(model, StandIn(model, api_key="secret"), embeds, api_key="secret")


def test_a_broken_a_slow_and_a_missing_server_are_told_apart(model):
    embeds = prompt_embeds(model, model.compress(TEXTS[0]), question="Why?")
    with pytest.raises(EngineError, match="broke off"):
        through(model, StandIn(model, cut=True), embeds, stream=True)
    with pytest.raises(EngineError, match=r"stopped answering|in time") as raised:
        through(model, StandIn(model, pause=5.0), embeds, stream=True, timeout=1.0)
    assert raised.value.status == 504

    async def nobody():
        async with VllmClient("http://127.0.0.1:9", retries=1) as client:
            await client.complete(embeds, {})

    with pytest.raises(EngineError, match="no vLLM server") as raised:
        asyncio.run(nobody())
    assert raised.value.status == 503
    with pytest.raises(ValueError, match="http"):
        VllmClient("localhost:8000")


# -- what is shown, and how it is drawn ------------------------------------------------------------


@pytest.mark.parametrize("stop", [(), ("END",), ("\n\n", "xyz"), ("b",), ("never there",)])
def test_parts_add_up_to_the_stripped_text_before_the_first_stop(stop):
    whole = "  a bb \n\n ENEND xyx\N{REPLACEMENT CHARACTER}xyz  "
    ends = [whole.find(one) for one in stop if one in whole]
    expected = whole[: min(ends)].strip() if ends else whole.strip()
    visible = VisibleText(stop)
    parts = [visible.update(whole[:n]) for n in range(1, len(whole) + 1)]
    for n, _ in enumerate(parts):
        assert expected.startswith("".join(parts[:n]))
    assert "".join(parts) + visible.finish(whole) == expected == visible.text


def test_default_sampling_is_the_decoders_own(zoo):
    model = zoo.compressor()
    assert default_sampling(model) == Sampling(256, temperature=0.0)
    model.decoder.generation_config.update(do_sample=True, temperature=0.7, top_p=0.9, top_k=20)
    assert default_sampling(model, 9) == Sampling(9, temperature=0.7, top_p=0.9, top_k=20)
    assert end_tokens(model) == [model.processor.tokenizer.eos_token_id]
