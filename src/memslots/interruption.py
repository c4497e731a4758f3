"""When work ends: the flag that long work looks at, and processes that end with their parent.

A thread cannot be ended from outside. Whoever runs work in one (the gateway) gives it a flag by
`with_flag`; work that takes long calls `look` where it can end.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
Span = tuple[int, int]

EVERY = 256
"""Spans of a detector, and other small items, between two looks."""

_thread = threading.local()


class Stopped(RuntimeError):
    """This thread's work was told to stop."""


def with_flag(stop: threading.Event, function: Callable[..., Result], args: tuple) -> Result:
    """What `function(*args)` returns; `Stopped` where it looks after `stop` was set."""
    _thread.stop = stop
    try:
        look()
        return function(*args)
    finally:
        _thread.stop = None


def look(*_: object) -> None:
    """Raise `Stopped` where this thread's work was told to stop; takes what a hook is given."""
    stop = getattr(_thread, "stop", None)
    if stop is not None and stop.is_set():
        raise Stopped("nobody waits for this any more")


def between(items: Iterable[Item]) -> Iterator[Item]:
    """The same items, with a look before every `EVERY`th of them.

    Examples:
        >>> list(between("27"))
        ['2', '7']
    """
    for number, item in enumerate(items):
        if number % EVERY == 0:
            look()
        yield item


def looking(
    detectors: Sequence[Callable[[str], Iterable[Span]]],
) -> list[Callable[[str], Iterable[Span]]]:
    """Detectors of literals that look before they search a text, and between their spans.

    Examples:
        >>> (detector,) = looking([lambda text: [(0, len(text))]])
        >>> list(detector("27"))
        [(0, 2)]
    """

    def with_look(detector: Callable[[str], Iterable[Span]]) -> Callable[[str], Iterator[Span]]:
        def detect(text: str) -> Iterator[Span]:
            look()
            yield from between(detector(text))

        return detect

    return [with_look(detector) for detector in detectors]


@contextmanager
def without_interrupts() -> Iterator[None]:
    """Processes that are started within never see Ctrl-C, which ends their parent, who ends them.

    A Ctrl-C of the meantime comes to this process afterwards.
    """
    if os.name != "posix":
        yield
        return
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()  # its own start would end what holds signals back
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_with_parent() -> None:
    """End this process when the one that started it by `multiprocessing` is gone.

    A worker of a pool waits for work for ever, since it holds the queue's other end itself.
    """
    parent = multiprocessing.parent_process()

    def wait() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
