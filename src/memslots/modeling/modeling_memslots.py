"""MemslotsModel: an encoder writes slots, a converter maps them, a frozen decoder reads them.

Implements PCC ("Pretraining Context Compressor for Large Language Models with Embedding-Based
Memory"); section and equation numbers are the paper's. To be read after `configuration_memslots`
and before `processing_memslots` and `memory_memslots`.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from .checkpoint_memslots import NotLoaded, SavedModel
from .configuration_memslots import MemslotsConfig
from .decoders_memslots import (
    DecoderLora,
    LoraUp,
    TaskTargets,
    check_generate_kwargs,
    check_settings,
    decoder_logits,
    generation_defaults,
    per_layer_inputs,
    prefilled_with,
    reading,
    task_targets,
)
from .decoders_memslots import reconstruct as _reconstruct
from .encoders_memslots import (
    CONVERTERS,
    POOLS,
    GroupPool,
    SentenceHead,
    StatesRead,
    add_lora,
    build_encoder,
    check_takes_positions,
    convert,
    encode_spans,
    evaluating,
    fuse_activations,
    memory_token_slots,
    pooled_slots,
    sentence_slots,
    states_read,
)
from .layout_memslots import ANSWER, Prompt, Row, check_room, max_positions, memory_rows, pair
from .memory_files_memslots import Segment
from .memory_memslots import Memory, slots_for
from .texts_memslots import Detectors, Span, as_list, check_text


@dataclass
class MemslotsOutput(ModelOutput):
    """What `MemslotsModel.forward` returns.

    Args:
        loss: scalar; with labels alone.
        logits: `(rows, length, vocabulary)`; without labels alone.
        slots: `(total_slots, d_encoder)`.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    slots: torch.Tensor | None = None


Criterion = Callable[[Iterable[TaskTargets]], MemslotsOutput]
"""From the targets of each task that a batch has, in order, to its losses."""


class MemslotsModel(SavedModel):
    """A context compressor and the frozen decoder that it writes for.

    `model.decoder` and `model.processor` raise a `ValueError` that says what to do where the model
    was made without them; `has_decoder` asks. Several threads may use one model, and several
    compressors one decoder: while it reads for one of them, the others wait.

    Args:
        config: what to build; weights are new (see `from_pretrained`, `memslots.new_compressor`).
        encoder: an encoder to take in place of a new one.
        load_decoder: False leaves the decoder out even where the checkpoint holds it.
        sentence_head: a head that goes with `encoder`, with pooling "sentence".
    """

    base_model_prefix = "memslots"
    main_input_name = "segment_input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _keys_to_ignore_on_load_unexpected = [r"^decoder\."]

    def __init__(
        self,
        config: MemslotsConfig,
        encoder: PreTrainedModel | None = None,
        load_decoder: bool = True,
        sentence_head: SentenceHead | None = None,
    ):
        super().__init__(config)
        if encoder is None:
            encoder = build_encoder(config)
            if config.encoder_lora is not None:
                add_lora(encoder, config.encoder_lora)
        self.encoder = encoder
        fuse_activations(encoder)
        if config.encoder_lora is not None:  # the base is loaded after the adapter
            self._keys_to_ignore_on_load_missing = [r"^encoder\.(?!.*\.lora_)"]
        self.encoder.config.use_cache = False
        d_decoder = config.get_text_config(decoder=True).hidden_size
        self.sentence_head = None
        if config.pooling == "sentence":
            if config.sentence_encoder is None:
                raise ValueError(
                    "pooling='sentence' needs a sentence encoder; make the compressor with "
                    "memslots.new_compressor(encoder, decoder, pooling='sentence')."
                )
            self.sentence_head = sentence_head or SentenceHead(config.sentence_encoder["head"])
            self.freeze_sentence_encoder()
            if not config.bundle_encoder:  # read from where it is named, after the rest
                self._keys_to_ignore_on_load_missing = [r"^encoder\."]
        self.register_parameter("memory_tokens", None)
        if config.pooling == "memory_tokens":
            width = encoder.get_input_embeddings().weight.shape[1]  # ALBERT's is not its states'
            self.memory_tokens = nn.Parameter(torch.empty(config.max_slots, width))
        self.group_pool = POOLS[config.pooling](config) if config.pooling in POOLS else None
        if config.memory_positions == "spread":
            check_takes_positions(self.encoder)
        self.slot_size = config.slot_size
        self.converter = CONVERTERS[config.converter_type](config)
        self.markers = nn.Parameter(torch.empty(3, d_decoder))
        self.decoder_lora: DecoderLora | None = None
        if config.decoder_lora is not None:
            self.decoder_lora = DecoderLora(config.decoder_config, config.decoder_lora)
        if config.bundle_decoder and (load_decoder or config.encoder_layers):
            self.decoder = AutoModelForCausalLM.from_config(config.decoder_config)
            self.decoder.requires_grad_(False)
        self._fingerprint, self._stated, self._names = None, None, {}
        self.post_init()

    def __getattr__(self, name: str):
        """As `torch.nn.Module`, but says what to do where the decoder or processor is missing."""
        if name == "decoder" and not self.has_decoder:
            raise NotLoaded(self.needs_decoder)
        if name == "processor":
            raise NotLoaded(
                "this model has no processor, so it cannot read text; load it with "
                "from_pretrained, or set model.processor = MemslotsProcessor(...)."
            )
        return super().__getattr__(name)

    @property
    def has_decoder(self) -> bool:
        """Whether the decoder is at hand."""
        return self.__dict__.get("_modules", {}).get("decoder") is not None

    # -- weights -----------------------------------------------------------------------------------

    def _init_weights(self, module: nn.Module) -> None:
        """Of what is not loaded; `memslots.new_compressor` draws what suits the two models."""
        super()._init_weights(module)
        if isinstance(module, LoraUp):
            init.zeros_(module.weight)
        elif isinstance(module, (MemslotsModel, GroupPool)):
            for weight in module.parameters(recurse=False):
                init.normal_(weight, std=self.config.initializer_range)

    def train(self, mode: bool = True) -> "MemslotsModel":
        """As `torch.nn.Module.train`, but the frozen decoder stays in evaluation mode."""
        super().train(mode)
        if mode:  # fused optimizers change weights without counting it, so the version is not proof
            self._name_weights()
            self._fingerprint = None
        if self.has_decoder:
            self.decoder.eval()
        if self.sentence_head is not None and not self.config.train_encoder:
            self.encoder.eval()
        return self

    def get_input_embeddings(self) -> nn.Module:
        """The encoder's: where the text enters."""
        return self.encoder.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module | None:
        """The decoder's language-model head."""
        return self.decoder.get_output_embeddings() if self.has_decoder else None

    @property
    def fingerprint(self) -> str:
        """Identity of encoder, memory tokens, encoder tokenizer and segmentation (SHA-256).

        Examples:
            >>> model.compress("Ann is here.").fingerprint == model.fingerprint
            True
        """
        # Weights count their in-place changes, so training makes the kept value stale.
        version = self._weight_versions()
        if self._fingerprint is None or self._fingerprint[0] != version:
            digest = self.fingerprint_of(self.state_dict())
            self._fingerprint = (version, self._names.get(digest, digest))
        return self._fingerprint[1]

    def _weight_versions(self) -> tuple[Any, ...]:
        parts = [self.encoder, *filter(None, (self.sentence_head, self.group_pool))]
        weights = [weight for part in parts for weight in part.parameters()]
        weights += [] if self.memory_tokens is None else [self.memory_tokens]
        return (*map(id, parts), *((weight._version, weight.dtype) for weight in weights))

    # -- writing slots -----------------------------------------------------------------------------

    def encode(
        self,
        segment_input_ids: torch.Tensor,
        segment_attention_mask: torch.Tensor,
        segment_rates: torch.Tensor,
        read: StatesRead | None = None,
    ) -> torch.Tensor:
        """Slots `(total_slots, d_encoder)` of a batch of segments, one encoder pass (PCC, eq. 1).

        Args:
            segment_input_ids: `(segments, tokens)`, right-padded.
            segment_attention_mask: `(segments, tokens)`, 1 for tokens.
            segment_rates: `(segments,)`, encoder tokens per slot of each.
            read: `states_read` of these segments, so that a GPU need not be waited for.

        Examples:
            >>> inputs = processor.collate_segments(processor.segment("Ann is here."))
            >>> model.encode(**inputs, segment_rates=torch.tensor([4])).shape[1]
            24
        """
        lengths = segment_attention_mask.sum(dim=1)
        if self.sentence_head is not None:
            return sentence_slots(self, segment_input_ids, lengths)
        pooled = self.memory_tokens is None
        if read is None:
            read = states_read(lengths, -(-lengths // segment_rates), pooled)
        write = pooled_slots if pooled else memory_token_slots
        return write(self, segment_input_ids, lengths, segment_rates, read)

    @torch.no_grad()
    def compress(
        self,
        text: str | Sequence[str],
        rate: int | None = None,
        literals: Detectors | None = None,
        keep_text: bool = False,
        batch_tokens: int | None = None,
        progress: bool | None = None,
    ) -> Memory:
        """Compress one text or several, once; the memory then answers any number of questions.

        Args:
            text: a text, or n texts (n documents).
            rate: encoder tokens per slot; one of `config.compression_rates`, by default the finest.
            literals: what rides beside the slots as ordinary tokens and so comes back exactly:
                a name of `texts_memslots.DETECTORS` ("numbers"), a function from a text to
                `(start, end)` spans, or a list of these; `[]` for nothing, None for what the
                checkpoint's config says.
            keep_text: whether the text itself goes into the memory (the decoder does not read it),
                for `reconstruct(memory, exact=True)` and `expand`.
            batch_tokens: most encoder tokens, padding included, in one encoder pass; by default
                4,096 on a CPU, where larger ones are slower, and 16,384 elsewhere.
            progress: show a progress bar; by default when there are more than 20 passes.

        Returns:
            A `Memory` of n documents on this model's device.

        Raises:
            ValueError: an empty text, a lone surrogate, or a rate it was not trained for.
            TypeError: not a string.

        Examples:
            >>> memory = model.compress("Ann owns 27 maps of Lagos.", rate=4)
            >>> len(memory), memory.rate
            (1, 4)
        """
        texts = as_list(text, "context")
        rate = self.processor.check_rate(rate)
        spans = self.segment(texts)
        memory = self.outline(texts, spans, rate, literals, keep_text)
        flat = [span for document in spans for span in document]
        return replace(memory, slots=encode_spans(self, flat, rate, batch_tokens, progress))

    def segment(self, texts: Sequence[str]) -> list[list[Span]]:
        """Spans of each text, which `compress` encodes independently; errors name the text.

        Examples:
            >>> [[(span.start, span.end) for span in spans] for spans in model.segment(["Ann."])]
            [[(0, 4)]]
        """
        for i, text in enumerate(texts):
            check_text(text, "context" if len(texts) == 1 else f"context[{i}]")
        return [self.processor.segment(text) for text in texts]

    def outline(
        self,
        texts: Sequence[str],
        spans: Sequence[Sequence[Span]],
        rate: int,
        literals: Detectors | None = None,
        keep_text: bool = False,
    ) -> Memory:
        """The memory before anything is encoded: its slots have a shape alone.

        Examples:
            >>> model.outline(["Ann is here."], model.segment(["Ann is here."]), 4).device
            device(type='meta')
        """
        unk = self.processor.encoder_text.unk_id
        documents: list[tuple[Segment, ...]] = []
        for i, (text, cut) in enumerate(zip(texts, spans, strict=True)):
            beside = self.processor.segment_literals(text, cut, literals)
            counts = [(len(span.ids), slots_for(len(span.ids), rate)) for span in cut]
            documents.append(
                tuple(
                    Segment(i, span.start, span.end, tokens, slots, rate, held)
                    for span, (tokens, slots), held in zip(cut, counts, beside, strict=True)
                )
            )
        count = sum(segment.slots for document in documents for segment in document)
        return Memory(
            slots=torch.empty(count, self.slot_size, device="meta"),
            documents=tuple(documents),
            text_sha256=tuple(hashlib.sha256(text.encode()).hexdigest() for text in texts),
            unknown_tokens=tuple(sum(span.ids.count(unk) for span in cut) for cut in spans),
            rate=rate,
            rates=tuple(self.config.compression_rates),
            nested=self.config.encoder_is_causal and self.config.pooling == "memory_tokens",
            pooling=self.config.pooling,
            fingerprint=self.fingerprint,
            texts=tuple(texts) if keep_text else (),
        )

    # -- training ----------------------------------------------------------------------------------

    def forward(
        self,
        segment_input_ids: torch.Tensor,
        segment_attention_mask: torch.Tensor,
        segment_rates: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        memory_ids: torch.Tensor,
        labels: torch.Tensor | None = None,
        task_ids: torch.Tensor | None = None,
        criterion: Criterion | None = None,
    ) -> MemslotsOutput:
        """One encoder pass over all segments, then the frozen decoder over all rows.

        The inputs are what `MemslotsProcessor` returns.

        Args:
            segment_input_ids: `(segments, tokens)`.
            segment_attention_mask: `(segments, tokens)`.
            segment_rates: `(segments,)`.
            input_ids: `(rows, length)`.
            attention_mask: `(rows, length)`.
            memory_ids: `(rows, length)`.
            labels: `(rows, length)`, -100 if nothing is predicted.
            task_ids: `(rows,)`, by default all answers.
            criterion: what the loss is; by default the sum of the tasks' losses, each averaged over
                its own target tokens (PCC, eqs. 3 and 4). `memslots.trainer` gives its
                `TaskLosses`, which weighs them (eq. 5).

        Examples:
            >>> inputs = processor(context="Ann is here.", question="Who?", answer="Ann")
            >>> model(**inputs).loss.shape
            torch.Size([])
        """
        slots = self.encode(segment_input_ids, segment_attention_mask, segment_rates)
        embeds = self.embed_rows(input_ids, memory_ids, convert(self.converter, slots))
        per_layer = per_layer_inputs(self.decoder, input_ids)
        if labels is None:
            logits = decoder_logits(self, embeds, attention_mask, per_layer=per_layer)
            return MemslotsOutput(logits=logits, slots=slots)
        if task_ids is None:
            task_ids = torch.full_like(labels[:, 0], ANSWER)
        targets = task_targets(self, embeds, attention_mask, labels, task_ids, per_layer)
        if criterion is not None:
            return criterion(targets)
        losses = [part.loss() / max(len(part.token_ids), 1) for part in targets]
        return MemslotsOutput(loss=torch.stack(losses).sum(), slots=slots)

    # -- reading slots -----------------------------------------------------------------------------

    def reading(self, with_lora: bool = True) -> AbstractContextManager[None]:
        """While open, the decoder reads for this thread alone, by default with `decoder_lora`.

        Examples:
            >>> with model.reading():
            ...     logits = model.decoder(input_ids=torch.tensor([[5, 6]])).logits
        """
        return reading(self.decoder, self.decoder_lora if with_lora else None)

    def embed_rows(
        self, input_ids: torch.Tensor, memory_ids: torch.Tensor, converted: torch.Tensor
    ) -> torch.Tensor:
        """Decoder input embeddings `(rows, length, d_decoder)` of laid-out rows.

        Args:
            input_ids: `(rows, length)`.
            memory_ids: `(rows, length)`; 0 for tokens.
            converted: `(total_slots, d_decoder)`.

        Raises:
            ValueError: more tokens than the decoder reads.

        Examples:
            >>> tokens = torch.tensor([[5, 6]])
            >>> model.embed_rows(tokens, torch.zeros_like(tokens), torch.zeros(0, 32)).shape
            torch.Size([1, 2, 32])
        """
        limit = max_positions(self.decoder.config)
        if limit is not None and input_ids.shape[1] > limit:
            raise ValueError(
                f"a row of slots, markers, prompt and target takes {input_ids.shape[1]} tokens, "
                f"and the decoder reads {limit}; use a coarser rate, a shorter context or target, "
                "or, in training, fewer training_segments, questions_per_context or a smaller "
                "completion_length."
            )
        tokens = self.decoder.get_input_embeddings()(input_ids)
        vectors = torch.cat([self.markers, converted]).to(tokens)
        chosen = vectors[(memory_ids - 1).clamp(min=0)]
        return torch.where((memory_ids > 0).unsqueeze(-1), chosen, tokens)

    def memory_rows(self, memory: Memory, asked: Sequence[tuple[int, Prompt]]) -> list[Row]:
        """A decoder row, without a target, for each index of a document and prompt about it.

        Examples:
            >>> prompt = processor.prompt(question="Who?")
            >>> model.memory_rows(model.compress("Ann is here."), [(0, prompt)])[0].segments
            [0]
        """
        return memory_rows(memory, asked, self.processor.decoder_text.encode)

    def memory_positions(self, memory: Memory) -> list[int]:
        """Prompt tokens that each document takes: slots, verbatim tokens and markers.

        Examples:
            >>> memory = model.compress("Ann owns 27 maps of Lagos.", rate=2)
            >>> model.memory_positions(memory)[0] == memory.n_slots[0] + 2
            True
        """
        slots = [segment.slots for segment in memory.segments]
        rows = self.memory_rows(memory, [(i, Prompt()) for i in range(len(memory))])
        return [self.processor.row_length(row, slots) for row in rows]

    @torch.no_grad()
    def row_inputs(
        self, rows: Sequence[Row], memory: Memory | None, padding_side: str = "left"
    ) -> dict[str, Any]:
        """What the decoder reads for rows that read segments of `memory`, or none.

        Returns:
            `inputs_embeds` `(rows, length, d_decoder)`, `attention_mask` and `labels`, and
            `per_layer_inputs` if the decoder has per-layer embeddings.

        Examples:
            >>> memory = model.compress("Ann is here.", rate=4)
            >>> rows = model.memory_rows(memory, [(0, processor.prompt(question="Who?"))])
            >>> sorted(model.row_inputs(rows, memory))
            ['attention_mask', 'inputs_embeds', 'labels']
        """
        device = self.encoder.device
        used = sorted({i for row in rows for i in row.segments})
        renumber = {old: new for new, old in enumerate(used)}
        counts: list[int] = []
        slots = self.markers.new_zeros(0, self.slot_size)
        if memory is not None and used:
            counts = [segment.slots for segment in memory.segments]
            parts = memory.slots.split(counts)
            slots = torch.cat([parts[i] for i in used])
        laid_out = self.processor.lay_out(
            [replace(row, segments=[renumber[i] for i in row.segments]) for row in rows],
            [counts[i] for i in used],
            padding_side,
        )
        laid_out = {name: tensor.to(device) for name, tensor in laid_out.items()}
        with evaluating(self.converter):
            converted = convert(self.converter, slots.to(device))
        per_layer = per_layer_inputs(self.decoder, laid_out["input_ids"])
        return {
            **({} if per_layer is None else {"per_layer_inputs": per_layer}),
            "inputs_embeds": self.embed_rows(
                laid_out["input_ids"], laid_out["memory_ids"], converted
            ),
            "attention_mask": laid_out["attention_mask"],
            "labels": laid_out["labels"],
        }

    # -- answering ---------------------------------------------------------------------------------

    def generate(
        self,
        context: str | Sequence[str] | None = None,
        question: str | Sequence[str] | None = None,
        memory: Any = None,
        messages: list | None = None,
        rate: int | None = None,
        batch_size: int = 32,
        chat_template_kwargs: dict[str, Any] | None = None,
        literals: Detectors | None = None,
        **generate_kwargs,
    ):
        """Answer questions from contexts or from memories of them.

        Args:
            context: a text or n texts, compressed on the spot.
            question: a question or n questions. n contexts with n questions pair; one of either is
                used for all of the other.
            memory: what `compress` returned, or `memslots.prefill`, in place of `context`.
            messages: a chat, or n chats, in place of `question`; `[{"role", "content"}, ...]`.
            rate: encoder tokens per slot for `context`; for `memory`, a coarser rate than its own.
            batch_size: rows that the decoder generates for at once.
            chat_template_kwargs: passed to the chat template.
            literals: kinds of verbatim tokens for `context`, as in `compress`.
            generate_kwargs: any argument of `transformers`' `generate`; those that cannot work with
                embeddings are refused by name.

        Returns:
            One string where both sides were single, else a list in order (with
            `num_return_sequences=k`, k consecutive strings an answer). With
            `return_dict_in_generate=True`, what the decoder's `generate` returns.

        Raises:
            ValueError: what does not go together, or is longer than the decoder reads.
            TypeError: arguments of another type.

        Examples:
            >>> memory = model.compress("Ann owns 27 maps.")
            >>> answers = model.generate(memory=memory, question=["Who?", "Why?"], max_new_tokens=2)
            >>> len(answers)
            2
        """
        processor = self.processor
        told = check_generate_kwargs({"batch_size": batch_size, **generate_kwargs})
        if (context is None) == (memory is None):
            count = "neither" if context is None else "both"
            raise ValueError(f"give either context=... or memory=..., got {count}.")
        prompts, single = processor.prompts(question, messages, chat_template_kwargs or {})
        if question is not None and processor.answer_end and "stop_strings" not in told:
            generate_kwargs["stop_strings"] = processor.answer_end
        prefix = memory if hasattr(memory, "states") else None  # a `memslots.prefix.Prefix`
        if prefix is not None:
            prefix.check(self, prompts, rate, generate_kwargs)
        memory = memory if prefix is None else prefix.memory
        spans: list[list[Span]] = []
        if context is not None:
            texts = as_list(context, "context")
            spans = self.segment(texts)
            memory = self.outline(texts, spans, processor.check_rate(rate), literals)
        else:
            self.check_memory(memory)
            if literals is not None:
                raise ValueError(
                    "literals=... goes with context=...; a memory keeps those that it was "
                    "compressed with."
                )
            memory = memory if rate is None else memory.at_rate(processor.check_rate(rate))
        single = single and (isinstance(context, str) if spans else len(memory) == 1)
        pairs = pair(len(memory), len(prompts))
        rows = self.memory_rows(memory, [(i, prompts[j]) for i, j in pairs])
        whole = told.get("return_dict_in_generate")
        if whole and len(rows) > batch_size:
            raise ValueError(
                f"return_dict_in_generate=True returns one batch; {len(rows)} answers need "
                f"batch_size={len(rows)}, got {batch_size}."
            )
        check_room(self, memory, rows, [i for i, _ in pairs], generate_kwargs)
        check_settings(self.decoder, generation_defaults(self, rows, memory, generate_kwargs))
        if spans:  # that all fits is known before anything is encoded
            flat = [span for document in spans for span in document]
            memory = replace(memory, slots=encode_spans(self, flat, memory.rate))
        answers = self.answer_rows(rows, memory, batch_size, generate_kwargs, prefix)
        return answers[0] if single and not whole and len(answers) == 1 else answers

    def answer_rows(
        self,
        rows: Sequence[Row],
        memory: Memory | None,
        batch_size: int,
        generate_kwargs: Mapping[str, Any],
        prefix: Any = None,
    ):
        """Answers to rows in order: strings, or what `return_dict_in_generate=True` returns.

        Args:
            rows: without targets.
            memory: what they read; None if they read tokens alone.
            batch_size: rows that the decoder generates for at once.
            generate_kwargs: arguments of `generate`, checked.
            prefix: the prefix of `memory`, if the decoder has read it.

        Examples:
            >>> memory = model.compress("Ann is here.")
            >>> rows = model.memory_rows(memory, [(0, processor.prompt(question="Who?"))])
            >>> len(model.answer_rows(rows, memory, 1, {"max_new_tokens": 2}))
            1
        """
        answers: list[str] = []
        for start in range(0, len(rows), batch_size):
            batch = rows[start : start + batch_size]
            output = self.generate_rows(batch, memory, generate_kwargs, prefix)
            if not isinstance(output, torch.Tensor):
                return output
            answers += [self.processor.decode(ids).strip() for ids in output]
        return answers

    @torch.no_grad()
    def generate_rows(
        self,
        rows: Sequence[Row],
        memory: Memory | None,
        generate_kwargs: Mapping[str, Any],
        prefix: Any = None,
    ):
        """New token ids of one batch of rows without targets, `(rows, new tokens)`.

        Examples:
            >>> rows = [Row([], processor.prompt(question="Who?"))]
            >>> model.generate_rows(rows, None, {"max_new_tokens": 2}).shape[0]
            1
        """
        kwargs = generation_defaults(self, rows, memory, generate_kwargs)
        inputs = self.row_inputs(rows, memory)
        del inputs["labels"]
        per_layer = inputs.pop("per_layer_inputs", None)
        if prefix is not None:
            cache = prefix.cache(self.decoder, rows, kwargs)
            if cache is not None:  # generate leaves out the embeddings of what it holds
                inputs["past_key_values"] = cache
                if per_layer is not None:
                    per_layer = per_layer[:, cache.get_seq_length() :]
        lora = None if memory is None else self.decoder_lora
        with reading(self.decoder, lora), prefilled_with(self.decoder, per_layer):
            return self.decoder.generate(**{**kwargs, **inputs})

    # -- reading back ------------------------------------------------------------------------------

    reconstruct = _reconstruct


__all__ = ["MemslotsModel", "MemslotsOutput"]
