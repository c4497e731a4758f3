"""One request of the gateway from its first byte to its last: keys, limits, errors, disconnects."""

from __future__ import annotations

import asyncio
import errno
import hmac
import json
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from .admission import read_body, while_there
from .gateway_metrics import Metrics
from .gateway_requests import ApiError
from .gateway_settings import GatewaySettings
from .shelf import DamagedMemory, ShelfFull, TakenId, UnknownMemory
from .vllm_client import EngineError, PromptRefused

logger = logging.getLogger(__name__)

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT}

CLIENT_LEFT = 499
"""The status under which such a request is counted; nobody receives it."""


class Reply:
    """The answer to one request: an object of JSON, bytes, or server-sent events.

    Args:
        send: Of ASGI.
    """

    def __init__(self, send: Send):
        self._send = send
        self.status: int | None = None
        self.streaming = False

    async def json(self, found: Any, status: int = 200, headers: dict[str, str] | None = None):
        """The whole answer, as JSON."""
        text = json.dumps(found, ensure_ascii=False).encode("utf-8", "replace")
        await self.bytes(text, "application/json", status, headers)

    async def bytes(
        self, body: bytes, kind: str, status: int = 200, headers: dict[str, str] | None = None
    ):
        """The whole answer."""
        await self._start(status, {**(headers or {}), "content-length": str(len(body))}, kind)
        await self._send({"type": "http.response.body", "body": body})

    async def event(self, found: Any):
        """One part of a streamed answer."""
        if not self.streaming:
            self.streaming = True
            await self._start(200, {"cache-control": "no-cache"}, "text/event-stream")
        data = found if isinstance(found, str) else json.dumps(found, ensure_ascii=False)
        body = f"data: {data}\n\n".encode("utf-8", "replace")
        await self._send({"type": "http.response.body", "body": body, "more_body": True})

    async def end(self):
        """The end of a streamed answer."""
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def error(self, error: ApiError):
        """An error object, within the stream where that has begun."""
        if self.status is None:
            await self.json(error.body(), error.status, error.headers)
        elif self.streaming:
            await self.event(error.body())
            await self.end()

    async def _start(self, status: int, headers: dict[str, str], kind: str):
        self.status = status
        named = {"content-type": kind, **headers}
        raw = [(name.encode(), value.encode()) for name, value in named.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": raw})


Work = Callable[[Request, bytes, Reply], Awaitable[None]]


class Endpoint:
    """An ASGI application around the work of one route.

    Args:
        route: Its name in the metrics.
        work: Answers a request.
        settings: Keys and limits.
        metrics: Where requests are counted.
        open_to_all: Whether it needs no key.
    """

    def __init__(
        self,
        route: str,
        work: Work,
        settings: GatewaySettings,
        metrics: Metrics,
        open_to_all: bool = False,
    ):
        self._route, self._work = route, work
        self._settings, self._metrics = settings, metrics
        self._open = open_to_all

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        started = time.perf_counter()
        request, reply = Request(scope), Reply(send)
        try:
            if not self._open:
                self._check_key(request)
            declared = request.headers.get("content-length")
            body = await read_body(receive, declared, self._settings.max_body_bytes)
            await while_there(receive, self._timed(request, body, reply))
        except Exception as error:
            problem = as_api_error(error)
            if problem.status >= 500:
                logger.error("%s: %s", self._route, error, exc_info=error)
            await reply.error(problem)
            status = problem.status
        else:
            status = CLIENT_LEFT if reply.status is None else reply.status
        finally:
            self._metrics.seconds.labels(self._route).observe(time.perf_counter() - started)
        self._metrics.requests.labels(self._route, str(status)).inc()

    async def _timed(self, request: Request, body: bytes, reply: Reply) -> None:
        async with asyncio.timeout(self._settings.timeout):
            await self._work(request, body, reply)

    def _check_key(self, request: Request) -> None:
        if not self._settings.api_keys:
            return
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        # Starlette reads headers as Latin-1, so this is what was sent.
        key = given.strip().encode("latin-1", "replace") if scheme.lower() == "bearer" else b""
        # All are compared, in constant time, so that how long it takes says nothing.
        known = [hmac.compare_digest(key, one.encode()) for one in self._settings.api_keys]
        if not any(known):
            raise ApiError(
                401,
                "this gateway needs an API key: Authorization: Bearer KEY.",
                "authentication_error",
                "invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )


def as_api_error(error: Exception) -> ApiError:
    """What a client is told; of failures inside, no more than that there was one."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, UnknownMemory):
        return ApiError(404, str(error), code="memory_not_found", param="memory_ids")
    if isinstance(error, TakenId):
        return ApiError(409, str(error), code="memory_exists", param="id")
    if isinstance(error, PromptRefused):
        return ApiError(400, str(error), code="prompt_refused")
    if isinstance(error, EngineError):
        return ApiError(error.status, str(error), "server_error", "engine_error")
    if isinstance(error, ShelfFull):
        return ApiError(507, str(error), "server_error", "shelf_full")
    if isinstance(error, DamagedMemory):
        message = (
            "a memory that was asked for is damaged in the store; delete it and send its text "
            "again, or ask the gateway's operator, whose log names the file."
        )
        return ApiError(500, message, "server_error", "memory_damaged")
    if isinstance(error, TimeoutError):
        return ApiError(504, "the request took too long; try again.", "server_error", "timeout")
    if isinstance(error, OSError):
        if error.errno in _NO_SPACE:
            message = (
                "the gateway's disk is full: nothing of this request was stored, and nothing that "
                "was there is lost. Ask its operator for room, and send it again."
            )
            return ApiError(507, message, "server_error", "storage_full")
        message = "the gateway cannot read or write its files; see its log."
        return ApiError(500, message, "server_error", "storage_error")
    return ApiError(500, "the gateway failed; see its log.", "server_error", "internal_error")
