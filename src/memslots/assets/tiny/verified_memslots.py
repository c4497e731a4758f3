"""Verified compression: what the slots would lose is found while compressing, and kept.

The decoder that will read the slots is asked what is in them (`fidelity_memslots`). By its answer a
segment gets the coarsest rate that is good enough, or its share of a budget, or stays text; spans
that must be exact and would be lost ride beside the slots; and patches make the whole exact.
"""

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from .configuration_memslots import decoder_place
from .exact_literals_memslots import keep_exact_spans
from .exact_spans_memslots import Exact, exact_detectors
from .fidelity_memslots import teacher_forced
from .literals_memslots import Detector, Detectors
from .lossless_memslots import make_exact
from .memory_memslots import Memory, Segment, slots_for
from .rate_choice_memslots import Option, check_budget, check_fidelity, spend
from .segment_check_memslots import SegmentCheck
from .segment_draft_memslots import Draft, ask, beside_ids, drafts_of

if TYPE_CHECKING:
    from .modeling_memslots import MemslotsModel

NO_HELP = 0.05
"""Slots that give back no more than this share beyond what the decoder guesses without them were
written by a compressor that never learned to have texts read back."""

FEW = 8
"""Segments that are asked about that."""


@dataclass(frozen=True)
class Wanted:
    """What `compress` was asked for beside slots.

    Args:
        rates: rates that a segment may get; one, where it is fixed.
        fidelity: share of each segment's decoder tokens to give back, or None.
        max_slots: most slots of each text, tokens of segments left as text included, or None.
        exact: detectors of spans that must come back exactly.
        patches: whether the exact text is kept, as patches or stored.
        slot_dtype: what slots are rounded to before anything is checked, or None.
    """

    rates: tuple[int, ...]
    fidelity: float | None = None
    max_slots: int | None = None
    exact: list[Detector] = field(default_factory=list)
    patches: bool = False
    slot_dtype: torch.dtype | None = None


def wanted_of(
    model: "MemslotsModel",
    rate: int | None,
    rates: Sequence[int] | None,
    fidelity: float | None,
    max_slots: int | None,
    exact: Exact | None,
    patches: bool | None,
    slot_dtype: torch.dtype | None,
) -> Wanted | None:
    """The arguments of `compress`, checked; None where it is only asked for slots.

    Raises:
        ValueError: what cannot be, or no decoder to ask.
    """
    fidelity, max_slots = check_fidelity(fidelity), check_budget(max_slots)
    detectors = exact_detectors(exact)
    chosen = fidelity is not None or max_slots is not None
    asked = chosen or (exact is not None and exact is not False) or bool(patches)
    check_rate = model._need_processor().check_rate
    if rates is not None and not chosen:
        raise ValueError(
            "rates=[...] goes with fidelity=... or max_slots=...; give rate=... alone."
        )
    if slot_dtype is not None and not (
        isinstance(slot_dtype, torch.dtype) and slot_dtype.is_floating_point
    ):
        raise ValueError(f"slot_dtype is a floating torch.dtype, got {slot_dtype!r}.")
    if not asked:
        if slot_dtype is not None:
            raise ValueError("slot_dtype goes with patches=True; or use memory.to(dtype).")
        return None
    if chosen and rate is not None:
        raise ValueError(
            f"rate={rate} fixes what fidelity and max_slots choose; give rates=[{rate}] instead, "
            "or the rates to choose from."
        )
    if model.decoder is None:
        raise ValueError(
            "fidelity, max_slots, exact and patches ask the decoder what the slots hold, and this "
            f"compressor was loaded without it ({decoder_place(model.config)}); call "
            "model.attach_decoder(llm) first, or load it with load_decoder=True."
        )
    if rates is not None:
        if isinstance(rates, int) or not list(rates):
            raise ValueError(f"rates is a list of rates to choose from, got {rates!r}.")
        own = tuple(sorted({check_rate(one) for one in rates}))
    else:
        own = tuple(sorted(model.config.compression_rates)) if chosen else (check_rate(rate),)
    keep = (exact is True) if patches is None else bool(patches)
    return Wanted(own, fidelity, max_slots, detectors, keep, slot_dtype)


class _RateSlots:
    """Slots of segments at any of several rates, by as few encodings as the encoder allows."""

    def __init__(
        self,
        model: "MemslotsModel",
        parts: Sequence[Draft],
        wanted: Wanted,
        batch_tokens: int | None,
        progress: bool | None,
    ):
        self.model, self.parts, self.wanted = model, parts, wanted
        self.batch_tokens, self.progress = batch_tokens, progress
        self._finest: Memory | None = None
        self._apart: set[int] = set()

    def at(self, rate: int, chosen: Sequence[int]) -> list[torch.Tensor]:
        """Slots `(slots, d_encoder)` of each of the chosen parts."""
        finest = min(self.wanted.rates)
        if self._finest is None and self._serves(finest):
            everything = [i for i, part in enumerate(self.parts) if part.span.ids]
            self._finest = self._encode(finest, everything)
            self._place = {i: n for n, i in enumerate(everything)}
        if self._finest is not None and self._finest.coarsens_to(rate):
            memory = self._finest.at_rate(rate)
            slots = memory.slots.split([segment.slots for segment in memory.segments])
            found = [slots[self._place[i]] for i in chosen]
        else:
            self._apart.add(rate)
            if len(self._apart) > 1:
                self._say_apart()
            memory = self._encode(rate, chosen)
            found = list(memory.slots.split([segment.slots for segment in memory.segments]))
        dtype = self.wanted.slot_dtype
        return found if dtype is None else [one.to(dtype) for one in found]

    def _serves(self, finest: int) -> bool:
        """Whether one encoding at the finest rate gives another of the rates."""
        empty = self.model.memory_of([], [], self.model.markers.new_zeros(0, 1), finest)
        return any(empty.coarsens_to(rate) for rate in self.wanted.rates if rate != finest) or (
            self.wanted.rates == (finest,)
        )

    def _encode(self, rate: int, chosen: Sequence[int]) -> Memory:
        spans = [self.parts[i].span for i in chosen]
        slots = self.model.encode_spans(spans, rate, self.batch_tokens, self.progress)
        return self.model.memory_of([""], [spans], slots, rate)

    def _say_apart(self) -> None:
        if not self.model.__dict__.get("_said_rates_apart"):
            self.model.__dict__["_said_rates_apart"] = True
            warnings.warn(
                "this encoder's coarse slots are not part of its finer ones (it is not causal, or "
                "pools), so each rate that is tried is encoded apart",
                stacklevel=2,
            )


@torch.no_grad()
def compress_verified(
    model: "MemslotsModel",
    texts: Sequence[str],
    literals: Detectors | None,
    wanted: Wanted,
    batch_tokens: int | None,
    progress: bool | None,
) -> Memory:
    """See `MemslotsModel.compress`.

    Args:
        model: with its decoder.
        texts: n texts.
        literals: what rides beside the slots in any case.
        wanted: what is asked for.
        batch_tokens: most encoder tokens in one pass.
        progress: whether encoding shows its progress.
    """
    parts = list(drafts_of(model, texts, literals))
    slots = _RateSlots(model, parts, wanted, batch_tokens, progress)
    if wanted.max_slots is not None:
        _spend_budget(model, parts, slots, wanted, len(texts))
    else:
        _choose_coarsest(model, parts, slots, wanted)
    _warn_if_untrained(model, parts)
    if wanted.exact:
        keep_exact_spans(model, texts, parts, wanted.exact)
    for part in parts:
        if part.slots is None:  # what a cut divides is not whole in the text
            part.literals = tuple(one for one in part.literals if one.end > part.span.end)
    return _memory(model, texts, parts, wanted)


def _choose_coarsest(
    model: "MemslotsModel", parts: list[Draft], slots: _RateSlots, wanted: Wanted
) -> None:
    """Coarsest first; only what failed is asked again, and what no rate serves stays text."""
    rest = [i for i, part in enumerate(parts) if part.span.ids]
    for rate in sorted(wanted.rates, reverse=True):
        found = slots.at(rate, rest) if rest else []
        for i, own, right in zip(rest, found, ask(model, parts, rest, found), strict=True):
            parts[i].rate, parts[i].slots, parts[i].right = rate, own, right
        if wanted.fidelity is not None:
            rest = [i for i in rest if not _serves(parts[i], wanted.fidelity)]
    if wanted.fidelity is not None:
        for i in rest:
            parts[i].rate, parts[i].slots = 0, None


def _serves(part: Draft, fidelity: float) -> bool:
    return part.recovered(part.right) >= fidelity * len(part.right)


def _spend_budget(
    model: "MemslotsModel", parts: list[Draft], slots: _RateSlots, wanted: Wanted, n_texts: int
) -> None:
    """Ask at every rate, then spend each text's slots where they give back most."""
    chosen = [i for i, part in enumerate(parts) if part.span.ids]
    kept: dict[tuple[int, int], tuple[torch.Tensor, list[bool]]] = {}
    options: list[list[Option]] = [[] for _ in parts]
    for rate in sorted(wanted.rates, reverse=True):
        found = slots.at(rate, chosen) if chosen else []
        for i, own, right in zip(chosen, found, ask(model, parts, chosen, found), strict=True):
            kept[i, rate] = own, right
            options[i].append(Option(rate, len(own), parts[i].recovered(right)))
    for part, ways in zip(parts, options, strict=True):
        if wanted.fidelity is not None or not part.span.ids:
            tokens = len(part.reading.ids)
            ways.append(Option(0, tokens, tokens))
    share = 1.0 if wanted.fidelity is None else wanted.fidelity
    for t in range(n_texts):
        own_parts = [i for i, part in enumerate(parts) if part.text == t]
        enough = [share * len(parts[i].reading.ids) for i in own_parts]
        name = "the text" if n_texts == 1 else f"text {t}"
        picked = spend([options[i] for i in own_parts], wanted.max_slots or 0, enough, name)
        for i, option in zip(own_parts, picked, strict=True):
            parts[i].rate = option.rate
            if parts[i].span.ids:
                own, parts[i].right = kept[i, option.rate or min(wanted.rates)]
                parts[i].slots = own if option.rate else None


def _warn_if_untrained(model: "MemslotsModel", parts: Sequence[Draft]) -> None:
    """Say so where the slots tell the decoder no more than it guesses."""
    asked = [part for part in parts if part.span.ids and part.reading.ids]
    tokens = sum(len(part.right) for part in asked)
    if not tokens or sum(sum(part.right) for part in asked) > 0.5 * tokens:
        return
    few = asked[:FEW]
    blind = teacher_forced(model, None, [part.reading for part in few], [[] for _ in few])
    size = sum(map(len, blind))
    own, guessed = (sum(sum(p.right) for p in few) / size, sum(map(sum, blind)) / size)
    if own - guessed < NO_HELP:
        warnings.warn(
            f"from the slots the decoder gives back {own:.0%} of the tokens of these segments, and "
            f"{guessed:.0%} without them: this checkpoint was never trained to reconstruct (the "
            "<AE> task), or never on such text. What is kept as text, literals or stored bytes "
            "is exact all the same, but it saves little",
            stacklevel=2,
        )


def _memory(
    model: "MemslotsModel", texts: Sequence[str], parts: list[Draft], wanted: Wanted
) -> Memory:
    processor = model._need_processor()
    dtype = wanted.slot_dtype or model.dtype
    empty = torch.zeros(0, model.config.slot_size, device=model.encoder.device, dtype=dtype)
    slots = torch.cat([empty, *(part.slots for part in parts if part.slots is not None)])
    rate = min((part.rate for part in parts if part.rate), default=max(wanted.rates))
    beside = beside_ids(model, parts)
    markers = 2 if model.config.markers == "segment" else 0
    checks, documents = [], []
    for part, own in zip(parts, beside, strict=True):
        as_text = part.slots is None
        around = len(part.reading.ids) if as_text else slots_for(len(part.span.ids), part.rate)
        checks.append(
            SegmentCheck(
                rate=part.rate,
                tokens=len(part.reading.ids),
                positions=around + len(own) + (0 if as_text else markers),
                lost=tuple(part.lost() if part.span.ids else ()),
                text=part.reading.text if as_text else None,
            )
        )
    for t in range(len(texts)):
        documents.append(
            tuple(
                Segment(
                    t, p.span.start, p.span.end, len(p.span.ids), slots_for(len(p.span.ids), p.rate)
                )
                for p in parts
                if p.text == t
            )
        )
    unk = processor.encoder_text.unk_id
    unknown = [0] * len(texts)
    for part in parts:
        unknown[part.text] += 0 if part.slots is None else part.span.ids.count(unk)
    base = model.memory_of([""], [[]], empty, rate)
    memory = Memory(
        **{
            **vars(base),
            "slots": slots,
            "documents": tuple(documents),
            "text_sha256": tuple(hashlib.sha256(text.encode()).hexdigest() for text in texts),
            "unknown_tokens": tuple(unknown),
            "literals": tuple(part.literals for part in parts),
            "checks": tuple(checks),
        }
    )
    if not wanted.patches:
        return memory
    exact = make_exact(model, memory, [p.reading for p in parts], beside, [p.right for p in parts])
    kept = [
        check if check.text is not None else SegmentCheck(**{**vars(check), "exact": own})
        for check, own in zip(checks, exact, strict=True)
    ]
    return Memory(**{**vars(memory), "checks": tuple(kept)})
