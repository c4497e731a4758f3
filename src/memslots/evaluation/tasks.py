"""The papers' tasks on any compressor: reconstruction, completion, QA, in-context learning, roles.

Each task takes rows of `memslots.data`'s schema and returns records, one a condition and metric::

    {"task", "data", "condition", "rate", "length", "metric", "value", "low", "high", "n",
     "positions"}

`length` is the input's length in decoder tokens where a table has several. Intervals are bootstrap
intervals over the samples. Generation is greedy (PCC, section 3.1.2).
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from transformers import PreTrainedModel

from memslots.data.demonstrations import demonstration_context
from memslots.data.schema import QuestionRow, TextRow
from memslots.evaluation.answering import (
    compare_segments,
    memories_at_rates,
    processor_of,
    reconstruct_segments,
)
from memslots.evaluation.conditions import BASELINES, Condition, conditions
from memslots.evaluation.intervals import with_interval
from memslots.evaluation.likelihood import TargetLoss, target_losses
from memslots.evaluation.metrics import (
    bleu_counts,
    bleu_of_counts,
    exact_match,
    rouge_l,
    squad_scores,
)
from memslots.modeling import MemslotsModel
from memslots.modeling.layout_memslots import Prompt

Record = dict[str, Any]


def reconstruction(
    model: MemslotsModel,
    rows: Sequence[TextRow | QuestionRow],
    rates: Sequence[int],
    data: str = "",
) -> list[Record]:
    """The texts read back from their slots, free-running (PCC, section 3.2, figure 2).

    Args:
        model: the compressor with its decoder.
        rows: texts, or questions' contexts; every segment of each is a sample.
        rates: encoder tokens per slot.
        data: name of the set, for the records.
    """
    texts = [_text_of(row) for row in rows]
    records = []
    for rate, memory in memories_at_rates(model, texts, rates).items():
        produced = reconstruct_segments(model, memory)
        segments = compare_segments(model, memory, texts, produced)
        pairs = [
            (text, texts[segment.text][segment.start : segment.end])
            for text, segment in zip(produced, memory.segments, strict=True)
        ]
        positions = sum(model.memory_positions(memory)) / len(memory)
        condition = Condition("memory", rate, [None] * len(texts), memory, positions)
        metrics: dict[str, dict] = {
            "bleu": with_interval(
                [bleu_counts(*pair) for pair in pairs], bleu_of_counts, resamples=200
            ),
            "rouge_l": with_interval([rouge_l(*pair) for pair in pairs]),
            "tokens_right": with_interval(segments, partial(_share, "right")),
            "exact": with_interval([float(segment["exact"]) for segment in segments]),
        }
        records += [
            _of(condition, "reconstruction", data, metric, scored)
            for metric, scored in metrics.items()
        ]
    return records


def _text_of(row: TextRow | QuestionRow) -> str:
    fields: dict[str, Any] = dict(row)
    return fields["text"] if "text" in fields else fields["context"]


def completion(
    model: MemslotsModel,
    rows: Sequence[TextRow],
    rates: Sequence[int],
    lengths: Sequence[int] = (512, 1024, 2048, 4096),
    data: str = "",
) -> list[Record]:
    """Perplexity of an input's second half (PCC, table A1 and section A.2).

    The first half is left out ("none"), read in full ("full"), or compressed ("memory").

    Args:
        model: the compressor with its decoder.
        rows: texts; those shorter than a length are not used for it.
        rates: encoder tokens per slot.
        lengths: decoder tokens of the inputs.
        data: name of the set, for the records.

    Raises:
        ValueError: no text is as long as the shortest length.
    """
    processor = processor_of(model)
    encoded = [processor.decoder_text.encode(row["text"]) for row in rows]
    if not any(len(ids) >= min(lengths) for ids in encoded):
        raise ValueError(
            f"completion needs texts of at least {min(lengths)} decoder tokens; the longest of "
            f"{len(encoded)} has {max(map(len, encoded))}. Give longer texts or shorter lengths."
        )
    records = []
    for length in lengths:
        used = [ids[:length] for ids in encoded if len(ids) >= length]
        if not used:
            continue
        half = length // 2
        contexts = [processor.decode(ids[:half], skip_special_tokens=False) for ids in used]
        targets = [ids[half:] for ids in used]
        for condition in conditions(model, contexts, rates, ("full", "none")):
            before = [
                Prompt([*processor.bos_ids, *(ids[:half] if condition.name == "full" else [])])
                for ids in used
            ]
            losses = target_losses(model, before, targets, condition.memory, given=1)
            records.append(
                _of(condition, "completion", data, "perplexity", _perplexity(losses), length)
            )
    return records


def question_answering(
    model: MemslotsModel,
    rows: Sequence[QuestionRow],
    rates: Sequence[int],
    baselines: Sequence[str] = BASELINES,
    max_new_tokens: int = 30,
    data: str = "",
) -> list[Record]:
    """SQuAD's F1 and exact match, the best over the accepted answers (PCC, tables 2 and 5).

    Args:
        model: the compressor with its decoder.
        rows: with contexts.
        rates: encoder tokens per slot.
        baselines: see `conditions`.
        max_new_tokens: longest answer (30 in the published code).
        data: name of the set, for the records.
    """
    questions = [row["question"] for row in rows]
    records = []
    for condition in conditions(model, [row["context"] for row in rows], rates, baselines):
        answers = condition.answers(model, questions, max_new_tokens)
        scores = [squad_scores(a, row["answers"]) for a, row in zip(answers, rows, strict=True)]
        for metric in ("f1", "exact_match"):
            scored = with_interval([score[metric] for score in scores])
            records.append(_of(condition, "qa", data, metric, scored))
    return records


def in_context_learning(
    model: MemslotsModel,
    rows: Sequence[QuestionRow],
    demonstrations: Sequence[QuestionRow],
    rates: Sequence[int],
    lengths: Sequence[int] = (150, 750),
    baselines: Sequence[str] = ("full",),
    max_new_tokens: int = 300,
    seed: int = 0,
    data: str = "",
) -> list[Record]:
    """Accuracy with demonstrations in the context, compressed or not, and without (PCC, table 3).

    Rows whose labels are few words (SST-2, WSC) are decided by the options' likelihood, each less
    its likelihood after the question "N/A", as the published code calibrates; others (GSM8K) by the
    last number of a generated solution.

    Args:
        model: the compressor with its decoder.
        rows: to answer.
        demonstrations: rows to draw the contexts from.
        rates: encoder tokens per slot.
        lengths: decoder tokens of the contexts.
        baselines: see `conditions`; zero-shot is always measured.
        max_new_tokens: longest generated solution.
        seed: draws the demonstrations.
        data: name of the set, for the records.
    """
    encode = processor_of(model).decoder_text.encode
    questions = [row["question"] for row in rows]
    labels = [row.get("label", row["answer"]) for row in rows]
    options = sorted({row["answer"] for row in demonstrations})
    decide: Callable[[Condition], list[str]]
    if len(options) <= 10:
        decide = partial(_by_likelihood, model, questions, options)
    else:
        decide = partial(_by_number, model, questions, max_new_tokens)
    records = []
    for length in (0, *lengths):
        if length:
            contexts = [
                demonstration_context(
                    demonstrations,
                    length,
                    lambda text: len(encode(text)),
                    random.Random(f"icl-{seed}-{length}-{i}"),
                    leave_out=row["id"],
                )
                for i, row in enumerate(rows)
            ]
            compared = conditions(model, contexts, rates, baselines)
        else:
            compared = [Condition("none", None, [None] * len(rows), None, 0.0)]
        for condition in compared:
            decided = decide(condition)
            right = [float(exact_match(a, b)) for a, b in zip(decided, labels, strict=True)]
            scored = with_interval(right)
            records.append(_of(condition, "icl", data, "accuracy", scored, length))
    return records


def role_play(
    model: MemslotsModel,
    rows: Sequence[QuestionRow],
    rates: Sequence[int],
    lengths: Sequence[int] = (750, 1500),
    data: str = "",
    finetuned: PreTrainedModel | None = None,
) -> list[Record]:
    """Perplexity of a character's reply, with and without the dialogue before it (PCC, table 4).

    Args:
        model: the compressor with its decoder.
        rows: dialogues; the context's last tokens are used.
        rates: encoder tokens per slot.
        lengths: most decoder tokens of the contexts.
        data: name of the set, for the records.
        finetuned: a decoder of the same vocabulary, fine-tuned on such dialogues as plain text; it
            reads the full text beside the frozen one.

    Raises:
        ValueError: a fine-tuned decoder of another width or vocabulary.
    """
    processor = processor_of(model)
    questions = [row["question"] for row in rows]
    targets = [processor.answer_ids(row["answer"]) for row in rows]
    records = []
    for length in lengths:
        contexts = [
            processor.decode(
                processor.decoder_text.encode(row["context"])[-length:], skip_special_tokens=False
            )
            for row in rows
        ]
        for condition in conditions(model, contexts, rates, ("full", "none")):
            losses = target_losses(
                model, condition.prompts(model, questions), targets, condition.memory
            )
            scored = _perplexity(losses)
            records.append(_of(condition, "roleplay", data, "perplexity", scored, length))
            if condition.name == "full" and finetuned is not None:
                with _decoder(model, finetuned):
                    losses = target_losses(model, condition.prompts(model, questions), targets)
                tuned = replace(condition, name="finetuned")
                scored = _perplexity(losses)
                records.append(_of(tuned, "roleplay", data, "perplexity", scored, length))
    return records


@contextmanager
def _decoder(model: MemslotsModel, other: PreTrainedModel) -> Iterator[None]:
    """The model reads by another decoder."""
    own = model.decoder
    model.attach_decoder(other)
    try:
        yield
    finally:
        model.decoder = own


def _by_likelihood(
    model: MemslotsModel, questions: list[str], options: list[str], condition: Condition
) -> list[str]:
    scores: list[list[float]] = []
    ids = [processor_of(model).answer_ids(option) for option in options]
    for target in ids:
        score = partial(target_losses, model, targets=[target] * len(questions))
        asked = score(condition.prompts(model, questions), memory=condition.memory)
        empty = condition.prompts(model, ["N/A"] * len(questions))
        neutral = score(empty, memory=condition.memory)
        scores.append(
            [a.nll / a.tokens - b.nll / b.tokens for a, b in zip(asked, neutral, strict=True)]
        )
    best = [
        min(range(len(options)), key=column.__getitem__) for column in zip(*scores, strict=True)
    ]
    return [options[i] for i in best]


def _by_number(
    model: MemslotsModel, questions: list[str], max_new_tokens: int, condition: Condition
) -> list[str]:
    answers = condition.answers(model, questions, max_new_tokens)
    return [_last_number(answer) for answer in answers]


def _last_number(text: str) -> str:
    found = re.findall(r"-?\d[\d,]*\.?\d*", text)
    return found[-1].replace(",", "").rstrip(".") if found else ""


def _perplexity(losses: Sequence[TargetLoss]) -> dict:
    """E to the mean loss a token over all targets, with its interval over the targets."""

    def of(some: Sequence[TargetLoss]) -> float:
        tokens = sum(loss.tokens for loss in some)
        return math.exp(sum(loss.nll for loss in some) / tokens) if tokens else math.nan

    return with_interval(losses, of)


def _share(key: str, segments: Sequence[dict]) -> float:
    right = sum(sum(segment[key]) for segment in segments)
    return right / sum(len(segment[key]) for segment in segments)


def _of(
    condition: Condition, task: str, data: str, metric: str, scored: dict, length: int | None = None
) -> Record:
    return {
        "task": task,
        "data": data,
        "condition": condition.name,
        "rate": condition.rate,
        "length": length,
        "metric": metric,
        **scored,
        "positions": round(condition.positions, 1),
    }
