"""Fidelity: which tokens of a segment the decoder gets back from its slots.

Teacher-forced: slots, `<AE>` and the segment's own tokens go through the frozen decoder once, and
wherever its argmax is not the next token, that token would be lost. Free-running: the decoder
writes the segment, and what it writes is aligned with the truth.
"""

from collections.abc import Iterable, Sequence
from difflib import SequenceMatcher
from typing import NamedTuple

import torch
from tqdm.auto import tqdm

from memslots.modeling import Memory, MemslotsModel, MemslotsProcessor
from memslots.modeling.decoders_memslots import decoder_logits
from memslots.modeling.layout_memslots import Row, max_positions, reading_row

LOGITS = 2**27
"""Most numbers of logits at once (0.5 GB in float32)."""

BATCH_TOKENS = 16384
"""Most decoder tokens at once, padding included."""

LONG = 8
"""A segment of more decoder tokens than this many times `segment_length` is not asked for: no
decoder was trained to read that much back."""

Places = list[tuple[int, int]]


class Reading(NamedTuple):
    """A segment's text as the decoder's tokenizer reads it.

    Args:
        text: the segment's.
        ids: decoder tokens.
        places: characters `(start, end)` of each, counted from the segment's start.
    """

    text: str
    ids: list[int]
    places: Places


def read(processor: MemslotsProcessor, text: str) -> Reading:
    """The decoder's tokens of a segment's text."""
    ids, places = processor.decoder_text.encode_with_places(text)
    return Reading(text, ids, places)


@torch.no_grad()
def teacher_forced(
    model: MemslotsModel,
    memory: Memory | None,
    readings: Sequence[Reading],
    beside: Sequence[Sequence[int]],
    progress: bool | None = None,
) -> list[list[bool]]:
    """Whether each token of each segment is the decoder's argmax after those before it.

    Args:
        model: a `MemslotsModel` with its decoder.
        memory: whose segments are read; None asks what the decoder guesses without any.
        readings: of each segment.
        beside: each segment's verbatim tokens.
        progress: as for `model.compress`.

    Returns:
        A list per segment, a bool per decoder token; all False if a segment is too long to read.
    """
    processor, decoder = model.processor, model.decoder
    slots = [] if memory is None else [segment.slots for segment in memory.segments]
    rows = [
        reading_row(i if memory is not None else None, processor.bos_ids, reading.ids, literal_ids)
        for i, (reading, literal_ids) in enumerate(zip(readings, beside, strict=True))
    ]
    right = [[False] * len(reading.ids) for reading in readings]
    lengths = [processor.row_length(row, slots) for row in rows]
    most = max_positions(decoder.config)
    longest = LONG * model.config.segment_length
    asked = [
        i
        for i, row in enumerate(rows)
        if 0 < len(row.target) <= longest and (most is None or lengths[i] <= most)
    ]
    vocabulary = decoder.config.get_text_config().vocab_size
    for batch in in_view("checking", _batches(asked, rows, lengths, vocabulary), progress):
        inputs = model.row_inputs([rows[i] for i in batch], memory)
        n_targets = max(len(rows[i].target) for i in batch)  # they end together, at the right
        start = inputs["inputs_embeds"].shape[1] - n_targets - 1
        logits = decoder_logits(
            model,
            inputs["inputs_embeds"],
            inputs["attention_mask"],
            start,
            inputs.get("per_layer_inputs"),
        )
        hits = (logits[:, :-1].argmax(dim=-1) == inputs["labels"][:, start + 1 :]).tolist()
        for i, row_hits in zip(batch, hits, strict=True):
            right[i] = row_hits[n_targets - len(rows[i].target) :]
    return [
        _without_unknown(processor, reading, hits)
        for reading, hits in zip(readings, right, strict=True)
    ]


def free_running(
    model: MemslotsModel,
    memory: Memory,
    readings: Sequence[Reading],
    beside: Sequence[Sequence[int]],
    chosen: Sequence[int],
    batch_size: int = 32,
    progress: bool | None = None,
) -> list[list[bool]]:
    """Whether each token of the `chosen` segments is in what the decoder writes, aligned.

    Args:
        model: a `MemslotsModel` with its decoder.
        memory: whose segments are read.
        readings: of each segment.
        beside: each segment's verbatim tokens.
        chosen: indices of segments.
        batch_size: segments that are written at once.
        progress: as for `model.compress`.

    Returns:
        A list for each of `chosen`, a bool per decoder token; tokens next to one that is not
        recovered may be counted as lost too.
    """
    processor = model.processor
    control = set(processor.eos_ids) | processor.decoder_text.control_ids
    right: dict[int, list[bool]] = {}
    order = sorted(chosen, key=lambda i: len(readings[i].ids))
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    for batch in in_view("writing back", batches, progress):
        rows = [reading_row(i, processor.bos_ids, [], beside[i]) for i in batch]
        most = max(len(readings[i].ids) for i in batch)
        kwargs = {"max_new_tokens": most + 8, "do_sample": False, "num_beams": 1}
        output = model.generate_rows(rows, memory, kwargs)
        for i, ids in zip(batch, output.tolist(), strict=True):
            end = next((n for n, token in enumerate(ids) if token in control), len(ids))
            right[i] = aligned(readings[i].ids, ids[: min(end, len(readings[i].ids) + 8)])
    return [right[i] for i in chosen]


def in_view(
    label: str, batches: Sequence[Sequence[int]], progress: bool | None
) -> Iterable[Sequence[int]]:
    """The batches, with a bar and the time left; `progress` is as for `model.compress`."""
    show = len(batches) > 20 if progress is None else progress
    return tqdm(batches, desc=label, unit="batch", disable=not show)


def aligned(truth: Sequence[int], produced: Sequence[int]) -> list[bool]:
    """Which of `truth` stand in `produced`, in order."""
    if list(truth) == list(produced):
        return [True] * len(truth)
    right = [False] * len(truth)
    matcher = SequenceMatcher(None, truth, produced, autojunk=False)
    for block in matcher.get_matching_blocks():
        right[block.a : block.a + block.size] = [True] * block.size
    return right


def lost_places(reading: Reading, right: Sequence[bool], held: Places) -> Places:
    """Characters of the tokens that are not right, and not within what is kept verbatim."""
    return [
        place
        for place, ok in zip(reading.places, right, strict=True)
        if not ok and not _inside(reading.text, place, held)
    ]


def _inside(text: str, place: tuple[int, int], held: Places) -> bool:
    start, end = place
    while start < end and text[start].isspace():  # a token takes the space before its word
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    return start < end and any(a <= start and end <= b for a, b in held)


def _without_unknown(
    processor: MemslotsProcessor, reading: Reading, right: list[bool]
) -> list[bool]:
    unknown = processor.decoder_text.unk_id
    if unknown is None or unknown not in reading.ids:
        return right
    return [ok and token != unknown for ok, token in zip(right, reading.ids, strict=True)]


def _batches(
    order: Sequence[int], rows: Sequence[Row], lengths: Sequence[int], vocabulary: int
) -> list[list[int]]:
    """Rows of like length, of bounded tokens and logits."""
    batches: list[list[int]] = []
    for i in sorted(order, key=lambda i: (len(rows[i].target), lengths[i])):
        if batches:
            batch = [*batches[-1], i]
            positions = max(lengths[j] for j in batch) * len(batch)
            logits = max(len(rows[j].target) + 1 for j in batch) * len(batch) * vocabulary
            if positions <= BATCH_TOKENS and logits <= LOGITS:
                batches[-1] = batch
                continue
        batches.append([i])
    return batches
