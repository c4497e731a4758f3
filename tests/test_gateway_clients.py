"""The gateway through the `openai` client, and a plain chat as chat interfaces send it."""

import openai
import pytest
import torch
from loopback import StandIn, served
from tiny_models import QUESTIONS, TEXTS

from memslots import MemslotsModel, embedded
from memslots.serving.engines import TransformersEngine, VllmEngine
from memslots.serving.gateway import Gateway
from memslots.serving.gateway_settings import GatewaySettings
from memslots.serving.shelf import ProcessShelf
from memslots.serving.vllm_client import VllmClient

NEW = 8
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello."},
    {"role": "assistant", "content": "Hello!"},
    {"role": "user", "content": "Who signed the treaty?"},
]
OF_AN_INTERFACE = {
    "chat_id": "6f1c",
    "session_id": "a-b",
    "id": "m-1",
    "background_tasks": {"title_generation": True},
    "features": {"web_search": False},
    "variables": {"{{USER_NAME}}": "Ann"},
    "model_item": {"id": "memslots", "owned_by": "memslots"},
    "tool_ids": [],
    "files": None,
    "keep_alive": "5m",
    "reasoning_effort": "low",
    "logit_bias": None,
}
"""What Open WebUI and its like add to a request."""


def client_of(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="key", max_retries=0)


@pytest.fixture(scope="module")
def client(model):
    settings = GatewaySettings(api_keys=("key",))
    gateway = Gateway(model, TransformersEngine(model), ProcessShelf(), settings)
    with served(gateway.app()) as url:
        yield client_of(url)


def decoder_says(model, messages) -> str:
    """What the decoder answers by itself, from its own chat template and `generate`."""
    tokenizer = model.processor.tokenizer
    ids = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False, return_tensors="pt"
    )
    out = model.decoder.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False
    )
    return tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).strip()


def say(client, messages, **fields) -> openai.types.chat.ChatCompletion:
    return client.chat.completions.create(
        model="memslots", messages=messages, max_tokens=NEW, **fields
    )


def streamed(stream) -> str:
    return "".join(one.choices[0].delta.content or "" for one in stream if one.choices)


@pytest.mark.parametrize("messages", [CHAT, CHAT[-1:]], ids=["turns", "question"])
def test_a_chat_without_documents_is_the_decoders_own(client, model, messages):
    whole = say(client, messages, extra_body=OF_AN_INTERFACE)
    said = whole.choices[0].message.content
    assert said == decoder_says(model, messages)
    assert said != model.generate(context=TEXTS[1], messages=messages, max_new_tokens=NEW)
    assert whole.usage.prompt_tokens == len(
        model.processor.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=False
        )
    )
    assert whole.usage.memslots["slots"] == 0
    options = {"stream": True, "stream_options": {"include_usage": True}}
    assert streamed(say(client, messages, extra_body=OF_AN_INTERFACE, **options)) == said


def test_interfaces_find_the_model_by_its_list(client):
    (listed,) = client.models.list().data
    assert (listed.id, listed.object, listed.owned_by) == ("memslots", "model", "memslots")
    assert client.models.retrieve("memslots") == listed
    with pytest.raises(openai.NotFoundError, match=r"no model 'gpt-4' here.*'memslots'"):
        client.models.retrieve("gpt-4")


def test_a_chat_without_documents_goes_to_vllm_too(model):
    with served(StandIn(model).app()) as engine_url:
        engine = VllmEngine(model, VllmClient(engine_url))
        settings = GatewaySettings(api_keys=("key",))
        with served(Gateway(model, engine, ProcessShelf(), settings).app()) as url:
            client = client_of(url)
            said = say(client, CHAT).choices[0].message.content
            assert said == decoder_says(model, CHAT)
            assert streamed(say(client, CHAT, stream=True)) == said


def test_a_lora_that_reads_memories_keeps_out_of_a_plain_chat():
    """The embedded checkpoint has one, and no chat template: one question is a plain prompt."""
    model = MemslotsModel.from_pretrained(embedded("tiny"))
    settings = GatewaySettings(api_keys=("key",))
    with served(Gateway(model, TransformersEngine(model), ProcessShelf(), settings).app()) as url:
        client = client_of(url)
        said = say(client, [{"role": "user", "content": QUESTIONS[0]}]).choices[0].message.content
        prompt = model.processor.prompt(question=QUESTIONS[0])
        ids = torch.tensor([prompt.before + prompt.after])
        out = model.decoder.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False
        )
        assert said == model.processor.decode(out[0, ids.shape[1] :]).strip()
        with pytest.raises(openai.BadRequestError, match="no chat template"):
            say(client, CHAT)


def test_memories_go_in_extra_body(client, model):
    made = client.post("/memories", body={"text": TEXTS[1], "rate": 4}, cast_to=dict)
    memory = model.compress(TEXTS[1], rate=4)
    assert made["slots"] == len(memory.slots)
    question = [{"role": "user", "content": QUESTIONS[0]}]
    expected = model.generate(memory=memory, question=QUESTIONS[0], max_new_tokens=NEW)
    by_id = {"memory_ids": [made["id"]]}
    assert say(client, question, extra_body=by_id).choices[0].message.content == expected
    assert streamed(say(client, question, extra_body=by_id, stream=True)) == expected
    by_text = {"documents": [TEXTS[1]], "rate": 4}
    assert say(client, question, extra_body=by_text).choices[0].message.content == expected
    with pytest.raises(openai.NotFoundError, match="no memory 'mem-none'"):
        say(client, question, extra_body={"memory_ids": ["mem-none"]})
    with pytest.raises(openai.BadRequestError, match="did you mean 'memory_ids'"):
        say(client, question, extra_body={"memory_id": made["id"]})
