"""Memory: what a compressor made of one or more documents, in hand and on disk.

The slots are kept as the encoder wrote them, before the converter: smaller than after it, and one
memory then serves every decoder whose converter was trained for the same encoder.
"""

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, TypeVar

import torch
from torch.nn import functional

from .memory_files_memslots import (
    Segment,
    SegmentCheck,
    check_kept_text,
    read_memory_file,
    write_memory_file,
)
from .texts_memslots import Literal

NEEDS_TEXT = (
    "compress the text with keep_text=True (memory files of version 3 may hold patches to their "
    "slots instead of the text: memslots 0.1.0 as of November 2026, or the code inside the "
    "checkpoint that wrote one, reads those exactly)"
)

MERGED = ("mean", "last", "min")
"""Values of `MemslotsConfig.pooling` whose coarse slots can be made of finer ones."""

Part = TypeVar("Part")


def slots_for(tokens: int, rate: int) -> int:
    """Slots of a segment of `tokens` encoder tokens: a short last segment gets no full set.

    Rate 0 stands for text in the slots' place.
    """
    return -(-tokens // rate) if rate else 0


# By identity: comparing fields would compare tensors, which have no single truth value.
@dataclass(frozen=True, eq=False)
class Memory:
    """A batch of documents as memory slots; `MemslotsModel.compress` makes one.

    Args:
        slots: `(total_slots, d_encoder)`, all segments of all documents one after another.
        documents: for each document its segments, in reading order.
        text_sha256: SHA-256 of each source text (UTF-8).
        unknown_tokens: of each source text, tokens that the encoder's tokenizer could not
            represent ([UNK]); they are lost.
        rate: encoder tokens per slot; where segments have rates of their own, the finest of them.
        rates: the rates that the compressor was trained for.
        nested: whether the slots of a coarse rate are the first of a finer one (causal encoders).
        fingerprint: identity of the compressor that wrote the slots.
        pooling: how the encoder makes slots (`MemslotsConfig.pooling`).
        literals: of each of `segments`, the exact strings that the decoder reads beside its slots;
            empty where no segment has any.
        checks: of each of `segments`, its own rate, what its slots lose and the text that is read
            in their place; empty where nothing was checked (see `memslots.verified`).
        texts: of each of `text_sha256`, the text itself where it was kept, else None; empty where
            none was.
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
    checks: tuple[SegmentCheck, ...] = ()
    texts: tuple[str | None, ...] = ()

    def __post_init__(self):
        total, count = sum(segment.slots for segment in self.segments), len(self.segments)
        if self.slots.dim() != 2 or self.slots.shape[0] != total:
            raise ValueError(
                f"the segments of this memory need slots of shape ({total}, d_encoder), "
                f"got {tuple(self.slots.shape)}."
            )
        for name, parts, expected in (
            ("literals", self.literals, count),
            ("checks", self.checks, count),
            ("texts", self.texts, len(self.text_sha256)),
        ):
            if parts and len(parts) != expected:
                kind = "hashes" if name == "texts" else "segments"
                raise ValueError(f"{name} go with {kind}: {len(parts)} for {expected} {kind}.")
        for segment, rate in zip(self.segments, self.segment_rates, strict=True):
            if self.checks and segment.slots != slots_for(segment.tokens, rate):
                raise ValueError(
                    f"a segment of {segment.tokens} tokens has {segment.slots} slots; that is not "
                    f"how rate {rate} is written."
                )
        # As read from JSON, literals are bare tuples or lists.
        literals = tuple(tuple(Literal(*literal) for literal in held) for held in self.literals)
        object.__setattr__(self, "literals", literals if any(literals) else ())
        object.__setattr__(
            self, "texts", self.texts if any(text is not None for text in self.texts) else ()
        )

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
        return tuple(sum(map(len, held)) for held in self._by_document(self.literals, ()))

    @property
    def segment_rates(self) -> tuple[int, ...]:
        """Encoder tokens per slot of each of `segments`; 0 where text is read in their place."""
        if self.checks:
            return tuple(check.rate for check in self.checks)
        return (self.rate,) * len(self.segments)

    @property
    def segment_texts(self) -> tuple[str | None, ...]:
        """Of each of `segments`, the text that the decoder reads in the slots' place, or None."""
        return tuple(check.text for check in self.checks) or (None,) * len(self.segments)

    @property
    def nbytes(self) -> int:
        """Bytes that slots and texts take."""
        texts = [*self.texts, *(check.text for check in self.checks)]
        text_bytes = sum(len(text.encode()) for text in texts if text is not None)
        return self.slots.numel() * self.slots.element_size() + text_bytes

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
        rates = sorted(set(self.segment_rates) - {0}) or [self.rate]
        rate = f"rate {rates[0]}" + (f" to {rates[-1]}" if len(rates) > 1 else "")
        as_text = self.segment_rates.count(0)
        rate += f", {as_text} segment{'s' * (as_text != 1)} as text" if as_text else ""
        return (
            f"Memory({len(self)} document{'s' * (len(self) != 1)}, {segments} "
            f"segment{'s' * (segments != 1)}: {sum(self.n_tokens)} tokens in "
            f"{self.slots.shape[0]} slots of {self.slots.shape[1]}{beside} ({rate}), "
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
        parts = self.slots.split(list(self.n_slots))
        texts = sorted({s.text for i in chosen for s in self.documents[i]})
        renumber = {old: new for new, old in enumerate(texts)}
        literals = self._by_document(self.literals, ())
        checks = self._by_document(self.checks, None)
        return replace(
            self,
            slots=torch.cat([self.slots[:0], *(parts[i] for i in chosen)]),
            documents=tuple(
                tuple(replace(s, text=renumber[s.text]) for s in self.documents[i]) for i in chosen
            ),
            literals=tuple(held for i in chosen for held in literals[i]),
            checks=tuple(check for i in chosen for check in checks[i] if check is not None),
            text_sha256=tuple(self.text_sha256[i] for i in texts),
            unknown_tokens=tuple(self.unknown_tokens[i] for i in texts),
            texts=tuple(self.texts[i] for i in texts) if self.texts else (),
        )

    @staticmethod
    def cat(memories: "list[Memory] | tuple[Memory, ...]") -> "Memory":
        """One memory with the documents of all `memories`, in order.

        Raises:
            ValueError: nothing to join, or memories of different compressors or rates.

        Examples:
            >>> both = Memory.cat([model.compress("Ann is here."), model.compress("Bo is not.")])
            >>> len(both)
            2
        """
        memories = list(memories)
        if not memories:
            raise ValueError("Memory.cat needs at least one memory, got an empty list.")
        first = memories[0]
        mixed = any(memory.checks for memory in memories)  # then each segment has its own rate
        fields = ("fingerprint", "rates", "nested", "pooling", *([] if mixed else ["rate"]))
        for other in memories[1:]:
            for field in fields:
                if getattr(other, field) != getattr(first, field):
                    raise ValueError(
                        f"Memory.cat joins memories of one compressor at one rate; their {field} "
                        f"is {getattr(first, field)!r} and {getattr(other, field)!r}. "
                        "Compress the texts again with one model, or use at_rate()."
                    )
        shifts = accumulate((len(memory.text_sha256) for memory in memories), initial=0)
        return replace(
            first,
            slots=torch.cat([m.slots.to(first.slots) for m in memories]),
            documents=tuple(
                tuple(replace(segment, text=segment.text + shift) for segment in document)
                for memory, shift in zip(memories, shifts, strict=False)
                for document in memory.documents
            ),
            text_sha256=tuple(h for m in memories for h in m.text_sha256),
            unknown_tokens=tuple(u for m in memories for u in m.unknown_tokens),
            literals=tuple(
                held for m in memories for held in (m.literals or ((),) * len(m.segments))
            ),
            rate=min(m.rate for m in memories),
            checks=tuple(check for m in memories for check in m.all_checks()) if mixed else (),
            texts=tuple(
                text for m in memories for text in (m.texts or (None,) * len(m.text_sha256))
            ),
        )

    def join(self) -> "Memory":
        """All documents as one context, in order: what a question over several documents reads.

        Examples:
            >>> len(model.compress(["Ann is here.", "Bo is not."]).join())
            1
        """
        return replace(self, documents=(self.segments,))

    def at_rate(self, rate: int) -> "Memory":
        """The same documents at a coarser rate, without encoding again.

        Literals, kept texts and segments read as text stay; what the new slots lose is not known,
        which a warning says where it was.

        Raises:
            ValueError: an untrained or finer rate, or slots that are no part of the coarse rate's.

        Examples:
            >>> model.compress("Ann owns 27 maps of Lagos.", rate=2).at_rate(8).rate
            8
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
        checked = sum(0 < check.rate < rate and check.lost is not None for check in self.checks)
        if checked:
            warnings.warn(
                f"at rate {rate} {checked} of {len(self.segments)} segments have other slots than "
                "those that were checked: what these lose is not known. Literals, kept texts and "
                "segments read as text stay. To have it checked, call verified.compress with "
                f"rate={rate} or rates=[{rate}]",
                stacklevel=2,
            )
        segments, checks, slots = list[Segment](), list[SegmentCheck](), [self.slots[:0]]
        parts = self.slots.split([segment.slots for segment in self.segments])
        for segment, check, part in zip(self.segments, self.all_checks(), parts, strict=True):
            if 0 < check.rate < rate:  # else it is text, or as coarse already
                count = slots_for(segment.tokens, rate)
                if self.pooling in MERGED:
                    part = _merged(part, segment.tokens, check.rate, rate, self.pooling)
                part = part[:count]
                check = check.with_other_slots(rate, segment.slots - count)
                segment = replace(segment, slots=count)
            slots.append(part)
            segments.append(segment)
            checks.append(check)
        return replace(
            self,
            slots=torch.cat(slots),
            documents=tuple(self._by_document(segments, None)),
            rate=rate,
            checks=tuple(checks) if self.checks else (),
        )

    def coarsens_to(self, rate: int) -> bool:
        """Whether `at_rate(rate)` needs no second encoding.

        Examples:
            >>> model.compress("Ann is here.", rate=4).coarsens_to(8)
            True
        """
        if self.pooling in MERGED:
            finer = [segment_rate for segment_rate in self.segment_rates if 0 < segment_rate < rate]
            return rate >= self.rate and all(rate % segment_rate == 0 for segment_rate in finer)
        return rate == self.rate or (self.nested and rate > self.rate)

    def to(self, *args, **kwargs) -> "Memory":
        """The same memory on another device or in another floating dtype, as `torch.Tensor.to`.

        Examples:
            >>> model.compress("Ann is here.").to(torch.bfloat16).dtype
            torch.bfloat16
        """
        return replace(self, slots=self.slots.to(*args, **kwargs))

    def as_text(self, texts: Mapping[int, str]) -> "Memory":
        """The same memory, of which the decoder reads some segments as text, by their index.

        Examples:
            >>> model.compress("Ann is here.").as_text({0: "Ann is here."}).segment_rates
            (0,)
        """
        checks, literals = list(self.all_checks()), list(self.literals)
        for i, text in texts.items():
            tokens = checks[i].tokens
            checks[i] = SegmentCheck(0, tokens, tokens, checks[i].lost, text)
            if literals:  # what a cut divides is not whole in the text
                end = self.segments[i].end
                literals[i] = tuple(literal for literal in literals[i] if literal.end > end)
        parts = self.slots.split([segment.slots for segment in self.segments])
        segments = [replace(s, slots=0) if i in texts else s for i, s in enumerate(self.segments)]
        return replace(
            self,
            slots=torch.cat(
                [self.slots[:0], *(part for i, part in enumerate(parts) if i not in texts)]
            ),
            documents=tuple(self._by_document(segments, None)),
            checks=tuple(checks),
            literals=tuple(literals),
        )

    def all_checks(self) -> tuple[SegmentCheck, ...]:
        """A check of each segment, with nothing but its rate where none was made.

        Examples:
            >>> model.compress("Ann is here.", rate=4).all_checks()[0].rate
            4
        """
        return self.checks or tuple(SegmentCheck(rate) for rate in self.segment_rates)

    def _by_document(self, values: Sequence[Part], default: Any) -> list[tuple[Part, ...]]:
        """What goes with segments, document by document; `default` where there is nothing."""
        rest = iter(values or (default,) * len(self.segments))
        return [tuple(next(rest) for _ in document) for document in self.documents]

    # -- texts -------------------------------------------------------------------------------------

    def kept_texts(self, chosen: Sequence[int]) -> list[str | None]:
        """The exact texts of the chosen segments, kept or read as text, else None.

        Raises:
            ValueError: a kept text is not the one that was compressed.

        Examples:
            >>> model.compress("Ann is here.", keep_text=True).kept_texts([0])
            ['Ann is here.']
        """
        segments, found = self.segments, list(self.segment_texts)
        unread = [i for i in chosen if found[i] is None] if self.texts else []
        for number in {segments[i].text for i in unread}:
            check_kept_text(self.texts[number], self.text_sha256[number])
        for i in unread:
            whole = self.texts[segments[i].text]
            found[i] = None if whole is None else whole[segments[i].start : segments[i].end]
        return [found[i] for i in chosen]

    def expand(self, i: int) -> str:
        """The exact text of segment `i`, kept (`keep_text=True`) or read as text.

        Raises:
            ValueError: it is not at hand, or the kept text has another SHA-256.
            IndexError: there is no such segment.

        Examples:
            >>> model.compress("Ann is here.", keep_text=True).expand(0)
            'Ann is here.'
        """
        if not -len(self.segments) <= i < len(self.segments):
            raise IndexError(f"memory has {len(self.segments)} segments, there is no index {i}.")
        (text,) = self.kept_texts([i])
        if text is None:
            raise ValueError(
                f"the text of segment {i} was not kept: memslots.verified.expand(model, memory, "
                f"{i}) reads it from its slots. To have it at hand, {NEEDS_TEXT}."
            )
        return text

    # -- disk ------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike) -> None:
        """Write the memory to one safetensors file; a file that is there is replaced whole.

        Raises:
            ValueError: `path` is a folder, or its folder does not exist.
            OSError: it cannot be written, as on a full disk; a file that is there stays.

        Examples:
            >>> model.compress("Ann is here.").save(folder / "ann.safetensors")
        """
        write_memory_file(path, self)

    @classmethod
    def load(cls, path: str | os.PathLike, device: str | torch.device = "cpu") -> "Memory":
        """Read a memory that `save` wrote; no compressor is needed.

        Raises:
            FileNotFoundError: no such file.
            ValueError: no memory, a newer format, or a file that was cut off or altered.

        Examples:
            >>> len(Memory.load(folder / "ann.safetensors"))
            1
        """
        try:
            fields = read_memory_file(path)
            return cls(**{**fields, "slots": fields["slots"].to(device)})
        except (TypeError, LookupError, AttributeError, ArithmeticError) as error:
            raise ValueError(
                f"{str(path)!r} has a header that is no memory's ({error}); compress it again."
            ) from error


def _merged(
    slots: torch.Tensor, tokens: int, rate: int, coarser: int, pooling: str
) -> torch.Tensor:
    """The slots of a segment of so many tokens at a multiple of their rate, by `MERGED` pooling."""
    times, count = coarser // rate, slots_for(tokens, coarser)
    if pooling == "last":
        return slots[[min((i + 1) * times, len(slots)) - 1 for i in range(count)]]
    missing = (0, 0, 0, count * times - len(slots))
    if pooling == "min":
        padded = functional.pad(slots, missing, value=float("inf"))
        return padded.view(count, times, -1).amin(dim=1)
    # Each counts as many times as the tokens it stands for.
    tokens_of = (tokens - torch.arange(len(slots), device=slots.device) * rate).clamp(max=rate)
    weights = functional.pad(tokens_of.float().unsqueeze(1), missing).view(count, times, 1)
    padded = functional.pad(slots.float(), missing).view(count, times, -1)
    return ((padded * weights).sum(dim=1) / weights.sum(dim=1)).to(slots.dtype)


def _readable(n_bytes: int) -> str:
    """Bytes in the largest unit of which there is one."""
    size = float(n_bytes)
    units = ["B", "kB", "MB", "GB"]
    while size >= 1000 and len(units) > 1:
        size /= 1000
        units.pop(0)
    return f"{size:.4g} {units[0]}"
