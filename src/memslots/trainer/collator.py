"""From dataset rows to segments and decoder rows; which rate is read is decided at the step."""

import hashlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from memslots.modeling.layout_memslots import (
    ANSWER,
    COMPLETION,
    CONTEXT_END,
    RECONSTRUCTION,
    TASKS,
    Prompt,
    Row,
)
from memslots.modeling.memory_memslots import slots_for
from memslots.modeling.processing_memslots import MemslotsProcessor
from memslots.modeling.texts_memslots import Span, check_text
from memslots.trainer.compressor_config import CompressorConfig

logger = logging.getLogger(__name__)

_NOTHING_FOLLOWS = 64
"""Text rows in a row without anything to complete, after which that is said."""

TEXT_COLUMNS = ("text",)
QA_COLUMNS = ("context", "question", "answer")


def check_columns(columns: Sequence[str], name: str) -> None:
    """Refuse a dataset that neither pre-training nor fine-tuning can read.

    Raises:
        ValueError: it has neither `text` nor `context`, `question` and `answer`.
    """
    if not (set(TEXT_COLUMNS) <= set(columns) or set(QA_COLUMNS) <= set(columns)):
        raise ValueError(
            f"the {name} dataset has columns {sorted(columns)}; pre-training needs 'text', "
            "fine-tuning needs 'context', 'question' and 'answer'. Rename them."
        )


def what_is_wrong(row: Mapping[str, Any]) -> str | None:
    """Why a row cannot be trained on, its column named; None if it can."""
    if row.get("text") is not None or set(row).isdisjoint(QA_COLUMNS):
        text, until = row.get("text"), row.get("compress_until")
        if until is not None and (type(until) is not int or until < 1):
            return f"'compress_until' is {until!r}, not a number of characters (an integer)"
        return _wrong("text", text[:until] if isinstance(text, str) else text)
    for column in QA_COLUMNS:
        value = row.get(column)
        parts = value if isinstance(value, list) and column != "context" else [value]
        if not parts:
            return f"{column!r} is empty"
        for part in parts:
            if (wrong := _wrong(column, part)) is not None:
                return wrong
    questions, answers = row["question"], row["answer"]
    if isinstance(questions, str) != isinstance(answers, str):
        return "'question' and 'answer' must both be one text, or lists of equal length"
    if not isinstance(questions, str) and len(questions) != len(answers):
        return f"it has {len(questions)} questions and {len(answers)} answers"
    return None


def _wrong(column: str, value: object) -> str | None:
    if not isinstance(value, str):
        return f"{column!r} is {value!r}, not text"
    try:
        # An answer may be nothing.
        check_text(value + "." if column == "answer" else value, repr(column))
    except ValueError as error:
        return str(error).rstrip(".")
    return None


def check_rows(rows: Iterable[Mapping[str, Any]], name: str) -> None:
    """Refuse a dataset with a row whose columns cannot be trained on.

    Raises:
        ValueError: names the first such row and its column.
    """
    for number, row in enumerate(rows):
        wrong = what_is_wrong(row)
        if wrong is not None:
            raise ValueError(
                f"row {number} of the {name} dataset: {wrong}; correct it, or leave it out with "
                "dataset.filter(...)."
            )


@dataclass
class CompressorBatch:
    """Segments and decoder rows of a batch, before a rate is chosen.

    Args:
        tokens: encoder tokens of every segment.
        rows: decoder rows.
        teacher_rows: for each row of completion and answers the same row with the text in the
            memory's place, where the decoder is distilled from it; otherwise none.
    """

    tokens: list[int]
    rows: list[Row]
    teacher_rows: list[Row] = field(default_factory=list)

    def target_counts(self) -> torch.Tensor:
        """`(3,)` target tokens of reconstruction, completion and answers."""
        counts = [0] * len(TASKS)
        for row in self.rows:
            counts[row.task] += row.n_targets
        return torch.tensor(counts)

    def without(self, task: int) -> "CompressorBatch":
        """The same segments, without the rows of one task."""
        kept = [
            [row for row in rows if row.task != task] for rows in (self.rows, self.teacher_rows)
        ]
        return CompressorBatch(self.tokens, *kept)

    def slots(self, rate: int) -> list[int]:
        """Slots of every segment at `rate`."""
        return [slots_for(tokens, rate) for tokens in self.tokens]


class CompressorCollator:
    """Builds batches of `{"text"}` and `{"context", "question", "answer"}` rows.

    A text row's first `training_segments` segments are compressed and what follows is completed;
    where it says `compress_until`, its first so many characters are, however short.
    Both of a text row's tasks, and all of a context's questions, read one encoder pass.

    Args:
        processor: the compressor's processor.
        args: weights and lengths; a task of weight 0 makes no rows.
    """

    def __init__(self, processor: MemslotsProcessor, args: CompressorConfig):
        self.processor = processor
        self.args = args
        self._without_completion = 0

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """`segment_input_ids` and `segment_attention_mask` `(segments, tokens)`, and `batch`."""
        spans: list[Span] = []
        rows: list[Row] = []
        teachers: list[Row] = []
        for example in examples:
            first = len(rows)
            wrong = what_is_wrong(example)  # of a stream, no row is seen before
            if wrong is not None:
                raise ValueError(f"a row cannot be trained on: {wrong}.")
            text = example["context"] if example.get("text") is None else example["text"]
            try:
                if example.get("text") is not None:
                    self._add_text(text, example.get("compress_until"), spans, rows)
                else:
                    self._add_questions(example, spans, rows)
            except ValueError as error:
                raise ValueError(f"the row that begins {text[:60]!r}: {error}") from error
            if self.args.distillation_weight:
                teachers += self._teachers(text, spans, rows[first:])
        return {
            **self.processor.collate_segments(spans),
            "batch": CompressorBatch([len(span.ids) for span in spans], rows, teachers),
        }

    def check_lengths(
        self, rows: Iterable[Mapping[str, Any]], name: str, rate: int, limit: int
    ) -> None:
        """Refuse a dataset with a context that is longer than the decoder reads.

        Args:
            rows: without a row that `check_rows` refuses.
            name: of the dataset, for the message.
            rate: the finest that is trained.
            limit: tokens that the decoder reads.

        Raises:
            ValueError: names the first such row.
        """
        for number, row in enumerate(rows):
            # No token is less than a byte, and a prompt's template less than half of what is read.
            if row.get("text") is not None or len(repr(row).encode()) < limit // 2:
                continue
            batch: CompressorBatch = self([dict(row)])["batch"]
            slots = batch.slots(rate)
            laid_out = [*batch.rows, *batch.teacher_rows]
            longest = max(self.processor.row_length(each, slots) for each in laid_out)
            if longest > limit:
                raise ValueError(
                    f"row {number} of the {name} dataset (context {row['context'][:40]!r}...) "
                    f"takes {longest:,} tokens at rate {rate}, and the decoder reads {limit:,}: "
                    "split the context, leave the row out with dataset.filter(...), or train "
                    "coarser rates (training_rates)."
                )

    def _add_text(self, text: str, until: int | None, spans: list[Span], rows: list[Row]) -> None:
        text_spans = self.processor.segment(text[:until])[: self.args.training_segments]
        segments = list(range(len(spans), len(spans) + len(text_spans)))
        spans += text_spans
        literals = self._literals(text, text_spans)
        following = text[text_spans[-1].end :] if self.args.completion_weight > 0 else ""
        # Enough characters for the tokens wanted: no token of a BPE spans a whole sentence.
        limit = self.args.completion_length
        ids = self.processor.decoder_text.encode(following[: 16 * limit])[:limit]
        # The first token of the continuation, x_k, is given (PCC, eq. 3): one alone has no target.
        follows = len(ids) > 1
        self._say_if_nothing_follows(follows)
        # Without either task the batch would have no row; this one's weight is then 0.
        if self.args.completion_weight < 1 or not follows:
            self._add_reconstructions(text, text_spans, segments, literals, rows)
        if follows:
            rows.append(
                Row(segments, self._bos(), ids, input_only=1, task=COMPLETION, literals=literals)
            )

    def _add_questions(self, example: dict[str, Any], spans: list[Span], rows: list[Row]) -> None:
        context = example["context"]
        text_spans = self.processor.segment(context)
        segments = list(range(len(spans), len(spans) + len(text_spans)))
        spans += text_spans
        questions, answers = example["question"], example["answer"]
        if isinstance(questions, str):
            questions, answers = [questions], [answers]
        most = self.args.questions_per_context
        asked = [
            (self.processor.prompt(question=question), self.processor.answer_ids(answer))
            for question, answer in list(zip(questions, answers, strict=True))[:most]
        ]
        literals = self._literals(context, text_spans)
        if self.args.pack_questions:
            rows.append(self._pack(segments, asked, literals))
        else:
            rows += [
                Row(segments, prompt, ids, task=ANSWER, literals=literals) for prompt, ids in asked
            ]
        if _drawn(context) < self.args.reconstruction_share:
            self._add_reconstructions(context, text_spans, segments, literals, rows)

    def _teachers(self, text: str, spans: list[Span], rows: list[Row]) -> list[Row]:
        """Rows of completion and answers, with the text in place of its memory."""
        encode, teachers = self.processor.decoder_text.encode, []
        for row in rows:
            if row.task != RECONSTRUCTION:
                context = text[: spans[row.segments[-1]].end]
                if row.task == ANSWER:
                    context += CONTEXT_END
                before = [*row.prompt.before, *encode(context)]
                prompt = Prompt(before, row.prompt.after)
                teachers.append(replace(row, segments=[], prompt=prompt, literals=[]))
        return teachers

    def _say_if_nothing_follows(self, follows: bool) -> None:
        """Says once that lambda takes from reconstruction what completion never gets."""
        if self.args.completion_weight == 0 or self._without_completion >= _NOTHING_FOLLOWS:
            return
        self._without_completion = 0 if follows else self._without_completion + 1
        if self._without_completion == _NOTHING_FOLLOWS:
            logger.warning(
                "the first %d texts end where their segment does, so completion is not trained, "
                "and completion_weight=%g only lowers the weight of reconstruction: give texts "
                "longer than %d tokens, or set completion_weight=0",
                _NOTHING_FOLLOWS,
                self.args.completion_weight,
                self.args.training_segments * self.processor.segment_length,
            )

    def _literals(self, text: str, text_spans: list[Span]) -> list[list[int]]:
        if _drawn(text, "literals") >= self.args.literals_share:
            return []
        detectors = self.args.training_literals
        return self.processor.literal_ids(
            self.processor.segment_literals(text, text_spans, detectors)
        )

    def _pack(
        self,
        segments: list[int],
        asked: list[tuple[Prompt, list[int]]],
        literals: list[list[int]],
    ) -> Row:
        """One row of all questions, blank lines between: question, answer, question, answer, ..."""
        (prompt, target), *others = asked
        predicted = [True] * len(target)
        row = Row(
            segments, prompt, list(target), task=ANSWER, predicted=predicted, literals=literals
        )
        gap = self.processor.decoder_text.encode("\n\n")
        for other, ids in others:
            question = gap + other.after
            row.target += question + ids
            row.predicted = [*(row.predicted or []), *[False] * len(question), *[True] * len(ids)]
        return row

    def _add_reconstructions(
        self,
        text: str,
        text_spans: list[Span],
        segments: list[int],
        literals: list[list[int]],
        rows: list[Row],
    ) -> None:
        for i, (span, segment) in enumerate(zip(text_spans, segments, strict=True)):
            ids = self.processor.decoder_text.encode(text[span.start : span.end])
            target = ids + self.processor.eos_ids
            beside = literals[i : i + 1]
            rows.append(Row([segment], self._bos(), target, task=RECONSTRUCTION, literals=beside))

    def _bos(self) -> Prompt:
        return Prompt(self.processor.bos_ids)


def _drawn(text: str, purpose: str = "") -> float:
    """From 0 to 1, a function of the text: neither resuming nor accumulation changes it."""
    digest = hashlib.sha256((purpose + text).encode()).digest()
    return int.from_bytes(digest[:4], "big") / 2**32
