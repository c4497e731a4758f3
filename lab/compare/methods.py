"""Each method reads a sample's context in its way, at about `tokens / rate` positions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from lab.compare.reading import Context, Reader
from lab.compare.samples import Sample

Method = Callable[[Reader, Sample, int], Context]


def text(reader: Reader, sample: Sample, rate: int) -> Context:
    """The whole text, whatever the rate."""
    return _text(reader, sample, sample.context)


def cut(reader: Reader, sample: Sample, rate: int) -> Context:
    """The text's first tokens, as many as the rate leaves."""
    ids = reader.ids(sample.context)
    return _text(reader, sample, reader.tokenizer.decode(ids[: len(ids) // rate]))


def tail(reader: Reader, sample: Sample, rate: int) -> Context:
    """The text's last tokens, as many: what comes just before what follows."""
    ids = reader.ids(sample.context)
    return _text(reader, sample, reader.tokenizer.decode(ids[-(len(ids) // rate) :]))


def none(reader: Reader, sample: Sample, rate: int) -> Context:
    """No context."""
    return _text(reader, sample, "")


def _text(reader: Reader, sample: Sample, context: str) -> Context:
    asked = sample.asked if context else sample.asked.lstrip("\n")
    before, within, after = reader.split(sample.shown, context, asked)
    before = [reader.tokenizer.bos_token_id, *before]
    cache = reader.after(before)
    if within:
        _, cache = reader.read(within, cache, len(before))
    stored = len(context.encode())
    return Context(cache, after, len(before + within), len(within), stored)


def llmlingua(reader: Reader, sample: Sample, rate: int) -> Context:
    """LLMLingua with the decoder itself as its small model; it does not see the question."""
    compressor = _lingua(reader)
    count = len(reader.ids(sample.context)) // rate
    shorter = compressor.compress_prompt([sample.context], target_token=max(1, count))
    return _text(reader, sample, shorter["compressed_prompt"].strip())


_LINGUA: dict[int, Any] = {}


def _lingua(reader: Reader) -> Any:
    if id(reader) not in _LINGUA:
        import tiktoken
        from llmlingua import PromptCompressor

        # It counts tokens for its own report only, in words that it would download.
        tiktoken.encoding_for_model = lambda _: reader.tokenizer  # type: ignore[assignment]
        # Its own copy: it sets attributes of the tokenizer and asks for a device map.
        name = reader.model.config._name_or_path
        _LINGUA[id(reader)] = PromptCompressor(name, device_map="cpu", use_llmlingua2=False)
    return _LINGUA[id(reader)]


def press(name: str) -> Method:
    """A method of kvpress that scores cache entries; those before the context are all kept.

    Args:
        name: of its class, for example `SnapKVPress`.
    """

    def read(reader: Reader, sample: Sample, rate: int) -> Context:
        import kvpress

        before, within, after = reader.split(sample.shown, sample.context, sample.asked)
        before = [reader.tokenizer.bos_token_id, *before]
        ids = before + within
        kept = len(before) + len(within) // rate
        pressing = getattr(kvpress, name)(compression_ratio=1 - (kept + 0.5) / len(ids))
        score = pressing.score

        def keep_what_stands_before(*arguments: Any, **named: Any) -> torch.Tensor:
            scores = score(*arguments, **named).clone()
            scores[..., : len(before)] = torch.finfo(scores.dtype).max
            return scores

        pressing.score = keep_what_stands_before
        with pressing(reader.model):
            _, cache = reader.read(ids)
        left = cache.get_seq_length() - len(before)
        layer = cache.layers[0]
        entry = 2 * layer.keys[0, :, 0].numel() * layer.keys.element_size()
        return Context(cache, after, len(ids), left, left * entry * len(cache.layers))

    return read


METHODS: dict[str, Method] = {
    "text": text,
    "cut": cut,
    "tail": tail,
    "none": none,
    "llmlingua": llmlingua,
    "kvpress SnapKV": press("SnapKVPress"),
    "kvpress ExpectedAttention": press("ExpectedAttentionPress"),
}
"""Those that need no memslots; `lab.compare.memory` adds memory and its control."""

OF_TEXT = ("text", "none", "cut", "tail")

TOOLS = ",".join(name for name in METHODS if name not in OF_TEXT)
"""What the environment of kvpress and LLMLingua measures."""

ONE_RATE = ("text", "none")
