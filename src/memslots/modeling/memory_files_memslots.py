"""Memory files: one safetensors file with a JSON header in its metadata and a checksum over all.

What is packed is opened no further than it says it is long.
"""

import hashlib
import json
import os
import tempfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .texts_memslots import Literal

FORMAT = "memslots.memory"

FORMAT_VERSION = 4
"""Version 1 has no literals, version 2 no checks of segments, version 3 no texts (but
patches, which are not read any more); a memory is written as the oldest version that holds it."""

_FIELDS = ("rate", "nested", "fingerprint")
_LISTS = ("rates", "text_sha256", "unknown_tokens")
"""Fields of a `Memory` that its file's header has as they are, those of the second as lists."""

_UNREADABLE = (
    SafetensorError, json.JSONDecodeError, RecursionError, KeyError, TypeError, OSError
)  # fmt: skip


@dataclass(frozen=True)
class SegmentCheck:
    """What is known of a segment that was checked while it was made (`memslots.verified`).

    Args:
        tokens: decoder tokens of the segment's text; None if it was not read.
        positions: prompt tokens that the segment takes; None if it was not read.
        lost: characters `(start, end)` of each decoder token that neither the slots nor a literal
            beside them give back, in order; None if this is not known.
        text: the segment's text, if the decoder reads it in the slots' place.
    """

    tokens: int | None = None
    positions: int | None = None
    lost: tuple[tuple[int, int], ...] | None = None
    text: str | None = None

    @property
    def fidelity(self) -> float | None:
        """Share of the decoder tokens that the decoder gets; None if this is not known."""
        if self.text is not None or self.tokens == 0:
            return 1.0
        if self.lost is None or self.tokens is None:
            return None
        return 1 - len(self.lost) / self.tokens

    def with_other_slots(self, fewer: int) -> "SegmentCheck":
        """As it is after the slots became others, `fewer` less: what was known is no more."""
        positions = None if self.positions is None else self.positions - fewer
        return replace(self, positions=positions, lost=None)


@dataclass(frozen=True)
class Segment:
    """Characters of a text that were compressed independently.

    Args:
        text: index of the text.
        start: its first character.
        end: one past its last.
        tokens: encoder tokens.
        slots: how many slots stand for them; 0 if the decoder reads the text itself.
        rate: encoder tokens per slot; 0 if the decoder reads the text itself.
        literals: exact strings that the decoder reads beside the slots.
        check: what its slots lose and the text in their place, if it was checked.
    """

    text: int
    start: int
    end: int
    tokens: int
    slots: int
    rate: int
    literals: tuple[Literal, ...] = ()
    check: SegmentCheck | None = None


def segments_to_json(segments: Sequence[Segment]) -> dict[str, list[Any]]:
    """Their `literals` and `checks` as JSON holds them, where they have any."""
    fields: dict[str, list[Any]] = {}
    if any(segment.literals for segment in segments):
        fields["literals"] = [segment.literals for segment in segments]
    if any(segment.check is not None for segment in segments):
        checks = [(segment.rate, segment.check or SegmentCheck()) for segment in segments]
        # Version 3 has a number of bytes at the end, and its readers expect it.
        fields["checks"] = [[rate, c.tokens, c.positions, c.lost, c.text, 0] for rate, c in checks]
    return fields


def segments_from_json(
    numbers: Sequence[Sequence[int]], rate: int, literals: Sequence[Any], checks: Sequence[Any]
) -> list[Segment]:
    """Segments of five numbers each; `literals` and `checks` are of each of them, or none."""
    for name, values in (("literals", literals), ("checks", checks)):
        if values and len(values) != len(numbers):
            raise ValueError(f"{name} of {len(values)} segments, and there are {len(numbers)}")
    if any(len(row) != 5 for row in numbers) or any(len(parts) < 5 for parts in checks):
        raise ValueError("segments of other than five numbers, or checks of fewer parts")
    segments = []
    for i, (text, start, end, tokens, slots) in enumerate(numbers):
        check, segment_rate = None, rate
        if checks:
            segment_rate, decoder_tokens, positions, lost, as_text, *_ = checks[i]
            places = None if lost is None else tuple((int(a), int(b)) for a, b in lost)
            check = SegmentCheck(decoder_tokens, positions, places, as_text)
        beside = tuple(Literal(*literal) for literal in literals[i]) if literals else ()
        segments.append(Segment(text, start, end, tokens, slots, segment_rate, beside, check))
    return segments


def write_memory_file(path: str | os.PathLike, memory) -> None:
    """Write a `Memory`, see `Memory.save`."""
    beside = segments_to_json(memory.segments)
    version = 4 if memory.texts else 3 if "checks" in beside else 2 if beside else 1
    header: dict[str, Any] = {
        "version": version,
        **{name: getattr(memory, name) for name in (*_FIELDS, *_LISTS, "pooling")},
        "documents": [len(document) for document in memory.documents],
        "segments": [[s.text, s.start, s.end, s.tokens, s.slots] for s in memory.segments],
        **beside,
    }
    tensors = {"slots": memory.slots.detach().to("cpu").contiguous()}
    if version == 3:
        tensors["exact"] = torch.empty(0, dtype=torch.uint8)  # its readers expect one
    if memory.texts:
        packed = [None if text is None else pack_text(text) for text in memory.texts]
        header["texts"] = [
            None if data is None else [len(data), len((text or "").encode())]
            for data, text in zip(packed, memory.texts, strict=True)
        ]
        data = b"".join(data for data in packed if data is not None)
        tensors["texts"] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    write_file(path, header, tensors)


def write_file(
    path: str | os.PathLike, header: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]
) -> None:
    """Write a file of a header with `version` and contiguous CPU tensors; one there is replaced.

    Raises:
        ValueError: `path` is a folder, or its folder does not exist.
    """
    path = Path(os.path.realpath(os.fsdecode(path)))  # a link stays one
    if (path.exists() and not path.is_file()) or not path.parent.is_dir():  # a device, a pipe
        raise ValueError(f"cannot save to {str(path)!r}: give a file name in an existing folder.")
    text = json.dumps({"format": FORMAT, **header}, sort_keys=True)
    metadata = {"memslots": text, "sha256": _checksum(text, tensors)}
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        save_file(dict(tensors), partial, metadata=metadata)
        os.replace(partial, path)
    except BaseException as error:
        os.unlink(partial)
        if isinstance(error, (OSError, SafetensorError)):
            raise OSError(
                f"cannot write {str(path)!r} ({error}); is the disk full? Nothing was changed."
            ) from error
        raise


def memory_fields(header: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """The fields of a `Memory` that a file has, of `read_file`; any error where it is none's."""
    for name, kind in (("rate", int), ("rates", list), ("fingerprint", str)):
        if not isinstance(header[name], kind):
            raise ValueError(f"{name} is {header[name]!r:.80}")
    beside = header.get("literals", ()), header.get("checks", ())
    segments = segments_from_json(header["segments"], header["rate"], *beside)
    ends = [0, *accumulate(header["documents"])]
    if ends[-1] != len(segments) or sorted(ends) != ends:
        raise ValueError(f"{len(segments)} segments, its documents {ends[-1]}")
    lists = {name: tuple(header[name]) for name in _LISTS}
    hashes = lists["text_sha256"]
    return {
        **{name: header[name] for name in _FIELDS},
        **lists,
        "slots": tensors["slots"],
        "documents": tuple(tuple(segments[start:end]) for start, end in pairwise(ends)),
        "pooling": header.get("pooling", "memory_tokens"),
        "texts": _unpacked(header["texts"], tensors["texts"], hashes) if "texts" in tensors else (),
    }


def read_file(path: str | os.PathLike) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Header and tensors of a file, checked.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no memory, a newer format, or a file that was cut off or altered.
    """
    path = Path(os.fsdecode(path))
    if not path.is_file():
        raise FileNotFoundError(f"there is no memory file at {str(path)!r}.")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            text = metadata.get("memslots")
            if text is None:
                raise ValueError(f"{str(path)!r} is a safetensors file but no memslots memory.")
            header = json.loads(text)
            if header["format"] != FORMAT or not 1 <= header["version"] <= FORMAT_VERSION:
                raise ValueError(
                    f"{str(path)!r} has memory format {header['format']} version "
                    f"{header['version']}; this memslots reads {FORMAT} up to version "
                    f"{FORMAT_VERSION}. Update memslots."
                )
            others = {3: ["exact"], 4: ["texts"]}.get(header["version"], [])
            tensors = {name: file.get_tensor(name) for name in ["slots", *others]}
    except FileNotFoundError as error:  # since we looked
        raise FileNotFoundError(f"there is no memory file at {str(path)!r}.") from error
    except _UNREADABLE as error:
        raise ValueError(
            f"{str(path)!r} cannot be read as a memory, it may be cut off or be another kind "
            f"of file ({error}). Compress the text again."
        ) from error
    if metadata.get("sha256") != _checksum(text, tensors):
        raise ValueError(
            f"{str(path)!r} was altered after it was written: its checksum does not match. "
            "Compress the text again."
        )
    return header, tensors


def pack_text(text: str) -> bytes:
    """A text, deflated."""
    return zlib.compress(text.encode(), 9)


def unpack_text(data: bytes, size: int) -> str:
    """The text that `pack_text` took, of `size` bytes: no more is inflated.

    Raises:
        ValueError: damaged bytes, or a text of another size.
    """
    try:
        packer = zlib.decompressobj()
        plain = packer.decompress(data, size + 1)  # one more, to read the end behind the last byte
        if not packer.eof or len(plain) != size:
            raise ValueError(f"no end after {size} bytes")
        return plain.decode()
    except (zlib.error, ValueError) as error:
        raise ValueError(f"a kept text is damaged ({error}); compress the text again.") from error


def check_kept_text(text: str | None, text_sha256: str) -> None:
    """Raise `ValueError` where a kept text is not the one that was compressed."""
    if text is not None and hashlib.sha256(text.encode()).hexdigest() != text_sha256:
        raise ValueError(
            "a kept text is not the one that was compressed: its SHA-256 differs. Compress the "
            "text again."
        )


def _unpacked(
    sizes: Sequence[Any], data: torch.Tensor, hashes: Sequence[str]
) -> tuple[str | None, ...]:
    """Kept texts of a file, each the one that was compressed."""
    if data.dtype != torch.uint8 or data.dim() != 1 or len(sizes) != len(hashes):
        raise ValueError("kept texts are bytes, one run for each hash")
    packed, start, texts = data.numpy().tobytes(), 0, []
    total = sum(size for pair in sizes if pair is not None for size in pair[1:])
    for pair, text_sha256 in zip(sizes, hashes, strict=True):
        text = None
        if pair is not None:
            length, size = pair
            if not (_within(length, len(packed)) and _within(size, total)):
                raise ValueError("a kept text has no size")
            text = unpack_text(packed[start : start + length], size)
            start += length
        check_kept_text(text, text_sha256)
        texts.append(text)
    if start != len(packed):
        raise ValueError(f"{len(packed)} bytes of kept texts, and the texts have {start}")
    return tuple(texts)


def _checksum(header: str, tensors: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256(header.encode())
    for tensor in tensors.values():
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        # A byte view, since numpy has no bfloat16.
        digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _within(value: object, most: int) -> bool:
    return type(value) is int and 0 <= value <= most
