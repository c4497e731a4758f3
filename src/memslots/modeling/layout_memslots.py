"""How decoder rows are laid out: `[BOS] (<MEM> slots literals </MEM>) x n  [<AE>]  tokens`.

One pure function makes the rows for training, generation and serving. A row is two integer rows of
equal length: `input_ids`, the decoder's tokens, and `memory_ids`, which is 0 where a token stands
and otherwise names the learned or encoded vector that takes its place.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

MEM, MEM_END, AE, FIRST_SLOT = 1, 2, 3, 4
"""Values of `memory_ids`: the three markers, and the first slot of the batch."""

IGNORE = -100

RECONSTRUCTION, COMPLETION, ANSWER = 0, 1, 2
"""Tasks of a row: text reconstruction (PCC, eq. 4), completion (eq. 3), supervised answers."""

TASKS = ("reconstruction", "completion", "answer")


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
        given: how many tokens of `target` are input only.
        predicted: for each token of `target` whether it is predicted, where input and targets take
            turns (several questions in one row); None predicts all after `given`.
        task: RECONSTRUCTION, COMPLETION or ANSWER.
        literals: decoder tokens of the literals of each of `segments`, which follow its slots;
            empty where no segment has any (see `literals_memslots`). Of a segment without slots:
            its text, which stands there without markers.
    """

    segments: list[int]
    prompt: Prompt
    target: list[int] = field(default_factory=list)
    given: int = 0
    task: int = ANSWER
    predicted: list[bool] | None = None
    literals: list[list[int]] = field(default_factory=list)

    @property
    def n_targets(self) -> int:
        """Tokens of `target` that are predicted."""
        if self.predicted is not None:
            return sum(self.predicted)
        return max(0, len(self.target) - self.given)

    def target_labels(self) -> list[int]:
        """Labels of `target`: its tokens where they are predicted, else `IGNORE`."""
        predicted = self.predicted or [i >= self.given for i in range(len(self.target))]
        return [
            token if wanted else IGNORE
            for token, wanted in zip(self.target, predicted, strict=True)
        ]


def pair(n_contexts: int, n_questions: int) -> list[tuple[int, int]]:
    """Which context each answer reads: n with n pair, 1 with n and n with 1 broadcast.

    Raises:
        ValueError: any other pair of lengths.
    """
    if n_contexts == n_questions:
        return [(i, i) for i in range(n_contexts)]
    if n_contexts == 1:
        return [(0, i) for i in range(n_questions)]
    if n_questions == 1:
        return [(i, 0) for i in range(n_contexts)]
    raise ValueError(
        f"{n_contexts} contexts and {n_questions} questions do not go together: give equally many "
        "of both, or one of either."
    )


def row_length(row: Row, segment_slots: list[int], markers: str, vectors_per_slot: int = 1) -> int:
    """Decoder positions that a row takes; arguments as in `lay_out`."""
    with_slots = sum(segment_slots[i] > 0 for i in row.segments)
    pairs = {"segment": with_slots, "memory": min(1, with_slots), "none": 0}[markers]
    return (
        len(row.prompt.before)
        + vectors_per_slot * sum(segment_slots[i] for i in row.segments)
        + sum(map(len, row.literals))
        + 2 * pairs
        + (row.task == RECONSTRUCTION)
        + len(row.prompt.after)
        + len(row.target)
    )


def spread_places(count: int) -> list[float]:
    """Places of spread memory tokens in their segment, above 0 and up to 1, its end.

    The van der Corput sequence, counted from the end: any first k places lie evenly, so no rate is
    favoured, and each ends a stretch of text that no other slot is nearer to.
    """
    return [1 - int(f"{i:032b}"[::-1], 2) / 2**32 for i in range(count)]


def lay_out(
    rows: list[Row],
    segment_slots: list[int],
    pad_id: int,
    markers: str = "segment",
    padding_side: str = "left",
    spread: bool = False,
    vectors_per_slot: int = 1,
) -> dict[str, torch.Tensor]:
    """The tensors of a batch of rows.

    Args:
        rows: the rows.
        segment_slots: slots of every segment of the batch.
        pad_id: any token id, masked.
        markers: whether `<MEM>` and `</MEM>` stand around each "segment", once around the whole
            "memory" that a row reads, or not at all ("none").
        padding_side: "left" (generation; targets end together) or "right".
        spread: whether memory tokens were spread over their segment; the decoder then reads its
            slots in the order of the text, though they are kept with the coarsest rate's first.
        vectors_per_slot: decoder positions of a slot.

    Returns:
        `input_ids`, `attention_mask`, `memory_ids` and `labels`, each `(rows, length)`, and
        `task_ids` `(rows,)`.
    """
    first_slot = [FIRST_SLOT]
    for slots in segment_slots:
        first_slot.append(first_slot[-1] + slots * vectors_per_slot)
    ids, memory, labels = [], [], []
    for row in rows:
        wrapped: list[int] = []
        wrapped_ids: list[int] = []
        literals = row.literals or [[]] * len(row.segments)
        for i, literal in zip(row.segments, literals, strict=True):
            own = list(range(first_slot[i], first_slot[i + 1]))
            if spread:
                places = spread_places(len(own))
                own = [own[j] for j in sorted(range(len(own)), key=places.__getitem__)]
            own += [0] * len(literal)
            filler = [pad_id] * (len(own) - len(literal))
            marked = markers == "segment" and bool(filler)  # without slots, it is plain text
            wrapped += [MEM, *own, MEM_END] if marked else own
            wrapped_ids += [pad_id, *filler, *literal, pad_id] if marked else [*filler, *literal]
        if markers == "memory" and any(memory_id >= FIRST_SLOT for memory_id in wrapped):
            wrapped = [MEM, *wrapped, MEM_END]
            wrapped_ids = [pad_id, *wrapped_ids, pad_id]
        if row.task == RECONSTRUCTION:
            wrapped.append(AE)
            wrapped_ids.append(pad_id)
        before, after, target = row.prompt.before, row.prompt.after, row.target
        ids.append([*before, *wrapped_ids, *after, *target])
        memory.append([*[0] * len(before), *wrapped, *[0] * (len(after) + len(target))])
        prompted = len(before) + len(wrapped) + len(after)
        labels.append([*[IGNORE] * prompted, *row.target_labels()])
    length = max(len(row) for row in ids)

    def pad(values: list[list[int]], filler: int) -> torch.Tensor:
        if padding_side == "left":
            return torch.tensor([[filler] * (length - len(row)) + row for row in values])
        return torch.tensor([row + [filler] * (length - len(row)) for row in values])

    return {
        "input_ids": pad(ids, pad_id),
        "attention_mask": pad([[1] * len(row) for row in ids], 0),
        "memory_ids": pad(memory, 0),
        "labels": pad(labels, IGNORE),
        "task_ids": torch.tensor([row.task for row in rows]),
    }


def token_batches(lengths: list[int], slots: list[int], batch_tokens: int) -> Iterator[list[int]]:
    """Indices of segments, longest first, in batches of at most `batch_tokens` padded tokens."""
    order = sorted(range(len(lengths)), key=lambda i: -(lengths[i] + slots[i]))
    batch: list[int] = []
    for i in order:
        longest = lengths[batch[0]] + slots[batch[0]] if batch else 0
        if batch and longest * (len(batch) + 1) > batch_tokens:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch
