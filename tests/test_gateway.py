"""The gateway on loopback: answers are `generate`'s, and whoever is refused is told why."""

import base64
import contextlib
import copy
import dataclasses
import errno
import functools
import gzip
import json
import threading
import time
import types

import httpx
import pytest
import torch
from loopback import StandIn, served
from tiny_models import ALTERNATING, QUESTIONS, TEXTS
from transformers import AutoModelForCausalLM

from memslots.serving.engines import TransformersEngine, VllmEngine
from memslots.serving.gateway import Gateway
from memslots.serving.gateway_settings import GatewaySettings
from memslots.serving.memory_upload import write_memory_file
from memslots.serving.shelf import ProcessShelf, StoreShelf
from memslots.serving.store import MemoryStore
from memslots.serving.vllm_client import VllmClient

NEW = 10
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def client(zoo):
    gateway = Gateway(zoo.shared(), TransformersEngine(zoo.shared()), ProcessShelf())
    with served(gateway.app()) as url, httpx.Client(base_url=url, timeout=60) as one:
        yield one


def asking(question=QUESTIONS[0], **fields):
    return {"messages": [{"role": "user", "content": question}], "max_tokens": NEW, **fields}


def answered(response):
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]["message"]["content"]


def streamed(client, body):
    """The text, the finish reason, the usage and the number of text chunks of a stream."""
    text, finish, usage, chunks = "", None, None, 0
    body = {**body, "stream": True, "stream_options": {"include_usage": True}}
    with client.stream("POST", CHAT, json=body) as response:
        assert response.status_code == 200, response.read()
        lines = [line for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    for line in lines[:-1]:
        event = json.loads(line.removeprefix("data: "))
        usage = event.get("usage") or usage
        for choice in event["choices"]:
            text += choice["delta"].get("content", "")
            chunks += bool(choice["delta"].get("content"))
            finish = choice["finish_reason"] or finish
    return text, finish, usage, chunks


def refused(response, status, match, code=None):
    error = response.json()["error"]
    assert (response.status_code, set(error)) == (status, {"message", "type", "param", "code"})
    assert match in error["message"], error
    assert code in (None, error["code"])
    return error


# -- answers ---------------------------------------------------------------------------------------


def test_documents_are_answered_as_generate_answers(client, model):
    for rate in (2, 8):
        memory = model.compress(TEXTS, rate=rate).join()
        expected = model.generate(memory=memory, question=QUESTIONS[1], max_new_tokens=NEW)
        documents = [TEXTS[0], {"text": TEXTS[1]}, TEXTS[2]]
        body = asking(QUESTIONS[1], documents=documents, rate=rate, model="memslots")
        response = client.post(CHAT, json=body)
        assert answered(response) == expected
        usage = response.json()["usage"]
        assert usage["completion_tokens"] == NEW
        assert usage["memslots"]["slots"] == memory.slots.shape[0]
        assert usage["prompt_tokens"] > memory.slots.shape[0]
        assert response.json()["choices"][0]["finish_reason"] == "length"


def test_a_stream_adds_up_to_the_answer(client, model):
    body = asking(documents=TEXTS[:1])
    response = client.post(CHAT, json=body)
    text, finish, usage, chunks = streamed(client, body)
    assert text == answered(response)
    assert (finish, usage) == ("length", response.json()["usage"])
    assert chunks > 2


def test_an_answer_ends_where_the_checkpoint_says(client, model, monkeypatch):
    body = asking(documents=TEXTS[:1])
    plain = answered(client.post(CHAT, json=body))
    end = plain[len(plain) // 2 :][:2]
    monkeypatch.setattr(model.processor, "answer_end", end)
    response = client.post(CHAT, json=body)
    assert answered(response) == plain[: plain.find(end)].strip()
    assert response.json()["choices"][0]["finish_reason"] == "stop"
    assert streamed(client, body)[:2] == (answered(response), "stop")


def test_stop_strings_end_an_answer_before_them(client, model):
    plain = answered(client.post(CHAT, json=asking(documents=TEXTS[:1])))
    stop = plain[len(plain) // 2 :][:2]
    body = asking(documents=TEXTS[:1], stop=[stop, "never"])
    response = client.post(CHAT, json=body)
    assert answered(response) == plain[: plain.find(stop)].strip()
    assert response.json()["choices"][0]["finish_reason"] == "stop"
    assert streamed(client, body)[:2] == (answered(response), "stop")


def test_a_seed_repeats_a_draw(client):
    body = asking(documents=TEXTS[:1], temperature=1.5, seed=3)
    first, again = (answered(client.post(CHAT, json=body)) for _ in range(2))
    others = {answered(client.post(CHAT, json={**body, "seed": seed})) for seed in range(4, 8)}
    assert first == again
    assert others - {first}


@pytest.mark.parametrize("least", [5e-324, 1e-45, 1e-38, 1e-6, 0.009, 0.01])
def test_the_smallest_temperatures_draw_the_likeliest(client, least):
    greedy = answered(client.post(CHAT, json=asking(documents=TEXTS[:1], temperature=0)))
    for fields in ({}, {"top_p": 5e-324}, {"top_k": 1}):
        body = asking(documents=TEXTS[:1], temperature=least, seed=1, **fields)
        text = answered(client.post(CHAT, json=body))
        assert text == greedy or least == 0.01


def test_chats_go_through_the_chat_template(zoo):
    model = zoo.compressor(prompt_format="chat")
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hello."}]},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "Who signed?"},
    ]
    memory = model.compress(TEXTS[1])
    expected = model.generate(memory=memory, messages=messages, max_new_tokens=NEW)
    with (
        served(Gateway(model, TransformersEngine(model), ProcessShelf()).app()) as url,
        httpx.Client(base_url=url, timeout=60) as client,
    ):
        body = {"messages": messages, "documents": TEXTS[1:2], "max_tokens": NEW}
        assert answered(client.post(CHAT, json=body)) == expected
        body["chat_template_kwargs"] = {"chat_template": "{{ 1 }}"}
        refused(client.post(CHAT, json=body), 400, "chat_template cannot be set")


def test_two_turns_of_one_role_are_answered_where_roles_must_alternate(zoo):
    model = zoo.compressor(prompt_format="chat")
    model.processor.tokenizer.chat_template = ALTERNATING
    messages = [{"role": "user", "content": text} for text in ("Read this.", "Who signed?")]
    memory = model.compress(TEXTS[1])
    expected = model.generate(memory=memory, messages=messages, max_new_tokens=NEW)
    with (
        served(Gateway(model, TransformersEngine(model), ProcessShelf()).app()) as url,
        httpx.Client(base_url=url, timeout=60) as client,
    ):
        body = {"messages": messages, "documents": TEXTS[1:2], "max_tokens": NEW}
        assert answered(client.post(CHAT, json=body)) == expected
        body["messages"] = [{"role": "assistant", "content": "Hi."}, *messages]
        refused(client.post(CHAT, json=body), 400, "roles must alternate")


# -- memories --------------------------------------------------------------------------------------


def test_memories_are_made_once_and_answer_by_id(client, model):
    made = client.post("/v1/memories", json={"text": TEXTS[1], "metadata": {"year": 1920}}).json()
    again = client.post("/v1/memories", json={"text": TEXTS[1]}).json()
    assert made == again == client.get(f"/v1/memories/{made['id']}").json()
    memory = model.compress(TEXTS[1])
    assert made["metadata"] == {"year": 1920}
    assert (made["slots"], made["fingerprint"]) == (len(memory.slots), model.fingerprint)
    expected = model.generate(memory=memory, question=QUESTIONS, max_new_tokens=NEW)
    got = [answered(client.post(CHAT, json=asking(q, memory_ids=[made["id"]]))) for q in QUESTIONS]
    assert got == expected
    both = model.compress([TEXTS[0], TEXTS[1]]).join()
    body = asking(documents=TEXTS[:1], memory_ids=[made["id"]])
    expected = model.generate(memory=both, question=QUESTIONS[0], max_new_tokens=NEW)
    assert answered(client.post(CHAT, json=body)) == expected
    refused(client.post("/v1/memories", json={"text": TEXTS[0], "id": made["id"]}), 409, "another")


def test_memory_files_travel_both_ways(client, model, tmp_path):
    memory = model.compress(TEXTS[2], rate=4)
    encoded = base64.b64encode(write_memory_file(memory)).decode()
    made = client.post("/v1/memories", json={"memory": encoded, "id": "a/file 1"})
    assert made.json()["rate"] == 4
    back = client.get("/v1/memories/a%2Ffile%201?format=safetensors")
    file = tmp_path / "back.safetensors"
    file.write_bytes(back.content)
    kept = model.load_memory(file)
    assert torch.equal(kept.slots, memory.slots)
    assert (kept.documents, kept.rate) == (memory.documents, 4)
    assert client.delete("/v1/memories/a%2Ffile%201").json()["deleted"]
    refused(client.get("/v1/memories/a%2Ffile%201"), 404, "no memory", "memory_not_found")


@pytest.mark.parametrize("kept", ["here", "store", "int8"])
def test_a_file_of_other_slots_never_stands_for_a_text(model, tmp_path, kept):
    """What a file says of its text is no proof: its id is the text's, whatever its slots are."""
    dtype = "int8" if kept == "int8" else "bfloat16"
    shelf = ProcessShelf() if kept == "here" else StoreShelf(MemoryStore(tmp_path / "s", dtype))
    memory = model.compress(TEXTS[1])
    forged = dataclasses.replace(memory, slots=memory.slots.flip(0))
    as_file = {"memory": base64.b64encode(write_memory_file(forged)).decode()}
    with (
        served(Gateway(model, TransformersEngine(model), shelf).app()) as url,
        httpx.Client(base_url=url, timeout=60) as client,
    ):
        key = client.post("/v1/memories", json=as_file).json()["id"]
        refused(
            client.post("/v1/memories", json={"text": TEXTS[1]}), 409, "another", "memory_exists"
        )
        client.delete(f"/v1/memories/{key}")
        made = client.post("/v1/memories", json={"text": TEXTS[1]}).json()
        assert made["id"] == key
        for named in ({}, {"id": key}):
            refused(client.post("/v1/memories", json={**as_file, **named}), 409, "another")
        for precision in (torch.float32, torch.float16, torch.bfloat16):  # rounded, and the same
            file = write_memory_file(memory.to(dtype=precision))
            body = {"memory": base64.b64encode(file).decode()}
            assert client.post("/v1/memories", json=body).json() == made


def test_a_store_keeps_memories_over_restarts(zoo, model, tmp_path):
    made, answers = {}, []
    for _ in range(2):
        shelf = StoreShelf(MemoryStore(tmp_path / "store"))
        gateway = Gateway(model, TransformersEngine(model), shelf)
        with served(gateway.app()) as url, httpx.Client(base_url=url, timeout=60) as client:
            if not made:
                made = client.post("/v1/memories", json={"text": TEXTS[1]}).json()
            assert client.post("/v1/memories", json={"text": TEXTS[1]}).json() == made
            answers.append(answered(client.post(CHAT, json=asking(memory_ids=[made["id"]]))))
            refused(client.post(CHAT, json=asking(memory_ids=["no"])), 404, "no memory")
    kept = MemoryStore(tmp_path / "store").get(made["id"])
    assert answers == [model.generate(memory=kept, question=QUESTIONS[0], max_new_tokens=NEW)] * 2
    (file,) = (tmp_path / "store" / "data").iterdir()
    file.write_bytes(file.read_bytes()[:-200])
    with served(Gateway(model, TransformersEngine(model), shelf).app()) as url:
        response = httpx.post(url + CHAT, json=asking(memory_ids=[made["id"]]), timeout=60)
        refused(response, 500, "damaged", "memory_damaged")
        assert str(tmp_path) not in response.text


# -- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "status", "match"),
    [
        (asking(rate=2), 400, "rate is about a context"),
        (asking("word " * 600), 400, "leave out the oldest messages"),
        (asking(memory_ids=["nobody"]), 404, "no memory 'nobody'"),
        (asking(documents=["x"], model="gpt-4"), 404, "serves 'memslots'"),
        (asking(documents=["x"], rate=3), 400, "rate"),
        (asking(documents=["   "]), 400, "empty"),
        (asking(documents=["x"] * 65), 400, "at most 64"),
        (asking(documents=["x"], max_tokens=10**6), 400, "1024 at most"),
        (asking(documents=["x"], n=2), 400, "n:"),
        (asking(documents=["x"], tools=[{}]), 400, "tools"),
        (asking(documents=["x"], temperature=-1), 400, "temperature"),
        (asking(documents=["x"], logit_bias={"1": 2}), 400, "cannot honour 'logit_bias'"),
        (asking(memory_id="x"), 400, "did you mean 'memory_ids'"),
        (asking(memories=["x"]), 400, "did you mean 'memory_ids'"),
        (asking(document="x"), 400, "did you mean 'documents'"),
        (asking(context="x"), 400, "did you mean 'documents'"),
        (asking(texts=["x"]), 400, "did you mean 'documents'"),
        (asking(" ", documents=["x"]), 400, "question"),
        ({"documents": ["x"], "messages": []}, 400, "messages"),
        ({"documents": ["x"], "messages": [{"role": "root", "content": "x"}]}, 400, "role"),
        ({"documents": ["x"], "messages": [{"role": "user", "content": 3}]}, 400, "content"),
        ([1], 400, "body"),
    ],
)
def test_mistakes_are_named(client, body, status, match):
    refused(client.post(CHAT, json=body), status, match)
    if isinstance(body, dict):
        refused(client.post(CHAT, json={**body, "stream": True}), status, match)


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        (
            {"documents": "x"},
            "documents",
            'documents are a list of texts, each a string or {"text"',
        ),
        ({"documents": [{"txt": "x"}]}, "documents.0", 'each a string or {"text": ...}'),
        ({"documents": [5]}, "documents.0", "none is empty, got 5"),
        ({"stop": 5}, "stop", "a string or a list of strings, and none is empty, got 5"),
        ({"n": 2}, "n", "one answer here; leave n out, or say 1, got 2"),
        ({"tools": [{}]}, "tools", "leave tools out"),
        ({"response_format": {"type": "json_object"}}, "response_format.type", "text here; leave"),
        ({"seed": -1}, "seed", "it must be greater than or equal to 0, got -1"),
        ({"max_tokens": "many"}, "max_tokens", "it must be a valid integer, got 'many'"),
        ({"chat_template_kwargs": {"a": []}}, "chat_template_kwargs.a", "a string, a number"),
        ({"top_logprobs": 2}, None, "body: this gateway cannot honour 'top_logprobs'"),
        ({"messages": [{"content": "x"}]}, "messages", "messages: a message's role is one of"),
        ({"user": "x" * 10**6, "store": "x" * 10**6}, "store", "say false, got 'xxx"),
    ],
    ids=str,
)
def test_a_refusal_speaks_of_the_request(client, fields, param, said):
    """Not of the types by which it is read here, and it says what was given, a line of it."""
    error = refused(client.post(CHAT, json=asking(documents=["x"]) | fields), 400, said)
    assert error["param"] == param
    assert len(error["message"]) < 300
    for word in ("Input should", "constrained", "Value error", "valid array"):
        assert word not in error["message"]


def test_a_field_that_is_null_is_left_out(client):
    """Clients of typed languages send all fields that they know."""
    named = ("stream", "stop", "memory_ids", "expand", "chat_template_kwargs", "logit_bias", "name")
    body = asking(documents=TEXTS[:1])
    assert answered(client.post(CHAT, json=body | dict.fromkeys(named))) == answered(
        client.post(CHAT, json=body)
    )
    made = {"text": TEXTS[0], "metadata": None, "id": None, "rate": None}
    assert client.post("/v1/memories", json=made).status_code == 200
    refused(client.post(CHAT, json={"messages": None}), 400, "messages: this field is missing")


def test_a_packed_body_is_refused_as_such(client):
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    packed = gzip.compress(json.dumps(asking()).encode())
    refused(client.post(CHAT, content=packed, headers=headers), 415, "Content-Encoding: gzip")


def test_a_picture_that_is_refused_is_not_sent_back(zoo):
    model = zoo.compressor(prompt_format="chat")
    picture = {"type": "image_url", "image_url": {"url": "data:" + "x" * 10**6}}
    for content in ([picture], [picture, 1], {"url": "x" * 10**6}):
        message = {"role": "user", "content": content}
        with pytest.raises(ValueError, match="got ") as refusal:
            model.processor.prompt(messages=[message])
        assert len(str(refusal.value)) < 300


def test_other_mistakes_are_named_too(client, zoo, model):
    json_type = {"Content-Type": "application/json"}
    refused(client.post(CHAT, content=b'{"messages', headers=json_type), 400, "JSON")
    refused(client.get("/v1/nowhere"), 404, "not served", "unknown_url")
    refused(client.get(CHAT), 405, "not served")
    assert client.get(CHAT).headers["allow"] == "POST"
    refused(client.get("/health/", headers={"host": "elsewhere.example"}), 404, "not served")
    for fields, match in (
        ({}, "exactly one"),
        ({"text": "x", "memory": "y"}, "exactly one"),
        ({"memory": "not base64!"}, "base64"),
        ({"memory": base64.b64encode(b"nothing").decode()}, "cannot be read as a memory"),
    ):
        refused(client.post("/v1/memories", json=fields), 400, match)
    other = zoo.compressor(seed=9).compress(TEXTS[0])
    two = model.compress(TEXTS[:2])
    for memory, match in ((other, "written by compressor"), (two, "2 documents")):
        encoded = base64.b64encode(write_memory_file(memory)).decode()
        refused(client.post("/v1/memories", json={"memory": encoded}), 400, match)


def test_slots_of_another_kind_are_refused(client, model):
    memory = model.compress(TEXTS[0])
    for slots, match in (
        (memory.slots.repeat(1, 2), "slots of width"),
        (memory.slots.long(), "floating-point"),
        (memory.slots * float("nan"), "not finite"),
    ):
        wrong = dataclasses.replace(memory)
        object.__setattr__(wrong, "slots", slots)  # what no Memory of ours has, a file may
        encoded = base64.b64encode(write_memory_file(wrong)).decode()
        refused(client.post("/v1/memories", json={"memory": encoded}), 400, match)


def test_a_full_disk_is_said_and_loses_nothing(model, tmp_path, monkeypatch):
    store = MemoryStore(tmp_path / "store")
    full = OSError(errno.ENOSPC, "the disk is full: nothing that was there is lost")
    with (
        served(limited(model, shelf=StoreShelf(store)).app()) as url,
        httpx.Client(base_url=url, timeout=60) as client,
    ):
        made = client.post("/v1/memories", json={"text": TEXTS[0]}).json()
        with monkeypatch.context() as patch:
            patch.setattr(store, "add_rows", lambda *args, **kwargs: (_ for _ in ()).throw(full))
            response = client.post("/v1/memories", json={"text": TEXTS[1]})
            refused(response, 507, "disk is full: nothing of this", "storage_full")
        assert answered(client.post(CHAT, json=asking(memory_ids=[made["id"]])))
        assert client.post("/v1/memories", json={"text": TEXTS[1]}).status_code == 200
    assert len(store) == 2


def limited(model, engine=None, shelf=None, **settings):
    engine = engine or TransformersEngine(model)
    shelf = ProcessShelf() if shelf is None else shelf  # an empty one is falsy
    return Gateway(model, engine, shelf, GatewaySettings(**settings))


def test_keys_and_sizes_are_checked_before_anything_is_done(model):
    gateway = limited(
        model,
        shelf=ProcessShelf(max_bytes=10),
        api_keys=("one", "zwei-é"),
        max_body_bytes=2000,
        max_characters=100,
    )
    with served(gateway.app()) as url, httpx.Client(base_url=url, timeout=60) as client:
        body = asking(documents=["short"])
        for headers in ({}, {"Authorization": "Bearer other"}, {"Authorization": "Basic one"}):
            response = client.post(CHAT, json=body, headers=headers)
            refused(response, 401, "API key", "invalid_api_key")
        for key in ("one", "zwei-é"):
            headers = {"Authorization": f"Bearer {key}".encode()}
            assert client.post(CHAT, json=body, headers=headers).status_code == 200
        assert client.get("/health").json() == {"status": "ok", "engine": "transformers"}
        large = asking(documents=["x" * 3000])
        refused(client.post(CHAT, json=large, headers=headers), 413, "2000 bytes")
        parts = iter([json.dumps(large).encode()])  # without a Content-Length
        as_json = {**headers, "Content-Type": "application/json"}
        refused(client.post(CHAT, content=parts, headers=as_json), 413, "2000 bytes")
        long = asking(documents=["x" * 101])
        refused(client.post(CHAT, json=long, headers=headers), 413, "100", "payload_too_large")
        made = client.post("/v1/memories", json={"text": "short"}, headers=headers)
        refused(made, 507, "of at most 10", "shelf_full")
        page = client.get("/metrics").text
        assert 'memslots_requests_total{route="chat",status="401"} 3.0' in page
        assert 'memslots_requests_total{route="chat",status="200"} 2.0' in page


class Slow:
    """An engine that gives one letter at a time until it is let go or left."""

    name = "slow"
    prefixes = decoder_worker = None

    def __init__(self):
        self.running, self.go = 0, threading.Event()

    async def answer(self, asked, sampling):
        import asyncio

        from memslots.serving.vllm_client import Piece

        self.running += 1
        try:
            while not self.go.is_set():
                await asyncio.sleep(0.01)
                yield Piece("a")
            yield Piece("", 1, "stop")
        finally:
            self.running -= 1

    async def check(self):
        pass

    async def close(self, seconds):
        pass


def until(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@contextlib.contextmanager
def each_pass_takes(seconds, module):
    """Else a tiny model may have answered before the server learns that its client has left."""
    handle = module.register_forward_pre_hook(lambda *_: time.sleep(seconds))
    try:
        yield
    finally:
        handle.remove()


def give_up(url, body):
    with pytest.raises(httpx.TimeoutException):
        httpx.post(url, json=body, timeout=3)


def test_beyond_the_queue_comes_429_and_those_who_left_make_room(model):
    engine = Slow()
    gateway = limited(model, engine, running=1, waiting=1, timeout=100)
    body = asking(documents=["x"], stream=True)
    with served(gateway.app()) as url, httpx.Client(base_url=url, timeout=60) as client:
        with client.stream("POST", CHAT, json=body) as first:
            lines = first.iter_lines()  # kept: an iterator that is dropped closes the stream
            assert next(lines).startswith("data: ")
            waiting = threading.Thread(target=give_up, args=(url + CHAT, body))
            waiting.start()
            until(lambda: gateway.admission.waiting == 1)
            response = client.post(CHAT, json=body)
            refused(response, 429, "try again", "queue_full")
            assert response.headers["retry-after"] == "1"
            waiting.join()  # it gave up, and its place in the line is free
            until(lambda: gateway.admission.inside == 1)
        until(lambda: engine.running == 0)  # left midway: nothing runs for it
        until(lambda: gateway.admission.inside == 0)
        assert "memslots_requests_inside 0.0" in client.get("/metrics").text
        engine.go.set()
        assert client.post(CHAT, json={**body, "stream": False}).status_code == 200


def test_the_generating_thread_stops_when_its_client_leaves(model, monkeypatch):
    ended, passes = [], []
    original, forward = model.decoder.generate, model.decoder.forward

    def ending(*args, **kwargs):
        try:
            return original(*args, **kwargs)
        finally:
            ended.append(len(passes))

    def counting(*args, **kwargs):
        passes.append(1)
        return forward(*args, **kwargs)

    functools.update_wrapper(counting, forward)  # generate looks at its arguments
    monkeypatch.setattr(model.decoder, "generate", ending)
    monkeypatch.setattr(model.decoder, "forward", counting)
    engine = TransformersEngine(model)
    gateway = limited(model, engine, running=2, max_tokens=400)
    body = asking(documents=["x"], stream=True)
    body["max_tokens"] = 400
    with (
        served(gateway.app()) as url,
        httpx.Client(base_url=url, timeout=60) as client,
        each_pass_takes(0.02, model.decoder.model),
    ):
        with client.stream("POST", CHAT, json=body) as first:
            assert next(first.iter_lines()).startswith("data: ")
        until(lambda: gateway.admission.inside == 0)
        assert client.post(CHAT, json=asking(documents=["x"])).status_code == 200
        # One thread generates, so the second answer came after the first had ended: how early?
        assert len(ended) == 2
        assert 0 < ended[0] < 400


def test_a_request_that_takes_too_long_ends(model, caplog):
    engine = Slow()
    with served(limited(model, engine, timeout=0.5).app()) as url:
        response = httpx.post(url + CHAT, json=asking(documents=["x"]), timeout=30)
        refused(response, 504, "too long", "timeout")
        until(lambda: engine.running == 0)
    (logged,) = (record for record in caplog.records if record.name.startswith("memslots"))
    assert "took too long" in logged.getMessage()
    assert not logged.exc_info


# -- in front of vLLM ------------------------------------------------------------------------------


def test_in_front_of_vllm_answers_are_the_same(model):
    stand_in = StandIn(model, failures=[503])
    expected = model.generate(context=TEXTS[1], question=QUESTIONS[0], max_new_tokens=NEW)
    body = asking(documents=TEXTS[1:2])
    with served(stand_in.app()) as engine_url:
        engine = VllmEngine(model, VllmClient(engine_url))
        with (
            served(limited(model, engine).app()) as url,
            httpx.Client(base_url=url, timeout=60) as client,
        ):
            assert answered(client.post(CHAT, json=body)) == expected
            text, finish, usage, chunks = streamed(client, body)
            assert (text, finish, usage["completion_tokens"]) == (expected, "length", NEW)
            assert chunks > 2
            assert client.get("/health").json()["engine"] == "vllm"
            assert {one["temperature"] for one in stand_in.requests} == {0.0}
            stand_in.pause, before = 0.2, stand_in.streamed
            with client.stream("POST", CHAT, json={**body, "stream": True}) as response:
                assert next(response.iter_lines()).startswith("data: ")
            time.sleep(1.0)
            assert stand_in.streamed - before < len(expected)  # left: aborted on the server too
            stand_in.failures = [500]
            refused(client.post(CHAT, json=body), 502, "answered 500", "engine_error")
            stand_in.failures = [400]
            refused(client.post(CHAT, json=body), 400, "vLLM refused the prompt")


def test_an_engine_with_another_decoder_is_refused_before_it_answers(zoo, model):
    """Of the same width, or of another; what is asked then is not sent there."""
    other = zoo.shared("gpt2", "phi3")
    wide = shapes_of_another_width(model)
    for held in (other, wide):
        stand_in = StandIn(held)
        with served(stand_in.app()) as engine_url:
            engine = VllmEngine(model, VllmClient(engine_url))
            with (
                served(limited(model, engine).app()) as url,
                httpx.Client(base_url=url, timeout=60) as client,
            ):
                refused(client.get("/health"), 502, "does not run the decoder", "engine_error")
                body = asking(documents=["x"])
                refused(client.post(CHAT, json=body), 502, "does not run the decoder")
                assert not any(one.get("stream") for one in stand_in.requests)


def shapes_of_another_width(model):
    """A decoder of twice the width, as a model that a `StandIn` takes."""
    config = copy.deepcopy(model.decoder.config)
    config.hidden_size *= 2
    config.head_dim = None
    decoder = AutoModelForCausalLM.from_config(type(config)(**config.to_diff_dict()))
    return types.SimpleNamespace(decoder=decoder, processor=model.processor)


def test_without_vllm_the_gateway_says_so(model):
    engine = VllmEngine(model, VllmClient("http://127.0.0.1:9", retries=0))
    with (
        served(limited(model, engine).app()) as url,
        httpx.Client(base_url=url, timeout=60) as client,
    ):
        refused(client.get("/health"), 503, "no vLLM server", "engine_error")
        refused(client.post(CHAT, json=asking(documents=["x"])), 503, "no vLLM server")
