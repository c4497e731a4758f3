"""A context read once into a KV cache, by any method, and asked; in CPU seconds, bytes and nats."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

NEW_TOKENS = 16


class Context(NamedTuple):
    """What a method leaves for questions.

    Args:
        cache: of everything before the question.
        asked: the ids of what is read after it.
        next_position: of the first of them.
        context_tokens: cache entries of one layer that the context takes.
        stored_bytes: what is kept for the next question, apart from the cache.
    """

    cache: DynamicCache
    asked: list[int]
    next_position: int
    context_tokens: int
    stored_bytes: int


class Reader:
    """A frozen decoder and its tokenizer."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase):
        self.model, self.tokenizer = model, tokenizer
        self._prefixes: dict[tuple[int, ...], DynamicCache] = {}

    def after(self, prefix: list[int]) -> DynamicCache:
        """A cache of these ids, which are read once and served to every sample."""
        key = tuple(prefix)
        if key not in self._prefixes:
            self._prefixes[key] = self.read(prefix)[1]
        return copy.deepcopy(self._prefixes[key])

    def ids(self, text: str) -> list[int]:
        """Without control tokens."""
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def split(self, *parts: str) -> list[list[int]]:
        """The ids of texts that are tokenised as one; a token belongs to the part it begins in."""
        encoded = self.tokenizer(
            "".join(parts), add_special_tokens=False, return_offsets_mapping=True
        )
        split: list[list[int]] = [[] for _ in parts]
        ends = [sum(map(len, parts[: i + 1])) for i in range(len(parts))]
        for token, (start, _) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
            split[next(i for i, end in enumerate(ends) if start < end)].append(token)
        return split

    @torch.no_grad()
    def read(
        self, ids: list[int] | torch.Tensor, cache: DynamicCache | None = None, position: int = 0
    ) -> tuple[torch.Tensor, DynamicCache]:
        """Logits of every position, `(length, vocabulary)`, and the cache after it.

        Args:
            ids: token ids, or embeddings `(length, width)`.
            cache: of what came before.
            position: of the first token.
        """
        cache = DynamicCache() if cache is None else cache
        if isinstance(ids, torch.Tensor):
            inputs: dict[str, Any] = {"inputs_embeds": ids[None]}
        else:
            inputs = {"input_ids": torch.tensor([ids])}
        positions = torch.arange(position, position + len(ids))[None]
        outputs = self.model(**inputs, past_key_values=cache, position_ids=positions)
        return outputs.logits[0], outputs.past_key_values


def ask(
    reader: Reader, make: Callable[[], Context], answer: str, new_tokens: int = NEW_TOKENS
) -> dict[str, Any]:
    """Figures of one sample.

    Args:
        reader: of the decoder.
        make: reads the context.
        answer: what is right.
        new_tokens: most tokens that are said.

    Returns:
        `nats` and `right` over `tokens` of the answer (teacher-forced), the greedy `said` up to a
        newline, `prepare_s` until the context is read, `first_token_s` from a question to the first
        token of its answer (both of CPU time), `context_tokens`, `cache_bytes` and `stored_bytes`.
    """
    started = time.process_time()
    context = make()
    prepared = time.process_time()
    cache = copy.deepcopy(context.cache)
    began = time.process_time()
    logits, cache = reader.read(context.asked, cache, context.next_position)
    said = [int(logits[-1].argmax())]
    first = time.process_time()
    position = context.next_position + len(context.asked)
    gold = reader.ids(answer)
    gold_logits = [logits[-1:]]
    if gold[1:]:
        gold_logits.append(reader.read(gold[:-1], copy.deepcopy(cache), position)[0])
    log_probs = torch.cat(gold_logits).float().log_softmax(-1)
    target = torch.tensor(gold)
    while len(said) < new_tokens and "\n" not in reader.tokenizer.decode(said):
        logits, cache = reader.read(said[-1:], cache, position)
        said.append(int(logits[-1].argmax()))
        position += 1
    layer = context.cache.layers[0]
    entry = 2 * layer.keys[0, :, 0].numel() * layer.keys.element_size()
    return {
        "nats": -log_probs[torch.arange(len(gold)), target].sum().item(),
        "right": int((log_probs.argmax(-1) == target).sum()),
        "tokens": len(gold),
        "said": reader.tokenizer.decode(said).partition("\n")[0].strip(),
        "prepare_s": prepared - started,
        "first_token_s": first - began,
        "context_tokens": context.context_tokens,
        "cache_bytes": context.context_tokens * entry * len(context.cache.layers),
        "stored_bytes": context.stored_bytes,
    }
