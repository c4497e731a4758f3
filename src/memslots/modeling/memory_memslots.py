"""Memory: what a compressor made of one or more documents, in hand and on disk.

The slots are kept as the encoder wrote them, before the converter: smaller than after it, and one
memory then serves every decoder whose converter was trained for the same encoder.
"""

import hashlib
import json
import os
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .literals_memslots import Literal
from .pooling_memslots import MERGED, merge_slots

FORMAT = "memslots.memory"
FORMAT_VERSION = 2
"""Version 1 has no literals. A memory without any is written as version 1, which all can read."""


@dataclass(frozen=True)
class Segment:
    """One independently compressed span of a text.

    Args:
        text: index of the text in `Memory.text_sha256`.
        start: first character of the span.
        end: one past its last character.
        tokens: encoder tokens in the span.
        slots: memory slots that stand for them.
    """

    text: int
    start: int
    end: int
    tokens: int
    slots: int


def slots_for(tokens: int, rate: int) -> int:
    """Slots of a segment of `tokens` encoder tokens: a short last segment gets no full set."""
    return -(-tokens // rate)


# By identity: comparing fields would compare tensors, which have no single truth value.
@dataclass(frozen=True, eq=False)
class Memory:
    """A batch of documents as memory slots.

    Args:
        slots: `(total_slots, d_encoder)`, all segments of all documents one after another.
        documents: for each document its segments, in reading order.
        text_sha256: SHA-256 of each source text (UTF-8).
        unknown_tokens: for each source text, how many of its tokens the encoder's tokenizer could
            not represent ([UNK]); they are lost.
        rate: encoder tokens per slot.
        rates: the rates that the compressor was trained for.
        nested: whether the slots of a coarse rate are the first slots of a finer one (causal
            encoders).
        fingerprint: identity of the compressor that wrote the slots.
        pooling: how the encoder makes slots (`MemslotsConfig.pooling`). Of "mean", "last" and "min"
            slots, those of a coarse rate are made of a finer one's.
        literals: of each of `segments`, in order, the exact strings that the decoder reads beside
            its slots, as `(start, end, text)` of its text; empty where no segment has any.
    """

    slots: torch.Tensor
    documents: tuple[tuple[Segment, ...], ...]
    text_sha256: tuple[str, ...]
    unknown_tokens: tuple[int, ...]
    rate: int
    rates: tuple[int, ...]
    nested: bool
    fingerprint: str
    pooling: str = "memory_tokens"
    literals: tuple[tuple[Literal, ...], ...] = ()

    def __post_init__(self):
        total = sum(segment.slots for segment in self.segments)
        if self.slots.dim() != 2 or self.slots.shape[0] != total:
            raise ValueError(
                f"the segments of this memory need slots of shape ({total}, d_encoder), "
                f"got {tuple(self.slots.shape)}."
            )
        given, wanted = len(self.literals), len(self.segments)
        if self.literals and given != wanted:
            raise ValueError(
                f"literals go with segments, one tuple each: {given} for {wanted} segments."
            )
        if not any(self.literals):
            found: tuple[tuple[Literal, ...], ...] = ()
        else:  # as read from JSON, they are bare tuples or lists
            found = tuple(tuple(Literal(*one) for one in own) for own in self.literals)
        object.__setattr__(self, "literals", found)

    # -- shape ---------------------------------------------------------------------------------

    @property
    def segments(self) -> tuple[Segment, ...]:
        """All segments of all documents, in the order of their slots."""
        return tuple(segment for document in self.documents for segment in document)

    @property
    def n_slots(self) -> tuple[int, ...]:
        """Slots of each document."""
        return tuple(sum(s.slots for s in document) for document in self.documents)

    @property
    def n_tokens(self) -> tuple[int, ...]:
        """Encoder tokens of each document's text."""
        return tuple(sum(s.tokens for s in document) for document in self.documents)

    @property
    def n_literals(self) -> tuple[int, ...]:
        """Literals of each document."""
        counts = iter([len(own) for own in self.literals] or [0] * len(self.segments))
        return tuple(sum(next(counts) for _ in document) for document in self.documents)

    @property
    def nbytes(self) -> int:
        """Bytes that the slots take."""
        return self.slots.numel() * self.slots.element_size()

    @property
    def device(self) -> torch.device:
        """Where the slots are."""
        return self.slots.device

    @property
    def dtype(self) -> torch.dtype:
        """Floating type of the slots."""
        return self.slots.dtype

    def __len__(self) -> int:
        return len(self.documents)

    def __repr__(self) -> str:
        segments, literals = len(self.segments), sum(self.n_literals)
        beside = f" and {literals} literal{'s' * (literals != 1)}" if literals else ""
        return (
            f"Memory({len(self)} document{'s' * (len(self) != 1)}, {segments} "
            f"segment{'s' * (segments != 1)}: {sum(self.n_tokens)} tokens in "
            f"{self.slots.shape[0]} slots of {self.slots.shape[1]}{beside} (rate {self.rate}), "
            f"{_readable(self.nbytes)}, {str(self.dtype).removeprefix('torch.')} on {self.device}, "
            f"compressor {self.fingerprint[:12]})"
        )

    # -- selecting and combining -----------------------------------------------------------------

    def __getitem__(self, index: int | slice) -> "Memory":
        """The documents at `index`, as a memory of their own."""
        if isinstance(index, slice):
            chosen = list(range(len(self))[index])
        elif isinstance(index, int):
            if not -len(self) <= index < len(self):
                raise IndexError(f"memory has {len(self)} documents, there is no index {index}.")
            chosen = [index % len(self)]
        else:
            raise TypeError(f"index a memory with an int or a slice, not {type(index).__name__}.")
        offsets = self._document_offsets()
        kept = [torch.arange(offsets[i], offsets[i + 1]) for i in chosen]
        rows = torch.cat(kept) if kept else torch.arange(0)
        texts = sorted({s.text for i in chosen for s in self.documents[i]})
        renumber = {old: new for new, old in enumerate(texts)}
        literals = self._literals_by_document()
        return replace(
            self,
            literals=tuple(own for i in chosen for own in literals[i]),
            slots=self.slots[rows.to(self.slots.device)],
            documents=tuple(
                tuple(replace(s, text=renumber[s.text]) for s in self.documents[i]) for i in chosen
            ),
            text_sha256=tuple(self.text_sha256[i] for i in texts),
            unknown_tokens=tuple(self.unknown_tokens[i] for i in texts),
        )

    @staticmethod
    def cat(memories: "list[Memory] | tuple[Memory, ...]") -> "Memory":
        """One memory with the documents of all `memories`, in order.

        Raises:
            ValueError: nothing to join, or memories of different compressors or rates.
        """
        memories = list(memories)
        if not memories:
            raise ValueError("Memory.cat needs at least one memory, got an empty list.")
        first = memories[0]
        for other in memories[1:]:
            for field in ("fingerprint", "rate", "rates", "nested", "pooling"):
                if getattr(other, field) != getattr(first, field):
                    raise ValueError(
                        f"Memory.cat joins memories of one compressor at one rate; their {field} "
                        f"is {getattr(first, field)!r} and {getattr(other, field)!r}. "
                        "Compress the texts again with one model, or use at_rate()."
                    )
        documents, shift = [], 0
        for memory in memories:
            documents += [
                tuple(replace(s, text=s.text + shift) for s in document)
                for document in memory.documents
            ]
            shift += len(memory.text_sha256)
        return replace(
            first,
            slots=torch.cat([m.slots.to(first.slots) for m in memories]),
            documents=tuple(documents),
            text_sha256=tuple(h for m in memories for h in m.text_sha256),
            unknown_tokens=tuple(u for m in memories for u in m.unknown_tokens),
            literals=tuple(
                own for m in memories for own in (m.literals or ((),) * len(m.segments))
            ),
        )

    def join(self) -> "Memory":
        """All documents as one context, in order: what a question over several documents reads."""
        return replace(self, documents=(self.segments,))

    def without_oldest(self) -> "Memory":
        """A single document without its first segment.

        Raises:
            ValueError: several documents, or a single segment.
        """
        if len(self) != 1 or len(self.segments) < 2:
            raise ValueError(
                "without_oldest takes one document of two segments or more, got "
                f"{len(self)} of {len(self.segments)} in all; use join() first."
            )
        return replace(
            self,
            slots=self.slots[self.segments[0].slots :],
            documents=(self.segments[1:],),
            literals=self.literals[1:],
        )[0]

    def at_rate(self, rate: int) -> "Memory":
        """The same documents at a coarser rate, without encoding again.

        Raises:
            ValueError: a rate that the compressor was not trained for, a finer rate than this
                memory's, or slots that are no part of the coarse rate's (compress again instead).
        """
        if rate not in self.rates:
            raise ValueError(
                f"rate {rate!r} is not one that the compressor was trained for: {list(self.rates)}."
            )
        if rate < self.rate:
            raise ValueError(
                f"this memory has rate {self.rate}; the finer rate {rate} needs slots that it does "
                "not hold. Compress the text again with that rate."
            )
        if rate == self.rate:
            return self
        if not self.coarsens_to(rate):
            raise ValueError(
                f"the slots of rate {rate} cannot be made of those of rate {self.rate} "
                + (
                    "(only those of its multiples can)"
                    if self.pooling in MERGED
                    else "(attention's weights are not kept)"
                    if self.pooling == "attention"
                    else "(the encoder is not causal)"
                )
                + f"; compress the text again with rate={rate}."
            )
        kept, start = [], 0
        documents = []
        for document in self.documents:
            coarse = []
            for segment in document:
                own = self.slots[start : start + segment.slots]
                slots = slots_for(segment.tokens, rate)
                if self.pooling in MERGED:
                    kept.append(merge_slots(own, segment.tokens, self.rate, rate, self.pooling))
                else:
                    kept.append(own[:slots])
                start += segment.slots
                coarse.append(replace(segment, slots=slots))
            documents.append(tuple(coarse))
        slots_kept = torch.cat(kept) if kept else self.slots[:0]
        return replace(self, slots=slots_kept, documents=tuple(documents), rate=rate)

    def coarsens_to(self, rate: int) -> bool:
        """Whether `at_rate(rate)` needs no second encoding."""
        if self.pooling in MERGED:
            return rate >= self.rate and rate % self.rate == 0
        return rate == self.rate or (self.nested and rate > self.rate)

    def to(self, *args, **kwargs) -> "Memory":
        """The same memory on another device or in another floating dtype, as `torch.Tensor.to`."""
        return replace(self, slots=self.slots.to(*args, **kwargs))

    def prefill(self, model, **kwargs):
        """The decoder's reading of this memory, for many questions: `MemslotsModel.prefill`."""
        return model.prefill(self, **kwargs)

    def _literals_by_document(self) -> list[tuple[tuple[Literal, ...], ...]]:
        kept, start = [], 0
        for document in self.documents:
            own = self.literals[start : start + len(document)]
            kept.append(own or ((),) * len(document))
            start += len(document)
        return kept

    def _document_offsets(self) -> list[int]:
        offsets = [0]
        for slots in self.n_slots:
            offsets.append(offsets[-1] + slots)
        return offsets

    # -- disk ------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike) -> None:
        """Write the memory to one safetensors file; a file that is there is replaced whole.

        Raises:
            ValueError: `path` is a folder, or its folder does not exist.
        """
        path = Path(path)
        if path.is_dir() or not path.parent.is_dir():
            raise ValueError(
                f"cannot save a memory to {str(path)!r}: give a file name in an existing folder."
            )
        header: dict[str, Any] = {
            "format": FORMAT,
            "version": 2 if self.literals else 1,
            "rate": self.rate,
            "rates": list(self.rates),
            "nested": self.nested,
            "pooling": self.pooling,
            "fingerprint": self.fingerprint,
            "text_sha256": list(self.text_sha256),
            "unknown_tokens": list(self.unknown_tokens),
            "documents": [len(document) for document in self.documents],
            "segments": [[s.text, s.start, s.end, s.tokens, s.slots] for s in self.segments],
        }
        if self.literals:
            header["literals"] = self.literals
        slots = self.slots.detach().to("cpu").contiguous()
        text = json.dumps(header, sort_keys=True)
        metadata = {"memslots": text, "sha256": _checksum(text, slots)}
        handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        try:
            save_file({"slots": slots}, partial, metadata=metadata)
            os.replace(partial, path)
        except BaseException:
            os.unlink(partial)
            raise

    @classmethod
    def load(cls, path: str | os.PathLike, device: str | torch.device = "cpu") -> "Memory":
        """Read a memory that `save` wrote.

        The compressor is not needed; it checks the fingerprint when the memory is used.

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
                slots = file.get_tensor("slots")
        except (SafetensorError, json.JSONDecodeError, KeyError, TypeError, OSError) as error:
            raise ValueError(
                f"{str(path)!r} cannot be read as a memory, it may be cut off or be another kind "
                f"of file ({error}). Compress the text again."
            ) from error
        if metadata.get("sha256") != _checksum(text, slots):
            raise ValueError(
                f"{str(path)!r} was altered after it was written: its checksum does not match. "
                "Compress the text again."
            )
        segments = [Segment(*numbers) for numbers in header["segments"]]
        documents, start = [], 0
        for count in header["documents"]:
            documents.append(tuple(segments[start : start + count]))
            start += count
        return cls(
            slots=slots.to(device),
            documents=tuple(documents),
            text_sha256=tuple(header["text_sha256"]),
            unknown_tokens=tuple(header["unknown_tokens"]),
            rate=header["rate"],
            rates=tuple(header["rates"]),
            nested=header["nested"],
            fingerprint=header["fingerprint"],
            pooling=header.get("pooling", "memory_tokens"),
            literals=tuple(header.get("literals", ())),
        )


def _checksum(header: str, slots: torch.Tensor) -> str:
    digest = hashlib.sha256(header.encode())
    digest.update(f"{slots.dtype} {tuple(slots.shape)}".encode())
    # A byte view, since numpy has no bfloat16.
    digest.update(slots.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _readable(n_bytes: int) -> str:
    size = float(n_bytes)
    units = ["B", "kB", "MB", "GB"]
    while size >= 1000 and len(units) > 1:
        size /= 1000
        units.pop(0)
    return f"{size:.4g} {units[0]}"
