"""How much the gateway takes in: bytes of bodies, requests at once, requests that wait."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from starlette.types import Receive

from .gateway_requests import ApiError

CLIENT_LEFT = 499
"""The status under which a request is counted whose client left; nobody receives it."""


class ClientLeft(ApiError):
    """The client closed its connection before it had its answer."""

    def __init__(self):
        super().__init__(CLIENT_LEFT, "the client left before it had its answer.")


class Admission:
    """At most `running` at once, and `waiting` in line for them; the next one is refused.

    Args:
        running: Requests that are worked on at once.
        waiting: Requests that wait, those included whose bodies are still on their way.
        max_body_bytes: Of one body.
        max_bodies_bytes: Of the bodies of all requests inside together.
        retry_after: Seconds that a refused client is told to wait.
    """

    def __init__(
        self,
        running: int,
        waiting: int,
        max_body_bytes: int = 32 * 2**20,
        max_bodies_bytes: int = 128 * 2**20,
        retry_after: int = 1,
    ):
        if running < 1 or waiting < 0:
            raise ValueError(
                f"running must be 1 or more and waiting 0 or more, got {running} and {waiting}."
            )
        self.turn = asyncio.Semaphore(running)
        """Held while a request that is inside is worked on."""
        self._room, self._running, self._retry_after = running + waiting, running, retry_after
        self._max_body_bytes, self._max_bodies_bytes = max_body_bytes, max_bodies_bytes
        self._bodies_bytes = 0
        self.inside = 0
        """Requests that run or wait."""

    @property
    def waiting(self) -> int:
        """Requests that wait."""
        return max(0, self.inside - self._running)

    @contextmanager
    def room(self) -> Iterator[None]:
        """Be counted as inside while the context is open.

        Raises:
            ApiError: 429, the line is full.
        """
        if self.inside >= self._room:
            raise self._full(f"{self.inside} requests are being answered or wait")
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1

    async def body(self, receive: Receive, declared: str | None, held: ExitStack) -> bytes:
        """A request's body, which is not read beyond what is taken.

        Args:
            receive: Of ASGI.
            declared: The header Content-Length, if any.
            held: Closed when the request's memory is free again.

        Raises:
            ApiError: 413, too large; 429, others' bodies take all the room.
            ClientLeft: It left before it had sent all.
        """
        most = self._max_body_bytes
        too_large = ApiError(
            413,
            f"the request's body is larger than the {most} bytes that this gateway takes; send "
            "less, or store the memories first and name them by memory_ids.",
            code="payload_too_large",
        )
        if declared is not None and declared.isdigit() and int(declared) > most:
            raise too_large
        body, more = bytearray(), True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientLeft
            part, more = message.get("body", b""), message.get("more_body", False)
            if len(body) + len(part) > most:
                raise too_large
            if self._bodies_bytes + len(part) > self._max_bodies_bytes:
                raise self._full(f"requests of {self._bodies_bytes} bytes are being read")
            self._bodies_bytes += len(part)
            held.callback(self._give_back, len(part))
            body += part
        return bytes(body)

    def _give_back(self, size: int) -> None:
        self._bodies_bytes -= size

    def _full(self, why: str) -> ApiError:
        return ApiError(
            429,
            f"{why}, which is all that this gateway takes; try again later.",
            "rate_limit_error",
            "queue_full",
            headers={"Retry-After": str(self._retry_after)},
        )


_leaving: set[asyncio.Task] = set()
"""Tasks that were cancelled and have not ended: the loop itself holds no task for good."""


async def while_there(receive: Receive, work: asyncio.Task, seconds: float) -> None:
    """Wait for `work`, as long as its client is there and its time is not over.

    What is not done then is cancelled, and not waited for: it holds what it holds until it ends.

    Args:
        receive: Of ASGI, after the body.
        work: Answers the request.
        seconds: That are left.

    Raises:
        ClientLeft: The client went first.
        TimeoutError: The time was over first.
    """
    gone = asyncio.ensure_future(_left(receive))
    try:
        await asyncio.wait({work, gone}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            return work.result()
        raise ClientLeft if gone.done() else TimeoutError
    finally:
        for task in (work, gone):
            if not task.done():
                task.cancel()
                _leaving.add(task)
                task.add_done_callback(_ended)


def _ended(task: asyncio.Task) -> None:
    _leaving.discard(task)
    if not task.cancelled():
        task.exception()  # looked at: whoever asked has had an answer


async def _left(receive: Receive) -> None:
    """Return when the client, whose body was read, has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
