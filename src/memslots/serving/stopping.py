"""Work in threads that ends when nobody waits for it any more.

What such a thread runs looks at a flag (`memslots.interruption`) wherever it is about to do
something that takes long: before each pass of the encoder and of the decoder, before each text that
a tokenizer reads, and between the spans that detectors of literals find. The flag is the thread's
own, so the same model serves others meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar
from weakref import WeakSet

import torch
from torch import nn

from memslots.interruption import look, with_flag
from memslots.modeling import MemslotsModel

Result = TypeVar("Result")

_watched: WeakSet[nn.Module] = WeakSet()


class Worker:
    """Threads whose work can be told to stop.

        worker = Worker("compress")
        memory = await worker.run(model.compress, text)

    Args:
        name: Of the threads.
        threads: How many.
    """

    def __init__(self, name: str, threads: int = 1):
        self._pool = ThreadPoolExecutor(threads, name)
        self._running: dict[Future, threading.Event] = {}
        self._left = False  # to itself: the process ends

    async def run(self, function: Callable[..., Result], *args: Any) -> Result:
        """What `function(*args)` returns.

        Cancelled, it tells the function to stop, and leaves when that has ended: what is held
        meanwhile is held as long as the work goes on.
        """
        stop = threading.Event()
        future = self._pool.submit(with_flag, stop, function, args)
        self._running[future] = stop
        future.add_done_callback(lambda done: self._running.pop(done, None))
        result = asyncio.wrap_future(future)
        try:
            return await asyncio.shield(result)
        except asyncio.CancelledError:
            stop.set()
            future.cancel()  # where it has not begun
            while not result.done() and not self._left:
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait({result})
            if result.done() and not result.cancelled():
                result.exception()  # looked at: nobody else will
            raise

    async def close(self, seconds: float) -> bool:
        """Tell all work to stop; whether it had ended after so many seconds."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        running = dict(self._running)
        for stop in running.values():
            stop.set()
        if not running:
            return True
        _, still = await asyncio.wait(map(asyncio.wrap_future, running), timeout=seconds)
        self._left = bool(still)
        return not still


def watch(model: MemslotsModel) -> MemslotsModel:
    """Let work with this model be told to stop, by whatever `Worker` it runs.

    Args:
        model: With its processor, and the decoder that it will have.
    """
    processor = model.processor
    for text in (processor.encoder_text, processor.decoder_text):
        if not isinstance(text.backend, _WatchedTokenizer):
            text.backend = _WatchedTokenizer(text.backend)  # type: ignore[assignment]
    for module in (model.encoder, *([model.decoder] if model.has_decoder else [])):
        if module not in _watched:
            module.register_forward_pre_hook(_look)
            _watched.add(module)
    return model


class _WatchedTokenizer:
    """A tokenizer of `tokenizers` that looks at the flag before each text."""

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer

    def encode(self, *args: Any, **kwargs: Any) -> Any:
        _look()
        return self._tokenizer.encode(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # asked of a copy that has no attributes yet
            raise AttributeError(name)
        return getattr(self._tokenizer, name)


@torch.compiler.disable
def _look(*_: Any) -> None:
    look()
