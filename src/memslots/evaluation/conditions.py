"""What the decoder may read of a context: all, nothing, a cut of it, a memory, or another's.

Every condition answers the same questions in the same run; compare a memory
with the full text, no context, a cut of equal length and the control (another text's memory).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from memslots.evaluation.answering import (
    answer_in_these_words,
    memories_at_rates,
    processor_of,
)
from memslots.evaluation.asking import Asking
from memslots.evaluation.llmlingua_baseline import is_installed, llmlingua2, shorten_to
from memslots.modeling import Memory, MemslotsModel
from memslots.modeling.layout_memslots import Prompt

BASELINES = ("full", "none", "head", "tail", "another")
"""Full text; no context; the first and the last tokens of the text, as many as the memory's
prompt tokens; the control, another text's memory."""

LLMLINGUA2 = "llmlingua2"
"""The text shortened by LLMLingua-2 to the memory's prompt tokens, where that is installed."""


def default_baselines() -> tuple[str, ...]:
    """All that can be run in this installation."""
    return (*BASELINES, LLMLINGUA2) if is_installed() else BASELINES


def check_baselines(names: Sequence[str]) -> None:
    """Refuse names that are not baselines.

    Raises:
        ValueError: one is unknown.
    """
    known = (*BASELINES, LLMLINGUA2)
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise ValueError(f"baselines {unknown} are unknown; choose from {', '.join(known)}.")


@dataclass(frozen=True)
class Condition:
    """One thing to read in place of the contexts.

    Args:
        name: "memory" or one of `BASELINES`.
        rate: the memory's rate, or that of the memory that a cut is as long as; None without.
        contexts: the text of each question, None without any.
        memory: one document a question.
        positions: prompt tokens that the context takes, on average.
    """

    name: str
    rate: int | None
    contexts: list[str | None]
    memory: Memory | None
    positions: float

    def answers(
        self,
        model: MemslotsModel,
        questions: Sequence[str],
        max_new_tokens: int,
        asking: Asking | None = None,
    ) -> list[str]:
        """Greedy answers, in order, cut as `asking` says (see `Asking.of` without it)."""
        processor = processor_of(model)
        asking = asking or Asking.of(processor)
        produced = answer_in_these_words(
            model,
            self.prompts(model, questions, asking),
            self.memory,
            max_new_tokens,
            asking.stop_ids(processor),
        )
        return [asking.cut(answer) for answer in produced]

    def prompts(
        self, model: MemslotsModel, questions: Sequence[str], asking: Asking | None = None
    ) -> list[Prompt]:
        """The decoder's tokens around the memory, or with the text in them."""
        processor = processor_of(model)
        asking = asking or Asking.of(processor)
        return asking.prompts(processor, questions, self.contexts if self.memory is None else None)


def conditions(
    model: MemslotsModel,
    contexts: Sequence[str],
    rates: Sequence[int],
    baselines: Sequence[str] = BASELINES,
    others: Sequence[str] | None = None,
) -> list[Condition]:
    """All conditions to compare, the baselines that need no memory first.

    Args:
        model: the compressor with its decoder.
        contexts: one per question, none empty; the same text may come often.
        rates: encoder tokens per slot, each one of the checkpoint's.
        baselines: names of `BASELINES`, and `LLMLINGUA2` if it is installed.
        others: another text for each context, by default the next one that differs.

    Raises:
        ImportError: LLMLingua is asked for and not installed.
        ValueError: an unknown baseline, or a rate that the checkpoint was not trained for.
    """
    check_baselines(baselines)
    shorten = llmlingua2() if LLMLINGUA2 in baselines else None
    processor = processor_of(model)
    for rate in rates:
        processor.check_rate(rate)
    encode = processor.decoder_text.encode
    tokens = [encode(text) for text in contexts]
    n = len(contexts)
    compared: list[Condition] = []
    if "full" in baselines:
        full = sum(map(len, tokens)) / n
        compared.append(Condition("full", None, list(contexts), None, full))
    if "none" in baselines:
        compared.append(Condition("none", None, [None] * n, None, 0.0))
    if others is None and len(set(contexts)) > 1:
        others = other_texts(contexts)
    read = list(contexts)
    if others is not None and "another" in baselines:
        read += others
    memories = memories_at_rates(model, read, rates) if rates else {}
    for rate, both in memories.items():
        memory = Memory.cat([both[i] for i in range(n)])
        positions = model.memory_positions(memory)
        mean = sum(positions) / n
        compared.append(Condition("memory", rate, [None] * n, memory, mean))
        cuts: dict[str, Callable[[list[int], int], list[int]]] = {
            "head": lambda ids, k: ids[:k],
            "tail": lambda ids, k: ids[max(0, len(ids) - k) :],
        }
        for name, cut in cuts.items():
            if name in baselines:
                texts: list[str | None] = [
                    processor.decode(cut(ids, k), skip_special_tokens=False) or None
                    for ids, k in zip(tokens, positions, strict=True)
                ]
                compared.append(Condition(name, rate, texts, None, mean))
        if shorten is not None:
            decode = partial(processor.decode, skip_special_tokens=False)
            short = shorten_to(contexts, positions, encode, decode, shorten)
            used = sum(len(encode(text)) for text in short if text) / n
            compared.append(Condition(LLMLINGUA2, rate, short, None, used))
        if len(both) > n:
            other = Memory.cat([both[i] for i in range(n, len(both))])
            theirs = sum(model.memory_positions(other)) / n
            compared.append(Condition("another", rate, [None] * n, other, theirs))
    return compared


def other_texts(contexts: Sequence[str]) -> list[str]:
    """For each context the next one that differs, the first after the last.

    Raises:
        ValueError: all are the same.
    """
    n = len(contexts)
    if len(set(contexts)) < 2:
        raise ValueError(
            "the control, another text's memory, needs two different contexts; give more than one."
        )
    return [
        next(contexts[(i + step) % n] for step in range(1, n) if contexts[(i + step) % n] != text)
        for i, text in enumerate(contexts)
    ]
