"""Memory files as they travel in requests: base64 of what `memory.save` writes."""

from __future__ import annotations

import base64
import binascii
import tempfile
from pathlib import Path

from memslots.modeling import Memory, MemslotsModel
from memslots.sent_memories import load_sent_memory


def read_memory_file(model: MemslotsModel, encoded: str, max_characters: int) -> Memory:
    """A memory that somebody sent.

    Args:
        model: The compressor that must have written it.
        encoded: The file.
        max_characters: Of its texts.

    Raises:
        ValueError: No base64, no memory of this compressor, or one that no compressor writes.
    """
    try:
        content = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"memory is not base64: {error}.") from error
    with tempfile.TemporaryDirectory(prefix="memslots-") as folder:
        path = Path(folder) / "memory.safetensors"
        path.write_bytes(content)
        try:
            return load_sent_memory(model, path, max_characters)
        except ValueError as error:
            said = str(error).replace(repr(str(path)), "memory").replace(str(path), "memory")
            raise ValueError(said) from error


def write_memory_file(memory: Memory) -> bytes:
    """The file that `memory.save` writes."""
    with tempfile.TemporaryDirectory(prefix="memslots-") as folder:
        path = Path(folder) / "memory.safetensors"
        memory.save(path)
        return path.read_bytes()
