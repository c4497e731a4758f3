"""How much the gateway takes in: bytes of a request, requests at once, requests that wait."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from .gateway_requests import ApiError

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Result = TypeVar("Result")


class Admission:
    """At most `running` at once, and `waiting` in line for them; the next one is refused.

    Args:
        running: Requests that are worked on at once.
        waiting: Requests that wait.
        retry_after: Seconds that a refused client is told to wait.
    """

    def __init__(self, running: int, waiting: int, retry_after: int = 1):
        if running < 1 or waiting < 0:
            raise ValueError(
                f"running must be 1 or more and waiting 0 or more, got {running} and {waiting}."
            )
        self._slots = asyncio.Semaphore(running)
        self._room, self._retry_after = running + waiting, retry_after
        self._limit = running
        self.inside = 0
        """Requests that run or wait."""

    @property
    def waiting(self) -> int:
        """Requests that wait."""
        return max(0, self.inside - self._limit)

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Wait for a place, and hold it while the context is open.

        Raises:
            ApiError: 429, the line is full.
        """
        if self.inside >= self._room:
            raise ApiError(
                429,
                f"{self.inside} requests are being answered or wait, which is all that this "
                "gateway takes; try again later.",
                "rate_limit_error",
                "queue_full",
                headers={"Retry-After": str(self._retry_after)},
            )
        self.inside += 1
        try:
            async with self._slots:
                yield
        finally:
            self.inside -= 1


async def read_body(receive: Receive, declared: str | None, limit: int) -> bytes:
    """A request's body, which is not read beyond `limit` bytes.

    Args:
        receive: Of ASGI.
        declared: The header Content-Length, if any.
        limit: Most bytes.

    Raises:
        ApiError: 413, more than that; 400, a client that left before it had sent all.
    """
    too_large = ApiError(
        413,
        f"the request's body is larger than the {limit} bytes that this gateway takes; send less, "
        "or store the memories first and name them by memory_ids.",
        code="payload_too_large",
    )
    if declared is not None and declared.isdigit() and int(declared) > limit:
        raise too_large
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ApiError(400, "the client left before it had sent its request.")
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > limit:
            raise too_large
        if not message.get("more_body", False):
            return b"".join(parts)


async def left(receive: Receive) -> None:
    """Return when the client, whose body was read, has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def while_there(receive: Receive, work: Awaitable[Result]) -> Result | None:
    """What `work` returns; None, with `work` cancelled, where the client goes before it is done."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(left(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        return None
    finally:
        for one in (task, gone):
            one.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)
