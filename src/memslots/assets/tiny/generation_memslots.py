"""Answering from memories with the frozen decoder."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, cast

import torch
from transformers import GenerationConfig

from .configuration_memslots import max_positions
from .converters_memslots import evaluating
from .layout_memslots import Prompt, Row, pair, row_length
from .literals_memslots import Detectors
from .memory_loading_memslots import MemoryLoadingMixin
from .memory_memslots import Memory, slots_for
from .per_layer_memslots import per_layer_inputs, prefilled_with
from .prefix_memslots import Prefix, sequences_of
from .processing_memslots import CONTEXT_END, as_list

DEFAULT_NEW_TOKENS = 256

REFUSED = {
    "input_ids": "give context=, memory= and question=",
    "inputs": "give context=, memory= and question=",
    "inputs_embeds": "give context=, memory= and question=",
    "attention_mask": "memslots makes it",
    "position_ids": "memslots makes them",
    "past_key_values": "a memory takes its place",
    "assistant_model": "assisted generation needs token ids, not embeddings",
    "assistant_tokenizer": "assisted generation needs token ids, not embeddings",
    "assistant_early_exit": "assisted generation needs token ids, not embeddings",
    "prompt_lookup_num_tokens": "prompt lookup needs token ids, not embeddings",
    "use_mtp": "assisted generation needs token ids, not embeddings",
    "guidance_scale": "classifier-free guidance needs token ids, not embeddings",
    "negative_prompt_ids": "classifier-free guidance needs token ids, not embeddings",
    "negative_prompt_attention_mask": "classifier-free guidance needs token ids, not embeddings",
    "encoder_repetition_penalty": "it penalises prompt token ids, and slots have none",
    "encoder_no_repeat_ngram_size": "it compares prompt token ids, and slots have none",
    "custom_generate": "it replaces the decoder's generate; call it on model.decoder",
}
"""Arguments of `generate` that cannot work when the prompt is made of embeddings."""

_NEUTRAL = {"guidance_scale": 1.0, "encoder_repetition_penalty": 1.0}
"""Values of `REFUSED` arguments that ask for nothing; of the others, 0 and False do."""


class AnsweringMixin(MemoryLoadingMixin):
    """`generate` of `MemslotsModel`."""

    if TYPE_CHECKING:

        def expanded(self, memory: Memory, expand: Sequence[int]) -> Memory: ...  # noqa: D102

    def generate(
        self,
        context: str | Sequence[str] | None = None,
        question: str | Sequence[str] | None = None,
        memory: Memory | Prefix | None = None,
        messages: list | None = None,
        rate: int | None = None,
        batch_size: int = 32,
        chat_template_kwargs: dict[str, Any] | None = None,
        literals: Detectors | None = None,
        expand: Sequence[int] | None = None,
        **generate_kwargs,
    ):
        """Answer questions from contexts or from memories of them.

        Args:
            context: a text or n texts, compressed on the spot.
            question: a question or n questions. n contexts with n questions pair; one of either is
                used for all of the other.
            memory: what `compress` returned, or `prefill`, in place of `context`.
            messages: a chat, or n chats, in place of `question`; `[{"role", "content"}, ...]`.
            rate: encoder tokens per slot for `context`; for `memory`, a coarser rate than its own.
            batch_size: rows that the decoder generates for at once.
            chat_template_kwargs: passed to the chat template.
            literals: for `context`, as for `compress`.
            expand: for `memory`, segments (indices in `memory.segments`) whose text the decoder
                reads beside the slots of the rest, see `Memory.expand`.
            generate_kwargs: any argument of `transformers`' `generate` (sampling, beams, streamer,
                stop strings, ...); those that cannot work with embeddings are refused by name.

        Returns:
            One string where both sides were single, else a list in order (with
            `num_return_sequences=k`, k consecutive strings an answer). With
            `return_dict_in_generate=True`, what the decoder's `generate` returns.

        Raises:
            ValueError: empty texts, lists that do not go together, a rate it was not trained for, a
                memory of another compressor, refused arguments, no decoder, or more positions than
                the decoder has.
            TypeError: arguments of another type.
        """
        processor = self._need_processor()
        self._need_decoder()
        self._check_generate_kwargs(generate_kwargs)
        if (context is None) == (memory is None):
            raise ValueError(
                "give either context=... or memory=..., "
                f"got {'both' if context is not None else 'neither'}."
            )
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
        prompts, single_prompt = self._prompts(question, messages, chat_template_kwargs or {})
        # Of this module or a copy of it; see _check_memory.
        prefix = cast("Prefix | None", memory if hasattr(memory, "states") else None)
        memory = cast("Memory | None", memory if prefix is None else prefix.memory)
        if prefix is not None:
            prefix.check(self, prompts, rate, generate_kwargs)
        if expand is not None and (memory is None or prefix is not None):
            raise ValueError("expand=[...] goes with a memory that compress or load_memory gave.")
        if memory is None:
            texts = as_list(context, "context")
            if not texts:
                raise ValueError("context is an empty list; give at least one text.")
            single = isinstance(context, str)
            pairs = pair(len(texts), len(prompts))
            rate = processor.check_rate(rate)
            spans = self.segment(texts)
            sizes = [[(len(span.ids), rate) for span in document] for document in spans]
            # Whether all fits is known before anything is encoded.
            found = self._find_literals(texts, spans, literals)
            beside = [processor.literal_ids(own) for own in found]
            self._check_room(sizes, beside, rate, prompts, pairs, generate_kwargs)
            memory = self._compress_spans(texts, spans, found, rate)
        else:
            self._check_memory(memory)
            if literals is not None:
                raise ValueError(
                    "literals=... goes with context=...; a memory keeps those that it was "
                    "compressed with."
                )
            single = len(memory) == 1
            pairs = pair(len(memory), len(prompts))
            if rate is not None:
                memory = memory.at_rate(processor.check_rate(rate))
            if expand is not None:
                memory = self.expanded(memory, expand)
            beside = self._document_literals(memory)
            self._check_room(
                self._sizes(memory), beside, memory.rate, prompts, pairs, generate_kwargs
            )
        held = cast(Memory, memory)
        rows = self.memory_rows(held, [(i, prompts[j]) for i, j in pairs])
        answers = self.answer_rows(rows, held, batch_size, generate_kwargs, prefix)
        if generate_kwargs.get("return_dict_in_generate"):
            return answers
        return answers[0] if single and single_prompt and len(answers) == 1 else answers

    def answer_rows(
        self,
        rows: list[Row],
        memory: Memory | None,
        batch_size: int,
        given: dict[str, Any],
        prefix: Prefix | None = None,
    ):
        """Answers to laid-out rows, in order.

        Args:
            rows: without targets, of one context's room each.
            memory: what they read; None where they read tokens alone.
            batch_size: rows that the decoder generates for at once.
            given: arguments of `generate`, checked.
            prefix: of `memory`, where the decoder has read it.

        Returns:
            A list of strings, or with `return_dict_in_generate=True` what the decoder returns.
        """
        decoder, processor = self._need_decoder(), self._need_processor()
        kwargs = self._generation_defaults(rows, memory, given)
        if kwargs.get("return_dict_in_generate") and len(rows) > batch_size:
            raise ValueError(
                f"return_dict_in_generate=True returns one batch; {len(rows)} answers need "
                f"batch_size={len(rows)}, got {batch_size}."
            )
        answers: list[str] = []
        for start in range(0, len(rows), batch_size):
            batch = rows[start : start + batch_size]
            output = self._generate_rows(decoder, batch, memory, kwargs, prefix)
            if kwargs.get("return_dict_in_generate"):
                return output
            answers += [processor.decode(ids).strip() for ids in output]
        return answers

    def memory_rows(self, memory: Memory, asked: Sequence[tuple[int, Prompt]]) -> list[Row]:
        """A decoder row for each prompt about a document of `memory`, without targets.

        Args:
            memory: what the rows' segments are indices in.
            asked: index of the document and prompt of each row.
        """
        starts = [0]
        for document in memory.documents:
            starts.append(starts[-1] + len(document))
        literals, sizes = self._document_literals(memory), self._sizes(memory)
        return [
            Row(
                list(range(starts[i], starts[i + 1])),
                self._apart(prompt, sizes[i]),
                literals=literals[i],
            )
            for i, prompt in asked
        ]

    def _apart(self, prompt: Prompt, sizes: list[tuple[int, int]]) -> Prompt:
        """The prompt, parted from a context that ends as text as it is from a full text."""
        if not prompt.after or not sizes or sizes[-1][1] != 0:
            return prompt
        return Prompt(prompt.before, self._context_end() + prompt.after)

    def _context_end(self) -> list[int]:
        return self._need_processor().decoder_text.encode(CONTEXT_END)

    def _document_literals(self, memory: Memory) -> list[list[list[int]]]:
        """Decoder tokens beside the slots of each document's segments, or in their place."""
        found, texts = self._beside(memory), memory.segment_texts
        documents, start = [], 0
        for document in memory.documents:
            end = start + len(document)
            for i, (one, following) in enumerate(pairwise(document), start):
                if one.text != following.text and texts[i] and texts[i + 1]:
                    found[i] = found[i] + self._context_end()
            own = found[start:end]
            documents.append(own if any(own) else [])
            start = end
        return documents

    def _beside(self, memory: Memory) -> list[list[int]]:
        """Decoder tokens of each segment's literals, after its text where that is read as text."""
        processor = self._need_processor()
        found = processor.literal_ids(memory.literals) or [[] for _ in memory.segments]
        for i, text in enumerate(memory.segment_texts):
            if text is not None:
                found[i] = processor.decoder_text.encode(text) + found[i]
        return found

    @staticmethod
    def _sizes(memory: Memory) -> list[list[tuple[int, int]]]:
        """Encoder tokens and rate of each document's segments."""
        rates = iter(memory.segment_rates)
        return [[(s.tokens, next(rates)) for s in document] for document in memory.documents]

    def memory_positions(self, memory: Memory) -> list[int]:
        """Decoder positions that each document takes: slots, literals' tokens and markers."""
        slots = [segment.slots for segment in memory.segments]
        rows = self.memory_rows(memory, [(i, Prompt()) for i in range(len(memory))])
        return [
            row_length(row, slots, self.config.markers, self.config.vectors_per_slot)
            for row in rows
        ]

    # -- checks ------------------------------------------------------------------------------------

    def _check_generate_kwargs(self, kwargs: dict[str, Any]) -> None:
        given = dict(kwargs)
        generation_config = kwargs.get("generation_config")
        if isinstance(generation_config, GenerationConfig):
            given.update(generation_config.to_diff_dict())
        for name, reason in REFUSED.items():
            value = given.get(name)
            if value is None:
                continue
            if isinstance(value, (int, float)) and value == _NEUTRAL.get(name, 0):
                continue
            raise ValueError(f"generate does not take {name} here: {reason}.")

    def _prompts(
        self, question, messages, template_kwargs: dict[str, Any]
    ) -> tuple[list[Prompt], bool]:
        processor = self._need_processor()
        if messages is None:
            if question is None:
                raise ValueError("give question=... or messages=[...], got neither.")
            questions = as_list(question, "question")
            if not questions:
                raise ValueError("question is an empty list; give at least one question.")
            prompts = [processor.prompt(question=q, **template_kwargs) for q in questions]
            return prompts, isinstance(question, str)
        if question is not None:
            raise ValueError("give either question=... or messages=[...], got both.")
        if not isinstance(messages, (list, tuple)):
            raise TypeError(f"messages must be a list, got {type(messages).__name__}.")
        single = bool(messages) and isinstance(messages[0], dict)
        chats = [messages] if single else list(messages)
        if not chats:
            raise ValueError("messages is an empty list; give at least one message.")
        return [processor.prompt(messages=chat, **template_kwargs) for chat in chats], single

    def _check_room(
        self,
        sizes: list[list[tuple[int, int]]],
        literals: list[list[list[int]]],
        rate: int,
        prompts: list[Prompt],
        pairs: list[tuple[int, int]],
        generate_kwargs: dict[str, Any],
    ) -> None:
        """Refuse what the decoder's positions cannot hold, and say what would fit."""
        limit = max_positions(self._need_decoder().config)
        if limit is None:
            return
        given = generate_kwargs.get("generation_config")
        new_tokens = generate_kwargs.get("max_new_tokens") or (given and given.max_new_tokens) or 1
        markers, each = self.config.markers, self.config.vectors_per_slot

        def slots_at(i: int, at: int) -> list[int]:
            return [slots_for(count, max(own, at) if own else 0) for count, own in sizes[i]]

        def positions(i: int, j: int, at: int) -> int:
            slots = slots_at(i, at)
            asked = self._apart(prompts[j], sizes[i])
            row = Row(list(range(len(slots))), asked, literals=literals[i])
            return row_length(row, slots, markers, each)

        for i, j in pairs:
            needed = positions(i, j, rate) + new_tokens
            if needed <= limit:
                continue
            slots = sum(slots_at(i, rate))
            coarser = [
                r
                for r in self.config.compression_rates
                if r > rate and positions(i, j, r) + new_tokens <= limit
            ]
            advice = (
                f"rate={coarser[0]} would fit"
                if coarser
                else "no rate of this checkpoint would fit, so split the context"
            )
            exact = sum(map(len, literals[i]))
            beside = f"{exact} tokens of literals, " if exact else ""
            raise ValueError(
                f"context {i} has {slots} slots at rate {rate}; with markers, {beside}prompt and "
                f"{new_tokens} new tokens that is {needed} positions, and the decoder has {limit}: "
                f"{max(0, slots + (limit - needed) // each)} slots fit; {advice}."
            )

    # -- running -----------------------------------------------------------------------------------

    def _generation_defaults(
        self, rows: list[Row], memory: Memory | None, given: dict[str, Any]
    ) -> dict[str, Any]:
        """`given`, with what the decoder's own generation configuration leaves open."""
        decoder, processor = self._need_decoder(), self._need_processor()
        kwargs = dict(given)
        own = decoder.generation_config
        base = kwargs.get("generation_config") or own
        # What a given configuration leaves open is the decoder's own, and only then ours.
        if base.eos_token_id is None and own.eos_token_id is None and processor.eos_ids:
            kwargs.setdefault("eos_token_id", processor.eos_ids[0])
        if base.pad_token_id is None and own.pad_token_id is None:
            kwargs.setdefault("pad_token_id", processor.pad_id)
        limits = ("max_new_tokens", "max_length", "max_time")
        chosen = [kwargs.get(name) for name in limits]
        if base is not own:
            chosen += [getattr(base, name) for name in limits]
        if all(limit is None for limit in chosen):
            slots = [] if memory is None else [segment.slots for segment in memory.segments]
            used = max(
                row_length(row, slots, self.config.markers, self.config.vectors_per_slot)
                for row in rows
            )
            room = max_positions(decoder.config)
            kwargs["max_new_tokens"] = (
                DEFAULT_NEW_TOKENS if room is None else max(1, min(DEFAULT_NEW_TOKENS, room - used))
            )
        if kwargs.get("stop_strings") or base.stop_strings:
            kwargs.setdefault("tokenizer", processor.tokenizer)
        return kwargs

    @torch.no_grad()
    def _generate_rows(
        self, decoder, rows: list[Row], memory: Memory | None, kwargs, prefix: Prefix | None = None
    ):
        """New token ids of laid-out rows, `(rows, new tokens)`."""
        inputs: dict[str, Any] = {**self.generation_inputs(rows, memory)}
        per_layer = inputs.pop("per_layer_inputs", None)
        injected = inputs.pop("injected", None)
        if prefix is not None:
            cache = prefix.cache(decoder, rows, sequences_of(decoder, kwargs))
            if cache is not None:  # generate leaves out the embeddings of what it holds
                inputs["past_key_values"] = cache
                if per_layer is not None:
                    per_layer = per_layer[:, cache.get_seq_length() :]
                if injected is not None:
                    injected = injected[:, cache.get_seq_length() :]
        reading = nullcontext() if memory is None else self.reading(injected)
        with reading, prefilled_with(decoder, per_layer):
            return decoder.generate(**inputs, **kwargs)

    def generation_inputs(self, rows: list[Row], memory: Memory | None) -> dict[str, Any]:
        """Left-padded `inputs_embeds` `(rows, length, d_decoder)` and `attention_mask`, and
        `per_layer_inputs` where the decoder has per-layer embeddings (see `per_layer_memslots`),
        and with `inject_layer` the `injected` that `reading` takes.
        """
        asked = [replace(row, target=[], given=0, predicted=None) for row in rows]
        inputs = self.row_inputs(asked, memory)
        return {name: tensor for name, tensor in inputs.items() if name != "labels"}

    @torch.no_grad()
    def row_inputs(
        self, rows: list[Row], memory: Memory | None, padding_side: str = "left"
    ) -> dict[str, Any]:
        """`inputs_embeds` `(rows, length, d_decoder)`, `attention_mask` and `labels` of rows that
        read segments of `memory`, or none, and `per_layer_inputs` where the decoder needs them, and
        with `inject_layer` the `injected` that `reading` takes.
        """
        counts = [] if memory is None else [segment.slots for segment in memory.segments]
        used = sorted({i for row in rows for i in row.segments})
        starts = [0]
        for count in counts:
            starts.append(starts[-1] + count)
        renumber = {old: new for new, old in enumerate(used)}
        laid_out = self._need_processor().lay_out(
            [replace(row, segments=[renumber[i] for i in row.segments]) for row in rows],
            [counts[i] for i in used],
            padding_side,
        )
        device = self.encoder.device
        slots = self.markers.new_zeros(0, self.config.slot_size)
        if memory is not None and used:
            slots = torch.cat([memory.slots[starts[i] : starts[i + 1]] for i in used])
        input_ids = laid_out["input_ids"].to(device)
        with evaluating(self.converter):
            converted, _ = self._convert(slots.to(device))
        embeds, injected = self._place(input_ids, laid_out["memory_ids"].to(device), converted)
        per_layer = per_layer_inputs(self._need_decoder(), input_ids)
        return {
            **({} if per_layer is None else {"per_layer_inputs": per_layer}),
            **({} if injected is None else {"injected": injected}),
            "inputs_embeds": embeds,
            "attention_mask": laid_out["attention_mask"].to(device),
            "labels": laid_out["labels"].to(device),
        }
