"""Memory files that strangers send: what no compressor writes is refused before it costs.

A file's checksum does not help against who made it: numbers that no compressor writes are refused
before anything is made of them. This file is copied beside a checkpoint's `handler.py`, so it needs
torch and safetensors alone, and asks the model for the rest.
"""

from __future__ import annotations

import json
import os
import re
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

MOST_HEADER = 8 * 2**20
"""Bytes of a sent file's JSON: numbers of segments, literals, and text that is read as text."""

MOST_LISTS = 2**16
"""In that JSON: each segment, literal and lost token is one, and costs some ten microseconds."""

MORE_TOKENS = 64
"""A segment may be so much longer than `segment_length`, where one character is many tokens."""

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
"""Of slots that are sent."""

_HASH = re.compile("[0-9a-f]{64}")
_SURROGATE = re.compile("[\ud800-\udfff]")


def load_sent_memory(model, path: str | os.PathLike, most_characters: int) -> Any:
    """A memory of `model` from a file that somebody sent, on the model's device.

    Args:
        model: a `MemslotsModel`.
        path: the file.
        most_characters: of all texts together; of all verbatim tokens too.

    Raises:
        FileNotFoundError: no such file.
        ValueError: whatever is wrong with it.

    Examples:
        >>> load_sent_memory(model, "memory.safetensors", 4_000_000)  # doctest: +SKIP
    """
    try:
        check_size(path)
        check_header(path, most_characters)
        memory = model.load_memory(path)
        check_sent(model, memory, most_characters)
    except (ValueError, FileNotFoundError):
        raise
    except (TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError) as error:
        raise ValueError("memory is a file, but its header is not that of a memory.") from error
    return memory


def check_size(path: str | os.PathLike) -> None:
    """Refuse a file whose JSON is too long to be read, before it is."""
    if os.path.exists(path) and not os.path.isfile(path):  # a folder, or a pipe that never ends
        raise ValueError(f"{str(path)!r} is not a file; name the file that memory.save wrote.")
    if not os.path.isfile(path):  # nor where links lead in a circle
        raise FileNotFoundError(f"there is no memory file at {str(path)!r}.")
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
    if size > MOST_HEADER and size < os.path.getsize(
        path
    ):  # else it is not a safetensors file at all
        raise ValueError(
            f"memory has a header of {size} bytes, and at most {MOST_HEADER} are accepted from a "
            "file that was sent; send its documents one by one."
        )


def check_header(path: str | os.PathLike, most_characters: int) -> None:
    """Refuse a file of too many parts, or that says it keeps more text than is taken.

    Nothing is made of the one, and nothing inflated of the other.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata()["memslots"]
        lists = header.count("[") + header.count("{")
        sizes = json.loads(header)["texts"] if lists <= MOST_LISTS else []
        total = sum(size for pair in sizes if pair is not None for size in pair[1:])
    except (SafetensorError, OSError, ValueError, LookupError, TypeError, RecursionError):
        return  # whatever it is, loading says so; and it sums up the sizes likewise
    if lists > MOST_LISTS:
        raise ValueError(
            f"memory has {lists} segments, verbatim and lost tokens together, and at most "
            f"{MOST_LISTS} are accepted from a file that was sent; send its documents one by one, "
            "or shorter texts."
        )
    if total > 4 * most_characters:  # of UTF-8, at most
        raise ValueError(f"memory keeps {total} bytes of text, for {most_characters} characters.")


def check_sent(model, memory, most_characters: int) -> None:
    """Refuse numbers and texts that no compressor of this kind writes.

    Args:
        model: a `MemslotsModel`.
        memory: somebody's.
        most_characters: of all texts together; of all verbatim tokens too.

    Raises:
        ValueError: what is wrong.
    """
    check_slots(model, memory)
    check_room_of_parts(model, memory)
    empty = model.outline([], [], 1)
    for name in ("rates", "nested", "pooling"):
        value, expected = getattr(memory, name), getattr(empty, name)
        if type(value) is not type(expected) or value != expected:
            raise ValueError(
                f"memory has {name} {_short(value)}, but its compressor has {expected!r}."
            )
    if type(memory.rate) is not int or memory.rate not in empty.rates:
        raise ValueError(f"memory has rate {_short(memory.rate)}; allowed are {empty.rates}.")
    hashes, unknown = memory.text_sha256, memory.unknown_tokens
    if not all(isinstance(text_hash, str) and _HASH.fullmatch(text_hash) for text_hash in hashes):
        raise ValueError("memory has a text_sha256 that is not a SHA-256.")
    if len(unknown) != len(hashes) or not all(_within(count, 2**31) for count in unknown):
        raise ValueError("memory must say for each of its texts how many tokens were unknown.")
    if not all(memory.documents):
        raise ValueError("memory has a document without a segment; compress the text again.")
    characters = beside = 0
    for segment in memory.segments:
        _check_segment(model, segment, len(hashes), most_characters)
        for start, end, text in segment.literals:
            if not (
                _within(start, segment.end - 1)
                and start >= segment.start
                and type(end) is int
                and _is_text(text, end - start)
            ):
                raise ValueError(
                    f"memory has verbatim tokens that are not of their segment, at {start!r}."
                )
            beside += len(text)
        characters += segment.end - segment.start
        if max(characters, beside) > most_characters:
            raise ValueError(
                f"memory has more than {most_characters} characters, the limit; send its documents "
                "one by one."
            )
    if unread := len(hashes) - len({segment.text for segment in memory.segments}):
        raise ValueError(f"memory names {unread} texts that no segment belongs to.")
    check_order(memory)


def check_room_of_parts(model, memory) -> None:
    """Refuse a document that the decoder cannot read at any rate, before more is made of it.

    Raises:
        ValueError: more segments and verbatim tokens than the decoder reads tokens.
    """
    config = model.decoder.config.get_text_config() if model.has_decoder else None
    most = getattr(config, "max_position_embeddings", None)
    for document in memory.documents:
        parts = len(document) + sum(len(segment.literals) for segment in document)
        if isinstance(most, int) and 0 < most < parts:
            raise ValueError(
                f"memory has a document of {parts} segments and verbatim tokens, and the decoder "
                f"reads {most} tokens; send shorter documents."
            )


def check_order(memory) -> None:
    """Refuse segments and verbatim tokens that no text is cut into: a small file would name many.

    Raises:
        ValueError: segments or verbatim tokens of a text that are not in its order and apart; or a
            segment without tokens that is read as slots.
    """
    ends: dict[object, int] = {}
    reached: dict[object, int] = {}
    for segment in memory.segments:
        if segment.start < ends.get(segment.text, 0):
            raise ValueError(
                f"memory has a segment at {_short(segment.start)} that is not after the one "
                "before it: segments of a text are in its order and do not overlap."
            )
        ends[segment.text] = segment.end
        if segment.rate and not segment.tokens:
            raise ValueError("memory has a segment without tokens, so no slot can stand for it.")
        for start, end, _ in segment.literals:
            if start < reached.get(segment.text, 0):
                raise ValueError(
                    f"memory has verbatim tokens at {_short((start, end))} that are not after "
                    "those before them: those of a text are in its order and do not overlap."
                )
            reached[segment.text] = end


def check_slots(model, memory) -> None:
    """Refuse slots that no memory of this width has, whoever made the file.

    Raises:
        ValueError: another width or dtype, or a slot that is not finite where it is read.
    """
    width = model.config.slot_size
    if memory.dtype not in DTYPES or memory.slots.shape[1] != width:
        raise ValueError(
            f"this memory has {memory.dtype} slots of width {memory.slots.shape[1]}, and this "
            f"compressor's are floating-point of width {width}; compress the text again."
        )
    # As the converter reads them: its first layer takes the square of each slot.
    squares = memory.slots.to(model.dtype).float().square().sum(dim=1)
    if not torch.isfinite(squares).all():
        raise ValueError(
            "this memory has slots that are not finite, or too large to be read; compress the "
            "text again."
        )


def _check_segment(model, segment, texts: int, most_characters: int) -> None:
    rates = (0, *model.config.compression_rates)
    if type(segment.rate) is not int or segment.rate not in rates:
        raise ValueError(
            f"memory has a segment of rate {_short(segment.rate)}; allowed are {rates}."
        )
    most_tokens = model.config.segment_length + MORE_TOKENS
    numbers = (segment.text, segment.start, segment.end, segment.tokens, segment.slots)
    if not (
        _within(segment.text, texts - 1)
        and _within(segment.start, most_characters)
        and _within(segment.end, most_characters)
        and segment.start < segment.end
        and _within(segment.tokens, most_tokens)
        and type(segment.slots) is int
        and segment.slots == (-(-segment.tokens // segment.rate) if segment.rate else 0)
    ):
        raise ValueError(
            f"memory has a segment of numbers {_short(numbers)} (text, start, end, tokens, slots); "
            f"that is not how rate {segment.rate} of {texts} texts is written, in segments of "
            f"{model.config.segment_length} tokens and {most_characters} characters at most."
        )
    check = segment.check
    if check is None:
        return
    as_text = check.text is not None
    if (segment.rate == 0) != as_text or (
        as_text and not _is_text(check.text, segment.end - segment.start)
    ):
        raise ValueError(
            f"memory has a segment of rate {segment.rate} whose text is not the {segment.end}"
            f" - {segment.start} characters that are read in its slots' place."
        )
    counted = [check.tokens, check.positions]
    lost = check.lost or ()
    if not all(count is None or _within(count, 2**31) for count in counted) or (
        lost and len(lost) > (check.tokens or 0)
    ):
        raise ValueError("memory has a segment whose tokens are not counted right.")
    if not all(
        type(a) is int and _within(b, segment.end) and segment.start <= a <= b for a, b in lost
    ):
        raise ValueError("memory has a lost token outside its segment.")


def _within(value: object, most: int) -> bool:
    return type(value) is int and 0 <= value <= most


def _is_text(value: object, length: int) -> bool:
    if not isinstance(value, str) or not value or len(value) != length:
        return False
    return value.isascii() or not _SURROGATE.search(value)


def _short(value: object) -> str:
    return repr(value)[:80]
