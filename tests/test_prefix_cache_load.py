"""The load of the page on vLLM's prefix cache: what is asked, counted and kept.

A stand-in answers where vLLM would, and the gateway before it is the real one.
"""

import argparse
import json
import os
import sys
from collections import Counter
from pathlib import Path

import pytest
from loopback import StandIn, served
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import measuring
import prefix_cache

from memslots.serving.engines import VllmEngine
from memslots.serving.gateway import Gateway
from memslots.serving.shelf import ProcessShelf
from memslots.serving.vllm_client import VllmClient

BOOKS = [
    {
        "text": " ".join(
            f"On day {day} of {month} Emma and Harriet met Knightley." for day in range(60)
        )
    }
    for month in ("May", "June")
]
TURN = {
    "way": "full text",
    "rate": 0,
    "answers": 4,
    "seconds": 8.0,
    "firsts": [1.0, 2.0, 4.0, 2.0],
    "looked": 6000.0,
    "found": 3000.0,
    "busy_seconds": 6.0,
    "prompt_tokens": 6000,
    "answer_tokens": 32,
    "load": 2.0,
}


class Engine(StandIn):
    """Tells what it has looked up and found, as vLLM does, and forgets when it is told."""

    looked = found = forgotten = 0

    def app(self):
        app = super().app()
        app.router.routes += [
            Route("/metrics", self.metrics),
            Route("/reset_prefix_cache", self.forget, methods=["POST"]),
        ]
        return app

    async def metrics(self, request):
        labels = '{engine="0",model_name="decoder"}'
        return PlainTextResponse(
            "# TYPE vllm:prefix_cache_queries counter\n"
            f"vllm:prefix_cache_queries_total{labels} {self.looked}.0\n"
            f"vllm:prefix_cache_hits_total{labels} {self.found}.0\n"
        )

    async def forget(self, request):
        self.forgotten += 1
        return JSONResponse({"success": self.forgotten > 1})

    def generate(self, embeds, wanted):
        if wanted.get("stream"):
            self.looked += len(embeds)
            self.found += len(embeds) // 2
        return super().generate(embeds, wanted)

    @staticmethod
    def event(**found):
        if "usage" in found:
            found["usage"]["prompt_tokens"] = 7
        return StandIn.event(**found)


@pytest.fixture
def books(tmp_path):
    file = tmp_path / "books-validation.jsonl"
    file.write_text("".join(json.dumps(book) + "\n" for book in BOOKS))
    return str(file)


@pytest.fixture
def load(zoo, books, tmp_path):
    processor = zoo.shared("gpt2", "llama").processor
    options = prefix_cache.parse(["--books", books, "--rates", "2", "--output", str(tmp_path)])
    options.clients, options.new_tokens = 3, 4
    documents = prefix_cache.read_documents(books, processor, 3, [20, 30], 0)
    requests = prefix_cache.draw_requests(documents, 7, 1.0, 0)
    kept = prefix_cache.Kept(tmp_path, {"documents": 3})
    return prefix_cache.Load(options, processor, documents, requests, kept)


def test_documents_have_their_tokens_and_the_first_is_asked_most(zoo, books):
    processor = zoo.shared("gpt2", "llama").processor
    documents = prefix_cache.read_documents(books, processor, 5, [20, 30], 0)
    lengths = [len(processor.decoder_text.encode(document.text)) for document in documents]
    assert all(18 <= length <= 30 for length in lengths)
    assert documents == prefix_cache.read_documents(books, processor, 5, [20, 30], 0)
    requests = prefix_cache.draw_requests(documents, 2000, 1.0, 0)
    asked = Counter(request.document for request in requests)
    assert [number for number, _ in asked.most_common()] == [0, 1, 2, 3, 4]
    assert 1.7 < asked[0] / asked[1] < 2.3  # 1/1 against 1/2
    with pytest.raises(ValueError, match="gave 0 of 5 documents of 9000 tokens"):
        prefix_cache.read_documents(books, processor, 5, [9000, 9000], 0)


def test_text_and_memory_are_asked_and_counted(zoo, load):
    model = zoo.shared("gpt2", "llama")
    standin = Engine(model)
    with served(standin.app()) as vllm:
        gateway = Gateway(model, VllmEngine(model, VllmClient(vllm)), ProcessShelf())
        with served(gateway.app()) as url:
            made = prefix_cache.store_memories(url, load.documents, 2)
            assert len(set(made["ids"])) == 3
            texts = [document.text for document in load.documents]
            chat = f"{url}/v1/chat/completions"
            for way in (
                prefix_cache.Way("full text", f"{vllm}/v1/completions", texts),
                prefix_cache.Way("memory, rate 2", chat, made["ids"], 2),
            ):
                standin.requests.clear()
                row = prefix_cache.measure_way(load, way, vllm, (os.getpid(),))
                streamed = [one for one in standin.requests if one.get("stream")]
                assert len(streamed) == 2 + 7  # with those that come before the cache is emptied
                assert {one["max_tokens"] for one in streamed} == {4}
                assert {one["temperature"] for one in streamed} == {0}
                assert 0.4 < row["found"] / row["looked"] <= 0.5
                assert row["answers"] == len(row["firsts"]) == 7
                assert 0 < min(row["firsts"]) <= max(row["firsts"]) <= row["seconds"]
                assert row["prompt_tokens"] >= 7 * 7
                assert row.keys() == TURN.keys()
    assert standin.forgotten == 3  # it refused once, and was asked again


def test_a_text_stands_where_the_memory_would(zoo, load):
    (asked, *_), processor = load.requests, load.processor
    texts = [document.text for document in load.documents]
    body = prefix_cache.Way("full text", "", texts).body(processor, asked, 4)
    messages = prefix_cache.Way("", "", ["m"] * 3, 2).body(processor, asked, 4)["messages"]
    around = processor.prompt(messages=messages)
    (ids,) = body["prompt"]
    assert ids[: len(around.before)] == around.before
    assert ids[-len(around.after) :] == around.after
    assert texts[asked.document] in processor.decode(ids)


def test_an_answer_without_its_end_is_no_answer(zoo, load):
    model = zoo.shared("gpt2", "llama")
    texts = [document.text for document in load.documents]
    with served(Engine(model, cut=True).app()) as vllm:
        way = prefix_cache.Way("full text", f"{vllm}/v1/completions", texts)
        with pytest.raises(RuntimeError, match="an answer ended in"):
            prefix_cache.measure_way(load, way, vllm, (os.getpid(),))
    with served(Engine(model, failures=[503]).app()) as vllm:
        way = prefix_cache.Way("full text", f"{vllm}/v1/completions", texts)
        with pytest.raises(RuntimeError, match="answered 503"):
            prefix_cache.measure_way(load, way, vllm, (os.getpid(),))


def test_a_run_goes_on_and_refuses_results_of_another(tmp_path):
    kept = prefix_cache.Kept(tmp_path, {"requests": 7, "tokens": (1, 2)})
    kept.add({"cache": 0.5, "way": "full text"})
    again = prefix_cache.Kept(tmp_path, {"requests": 7, "tokens": (1, 2)})
    assert again.find(cache=0.5, way="full text")
    assert again.find(cache=0.5, way="memory, rate 2") is None
    with pytest.raises(ValueError, match=r"requests.*7.*8.*another --output"):
        prefix_cache.Kept(tmp_path, {"requests": 8, "tokens": (1, 2)})


def test_what_cannot_be_measured_is_refused_first(zoo, books, tmp_path, monkeypatch):
    monkeypatch.setattr(prefix_cache, "MODEL", "tiny")
    monkeypatch.setattr(prefix_cache, "smollm2", lambda: zoo.folder("llama", "decoder"))
    options = prefix_cache.parse(["--books", books, "--documents", "2", "--tokens", "20", "30"])
    options.cache, options.output = [0.5], tmp_path
    with pytest.raises(ValueError, match="rate 2 is not one that this checkpoint was trained for"):
        prefix_cache.measure(argparse.Namespace(**{**vars(options), "rates": [4, 2]}))
    with pytest.raises(ValueError, match=r"--cache 0.5 is too little .* give at least \d"):
        prefix_cache.measure(options)


def test_the_page_compares_with_the_text_of_the_same_size(tmp_path):
    settings = {
        "documents": 24,
        "tokens": [1000, 2000],
        "requests": 120,
        "clients": 2,
        "zipf": 1.0,
        "new_tokens": 8,
        "rates": [4],
        "checkpoint": "0123456789ab",
        "text_tokens": 36000,
        "asked_documents": 20,
        "position_bytes": 2**15,
        "block": 32,
    }
    kept = prefix_cache.Kept(tmp_path, settings)
    kept.add({"way": "compression", "rate": 4, "ids": [], "bytes": 24 * 4096, "seconds": 48.0})
    memory = {"way": "memory, rate 4", "rate": 4, "seconds": 2.0, "firsts": [0.25, 0.5, 1.0, 0.5]}
    memory |= {"prompt_tokens": 2000, "busy_seconds": 3.0}
    for cache, blocks in ((1.5, 2000), (0.5, 640)):
        for turn in range(2):
            place = {"cache": cache, "blocks": blocks, "turn": turn}
            kept.add({**TURN, **place})
            kept.add({**TURN, **memory, **place, "load": 3.0 + turn})
    page = tmp_path / "page.md"
    prefix_cache.write_page(kept, measuring.machine_facts("cpu"), page)
    text = page.read_text()
    assert "| 50% | memory, rate 4 | 8 | 2.00 (4.0x) |" in text
    assert "Load average 2.0 to 4.0" in text
    kept.lines.reverse()  # as where the text was measured again, after the memories
    prefix_cache.write_page(kept, measuring.machine_facts("cpu"), page)
    assert "| 50% | memory, rate 4 | 8 | 2.00 (4.0x) |" in page.read_text()
    assert "640 MiB, 50% of what the text of all documents takes" in text
    assert "takes 2.0 times less processor time" in text
    assert "holds 41 documents instead of 14" in text
    # 2 s of compression for each document, 0.75 s saved by each question.
    assert (
        "| 2.00 (4.0x) | 0.50 s (4.0x) | 1.00 s (4.0x) | 50% | 500 | 41 | 0.75 (2.0x) | 3 |" in text
    )
    assert "2.00 s to compress 1,500 tokens on this machine, and 4 KiB in the store" in text
    with pytest.raises(ValueError, match="no results"):
        prefix_cache.write_page(prefix_cache.Kept(tmp_path / "new", {}), {}, page)
