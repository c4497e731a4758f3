"""Answers and reconstructions of the conditions that a suite compares."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from memslots.evaluation.metrics import tokens_aligned, tokens_right
from memslots.evaluation.shared_start import read_shared_start
from memslots.modeling import Memory, MemslotsModel, MemslotsProcessor
from memslots.modeling.encoders_memslots import token_batches
from memslots.modeling.layout_memslots import Prompt, Row, max_positions

# Above this many padded tokens or rows, a batch is cut.
BATCH_TOKENS = 16384
BATCH_ROWS = 128


def processor_of(model: MemslotsModel) -> MemslotsProcessor:
    """The model's processor.

    Raises:
        ValueError: It has none, so it cannot read text.
    """
    if not hasattr(model, "processor"):
        raise ValueError("this model has no processor; load it with from_pretrained.")
    return model.processor


def answer_from_text(
    model: MemslotsModel,
    contexts: Sequence[str | None],
    questions: Sequence[str],
    max_new_tokens: int,
) -> list[str]:
    """Greedy answers of the frozen decoder to prompts of tokens alone, without any memory.

    Args:
        model: Its decoder and processor are used, nothing of the compressor.
        contexts: The full text of each question, or None for the question alone.
        questions: As many.
        max_new_tokens: Longest answer.
    """
    processor = processor_of(model)
    prompts = [
        processor.prompt(question=question, context=context)
        for context, question in zip(contexts, questions, strict=True)
    ]
    return answer_prompts(model, prompts, max_new_tokens)


def answer_in_these_words(
    model: MemslotsModel,
    prompts: Sequence[Prompt],
    memory: Memory | None,
    max_new_tokens: int,
    stop_ids: Sequence[int],
) -> list[str]:
    """Greedy answers to prompts, in order, whether tokens alone or a memory stand in them.

    Args:
        model: the compressor with its decoder.
        prompts: decoder tokens before and after the memory.
        memory: one document a prompt, or none at all.
        max_new_tokens: longest answer.
        stop_ids: tokens that end an answer.

    Raises:
        ValueError: prompts longer than the decoder reads.
    """
    if not model.has_decoder:
        raise ValueError("answers need the decoder; load the model with load_decoder=True.")
    slots: list[int] = []
    if memory is None:
        rows = [Row([], prompt) for prompt in prompts]
    else:
        rows = model.memory_rows(memory, list(enumerate(prompts)))
        slots = [segment.slots for segment in memory.segments]
    for row, prompt in zip(rows, prompts, strict=True):
        row.prompt = prompt  # these words and no others, whatever the memory ends in
    lengths = [model.processor.row_length(row, slots) for row in rows]
    limit = max_positions(model.decoder.config)
    if limit is not None and max(lengths) + max_new_tokens > limit:
        raise ValueError(
            f"{max(lengths)} prompt tokens and {max_new_tokens} new tokens are more than the "
            f"decoder's {limit}; ask with fewer examples, or about shorter contexts."
        )
    greedy: dict[str, Any] = {"max_new_tokens": max_new_tokens, "do_sample": False, "num_beams": 1}
    if stop_ids:
        greedy["eos_token_id"] = list(stop_ids)
    answers = [""] * len(rows)
    start = read_shared_start(model, rows, lengths, memory)
    for batch in token_batches(lengths, [max_new_tokens] * len(rows), BATCH_TOKENS):
        produced = model.answer_rows([rows[i] for i in batch], memory, len(batch), greedy, start)
        for i, answer in zip(batch, produced, strict=True):
            answers[i] = answer
    return answers


@torch.no_grad()
def answer_prompts(
    model: MemslotsModel, prompts: Sequence[Prompt], max_new_tokens: int
) -> list[str]:
    """Greedy answers to prompts, in order; rows of like length are generated together."""
    processor, decoder = processor_of(model), model.decoder
    if decoder is None:
        raise ValueError("plain-text answers need the decoder; load it with load_decoder=True.")
    rows = [[*prompt.before, *prompt.after] for prompt in prompts]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    answers = [""] * len(rows)
    for batch in _batches(order, [len(row) + max_new_tokens for row in rows]):
        longest = max(len(rows[i]) for i in batch)
        filler = [longest - len(rows[i]) for i in batch]
        ids = torch.tensor(
            [[processor.pad_id] * gap + rows[i] for gap, i in zip(filler, batch, strict=True)]
        )
        mask = torch.tensor([[0] * gap + [1] * (longest - gap) for gap in filler])
        with model.reading(with_lora=False):
            output = decoder.generate(
                input_ids=ids.to(decoder.device),
                attention_mask=mask.to(decoder.device),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                num_beams=1,
                pad_token_id=processor.pad_id,
                **({"eos_token_id": processor.eos_ids} if processor.eos_ids else {}),
            )
        for i, produced in zip(batch, output[:, longest:], strict=True):
            answers[i] = processor.decode(produced).strip()
    return answers


def answer_from_memory(
    model: MemslotsModel, memory: Memory, questions: Sequence[str], max_new_tokens: int
) -> list[str]:
    """Greedy answers, one per document of `memory`."""
    rows = max(1, min(BATCH_ROWS, BATCH_TOKENS // (max(memory.n_slots) + 64)))
    answers = model.generate(
        memory=memory,
        question=list(questions),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        batch_size=rows,
    )
    return [answers] if isinstance(answers, str) else answers


def memories_at_rates(
    model: MemslotsModel, texts: Sequence[str], rates: Sequence[int]
) -> dict[int, Memory]:
    """Memories of the same texts at several rates; one encoding where the encoder allows it, and
    one of a text that comes often.
    """
    once = list(dict.fromkeys(texts))
    if len(once) < len(texts):
        places = [once.index(text) for text in texts]
        return {
            rate: Memory.cat([memory[i] for i in places])
            for rate, memory in memories_at_rates(model, once, rates).items()
        }
    finest = model.compress(list(texts), rate=min(rates), progress=False)
    if all(finest.coarsens_to(rate) for rate in rates):
        return {rate: finest.at_rate(rate) for rate in rates}
    return {
        rate: finest if rate == finest.rate else model.compress(list(texts), rate, progress=False)
        for rate in rates
    }


def reconstruct_segments(
    model: MemslotsModel, memory: Memory, progress: Callable[[int], object] | None = None
) -> list[str]:
    """The text that the decoder reads back, one string per segment of `memory`.

    Args:
        model: the compressor with its decoder.
        memory: of any number of documents.
        progress: called with how many segments more have been read back.
    """
    alone = replace(memory, documents=tuple((segment,) for segment in memory.segments))
    order = sorted(range(len(alone)), key=lambda i: memory.segments[i].tokens)
    produced = [""] * len(order)
    for start in range(0, len(order), BATCH_ROWS):
        batch = order[start : start + BATCH_ROWS]
        part = Memory.cat([alone[i] for i in batch])
        texts = model.reconstruct(part, batch_size=BATCH_ROWS, num_beams=1)
        for i, text in zip(batch, [texts] if isinstance(texts, str) else texts, strict=True):
            produced[i] = text
        if progress is not None:
            progress(len(batch))
    return produced


def compare_segments(
    model: MemslotsModel, memory: Memory, texts: Sequence[str], produced: Sequence[str]
) -> list[dict]:
    """Each segment's reference text beside its reconstruction, in the decoder's own tokens.

    Args:
        model: The compressor that wrote `memory`.
        memory: Memory of `texts`.
        texts: What was compressed.
        produced: What `reconstruct_segments` returned.

    Returns:
        A dict per segment: `tokens` and `produced_tokens` (ids), `right` (a bool per token),
        `aligned` (a count) and `exact` (the same text).
    """
    encode = processor_of(model).decoder_text.encode
    compared = []
    for segment, text in zip(memory.segments, produced, strict=True):
        reference = encode(texts[segment.text][segment.start : segment.end])
        ids = encode(text) if text else []
        compared.append(
            {
                "tokens": reference,
                "produced_tokens": ids,
                "right": tokens_right(reference, ids),
                "aligned": tokens_aligned(reference, ids),
                "exact": text == texts[segment.text][segment.start : segment.end],
            }
        )
    return compared


def _batches(order: list[int], lengths: list[int]) -> list[list[int]]:
    """Splits indices sorted by length into batches of bounded rows and padded tokens."""
    batches: list[list[int]] = []
    for i in order:
        full = not batches or len(batches[-1]) >= BATCH_ROWS
        if full or lengths[i] * (len(batches[-1]) + 1) > BATCH_TOKENS:
            batches.append([])
        batches[-1].append(i)
    return batches
