"""What the gateway lets others cost it: time, memory and places; and what it tells them."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx
import pytest
from loopback import served
from pydantic import ValidationError
from test_gateway import CHAT, asking, each_pass_takes, give_up, limited, refused, until
from tiny_models import TEXTS

from memslots import MemslotsModel, embedded
from memslots.cli import main
from memslots.interruption import EVERY
from memslots.modeling.texts_memslots import DETECTORS
from memslots.serving.gateway import parse
from memslots.serving.gateway_requests import ApiError, ChatRequest, MemoryRequest
from memslots.serving.server import gateway_server
from memslots.serving.shelf import ProcessShelf, StoreShelf
from memslots.serving.store import MemoryStore

LONG = TEXTS[1] * 40
MEMORIES = "/v1/memories"
NAMED = ("chat_template_kwargs", "response_format", "stream_options")


@contextlib.contextmanager
def client_of(gateway, timeout=60):
    with served(gateway.app()) as url, httpx.Client(base_url=url, timeout=timeout) as client:
        yield client


class Gate:
    """Holds a model's encoder or decoder before its first pass, and counts passes."""

    def __init__(self, module):
        self.passes, self.reached, self.open = 0, threading.Event(), threading.Event()
        self._handle = module.register_forward_pre_hook(self._pass)

    def _pass(self, module, inputs):
        self.passes += 1
        self.reached.set()
        assert self.open.wait(60)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.open.set()
        self._handle.remove()


def metric(client, name) -> float:
    lines = [line for line in client.get("/metrics").text.splitlines() if line.startswith(name)]
    return sum(float(line.split()[-1]) for line in lines)


def sent(client, path, body) -> socket.socket:
    """A connection on which a request was sent, to be left by whoever closes it."""
    text = json.dumps(body).encode()
    return unfinished(str(client.base_url), len(text), body=text, path=path)


def unfinished(url, size=100, body=b"x" * 10, path=MEMORIES) -> socket.socket:
    """A connection on which so much of a body was sent."""
    host, port = url.removeprefix("http://").rstrip("/").split(":")
    connection = socket.create_connection((host, int(port)), timeout=30)
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    connection.sendall(f"{head}Content-Length: {size}\r\n\r\n".encode() + body)
    return connection


# -- a gateway that can be left --------------------------------------------------------------------

WORK = [
    (CHAT, asking(documents=[TEXTS[1] * 4], rate=8, max_tokens=1), "encoder"),
    (CHAT, asking(documents=["x"], max_tokens=200), "decoder"),
    (MEMORIES, {"text": LONG}, "encoder"),
    (MEMORIES, {"text": LONG, "exact": True}, "encoder"),
    (MEMORIES, {"text": LONG, "fidelity": 1.0}, "decoder"),
]


@pytest.mark.filterwarnings("ignore:from the slots the decoder")
@pytest.mark.parametrize(("path", "body", "held"), WORK)
def test_whoever_leaves_ends_the_work_and_holds_a_place_until_then(model, path, body, held):
    gateway = limited(model, running=1, waiting=1)
    with client_of(gateway) as client, Gate(getattr(model, held)) as gate:
        with sent(client, path, body):
            assert gate.reached.wait(100)
        time.sleep(0.3)
        assert gateway.admission.inside == 1  # its thread is not done
        assert metric(client, "memslots_requests_inside") == 1
        gate.open.set()
        until(lambda: gateway.admission.inside == 0)
        assert gate.passes == 1
        assert client.post(CHAT, json=asking(documents=["x"])).status_code == 200


def test_a_request_out_of_time_is_told_so_while_its_thread_still_works(model):
    gateway = limited(model, running=1, waiting=1, timeout=0.5)
    with client_of(gateway) as client, Gate(model.encoder) as gate:
        started = time.monotonic()
        refused(client.post(MEMORIES, json={"text": LONG}), 504, "too long", "timeout")
        assert time.monotonic() - started < 5
        assert gateway.admission.inside == 1
        gate.open.set()
        until(lambda: gateway.admission.inside == 0)


def test_tokenizing_ends_too(model, monkeypatch):
    """Before the encoder's first pass a text of millions of characters is cut into segments."""
    texts, go = [], threading.Event()
    gateway = limited(model)
    backend = model.processor.encoder_text.backend
    inner = backend._tokenizer

    class Counting:
        def encode(self, *args, **kwargs):
            texts.append(1)
            assert go.wait(60)
            return inner.encode(*args, **kwargs)

    monkeypatch.setattr(backend, "_tokenizer", Counting())
    with client_of(gateway) as client:
        with sent(client, MEMORIES, {"text": LONG}):
            until(lambda: texts)
        time.sleep(0.3)
        go.set()
        until(lambda: gateway.admission.inside == 0)
        assert len(texts) == 1


@pytest.mark.filterwarnings("ignore:from the slots the decoder")
@pytest.mark.parametrize("asked", [{"exact": ["numbers", "dates"]}, {"literals": ["numbers"]}])
def test_searching_for_what_must_be_exact_ends_too(model, monkeypatch, asked):
    """Detectors search a text of millions of characters for seconds."""
    given, others, go = [], [], threading.Event()

    def spans(text):
        for place in range(100 * EVERY):
            given.append(place)
            assert go.wait(60)
            yield 0, 1

    monkeypatch.setitem(DETECTORS, "numbers", spans)
    monkeypatch.setitem(DETECTORS, "dates", lambda text: others.append(1) or [])
    # Nothing else on the way looks at the flag.
    monkeypatch.setattr("memslots.serving.stopping.look", lambda: None)
    gateway = limited(model)
    with client_of(gateway) as client:
        with sent(client, MEMORIES, {"text": "Ann owns 27 maps.", **asked}):
            until(lambda: given)
        time.sleep(0.3)
        go.set()
        until(lambda: gateway.admission.inside == 0)
    assert not others
    assert len(given) <= EVERY + 1


@pytest.mark.parametrize(
    "asked",
    [
        asking("to be " * 50_000),
        {"messages": [{"role": "user", "content": "Why?"}] * 2 + asking("x" * 300_000)["messages"]},
        asking(documents=["See https://a.example/" + "b" * 300_000], literals=["urls"]),
    ],
)
def test_what_cannot_fit_is_not_tokenized_whole(model, monkeypatch, asked):
    """A tokenizer lets no other thread run: nobody would be answered meanwhile."""
    lengths = []
    backend = model.processor.decoder_text.backend
    inner = getattr(backend, "_tokenizer", backend)

    class Noting:
        def encode(self, text, **kwargs):
            lengths.append(len(text))
            return inner.encode(text, **kwargs)

    monkeypatch.setattr(model.processor.decoder_text, "backend", Noting())
    with client_of(limited(model)) as client:
        refused(client.post(CHAT, json=asked), 400, "shorten it")
    assert max(lengths) < 10_000


def test_the_gateway_stops_in_time_while_a_thread_works(model):
    gateway = limited(model, shutdown=1.0)
    with Gate(model.encoder) as gate:
        with client_of(gateway) as client:
            with sent(client, MEMORIES, {"text": LONG}):
                assert gate.reached.wait(100)
            started = time.monotonic()
        assert time.monotonic() - started < 10


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")
def test_sigterm_ends_the_process_in_time(tmp_path):
    """Also while its thread is where it cannot look at a flag."""
    script = tmp_path / "serve.py"
    script.write_text(
        """
import sys, time
from memslots.cli import main
from memslots.modeling import MemslotsModel
def stuck(self, *args, **kwargs):
    time.sleep(100)
MemslotsModel.encode = stuck
sys.exit(main(["serve", "--port", sys.argv[1], "--shutdown", "3", "--dtype", "float32"]))
"""
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    process = subprocess.Popen([sys.executable, script, port])
    try:
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 120
        while True:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(url + "/health", timeout=5).status_code == 200:
                    break
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.2)
        give_up(url + MEMORIES, {"text": "A text."})
        started = time.monotonic()
        process.send_signal(signal.SIGTERM)
        process.wait(30)
        assert time.monotonic() - started < 8
    finally:
        process.kill()
        process.wait()


# -- bodies and headers ----------------------------------------------------------------------------


def said(one: socket.socket) -> tuple[int, dict]:
    """The status and the error of an answer after which the server closes."""
    data = b""
    while part := one.recv(65536):
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["error"]


def test_bodies_that_do_not_come_end_in_time(model):
    gateway = limited(model, timeout=1.0, running=2, waiting=2)
    with client_of(gateway) as client:
        slow = [unfinished(str(client.base_url)) for _ in range(4)]
        until(lambda: gateway.admission.inside == 4)
        refused(client.post(CHAT, json=asking(documents=["x"])), 429, "4 requests", "queue_full")
        assert client.get("/health").status_code == 200
        for one in slow:
            assert said(one)[0] == 408
        until(lambda: gateway.admission.inside == 0)
        assert client.post(CHAT, json=asking(documents=["x"])).status_code == 200


def test_bodies_together_take_no_more_than_their_room(model):
    gateway = limited(model, max_body_bytes=1000)
    with client_of(gateway) as client:
        slow = [unfinished(str(client.base_url), 1000, b"x" * 900) for _ in range(4)]
        until(lambda: gateway.admission._bodies_bytes == 3600)
        fifth = unfinished(str(client.base_url), 1000, b"x" * 900)
        status, error = said(fifth)
        assert (status, error["code"]) == (429, "queue_full")
        for one in slow:
            one.close()
        until(lambda: gateway.admission._bodies_bytes == 0)
        assert client.post(CHAT, json=asking(documents=["x"])).status_code == 200


def test_a_body_is_read_where_there_is_one(model):
    gateway = limited(model)
    with client_of(gateway) as client:
        get = unfinished(str(client.base_url), 10**9, b"x" * 10**5, "/v1/nowhere")
        assert get.recv(1000).split()[1] == b"404"
        assert gateway.admission.inside == 0


@contextlib.contextmanager
def running(gateway):
    server = gateway_server(gateway, "127.0.0.1", 0)
    server.config.log_config = None
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until(lambda: server.started)
    try:
        yield server.servers[0].sockets[0].getsockname()
    finally:
        server.should_exit = True
        thread.join(20)


@pytest.mark.parametrize("sent", [b"", b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: "])
def test_headers_that_do_not_come_end_in_time(model, sent):
    with running(limited(model, timeout=1.0)) as address:
        again = f"GET /health HTTP/1.1\r\nHost: localhost:{address[1]}\r\n\r\n".encode()
        for before in (b"", again):  # the first request of a connection, and one after it
            with socket.create_connection(address, timeout=20) as one:
                one.sendall(before)
                answer = b""
                while before and not answer.endswith(b"}"):  # headers and body may come apart
                    answer += one.recv(4096)
                assert not before or b"200 OK" in answer
                one.sendall(sent)
                started = time.monotonic()
                assert one.recv(10) == b""
                assert time.monotonic() - started < 10


# -- who may ask -----------------------------------------------------------------------------------


def test_without_a_key_only_loopback_names_are_answered(model):
    with client_of(limited(model)) as client:
        for host in ("localhost", "127.0.0.1:80", "[::1]:8080", "LOCALHOST:1"):
            assert client.get("/v1/models", headers={"Host": host}).status_code == 200
        for host in (
            "evil.example",
            "evil.example:8080",
            "127.0.0.1.evil.example",
            "[",
            "localhost.evil",
            "",
        ):
            for path in ("/v1/models", "/metrics", "/health", f"{MEMORIES}/x"):
                response = client.get(path, headers={"Host": host})
                assert response.status_code in (400, 403), host
                assert response.status_code == 403 or not response.text.startswith("{")
    key = {"Authorization": "Bearer k", "Host": "gateway.example"}
    with client_of(limited(model, api_keys=("k",))) as client:
        assert client.get("/v1/models", headers=key).status_code == 200


def test_what_a_web_page_can_send_unasked_is_refused(model):
    gateway = limited(model)
    with client_of(gateway) as client:
        for kind in (
            "text/plain",
            "application/x-www-form-urlencoded",
            "multipart/form-data",
            None,
        ):
            headers = {} if kind is None else {"Content-Type": kind}
            body = json.dumps({"text": "x"}).encode()
            response = client.post(MEMORIES, content=body, headers=headers)
            refused(response, 415, "application/json", "unsupported_media_type")
        headers = {"Content-Type": "Application/JSON; charset=utf-8"}
        assert client.post(MEMORIES, content=body, headers=headers).status_code == 200
        assert metric(client, "memslots_memories") == 1


# -- what is kept ----------------------------------------------------------------------------------


def test_all_that_is_kept_counts(model):
    gateway = limited(model, shelf=ProcessShelf(max_bytes=200_000))
    with client_of(gateway) as client:
        big = {"note": "é" * 45_000}
        statuses = [
            client.post(MEMORIES, json={"text": "x", "id": f"m{i}", "metadata": big}).status_code
            for i in range(4)
        ]
        assert statuses == [200, 200, 507, 507]
        assert client.delete(f"{MEMORIES}/m0").status_code == 200
        made = client.post(MEMORIES, json={"text": "x", "id": "m9", "metadata": big})
        assert made.json()["metadata"] == big
        lists = json.dumps({"text": "x", "metadata": {"deep": [[]] * 40_000}})
        kept = client.post(MEMORIES, content=lists, headers={"Content-Type": "application/json"})
        assert kept.status_code == 507


@pytest.mark.parametrize("kept", ["process", "store"])
def test_metadata_say_nothing_of_the_gateways_own(model, tmp_path, kept):
    shelf = ProcessShelf() if kept == "process" else StoreShelf(MemoryStore(tmp_path / "store"))
    with client_of(limited(model, shelf=shelf)) as client:
        now = time.time()
        own = {"created": "long ago", "id": "other"}
        made = client.post(MEMORIES, json={"text": "x", "id": "m", "metadata": own}).json()
        assert made["metadata"] == own
        assert abs(made["created"] - now) < 60
        assert client.get(f"{MEMORIES}/m").json() == made
        reserved = {"text": "y", "metadata": {"memslots_created": 1}}
        refused(client.post(MEMORIES, json=reserved), 400, "memslots_created cannot be set")
        for bad in ('{"a": NaN}', '{"a": Infinity}', '{"a": "\\ud800"}'):
            body = f'{{"text": "y", "metadata": {bad}}}'
            headers = {"Content-Type": "application/json"}
            refused(client.post(MEMORIES, content=body, headers=headers), 400, "")


@pytest.mark.parametrize("kept", ["process", "store"])
def test_ids_are_what_stands_in_the_address(model, tmp_path, kept):
    shelf = ProcessShelf() if kept == "process" else StoreShelf(MemoryStore(tmp_path / "store"))
    with client_of(limited(model, shelf=shelf)) as client:
        assert client.post(MEMORIES, json={"text": "x", "id": "nl"}).status_code == 200
        for path in ("nl%0A", "nl%00", "nl%0D", "nl%C2%85", "nl%E2%80%A8"):
            for method in ("DELETE", "GET"):
                refused(client.request(method, f"{MEMORIES}/{path}"), 400, "control character")
        assert client.get(f"{MEMORIES}/nl").status_code == 200
        joined = "\U0001f469\u200d\U0001f680\u3000x"
        assert client.post(MEMORIES, json={"text": "x", "id": joined}).status_code == 200
        assert client.get(f"{MEMORIES}/{joined}").json()["id"] == joined
        for key in ("nl\n", "a\0", "\x1b[2J"):
            refused(client.post(MEMORIES, json={"text": "x", "id": key}), 400, "control character")
        assert client.get("/v1/models%0A").status_code == 400


# -- what is told ----------------------------------------------------------------------------------


def test_no_answer_names_a_folder_of_the_server(model, tmp_path):
    store = MemoryStore(tmp_path / "store")
    gateway = limited(model, shelf=StoreShelf(store))
    with client_of(gateway) as client:
        assert client.post(MEMORIES, json={"text": "x", "id": "m"}).status_code == 200
        catalogue = tmp_path / "store" / "catalogue.sqlite"
        whole = catalogue.read_bytes()
        catalogue.write_bytes(whole[:100] + b"\xff" * (len(whole) - 100))
        answers = [
            client.post(MEMORIES, json={"text": "y", "id": "n"}),
            client.get(f"{MEMORIES}/m"),
            client.delete(f"{MEMORIES}/m"),
            client.post(CHAT, json=asking(memory_ids=["m"])),
        ]
        for response in answers:
            refused(response, 500, "damaged", "memory_damaged")
            assert str(tmp_path) not in response.text
        catalogue.write_bytes(whole)
        for content in ("aGVsbG8=", "AAAAAAAAAAA=", "/////////////w=="):
            response = client.post(MEMORIES, json={"memory": content})
            refused(response, 400, "memory")
            assert "/tmp" not in response.text
            assert "memslots-" not in response.text


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ('"id": "a\\nb"', "id"),
        ('"metadata": {"year": NaN}', "metadata"),
        ('"metadata": {"year": 1e999}', "metadata"),
    ],
)
def test_what_cannot_be_kept_is_not_compressed(model, fields, param):
    headers = {"content-type": "application/json"}
    with client_of(limited(model)) as client, Gate(model.encoder) as gate:
        gate.open.set()
        body = f'{{"text": "Ann is here.", {fields}}}'
        response = client.post(MEMORIES, content=body, headers=headers)
        assert refused(response, 400, "")["param"] == param
        assert gate.passes == 0


@pytest.mark.parametrize("fields", [{}, {"documents": ["Ann is here."]}], ids=str)
def test_without_a_chat_template_one_message_is_taken_and_no_folder_is_named(fields):
    folder = embedded("tiny")
    model = MemslotsModel.from_pretrained(folder)
    user = {"role": "user", "content": "Who?"}
    with client_of(limited(model)) as client:
        for messages in (
            [{"role": "system", "content": "Be brief."}, user],
            [user, {"role": "assistant", "content": "Ann."}, user],
            [{"role": "developer", "content": "Who?"}],
            [{"role": "user", "content": None}],
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
        ):
            response = client.post(CHAT, json={"messages": messages, **fields})
            refused(response, 400, "takes one message")
            assert folder not in response.text
    with pytest.raises(ValueError, match="Use question=") as error:
        model.generate(context="Ann is here.", messages=[user])
    assert folder not in str(error.value)  # endpoints tell their clients too


def test_models_name_no_folder_of_the_server(zoo):
    model = zoo.compressor()
    for name, shown in (
        ("/srv/models/decoder", "decoder"),
        ("org/decoder", "org/decoder"),
        (None, None),
    ):
        model.config.decoder_name_or_path = name
        with client_of(limited(model)) as client:
            assert client.get("/v1/models").json()["data"][0]["decoder"] == shown


def test_clients_that_leave_are_counted_as_such(model):
    gateway = limited(model)
    body = asking(documents=["x"], stream=True, max_tokens=10)
    with client_of(gateway) as client, Gate(model.decoder) as gate:
        gate.open.set()
        assert client.post(CHAT, json=body).status_code == 200
        gate.open.clear()
        with (
            contextlib.suppress(httpx.ReadTimeout),
            client.stream("POST", CHAT, json=body, timeout=1),
        ):
            pass
        gate.open.set()
        half = unfinished(str(client.base_url), path=CHAT)
        until(lambda: gateway.admission.inside >= 1)
        half.close()
        counted = 'memslots_requests_total{route="chat",status="%s"}'
        until(lambda: metric(client, counted % 499) == 2)
        assert metric(client, counted % 200) == 1
        assert metric(client, counted % 400) == 0


def test_a_stream_that_is_left_midway_is_not_counted_as_answered(model):
    gateway = limited(model, max_tokens=400)
    body = {**asking(documents=["x"], stream=True), "max_tokens": 400}
    with client_of(gateway) as client, each_pass_takes(0.02, model.decoder):
        with client.stream("POST", CHAT, json=body) as response:
            assert next(response.iter_lines()).startswith("data: ")
        counted = 'memslots_requests_total{route="chat",status="%s"}'
        until(lambda: metric(client, counted % 499) == 1)
        assert metric(client, counted % 200) == 0


# -- room ------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_not_compressed(zoo, monkeypatch):
    model = zoo.compressor()
    model.decoder.config.max_position_embeddings = 64
    with client_of(limited(model)) as client:
        kept = client.post(MEMORIES, json={"text": TEXTS[0], "id": "m"})
        assert kept.status_code == 200
        monkeypatch.setattr(model, "encode", lambda *a, **k: pytest.fail("it was encoded"))
        for fields in (
            {"documents": [LONG]},
            {"documents": [LONG, "x"], "memory_ids": ["m"]},
            {"documents": ["x", LONG], "rate": 2, "literals": ["numbers"]},
            {"documents": [LONG], "stream": True},
            {"documents": [TEXTS[0]], "expand": [0], "max_tokens": 60},
        ):
            response = client.post(CHAT, json=asking(**{"max_tokens": 4, **fields}))
            refused(response, 400, "tokens, and the decoder reads 64")
        monkeypatch.undo()
        short = asking(documents=["A text."], rate=8, max_tokens=4)
        assert client.post(CHAT, json=short).status_code == 200


@pytest.mark.parametrize("command", [["serve"], ["demo", "--web"]])
def test_an_address_that_is_taken_is_told_before_anything_is_loaded(command, monkeypatch, capsys):
    for module in ("serve", "web"):
        loading = f"memslots.cli.{module}.load_model"
        monkeypatch.setattr(loading, lambda *a, **k: pytest.fail("a model was loaded"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main([*command, "--port", port]) == 2
        assert f"--port {port}" in (told := " ".join(capsys.readouterr().err.split()))
        assert "choose another port" in told


@pytest.mark.parametrize("keys", [",", " , ,", " "])
def test_keys_that_are_none_do_not_leave_the_gateway_open(monkeypatch, capsys, keys):
    monkeypatch.setenv("MEMSLOTS_API_KEY", keys)
    assert main(["serve"]) == 2
    assert "MEMSLOTS_API_KEY is set and holds no key" in " ".join(capsys.readouterr().err.split())


MANY = 200_000


@pytest.mark.parametrize(
    ("form", "body"),
    [
        (ChatRequest, {name: [1] * MANY})
        for name in ("documents", "memory_ids", "literals", "messages", "stop", "tools")
    ]
    + [(ChatRequest, {"expand": ["a"] * MANY})]
    + [(ChatRequest, {name: {str(i): [] for i in range(MANY)}}) for name in NAMED]
    + [(ChatRequest, {"documents": [{"text": "x", **dict.fromkeys(map(str, range(MANY)), 1)}]})]
    + [(form, dict.fromkeys(map(str, range(MANY)), 1)) for form in (ChatRequest, MemoryRequest)]
    + [(MemoryRequest, {name: ["", *[[]] * MANY]}) for name in ("literals", "rates", "exact")],
)
def test_a_body_of_many_wrong_things_is_refused_at_the_first(form, body):
    """An error for each would take a kilobyte and, of a million, a minute of everybody's time."""
    chat = {"messages": [{"role": "user", "content": "Why?"}]} if form is ChatRequest else {}
    sent = json.dumps({**chat, **body}).encode()
    with pytest.raises(ValidationError) as errors:
        form.model_validate_json(sent)
    assert errors.value.error_count() <= 2
    with pytest.raises(ApiError) as refusal:
        parse(form, sent)
    assert refusal.value.status == 400
    assert len(str(refusal.value)) < 300
