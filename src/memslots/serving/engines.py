"""What answers behind the gateway: a vLLM server, or transformers in this process."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from transformers.generation.streamers import BaseStreamer

from memslots.modeling import Memory, MemslotsModel
from memslots.modeling.layout_memslots import Row
from memslots.prefix import Prefix, check_keeps_states, prefill
from memslots.verified.expanding import check_segments, expanded

from .decoder_probe import check_decoder
from .prefix_cache import PrefixCache, prefix_key
from .prompt_embeds import check_engine_can_read, prompt_rows, row_embeds
from .sampling import Sampling, end_tokens
from .stopping import Worker, watch
from .visible_text import VisibleText
from .vllm_client import Piece, VllmClient

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Asked:
    """A question about one context, checked.

    Args:
        memory: One document; without segments, a plain chat.
        row: Of `prompt_rows`.
        question: Or None if `messages` are given.
        messages: Or None if `question` is given.
        template: Arguments of the chat template.
        ids: Under which the memories that make up the context are kept; none if a part of it
            came with the request.
    """

    memory: Memory
    row: Row
    question: str | None = None
    messages: list | None = None
    template: dict[str, Any] = field(default_factory=dict)
    ids: tuple[str, ...] = ()

    @classmethod
    def about(
        cls,
        model: MemslotsModel,
        memory: Memory,
        question: str | None,
        messages: list | None,
        max_tokens: int,
        template: dict[str, Any] | None = None,
        ids: tuple[str, ...] = (),
    ) -> Asked:
        """Check a request.

        Raises:
            ValueError: What `prompt_rows` raises.
        """
        (row,), memory = prompt_rows(
            model, memory, question, messages, None, max_tokens, template or {}
        )
        return cls(memory, row, question, messages, template or {}, ids)


def expanded_with(
    context: Memory, texts: Sequence[str], expand: Sequence[int], model: MemslotsModel | None = None
) -> Memory:
    """A context some segments of which are read as text: the texts at hand, before any other.

    Args:
        context: One document.
        texts: Those that it begins with, as they came with the request.
        expand: Indices of its segments.
        model: Asked for what is not at hand, as `verified.expanded`; without it, that stays slots.

    Raises:
        ValueError: No indices of segments, or what `verified.expanded` raises.
    """
    if not expand:
        return context
    chosen = check_segments(context, expand)
    at_hand = {i: context.segments[i] for i in chosen if context.segments[i].text < len(texts)}
    context = context.as_text({i: texts[s.text][s.start : s.end] for i, s in at_hand.items()})
    rest = [i for i in chosen if i not in at_hand]
    return expanded(model, context, rest) if rest and model is not None else context


class Engine(Protocol):
    """Answers one question at a time, many of them at once."""

    name: str
    prefixes: PrefixCache | None
    """Of memories that were asked before; None where it keeps none, or out of our sight."""
    decoder_worker: Worker | None
    """The one thread in which the compressor's own decoder answers; None where another answers.
    What else asks that decoder does so there: reading hooks into its layers, and two readings at
    once would each meet the other's hooks."""

    def answer(self, asked: Asked, sampling: Sampling) -> AsyncIterator[Piece]:
        """The answer in parts, as `model.generate` has it, the last with its `finish`.

        Leaving the iterator ends the work on it, and waits for that end.
        """

    async def check(self) -> None:
        """Raise if nothing can be answered."""

    async def close(self, seconds: float) -> None:
        """Give up what is held, within so many seconds."""


class TransformersEngine:
    """`model.generate` in this process, one answer after another in a thread of its own.

    Args:
        model: With its decoder.
        prefix_bytes: Most that the decoder's keys and values of memories take which are kept for
            the next question about them; 0 keeps none. Only of memories that are asked by id.
    """

    name = "transformers"

    def __init__(self, model: MemslotsModel, prefix_bytes: int = 2**30):
        decoder = model.decoder
        self._model = model
        self.prefixes: PrefixCache | None = None
        if prefix_bytes:
            try:
                check_keeps_states(decoder)
            except ValueError as error:
                logger.warning("no prefix is kept: %s", error)
            else:
                self.prefixes = PrefixCache(prefix_bytes)
        watch(model)
        self.decoder_worker: Worker | None = Worker("memslots-generate")
        self._worker = self.decoder_worker

    async def check(self) -> None:
        """The decoder is here, so there is nothing to check."""

    async def close(self, seconds: float) -> None:
        """Stop the answer that is being generated."""
        await self._worker.close(seconds)

    async def answer(self, asked: Asked, sampling: Sampling) -> AsyncIterator[Piece]:
        """See `Engine`."""
        loop = asyncio.get_running_loop()
        pieces: asyncio.Queue[Piece | None] = asyncio.Queue()
        writer = _Writer(
            self._model, sampling, lambda piece: loop.call_soon_threadsafe(pieces.put_nowait, piece)
        )
        running = asyncio.ensure_future(self._worker.run(self._generate, asked, sampling, writer))
        running.add_done_callback(lambda _: pieces.put_nowait(None))
        try:
            while (piece := await pieces.get()) is not None:
                yield piece
            yield running.result()
        finally:
            running.cancel()
            while not running.done():  # its end is waited for, whatever else happens
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait({running})

    def _generate(self, asked: Asked, sampling: Sampling, writer: _Writer) -> Piece:
        kwargs = sampling.for_transformers()
        kwargs |= {"streamer": writer, "stopping_criteria": [writer.is_done]}
        seeded: Any = contextlib.nullcontext()
        if sampling.seed is not None:
            seeded = torch.random.fork_rng()
        try:
            with seeded:
                if sampling.seed is not None:
                    torch.manual_seed(sampling.seed)
                if asked.memory.segments:
                    self._read_memory(asked, kwargs)
                else:  # without a memory, so without a LoRA that reads memories
                    self._model.answer_rows([asked.row], None, 1, kwargs)
        except torch.OutOfMemoryError:
            if self.prefixes is not None:
                self.prefixes.clear()  # so that the next one has their room
            raise
        return writer.last()

    def _read_memory(self, asked: Asked, kwargs: dict[str, Any]) -> None:
        prefix = self._prefix(asked)
        self._model.generate(
            question=asked.question,
            memory=asked.memory if prefix is None else prefix,
            messages=asked.messages,
            chat_template_kwargs=asked.template,
            **kwargs,
        )

    def _prefix(self, asked: Asked) -> Prefix | None:
        """What the decoder has read of this context before, or reads now for later questions."""
        if self.prefixes is None or not asked.ids:
            return None
        before, memory = asked.row.prompt.before, asked.memory
        prefix = self.prefixes.get(
            prefix_key(memory, before),
            asked.ids,
            len(before) + sum(self._model.memory_positions(memory)),
            lambda: prefill(
                self._model, memory, asked.messages, chat_template_kwargs=asked.template
            ),
        )
        # A template may put what depends on the question before the memory.
        return None if prefix is None or prefix.before != before else prefix


class _Writer(BaseStreamer):
    """Takes the tokens of one answer as they come, and says when it ends.

    Args:
        model: Whose decoder generates.
        sampling: Of the request.
        show: Takes each part, in the generating thread.
    """

    def __init__(self, model: MemslotsModel, sampling: Sampling, show: Callable[[Piece], object]):
        self._processor = model.processor
        self._ends = set(end_tokens(model))
        self._sampling, self._show = sampling, show
        self._visible = VisibleText(sampling.stop)
        self._ids: list[int] = []

    def put(self, value: torch.Tensor) -> None:
        """Take new tokens; the first call brings the prompt's, of which embeddings have none."""
        ids = value.flatten().tolist()
        if not ids:
            return
        self._ids += ids
        # Decoded from the beginning: parts of a text do not add up to its tokens' text.
        if delta := self._visible.update(self._processor.decode(self._ids)):
            self._show(Piece(delta))

    def end(self) -> None:
        """Nothing is left to do: `last` says what is missing."""

    def is_done(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """A stopping criterion of transformers: `(rows,)`, all True or all False."""
        stopped = self._visible.stopped
        return torch.full(input_ids.shape[:1], stopped, dtype=torch.bool, device=input_ids.device)

    def last(self) -> Piece:
        """What was held back, and how the answer ended."""
        rest = self._visible.finish(self._processor.decode(self._ids))
        ended = self._visible.stopped or (bool(self._ids) and self._ids[-1] in self._ends)
        return Piece(rest, len(self._ids), "stop" if ended else "length")


class VllmEngine:
    """A vLLM server that holds the decoder.

    Args:
        model: The compressor; of its decoder only the input embeddings are used.
        client: Of the server.
    """

    name = "vllm"
    prefixes: PrefixCache | None = None
    """vLLM's own prefix cache knows prompts by their embeddings."""
    decoder_worker: Worker | None = None

    def __init__(self, model: MemslotsModel, client: VllmClient):
        check_engine_can_read(model)
        self._model, self._client = model, client
        self._worker = Worker("memslots-embed")
        self._matched, self._matching = False, asyncio.Lock()

    async def check(self) -> None:
        """Raise `EngineError` where the server does not answer, or runs another decoder."""
        await self._client.models()
        await self._match()

    async def _match(self) -> None:
        """Asked once, before the first answer: see `decoder_probe`."""
        async with self._matching:
            if not self._matched:
                await check_decoder(self._model, self._client)
                self._matched = True

    async def close(self, seconds: float) -> None:
        """Close the connections."""
        await self._client.close()
        await self._worker.close(seconds)

    async def answer(self, asked: Asked, sampling: Sampling) -> AsyncIterator[Piece]:
        """See `Engine`."""
        if not self._matched:
            await self._match()
        (embeds,) = await self._worker.run(row_embeds, self._model, [asked.row], asked.memory)
        visible, whole = VisibleText(sampling.stop), ""
        parts = self._client.stream(embeds, sampling.for_vllm(end_tokens(self._model)))
        async with contextlib.aclosing(parts) as pieces:  # type: ignore[type-var]
            async for piece in pieces:
                whole += piece.text
                if piece.finish is not None:
                    yield Piece(visible.finish(whole), piece.tokens, piece.finish)
                elif delta := visible.update(whole):
                    yield Piece(delta)
