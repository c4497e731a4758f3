"""Answers of a sentence compressor to held-out questions, kept one by one for the tables."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from memslots.evaluation.answering import (
    answer_from_memory,
    answer_from_text,
    answer_in_these_words,
    processor_of,
)
from memslots.evaluation.asking import Asking
from memslots.evaluation.metrics import exact_match
from memslots.modeling import MemslotsModel

ANSWER_TOKENS = 16
"""Longest answer that is generated; the longest that is right has fewer."""

CONDITIONS = ("memory", "another", "text", "cut", "none")
"""What the decoder reads: the memory, another context's memory, the text itself, its beginning of
as many tokens as the memory has positions, or no context."""


def measure_answers(
    model: MemslotsModel,
    rows: Sequence[dict[str, Any]],
    conditions: Sequence[str] = CONDITIONS,
    with_lora: bool = False,
    examples: int = 0,
) -> dict[str, Any]:
    """Asks the first question of every row under each condition, greedily.

    Args:
        model: with its decoder.
        rows: `{"context", "question", "answer", "fact", "other_context"}`, the middle three lists.
        conditions: of `CONDITIONS`; text that does not fit the decoder's positions is left out.
        with_lora: whether texts and no context are read with the compressor's LoRA, as memories
            always are; without it by the decoder as it was before.
        examples: worked examples before a text, which is then asked whole questions, "What is
            Irene Smith's city?"; 0 asks texts in the words of memories.

    Returns:
        `samples`, one a row: `fact`, `tokens` (of the right answer), and for each condition whether
        the answer and its `first` token are right; and what the contexts cost in decoder positions:
        `text_tokens`, `slots`, `literal_tokens` and `positions` (markers included), means.
    """
    processor = processor_of(model)
    encode = processor.decoder_text.encode
    questions = [row["question"][0] for row in rows]
    answers = [row["answer"][0] for row in rows]
    contexts = [row["context"] for row in rows]
    memory = model.compress(contexts, progress=False)
    positions = model.memory_positions(memory)
    lengths = [len(encode(context)) for context in contexts]
    produced: dict[str, list[str]] = {}
    if "memory" in conditions:
        produced["memory"] = answer_from_memory(model, memory, questions, ANSWER_TOKENS)
    if "another" in conditions:
        others = model.compress([row["other_context"] for row in rows], progress=False)
        produced["another"] = answer_from_memory(model, others, questions, ANSWER_TOKENS)
    most = getattr(processor_limits(model), "max_position_embeddings", None)
    texts: dict[str, list[str | None]] = {"none": [None] * len(rows)}
    if most is None or max(lengths) + 64 <= most:
        texts["text"] = [*contexts]
    texts["cut"] = [
        processor.decode(encode(context)[:kept])
        for context, kept in zip(contexts, positions, strict=True)
    ]
    with model.reading(with_lora):
        for name in ("text", "cut", "none"):
            if name in conditions and name in texts:
                produced[name] = (
                    _after_examples(model, texts[name], questions, examples)
                    if examples
                    else answer_from_text(model, texts[name], questions, ANSWER_TOKENS)
                )
    samples = []
    for i, (row, answer) in enumerate(zip(rows, answers, strict=True)):
        wanted = encode(f" {answer}")
        sample: dict[str, Any] = {"fact": row["fact"][0], "tokens": len(wanted)}
        for name, given in produced.items():
            sample[name] = exact_match(given[i], answer)
            sample[f"{name}_first"] = encode(f" {given[i].strip()}")[:1] == wanted[:1]
        samples.append(sample)
    literal = [sum(map(len, processor.literal_ids(memory[i].literals))) for i in range(len(rows))]
    return {
        "samples": samples,
        "text_tokens": _mean(lengths),
        "slots": _mean(memory.n_slots),
        "literal_tokens": _mean(literal),
        "positions": _mean(positions),
        "examples": [
            {"question": q, "answer": a, "memory": given}
            for q, a, given in zip(
                questions[:8], answers[:8], produced.get("memory", [])[:8], strict=False
            )
        ],
    }


def _after_examples(
    model: MemslotsModel, texts: Sequence[str | None], questions: Sequence[str], examples: int
) -> list[str]:
    """Answers without the article that a whole question draws: "journalist" of "a journalist"."""
    processor = processor_of(model)
    asking = Asking.of(processor, examples, format="plain")
    asking = replace(asking, question=Asking.question)
    prompts = asking.prompts(processor, [f"What is {asked}?" for asked in questions], texts)
    stops = asking.stop_ids(processor)
    answers = answer_in_these_words(model, prompts, None, ANSWER_TOKENS, stops)
    return [re.sub("^(an?|the) ", "", asking.cut(answer)) for answer in answers]


def processor_limits(model: MemslotsModel) -> Any:
    """The decoder's text configuration, which states its positions."""
    return model.config.get_text_config(decoder=True)


def _mean(values: Sequence[float]) -> float:
    return round(sum(values) / max(1, len(values)), 2)
