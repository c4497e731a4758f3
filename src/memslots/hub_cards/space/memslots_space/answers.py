"""Compressing once, and answering from the memory, from the full text and from a control."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from memslots import verified
from memslots.modeling import layout_memslots
from memslots.modeling.encoders_memslots import encode_spans

FULL_TEXT, MEMORY, CONTROL = "Full text", "Memory", "Control"
SOURCES = (FULL_TEXT, MEMORY, CONTROL)

TOKENS_A_STEP = 1024
"""Encoder tokens between two reports of progress: enough for a full pass, seconds on a CPU."""


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
        prompt_tokens: of the decoder's prompt, with the memory or the text in it.
        kept_bytes: what is stored of the document: slots, or UTF-8 text.
        cache_bytes: of the KV cache of these tokens, measured; None if the decoder keeps its
            state in another form.
        seconds: of generating.
        problem: why there is no answer.
    """

    source: str
    text: str = ""
    prompt_tokens: int | None = None
    kept_bytes: int | None = None
    cache_bytes: int | None = None
    seconds: float | None = None
    problem: str = ""


def compress(
    model: Any,
    text: str,
    rate: int,
    question: str = "?",
    max_new_tokens: int = 1,
    earlier: Document | None = None,
) -> Iterator[Document | tuple[int, int]]:
    """Compresses a text, or takes what `earlier` holds of it where that serves the rate too.

    Args:
        model: a `MemslotsModel`.
        text: the document.
        rate: encoder tokens per slot.
        question: what has to fit the decoder beside the memory.
        max_new_tokens: of its answer.
        earlier: the document compressed last.

    Yields:
        Segments compressed so far and all segments, while it works; at last the document.

    Raises:
        ValueError: a text that does not fit the decoder, before anything of it is encoded.
    """
    if earlier is not None and earlier.text == text and earlier.encoded.coarsens_to(rate):
        if earlier.memory.rate != rate:
            earlier = replace(earlier, memory=earlier.encoded.at_rate(rate), report=None)
        check_room(model, earlier.memory, question, max_new_tokens)
        yield earlier
        return
    (spans,) = model.segment([text])
    outline = model.outline([text], [spans], rate)
    check_room(model, outline, question, max_new_tokens)
    started, slots = time.perf_counter(), []
    step = max(1, TOKENS_A_STEP // model.config.segment_length)
    for first in range(0, len(spans), step):
        yield first, len(spans)
        slots.append(encode_spans(model, spans[first : first + step], rate, progress=False))
    memory = replace(outline, slots=torch.cat(slots))
    yield Document(text, memory, memory, time.perf_counter() - started)


def check_room(model: Any, memory: Any, question: str, max_new_tokens: int) -> None:
    """Refuses what the decoder cannot hold.

    Raises:
        ValueError: memory, question and answer are too long together.
    """
    rows = model.memory_rows(memory, [(0, model.processor.prompt(question=question))])
    layout_memslots.check_room(model, memory, rows, [0], {"max_new_tokens": max_new_tokens})


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


def answer_all(
    model: Any, document: Document, control: Document, question: str, max_new_tokens: int
) -> Iterator[Answer]:
    """Answers one after the other, the memory's first; each is generated when it is asked for.

    Args:
        model: a `MemslotsModel`.
        document: what the question is about.
        control: another document; its memory shows what the decoder says without the right one.
        question: of the visitor.
        max_new_tokens: of each answer.
    """
    yield from_memory(model, MEMORY, document.memory, question, max_new_tokens)
    yield from_text(model, document.text, question, max_new_tokens)
    yield from_memory(model, CONTROL, control.memory, question, max_new_tokens)


def from_memory(model: Any, source: str, memory: Any, question: str, most: int) -> Answer:
    """The decoder's greedy answer from slots, of at most `most` tokens."""
    prompt = model.processor.prompt(question=question)
    length = model.memory_positions(memory)[0] + len(prompt.before) + len(prompt.after)
    answer = Answer(source, prompt_tokens=length, kept_bytes=memory.nbytes)
    generate = partial(model.generate, memory=memory, question=question)
    return _generated(model, answer, generate, most)


def from_text(model: Any, text: str, question: str, most: int) -> Answer:
    """The same decoder's greedy answer from the text itself."""
    processor, decoder = model.processor, model.decoder
    prompt = processor.prompt(question=question, context=text)
    ids = [*prompt.before, *prompt.after]
    answer = Answer(FULL_TEXT, prompt_tokens=len(ids), kept_bytes=len(text.encode()))
    row = torch.tensor([ids], device=decoder.device)
    ends: dict[str, Any] = {"eos_token_id": processor.eos_ids} if processor.eos_ids else {}
    if getattr(processor, "answer_end", None):  # as model.generate takes it
        ends |= {"stop_strings": processor.answer_end, "tokenizer": processor.tokenizer}
    mask, pad = torch.ones_like(row), processor.pad_id
    generate = partial(
        decoder.generate, input_ids=row, attention_mask=mask, pad_token_id=pad, **ends
    )
    return _generated(model, answer, generate, most, skip=len(ids))


def _generated(
    model: Any, answer: Answer, generate: Callable[..., Any], most: int, skip: int = 0
) -> Answer:
    """`answer` with its text and costs; the first `skip` tokens that come back are the prompt's."""
    length = answer.prompt_tokens or 0
    limit = getattr(model.decoder.config.get_text_config(), "max_position_embeddings", None)
    if isinstance(limit, int) and length + most > limit:
        problem = f"Too long for this decoder: {length:,} prompt tokens, it reads {limit:,}."
        return replace(answer, problem=problem)
    started = time.perf_counter()
    output = generate(
        max_new_tokens=most, do_sample=False, num_beams=1, return_dict_in_generate=True
    )
    text = model.processor.decode(output.sequences[0, skip:]).strip()  # waits for the accelerator
    seconds = time.perf_counter() - started
    cache = cache_bytes(output.past_key_values, length)
    return replace(answer, text=text, cache_bytes=cache, seconds=seconds)


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
