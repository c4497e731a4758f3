"""Memories from disk: of this compressor, and bounded where a stranger sent the file.

A checksum does not help against who made the file: numbers that no compressor writes are refused
before anything is made of them, and what is packed is opened no further than its segment is long.
"""

import os
import re
from typing import TYPE_CHECKING

import torch

from .fidelity_memslots import LONG
from .memory_memslots import Memory, Segment
from .patches_memslots import needs_slots, read_patches, stored_text
from .segment_check_memslots import SegmentCheck, slots_for

if TYPE_CHECKING:
    from transformers import PreTrainedModel as _Model
else:
    _Model = object

MOST_HEADER = 8 * 2**20
"""Bytes of a sent file's JSON: numbers of segments, literals, and text that is read as text."""

MORE_TOKENS = 64
"""A segment may be so much longer than `segment_length`, where one character is many tokens."""

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
"""Of slots that are sent."""

_HASH = re.compile("[0-9a-f]{64}")


class MemoryLoadingMixin(_Model):
    """`load_memory` of `MemslotsModel`."""

    def load_memory(self, path, most_characters: int | None = None) -> Memory:
        """Read a memory from disk onto this model's device; it must be this compressor's.

        Args:
            path: the file.
            most_characters: give this for a file that a stranger sent: the most characters that
                its texts may have. What no compressor writes is then refused, before it costs.

        Raises:
            ValueError: another compressor's memory, or what `Memory.load` raises; of a file that
                was sent, whatever is wrong with it.
        """
        if most_characters is None:
            memory = Memory.load(path, device=self.encoder.device)
            self._check_memory(memory)
            return memory
        try:
            _check_header(path)
            memory = Memory.load(path)
            self._check_memory(memory)
            check_sent(self, memory, most_characters)
        except (ValueError, FileNotFoundError):
            raise
        except (TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError) as error:
            raise ValueError("memory is a file whose header is no memory's.") from error
        return memory.to(self.encoder.device)

    def _check_memory(self, memory: Memory) -> None:
        # A memory made by a copy of this code (remote code beside an installed package) is another
        # class, so it is recognised by what it holds.
        if not all(hasattr(memory, name) for name in ("slots", "documents", "fingerprint")):
            raise TypeError(
                "memory must be a Memory from compress or load_memory, got "
                f"{type(memory).__name__}."
            )
        if not memory.documents:
            raise ValueError("memory has no document; an empty slice answers nothing.")
        if memory.fingerprint != self.fingerprint:
            raise ValueError(
                f"this memory was written by compressor {memory.fingerprint[:12]}, and this model "
                f"is {self.fingerprint[:12]}; its slots mean nothing here. Load the checkpoint "
                "that wrote it, or compress the text again."
            )


def check_sent(model: "_Model", memory: Memory, most_characters: int) -> None:
    """Refuse numbers and texts that no compressor of this kind writes.

    Args:
        model: a `MemslotsModel`.
        memory: somebody's.
        most_characters: of all texts together; of all literals too.

    Raises:
        ValueError: what is wrong.
    """
    check_slots(model, memory)
    own = model.memory_of([], [], memory.slots[:0], 1)  # type: ignore[operator]
    for name in ("rates", "nested", "pooling"):
        given, wanted = getattr(memory, name), getattr(own, name)
        if type(given) is not type(wanted) or given != wanted:
            raise ValueError(f"memory has {name} {_short(given)}, and its compressor {wanted!r}.")
    if type(memory.rate) is not int or memory.rate not in own.rates:
        raise ValueError(f"memory has rate {_short(memory.rate)}; allowed are {own.rates}.")
    hashes, unknown = memory.text_sha256, memory.unknown_tokens
    if not all(isinstance(one, str) and _HASH.fullmatch(one) for one in hashes):
        raise ValueError("memory has a text_sha256 that is none.")
    if len(unknown) != len(hashes) or not all(_within(one, 2**31) for one in unknown):
        raise ValueError("memory has no number of unknown tokens for each of its texts.")
    if not all(memory.documents):
        raise ValueError("memory has a document without a segment; compress the text again.")
    characters = beside = 0
    literals = memory.literals or ((),) * len(memory.segments)
    for segment, check, held in zip(memory.segments, memory.all_checks(), literals, strict=True):
        _check_segment(model, segment, check, len(hashes), most_characters)
        for start, end, text in held:
            if not (
                _within(start, segment.end - 1)
                and start >= segment.start
                and type(end) is int
                and _is_text(text, end - start)
            ):
                raise ValueError(f"memory has a literal that is not of its segment, at {start!r}.")
            beside += len(text)
        characters += segment.end - segment.start
        if max(characters, beside) > most_characters:
            raise ValueError(
                f"memory has more than the {most_characters} characters that are taken; send its "
                "documents one by one."
            )
    check_order(memory)
    for segment, check in zip(memory.segments, memory.checks, strict=False):
        if check.exact:  # last, since only this is opened
            length = segment.end - segment.start
            if needs_slots(check.exact):
                read_patches(check.exact, LONG * model.config.segment_length, length)
            else:
                stored_text(check.exact, length)


def check_order(memory: Memory) -> None:
    """Refuse segments and literals that a text cannot be cut into: a small file would name many.

    Raises:
        ValueError: segments of a text, or literals, that are not in its order and apart; or a
            segment of no token that is read as slots.
    """
    ends: dict[object, int] = {}
    before: dict[object, tuple] = {}
    literals = memory.literals or ((),) * len(memory.segments)
    for segment, rate, held in zip(memory.segments, memory.segment_rates, literals, strict=True):
        if segment.start < ends.get(segment.text, 0):
            raise ValueError(
                f"memory has a segment at {_short(segment.start)} that is not after the one "
                "before it: segments of a text are in its order and do not overlap."
            )
        ends[segment.text] = segment.end
        if rate and not segment.tokens:
            raise ValueError("memory has a segment of no tokens, which no slot stands for.")
        for literal in held:
            place = tuple(literal[:2])
            if place <= before.get(segment.text, (-1, -1)):
                raise ValueError(
                    f"memory has a literal at {_short(place)} that is not after the one before "
                    "it: literals of a text are in its order, each once."
                )
            before[segment.text] = place


def check_slots(model: "_Model", memory: Memory) -> None:
    """Refuse slots that are no memory of this width, whoever made the file.

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


def _check_segment(
    model: "_Model", segment: Segment, check: SegmentCheck, texts: int, most_characters: int
) -> None:
    rates = (0, *model.config.compression_rates)
    if type(check.rate) is not int or check.rate not in rates:
        raise ValueError(f"memory has a segment of rate {_short(check.rate)}; allowed are {rates}.")
    most_tokens = model.config.segment_length + MORE_TOKENS
    numbers = (segment.text, segment.start, segment.end, segment.tokens, segment.slots)
    if not (
        _within(segment.text, texts - 1)
        and _within(segment.start, most_characters)
        and _within(segment.end, most_characters)
        and segment.start < segment.end
        and _within(segment.tokens, most_tokens)
        and type(segment.slots) is int
        and segment.slots == slots_for(segment.tokens, check.rate)
    ):
        raise ValueError(
            f"memory has a segment of numbers {_short(numbers)} (text, start, end, tokens, slots); "
            f"that is not how rate {check.rate} of {texts} texts is written, in segments of "
            f"{model.config.segment_length} tokens and {most_characters} characters at most."
        )
    as_text = check.text is not None
    if (check.rate == 0) != as_text or (
        as_text and not _is_text(check.text, segment.end - segment.start)
    ):
        raise ValueError(
            f"memory has a segment of rate {check.rate} whose text is not the {segment.end}"
            f" - {segment.start} characters that are read in its slots' place."
        )
    counted = [check.tokens, check.positions]
    lost = check.lost or ()
    if not all(one is None or _within(one, 2**31) for one in counted) or (
        lost and len(lost) > (check.tokens or 0)
    ):
        raise ValueError("memory has a segment whose tokens are not counted right.")
    if not all(
        type(a) is int and _within(b, segment.end) and segment.start <= a <= b for a, b in lost
    ):
        raise ValueError("memory has a lost token outside its segment.")


def _check_header(path: str | os.PathLike) -> None:
    """Refuse a file whose JSON is too long to be read, before it is."""
    if os.path.exists(path) and not os.path.isfile(path):  # a folder, or a pipe that never ends
        raise ValueError(f"{str(path)!r} is no file; name the file that memory.save wrote.")
    if not os.path.isfile(path):  # nor where links lead in a circle
        raise FileNotFoundError(f"there is no memory file at {str(path)!r}.")
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
    if size > MOST_HEADER and size < os.path.getsize(path):  # else it is no safetensors at all
        raise ValueError(
            f"memory has a header of {size} bytes, and {MOST_HEADER} are read of a file that was "
            "sent; send its documents one by one."
        )


def _within(value: object, most: int) -> bool:
    return type(value) is int and 0 <= value <= most  # type: ignore[operator]


def _is_text(value: object, length: int) -> bool:
    if not isinstance(value, str) or not value or len(value) != length:
        return False
    return not any("\ud800" <= one <= "\udfff" for one in value)


def _short(value: object) -> str:
    return repr(value)[:80]
