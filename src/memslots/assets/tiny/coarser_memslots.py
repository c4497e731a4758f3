"""Memories at a coarser rate, without encoding again."""

import warnings
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from .patches_memslots import needs_slots
from .pooling_memslots import MERGED, merge_slots
from .segment_check_memslots import SegmentCheck, slots_for

if TYPE_CHECKING:
    from .memory_memslots import Memory


def coarsened(memory: "Memory", rate: int) -> "Memory":
    """See `Memory.at_rate`."""
    if rate not in memory.rates:
        raise ValueError(
            f"rate {rate!r} is not one that the compressor was trained for: {list(memory.rates)}."
        )
    if rate < memory.rate:
        raise ValueError(
            f"this memory has rate {memory.rate}; the finer rate {rate} needs slots that it does "
            "not hold. Compress the text again with that rate."
        )
    if rate == memory.rate:
        return memory
    if not memory.coarsens_to(rate):
        raise ValueError(
            f"the slots of rate {rate} cannot be made of those of rate {memory.rate} "
            + (
                "(only those of its multiples can)"
                if memory.pooling in MERGED
                else "(attention's weights are not kept)"
                if memory.pooling == "attention"
                else "(the encoder is not causal)"
            )
            + f"; compress the text again with rate={rate}."
        )
    _say_what_is_lost(memory, rate)
    kept, start, documents = [], 0, []
    checks: list[SegmentCheck] = []
    rates = iter(memory.segment_rates)
    for document in memory.documents:
        coarse = []
        for segment in document:
            own, own_rate = memory.slots[start : start + segment.slots], next(rates)
            start += segment.slots
            if 0 < own_rate < rate:
                slots = slots_for(segment.tokens, rate)
                fewer = segment.slots - slots
                if memory.pooling in MERGED:
                    own = merge_slots(own, segment.tokens, own_rate, rate, memory.pooling)
                kept.append(own[:slots])
                segment = replace(segment, slots=slots)
                if memory.checks:
                    checks.append(memory.checks[len(checks)].with_other_slots(rate, fewer))
            else:  # text, or as coarse already
                kept.append(own)
                checks += memory.checks[len(checks) : len(checks) + 1]
            coarse.append(segment)
        documents.append(tuple(coarse))
    slots_kept = torch.cat(kept) if kept else memory.slots[:0]
    return replace(
        memory, slots=slots_kept, documents=tuple(documents), rate=rate, checks=tuple(checks)
    )


def _say_what_is_lost(memory: "Memory", rate: int) -> None:
    """Warn where what was verified does not hold for the coarser slots."""
    coarser = [check for check in memory.checks if 0 < check.rate < rate]
    known = sum(check.lost is not None for check in coarser)
    patched = sum(bool(check.exact) and needs_slots(check.exact) for check in coarser)
    if known or patched:
        gone = (
            f", and {patched} exact texts, patches to the finer slots, are gone" if patched else ""
        )
        warnings.warn(
            f"at rate {rate} {max(known, patched)} of {len(memory.segments)} segments have other "
            f"slots than those that were checked: what these lose is not known{gone}"
            ". Literals, stored texts and segments read as text stay. To have it checked, compress "
            f"the text with rate={rate} or rates=[{rate}]",
            stacklevel=4,
        )
