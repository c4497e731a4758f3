"""The gateway under load on loopback: errors, memory that grows, the queue, clients that vanish.

    python benchmarks/gateway_load.py
    python benchmarks/gateway_load.py --seconds 10 --clients 8

`memslots serve` runs in a process of its own with the embedded checkpoint, answered by
transformers. Clients ask at once, again and again: of stored memories and of documents that are
compressed on the spot, whole and streamed, and some leave in the middle of a stream. Then more ask
than run and wait, and the rest must be told 429. Requests go to 127.0.0.1 alone.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import re
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from measuring import Results, options_of, write_results
from servers import free_port, serving

from memslots import MemslotsConfig, embedded

CHAT = "/v1/chat/completions"
TEXT = (
    "Carmen Moss is an engineer at Silver Bank. She lives in Lagos, Nigeria. She is {} years old. "
    "Carmen owns {} maps. She speaks English and Yoruba."
)
QUESTIONS = ("Where does the person live?", "How old is the person?", "What is the person's job?")
NEW_TOKENS = 16
GROWTH = 0.05
"""Most growth of the gateway's resident memory, from idle after a warm-up to idle at the end."""
BEYOND = 16
"""Requests beyond those that run and wait."""


@dataclass
class Tally:
    """What the clients saw.

    Args:
        statuses: of answers, by number.
        seconds: that each whole answer took.
        first: seconds to the first part of each stream.
        vanished: streams that were left midway.
        failures: anything but a whole answer, in words.
    """

    statuses: Counter[int] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    vanished: int = 0
    failures: list[str] = field(default_factory=list)


@contextlib.contextmanager
def gateway(running: int, waiting: int, folder: Path) -> Iterator[tuple[str, int]]:
    """URL and process id of `memslots serve` while it runs.

    Args:
        running: requests that it works on at once.
        waiting: requests that wait.
        folder: for its log.
    """
    port = free_port()
    command = [sys.executable, "-m", "memslots", "serve", "--model", "tiny", "--port", str(port)]
    command += ["--concurrency", str(running), "--queue", str(waiting)]
    with serving(command, port, folder / "gateway.log", {"MEMSLOTS_API_KEY": ""}) as found:
        yield found


def resident_bytes(process: int) -> int:
    """Resident memory of a process (Linux)."""
    for line in Path(f"/proc/{process}/status").read_text("ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/{process}/status has no VmRSS; the load test needs Linux.")


async def metric(client: httpx.AsyncClient, name: str) -> float:
    """A number of `/metrics`."""
    page = (await client.get("/metrics")).text
    found = re.search(rf"^{name} (\S+)$", page, re.MULTILINE)
    if found is None:
        raise RuntimeError(f"/metrics has no {name}.")
    return float(found[1])


def body_of(turn: int, ids: list[str], stream: bool) -> Results:
    """A request: every third brings its document along."""
    context: Results = {"memory_ids": [ids[turn % len(ids)]]}
    if turn % 3 == 2:
        context = {"documents": [TEXT.format(20 + turn % 60, 2 + turn % 30)]}
    return {
        "messages": [{"role": "user", "content": QUESTIONS[turn % len(QUESTIONS)]}],
        "max_tokens": NEW_TOKENS,
        "stream": stream,
        **context,
    }


async def ask(client: httpx.AsyncClient, turn: int, ids: list[str], tally: Tally) -> None:
    """One request, taken down: whole, streamed, or streamed and left after its first part."""
    kind = ("whole", "streamed", "whole", "streamed", "left")[turn % 5]
    started = time.perf_counter()
    try:
        if kind == "whole":
            response = await client.post(CHAT, json=body_of(turn, ids, False))
            tally.statuses[response.status_code] += 1
            if response.status_code != 200:
                tally.failures.append(f"{response.status_code}: {response.text[:200]}")
                return
            if response.json()["choices"][0]["finish_reason"] not in ("stop", "length"):
                tally.failures.append("an answer without its end")
        else:
            async with client.stream("POST", CHAT, json=body_of(turn, ids, True)) as response:
                tally.statuses[response.status_code] += 1
                last = ""
                async for line in response.aiter_lines():
                    if not last:
                        tally.first.append(time.perf_counter() - started)
                    last = line or last
                    if kind == "left":
                        tally.vanished += 1
                        return
                if response.status_code != 200 or last != "data: [DONE]":
                    tally.failures.append(f"{response.status_code}: a stream ended in {last[:200]}")
                    return
    except httpx.HTTPError as error:
        tally.failures.append(repr(error))
        return
    tally.seconds.append(time.perf_counter() - started)


async def keep_asking(url: str, clients: int, seconds: float, ids: list[str]) -> Tally:
    """So many clients, each with one request at a time, for so long."""
    tally, ends = Tally(), time.monotonic() + seconds

    async def one(number: int) -> None:
        async with httpx.AsyncClient(base_url=url, timeout=300) as client:
            turn = number
            while time.monotonic() < ends:
                await ask(client, turn, ids, tally)
                turn += 7  # with 5 kinds, 3 questions and 3 contexts, every mixture comes

    await asyncio.gather(*map(one, range(clients)))
    return tally


async def overrun(url: str, room: int) -> Results:
    """Ask `room + BEYOND` questions at once of a gateway that takes `room`."""
    body = body_of(2, ["none"], False)
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits) as client:
        asked = [client.post(CHAT, json=body) for _ in range(room + BEYOND)]
        answers = await asyncio.gather(*asked)
    refused = [one for one in answers if one.status_code == 429]
    return {
        "asked": len(answers),
        "room": room,
        "statuses": dict(Counter(str(one.status_code) for one in answers)),
        "refused_with_retry_after": sum("retry-after" in one.headers for one in refused),
    }


async def until_idle(client: httpx.AsyncClient) -> float:
    """Seconds until nothing is answered any more."""
    started = time.monotonic()
    while await metric(client, "memslots_requests_inside"):
        if time.monotonic() - started > 120:
            raise RuntimeError("requests are still inside two minutes after the last client left.")
        await asyncio.sleep(0.05)
    return time.monotonic() - started


async def measure_load(url: str, process: int, clients: int, seconds: float, room: int) -> Results:
    """Warm-up, load, and more than the queue holds; memory is read while nothing is asked."""
    async with httpx.AsyncClient(base_url=url, timeout=300) as client:
        ids = []
        for i in range(8):
            made = await client.post("/v1/memories", json={"text": TEXT.format(30 + i, 9 + i)})
            ids.append(made.json()["id"])

        async def alone() -> float:
            tally = Tally()
            for _ in range(5):
                await ask(client, 0, ids, tally)
            return statistics.median(tally.seconds)

        await keep_asking(url, clients, max(3.0, seconds / 8), ids)
        await until_idle(client)
        before, alone_before = resident_bytes(process), await alone()
        tally = await keep_asking(url, clients, seconds, ids)
        emptied = await until_idle(client)
        over = await overrun(url, room)
        await until_idle(client)
        alone_after, after = await alone(), resident_bytes(process)
        read = {
            name: await metric(client, f"memslots_prefix_cache_{name}")
            for name in ("hits_total", "misses_total", "bytes")
        }
    taken = sorted(tally.seconds)
    return {
        "compressor": MemslotsConfig.from_pretrained(embedded()).fingerprint[:12],
        "clients": clients,
        "seconds": seconds,
        "answers": len(taken),
        "vanished": tally.vanished,
        "statuses": {str(status): count for status, count in tally.statuses.items()},
        "errors": len(tally.failures),
        "failures": tally.failures[:10],
        "answer_median": statistics.median(taken),
        "answer_99": taken[int(0.99 * (len(taken) - 1))],
        "first_part_median": statistics.median(tally.first),
        "alone_before": alone_before,
        "alone_after": alone_after,
        "idle_after": emptied,
        "resident_before": before,
        "resident_after": after,
        "growth": after / before - 1,
        "overrun": over,
        "prefixes": read,
    }


def bars(results: Results) -> list[Results]:
    """No error, no growth, and exactly those refused for whom there is no room."""
    load, over = results["load"], results["load"]["overrun"]
    what = f"{load['clients']} clients for {load['seconds']:g} s"
    most = {"at_most": True}
    return [
        {"bar": f"gateway, {what}: errors (at most)", "wanted": 0, "found": load["errors"], **most},
        {
            "bar": f"gateway, {what}: growth of resident memory (at most)",
            "wanted": GROWTH,
            "found": load["growth"],
            **most,
        },
        {
            "bar": f"gateway: 429 with Retry-After, of {over['asked']} at once where "
            f"{over['room']} have room",
            "wanted": over["asked"] - over["room"],
            "found": over["refused_with_retry_after"],
        },
        {
            "bar": "gateway: answered of those that have room",
            "wanted": over["room"],
            "found": over["statuses"].get("200", 0),
        },
    ]


def shown(results: Results, pictures: Path) -> Results:
    """What `gateway_load.md.jinja` shows beside the results."""
    return {"new_tokens": NEW_TOKENS}


def run(clients: int, seconds: float, running: int, waiting: int) -> Results:
    """A gateway, and the load on it."""
    with (
        tempfile.TemporaryDirectory() as folder,
        gateway(running, waiting, Path(folder)) as (url, process),
    ):
        return asyncio.run(measure_load(url, process, clients, seconds, running + waiting))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=120.0, help="of load")
    parser.add_argument("--clients", type=int, default=32, help="that ask at once")
    parser.add_argument("--running", type=int, default=4, help="requests that are worked on")
    parser.add_argument("--waiting", type=int, default=64, help="requests that wait")
    options = options_of(parser)
    results: Results = {
        "load": run(options.clients, options.seconds, options.running, options.waiting)
    }
    print(write_results("gateway_load", results, options))


if __name__ == "__main__":
    main()
