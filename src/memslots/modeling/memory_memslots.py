"""Memory: what a compressor made of one or more documents, in hand and on disk.

The slots are kept as the encoder wrote them, before the converter: smaller than after it, and one
memory then serves every decoder whose converter was trained for the same encoder.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from .coarser_memslots import coarsened
from .literals_memslots import Literal
from .memory_files_memslots import FORMAT as FORMAT
from .memory_files_memslots import bytes_tensor, read_memory_file, tensor_bytes, write_memory_file
from .memory_report_memslots import MemoryReport, readable, report_of
from .patches_memslots import stored_text
from .pooling_memslots import MERGED
from .segment_check_memslots import SegmentCheck, checks_from_json, slots_for

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FORMAT_VERSION = 3
"""Version 1 has no literals, version 2 no checks of segments; a memory is written as the oldest
version that holds it."""

Own = TypeVar("Own")


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
        rate: encoder tokens per slot; where segments have rates of their own, the finest of them.
        rates: the rates that the compressor was trained for.
        nested: whether the slots of a coarse rate are the first slots of a finer one (causal
            encoders).
        fingerprint: identity of the compressor that wrote the slots.
        pooling: how the encoder makes slots (`MemslotsConfig.pooling`). Of "mean", "last" and "min"
            slots, those of a coarse rate are made of a finer one's.
        literals: of each of `segments`, in order, the exact strings that the decoder reads beside
            its slots, as `(start, end, text)` of its text; empty where no segment has any.
        checks: of each of `segments`, in order, its own rate, what its slots lose and what is kept
            of it beside them; empty where nothing was checked (see `segment_check_memslots`).
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
        if self.checks and len(self.checks) != wanted:
            raise ValueError(f"checks go with segments: {len(self.checks)} for {wanted} segments.")
        for segment, rate in zip(self.segments, self.segment_rates, strict=True):
            if self.checks and segment.slots != slots_for(segment.tokens, rate):
                raise ValueError(
                    f"a segment of {segment.tokens} tokens has {segment.slots} slots; that is not "
                    f"how rate {rate} is written."
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
        """Bytes that slots, texts and patches take."""
        kept = sum(len(c.exact) + len((c.text or "").encode()) for c in self.checks)
        return self.slots.numel() * self.slots.element_size() + kept

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
            f"{readable(self.nbytes)}, {str(self.dtype).removeprefix('torch.')} on {self.device}, "
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
        literals = self._by_document(self.literals, ())
        checks = self._by_document(self.checks, None)
        return replace(
            self,
            literals=tuple(own for i in chosen for own in literals[i]),
            checks=tuple(own for i in chosen for own in checks[i] if own is not None),
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
            rate=min(m.rate for m in memories),
            checks=tuple(check for m in memories for check in m.all_checks()) if mixed else (),
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
            checks=self.checks[1:],
        )[0]

    def at_rate(self, rate: int) -> "Memory":
        """The same documents at a coarser rate, without encoding again.

        Literals, stored texts and segments read as text stay; what the new slots lose is not known,
        and patches to the old ones go. A warning says so where there was any.

        Raises:
            ValueError: a rate that the compressor was not trained for, a finer rate than this
                memory's, or slots that are no part of the coarse rate's (compress again instead).
        """
        return coarsened(self, rate)

    def coarsens_to(self, rate: int) -> bool:
        """Whether `at_rate(rate)` needs no second encoding."""
        if self.pooling in MERGED:
            finer = [own for own in self.segment_rates if 0 < own < rate]
            return rate >= self.rate and all(rate % own == 0 for own in finer)
        return rate == self.rate or (self.nested and rate > self.rate)

    def to(self, *args, **kwargs) -> "Memory":
        """The same memory on another device or in another floating dtype, as `torch.Tensor.to`."""
        return replace(self, slots=self.slots.to(*args, **kwargs))

    def prefill(self, model, **kwargs):
        """The decoder's reading of this memory, for many questions: `MemslotsModel.prefill`."""
        return model.prefill(self, **kwargs)

    def as_text(self, texts: Mapping[int, str]) -> "Memory":
        """The same memory, of which the decoder reads some segments as text.

        Args:
            texts: by index in `segments`, the text to read in the slots' place.
        """
        counts = [segment.slots for segment in self.segments]
        checks, literals = list(self.all_checks()), list(self.literals)
        for i, text in texts.items():
            checks[i] = checks[i].as_text(text)
            if literals:  # what a cut divides is not whole in the text
                literals[i] = tuple(one for one in literals[i] if one.end > self.segments[i].end)
        parts = self.slots.split(counts)
        kept = [part for i, part in enumerate(parts) if i not in texts]
        segments = iter(
            replace(s, slots=0) if i in texts else s for i, s in enumerate(self.segments)
        )
        return replace(
            self,
            slots=torch.cat([self.slots[:0], *kept]),
            documents=tuple(tuple(next(segments) for _ in own) for own in self.documents),
            checks=tuple(checks),
            literals=tuple(literals),
        )

    def all_checks(self) -> tuple[SegmentCheck, ...]:
        """A check of each segment, with nothing but its rate where none was made."""
        return self.checks or tuple(SegmentCheck(rate) for rate in self.segment_rates)

    def _by_document(self, values: Sequence[Own], default: Any) -> list[tuple[Own, ...]]:
        """What goes with segments, document by document; `default` where there is nothing."""
        rest = iter(values or (default,) * len(self.segments))
        return [tuple(next(rest) for _ in document) for document in self.documents]

    def _document_offsets(self) -> list[int]:
        offsets = [0]
        for slots in self.n_slots:
            offsets.append(offsets[-1] + slots)
        return offsets

    # -- what it holds ----------------------------------------------------------------------------

    def report(self, texts: str | Sequence[str] | None = None) -> MemoryReport:
        """What each segment takes and gives back; `str`, `to_json` and `to_html` of it show it.

        Args:
            texts: what was compressed, one for each of `text_sha256`, for the map over the text; by
                default what can be read without a decoder (`MemslotsModel.report` reads the rest).

        Raises:
            ValueError: other texts than those.
        """
        return report_of(self, texts)

    def expand(self, i: int, model: "PreTrainedModel | None" = None) -> str:
        """The text of segment `i`, counted over all documents.

        Args:
            i: index in `segments`; negative ones count from the end.
            model: the `MemslotsModel` that reads the slots, needed where the text is not at hand.

        Returns:
            The exact text where it is kept (as text, stored, or as patches), else what the decoder
            reads back, its uncertain tokens in `⟦⟧`.

        Raises:
            ValueError: a model is needed, or reads another text than patches say.
            IndexError: there is no such segment.
        """
        if not -len(self.segments) <= i < len(self.segments):
            raise IndexError(f"memory has {len(self.segments)} segments, there is no index {i}.")
        check = self.all_checks()[i]
        if check.text is not None:
            return check.text
        if check.standalone:
            return stored_text(check.exact, self.segments[i].end - self.segments[i].start)
        if model is None:
            raise ValueError(
                f"the text of segment {i} has to be read from its slots: give memory.expand({i}, "
                f"model), or call model.expand(memory, {i})."
            )
        return model.expand(self, i)  # type: ignore[operator]

    # -- disk ------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike) -> None:
        """Write the memory to one safetensors file; a file that is there is replaced whole.

        Raises:
            ValueError: `path` is a folder, or its folder does not exist.
        """
        header: dict[str, Any] = {
            "version": 3 if self.checks else 2 if self.literals else 1,
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
        tensors = {"slots": self.slots.detach().to("cpu").contiguous()}
        if self.checks:
            header["checks"] = [check.to_json() for check in self.checks]
            tensors["exact"] = bytes_tensor(b"".join(check.exact for check in self.checks))
        write_memory_file(path, header, tensors)

    @classmethod
    def load(cls, path: str | os.PathLike, device: str | torch.device = "cpu") -> "Memory":
        """Read a memory that `save` wrote.

        The compressor is not needed; it checks the fingerprint when the memory is used.

        Raises:
            FileNotFoundError: no such file.
            ValueError: no memory, a newer format, or a file that was cut off or altered.
        """
        header, tensors = read_memory_file(path, FORMAT_VERSION)
        segments = [Segment(*numbers) for numbers in header["segments"]]
        documents, start = [], 0
        for count in header["documents"]:
            documents.append(tuple(segments[start : start + count]))
            start += count
        if start != len(segments):
            raise ValueError(f"{str(path)!r} has {len(segments)} segments, its documents {start}.")
        return cls(
            slots=tensors["slots"].to(device),
            documents=tuple(documents),
            text_sha256=tuple(header["text_sha256"]),
            unknown_tokens=tuple(header["unknown_tokens"]),
            rate=header["rate"],
            rates=tuple(header["rates"]),
            nested=header["nested"],
            fingerprint=header["fingerprint"],
            pooling=header.get("pooling", "memory_tokens"),
            literals=tuple(header.get("literals", ())),
            checks=checks_from_json(header["checks"], tensor_bytes(tensors["exact"]))
            if "checks" in header
            else (),
        )
