"""One request of the gateway from its first byte to its last: keys, limits, errors, disconnects."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hmac
import json
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from .admission import CLIENT_LEFT, Admission, while_there
from .gateway_metrics import Metrics
from .gateway_requests import ApiError
from .gateway_settings import GatewaySettings
from .shelf import DamagedMemory, ShelfFull, TakenId, UnknownMemory
from .store_format import has_control
from .vllm_client import EngineError, PromptRefused

logger = logging.getLogger(__name__)


class Reply:
    """The answer to one request: an object of JSON, bytes, or server-sent events.

    Args:
        send: Of ASGI.
    """

    def __init__(self, send: Send):
        self._send = send
        self.status: int | None = None
        self.streaming = False
        self.body_was_read = False

    async def json(self, content: Any, status: int = 200, headers: dict[str, str] | None = None):
        """The whole answer, as JSON."""
        text = json.dumps(content, ensure_ascii=False).encode("utf-8", "replace")
        await self.bytes(text, "application/json", status, headers)

    async def bytes(
        self, body: bytes, kind: str, status: int = 200, headers: dict[str, str] | None = None
    ):
        """The whole answer."""
        await self._start(status, {**(headers or {}), "content-length": str(len(body))}, kind)
        await self._send({"type": "http.response.body", "body": body})

    async def event(self, content: Any):
        """One part of a streamed answer."""
        if not self.streaming:
            self.streaming = True
            await self._start(200, {"cache-control": "no-cache"}, "text/event-stream")
        data = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
        body = f"data: {data}\n\n".encode("utf-8", "replace")
        await self._send({"type": "http.response.body", "body": body, "more_body": True})

    async def end(self):
        """The end of a streamed answer."""
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def error(self, error: ApiError):
        """An error object, within the stream where that has begun."""
        if self.status is None:
            # Where a body was not read to its end, no other request can follow it.
            close = {} if self.body_was_read else {"connection": "close"}
            await self.json(error.body(), error.status, {**error.headers, **close})
        elif self.streaming:
            await self.event(error.body())
            await self.end()

    async def _start(self, status: int, headers: dict[str, str], kind: str):
        self.status = status
        named = {"content-type": kind, **headers}
        raw = [(name.encode(), value.encode()) for name, value in named.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": raw})


Work = Callable[[Request, bytes, Reply], Awaitable[None]]

LOOPBACK = {"localhost", "127.0.0.1", "::1"}
"""Host names under which a gateway without a key is asked: a web page that had its own name point
here would be asking under that."""

_ERROR_SECONDS = 10
"""An error that the client does not read within this time is left."""


class Endpoint:
    """An ASGI application around the work of one route.

    Args:
        route: Its name in the metrics.
        work: Answers a request.
        settings: Keys and limits.
        metrics: Where requests are counted.
        admission: Of what takes long and has a body; the body of other requests is not read.
        open_to_all: Whether it needs no key.
    """

    def __init__(
        self,
        route: str,
        work: Work,
        settings: GatewaySettings,
        metrics: Metrics,
        admission: Admission | None = None,
        open_to_all: bool = False,
    ):
        self._route, self._work = route, work
        self._settings, self._metrics = settings, metrics
        self._admission, self._open = admission, open_to_all

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        started = time.perf_counter()
        request, reply = Request(scope), Reply(send)
        try:
            self._check(request)
            await self._within_limits(request, receive, reply)
            status = reply.status or CLIENT_LEFT
        except Exception as error:
            problem = as_api_error(error)
            status = problem.status
            if status == 504:  # expected, and where it happened says nothing
                logger.warning("%s: %s", self._route, problem)
            elif status >= 500:
                logger.error("%s: %s", self._route, error, exc_info=error)
            if status != CLIENT_LEFT:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_ERROR_SECONDS):
                        await reply.error(problem)
        finally:
            self._metrics.seconds.labels(self._route).observe(time.perf_counter() - started)
        self._metrics.requests.labels(self._route, str(status)).inc()

    async def _within_limits(self, request: Request, receive: Receive, reply: Reply) -> None:
        """The body and the work within one time, both counted until the work has really ended."""
        body, clock = b"", asyncio.get_running_loop().time
        end = clock() + self._settings.timeout
        with contextlib.ExitStack() as held:
            if self._admission is not None:
                held.enter_context(self._admission.room())
                declared = request.headers.get("content-length")
                try:
                    async with asyncio.timeout_at(end):
                        body = await self._admission.body(receive, declared, held)
                except TimeoutError:
                    message = "the request's body did not arrive in time; send it again."
                    raise ApiError(408, message, code="timeout") from None
            reply.body_was_read = True
            work = asyncio.ensure_future(self._work(request, body, reply))
            release = held.pop_all()
            work.add_done_callback(lambda _: release.close())
        await while_there(receive, work, end - clock())

    def _check(self, request: Request) -> None:
        """Refuse whom nothing is done for."""
        if has_control(request.scope["path"]):  # else a route may match all but the last of it
            raise ApiError(400, "the path holds a control character.", code="unknown_url")
        if not self._settings.api_keys:
            if _host_name(request) not in LOOPBACK:
                raise ApiError(
                    403,
                    "this gateway has no key, so it answers to the names localhost, 127.0.0.1 and "
                    "[::1] alone; start it with a key to reach it by another.",
                    "authentication_error",
                    "host_not_allowed",
                )
        elif not self._open:
            self._check_key(request)
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if request.method == "POST" and kind != "application/json":
            raise ApiError(
                415,
                "send JSON, and say so: Content-Type: application/json.",
                code="unsupported_media_type",
            )

        packed = request.headers.get("content-encoding", "identity")
        if packed.strip().lower() not in ("identity", ""):
            raise ApiError(
                415,
                f"the body is sent as Content-Encoding: {packed[:40]}, which is not read here; "
                "send it as it is.",
                code="unsupported_media_type",
            )

    def _check_key(self, request: Request) -> None:
        scheme, _, key_sent = request.headers.get("authorization", "").partition(" ")
        # Starlette reads headers as Latin-1, so this is what was sent.
        key = key_sent.strip().encode("latin-1", "replace") if scheme.lower() == "bearer" else b""
        # All are compared, in constant time, so that how long it takes says nothing.
        matches = [hmac.compare_digest(key, known.encode()) for known in self._settings.api_keys]
        if not any(matches):
            raise ApiError(
                401,
                "this gateway needs an API key: Authorization: Bearer KEY.",
                "authentication_error",
                "invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )


def _host_name(request: Request) -> str | None:
    try:
        return urlsplit(f"//{request.headers.get('host', '')}").hostname
    except ValueError:  # a half address of IPv6
        return None


_DAMAGED = (
    "a memory that was asked for is damaged in the store; delete it and send its text again, or "
    "ask the gateway's operator, whose log names the file."
)
_DISK_IS_FULL = (
    "the gateway's disk is full: nothing of this request was stored, and nothing that was there is "
    "lost. Ask its operator for room, and send it again."
)


def as_api_error(error: Exception) -> ApiError:
    """What a client is told; of failures inside, no more than that there was one."""
    match error:
        case ApiError():
            return error
        case UnknownMemory():
            return ApiError(404, str(error), code="memory_not_found", param="memory_ids")
        case TakenId():
            return ApiError(409, str(error), code="memory_exists", param="id")
        case PromptRefused():
            return ApiError(400, str(error), code="prompt_refused")
        case EngineError():
            status, message, code = error.status, str(error), "engine_error"
        case ShelfFull():
            status, message, code = 507, str(error), "shelf_full"
        case DamagedMemory():
            status, message, code = 500, _DAMAGED, "memory_damaged"
        case TimeoutError():
            status, message, code = 504, "the request took too long; try again.", "timeout"
        case OSError(errno=errno.ENOSPC | errno.EDQUOT):
            status, message, code = 507, _DISK_IS_FULL, "storage_full"
        case OSError():
            message = "the gateway cannot read or write its files; see its log."
            status, code = 500, "storage_error"
        case _:
            status, message, code = 500, "the gateway failed; see its log.", "internal_error"
    return ApiError(status, message, "server_error", code)
