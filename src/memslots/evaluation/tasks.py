"""The yardstick on any compressor: reconstruction, completion, questions, cloze.

Each task takes rows of `memslots.data`'s schema and returns records, one per condition and metric::

    {"task", "data", "condition", "rate", "length", "metric", "value", "low", "high", "n",
     "positions"}

`length` is the input's length in decoder tokens where a table has several. Intervals are bootstrap
intervals over the samples, those of a context together. Generation is greedy (PCC, section 3.1.2).
In-context learning and role play are in `example_tasks`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from memslots.data.cloze import LEFT_OUT, cloze_rows
from memslots.data.schema import QuestionRow, TextRow, question_row
from memslots.evaluation.answering import BATCH_ROWS, processor_of
from memslots.evaluation.asking import Asking
from memslots.evaluation.conditions import BASELINES, Condition, conditions, other_texts
from memslots.evaluation.likelihood import target_losses
from memslots.evaluation.metrics import (
    bleu_counts,
    bleu_of_counts,
    rouge_l,
    squad_scores,
    tokens_right,
)
from memslots.evaluation.sample_log import SampleLog, Scores
from memslots.evaluation.shares import Statistic, mean_of, perplexity, ratio_of, records_of
from memslots.modeling import MemslotsModel
from memslots.modeling.layout_memslots import ANSWER, RECONSTRUCTION, Prompt

Record = dict[str, Any]


REPEAT = "\n\nRepeat:\n"
"""Asks a decoder to repeat the text before it; after a memory, `<AE>` does."""


def reconstruction(
    model: MemslotsModel,
    rows: Sequence[TextRow | QuestionRow],
    rates: Sequence[int],
    data: str = "",
    baselines: Sequence[str] = ("full", "none", "head", "another"),
    samples: int | None = None,
    log: SampleLog | None = None,
) -> list[Record]:
    """The texts read back from their slots (PCC, section 3.2, figure 2), free and teacher-forced.

    Free-running: BLEU, ROUGE-L, `tokens_right` and `exact`. Teacher-forced, each token after the
    right ones before it: `tokens_right_forced` and `nats` a token, with the text itself, its cut
    and no text beside them, which a decoder is asked to repeat in words.

    Args:
        model: the compressor with its decoder.
        rows: texts, or questions' contexts; every segment of each is a sample.
        rates: encoder tokens per slot.
        data: name of the set, for the records.
        baselines: see `conditions`.
        samples: the most segments, taken evenly over the texts; None takes all.
        log: where scores are kept as they come.
    """
    texts = _segment_texts(model, [_text_of(row) for row in rows], samples)
    others = other_texts(texts) if len(set(texts)) > 1 else None

    def measure(places: list[int]) -> Iterator[Scores]:
        chosen = [texts[i] for i in places]
        other = None if others is None else [others[i] for i in places]
        targets = [processor_of(model).decoder_text.encode(text) for text in chosen]
        for condition in conditions(model, chosen, rates, baselines, other):
            for scores, place in zip(
                _read_back(model, condition, chosen, targets), places, strict=True
            ):
                yield {"sample": place, **_named(condition), **scores}

    measured = (log or SampleLog()).collect(("reconstruction", data, None), len(texts), measure)
    forced: dict[str, Statistic] = {
        "tokens_right_forced": ratio_of("right", "tokens"),
        "nats": ratio_of("nats", "tokens"),
    }
    free: dict[str, Statistic] = {
        "bleu": lambda some: bleu_of_counts([s["bleu"] for s in some]),
        "rouge_l": mean_of("rouge_l"),
        "tokens_right": ratio_of("right_free", "tokens"),
        "exact": mean_of("exact"),
    }
    named = {"task": "reconstruction", "data": data}
    records = records_of([s for s in measured if "bleu" in s], free, **named)
    return records + records_of(measured, forced, ["nats"], **named)


def _read_back(
    model: MemslotsModel, condition: Condition, texts: list[str], targets: list[list[int]]
) -> Iterator[Scores]:
    """Scores of one condition: how well each text is read back from what stands for it."""
    processor = processor_of(model)
    encode = processor.decoder_text.encode
    before = [
        Prompt([*processor.bos_ids, *([] if read is None else encode(read + REPEAT))])
        for read in condition.contexts
    ]
    task = ANSWER if condition.memory is None else RECONSTRUCTION
    losses = target_losses(model, before, targets, condition.memory, task=task)
    produced: list[str] | None = None
    if condition.name == "memory" and condition.memory is not None:
        read = model.reconstruct(condition.memory, batch_size=BATCH_ROWS, num_beams=1)
        produced = [read] if isinstance(read, str) else read
    for i, (text, ids, loss) in enumerate(zip(texts, targets, losses, strict=True)):
        scores: Scores = {"nats": loss.nll, "tokens": loss.tokens, "right": loss.right}
        if produced is not None:
            again = encode(produced[i]) if produced[i] else []
            scores |= {
                "bleu": bleu_counts(produced[i], text),
                "rouge_l": rouge_l(produced[i], text),
                "right_free": sum(tokens_right(ids, again)),
                "exact": float(produced[i] == text),
            }
        yield scores


def _segment_texts(model: MemslotsModel, texts: list[str], samples: int | None) -> list[str]:
    """The segments of texts, evenly chosen where there are more than `samples`."""
    segments = [
        text[span.start : span.end]
        for text in texts
        for span in processor_of(model).segment(text)
        if text[span.start : span.end].strip()
    ]
    return _evenly(segments, samples)


def _evenly(items: list[Any], most: int | None) -> list[Any]:
    if most is None or len(items) <= most:
        return items
    return [items[i * len(items) // most] for i in range(most)]


def _text_of(row: TextRow | QuestionRow) -> str:
    fields: dict[str, Any] = dict(row)
    return fields["text"] if "text" in fields else fields["context"]


def completion(
    model: MemslotsModel,
    rows: Sequence[TextRow],
    rates: Sequence[int],
    lengths: Sequence[int] = (512, 1024, 2048, 4096),
    data: str = "",
    baselines: Sequence[str] = BASELINES,
    samples: int | None = None,
    log: SampleLog | None = None,
) -> list[Record]:
    """How well the second half of an input is foreseen (PCC, table A1 and section A.2).

    The first half is left out ("none"), read in full ("full"), cut, or compressed ("memory").

    Args:
        model: the compressor with its decoder.
        rows: texts; those shorter than a length are not used for it.
        rates: encoder tokens per slot.
        lengths: decoder tokens of the inputs.
        data: name of the set, for the records.
        baselines: see `conditions`.
        samples: inputs of a length, taken evenly out of the texts; each text's beginning without.
        log: where scores are kept as they come.

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
    log = log or SampleLog()
    records: list[Record] = []
    for length in lengths:
        inputs = _inputs(encoded, length, samples)
        if not inputs:
            continue
        measured = log.collect(
            ("completion", data, length),
            len(inputs),
            partial(_continuations, model, inputs, rates, baselines),
        )
        metrics: dict[str, Statistic] = {
            "perplexity": perplexity,
            "nats": ratio_of("nats", "tokens"),
        }
        records += records_of(
            measured, metrics, ["nats"], task="completion", data=data, length=length
        )
    return records


def _inputs(encoded: list[list[int]], length: int, samples: int | None) -> list[list[int]]:
    """Inputs of `length` tokens: the beginnings of texts, or evenly out of all of them."""
    if samples is None:
        return [ids[:length] for ids in encoded if len(ids) >= length]
    places = [(ids, start) for ids in encoded for start in range(0, len(ids) - length + 1, length)]
    return [ids[start : start + length] for ids, start in _evenly(places, samples)]


def _continuations(
    model: MemslotsModel,
    inputs: list[list[int]],
    rates: Sequence[int],
    baselines: Sequence[str],
    places: list[int],
) -> Iterator[Scores]:
    processor = processor_of(model)
    half = len(inputs[0]) // 2
    firsts = [processor.decode(ids[:half], skip_special_tokens=False) for ids in inputs]
    others = other_texts(firsts) if len(set(firsts)) > 1 else None
    chosen = [inputs[i] for i in places]
    compared = conditions(
        model,
        [firsts[i] for i in places],
        rates,
        baselines,
        None if others is None else [others[i] for i in places],
    )
    for condition in compared:
        before = []
        for ids, context in zip(chosen, condition.contexts, strict=True):
            read = [] if context is None else processor.decoder_text.encode(context)
            read = ids[:half] if condition.name == "full" else read
            before.append(Prompt([*processor.bos_ids, *read]))
        targets = [ids[half:] for ids in chosen]
        losses = target_losses(model, before, targets, condition.memory, unscored=1)
        for place, loss in zip(places, losses, strict=True):
            scores = {"nats": loss.nll, "tokens": loss.tokens}
            yield {"sample": place, **_named(condition), **scores}


def question_answering(
    model: MemslotsModel,
    rows: Sequence[QuestionRow],
    rates: Sequence[int],
    baselines: Sequence[str] = BASELINES,
    max_new_tokens: int = 30,
    data: str = "",
    asking: Asking | None = None,
    log: SampleLog | None = None,
    task: str = "qa",
) -> list[Record]:
    """SQuAD's F1 and exact match, the best over the accepted answers (PCC, tables 2 and 5), and the
    nats that each token of the first accepted answer costs.

    Args:
        model: the compressor with its decoder.
        rows: question rows with contexts.
        rates: encoder tokens per slot.
        baselines: see `conditions`.
        max_new_tokens: longest answer (30 in the published code).
        data: name of the set, for the records.
        asking: the words of questions; the checkpoint's own without it.
        log: where scores are kept as they come.
        task: its name in the records.
    """
    processor = processor_of(model)
    asking = asking or Asking.of(processor)
    contexts = [row["context"] for row in rows]
    others = other_texts(contexts) if len(set(contexts)) > 1 else None

    def measure(places: list[int]) -> Iterator[Scores]:
        chosen = [rows[i] for i in places]
        questions = [row["question"] for row in chosen]
        targets = [asking.answer_ids(processor, row["answer"]) for row in chosen]
        other = None if others is None else [others[i] for i in places]
        asked = [row["context"] for row in chosen]
        for condition in conditions(model, asked, rates, baselines, other):
            answers = condition.answers(model, questions, max_new_tokens, asking)
            prompts = condition.prompts(model, questions, asking)
            losses = target_losses(model, prompts, targets, condition.memory)
            for place, row, answer, loss in zip(places, chosen, answers, losses, strict=True):
                yield {
                    "sample": place,
                    **_named(condition),
                    **squad_scores(answer, row["answers"]),
                    "nats": loss.nll,
                    "tokens": loss.tokens,
                    "id": row["id"],
                    "answer": answer,
                }

    measured = (log or SampleLog()).collect((task, data, None), len(rows), measure)
    metrics: dict[str, Statistic] = {
        "f1": mean_of("f1"),
        "exact_match": mean_of("exact_match"),
        "nats": ratio_of("nats", "tokens"),
    }
    return records_of(measured, metrics, ["f1", "nats"], contexts, task=task, data=data)


def cloze(
    model: MemslotsModel,
    rows: Sequence[TextRow | QuestionRow],
    rates: Sequence[int],
    baselines: Sequence[str] = BASELINES,
    max_new_tokens: int = 16,
    data: str = "",
    asking: Asking | None = None,
    samples: int = 200,
    seed: int = 0,
    characters: tuple[int, int] = (200, 800),
    log: SampleLog | None = None,
) -> list[Record]:
    """Names, numbers, dates and quotes that were left out of raw texts, as `question_answering`.

    Args:
        model: the compressor with its decoder.
        rows: texts, or questions' contexts.
        rates: encoder tokens per slot.
        baselines: see `conditions`.
        max_new_tokens: longest answer.
        data: name of the set, for the records.
        asking: the words of questions; the checkpoint's own without it.
        samples: most questions, two a context, taken evenly out of the texts.
        seed: draws the questions.
        characters: shortest and longest context.
        log: where scores are kept as they come.

    Raises:
        ValueError: texts that nothing can be left out of.
    """
    texts = [_text_of(row) for row in rows]
    clozes = list(cloze_rows(texts, seed, 2, characters=characters, kinds=LEFT_OUT))
    if not clozes:
        raise ValueError(
            f"cloze: none of {len(rows)} texts has a paragraph with a name, a number, a date or a "
            "quote to leave out; give longer texts."
        )
    asked = [
        question_row(row["context"], question, [answer])
        for row in _evenly(clozes, -(-samples // 2))
        for question, answer in zip(row["question"], row["answer"], strict=True)
    ]
    return question_answering(
        model, asked[:samples], rates, baselines, max_new_tokens, data, asking, log, task="cloze"
    )


def _named(condition: Condition) -> Scores:
    """What a sample's scores say of their condition."""
    return {
        "condition": condition.name,
        "rate": condition.rate,
        "positions": condition.positions,
    }
