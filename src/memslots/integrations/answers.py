"""What the integrations share: documents of a store, and an answer's text while it is generated."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers.generation.streamers import BaseStreamer

from memslots.modeling import Memory, MemslotsModel
from memslots.serving.gateway_requests import question_or_messages
from memslots.serving.store import MemoryStore
from memslots.serving.visible_text import VisibleText

MEMORY_ID = "memory_id"
"""The key of a document's metadata that holds its id in the store."""


def stored_documents(
    store: MemoryStore, ids: Sequence[str]
) -> list[tuple[str, str, dict[str, Any]]]:
    """Id, text and metadata of some documents of a store, in order.

    The text is there if it was kept (`compress(keep_text=True)`), else it is empty. To the
    metadata come `memory_id`, `tokens`, `slots` and `rate`.

    Raises:
        ValueError: unknown ids, or a damaged document.
    """
    ids = list(ids)
    memories, places = store.read(ids), store.places(ids)
    documents = []
    for key in ids:
        memory, place = memories[key], places[key]
        kept = memory.kept_texts(range(len(memory.segments)))
        facts = {MEMORY_ID: key, "tokens": place.tokens, "slots": place.slots, "rate": place.rate}
        text = "" if None in kept else "".join(part or "" for part in kept)
        documents.append((key, text, {**json.loads(place.metadata or "{}"), **facts}))
    return documents


def memory_to_read(
    memory: Memory | None, store: MemoryStore | None, ids: Sequence[str], rate: int | None
) -> Memory:
    """One context: the documents with these ids, or else a memory that is at hand.

    Raises:
        ValueError: nothing to read, ids without a store, or what `store.get` raises.
    """
    if ids:
        if store is None:
            raise ValueError(
                f"memory_ids={list(ids)} are looked up in a store; give store=MemoryStore(path)."
            )
        return store.get(list(ids), rate).join()
    if memory is None:
        raise ValueError(
            "there is nothing to read: give memory_ids=[...] with store=..., or memory=...."
        )
    return memory.join() if rate is None else memory.at_rate(rate).join()


class _Growing(BaseStreamer):
    """Hands an answer's text over as it grows, from its beginning each time.

    transformers' `TextIteratorStreamer` waits for whole words and decodes lines apart, which for
    some tokenizers does not add up to the answer.
    """

    def __init__(self, model: MemslotsModel):
        self._decode = model.processor.decode
        self._ids: list[int] = []
        self.texts: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        """None comes last."""
        self.left = False
        """Whether nobody wants more."""

    def put(self, value: torch.Tensor) -> None:
        """Take new tokens; the first call brings the prompt's, of which embeddings have none."""
        if new := value.flatten().tolist():
            self._ids += new
            self.texts.put(self._decode(self._ids))

    def end(self) -> None:
        """The thread says so when `generate` has returned or failed."""

    def is_left(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """A stopping criterion of transformers: `(rows,)`, all True or all False."""
        return input_ids.new_full(input_ids.shape[:1], self.left).bool()


def stream_answer(
    model: MemslotsModel,
    memory: Memory,
    messages: list[dict[str, Any]],
    stop: Sequence[str] | None = None,
    **generate_kwargs: Any,
) -> Iterator[str]:
    """Parts of an answer as the decoder writes them; together, what `model.generate` returns.

    The decoder runs in a thread, which stops within a token when the iterator is closed.

    Args:
        model: with its decoder.
        memory: one document.
        messages: `[{"role", "content"}, ...]`; one user message alone is asked as a question.
        stop: strings before which the answer ends.
        generate_kwargs: any argument of `model.generate`.

    Raises:
        ValueError: what `model.generate` raises.
    """
    question, chat = question_or_messages(messages)
    growing, visible = _Growing(model), VisibleText(tuple(stop or ()))
    failures: list[BaseException] = []

    def generate() -> None:
        try:
            model.generate(
                question=question,
                messages=chat,
                memory=memory,
                streamer=growing,
                stopping_criteria=[growing.is_left],
                **generate_kwargs,
            )
        except BaseException as error:  # whatever it is, it belongs to who reads the answer
            failures.append(error)
        finally:
            growing.texts.put(None)

    thread = threading.Thread(target=generate, name="memslots-answer", daemon=True)
    thread.start()
    whole = ""
    try:
        while (text := growing.texts.get()) is not None:
            whole = text
            if delta := visible.update(whole):
                yield delta
            if visible.stopped:
                return
        if failures:
            raise failures[0]
        if rest := visible.finish(whole):
            yield rest
    finally:
        growing.left = True
        thread.join()
