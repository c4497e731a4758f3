"""LLMLingua-2 (Pan et al., 2024) as a baseline: the text's own words, the less telling left out.

It is not a dependency: `pip install llmlingua` brings it. Its model and tiktoken's vocabulary come
from the network on first use. Not run by this project, which has none; the calls are those of
llmlingua 0.2.2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec

MODEL = "microsoft/llmlingua-2-xlm-roberta-large-meetingbank"
"""The authors' own, and PCC's baseline in table A3."""

Shorten = Callable[[str, float], str]
"""A text and the share of it to keep, to a shorter text."""


def is_installed() -> bool:
    """Whether `llmlingua` can be imported."""
    return find_spec("llmlingua") is not None


def llmlingua2(model: str = MODEL, device: str = "cpu") -> Shorten:
    """A function that shortens a text by LLMLingua-2.

    Args:
        model: a token classifier on the Hub, or a folder.
        device: where it runs.

    Raises:
        ImportError: `llmlingua` is not installed.
    """
    try:
        from llmlingua import PromptCompressor
    except ImportError as error:
        raise ImportError(
            "the baseline 'llmlingua2' needs LLMLingua: pip install llmlingua; or leave it out of "
            "--baselines."
        ) from error
    compressor = PromptCompressor(model, device_map=device, use_llmlingua2=True)

    def shorten(text: str, share: float) -> str:
        return compressor.compress_prompt_llmlingua2([text], rate=share)["compressed_prompt"]

    return shorten


def shorten_to(
    texts: Sequence[str],
    budgets: Sequence[int],
    encode: Callable[[str], list[int]],
    decode: Callable[[list[int]], str],
    shorten: Shorten,
) -> list[str | None]:
    """Each text in at most its budget of decoder tokens, None if nothing is left.

    LLMLingua counts by its own tokenizer and says that it may miss its target, so what is still too
    long is asked for once more, in proportion, and then cut.

    Args:
        texts: to shorten.
        budgets: most decoder tokens of each.
        encode: the decoder's tokens of a text.
        decode: and back.
        shorten: see `llmlingua2`.
    """
    shortened: list[str | None] = []
    for text, budget in zip(texts, budgets, strict=True):
        full = len(encode(text))
        share = min(1.0, budget / full)
        short = shorten(text, share)
        taken = len(encode(short))
        if taken > budget:
            short = shorten(text, share * budget / taken)
        ids = encode(short)
        shortened.append((decode(ids[:budget]) if len(ids) > budget else short) or None)
    return shortened
