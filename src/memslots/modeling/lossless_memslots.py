"""Exact texts from slots: greedy decoding with patches forced in, and how patches are found.

Finding and reading go through the decoder's own `generate`, one step at a time: a prefill over the
known text differs from cached steps in the last bits, and in low precision that turns an argmax now
and then. Batches differ in the last bits too, so a token is also forced where the two best logits
are closer than a margin. SHA-256 has the last word.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList

from .configuration_memslots import max_positions
from .fidelity_memslots import LONG, Reading, reading_row
from .layout_memslots import row_length
from .memory_memslots import Memory
from .patches_memslots import (
    HEAD,
    Patches,
    apply_edits,
    checked_text,
    edits_between,
    pack_patches,
    pack_text,
    read_patches,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MARGINS = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""How close the two best logits may come, relative to the best one's size, before a token is
forced. About a thousand times what batches of other sizes change in float32, and ten times what
prefilling instead of stepping changes in bfloat16."""

BATCH = 32
"""Segments that are written at once."""


class _Forced(LogitsProcessor):
    """Leaves one token to choose where it is forced; rows that are done end.

    Args:
        lengths: tokens of each row.
        forced: token by place, of each row.
        end: what follows a row's last token.
    """

    def __init__(self, lengths: Sequence[int], forced: Sequence[dict[int, int]], end: int):
        self.lengths, self.forced, self.end, self.step = lengths, forced, end, 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """The scores of this step, `(rows, vocabulary)`."""
        self.look(scores)
        scores = scores.clone()
        for row, (length, own) in enumerate(zip(self.lengths, self.forced, strict=True)):
            token = self.end if self.step >= length else own.get(self.step)
            if token is not None:
                scores[row] = -torch.inf
                scores[row, token] = 0.0
        self.step += 1
        return scores

    def look(self, scores: torch.Tensor) -> None:
        """What else is to be learned from the scores."""


class _Compared(_Forced):
    """Forces the truth, and notes where the decoder would not have surely written it."""

    def __init__(self, truth: Sequence[Sequence[int]], end: int, margin: float):
        super().__init__([len(own) for own in truth], [dict(enumerate(own)) for own in truth], end)
        self.margin = margin
        self.needed: list[dict[int, int]] = [{} for _ in truth]

    def look(self, scores: torch.Tensor) -> None:
        """Note a row's true token where it is not the best, or not by the margin."""
        values, tokens = scores.float().topk(2, dim=-1)
        close = values[:, 0] - values[:, 1] < self.margin * values[:, 0].abs().clamp(min=1.0)
        best = tokens[:, 0].tolist()
        for row, unsure in enumerate(close.tolist()):
            if self.step < self.lengths[row]:
                token = self.forced[row][self.step]
                if unsure or best[row] != token:
                    self.needed[row][self.step] = token


@torch.no_grad()
def make_exact(
    model: "PreTrainedModel",
    memory: Memory,
    readings: Sequence[Reading],
    beside: Sequence[Sequence[int]],
    right: Sequence[Sequence[bool]],
    always: bool = False,
) -> list[bytes]:
    """What makes each segment's text exact: patches where they pay, else the stored text.

    Args:
        model: a `MemslotsModel` with its decoder.
        memory: whose slots are read, as they will be.
        readings: of each segment.
        beside: decoder tokens of each segment's literals.
        right: of each segment, which tokens the decoder recovers teacher-forced; a segment whose
            patches cannot pay is not written at all.
        always: whether patches are kept where they can be made, even if they do not pay.
    """
    exact = [pack_text(one.text) for one in readings]
    slots = [segment.slots for segment in memory.segments]
    most = max_positions(model._need_decoder().config)  # type: ignore[operator]
    processor = model._need_processor()  # type: ignore[operator]
    ends = _ends(model)
    asked = []
    for i, one in enumerate(readings):
        row = reading_row(processor, i, one.ids, beside[i])
        fits = (
            most is None
            or row_length(row, slots, model.config.markers, model.config.vectors_per_slot) < most
        )
        least = HEAD + 2 + 2 * sum(not ok for ok in right[i])
        pays = always or least < len(exact[i])
        readable = 0 < len(one.ids) <= LONG * model.config.segment_length
        if slots[i] and fits and pays and readable and ends.isdisjoint(one.ids):
            asked.append(i)
    for batch in _by_length(asked, [len(one.ids) for one in readings]):
        compared = _Compared([readings[i].ids for i in batch], _end(model), _margin(model))
        _write(model, memory, batch, beside, compared)
        for i, forced in zip(batch, compared.needed, strict=True):
            one = readings[i]
            edits = edits_between(processor.decode(one.ids), one.text)
            patches = pack_patches(one.text, Patches(len(one.ids), forced, edits))
            if always or len(patches) < len(exact[i]):
                exact[i] = patches
    return exact


@torch.no_grad()
def read_exactly(
    model: "PreTrainedModel", memory: Memory, chosen: Sequence[int], batch_size: int = BATCH
) -> list[str]:
    """The exact texts of segments that have patches.

    Args:
        model: a `MemslotsModel` with its decoder.
        memory: whose slots are read.
        chosen: indices of segments, all with patches.
        batch_size: segments that are written at once.

    Raises:
        ValueError: what the decoder writes here is not what it wrote when the memory was made.
    """
    processor = model._need_processor()  # type: ignore[operator]
    beside = model._beside(memory)  # type: ignore[operator]
    patches = {i: _patches_of(model, memory, i, beside[i]) for i in chosen}
    texts: dict[int, str] = {}
    lengths = {i: patches[i].tokens for i in chosen}
    for batch in _by_length(chosen, lengths, batch_size):
        forced = _Forced(
            [lengths[i] for i in batch], [patches[i].forced for i in batch], _end(model)
        )
        output = _write(model, memory, batch, beside, forced)
        for i, ids in zip(batch, output, strict=True):
            exact = memory.checks[i].exact
            decoded = processor.decode(ids[: lengths[i]])
            try:
                texts[i] = checked_text(
                    exact, apply_edits(decoded, patches[i].edits), f"text of segment {i}"
                )
            except ValueError as error:
                raise ValueError(
                    f"segment {i} does not come back as it was compressed: patches are made for "
                    "one decoder, converter, precision and kind of machine, and here the decoder "
                    f"writes something else (decoder in {model._need_decoder().dtype}, slots in "  # type: ignore[operator]
                    f"{memory.dtype}). Read it where and as it was written; "
                    "reconstruct(memory) without exact=True gives what is left, errors included."
                ) from error
    return [texts[i] for i in chosen]


def _patches_of(model: "PreTrainedModel", memory: Memory, i: int, beside: Sequence[int]) -> Patches:
    """The patches of segment `i`, which a stranger may have made.

    Raises:
        ValueError: more than this decoder would write, or tokens that it does not have.
    """
    segment, config = memory.segments[i], model.config
    decoder = model._need_decoder()  # type: ignore[operator]
    row = reading_row(model._need_processor(), i, [], beside)  # type: ignore[operator]
    slots = [one.slots for one in memory.segments]
    room = max_positions(decoder.config)
    most = LONG * config.segment_length
    if room is not None:
        most = min(most, room - row_length(row, slots, config.markers, config.vectors_per_slot))
    patches = read_patches(memory.checks[i].exact, most, segment.end - segment.start)
    vocabulary = decoder.config.get_text_config().vocab_size
    if max(patches.forced.values(), default=0) >= vocabulary:
        raise ValueError(
            f"the patches of segment {i} force a token beyond the decoder's {vocabulary}; they "
            "were made for another decoder, or altered."
        )
    return patches


def _write(
    model: "PreTrainedModel",
    memory: Memory,
    batch: Sequence[int],
    beside: Sequence[Sequence[int]],
    forced: _Forced,
) -> list[list[int]]:
    """Token ids that the decoder writes for segments, with the forced ones."""
    processor = model._need_processor()  # type: ignore[operator]
    rows = [reading_row(processor, i, [], beside[i]) for i in batch]
    given: dict[str, Any] = {
        "max_new_tokens": max(forced.lengths),
        "do_sample": False,
        "num_beams": 1,
        "logits_processor": LogitsProcessorList([forced]),
    }
    kwargs = model._generation_defaults(rows, memory, given)  # type: ignore[operator]
    decoder = model._need_decoder()  # type: ignore[operator]
    return model._generate_rows(decoder, rows, memory, kwargs).tolist()  # type: ignore[operator]


def _by_length(chosen: Sequence[int], lengths, batch_size: int = BATCH) -> list[list[int]]:
    order = sorted(chosen, key=lambda i: lengths[i])
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]


def _margin(model: "PreTrainedModel") -> float:
    return MARGINS.get(model._need_decoder().dtype, max(MARGINS.values()))  # type: ignore[operator]


def _ends(model: "PreTrainedModel") -> set[int]:
    """Tokens that end a text that the decoder writes."""
    own = model._need_decoder().generation_config.eos_token_id  # type: ignore[operator]
    named = [] if own is None else own if isinstance(own, (list, tuple)) else [own]
    return {*named, *model._need_processor().eos_ids}  # type: ignore[operator]


def _end(model: "PreTrainedModel") -> int:
    ends = _ends(model)
    return min(ends) if ends else model._need_processor().pad_id  # type: ignore[operator]
