"""Prompts of memories as embeddings, for any engine that starts from embeddings (vLLM does).

    llm = vllm.LLM(decoder, enable_prompt_embeds=True)
    embeds = prompt_embeds(model, memory, question=["Who signed?", "Where?"])
    llm.generate([{"prompt_embeds": one} for one in embeds])

The layout is `model.generate`'s own: the same function makes it, and only the padding is dropped.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from memslots.modeling import Memory, MemslotsModel
from memslots.modeling.layout_memslots import Row, check_room, max_positions, pair
from memslots.sent_memories import check_slots

_CUT_TOKENS = 16
"""How many more tokens a text may have where it is cut."""


def prompt_embeds(
    model: MemslotsModel,
    memory: Memory,
    question: str | Sequence[str] | None = None,
    messages: list | None = None,
    rate: int | None = None,
    max_new_tokens: int = 1,
    chat_template_kwargs: dict[str, Any] | None = None,
) -> list[torch.Tensor]:
    """What the decoder reads, markers, verbatim tokens and chat template included.

    Args:
        model: The compressor; of its decoder only the input embeddings are used.
        memory: Of this compressor. As in `generate`, n documents pair with n questions, and one of
            either goes with all of the other; `memory.join()` makes one context of several.
        question: A question or several.
        messages: A chat, or several, in place of `question`.
        rate: A coarser rate than the memory's own.
        max_new_tokens: Tokens to leave for the answer.
        chat_template_kwargs: Passed to the chat template.

    Returns:
        For each answer a tensor `(prompt tokens, d_decoder)` on the CPU, in the decoder's dtype.

    Raises:
        ValueError: Another compressor's memory, an empty question, more tokens than the decoder
            reads, or a decoder that needs more than embeddings.
    """
    rows, memory = prompt_rows(
        model, memory, question, messages, rate, max_new_tokens, chat_template_kwargs
    )
    return row_embeds(model, rows, memory)


def prompt_rows(
    model: MemslotsModel,
    memory: Memory,
    question: str | Sequence[str] | None = None,
    messages: list | None = None,
    rate: int | None = None,
    max_new_tokens: int = 1,
    chat_template_kwargs: dict[str, Any] | None = None,
) -> tuple[list[Row], Memory]:
    """The checked rows behind `prompt_embeds`, and the memory at the rate that they read it at."""
    model.check_memory(memory)
    _check_literals(model, memory)
    for name, texts in (("the question", question), ("the chat", messages)):
        # Several chats, or several questions, are prompts of their own.
        for text in texts if isinstance(texts, list) and not _is_chat(texts) else [texts]:
            _check_length(model, name, "".join(_strings(text)), name == "the chat")
    prompts, _ = model.processor.prompts(question, messages, chat_template_kwargs or {})
    if rate is not None:
        memory = memory.at_rate(model.processor.check_rate(rate))
    pairs = pair(len(memory), len(prompts))
    rows = model.memory_rows(memory, [(i, prompts[j]) for i, j in pairs])
    if memory.segments:
        check_room(model, memory, rows, [i for i, _ in pairs], {"max_new_tokens": max_new_tokens})
    else:
        _check_chats(model, rows, max_new_tokens)
    if not memory.slots.is_meta:  # else they are not written yet: see `uncompressed`
        check_slots(model, memory)
    return rows, memory


def _check_literals(model: MemslotsModel, memory: Memory) -> None:
    """Refuse verbatim tokens that cannot fit, which are prompt tokens too, before they are read."""
    most = max_positions(model.decoder.config)
    literals = max(memory.n_literals)
    if most is not None and literals > most:
        raise ValueError(
            f"this memory has {literals} verbatim tokens beside its slots, and the decoder reads "
            f"at most {most} tokens; compress the text without literals, or in parts."
        )
    for held in memory.literals:
        for literal in held:
            _check_length(model, "a verbatim string", literal.text)


def _check_length(model: MemslotsModel, name: str, text: str, chat: bool = False) -> None:
    """Refuse a text that cannot fit by its beginning: tokenizing lets no other thread run."""
    most = max_positions(model.decoder.config)
    window = len(text) if most is None else 4 * most
    while window < len(text):
        tokens = len(model.processor.decoder_text.encode(text[:window]))
        if most is not None and tokens > most + _CUT_TOKENS:
            raise ValueError(
                f"{name} has {len(text)} characters, which are more than the {most} tokens that "
                f"the decoder reads; shorten it"
                f"{' or leave out the oldest messages' if chat else ''}, or send long texts as "
                "documents."
            )
        window *= 2


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _strings(part)


def _is_chat(value: list) -> bool:
    return bool(value) and isinstance(value[0], dict)


def _check_chats(model: MemslotsModel, rows: list[Row], max_new_tokens: int) -> None:
    """Refuse chats without a context that are longer than the decoder reads."""
    most = max_positions(model.decoder.config)
    needed = max(model.processor.row_length(row, []) for row in rows) + max_new_tokens
    if most is not None and needed > most:
        raise ValueError(
            f"the chat and {max_new_tokens} new tokens take {needed} tokens, and the decoder reads "
            f"at most {most}; leave out the oldest messages, or send long texts as documents."
        )


def row_embeds(model: MemslotsModel, rows: list[Row], memory: Memory) -> list[torch.Tensor]:
    """The embeddings of `prompt_rows`, each `(prompt tokens, d_decoder)`, without padding."""
    check_engine_can_read(model)
    inputs = model.row_inputs(rows, memory)
    padded, mask = inputs["inputs_embeds"], inputs["attention_mask"].bool()
    return [
        row[kept].detach().to("cpu").contiguous() for row, kept in zip(padded, mask, strict=True)
    ]


def check_engine_can_read(model: MemslotsModel) -> None:
    """Refuse a decoder for which the embeddings of a prompt are not the whole prompt.

    Raises:
        ValueError: A LoRA on the decoder, or per-layer embeddings.
    """
    if model.config.decoder_lora is not None:
        raise ValueError(
            "this compressor reads with a LoRA on its decoder (decoder_lora), which an engine "
            "with the plain decoder lacks; serve it with the transformers backend."
        )
    decoder = model.config.get_text_config(decoder=True)
    if getattr(decoder, "hidden_size_per_layer_input", 0):
        raise ValueError(
            f"{decoder.model_type} has per-layer embeddings, which prompt embeddings do not carry; "
            "serve it with the transformers backend."
        )


def encode_embeds(embeds: torch.Tensor) -> str:
    """The base64 text that vLLM's server takes as `prompt_embeds`: a tensor as `torch.save` has it.

    Only written here, never read: nothing in memslots unpickles.

    Args:
        embeds: `(prompt tokens, d_decoder)`.
    """
    if embeds.dim() != 2 or not embeds.dtype.is_floating_point:
        raise ValueError(
            "prompt embeddings are a floating-point tensor (prompt tokens, d_decoder), got "
            f"{embeds.dtype} {tuple(embeds.shape)}."
        )
    buffer = io.BytesIO()
    # A copy: torch.save writes the whole storage that a view is a part of.
    torch.save(embeds.detach().to("cpu").clone(), buffer)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
