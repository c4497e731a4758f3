"""handler.py, loaded as Inference Endpoints loads it and asked over HTTP on loopback."""

import ast
import base64
import json
import os
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from test_remote_code import BLOCKED
from tiny_models import QUESTIONS, TEXTS

from memslots import sent_memories
from memslots.hub_cards import handler
from memslots.hub_cards.handler import (
    MAX_QUESTIONS,
    PARAMETERS,
    BadRequest,
    EndpointHandler,
    read_parameters,
    read_request,
)
from memslots.modeling.pipeline_memslots import MemoryQuestionAnsweringPipeline

NEW = {"max_new_tokens": 5}

# As in the endpoint's container: handler.py is imported from the repository's folder.
SERVER = """
import importlib.util, json, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
import torch
torch.set_num_threads(1)
folder = sys.argv[1]
spec = importlib.util.spec_from_file_location("handler", Path(folder) / "handler.py")
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
answer = module.EndpointHandler(folder)

class Server(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        content = json.dumps(answer(json.loads(body))).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments):
        pass

server = HTTPServer(("127.0.0.1", 0), Server)
print("PORT", server.server_port, flush=True)
server.timeout = 120
for _ in range(int(sys.argv[2])):
    server.handle_request()
"""
REQUESTS = 7


@pytest.fixture(scope="module")
def ask(zoo, tmp_path_factory):
    """Sends a payload to the handler in a process without memslots; at most `REQUESTS` times."""
    work = tmp_path_factory.mktemp("endpoint")
    folder = work / "repository"
    shutil.copytree(zoo.saved(), folder)
    shutil.copyfile(handler.__file__, folder / "handler.py")
    shutil.copyfile(sent_memories.__file__, folder / "sent_memories.py")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment["HF_MODULES_CACHE"] = str(work / "modules")
    process = subprocess.Popen(
        [sys.executable, "-I", "-c", BLOCKED + SERVER, str(folder), str(REQUESTS)],
        cwd=work,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    port = next((line.split()[1] for line in process.stdout if line.startswith("PORT")), None)
    assert port, "the server did not start"

    def send(payload):
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}", json.dumps(payload).encode(), method="POST"
        )
        with urllib.request.urlopen(request, timeout=120) as response:
            return json.loads(response.read())

    yield send
    process.kill()
    process.wait()


@pytest.fixture(scope="module")
def local(model):
    """The handler in this process, on a model in memory."""
    made = EndpointHandler.__new__(EndpointHandler)
    made.pipe = MemoryQuestionAnsweringPipeline(model, device="cpu")
    return made


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("memories") / "m.safetensors"
    model.compress(TEXTS).save(path)
    return base64.b64encode(path.read_bytes()).decode()


@pytest.mark.timeout(600)
def test_over_http(ask, model, saved):
    memory = model.compress(TEXTS)
    expected = model.generate(memory=memory, question=QUESTIONS, **NEW)
    one = {"question": QUESTIONS[0], "context": TEXTS[0]}
    found = ask({"inputs": one, "parameters": NEW})
    assert found == {
        "answer": expected[0],
        "n_tokens": memory.n_tokens[0],
        "n_slots": memory.n_slots[0],
        "rate": memory.rate,
    }
    lists = ask({"inputs": {"question": QUESTIONS, "context": TEXTS}, "parameters": NEW})
    assert [row["answer"] for row in lists] == expected
    items = [{"question": q, "context": c} for q, c in zip(QUESTIONS, TEXTS, strict=True)]
    batch = ask({"inputs": items, "parameters": {**NEW, "batch_size": 2, "rate": 8}})
    assert [row["rate"] for row in batch] == [8] * len(items)
    kept = ask({"inputs": {"question": QUESTIONS, "memory": saved}, "parameters": NEW})
    assert kept == lists
    for payload in ({"inputs": "text"}, {"inputs": {"question": "?", "memory": "////"}}):
        found = ask(payload)
        assert found["error"]["type"] == "invalid_request"
        assert "Traceback" not in json.dumps(found)
    assert ask({"inputs": one, "parameters": NEW})["answer"] == expected[0]  # and it goes on


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (None, "a request is an object"),
        ([], "a request is an object"),
        ({}, "a request is an object"),
        ({"inputs": {"question": "a", "context": "b"}, "x": 1}, "does not know"),
        ({"inputs": []}, "inputs must be"),
        ({"inputs": ["a"]}, r"inputs\[0\] must be an object"),
        ({"inputs": [{"question": "a", "context": "b"}, {"question": "a"}]}, r"inputs\[1\] needs"),
        ({"inputs": {"context": "b"}}, "question must be a string"),
        ({"inputs": {"question": 3, "context": "b"}}, "question must be a string"),
        ({"inputs": {"question": "a", "context": ["b", None]}}, "context must be a string"),
        ({"inputs": {"question": "a", "context": "b", "memory": "c"}}, "either context or memory"),
        ({"inputs": {"question": "a", "path": "/etc/passwd"}}, r"does not know \['path'\]"),
        ({"inputs": [{"question": "a", "context": "b"}] * (MAX_QUESTIONS + 1)}, "too many"),
        ({"inputs": {"question": ["a"] * (MAX_QUESTIONS + 1), "context": "b"}}, "at most"),
        ({"inputs": {"question": "a", "context": "b" * 4_000_001}}, "characters are too many"),
    ],
)
def test_bad_inputs_are_named(local, payload, message):
    with pytest.raises(BadRequest, match=message):
        read_request(payload)
    assert local(payload)["error"]["type"] == "invalid_request"


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ([], "must be an object"),
        ({"custom_generate": "me/code"}, "not known"),
        ({"trust_remote_code": True}, "not known"),
        ({"max_new_tokens": 10**9}, "from 1 to 2048"),
        ({"max_new_tokens": True}, "from 1 to 2048"),
        ({"max_new_tokens": "many"}, "from 1 to 2048"),
        ({"do_sample": 1}, "true or false"),
        ({"temperature": float("nan")}, "from 0.01 to 100"),
        ({"temperature": 1e-45}, "from 0.01 to 100"),
        ({"temperature": 0, "do_sample": True}, "from 0.01 to 100"),
    ],
)
def test_bad_parameters_are_named(parameters, message):
    with pytest.raises(BadRequest, match=message):
        read_parameters(parameters)


@pytest.mark.parametrize("name", PARAMETERS)
def test_values_of_other_types_are_refused_by_name(name):
    kind, _, _ = PARAMETERS[name]
    wrong = ["1", "", None, [1], {}, float("nan"), float("inf"), -float("inf"), 10**400, -(10**400)]
    wrong += [1, 0, 0.5] if kind is bool else [True, False]
    for value in wrong:
        with pytest.raises(BadRequest, match=rf"parameter {name} must be .*, got"):
            read_parameters({name: value})


def test_every_parameter_is_one_that_generate_takes(local):
    sampled = dict.fromkeys(("temperature", "top_p", "repetition_penalty"), 0.9)
    given = {name: least for name, (_, least, _) in PARAMETERS.items()} | sampled
    given |= {"rate": 8, "do_sample": True, "top_k": 3, "length_penalty": 1.0, "max_new_tokens": 3}
    assert set(given) == set(PARAMETERS)
    found = local({"inputs": {"question": "Why?", "context": TEXTS[0]}, "parameters": given})
    assert isinstance(found["answer"], str), found


def test_mistakes_that_the_model_finds(local):
    one = {"question": QUESTIONS[0], "context": TEXTS[0]}
    for payload, message in (
        ({"inputs": one, "parameters": {"rate": 5}}, "rate 5 is not one"),
        ({"inputs": {**one, "context": " "}}, "context"),
        ({"inputs": {**one, "context": []}}, "empty list"),
        ({"inputs": {"question": ["a"] * 2, "context": ["b"] * 3}}, "do not go together"),
    ):
        found = local(payload)
        assert found["error"]["type"] == "invalid_request"
        assert message in found["error"]["message"]


def test_memories_are_bounded_and_checked(local, saved, zoo, tmp_path, monkeypatch):
    def refused(memory):
        found = local({"inputs": {"question": "Why?", "memory": memory}})
        assert found["error"]["type"] == "invalid_request"
        assert str(Path(os.environ.get("TMPDIR", "/tmp"))) not in found["error"]["message"]
        return found["error"]["message"]

    assert "not base64" in refused("*" * 8)
    assert "must be the base64" in refused(["a"])
    assert "cannot be read as a memory" in refused(base64.b64encode(b"pickle").decode())
    changed = bytearray(base64.b64decode(saved))
    changed[-1] ^= 1
    assert "altered" in refused(base64.b64encode(changed).decode())
    zoo.compressor(seed=5).compress(TEXTS).save(tmp_path / "other.safetensors")
    other = base64.b64encode((tmp_path / "other.safetensors").read_bytes()).decode()
    assert "written by compressor" in refused(other)
    # A path is not a memory: nothing of the endpoint's disk is read.
    assert "cannot be read" in refused("/etc/passwd/") or "not base64" in refused("/etc/passwd")
    # All memories of a request count together.
    item = {"question": "Why?", "memory": saved}
    monkeypatch.setattr(handler, "MAX_MEMORY_BYTES", len(base64.b64decode(saved)) + 10)
    assert "answer" in local({"inputs": {**item, "question": QUESTIONS}})[0]
    assert "too large" in local({"inputs": [item, item]})["error"]["message"]


def test_failures_inside_give_no_trace(local, monkeypatch, caplog):
    def fail(*arguments, **options):
        raise RuntimeError("secret detail")

    monkeypatch.setattr(local, "pipe", fail)
    found = local({"inputs": {"question": "a", "context": "b"}})
    assert found == {
        "error": {
            "type": "internal_error",
            "message": "this request failed; see the endpoint's log.",
        }
    }
    assert "secret detail" in caplog.text  # for the endpoint's owner


def test_it_needs_only_torch_and_transformers():
    imported: set = set()
    for file in (handler.__file__, sent_memories.__file__):
        for node in ast.walk(ast.parse(Path(file).read_text("utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(node.module)
    beside = {"memslots.sent_memories", "sent_memories"}  # the first where it is installed
    assert imported - set(sys.stdlib_module_names) - beside == {
        "torch",
        "transformers",
        "safetensors",
    }


NUMBERS = [name for name, (kind, _, _) in PARAMETERS.items() if kind is not bool]


@pytest.mark.parametrize("name", NUMBERS)
def test_every_value_that_is_let_through_is_answered(local, name):
    """At both bounds and at the smallest numbers; an error names the parameter's bounds."""
    kind, least, most = PARAMETERS[name]
    values = {kind(least), kind(most)} if kind is int else {least, most, 5e-324, 1e-45, 1e-38, 1e-5}
    for value in sorted(values):
        for sampled in (True, False):
            given = {"max_new_tokens": 2, "do_sample": sampled, "top_k": 5, name: value}
            if name in ("length_penalty", "num_return_sequences"):
                given["num_beams"] = max(2, value) if name == "num_return_sequences" else 2
            if name in ("max_new_tokens", "min_new_tokens") and value > 500:
                continue  # beyond the tiny decoder's positions
            made = local(
                {"inputs": {"question": "Why?", "context": "A text."}, "parameters": given}
            )
            made = made[0] if isinstance(made, list) else made
            if "error" in made:
                assert made["error"]["type"] == "invalid_request", (given, made)
                assert name in made["error"]["message"], (given, made)


def test_what_does_not_fit_is_not_compressed(local, model, monkeypatch):
    monkeypatch.setattr(model, "encode", lambda *a, **k: pytest.fail("it was encoded"))
    long = TEXTS[0] * 600
    for inputs in (
        {"question": "Why?", "context": long},
        {"question": ["Why?", "Who?"], "context": long},
        [{"question": "Why?", "context": "x"}, {"question": "Who?", "context": long}],
    ):
        for parameters in ({}, {"rate": 8}, {"max_new_tokens": 400}):
            error = local({"inputs": inputs, "parameters": parameters})["error"]
            assert error["type"] == "invalid_request"
            assert "tokens, and the decoder reads" in error["message"]
