"""Drafts: segments while it is decided how each of them is kept."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch

from memslots.modeling import Memory, MemslotsModel, Segment
from memslots.modeling.texts_memslots import Detectors, Literal, Span, check_text

from .fidelity import Places, Reading, lost_places, read, teacher_forced


@dataclass
class Draft:
    """A segment in the making.

    Args:
        text: index of its text.
        span: characters and encoder tokens.
        reading: its text in the decoder's tokens.
        literals: what rides beside its slots.
        rate: encoder tokens per slot; 0 while there are no slots.
        slots: `(slots, d_encoder)`; None if the decoder reads the text.
        right: which decoder tokens come back, teacher-forced, at `rate` or, of a text, at the
            finest rate that was tried.
    """

    text: int
    span: Span
    reading: Reading
    literals: tuple[Literal, ...]
    rate: int = 0
    slots: torch.Tensor | None = None
    right: list[bool] = field(default_factory=list)

    @property
    def held(self) -> Places:
        """Characters of its literals, from the segment's start."""
        shift = self.span.start
        return [(literal.start - shift, literal.end - shift) for literal in self.literals]

    def lost(self, right: Sequence[bool] | None = None, held: bool = True) -> Places:
        """Characters `(start, end)` of the source that are lost, token by token."""
        places = lost_places(
            self.reading, self.right if right is None else right, self.held if held else []
        )
        return [(a + self.span.start, b + self.span.start) for a, b in places]

    def recovered(self, right: Sequence[bool]) -> int:
        """Decoder tokens that come back."""
        return len(right) - len(self.lost(right))


def drafts_of(
    model: MemslotsModel, texts: Sequence[str], literals: Detectors | None
) -> Iterator[Draft]:
    """The segments of all texts, those included that the encoder sees nothing of.

    Args:
        model: that compresses.
        texts: n texts.
        literals: what rides beside the slots in any case.

    Raises:
        ValueError: an empty text, or a lone surrogate.
        TypeError: not a string.
    """
    processor = model.processor
    for t, text in enumerate(texts):
        name = "context" if len(texts) == 1 else f"context[{t}]"
        spans = processor.spans(check_text(text, name))
        span_literals = (
            processor.segment_literals(text, spans, literals)
            if spans[0].ids
            else [() for _ in spans]
        )
        for span, beside in zip(spans, span_literals, strict=True):
            yield Draft(t, span, read(processor, text[span.start : span.end]), beside)


def ask(
    model: MemslotsModel,
    parts: Sequence[Draft],
    chosen: Sequence[int],
    slots: Sequence[torch.Tensor],
    progress: bool | None = None,
) -> list[list[bool]]:
    """What the decoder gets back of the chosen parts from these slots, teacher-forced."""
    if not chosen:
        return []
    trial = trial_memory(model, [parts[i] for i in chosen], slots)
    beside = beside_ids(model, [parts[i] for i in chosen])
    return teacher_forced(model, trial, [parts[i].reading for i in chosen], beside, progress)


def trial_memory(
    model: MemslotsModel, parts: Sequence[Draft], slots: Sequence[torch.Tensor]
) -> Memory:
    """The slots as a memory of one document, for the decoder to read."""
    rate = min(model.config.compression_rates)
    segments = tuple(
        Segment(0, part.span.start, part.span.end, len(part.span.ids), len(kept), rate)
        for part, kept in zip(parts, slots, strict=True)
    )
    return replace(
        model.outline([""], [[]], rate), slots=torch.cat(list(slots)), documents=(segments,)
    )


def beside_ids(model: MemslotsModel, parts: Sequence[Draft]) -> list[list[int]]:
    """Verbatim tokens of each draft."""
    token_ids = model.processor.literal_ids([part.literals for part in parts])
    return token_ids or [[] for _ in parts]
