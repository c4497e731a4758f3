"""Memory: what a compressor made of one or more documents, in hand and on disk.

The slots are kept as the encoder wrote them, before the converter: smaller than after it, and one
memory then serves every decoder whose converter was trained for the same encoder.
"""

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch

from .encoders_memslots import merged
from .memory_files_memslots import (
    Segment,
    SegmentCheck,
    check_kept_text,
    memory_fields,
    read_file,
    write_memory_file,
)
from .texts_memslots import Literal, check_text


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
        documents: the segments of each document, in reading order.
        text_sha256: SHA-256 of each source text (UTF-8).
        unknown_tokens: for each source text, tokens that the encoder's tokenizer could not
            represent ([UNK]); they are lost.
        rate: encoder tokens per slot; where segments have rates of their own, the finest of them.
        rates: the rates that the compressor was trained for.
        nested: whether the slots of a coarse rate are the first of a finer one (causal encoders).
        fingerprint: identity of the compressor that wrote the slots.
        pooling: how the encoder makes slots (`MemslotsConfig.pooling`).
        texts: for each of `text_sha256`, the text itself if it was kept, else None; empty if
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
    texts: tuple[str | None, ...] = ()

    def __post_init__(self):
        total = sum(segment.slots for segment in self.segments)
        if self.slots.shape[:-1] != (total,) or not self.slots.is_floating_point():
            raise ValueError(
                f"the segments of this memory need slots of shape ({total}, d_encoder), "
                f"floating-point, got {self.slots.dtype} of shape {tuple(self.slots.shape)}."
            )
        if self.texts and len(self.texts) != len(self.text_sha256):
            raise ValueError(f"{len(self.texts)} texts for {len(self.text_sha256)} hashes.")
        for segment in self.segments:
            expected = slots_for(segment.tokens, segment.rate)
            if segment.check is not None and segment.slots != expected:
                raise ValueError(
                    f"a segment of {segment.tokens} tokens has {segment.slots} slots; that is not "
                    f"how rate {segment.rate} is written."
                )
        if all(text is None for text in self.texts):
            object.__setattr__(self, "texts", ())

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
        return tuple(sum(len(s.literals) for s in document) for document in self.documents)

    @property
    def literals(self) -> tuple[tuple[Literal, ...], ...]:
        """Of each of `segments`, what is read beside its slots; empty if none has any."""
        literals = tuple(segment.literals for segment in self.segments)
        return literals if any(literals) else ()

    @property
    def checks(self) -> tuple[SegmentCheck, ...]:
        """Of each of `segments`, what is known of its slots; empty if none was checked."""
        checks = [segment.check for segment in self.segments]
        return tuple(check or SegmentCheck() for check in checks) if any(checks) else ()

    @property
    def segment_rates(self) -> tuple[int, ...]:
        """Encoder tokens per slot of each of `segments`; 0 if text is read in their place."""
        return tuple(segment.rate for segment in self.segments)

    @property
    def segment_texts(self) -> tuple[str | None, ...]:
        """Of each of `segments`, the text that the decoder reads in the slots' place, or None."""
        return tuple(None if s.check is None else s.check.text for s in self.segments)

    @property
    def nbytes(self) -> int:
        """Bytes that slots and texts take."""
        texts = [*self.texts, *self.segment_texts]
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
            f"{self.nbytes:,} bytes, {str(self.dtype).removeprefix('torch.')} on {self.device}, "
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
        return replace(
            self,
            slots=torch.cat([self.slots[:0], *(parts[i] for i in chosen)]),
            documents=tuple(
                tuple(replace(s, text=renumber[s.text]) for s in self.documents[i]) for i in chosen
            ),
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
        if wrong := [type(m).__name__ for m in memories if not hasattr(m, "documents")]:
            raise TypeError(f"Memory.cat joins memories from compress or load, got {wrong[0]}.")
        first = memories[0]
        # Each segment then has its own rate, which a file keeps with its check.
        check = SegmentCheck() if any(memory.checks for memory in memories) else None
        fields = ("fingerprint", "rates", "nested", "pooling", *([] if check else ["rate"]))
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
                tuple(replace(s, text=s.text + shift, check=s.check or check) for s in document)
                for memory, shift in zip(memories, shifts, strict=False)
                for document in memory.documents
            ),
            text_sha256=tuple(h for m in memories for h in m.text_sha256),
            unknown_tokens=tuple(u for m in memories for u in m.unknown_tokens),
            rate=min(m.rate for m in memories),
            texts=tuple(
                text for m in memories for text in (m.texts or (None,) * len(m.text_sha256))
            ),
        )

    def join(self) -> "Memory":
        """All documents, at least one, as one context, in order.

        Examples:
            >>> len(model.compress(["Ann is here.", "Bo is not."]).join())
            1
        """
        if not self.documents:
            raise ValueError("memory has no documents; give at least one text.")
        return replace(self, documents=(self.segments,))

    def at_rate(self, rate: int) -> "Memory":
        """The same documents at a coarser rate, without encoding again.

        Literals, kept texts and segments read as text stay; what the new slots lose is not known,
        which a warning says if it was.

        Raises:
            ValueError: an untrained or finer rate, or slots that are not part of the coarse rate's.

        Examples:
            >>> model.compress("Ann owns 27 maps of Lagos.", rate=2).at_rate(8).rate
            8
        """
        if type(rate) is not int or rate not in self.rates:
            raise ValueError(f"rate {rate!r} is not one of those trained for: {list(self.rates)}.")
        if rate < self.rate:
            raise ValueError(
                f"this memory has rate {self.rate}; the finer rate {rate} needs slots that it does "
                "not hold. Compress the text again with that rate."
            )
        if rate == self.rate:
            return self
        if not self.coarsens_to(rate):
            raise ValueError(
                f"the slots of rate {rate} cannot be made of those of rate {self.rate}, which this "
                f"encoder pools by {self.pooling!r}; compress the text again with rate={rate}."
            )
        checks = [s.check for s in self.segments if 0 < s.rate < rate]
        checked = sum(check is not None and check.lost is not None for check in checks)
        if checked:
            warnings.warn(
                f"at rate {rate} {checked} of {len(self.segments)} segments have other slots than "
                "those that were checked: what these lose is not known. Verbatim tokens, kept "
                "texts and segments read as text stay. To have it checked, call verified.compress "
                f"with rate={rate} or rates=[{rate}]",
                stacklevel=2,
            )
        coarser = []
        for segment, slots in self._slots_of_segments():
            if 0 < segment.rate < rate:  # else it is text, or as coarse already
                count = slots_for(segment.tokens, rate)
                if self.pooling == "mean":
                    slots = merged(slots, segment.tokens, segment.rate, rate)
                slots = slots[:count]
                check = segment.check and segment.check.with_other_slots(segment.slots - count)
                segment = replace(segment, slots=count, rate=rate, check=check)
            coarser.append((segment, slots))
        return replace(self._with_segments(coarser), rate=rate)

    def coarsens_to(self, rate: int) -> bool:
        """Whether `at_rate(rate)` needs no second encoding.

        Examples:
            >>> model.compress("Ann is here.", rate=4).coarsens_to(8)
            True
        """
        if self.pooling == "mean":
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
        changed = self._slots_of_segments()
        for i, text in texts.items():
            self._check_index(i)  # a text may be nothing
            check_text(f"{text}." if isinstance(text, str) else text, f"the text of segment {i}")
            segment, slots = changed[i]
            check = segment.check or SegmentCheck()
            check = replace(check, positions=check.tokens, text=text)
            # What a cut divides is not whole in the text.
            literals = tuple(held for held in segment.literals if held.end > segment.end)
            segment = replace(segment, slots=0, rate=0, literals=literals, check=check)
            changed[i] = segment, slots[:0]
        return self._with_segments(changed)

    def _check_index(self, i: int) -> None:
        if not isinstance(i, int) or not -len(self.segments) <= i < len(self.segments):
            raise IndexError(f"memory has {len(self.segments)} segments, there is no index {i!r}.")

    def _slots_of_segments(self) -> list[tuple[Segment, torch.Tensor]]:
        slots = self.slots.split([segment.slots for segment in self.segments])
        return list(zip(self.segments, slots, strict=True))

    def _with_segments(self, segments: Sequence[tuple[Segment, torch.Tensor]]) -> "Memory":
        """The same documents of other segments, each with its slots."""
        rest = iter(segment for segment, _ in segments)
        return replace(
            self,
            slots=torch.cat([self.slots[:0], *(slots for _, slots in segments)]),
            documents=tuple(tuple(next(rest) for _ in document) for document in self.documents),
        )

    # -- texts -------------------------------------------------------------------------------------

    def kept_texts(self, chosen: Sequence[int]) -> list[str | None]:
        """The exact texts of the chosen segments, kept or read as text, else None.

        Raises:
            ValueError: a kept text is not the one that was compressed.

        Examples:
            >>> model.compress("Ann is here.", keep_text=True).kept_texts([0])
            ['Ann is here.']
        """
        segments, texts = self.segments, list(self.segment_texts)
        unread = [i for i in chosen if texts[i] is None] if self.texts else []
        for number in {segments[i].text for i in unread}:
            check_kept_text(self.texts[number], self.text_sha256[number])
        for i in unread:
            whole = self.texts[segments[i].text]
            texts[i] = None if whole is None else whole[segments[i].start : segments[i].end]
        return [texts[i] for i in chosen]

    def expand(self, i: int) -> str:
        """The exact text of segment `i`, kept (`keep_text=True`) or read as text.

        Raises:
            ValueError: it is not at hand, or the kept text has another SHA-256.
            IndexError: there is no such segment.

        Examples:
            >>> model.compress("Ann is here.", keep_text=True).expand(0)
            'Ann is here.'
        """
        self._check_index(i)
        (text,) = self.kept_texts([i])
        if text is None:
            raise ValueError(
                f"the text of segment {i} was not kept: memslots.verified.expand(model, memory, "
                f"{i}) reads it from its slots. To have it, compress with keep_text=True (files of "
                "version 3 may hold patches instead: memslots 0.1.0 as of November 2026, or the "
                "code inside the checkpoint that wrote one, reads those exactly)."
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
        header, tensors = read_file(path)
        try:
            return cls(**memory_fields(header, tensors)).to(device)
        except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
            raise ValueError(
                f"{str(path)!r} is not a sound memory ({error}); compress the text again."
            ) from error
