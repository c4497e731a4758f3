"""MemslotsModel: an encoder writes slots, a converter maps them, a frozen decoder reads them.

Implements PCC ("Pretraining Context Compressor for Large Language Models with Embedding-Based
Memory"); section and equation numbers are the paper's.
"""

import hashlib
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from .checkpoint_memslots import CheckpointMixin
from .configuration_memslots import MemslotsConfig
from .generation_memslots import AnsweringMixin
from .layout_memslots import IGNORE, TASKS, spread_places, token_batches
from .memory_memslots import Memory, Segment, slots_for
from .parts_memslots import (
    Converter,
    add_lora,
    build_encoder,
    check_takes_positions,
    embedding_scale,
    encoder_embedding_dim,
    fingerprint,
)
from .processing_memslots import MemslotsProcessor, as_list
from .tokenization_memslots import Span, check_text


@dataclass
class MemslotsOutput(ModelOutput):
    """What `MemslotsModel.forward` returns.

    Args:
        loss: scalar, the weighted sum of the task losses (PCC, eq. 5).
        task_losses: `(3,)`, mean loss per target token of reconstruction, completion and answers; 0
            where a task has no target.
        task_counts: `(3,)`, target tokens of each task in this batch.
        logits: `(rows, length, vocabulary)`; only without labels, where nothing is saved by leaving
            positions out.
        slots: `(total_slots, d_encoder)`.
    """

    loss: torch.Tensor | None = None
    task_losses: torch.Tensor | None = None
    task_counts: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    slots: torch.Tensor | None = None


class MemslotsModel(CheckpointMixin, AnsweringMixin, PreTrainedModel):
    """A context compressor and the frozen decoder that it writes for.

    Args:
        config: what to build; weights are new. See `from_pretrained` and
            `from_encoder_decoder_pretrained` for trained ones.
        encoder: an encoder to take in place of a new one.
        load_decoder: False leaves the decoder out even where the checkpoint holds it.
    """

    config: MemslotsConfig
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
    ):
        super().__init__(config)
        if encoder is None:
            encoder = build_encoder(config)
            if config.encoder_lora is not None:
                add_lora(encoder, config.encoder_lora)
        self.encoder = encoder
        if config.encoder_lora is not None:  # the base is loaded after the adapter
            self._keys_to_ignore_on_load_missing = [r"^encoder\.(?!.*\.lora_)"]
        self.encoder.config.use_cache = False
        d_encoder = self.encoder.config.hidden_size
        d_decoder = config.get_text_config(decoder=True).hidden_size
        self.memory_tokens = nn.Parameter(
            torch.empty(config.max_slots, encoder_embedding_dim(self.encoder))
        )
        if config.memory_positions == "spread":
            check_takes_positions(self.encoder)
        self.converter = Converter(d_encoder, config.converter_hidden_size or d_decoder, d_decoder)
        self.markers = nn.Parameter(torch.empty(3, d_decoder))
        self.decoder: PreTrainedModel | None = None
        if config.bundle_decoder and load_decoder:
            self.decoder = AutoModelForCausalLM.from_config(config.decoder_config)
            self.decoder.requires_grad_(False)
        self.processor: MemslotsProcessor | None = None
        self._fingerprint: tuple[tuple[int, ...], str] | None = None
        self.post_init()

    # -- weights -----------------------------------------------------------------------------------

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, Converter):
            for layer in (module.up, module.down):
                init.normal_(layer.weight, std=self.config.initializer_range)
                init.zeros_(layer.bias)
            init.ones_(module.norm.weight)
        elif isinstance(module, MemslotsModel):
            init.normal_(module.memory_tokens, std=self.config.initializer_range)
            init.normal_(module.markers, std=self.config.initializer_range)

    @torch.no_grad()
    def match_scales(self) -> None:
        """Draw memory tokens, markers and converter anew, at the scale of the embeddings they join.

        A slot that is ten times as large as a token embedding, or a tenth of it, is where training
        starts slowest.
        """
        nn.init.normal_(self.memory_tokens, std=embedding_scale(self.encoder))
        scale = embedding_scale(self._need_decoder())
        nn.init.normal_(self.markers, std=scale)
        self.converter.init_weights(scale)

    def train(self, mode: bool = True) -> "MemslotsModel":
        """As `torch.nn.Module.train`, but the frozen decoder stays in evaluation mode."""
        super().train(mode)
        if mode:  # fused optimizers change weights without counting it, so the version is no proof
            self._fingerprint = None
        if self.decoder is not None:
            self.decoder.eval()
        return self

    def get_input_embeddings(self) -> nn.Module:
        """The encoder's: where the text enters."""
        return self.encoder.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module | None:
        """The decoder's language-model head."""
        return self.decoder.get_output_embeddings() if self.decoder is not None else None

    @property
    def fingerprint(self) -> str:
        """Identity of encoder, memory tokens, encoder tokenizer and segmentation (SHA-256)."""
        # Weights count their in-place changes, so training makes the kept value stale.
        parameters = [*self.encoder.parameters(), self.memory_tokens]
        version = tuple(parameter._version for parameter in parameters)
        if self._fingerprint is None or self._fingerprint[0] != version:
            tokenizer = self._need_processor().encoder_text.backend.to_str()
            segmentation = f"{self.config.segment_length} {self.config.memory_positions}"
            value = fingerprint(self.encoder, self.memory_tokens, tokenizer, segmentation)
            self._fingerprint = (version, value)
        return self._fingerprint[1]

    def _trust_fingerprint(self, value: str) -> None:
        parameters = [*self.encoder.parameters(), self.memory_tokens]
        self._fingerprint = (tuple(parameter._version for parameter in parameters), value)

    def _need_decoder(self) -> PreTrainedModel:
        if self.decoder is None:
            raise ValueError(
                "this compressor was loaded without its decoder "
                f"({self.config.decoder_name_or_path or 'not named'}); call "
                "model.attach_decoder(llm) first, or load it with load_decoder=True."
            )
        return self.decoder

    def _need_processor(self) -> MemslotsProcessor:
        if self.processor is None:
            raise ValueError(
                "this model has no processor, so it cannot read text; load it with "
                "from_pretrained, or set model.processor = MemslotsProcessor(...)."
            )
        return self.processor

    # -- encoding ----------------------------------------------------------------------------------

    def encode(
        self,
        segment_input_ids: torch.Tensor,
        segment_attention_mask: torch.Tensor,
        segment_slots: torch.Tensor,
    ) -> torch.Tensor:
        """Slots of a batch of segments, one encoder pass (PCC, eq. 1).

        The memory tokens follow each segment's last token, and padding follows them, so that a
        short segment sees neither padding nor a gap in its positions.

        Args:
            segment_input_ids: `(segments, tokens)`, right-padded.
            segment_attention_mask: `(segments, tokens)`, 1 for tokens.
            segment_slots: `(segments,)`, slots of each.

        Returns:
            `(total_slots, d_encoder)`, segment after segment.
        """
        embeds = self.encoder.get_input_embeddings()(segment_input_ids)
        lengths = segment_attention_mask.sum(dim=1, keepdim=True)
        ends = lengths + segment_slots.unsqueeze(1)
        positions = torch.arange(int(ends.max()), device=embeds.device).unsqueeze(0)
        is_slot = (positions >= lengths) & (positions < ends)
        slot_index = (positions - lengths).clamp(0, self.memory_tokens.shape[0] - 1)
        token_index = positions.clamp(max=embeds.shape[1] - 1).expand(embeds.shape[0], -1)
        tokens = embeds.gather(1, token_index.unsqueeze(-1).expand(-1, -1, embeds.shape[2]))
        # Some encoders scale inside their embedding layer; memory tokens are made at that scale.
        memory = self.memory_tokens.to(embeds.dtype)[slot_index]
        inputs = torch.where(is_slot.unsqueeze(-1), memory, tokens)
        # Under a causal encoder what follows cannot be seen, so no mask (and no slower kernel).
        mask = None if self.config.encoder_is_causal else (positions < ends).long()
        placed = {}
        if self.config.memory_positions == "spread":
            places = torch.tensor(spread_places(self.config.max_slots), device=embeds.device)
            spread = (places[slot_index] * lengths).ceil().long() - 1
            placed["position_ids"] = torch.where(is_slot, spread, positions)
            if mask is None:  # without one, transformers takes falling positions for packed texts
                mask = torch.ones_like(placed["position_ids"])
        states = self.encoder(inputs_embeds=inputs, attention_mask=mask, **placed).last_hidden_state
        return states[is_slot]

    @torch.no_grad()
    def compress(
        self,
        text: str | Sequence[str],
        rate: int | None = None,
        batch_tokens: int = 16384,
        progress: bool | None = None,
    ) -> Memory:
        """Compress one text or several, once; the memory then answers any number of questions.

        Args:
            text: a text, or n texts (n documents).
            rate: encoder tokens per slot; one of `config.compression_rates`, by default the finest.
            batch_tokens: most encoder tokens, padding included, in one encoder pass.
            progress: show a progress bar; by default when there are more than 20 passes.

        Returns:
            A `Memory` of n documents on this model's device.

        Raises:
            ValueError: an empty text, a lone surrogate, or a rate it was not trained for.
            TypeError: not a string.
        """
        texts = as_list(text, "context")
        if not texts:
            raise ValueError("compress needs at least one text, got an empty list.")
        if batch_tokens < 1:
            raise ValueError(f"batch_tokens must be at least 1, got {batch_tokens}.")
        rate = self._need_processor().check_rate(rate)
        return self._compress_spans(texts, self.segment(texts), rate, batch_tokens, progress)

    def segment(self, texts: list[str]) -> list[list[Span]]:
        """Spans of each text, which `compress` encodes independently; errors name the text."""
        processor = self._need_processor()
        for i, text in enumerate(texts):
            check_text(text, "context" if len(texts) == 1 else f"context[{i}]")
        return [processor.segment(text) for text in texts]

    @torch.no_grad()
    def _compress_spans(
        self,
        texts: list[str],
        spans: list[list[Span]],
        rate: int,
        batch_tokens: int = 16384,
        progress: bool | None = None,
    ) -> Memory:
        processor = self._need_processor()
        flat = [span for document in spans for span in document]
        counts = [slots_for(len(span.ids), rate) for span in flat]
        offsets = [0]
        for count in counts:
            offsets.append(offsets[-1] + count)
        device = self.memory_tokens.device
        slots = torch.empty(
            offsets[-1], self.encoder.config.hidden_size, device=device, dtype=self.dtype
        )
        batches = list(token_batches([len(span.ids) for span in flat], counts, batch_tokens))
        training = self.encoder.training
        self.encoder.eval()
        try:
            show = len(batches) > 20 if progress is None else progress
            for batch in tqdm(batches, desc="compressing", unit="batch", disable=not show):
                inputs = processor.collate_segments([flat[i] for i in batch])
                wanted = torch.tensor([counts[i] for i in batch], device=device)
                inputs = {name: tensor.to(device) for name, tensor in inputs.items()}
                encoded = self.encode(**inputs, segment_slots=wanted)
                rows = torch.cat([torch.arange(offsets[i], offsets[i + 1]) for i in batch])
                slots[rows.to(device)] = encoded.to(slots.dtype)
        finally:
            self.encoder.train(training)
        unk = processor.encoder_text.unk_id
        return Memory(
            slots=slots,
            documents=tuple(
                tuple(
                    Segment(i, s.start, s.end, len(s.ids), slots_for(len(s.ids), rate))
                    for s in document
                )
                for i, document in enumerate(spans)
            ),
            text_sha256=tuple(hashlib.sha256(text.encode()).hexdigest() for text in texts),
            unknown_tokens=tuple(sum(s.ids.count(unk) for s in document) for document in spans),
            rate=rate,
            rates=tuple(self.config.compression_rates),
            nested=self.config.encoder_is_causal,
            fingerprint=self.fingerprint,
        )

    # -- decoding ----------------------------------------------------------------------------------

    def embed_rows(
        self, input_ids: torch.Tensor, memory_ids: torch.Tensor, slots: torch.Tensor
    ) -> torch.Tensor:
        """Decoder input embeddings of laid-out rows (see `layout_memslots`).

        Args:
            input_ids: `(rows, length)`.
            memory_ids: `(rows, length)`; 0 for tokens.
            slots: `(total_slots, d_encoder)`, before the converter.

        Returns:
            `(rows, length, d_decoder)` in the decoder's dtype.
        """
        tokens = self._need_decoder().get_input_embeddings()(input_ids)
        converted = self.converter(slots.to(self.converter.up.weight.dtype))
        vectors = torch.cat([self.markers, converted]).to(tokens)
        chosen = vectors[(memory_ids - 1).clamp(min=0)]
        return torch.where((memory_ids > 0).unsqueeze(-1), chosen, tokens)

    def forward(
        self,
        segment_input_ids: torch.Tensor,
        segment_attention_mask: torch.Tensor,
        segment_slots: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        memory_ids: torch.Tensor,
        labels: torch.Tensor | None = None,
        task_ids: torch.Tensor | None = None,
        task_weights: Sequence[float] = (1.0, 1.0, 1.0),
        task_totals: torch.Tensor | None = None,
    ) -> MemslotsOutput:
        """One encoder pass over all segments, then the frozen decoder over all rows.

        The inputs are what `MemslotsProcessor` returns. Each task's loss is averaged over its own
        target tokens first (PCC, eqs. 3 and 4), then the tasks are weighted (eq. 5). Logits are
        computed from the first target on, never for slots.

        Args:
            segment_input_ids: `(segments, tokens)`.
            segment_attention_mask: `(segments, tokens)`.
            segment_slots: `(segments,)`.
            input_ids: `(rows, length)`.
            attention_mask: `(rows, length)`.
            memory_ids: `(rows, length)`.
            labels: `(rows, length)`, -100 where nothing is predicted.
            task_ids: `(rows,)`, by default all answers.
            task_weights: weights of reconstruction, completion and answers; eq. 5 is
                `(1 - lambda, lambda, 0)`.
            task_totals: `(3,)` target tokens of each task in the whole step, where this batch is
                one of several that are accumulated or spread over processes.
        """
        slots = self.encode(segment_input_ids, segment_attention_mask, segment_slots)
        embeds = self.embed_rows(input_ids, memory_ids, slots)
        if labels is None:
            logits = self._run_decoder(embeds, attention_mask)
            return MemslotsOutput(logits=logits, slots=slots)
        if task_ids is None:
            task_ids = torch.full_like(labels[:, 0], len(TASKS) - 1)
        sums = embeds.new_zeros(len(TASKS), dtype=torch.float32)
        counts = torch.zeros(len(TASKS), dtype=torch.long, device=embeds.device)
        for task in range(len(TASKS)):
            rows = (task_ids == task).nonzero().squeeze(1)
            if rows.numel():
                total, count = self._rows_loss(embeds[rows], attention_mask[rows], labels[rows])
                sums = sums + functional.one_hot(torch.tensor(task), len(TASKS)).to(sums) * total
                counts[task] = count
        totals = counts if task_totals is None else task_totals.to(counts.device)
        task_losses = sums / totals.clamp(min=1)
        loss = (task_losses * torch.tensor(task_weights, device=sums.device)).sum()
        return MemslotsOutput(
            loss=loss, task_losses=task_losses.detach(), task_counts=counts, slots=slots
        )

    def _rows_loss(
        self, embeds: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Summed loss and number of the targets of rows of one task."""
        used = attention_mask.any(dim=0).nonzero()
        first, last = int(used[0]), int(used[-1]) + 1
        embeds, labels = embeds[:, first:last], labels[:, first:last]
        targets = (labels != IGNORE).any(dim=0).nonzero()
        if not targets.numel():
            return embeds.sum() * 0.0, targets.new_zeros(())
        # The state before a target predicts it.
        start = max(int(targets[0]) - 1, 0)
        logits = self._run_decoder(embeds, attention_mask[:, first:last], start)[:, :-1]
        wanted = labels[:, start + 1 :]
        total = functional.cross_entropy(
            logits.reshape(-1, logits.shape[-1]).float(),
            wanted.reshape(-1),
            ignore_index=IGNORE,
            reduction="sum",
        )
        return total, (wanted != IGNORE).sum()

    def _run_decoder(
        self, embeds: torch.Tensor, attention_mask: torch.Tensor, start: int = 0
    ) -> torch.Tensor:
        """Logits `(rows, length - start, vocabulary)` of the decoder from position `start` on."""
        decoder = self._need_decoder()
        accepted = inspect.signature(decoder.forward).parameters
        kwargs: dict[str, Any] = {}
        if "position_ids" in accepted:
            kwargs["position_ids"] = (attention_mask.cumsum(dim=1) - 1).clamp(min=0)
        if start and "logits_to_keep" in accepted:
            kwargs["logits_to_keep"] = embeds.shape[1] - start
        logits = decoder(
            inputs_embeds=embeds, attention_mask=attention_mask, use_cache=False, **kwargs
        ).logits
        return logits[:, -(embeds.shape[1] - start) :]


__all__ = ["MemslotsModel", "MemslotsOutput"]
