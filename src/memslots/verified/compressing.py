"""Verified compression: what the slots would lose is found while compressing, and kept.

The decoder that will read the slots is asked what is in them (`fidelity`). By its answer a segment
gets the coarsest rate that is good enough, or its share of a budget, or stays text; and spans that
must be exact and would be lost ride beside the slots.
"""

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from memslots.modeling import Memory, MemslotsModel, Segment
from memslots.modeling.encoders_memslots import encode_spans
from memslots.modeling.memory_files_memslots import SegmentCheck
from memslots.modeling.memory_memslots import slots_for
from memslots.modeling.texts_memslots import Detector, Detectors, as_list

from .drafts import Draft, ask, beside_ids, drafts_of
from .exact_literals import keep_exact_spans
from .exact_spans import Exact, exact_detectors
from .fidelity import teacher_forced
from .rate_choice import Option, check_budget, check_fidelity, spend

NO_HELP = 0.05
"""Slots that give back no more than this share beyond what the decoder guesses without them were
written by a compressor that never learned to have texts read back."""

FEW = 8
"""Segments that are asked about that."""


@dataclass(frozen=True)
class Request:
    """What `compress` was asked for beside slots.

    Args:
        rates: rates that a segment may get; one, where it is fixed.
        fidelity: share of each segment's decoder tokens to give back, or None.
        max_slots: most slots of each text, tokens of segments left as text included, or None.
        exact: detectors of spans that must come back exactly.
        slot_dtype: what slots are rounded to before anything is checked, or None.
    """

    rates: tuple[int, ...]
    fidelity: float | None = None
    max_slots: int | None = None
    exact: list[Detector] = field(default_factory=list)
    slot_dtype: torch.dtype | None = None


@torch.no_grad()
def compress(
    model: MemslotsModel,
    text: str | Sequence[str],
    rate: int | None = None,
    *,
    fidelity: float | None = None,
    max_slots: int | None = None,
    rates: Sequence[int] | None = None,
    exact: Exact | None = None,
    keep_text: bool | None = None,
    literals: Detectors | None = None,
    slot_dtype: torch.dtype | None = None,
    batch_tokens: int | None = None,
    progress: bool | None = None,
) -> Memory:
    """Compress texts and check, by the decoder, what their slots give back.

    The memory is an ordinary one: any checkpoint of the compressor reads it, without this package.
    Asked for nothing beside slots, it is what `model.compress` gives.

    Args:
        model: a compressor with its decoder.
        text: a text, or n texts (n documents).
        rate: encoder tokens per slot, where neither `fidelity` nor `max_slots` chooses it.
        fidelity: share of each segment's decoder tokens, above 0 and up to 1, that its slots must
            give back (teacher-forced); each segment gets the coarsest rate that does, and stays
            text if none does.
        max_slots: most slots of each text, spent where they give back most; with `fidelity`,
            segments that have that take no more, and the tokens of those left as text count.
        rates: the rates that `fidelity` or `max_slots` choose from, by default all.
        exact: what must come back exactly: True for every kind of `texts_memslots.DETECTORS`
            and the whole text, a name of one, a compiled regular expression, a function (see
            `exact_spans`), or a list of these. Spans that the slots do not give back,
            teacher-forced and free-running, become verbatim tokens beside them. `[]` only checks.
        keep_text: as for `model.compress`; by default where `exact` is True.
        literals: as for `model.compress`.
        slot_dtype: what slots are rounded to before they are checked, such as the dtype of a store
            that they go to.
        batch_tokens: as for `model.compress`.
        progress: as for `model.compress`.

    Returns:
        A `Memory` of n documents, with a check of each segment.

    Raises:
        ValueError: an empty text, a lone surrogate, a rate it was not trained for, a fidelity
            outside (0, 1], fewer `max_slots` than the coarsest rate takes, or no decoder to ask.
        TypeError: not a string.

    Examples:
        >>> from memslots import verified
        >>> memory = verified.compress(model, "Ann owns 27 maps.", rate=4, exact="numbers")
        >>> len(memory.checks) == len(verified.report(memory).segments) == 1
        True
    """
    texts = as_list(text, "context")
    request = request_of(model, rate, rates, fidelity, max_slots, exact, slot_dtype)
    keep_text = exact is True if keep_text is None else keep_text
    if request is None:
        return model.compress(texts, rate, literals, keep_text, batch_tokens, progress)
    parts = list(drafts_of(model, texts, literals))
    slots = _RateSlots(model, parts, request, batch_tokens, progress)
    if request.max_slots is not None:
        _spend_budget(model, parts, slots, request, len(texts))
    else:
        _choose_coarsest(model, parts, slots, request)
    _warn_if_untrained(model, parts)
    if request.exact:
        keep_exact_spans(model, texts, parts, request.exact, progress)
    for part in parts:
        if part.slots is None:  # what a cut divides is not whole in the text
            part.literals = tuple(
                literal for literal in part.literals if literal.end > part.span.end
            )
    return _memory(model, texts, parts, request, keep_text)


def request_of(
    model: MemslotsModel,
    rate: int | None,
    rates: Sequence[int] | None,
    fidelity: float | None,
    max_slots: int | None,
    exact: Exact | None,
    slot_dtype: torch.dtype | None,
) -> Request | None:
    """The arguments of `compress`, checked; None if it is only asked for slots.

    Raises:
        ValueError: what cannot be, or no decoder to ask.
    """
    fidelity, max_slots = check_fidelity(fidelity), check_budget(max_slots)
    detectors = exact_detectors(exact)
    chosen = fidelity is not None or max_slots is not None
    asked = chosen or (exact is not None and exact is not False)
    check_rate = model.processor.check_rate
    if rates is not None and not chosen:
        raise ValueError(
            "rates=[...] goes with fidelity=... or max_slots=...; give rate=... alone."
        )
    if slot_dtype is not None and not (
        isinstance(slot_dtype, torch.dtype) and slot_dtype.is_floating_point
    ):
        raise ValueError(f"slot_dtype is a floating torch.dtype, got {slot_dtype!r}.")
    if not asked:
        return None
    if chosen and rate is not None:
        raise ValueError(
            f"rate={rate} fixes what fidelity and max_slots choose; give rates=[{rate}] instead, "
            "or the rates to choose from."
        )
    if not model.has_decoder:
        raise ValueError(
            "fidelity, max_slots and exact ask the decoder what the slots hold: "
            f"{model.needs_decoder}"
        )
    if rates is not None:
        if isinstance(rates, int) or not list(rates):
            raise ValueError(f"rates is a list of rates to choose from, got {rates!r}.")
        allowed = tuple(sorted(set(map(check_rate, rates))))
    else:
        allowed = tuple(sorted(model.config.compression_rates)) if chosen else (check_rate(rate),)
    return Request(allowed, fidelity, max_slots, detectors, slot_dtype)


class _RateSlots:
    """Slots of segments at any of several rates, by as few encodings as the encoder allows."""

    def __init__(
        self,
        model: MemslotsModel,
        parts: Sequence[Draft],
        request: Request,
        batch_tokens: int | None,
        progress: bool | None,
    ):
        self.model, self.parts, self.request = model, parts, request
        self.batch_tokens, self.progress = batch_tokens, progress
        self._finest: Memory | None = None
        self._apart: set[int] = set()

    def at(self, rate: int, chosen: Sequence[int]) -> list[torch.Tensor]:
        """Slots `(slots, d_encoder)` of each of the chosen parts."""
        finest = min(self.request.rates)
        if self._finest is None and self._serves(finest):
            everything = [i for i, part in enumerate(self.parts) if part.span.ids]
            self._finest = self._encode(finest, everything)
            self._place = {i: n for n, i in enumerate(everything)}
        if self._finest is not None and self._finest.coarsens_to(rate):
            memory = self._finest.at_rate(rate)
            slots = memory.slots.split([segment.slots for segment in memory.segments])
            part_slots = [slots[self._place[i]] for i in chosen]
        else:
            self._apart.add(rate)
            if len(self._apart) > 1:
                self._say_apart()
            memory = self._encode(rate, chosen)
            part_slots = list(memory.slots.split([segment.slots for segment in memory.segments]))
        dtype = self.request.slot_dtype
        return part_slots if dtype is None else [slots.to(dtype) for slots in part_slots]

    def _serves(self, finest: int) -> bool:
        """Whether one encoding at the finest rate gives another of the rates."""
        empty = self.model.outline([], [], finest)
        return any(empty.coarsens_to(rate) for rate in self.request.rates if rate != finest) or (
            self.request.rates == (finest,)
        )

    def _encode(self, rate: int, chosen: Sequence[int]) -> Memory:
        spans = [self.parts[i].span for i in chosen]
        slots = encode_spans(self.model, spans, rate, self.batch_tokens, self.progress)
        return replace(self.model.outline([""], [spans], rate, literals=[]), slots=slots)

    def _say_apart(self) -> None:
        if not self.model.__dict__.get("_said_rates_apart"):
            self.model.__dict__["_said_rates_apart"] = True
            warnings.warn(
                "this encoder's coarse slots are not part of its finer ones (it is not causal, or "
                "pools), so every rate that is tried is encoded separately",
                stacklevel=2,
            )


def _choose_coarsest(
    model: MemslotsModel, parts: list[Draft], slots: _RateSlots, request: Request
) -> None:
    """Coarsest first; only what failed is asked again, and what no rate serves stays text."""
    rest = [i for i, part in enumerate(parts) if part.span.ids]
    for rate in sorted(request.rates, reverse=True):
        rest_slots = slots.at(rate, rest) if rest else []
        read_back = ask(model, parts, rest, rest_slots, slots.progress)
        for i, part_slots, right in zip(rest, rest_slots, read_back, strict=True):
            parts[i].rate, parts[i].slots, parts[i].right = rate, part_slots, right
        if request.fidelity is not None:
            rest = [i for i in rest if not _serves(parts[i], request.fidelity)]
    if request.fidelity is not None:
        for i in rest:
            parts[i].rate, parts[i].slots = 0, None


def _serves(part: Draft, fidelity: float) -> bool:
    return part.recovered(part.right) >= fidelity * len(part.right)


def _spend_budget(
    model: MemslotsModel, parts: list[Draft], slots: _RateSlots, request: Request, n_texts: int
) -> None:
    """Ask at every rate, then spend each text's slots where they give back most."""
    chosen = [i for i, part in enumerate(parts) if part.span.ids]
    kept: dict[tuple[int, int], tuple[torch.Tensor, list[bool]]] = {}
    options: list[list[Option]] = [[] for _ in parts]
    for rate in sorted(request.rates, reverse=True):
        chosen_slots = slots.at(rate, chosen) if chosen else []
        read_back = ask(model, parts, chosen, chosen_slots, slots.progress)
        for i, part_slots, right in zip(chosen, chosen_slots, read_back, strict=True):
            kept[i, rate] = part_slots, right
            options[i].append(Option(rate, len(part_slots), parts[i].recovered(right)))
    for part, ways in zip(parts, options, strict=True):
        if request.fidelity is not None or not part.span.ids:
            tokens = len(part.reading.ids)
            ways.append(Option(0, tokens, tokens))
    share = 1.0 if request.fidelity is None else request.fidelity
    for t in range(n_texts):
        own_parts = [i for i, part in enumerate(parts) if part.text == t]
        enough = [share * len(parts[i].reading.ids) for i in own_parts]
        name = "the text" if n_texts == 1 else f"text {t}"
        picked = spend([options[i] for i in own_parts], request.max_slots or 0, enough, name)
        for i, option in zip(own_parts, picked, strict=True):
            parts[i].rate = option.rate
            if parts[i].span.ids:
                part_slots, parts[i].right = kept[i, option.rate or min(request.rates)]
                parts[i].slots = part_slots if option.rate else None


def _warn_if_untrained(model: MemslotsModel, parts: Sequence[Draft]) -> None:
    """Say so where the slots tell the decoder no more than it guesses."""
    asked = [part for part in parts if part.span.ids and part.reading.ids]
    tokens = sum(len(part.right) for part in asked)
    if not tokens or sum(sum(part.right) for part in asked) > 0.5 * tokens:
        return
    few = asked[:FEW]
    blind = teacher_forced(model, None, [part.reading for part in few], [[] for _ in few])
    size = sum(map(len, blind))
    given_back, guessed = (sum(sum(p.right) for p in few) / size, sum(map(sum, blind)) / size)
    if given_back - guessed < NO_HELP:
        warnings.warn(
            f"from the slots the decoder gives back {given_back:.0%} of the tokens of these "
            f"segments, and {guessed:.0%} without them: this checkpoint was never trained to "
            "reconstruct (the <AE> task), or not on text like this. What is kept as text, "
            "verbatim tokens or stored bytes is exact nevertheless, but it saves little",
            stacklevel=2,
        )


def _memory(
    model: MemslotsModel,
    texts: Sequence[str],
    parts: list[Draft],
    request: Request,
    keep_text: bool,
) -> Memory:
    dtype = request.slot_dtype or model.dtype
    empty = torch.zeros(0, model.config.slot_size, device=model.encoder.device, dtype=dtype)
    slots = torch.cat([empty, *(part.slots for part in parts if part.slots is not None)])
    rate = min((part.rate for part in parts if part.rate), default=max(request.rates))
    markers = 2 if model.config.markers == "segment" else 0
    documents: list[list[Segment]] = [[] for _ in texts]
    unknown = [0] * len(texts)
    unk = model.processor.encoder_text.unk_id
    for part, literal_ids in zip(parts, beside_ids(model, parts), strict=True):
        span, tokens = part.span, len(part.span.ids)
        as_text, n_slots = part.slots is None, slots_for(tokens, part.rate)
        around = len(part.reading.ids) if as_text else n_slots + markers
        check = SegmentCheck(
            tokens=len(part.reading.ids),
            positions=around + len(literal_ids),
            lost=tuple(part.lost() if span.ids else ()),
            text=part.reading.text if as_text else None,
        )
        documents[part.text].append(
            Segment(
                part.text,
                span.start,
                span.end,
                tokens,
                n_slots,
                part.rate,
                part.literals,
                check,
            )
        )
        unknown[part.text] += 0 if as_text else span.ids.count(unk)
    return replace(
        model.outline([], [], rate),
        slots=slots,
        documents=tuple(map(tuple, documents)),
        text_sha256=tuple(hashlib.sha256(text.encode()).hexdigest() for text in texts),
        unknown_tokens=tuple(unknown),
        texts=tuple(texts) if keep_text else (),
    )
