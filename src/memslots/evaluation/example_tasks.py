"""In-context learning and role play (PCC, tables 3 and 4), as records of `tasks`."""

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
from memslots.data.schema import QuestionRow
from memslots.evaluation.answering import processor_of
from memslots.evaluation.asking import Asking
from memslots.evaluation.conditions import BASELINES, Condition, conditions
from memslots.evaluation.intervals import with_interval
from memslots.evaluation.likelihood import TargetLoss, target_losses
from memslots.evaluation.metrics import exact_match
from memslots.modeling import MemslotsModel

Record = dict[str, Any]


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
    baselines: Sequence[str] = BASELINES,
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
        baselines: see `conditions`.

    Raises:
        ValueError: a fine-tuned decoder of another width or vocabulary.
    """
    processor = processor_of(model)
    questions = [row["question"] for row in rows]
    targets = _whole_answers(model, [row["answer"] for row in rows])
    records = []
    for length in lengths:
        contexts = [
            processor.decode(
                processor.decoder_text.encode(row["context"])[-length:], skip_special_tokens=False
            )
            for row in rows
        ]
        for condition in conditions(model, contexts, rates, baselines):
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
    trained_for, sample = model.decoder, model.config.decoder_fingerprint
    model.config.decoder_fingerprint = None  # it is meant to be another
    try:
        model.attach_decoder(other)
        yield
    finally:
        model.attach_decoder(trained_for)
        model.config.decoder_fingerprint = sample


def _by_likelihood(
    model: MemslotsModel, questions: list[str], options: list[str], condition: Condition
) -> list[str]:
    scores: list[list[float]] = []
    for target in _whole_answers(model, options):
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
    asking = replace(Asking.of(processor_of(model)), one_line=False)  # a solution has many
    answers = condition.answers(model, questions, max_new_tokens, asking)
    return [_last_number(answer) for answer in answers]


def _whole_answers(model: MemslotsModel, answers: Sequence[str]) -> list[list[int]]:
    """Decoder tokens of answers as they follow the checkpoint's own words, with EOS."""
    processor = processor_of(model)
    asking = Asking.of(processor)
    return [asking.answer_ids(processor, answer) + processor.eos_ids for answer in answers]


def _last_number(text: str) -> str:
    numbers = re.findall(r"-?\d[\d,]*\.?\d*", text)
    return numbers[-1].replace(",", "").rstrip(".") if numbers else ""


def _perplexity(losses: Sequence[TargetLoss]) -> dict:
    """E to the mean loss a token over all targets, with its interval over the targets."""

    def of(some: Sequence[TargetLoss]) -> float:
        tokens = sum(loss.tokens for loss in some)
        return math.exp(sum(loss.nll for loss in some) / tokens) if tokens else math.nan

    return with_interval(losses, of)


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
