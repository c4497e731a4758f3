"""Servers in processes of their own, on this machine alone, for as long as they are asked."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import httpx


def free_port() -> int:
    """A port of 127.0.0.1 that nothing listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextlib.contextmanager
def serving(
    command: Sequence[str],
    port: int,
    log: Path,
    environment: Mapping[str, str],
    seconds: float = 180,
) -> Iterator[tuple[str, int]]:
    """URL and process id of a server while it runs.

    Args:
        command: that starts it.
        port: of 127.0.0.1, that it listens on; it answers /health with 200 when it is ready.
        log: for what it prints.
        environment: beside this process's.
        seconds: that it may take to start.

    Raises:
        RuntimeError: it ended or did not start in time.
    """
    with log.open("w") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, **environment}
        )
    url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + seconds
    try:
        while not _healthy(url):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{' '.join(command)} did not start:\n{log.read_text()[-3000:]}")
            time.sleep(0.2)
        yield url, process.pid
    finally:
        process.terminate()
        process.wait(60)


def _healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=60).status_code == 200
    except httpx.TransportError:
        return False
