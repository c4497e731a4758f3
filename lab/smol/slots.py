"""What `lab.smol.train` trains: the package's own modules, in rows of one length without padding.

Adapter, pooling, converter and markers are in float32 beside a decoder in bfloat16, and have the
names that they have in a `MemslotsModel`; tests/test_smol_training.py holds both to equal outputs.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from memslots.modeling.encoders_memslots import (
    LORA_MARK,
    GroupPool,
    ResidualConverter,
    add_lora,
    first_layers,
)
from memslots.start_weights import draw_converter, draw_group_pool

LORA_LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class Slots(nn.Module):
    """Adapter, pooling, converter and markers, beside the decoder that they are trained for.

    Args:
        decoder: a frozen Llama, in the precision that everything is computed in.
        tokenizer: its tokenizer, for the words that markers start as.
        layers: of the decoder, that encode.
        rank: of the LoRA.
        pool_hidden: width inside the pooling.
        places: the coarsest rate.
        segment: tokens that are encoded together at most.
        marked: whether `<MEM>` and `</MEM>` stand around the slots.
    """

    decoder: Any
    table: torch.Tensor
    head: torch.Tensor
    prefixes: dict[tuple[int, ...], DynamicCache]

    def __init__(
        self,
        decoder: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        layers: int = 8,
        rank: int = 48,
        pool_hidden: int = 768,
        places: int = 8,
        segment: int = 64,
        marked: bool = True,
    ):
        super().__init__()
        self.segment, self.marked = segment, marked
        width = decoder.config.hidden_size
        self.encoder = first_layers(decoder, layers)
        names = {"r": rank, "alpha": rank, "dropout": 0.0, "target_modules": LORA_LAYERS}
        add_lora(self.encoder, names)
        for name, weight in self.encoder.named_parameters():
            if LORA_MARK in name:  # trained in float32, beside layers in the decoder's precision
                weight.data = weight.data.float()
                if "lora_A" in name:
                    nn.init.normal_(weight, std=1 / math.sqrt(weight.shape[1]))
        self.group_pool = GroupPool(width, pool_hidden, places)
        draw_group_pool(self.group_pool)
        self.converter = ResidualConverter(width, width, width)
        draw_converter(self.converter, 1.0)
        table = decoder.get_input_embeddings().weight

        def words(text: str) -> torch.Tensor:
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            return table[torch.tensor(ids, device=table.device)].float().mean(dim=0)

        self.markers = nn.Parameter(
            torch.stack([words("\n\n"), words("\n\n"), words("Repeat the text:\n\n")])
        )
        self.to(table.device)
        # Not registered: they are the decoder's, and a checkpoint holds what is trained.
        head = decoder.get_output_embeddings().weight
        self.__dict__.update(decoder=decoder, table=table, head=head, prefixes={})

    def trained(self) -> dict[str, nn.Parameter]:
        """The weights of a checkpoint, by name."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def write(self, ids: torch.Tensor, rate: int) -> torch.Tensor:
        """What the decoder reads in place of `(rows, tokens)`: `(rows, slots, width)`.

        Tokens beyond `segment` are read segment by segment, as a compressor reads a long text: the
        last segment may be a short one, and so may the last group of a segment.
        """
        tokens = ids.shape[1]
        whole = tokens - tokens % self.segment
        parts = [part for part in ids.tensor_split([whole], dim=1) if part.shape[1]]
        return torch.cat([self._write(part, rate) for part in parts], dim=1)

    def _write(self, ids: torch.Tensor, rate: int) -> torch.Tensor:
        """Of texts that are whole segments, or shorter than one."""
        embeds = self.table[ids.reshape(-1, min(self.segment, ids.shape[1]))]
        states = self.encoder(inputs_embeds=embeds, use_cache=False).last_hidden_state
        segments, length = embeds.shape[:2]
        slots_each = -(-length // rate)
        n_groups = segments * slots_each
        first = slots_each * torch.arange(segments, device=ids.device)
        groups = (first[:, None] + torch.arange(length, device=ids.device) // rate).flatten()
        slots = self.group_pool(
            embeds.flatten(0, 1), states.flatten(0, 1), groups, n_groups, places=rate
        )
        return self.converter(slots).to(embeds).unflatten(0, (len(ids), -1))

    def reconstruct(self, ids: torch.Tensor, rate: int) -> Scores:
        """`[BOS] <MEM> slots </MEM> <AE>` text EOS (PCC, eq. 4)."""
        rows = len(ids)
        begin, asked = self._rows(rows, self._bos()), self._rows(rows, self._marker(2))
        parts = [begin, *self._memory(ids, rate), asked, self.table[ids]]
        target = functional.pad(ids, (0, 1), value=self.decoder.config.eos_token_id)
        return self._score(self._states(parts, target.shape[1]).flatten(0, 1), target.flatten())

    def complete(
        self,
        ids: torch.Tensor,
        following: torch.Tensor,
        rate: int,
        distilled: float = 0.5,
        scored: torch.Tensor | None = None,
        before: torch.Tensor | None = None,
        shown: tuple[int, ...] | None = None,
    ) -> Scores:
        """`[BOS] before <MEM> slots </MEM>` and what follows (PCC, eq. 3), distilled from the text.

        What follows may be the next words of a text, words of the text itself, to be recalled by
        the ones that stand before them there, or a question and its answer.

        Args:
            ids: `(rows, tokens)` to be compressed.
            following: `(rows, length)`.
            rate: tokens a slot.
            distilled: weight of the divergence from the decoder that reads the text.
            scored: `(rows, length)`, which tokens count; without it all but the first.
            before: `(rows, any)` tokens before the memory.
            shown: ids that every row begins with, in place of BOS; read once and kept.
        """
        rows = len(ids)
        start = [] if shown else [self._rows(rows, self._bos())]
        if before is not None:
            start.append(self.table[before])
        read = self.table[following[:, :-1]]
        slots = self._memory(ids, rate)
        last = following.shape[1] - 1
        counted = slice(None) if scored is None else scored[:, 1:].flatten()
        teacher = None
        if distilled:
            with torch.no_grad():
                taught = self._states([*start, self.table[ids], read], last, shown)
                teacher = taught.flatten(0, 1)[counted]
        states = self._states([*start, *slots, read], last, shown).flatten(0, 1)[counted]
        return self._score(states, following[:, 1:].flatten()[counted], teacher, distilled)

    def without_memory(
        self,
        following: torch.Tensor,
        ids: torch.Tensor | None = None,
        scored: torch.Tensor | None = None,
        before: torch.Tensor | None = None,
        shown: tuple[int, ...] | None = None,
    ) -> Scores:
        """The same continuation from the full text `ids`, or from nothing."""
        parts = [] if shown else [self._rows(len(following), self._bos())]
        parts += [self.table[read] for read in (before, ids) if read is not None]
        parts.append(self.table[following[:, :-1]])
        last = following.shape[1] - 1
        counted = slice(None) if scored is None else scored[:, 1:].flatten()
        states = self._states(parts, last, shown).flatten(0, 1)[counted]
        return self._score(states, following[:, 1:].flatten()[counted])

    def _memory(self, ids: torch.Tensor, rate: int) -> list[torch.Tensor]:
        """`<MEM>` slots `</MEM>`."""
        slots = self.write(ids, rate)
        if not self.marked:
            return [slots]
        return [self._rows(len(ids), self._marker(0)), slots, self._rows(len(ids), self._marker(1))]

    def _marker(self, number: int) -> torch.Tensor:
        """Of `<MEM>`, `</MEM>` and `<AE>`."""
        return self.markers[number : number + 1].to(self.table)

    def _bos(self) -> torch.Tensor:
        index = self.decoder.config.bos_token_id
        return self.table[index : index + 1]

    def _rows(self, rows: int, *vectors: torch.Tensor) -> torch.Tensor:
        return torch.cat(vectors).expand(rows, -1, -1)

    def _states(
        self, parts: list[torch.Tensor], last: int, shown: tuple[int, ...] | None = None
    ) -> torch.Tensor:
        embeds = torch.cat(parts, dim=1)
        cache = None
        if shown:
            if shown not in self.prefixes:
                ids = torch.tensor([shown], device=self.table.device)
                with torch.no_grad():
                    self.prefixes[shown] = self.decoder.model(ids, use_cache=True).past_key_values
            cache = DynamicCache()
            for number, layer in enumerate(self.prefixes[shown].layers):
                kept = (part.expand(len(embeds), -1, -1, -1) for part in (layer.keys, layer.values))
                cache.update(*kept, number)
        outputs = self.decoder.model(
            inputs_embeds=embeds,
            past_key_values=cache,
            use_cache=cache is not None,
        )
        return outputs.last_hidden_state[:, -last:]

    def _score(
        self,
        states: torch.Tensor,
        target: torch.Tensor,
        teacher: torch.Tensor | None = None,
        distilled: float = 0.0,
    ) -> Scores:
        return Scores(*_Head.apply(states, target, teacher, distilled, self.head))


class Scores(tuple):
    """`loss`, to be trained on, and its `nats` a token, the share `right` and the divergence."""

    def __new__(cls, *values: torch.Tensor):
        """Of four scalars."""
        return super().__new__(cls, values)

    loss = property(lambda self: self[0])
    nats = property(lambda self: self[1].item())
    right = property(lambda self: self[2].item())
    divergence = property(lambda self: self[3].item())


def score_part(
    states: torch.Tensor,
    target: torch.Tensor,
    teacher: torch.Tensor | None,
    distilled: torch.Tensor,
    head: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums over some targets: nats, how many are right, divergence; and the loss's gradient."""
    logits = (states @ head.T).float()
    right = (logits.argmax(-1) == target).sum()
    log_probs = logits.sub_(logits.logsumexp(-1, keepdim=True))
    nats = -log_probs.gather(1, target[:, None]).sum()
    places = torch.arange(len(target), device=states.device)
    if teacher is None:
        divergence = torch.zeros_like(nats)
        change = log_probs.exp_()
        change[places, target] -= 1
    else:
        taught = (teacher @ head.T).float().log_softmax(-1)
        probs = taught.exp()
        divergence = (probs * (taught - log_probs)).sum()
        change = log_probs.exp_().sub_(probs.mul_(distilled))
        change[places, target] -= 1 - distilled
    return torch.stack([nats, right.float(), divergence]), change.to(states.dtype) @ head


@cache
def _scoring(device: str) -> Any:
    """`score_part`, compiled for a GPU: a few passes over the logits instead of a dozen."""
    return score_part if device == "cpu" else torch.compile(score_part)


class _Head(torch.autograd.Function):
    """Cross-entropy, and divergence from a teacher, without keeping logits of all targets."""

    @staticmethod
    def forward(ctx, states, target, teacher, distilled, head):
        gradient = torch.empty_like(states)
        sums = torch.zeros(3, device=states.device)
        size = 256 if states.device.type == "cpu" else 4096
        score = _scoring(states.device.type)
        weight = torch.tensor(distilled, device=states.device)
        for first in range(0, len(states), size):
            part = slice(first, first + size)
            taught = None if teacher is None else teacher[part]
            scored, change = score(states[part], target[part], taught, weight, head)
            sums = sums + scored
            gradient[part] = change / len(states)
        ctx.save_for_backward(gradient)
        nats, right, divergence = sums / len(states)
        loss = nats.clone() if teacher is None else (1 - distilled) * nats + distilled * divergence
        ctx.mark_non_differentiable(nats, right, divergence)
        return loss, nats, right, divergence

    @staticmethod
    def backward(ctx, gradient, *_):
        return ctx.saved_tensors[0] * gradient, None, None, None, None
