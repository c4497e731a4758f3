"""Segments' texts on demand: those that were kept, or what the decoder reads back."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch

from memslots.modeling import Memory, MemslotsModel, MemslotsProcessor
from memslots.modeling.decoders_memslots import read_back
from memslots.modeling.layout_memslots import beside_slots, reading_row

UNCERTAIN = 0.8
"""A token is marked where the decoder gave it less than this probability."""

MARKS = ("⟦", "⟧")
"""What stands around uncertain tokens."""


def expand(model: MemslotsModel, memory: Memory, i: int) -> str:
    """The text of a segment: the exact one if it was kept, else what the decoder reads back.

    Args:
        model: The compressor, with its decoder where the text was not kept.
        memory: That holds the segment.
        i: Index in `memory.segments`; negative ones count from the end.

    Returns:
        The text; what was read back has its uncertain tokens in `⟦⟧`.

    Raises:
        ValueError: No such segment, or a kept text with another SHA-256.

    Examples:
        >>> verified.expand(model, model.compress("Ann is here.", keep_text=True), 0)
        'Ann is here.'
    """
    model.check_memory(memory)
    (i,) = check_segments(memory, [i])
    (text,) = memory.kept_texts([i])
    return _read_marked(model, memory, i) if text is None else text


def expanded(model: MemslotsModel, memory: Memory, indices: Sequence[int]) -> Memory:
    """The memory, some segments of which are read as text: the kept one, or what is read back.

    Args:
        model: The compressor, with its decoder where a text was not kept.
        memory: One document or several.
        indices: In `memory.segments`.

    Raises:
        ValueError: Other values than indices of segments.

    Examples:
        >>> memory = model.compress("Ann is here.", keep_text=True)
        >>> verified.expanded(model, memory, [0]).segment_texts
        ('Ann is here.',)
    """
    chosen = [i for i in check_segments(memory, indices) if memory.segment_texts[i] is None]
    texts = dict(zip(chosen, memory.kept_texts(chosen), strict=True))
    missing = [i for i in chosen if texts[i] is None]
    if missing:
        warnings.warn(
            f"the exact text of segments {listed(missing)} was not kept, so you get what the "
            "decoder reads back from their slots, mistakes included; compress with "
            "keep_text=True, or give the text you have: memory.as_text({i: text})",
            stacklevel=2,
        )
        texts.update(zip(missing, read_back(model, memory, missing, 32, {}), strict=True))
    return memory.as_text({i: text or "" for i, text in texts.items()})


def listed(indices: Sequence[int]) -> str:
    """The first indices, for a message."""
    return ", ".join(map(str, indices[:5])) + (" and more" if len(indices) > 5 else "")


def check_segments(memory: Memory, indices: Sequence[int]) -> list[int]:
    """Indices of segments, from 0, each once and in order; `ValueError` for anything else."""
    count = len(memory.segments)
    several = isinstance(indices, (list, tuple, range, set))
    chosen: list[Any] = list(indices) if several else [indices]
    for i in chosen:
        if type(i) is not int or not -count <= i < count:
            raise ValueError(
                f"expand={chosen!r}: segments are integers from 0 to {count - 1}, got {i!r}."
            )
    return sorted({i % count for i in chosen})


def marked(processor: MemslotsProcessor, ids: Sequence[int], sure: Sequence[bool]) -> str:
    """The text of tokens, with marks around those that are not sure.

    Args:
        processor: the processor that decodes.
        ids: decoder tokens.
        sure: whether the decoder is sure, for each of them.
    """
    text, pending = "", False
    parts: list[tuple[str, bool]] = []
    for n, certain in enumerate(sure, start=1):
        pending = pending or not certain
        whole = processor.decode(ids[:n])
        if whole.endswith("\N{REPLACEMENT CHARACTER}") and n < len(ids):
            continue  # in the midst of a character
        parts.append((whole[len(text) :], not pending))
        text, pending = whole, False
    shown, open_mark = "", False
    for piece, certain in parts:
        if piece and certain == open_mark:
            shown += MARKS[open_mark]
            open_mark = not open_mark
        shown += piece
    return shown + (MARKS[1] if open_mark else "")


@torch.no_grad()
def _read_marked(model: MemslotsModel, memory: Memory, i: int) -> str:
    """What the decoder writes of a segment, with what it is not sure of in marks."""
    beside = beside_slots(memory, model.processor.decoder_text.encode)[i]
    rows = [reading_row(i, model.processor.bos_ids, [], beside)]
    kwargs = {
        "max_new_tokens": 2 * memory.segments[i].tokens + 16,
        "do_sample": False,
        "num_beams": 1,
        "return_dict_in_generate": True,
        "output_scores": True,
    }
    output = model.generate_rows(rows, memory, kwargs)
    ids = output.sequences[0].tolist()[-len(output.scores) :]
    sure = [
        bool(torch.softmax(scores[0].float(), dim=-1)[token] >= UNCERTAIN)
        for token, scores in zip(ids, output.scores, strict=True)
    ]
    return marked(model.processor, ids, sure)
