"""Memory files: segments, the format, and what is refused of a file that a stranger sent.

A file is one safetensors file with a JSON header in its metadata and a checksum over all. A
checksum does not help against who made the file: numbers that no compressor writes are refused
before anything is made of them, and what is packed is opened no further than it says it is long.
"""

import hashlib
import json
import os
import re
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

FORMAT = "memslots.memory"

FORMAT_VERSION = 4
"""Version 1 has no literals, version 2 no checks of segments, version 3 no texts (but
patches, which are not read any more); a memory is written as the oldest version that holds it."""

MOST_HEADER = 8 * 2**20
"""Bytes of a sent file's JSON: numbers of segments, literals, and text that is read as text."""

MORE_TOKENS = 64
"""A segment may be so much longer than `segment_length`, where one character is many tokens."""

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
"""Of slots that are sent."""

_HASH = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class Segment:
    """One independently compressed span of a text.

    Args:
        text: index of the text in `Memory.text_sha256`.
        start: first character of the span.
        end: one past its last character.
        tokens: encoder tokens in the span.
        slots: memory slots that stand for them; none where the decoder reads the text itself.
    """

    text: int
    start: int
    end: int
    tokens: int
    slots: int


@dataclass(frozen=True)
class SegmentCheck:
    """What is known of a segment that was checked while it was made (`memslots.verified`).

    Args:
        rate: encoder tokens per slot of this segment; 0 where the decoder reads `text` instead.
        tokens: decoder tokens of the segment's text; None where it was not read.
        positions: decoder positions that the segment takes: slots, the tokens of its literals and
            its own markers, or the tokens of `text`; None where it was not read.
        lost: characters `(start, end)` of the source, of each decoder token that neither the slots
            (teacher-forced) nor a literal beside them give back, in order; None where this is not
            known. Of a segment that is read as text: what the slots would have lost.
        text: the segment's text, where the decoder reads it in the slots' place.
    """

    rate: int
    tokens: int | None = None
    positions: int | None = None
    lost: tuple[tuple[int, int], ...] | None = None
    text: str | None = None

    @property
    def fidelity(self) -> float | None:
        """Share of the decoder tokens that the decoder gets; None where this is not known."""
        if self.text is not None or self.tokens == 0:
            return 1.0
        if self.lost is None or self.tokens is None:
            return None
        return 1 - len(self.lost) / self.tokens

    def with_other_slots(self, rate: int, fewer: int) -> "SegmentCheck":
        """As it is after the slots became others, `fewer` less: what was known is no more."""
        positions = None if self.positions is None else self.positions - fewer
        return replace(self, rate=rate, positions=positions, lost=None)

    def to_json(self) -> list[Any]:
        """As JSON holds it."""
        lost = None if self.lost is None else [list(place) for place in self.lost]
        # Version 3 has a number of bytes at the end, and its readers expect it.
        return [self.rate, self.tokens, self.positions, lost, self.text, 0]

    @classmethod
    def from_json(cls, value: list[Any]) -> "SegmentCheck":
        """What `to_json` gave; what older versions wrote behind it is left out."""
        if len(value) < 5:
            raise ValueError(f"a check of {len(value)} parts is no memory's.")
        rate, tokens, positions, lost, text, *_ = value
        places = None if lost is None else tuple((int(a), int(b)) for a, b in lost)
        return cls(rate, tokens, positions, places, text)


def write_memory_file(path: str | os.PathLike, memory) -> None:
    """Write a `Memory`, see `Memory.save`."""
    version = 4 if memory.texts else 3 if memory.checks else 2 if memory.literals else 1
    header: dict[str, Any] = {
        "version": version,
        "rate": memory.rate,
        "rates": list(memory.rates),
        "nested": memory.nested,
        "pooling": memory.pooling,
        "fingerprint": memory.fingerprint,
        "text_sha256": list(memory.text_sha256),
        "unknown_tokens": list(memory.unknown_tokens),
        "documents": [len(document) for document in memory.documents],
        "segments": [[s.text, s.start, s.end, s.tokens, s.slots] for s in memory.segments],
    }
    tensors = {"slots": memory.slots.detach().to("cpu").contiguous()}
    if memory.literals:
        header["literals"] = memory.literals
    if memory.checks:
        header["checks"] = [check.to_json() for check in memory.checks]
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
    """Write a file; one that is there is replaced whole.

    Args:
        path: the file.
        header: what JSON can hold, with `version`.
        tensors: `slots`, and what else there is; on the CPU and contiguous.

    Raises:
        ValueError: `path` is a folder, or its folder does not exist.
    """
    path = Path(path)
    if path.is_dir() or not path.parent.is_dir():
        raise ValueError(
            f"cannot save a memory to {str(path)!r}: give a file name in an existing folder."
        )
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


def read_memory_file(path: str | os.PathLike, most_characters: int | None = None) -> dict[str, Any]:
    """The fields of a `Memory`, slots on the CPU, see `Memory.load`."""
    header, tensors = read_file(path)
    segments = [Segment(*numbers) for numbers in header["segments"]]
    ends = [0, *accumulate(header["documents"])]
    if ends[-1] != len(segments) or sorted(ends) != ends:
        raise ValueError(f"{str(path)!r} has {len(segments)} segments, its documents {ends[-1]}.")
    for name, kind in (("rate", int), ("rates", list), ("fingerprint", str)):
        if not isinstance(header[name], kind):
            raise ValueError(f"{str(path)!r} has {name} {_short(header[name])}: no memory's.")
    hashes = tuple(header["text_sha256"])
    return {
        "slots": tensors["slots"],
        "documents": tuple(tuple(segments[start:end]) for start, end in pairwise(ends)),
        "text_sha256": hashes,
        "unknown_tokens": tuple(header["unknown_tokens"]),
        "rate": header["rate"],
        "rates": tuple(header["rates"]),
        "nested": header["nested"],
        "fingerprint": header["fingerprint"],
        "pooling": header.get("pooling", "memory_tokens"),
        "literals": tuple(header.get("literals", ())),
        "checks": tuple(map(SegmentCheck.from_json, header.get("checks", ()))),
        "texts": _unpacked(header["texts"], tensors["texts"], hashes, most_characters)
        if "texts" in tensors
        else (),
    }


def read_file(path: str | os.PathLike) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Header and tensors of a file, checked.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no memory, a newer format, or a file that was cut off or altered.
    """
    path = Path(path)
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
    except (
        SafetensorError,
        json.JSONDecodeError,
        RecursionError,
        KeyError,
        TypeError,
        OSError,
    ) as error:
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
    """The text that `pack_text` took.

    Args:
        data: what it gave.
        size: bytes of the text; no more is inflated.

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
    """Refuse a kept text that is not the one that was compressed.

    Raises:
        ValueError: it has another SHA-256.
    """
    if text is not None and hashlib.sha256(text.encode()).hexdigest() != text_sha256:
        raise ValueError(
            "a kept text is not the one that was compressed: its SHA-256 differs. Compress the "
            "text again."
        )


def _unpacked(
    sizes: Sequence[Any], data: torch.Tensor, hashes: Sequence[str], most_characters: int | None
) -> tuple[str | None, ...]:
    """Kept texts of a file, each the one that was compressed."""
    if data.dtype != torch.uint8 or data.dim() != 1 or len(sizes) != len(hashes):
        raise ValueError("kept texts are bytes, one run for each hash; compress the text again.")
    packed, start, texts = data.numpy().tobytes(), 0, []
    total = sum(size for pair in sizes if pair is not None for size in pair[1:])
    if most_characters is not None and total > 4 * most_characters:  # of UTF-8, at most
        raise ValueError(f"memory keeps {total} bytes of text, for {most_characters} characters.")
    for pair, text_sha256 in zip(sizes, hashes, strict=True):
        text = None
        if pair is not None:
            length, size = pair
            if not (_within(length, len(packed)) and _within(size, total)):
                raise ValueError("memory has a kept text of no size; compress the text again.")
            text = unpack_text(packed[start : start + length], size)
            start += length
        check_kept_text(text, text_sha256)
        texts.append(text)
    if start != len(packed):
        raise ValueError(f"{len(packed)} bytes of kept texts, and the texts have {start}.")
    return tuple(texts)


def _checksum(header: str, tensors: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256(header.encode())
    for tensor in tensors.values():
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        # A byte view, since numpy has no bfloat16.
        digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


# -- of a stranger -------------------------------------------------------------------------------


def check_sent(model, memory, most_characters: int) -> None:
    """Refuse numbers and texts that no compressor of this kind writes.

    Args:
        model: a `MemslotsModel`.
        memory: somebody's.
        most_characters: of all texts together; of all literals too.

    Raises:
        ValueError: what is wrong.
    """
    check_slots(model, memory)
    empty = model.memory_of([], [], memory.slots[:0], 1)
    for name in ("rates", "nested", "pooling"):
        value, expected = getattr(memory, name), getattr(empty, name)
        if type(value) is not type(expected) or value != expected:
            raise ValueError(f"memory has {name} {_short(value)}, and its compressor {expected!r}.")
    if type(memory.rate) is not int or memory.rate not in empty.rates:
        raise ValueError(f"memory has rate {_short(memory.rate)}; allowed are {empty.rates}.")
    hashes, unknown = memory.text_sha256, memory.unknown_tokens
    if not all(isinstance(text_hash, str) and _HASH.fullmatch(text_hash) for text_hash in hashes):
        raise ValueError("memory has a text_sha256 that is none.")
    if len(unknown) != len(hashes) or not all(_within(count, 2**31) for count in unknown):
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


def check_order(memory) -> None:
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


def check_slots(model, memory) -> None:
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
    model, segment: Segment, check: SegmentCheck, texts: int, most_characters: int
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
        and segment.slots == (-(-segment.tokens // check.rate) if check.rate else 0)
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
    if not all(count is None or _within(count, 2**31) for count in counted) or (
        lost and len(lost) > (check.tokens or 0)
    ):
        raise ValueError("memory has a segment whose tokens are not counted right.")
    if not all(
        type(a) is int and _within(b, segment.end) and segment.start <= a <= b for a, b in lost
    ):
        raise ValueError("memory has a lost token outside its segment.")


def check_header(path: str | os.PathLike) -> None:
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
    return type(value) is int and 0 <= value <= most


def _is_text(value: object, length: int) -> bool:
    if not isinstance(value, str) or not value or len(value) != length:
        return False
    return not any("\ud800" <= character <= "\udfff" for character in value)


def _short(value: object) -> str:
    return repr(value)[:80]
