"""How decoder rows are laid out: `[BOS] (<MEM> slots literals </MEM>) x n  [<AE>]  tokens`.

The same functions make the rows for training, generation and serving. A row is two integer rows of
equal length: `input_ids`, the decoder's tokens, and `memory_ids`, which is 0 if a token stands
and otherwise names the learned or encoded vector that takes its place.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import torch

from .encoders_memslots import spread_places
from .memory_memslots import Memory, slots_for

MEM, MEM_END, AE, FIRST_SLOT = 1, 2, 3, 4
"""Values of `memory_ids`: the three markers, and the first slot of the batch."""

IGNORE = -100

RECONSTRUCTION, COMPLETION, ANSWER = 0, 1, 2
"""Tasks of a row: text reconstruction (PCC, eq. 4), completion (eq. 3), supervised answers."""

TASKS = ("reconstruction", "completion", "answer")

CONTEXT_END = "\n\n"
"""What parts a context that the decoder reads as text from what follows it."""

Encode = Callable[[str], list[int]]
"""From a text to decoder tokens, as `PlainText.encode`."""


@dataclass
class Prompt:
    """Decoder tokens before and after the memory."""

    before: list[int] = field(default_factory=list)
    after: list[int] = field(default_factory=list)


@dataclass
class Row:
    """One decoder sequence.

    Args:
        segments: indices of the segments that it reads, in order.
        prompt: tokens around the memory.
        target: tokens to predict after the prompt; empty for generation.
        input_only: how many tokens of `target` are read and not predicted.
        predicted: for each token of `target` whether it is predicted, where input and targets take
            turns (several questions in one row); None predicts all after these.
        task: RECONSTRUCTION, COMPLETION or ANSWER.
        literals: the verbatim tokens of each of `segments`, which follow its slots;
            empty if no segment has any (see `texts_memslots`). Of a segment without slots:
            its text, which stands there without markers.
    """

    segments: list[int]
    prompt: Prompt
    target: list[int] = field(default_factory=list)
    input_only: int = 0
    task: int = ANSWER
    predicted: list[bool] | None = None
    literals: list[list[int]] = field(default_factory=list)

    @property
    def n_targets(self) -> int:
        """Tokens of `target` that are predicted."""
        if self.predicted is not None:
            return sum(self.predicted)
        return max(0, len(self.target) - self.input_only)

    def target_labels(self) -> list[int]:
        """Labels of `target`: its tokens where they are predicted, else `IGNORE`."""
        predicted = self.predicted or [i >= self.input_only for i in range(len(self.target))]
        pairs = zip(self.target, predicted, strict=True)
        return [token if counts else IGNORE for token, counts in pairs]


class LaidOut(NamedTuple):
    """A row, position by position."""

    input_ids: list[int]
    memory_ids: list[int]
    labels: list[int]


def lay_out_row(
    row: Row,
    slot_ids: Sequence[range],
    pad_id: int = 0,
    markers: str = "segment",
    spread: bool = False,
) -> LaidOut:
    """A row without padding; its length is the decoder tokens that it takes.

    Args:
        row: the row.
        slot_ids: the `memory_ids` of the slots of every segment of the batch.
        pad_id: any token id, masked.
        markers: as in `MemslotsConfig`.
        spread: whether memory tokens were spread over their segment; the decoder then reads its
            slots in the order of the text, though they are kept with the coarsest rate's first.
    """
    ids, vectors = list(row.prompt.before), [0] * len(row.prompt.before)

    def add(token_ids: Sequence[int], memory_ids: Sequence[int] | None = None) -> None:
        ids.extend(token_ids)
        vectors.extend([0] * len(token_ids) if memory_ids is None else memory_ids)

    whole = markers == "memory" and any(len(slot_ids[i]) for i in row.segments)
    if whole:
        add([pad_id], [MEM])
    for i, literal in zip(row.segments, row.literals or [[]] * len(row.segments), strict=True):
        slots = list(slot_ids[i])
        if spread:
            places = spread_places(len(slots))
            slots = [slots[j] for j in sorted(range(len(slots)), key=places.__getitem__)]
        marked = markers == "segment" and bool(slots)  # without slots, it is plain text
        if marked:
            add([pad_id], [MEM])
        add([pad_id] * len(slots), slots)
        add(literal)
        if marked:
            add([pad_id], [MEM_END])
    if whole:
        add([pad_id], [MEM_END])
    if row.task == RECONSTRUCTION:
        add([pad_id], [AE])
    add(row.prompt.after)
    labels = [IGNORE] * len(ids) + row.target_labels()
    add(row.target)
    return LaidOut(ids, vectors, labels)


def lay_out(
    rows: Sequence[Row],
    segment_slots: Sequence[int],
    pad_id: int,
    markers: str = "segment",
    padding_side: str = "left",
    spread: bool = False,
) -> dict[str, torch.Tensor]:
    """The tensors of a batch of rows, of which every segment has so many slots.

    Returns:
        `input_ids`, `attention_mask`, `memory_ids` and `labels`, each `(rows, length)`, and
        `task_ids` `(rows,)`.
    """
    slot_ids = slot_ranges(segment_slots)
    laid_out = [lay_out_row(row, slot_ids, pad_id, markers, spread) for row in rows]
    length = max(len(row.input_ids) for row in laid_out)

    def pad(values: Sequence[list[int]], filler: int) -> torch.Tensor:
        if padding_side == "left":
            return torch.tensor([[filler] * (length - len(row)) + row for row in values])
        return torch.tensor([row + [filler] * (length - len(row)) for row in values])

    return {
        "input_ids": pad([row.input_ids for row in laid_out], pad_id),
        "attention_mask": pad([[1] * len(row.input_ids) for row in laid_out], 0),
        "memory_ids": pad([row.memory_ids for row in laid_out], 0),
        "labels": pad([row.labels for row in laid_out], IGNORE),
        "task_ids": torch.tensor([row.task for row in rows]),
    }


def slot_ranges(segment_slots: Sequence[int]) -> list[range]:
    """`memory_ids` of the slots of each segment of a batch."""
    ranges, first = [], FIRST_SLOT
    for slots in segment_slots:
        ranges.append(range(first, first + slots))
        first += slots
    return ranges


def pair(n_contexts: int, n_questions: int) -> list[tuple[int, int]]:
    """Which context each answer reads: n with n pair, 1 with n and n with 1 broadcast.

    Raises:
        ValueError: any other pair of lengths.
    """
    if 0 < n_contexts == n_questions:
        return [(i, i) for i in range(n_contexts)]
    if n_contexts == 1:
        return [(0, i) for i in range(n_questions)]
    if n_questions == 1 and n_contexts:
        return [(i, 0) for i in range(n_contexts)]
    raise ValueError(
        f"{n_contexts} contexts and {n_questions} questions do not go together: give equally many "
        "of both, or a single one of either."
    )


def reading_row(
    segment: int | None, before: list[int], ids: Sequence[int], beside: Sequence[int]
) -> Row:
    """A row that reads back a segment, or none; `beside` are its verbatim tokens."""
    return Row(
        [] if segment is None else [segment],
        Prompt(before),
        list(ids),
        task=RECONSTRUCTION,
        literals=[list(beside)] if beside and segment is not None else [],
    )


def literal_ids(literals: Sequence[Sequence], encode: Encode) -> list[list[int]]:
    """The verbatim tokens of each segment (user text: never a control token)."""
    return [[id_ for literal in held for id_ in encode(f" {literal.text}")] for held in literals]


def beside_slots(memory: Memory, encode: Encode) -> list[list[int]]:
    """The verbatim tokens of each segment, after its text if that is read as text."""
    beside = literal_ids([segment.literals for segment in memory.segments], encode)
    for i, text in enumerate(memory.segment_texts):
        if text is not None:
            beside[i] = encode(text) + beside[i]
    return beside


def memory_rows(memory: Memory, asked: Sequence[tuple[int, Prompt]], encode: Encode) -> list[Row]:
    """A row, without a target, for each index of a document and prompt about it."""
    beside, texts = beside_slots(memory, encode), memory.segment_texts
    places: list[range] = []
    for document in memory.documents:
        start = places[-1].stop if places else 0
        for i, (segment, following) in enumerate(pairwise(document), start):
            if segment.text != following.text and texts[i] and texts[i + 1]:
                beside[i] = beside[i] + encode(CONTEXT_END)
        places.append(range(start, start + len(document)))
    rows = []
    for i, prompt in asked:
        place = places[i]
        if prompt.after and place and texts[place[-1]] is not None:  # as after a full text
            prompt = Prompt(prompt.before, encode(CONTEXT_END) + prompt.after)
        literals = [beside[j] for j in place]
        rows.append(Row(list(place), prompt, literals=literals if any(literals) else []))
    return rows


def check_room(
    model,
    memory: Memory,
    rows: Sequence[Row],
    documents: Sequence[int],
    generate_kwargs: Mapping[str, Any],
) -> None:
    """Refuse rows longer than the decoder reads, and say what would fit.

    Raises:
        ValueError: a row is too long; `documents` are those of the rows, for the message.
    """
    limit = max_positions(model.decoder.config)
    if limit is None:
        return
    config = generate_kwargs.get("generation_config")
    told = generate_kwargs.get("max_new_tokens")
    new_tokens = told or (config and config.max_new_tokens) or 1
    length, rate = model.processor.row_length, memory.rate
    counts = [segment.slots for segment in memory.segments]
    for i, row in zip(documents, rows, strict=True):
        needed = length(row, counts) + new_tokens
        if needed <= limit:
            continue
        advice = "no rate of this checkpoint would fit, so split the context"
        sizes = list(zip(memory.segments, memory.segment_rates, strict=True))
        for coarser in model.config.compression_rates:
            slots = [slots_for(s.tokens, max(r, coarser) if r else 0) for s, r in sizes]
            if coarser > rate and length(row, slots) + new_tokens <= limit:
                advice = f"rate={coarser} would fit"
                break
        row_slots = sum(counts[j] for j in row.segments)
        exact = sum(map(len, row.literals))
        beside = f"{exact} verbatim tokens, " if exact else ""
        raise ValueError(
            f"context {i} has {row_slots} slots at rate {rate}; with markers, {beside}prompt and "
            f"{new_tokens} new tokens it takes {needed} tokens, and the decoder reads {limit}: "
            f"{max(0, row_slots + limit - needed)} slots fit; {advice}."
        )


def max_positions(config) -> int | None:
    """The most tokens that a model of this configuration reads, or None without a limit."""
    if config is None or isinstance(config, dict):
        return None
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    return positions if isinstance(positions, int) and positions > 0 else None
