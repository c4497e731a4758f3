"""Compressing once, and answering from the memory, from the full text and from nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from memslots import verified

FULL_TEXT, MEMORY, NO_CONTEXT = "Full text", "Memory", "No context"
SOURCES = (FULL_TEXT, MEMORY, NO_CONTEXT)


@dataclass(frozen=True, eq=False)
class Document:
    """A text that was compressed.

    Args:
        text: what the visitor gave.
        encoded: its `Memory` as the encoder wrote it.
        memory: the same at the rate that was asked for.
        seconds: that encoding took.
        report: what `memory` loses, a `MemoryReport`; None while nobody has asked.
    """

    text: str
    encoded: Any
    memory: Any
    seconds: float
    report: Any = None


@dataclass(frozen=True)
class Answer:
    """One answer and what it cost.

    Args:
        source: one of `SOURCES`.
        text: the answer.
        positions: decoder positions of the prompt, the memory or text in it included.
        cache_bytes: of the KV cache at these positions, measured; None where the decoder keeps its
            state in another form.
        slot_bytes: of the memory's slots, None without one.
        seconds: of generating.
        problem: why there is no answer.
    """

    source: str
    text: str = ""
    positions: int | None = None
    cache_bytes: int | None = None
    slot_bytes: int | None = None
    seconds: float | None = None
    problem: str = ""


def compress(model: Any, text: str, rate: int, earlier: Document | None = None) -> Document:
    """Compresses a text, or takes what `earlier` holds of it where that serves the rate too.

    Args:
        model: a `MemslotsModel`.
        text: the document.
        rate: encoder tokens per slot.
        earlier: the document compressed last.
    """
    if earlier is not None and earlier.text == text:
        if earlier.memory.rate == rate:
            return earlier
        if earlier.encoded.coarsens_to(rate):
            return replace(earlier, memory=earlier.encoded.at_rate(rate), report=None)
    started = time.perf_counter()
    memory = model.compress(text, rate=rate, progress=False)
    return Document(text, memory, memory, time.perf_counter() - started)


def verify(model: Any, document: Document) -> Document:
    """The document with a report of what its memory loses; the decoder reads the text for it once.

    Args:
        model: a `MemslotsModel`.
        document: what was compressed; one that has its report costs nothing.
    """
    if document.report is not None:
        return document
    # Nothing has to come back exactly (exact=[]), so the slots are those of the memory: only asked.
    checked = verified.compress(
        model, document.text, rate=document.memory.rate, exact=[], progress=False
    )
    return replace(document, report=verified.report(checked, document.text))


def warm_up(model: Any) -> None:
    """Runs everything once, so that the first visitor's seconds are like everybody's."""
    document = compress(model, "A few words.", min(model.config.compression_rates))
    for _ in answer_all(model, document, "Who?", max_new_tokens=2):
        pass


def answer_all(
    model: Any, document: Document, question: str, max_new_tokens: int
) -> Iterator[Answer]:
    """Answers one after the other, the memory's first; each is generated when it is asked for."""
    yield from_memory(model, document.memory, question, max_new_tokens)
    yield from_tokens(model, FULL_TEXT, document.text, question, max_new_tokens)
    yield from_tokens(model, NO_CONTEXT, None, question, max_new_tokens)


def from_memory(model: Any, memory: Any, question: str, max_new_tokens: int) -> Answer:
    """The decoder's greedy answer from slots."""
    prompt = model.processor.prompt(question=question)
    positions = model.memory_positions(memory)[0] + len(prompt.before) + len(prompt.after)

    def generate() -> Any:
        return model.generate(
            memory=memory,
            question=question,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            return_dict_in_generate=True,
        )

    if problem := _no_room(model, positions, max_new_tokens):
        return Answer(MEMORY, positions=positions, slot_bytes=memory.nbytes, problem=problem)
    text, output, seconds = _timed(model, generate)
    cache = cache_bytes(output.past_key_values, positions)
    return Answer(MEMORY, text, positions, cache, memory.nbytes, seconds)


def from_tokens(
    model: Any, source: str, context: str | None, question: str, max_new_tokens: int
) -> Answer:
    """The same decoder's greedy answer from tokens: the text and the question, or that alone."""
    processor, decoder = model.processor, model.decoder
    prompt = processor.prompt(question=question, context=context)
    ids = [*prompt.before, *prompt.after]
    if problem := _no_room(model, len(ids), max_new_tokens):
        return Answer(source, positions=len(ids), problem=problem)
    row = torch.tensor([ids], device=decoder.device)

    def generate() -> Any:
        return decoder.generate(
            input_ids=row,
            attention_mask=torch.ones_like(row),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            pad_token_id=processor.pad_id,
            return_dict_in_generate=True,
            **({"eos_token_id": processor.eos_ids} if processor.eos_ids else {}),
        )

    text, output, seconds = _timed(model, generate, skip=len(ids))
    return Answer(
        source, text, len(ids), cache_bytes(output.past_key_values, len(ids)), None, seconds
    )


def cache_bytes(cache: Any, positions: int) -> int | None:
    """Bytes of the keys and values of the first `positions` positions in a decoder's cache.

    Args:
        cache: what `generate` returned as `past_key_values`: it holds the answer's positions too,
            and layers with a sliding window hold fewer than the prompt has.
        positions: of the prompt.
    """
    total = 0
    for layer in cache.layers:
        keys, values = layer.keys, layer.values
        if not isinstance(keys, torch.Tensor) or not isinstance(values, torch.Tensor):
            return None
        held = keys.shape[-2]  # (rows, heads, positions, head size)
        total += (keys.nbytes + values.nbytes) * min(positions, held) // held
    return total


def _timed(model: Any, generate: Callable[[], Any], skip: int = 0) -> tuple[str, Any, float]:
    """The answer's text, what `generate` returned, and seconds; `skip` tokens are the prompt's."""
    started = time.perf_counter()
    output = generate()
    text = model.processor.decode(output.sequences[0, skip:]).strip()  # waits for the accelerator
    return text, output, time.perf_counter() - started


def _no_room(model: Any, positions: int, max_new_tokens: int) -> str:
    limit = getattr(model.decoder.config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(limit, int) or positions + max_new_tokens <= limit:
        return ""
    return f"Too long for this decoder: {positions:,} positions, it reads {limit:,}."
