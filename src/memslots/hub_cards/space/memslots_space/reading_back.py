"""Reading a document back from its slots, and comparing it with what was compressed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from typing import Any, NamedTuple

from .answers import Document

RIGHT, WRONG, MISSING = "right", "wrong", "missing"


class Piece(NamedTuple):
    """A stretch of the text, of the source where `kind` is `MISSING`, else of what came back."""

    text: str
    kind: str


@dataclass(frozen=True)
class ReadBack:
    """A reconstruction beside its source.

    Args:
        segments: the pieces of each segment, in order.
        right: decoder tokens of the source that come back, in order.
        total: decoder tokens of the source.
        left_out: segments that were not read back.
        seconds: of generating.
    """

    segments: tuple[tuple[Piece, ...], ...]
    right: int
    total: int
    left_out: int
    seconds: float


def read_back(model: Any, document: Document, most: int) -> ReadBack:
    """Reconstructs the first `most` segments of a document.

    Args:
        model: a `MemslotsModel`.
        document: what to read.
        most: each segment costs as many decoder steps as it has tokens.
    """
    memory = document.memory
    alone = replace(memory, documents=tuple((segment,) for segment in memory.segments))[:most]
    started = time.perf_counter()
    produced = model.reconstruct(alone)
    seconds = time.perf_counter() - started
    texts = [produced] if isinstance(produced, str) else produced
    compared, right, total = [], 0, 0
    for segment, text in zip(alone.segments, texts, strict=True):
        source = document.text[segment.start : segment.end]
        pieces, matched, tokens = compare(model.processor.decoder_text.backend, source, text)
        compared.append(tuple(pieces))
        right += matched
        total += tokens
    left_out = len(memory.segments) - len(alone.segments)
    return ReadBack(tuple(compared), right, total, left_out, seconds)


def compare(tokenizer: Any, source: str, produced: str) -> tuple[list[Piece], int, int]:
    """Aligns two texts by tokens.

    Args:
        tokenizer: a `tokenizers.Tokenizer`.
        source: what was compressed.
        produced: what the decoder gave back.

    Returns:
        The pieces in reading order, how many of the source's tokens are right, and how many it has.
    """
    source_tokens, source_at = tokens_of(tokenizer, source)
    produced_tokens, produced_at = tokens_of(tokenizer, produced)
    pieces: list[Piece] = []
    right = 0
    matcher = SequenceMatcher(None, source_tokens, produced_tokens, autojunk=False)
    for kind, i1, i2, j1, j2 in matcher.get_opcodes():
        if kind == "equal":
            right += i2 - i1
            pieces.append(Piece(produced[produced_at[j1] : produced_at[j2]], RIGHT))
            continue
        pieces.append(Piece(source[source_at[i1] : source_at[i2]], MISSING))
        pieces.append(Piece(produced[produced_at[j1] : produced_at[j2]], WRONG))
    return [piece for piece in pieces if piece.text], right, len(source_tokens)


def tokens_of(tokenizer: Any, text: str) -> tuple[Sequence[int], list[int]]:
    """Token ids, and where in the text each one starts; the last number is the text's length."""
    encoding = tokenizer.encode(text, add_special_tokens=False)
    starts = [start for start, _ in encoding.offsets]
    return encoding.ids, [0, *starts[1:], len(text)] if starts else [0]
