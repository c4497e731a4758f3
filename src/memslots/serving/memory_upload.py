"""Memory files as they travel in requests: base64 of what `memory.save` writes."""

from __future__ import annotations

import base64
import binascii
import tempfile
from pathlib import Path

from memslots.modeling import Memory
from memslots.modeling.memory_memslots import slots_for


def read_memory_file(encoded: str) -> Memory:
    """A memory that somebody sent.

    Raises:
        ValueError: No base64, no memory, or one whose parts contradict each other.
    """
    try:
        content = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"memory is not base64: {error}.") from error
    with tempfile.TemporaryDirectory(prefix="memslots-") as folder:
        path = Path(folder) / "memory.safetensors"
        path.write_bytes(content)
        try:
            memory = Memory.load(path)
            _check_segments(memory)
        except (TypeError, KeyError, IndexError, AttributeError) as error:
            raise ValueError("memory is a file whose header is no memory's.") from error
        except ValueError as error:
            raise ValueError(str(error).replace(repr(str(path)), "memory")) from error
    return memory


def write_memory_file(memory: Memory) -> bytes:
    """The file that `memory.save` writes."""
    with tempfile.TemporaryDirectory(prefix="memslots-") as folder:
        path = Path(folder) / "memory.safetensors"
        memory.save(path)
        return path.read_bytes()


def _check_segments(memory: Memory) -> None:
    """Refuse numbers that no compressor writes; a checksum does not help against who made it."""
    texts = len(memory.text_sha256)
    for segment, rate in zip(memory.segments, memory.segment_rates, strict=True):
        numbers = (segment.text, segment.start, segment.end, segment.tokens, segment.slots)
        if not all(type(number) is int and number >= 0 for number in numbers):
            raise ValueError(f"memory has a segment of numbers {numbers}; they are 0 or more.")
        if segment.text >= texts or segment.slots != slots_for(segment.tokens, rate):
            raise ValueError(
                f"memory has a segment of {segment.tokens} tokens in {segment.slots} slots of text "
                f"{segment.text}; that is not how rate {rate} of {texts} texts is written."
            )
    allowed = (0, *memory.rates)
    for check in memory.checks:
        if check.rate not in allowed or (check.rate == 0) != (check.text is not None):
            raise ValueError(f"memory has a segment of rate {check.rate!r}; allowed are {allowed}.")
        if not isinstance(check.text, (str, type(None))):
            raise ValueError("memory has a segment whose text is no text.")
    if not memory.segments or type(memory.rate) is not int or memory.rate < 1:
        raise ValueError("memory has no segment, or no rate; compress the text again.")
