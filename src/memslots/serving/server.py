"""The gateway's HTTP server: headers that come in time, and an end that comes in time."""

from __future__ import annotations

import logging
import os
import threading
from types import FrameType

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from .gateway import Gateway

logger = logging.getLogger(__name__)

_FOR_ANSWERS = 0.7
"""Of the time to stop in, the share that requests get to end by themselves."""


def gateway_server(gateway: Gateway, host: str, port: int) -> uvicorn.Server:
    """A server that is ready to `run`.

    Args:
        gateway: What it serves; its settings say how long headers and stopping may take.
        host: Address to listen on.
        port: 0 takes a free one.
    """
    seconds = gateway.settings.shutdown
    config = uvicorn.Config(
        gateway.app(),
        host=host,
        port=port,
        http=_headers_within(gateway.settings.timeout),
        ws="none",
        log_level="info",
        access_log=False,
        timeout_graceful_shutdown=max(1, int(seconds * _FOR_ANSWERS)),
    )
    return _Server(config, seconds)


class _Server(uvicorn.Server):
    """Ends within its time after the first signal, whatever its threads are doing."""

    def __init__(self, config: uvicorn.Config, seconds: float):
        super().__init__(config)
        self._seconds = seconds
        self._end: threading.Timer | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._end is None:
            self._end = threading.Timer(self._seconds, self._leave)
            self._end.daemon = True
            self._end.start()
        super().handle_exit(sig, frame)

    def _leave(self) -> None:
        logger.error("not stopped within %g seconds; leaving what still runs", self._seconds)
        logging.shutdown()
        os._exit(1)


def _headers_within(seconds: float) -> type[H11Protocol]:
    """Uvicorn's protocol, which waits for the headers of a request no longer than this."""

    class HeadersInTime(H11Protocol):
        _timer = None

        def connection_made(self, transport) -> None:
            super().connection_made(transport)
            self._timer = self.loop.call_later(seconds, transport.close)

        def data_received(self, data: bytes) -> None:
            if self._timer is None and self._between_requests():
                self._timer = self.loop.call_later(seconds, self.transport.close)
            super().data_received(data)
            if not self._between_requests():
                self._forget()

        def connection_lost(self, exc: Exception | None) -> None:
            self._forget()
            super().connection_lost(exc)

        def _between_requests(self) -> bool:
            return self.cycle is None or self.cycle.response_complete

        def _forget(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    return HeadersInTime
