"""How an answer is drawn, in the words of each engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from memslots.modeling import MemslotsModel
from memslots.modeling.decoders_memslots import DEFAULT_NEW_TOKENS

GREEDY_BELOW = 0.01
"""A temperature under which nothing is drawn: scores divided by it are soon no numbers any more,
and what they would draw is the likeliest token all the same."""


@dataclass(frozen=True)
class Sampling:
    """What a request asks of generation.

    Args:
        max_tokens: Longest answer, in decoder tokens.
        temperature: Under `GREEDY_BELOW`, 0 among them, the likeliest token is taken.
        top_p: Probability mass that is drawn from.
        top_k: Tokens that are drawn from; 0 is all.
        seed: Of the draws; None leaves it to the engine.
        stop: Strings before which the answer ends.
    """

    max_tokens: int = DEFAULT_NEW_TOKENS
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()

    def for_transformers(self) -> dict[str, Any]:
        """Arguments of `model.generate`; `stop` is left to `VisibleText`."""
        kwargs: dict[str, Any] = {"max_new_tokens": self.max_tokens, "num_beams": 1}
        if self.temperature < GREEDY_BELOW:
            return {**kwargs, "do_sample": False}
        return {
            **kwargs,
            "do_sample": True,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
        }

    def for_vllm(self, stop_token_ids: list[int]) -> dict[str, Any]:
        """Fields of `vllm.SamplingParams`, which its server takes by the same names."""
        fields: dict[str, Any] = {
            "max_tokens": self.max_tokens,
            "temperature": 0.0 if self.temperature < GREEDY_BELOW else self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            # The checkpoint's own: the engine's copy of the decoder may name others, or none.
            "stop_token_ids": stop_token_ids,
            "skip_special_tokens": True,
        }
        if self.seed is not None:
            fields["seed"] = self.seed
        if self.stop:
            fields["stop"] = list(self.stop)
        return fields


def default_sampling(
    model: MemslotsModel, max_tokens: int = DEFAULT_NEW_TOKENS, question: bool = False
) -> Sampling:
    """What `model.generate` does without being told: the decoder's own generation configuration.

    Args:
        model: The compressor.
        max_tokens: Longest answer.
        question: Whether `question=` is asked rather than `messages=`, so that `answer_end` holds.
    """
    end = model.processor.answer_end if question else None
    stop = (end,) if end else ()
    defaults = model.decoder.generation_config
    if not defaults.do_sample:
        return Sampling(max_tokens, stop=stop)
    return Sampling(
        max_tokens,
        stop=stop,
        temperature=1.0 if defaults.temperature is None else defaults.temperature,
        top_p=1.0 if defaults.top_p is None else defaults.top_p,
        top_k=50 if defaults.top_k is None else defaults.top_k,  # transformers' default
    )


def end_tokens(model: MemslotsModel) -> list[int]:
    """Tokens that end an answer, as `model.generate` knows them."""
    ends = model.decoder.generation_config.eos_token_id
    if ends is None:
        return model.processor.eos_ids[:1]
    return [ends] if isinstance(ends, int) else list(ends)
