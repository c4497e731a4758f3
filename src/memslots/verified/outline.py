"""The least that a verified memory can take, known before anything is encoded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from memslots.modeling import Memory, MemslotsModel
from memslots.modeling.memory_memslots import slots_for
from memslots.modeling.texts_memslots import Detectors, Span, as_list

from .compressing import request_of
from .drafts import drafts_of


def least_memory(
    model: MemslotsModel,
    text: str | Sequence[str],
    rate: int | None = None,
    literals: Detectors | None = None,
    fidelity: float | None = None,
    max_slots: int | None = None,
    rates: Sequence[int] | None = None,
    exact: Any = None,
) -> Memory:
    """A memory that takes no more prompt tokens than `compress` with the same arguments will give.

    For `layout_memslots.check_room`: encoding a long text and reading it back takes minutes, that
    it does not fit is known at once.

    Args:
        model: a compressor with its decoder.
        text: a text, or n texts.
        rate: as for `compress`, like all that follow.
        literals: see there.
        fidelity: see there.
        max_slots: see there.
        rates: see there.
        exact: see there.

    Returns:
        n documents, whose slots have a shape alone.

    Raises:
        ValueError: as `compress`.
        TypeError: as `compress`.

    Examples:
        >>> from memslots.verified.outline import least_memory
        >>> least_memory(model, "Ann owns 27 maps.", fidelity=0.9).device.type
        'meta'
    """
    texts = as_list(text, "context")
    request = request_of(model, rate, rates, fidelity, max_slots, exact, None)
    if request is None:
        rate = model.processor.check_rate(rate)
        return model.outline(texts, model.segment(texts), rate, literals)
    coarsest = max(request.rates)
    markers = 2 if model.config.markers == "segment" else 0
    spans: list[list[Span]] = [[] for _ in texts]
    for part in drafts_of(model, texts, literals=[]):
        tokens = len(part.span.ids)
        # What slots do not serve stays text, which short segments are shorter as.
        positions = slots_for(tokens, coarsest) + markers
        short = fidelity is not None and len(part.reading.ids) < positions
        if tokens and not short:
            spans[part.text].append(part.span)
    return model.outline(texts, spans, coarsest, [] if request.fidelity is not None else literals)
