"""MemslotsModel: an encoder writes slots, a converter maps them, a frozen decoder reads them.

Implements PCC ("Pretraining Context Compressor for Large Language Models with Embedding-Based
Memory"); section and equation numbers are the paper's.
"""

import inspect
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from .activations_memslots import fuse_activations
from .checkpoint_memslots import CheckpointMixin
from .configuration_memslots import MemslotsConfig, check_positions, decoder_place
from .converters_memslots import QueryConverter, ResidualConverter, VariationalConverter
from .decoder_lora_memslots import DecoderLora, LoraUp
from .distillation_memslots import Teacher, divergence
from .encoding_memslots import EncodingMixin
from .generation_memslots import AnsweringMixin
from .inject_memslots import Injection, injected_at, state_scale
from .layout_memslots import FIRST_SLOT, IGNORE, RECONSTRUCTION, TASKS
from .parts_memslots import (
    Converter,
    LinearConverter,
    add_lora,
    build_converter,
    build_encoder,
    check_takes_positions,
    embedding_scale,
    encoder_embedding_dim,
    fingerprint,
)
from .per_layer_memslots import per_layer_inputs
from .pooling_memslots import GroupPool
from .prefix_memslots import PrefillMixin
from .processing_memslots import MemslotsProcessor
from .reading_back_memslots import ReadingBackMixin
from .sentences_memslots import SentenceHead

MARKER_WORDS = ("\n\n", "\n\n", "Repeat the text:\n\n")
"""What `<MEM>`, `</MEM>` and `<AE>` start as where slots start among the decoder's embeddings."""


@dataclass
class MemslotsOutput(ModelOutput):
    """What `MemslotsModel.forward` returns.

    Args:
        loss: scalar, the weighted sum of the task losses (PCC, eq. 5), and while a vae is trained
            its weighted `kl_loss`.
        task_losses: `(3,)`, mean loss per target token of reconstruction, completion and answers; 0
            where a task has no target.
        task_counts: `(3,)`, target tokens of each task in this batch.
        logits: `(rows, length, vocabulary)`; only without labels, where nothing is saved by leaving
            positions out.
        slots: `(total_slots, d_encoder)`.
        distillation_loss: scalar, mean divergence from the full text of the targets that have a
            teacher, before its weight; None without one.
        kl_loss: scalar, a vae's divergence in nats a slot; 0 in evaluation, None without a vae.
    """

    loss: torch.Tensor | None = None
    task_losses: torch.Tensor | None = None
    task_counts: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    slots: torch.Tensor | None = None
    distillation_loss: torch.Tensor | None = None
    kl_loss: torch.Tensor | None = None


class MemslotsModel(
    CheckpointMixin,
    EncodingMixin,
    AnsweringMixin,
    ReadingBackMixin,
    PrefillMixin,
    PreTrainedModel,
):
    """A context compressor and the frozen decoder that it writes for.

    Args:
        config: what to build; weights are new. See `from_pretrained` and
            `from_encoder_decoder_pretrained` for trained ones.
        encoder: an encoder to take in place of a new one.
        load_decoder: False leaves the decoder out even where the checkpoint holds it.
        sentence_head: a head that goes with `encoder`, with pooling "sentence".
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
        self.sentence_head: SentenceHead | None = None
        if config.pooling == "sentence":
            if config.sentence_encoder is None:
                raise ValueError(
                    "pooling='sentence' needs a sentence encoder; make the compressor with "
                    "from_encoder_decoder_pretrained(encoder, decoder, pooling='sentence')."
                )
            self.sentence_head = sentence_head or SentenceHead(config.sentence_encoder["head"])
            self.freeze_sentence_encoder()
            if not config.bundle_encoder:  # read from where it is named, after the rest
                self._keys_to_ignore_on_load_missing = [r"^encoder\.", r"^sentence_head\."]
        self.register_parameter("memory_tokens", None)
        if config.pooling == "memory_tokens":
            self.memory_tokens = nn.Parameter(
                torch.empty(config.max_slots, encoder_embedding_dim(self.encoder))
            )
        self.register_parameter("pooling_query", None)
        if config.pooling == "attention":
            self.pooling_query = nn.Parameter(torch.empty(config.slot_size))
        self.group_pool: GroupPool | None = None
        if config.pooling == "groups":
            hidden = config.pool_hidden_size or 2 * config.slot_size
            self.group_pool = GroupPool(config.slot_size, hidden, max(config.compression_rates))
        if config.memory_positions == "spread":
            check_takes_positions(self.encoder)
        self.converter = build_converter(config)
        self.markers = nn.Parameter(torch.empty(3, d_decoder))
        self.decoder_lora: DecoderLora | None = None
        if config.decoder_lora is not None:
            self.decoder_lora = DecoderLora(config.decoder_config, config.decoder_lora)
        self.decoder: PreTrainedModel | None = None
        if config.bundle_decoder and (load_decoder or config.encoder_layers):
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
        elif isinstance(module, LinearConverter):
            init.normal_(module.map.weight, std=self.config.initializer_range)
            init.zeros_(module.map.bias)
            init.ones_(module.norm.weight)
        elif isinstance(module, GroupPool):
            module.init_weights()
        elif isinstance(module, ResidualConverter):
            module.init_weights(1.0)
        elif isinstance(module, QueryConverter):
            init.normal_(module.queries)
        elif isinstance(module, LoraUp):
            init.zeros_(module.weight)
        elif isinstance(module, MemslotsModel):
            if module.memory_tokens is not None:
                init.normal_(module.memory_tokens, std=self.config.initializer_range)
            if module.pooling_query is not None:  # all tokens weigh the same at first
                init.zeros_(module.pooling_query)
            init.normal_(module.markers, std=self.config.initializer_range)

    @torch.no_grad()
    def match_scales(self) -> None:
        """Draw memory tokens, markers and converter anew, at the scale of what they join.

        A slot that is ten times as large as a token embedding (or the states of `inject_layer`), or
        a tenth of it, is where training starts slowest.
        """
        if self.memory_tokens is not None:
            nn.init.normal_(self.memory_tokens, std=embedding_scale(self.encoder))
        scale = embedding_scale(self._need_decoder())
        nn.init.normal_(self.markers, std=scale)
        if isinstance(self.converter, ResidualConverter):
            self._markers_from_words()
        if self.config.inject_layer:
            scale = state_scale(self._need_decoder(), self.config.inject_layer)
        self.converter.init_weights(scale)

    def _markers_from_words(self) -> None:
        """Markers start as the words that they stand for: blank lines, and a plea to repeat."""
        encode = self._need_processor().decoder_text.encode
        embed = self._need_decoder().get_input_embeddings()
        for marker, words in zip(self.markers, MARKER_WORDS, strict=True):
            ids = torch.tensor(encode(words), device=embed.weight.device)
            if len(ids):
                marker.copy_(embed(ids).float().mean(dim=0))

    def train(self, mode: bool = True) -> "MemslotsModel":
        """As `torch.nn.Module.train`, but the frozen decoder stays in evaluation mode."""
        super().train(mode)
        if mode:  # fused optimizers change weights without counting it, so the version is no proof
            self._fingerprint = None
        if self.decoder is not None:
            self.decoder.eval()
        if self.sentence_head is not None and not self.config.train_encoder:
            self.encoder.eval()
        return self

    def freeze_sentence_encoder(self) -> None:
        """Leave a sentence encoder out of training, unless the configuration has it trained."""
        if self.sentence_head is not None:
            self.encoder.requires_grad_(self.config.train_encoder)
            self.sentence_head.requires_grad_(self.config.train_encoder)

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
        version = self._weight_versions()
        if self._fingerprint is None or self._fingerprint[0] != version:
            tokenizer = self._need_processor().encoder_text.backend.to_str()
            segmentation = f"{self.config.segment_length} {self.config.memory_positions}"
            if self.config.pooling != "memory_tokens":
                segmentation += f" {self.config.pooling}"
            if self.config.pooling == "sentence":
                kind = json.dumps(self.config.sentence_encoder, sort_keys=True)
                segmentation += f" {self.config.pool_unit} {self.config.pool_language} {kind}"
            value = fingerprint(
                self.encoder,
                self.memory_tokens,
                tokenizer,
                segmentation,
                self.sentence_head,
                self.pooling_query,
                self.group_pool,
                self.config.encoder_layers is not None,
            )
            self._fingerprint = (version, value)
        return self._fingerprint[1]

    def _trust_fingerprint(self, value: str) -> None:
        self._fingerprint = (self._weight_versions(), value)

    def _weight_versions(self) -> tuple[int, ...]:
        weights = [*self.encoder.parameters()]
        weights += [] if self.sentence_head is None else [*self.sentence_head.parameters()]
        weights += [] if self.memory_tokens is None else [self.memory_tokens]
        weights += [] if self.pooling_query is None else [self.pooling_query]
        weights += [] if self.group_pool is None else [*self.group_pool.parameters()]
        return tuple(weight._version for weight in weights)

    def _need_decoder(self) -> PreTrainedModel:
        if self.decoder is None:
            raise ValueError(
                "this compressor was loaded without its decoder "
                f"({decoder_place(self.config)}); call "
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
            `(rows, length, d_decoder)` in the decoder's dtype; with `inject_layer` there is a
            marker where slots come in later, see `reading`.
        """
        return self._place(input_ids, memory_ids, self._convert(slots)[0])[0]

    def _convert(self, slots: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What the decoder reads in place of slots, and the summed divergence of a vae's."""
        slots = slots.to(next(self.converter.parameters()).dtype)
        if isinstance(self.converter, VariationalConverter):
            return self.converter.with_divergence(slots)
        return self.converter(slots), None

    def _place(
        self, input_ids: torch.Tensor, memory_ids: torch.Tensor, converted: torch.Tensor
    ) -> tuple[torch.Tensor, Injection | None]:
        """Input embeddings of rows, and what is injected into them."""
        check_positions(self._need_decoder().config, input_ids.shape[1])
        tokens = self._need_decoder().get_input_embeddings()(input_ids)
        vectors = torch.cat([self.markers, converted]).to(tokens)
        chosen = vectors[(memory_ids - 1).clamp(min=0)]
        injected = None
        if self.config.inject_layer:
            is_slot = memory_ids >= FIRST_SLOT
            injected = Injection(chosen, is_slot)
            chosen = torch.where(is_slot.unsqueeze(-1), vectors[0], chosen)
        return torch.where((memory_ids > 0).unsqueeze(-1), chosen, tokens), injected

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
        task_weights: Sequence[float] = (1.0, 1.0, 1.0),
        task_totals: torch.Tensor | None = None,
        slot_total: torch.Tensor | None = None,
        teacher: Teacher | None = None,
        distillation_weight: float = 1.0,
    ) -> MemslotsOutput:
        """One encoder pass over all segments, then the frozen decoder over all rows.

        The inputs are what `MemslotsProcessor` returns. Each task's loss is averaged over its own
        target tokens first (PCC, eqs. 3 and 4), then the tasks are weighted (eq. 5). Logits are
        computed from the first target on, never for slots.

        Args:
            segment_input_ids: `(segments, tokens)`.
            segment_attention_mask: `(segments, tokens)`.
            segment_rates: `(segments,)`.
            input_ids: `(rows, length)`.
            attention_mask: `(rows, length)`.
            memory_ids: `(rows, length)`.
            labels: `(rows, length)`, -100 where nothing is predicted.
            task_ids: `(rows,)`, by default all answers.
            task_weights: weights of reconstruction, completion and answers; eq. 5 is
                `(1 - lambda, lambda, 0)`.
            task_totals: `(3,)` target tokens of each task in the whole step, where this batch is
                one of several that are accumulated or spread over processes.
            slot_total: scalar, slots of the whole step, likewise.
            teacher: what the decoder predicts from the full text for the targets of completion and
                then of answers, row after row; its mean divergence is added to the loss.
            distillation_weight: of that divergence.
        """
        slots = self.encode(segment_input_ids, segment_attention_mask, segment_rates)
        converted, spread_from_normal = self._convert(slots)
        embeds, injected = self._place(input_ids, memory_ids, converted)
        per_layer = per_layer_inputs(self._need_decoder(), input_ids)
        if labels is None:
            logits = self._run_decoder(
                embeds, attention_mask, per_layer=per_layer, injected=injected
            )
            return MemslotsOutput(logits=logits, slots=slots)
        if task_ids is None:
            task_ids = torch.full_like(labels[:, 0], len(TASKS) - 1)
        sums = embeds.new_zeros(len(TASKS), dtype=torch.float32)
        counts = torch.zeros(len(TASKS), dtype=torch.long, device=embeds.device)
        distilled, taught = embeds.new_zeros((), dtype=torch.float32), 0
        for task in range(len(TASKS)):
            rows = (task_ids == task).nonzero().squeeze(1)
            if rows.numel():
                own = None if per_layer is None else per_layer[rows]
                logits, wanted = self._target_logits(
                    embeds[rows],
                    attention_mask[rows],
                    labels[rows],
                    own,
                    None if injected is None else injected[rows],
                )
                total = functional.cross_entropy(logits.float(), wanted, reduction="sum")
                sums = sums + functional.one_hot(torch.tensor(task), len(TASKS)).to(sums) * total
                counts[task] = len(wanted)
                if teacher is not None and task != RECONSTRUCTION:
                    part = teacher.part(taught, taught + len(wanted))
                    distilled = distilled + divergence(logits, part)
                    taught += len(wanted)
        totals = counts if task_totals is None else task_totals.to(counts.device)
        task_losses = sums / totals.clamp(min=1)
        loss = (task_losses * torch.tensor(task_weights, device=sums.device)).sum()
        distillation_loss = None
        if teacher is not None:
            if taught != len(teacher.token_ids):
                raise ValueError(
                    f"teacher has {len(teacher.token_ids)} targets, and the rows of completion and "
                    f"answers have {taught}; give it those of the same rows."
                )
            distillation_loss = distilled / totals[RECONSTRUCTION + 1 :].sum().clamp(min=1)
            loss = loss + distillation_weight * distillation_loss
        kl_loss = None
        if spread_from_normal is not None:
            kl_loss = spread_from_normal / (
                max(len(slots), 1) if slot_total is None else slot_total
            )
            loss = loss + self.config.kl_weight * kl_loss
        return MemslotsOutput(
            loss=loss,
            task_losses=task_losses.detach(),
            task_counts=counts,
            slots=slots,
            distillation_loss=None if distillation_loss is None else distillation_loss.detach(),
            kl_loss=None if kl_loss is None else kl_loss.detach(),
        )

    def _target_logits(
        self,
        embeds: torch.Tensor,
        attention_mask: torch.Tensor,
        labels: torch.Tensor,
        per_layer: torch.Tensor | None = None,
        injected: Injection | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits `(targets, vocabulary)` of rows of one task, and the targets `(targets,)`."""
        used = attention_mask.any(dim=0).nonzero()
        first, last = int(used[0]), int(used[-1]) + 1
        embeds, labels = embeds[:, first:last], labels[:, first:last]
        per_layer = None if per_layer is None else per_layer[:, first:last]
        injected = None if injected is None else injected[:, first:last]
        targets = (labels != IGNORE).any(dim=0).nonzero()
        # The state before a target predicts it.
        start = max(int(targets[0]) - 1, 0) if targets.numel() else embeds.shape[1] - 1
        logits = self._run_decoder(
            embeds, attention_mask[:, first:last], start, per_layer, injected
        )[:, :-1]
        wanted = labels[:, start + 1 :]
        return logits[wanted != IGNORE], wanted[wanted != IGNORE]

    @contextmanager
    def reading(self, injected: Injection | None = None) -> Iterator[None]:
        """While this context is open, the decoder reads with `decoder_lora`, where there is one.

        Outside, the decoder is the plain one, as for baselines that read text.

        Args:
            injected: with `inject_layer`, what `row_inputs` gives as "injected" for the rows.
        """
        decoder = self._need_decoder()
        lora = nullcontext() if self.decoder_lora is None else self.decoder_lora.active(decoder)
        with lora, injected_at(decoder, self.config.inject_layer or 0, injected):
            yield

    def _run_decoder(
        self,
        embeds: torch.Tensor,
        attention_mask: torch.Tensor,
        start: int = 0,
        per_layer: torch.Tensor | None = None,
        injected: Injection | None = None,
    ) -> torch.Tensor:
        """Logits `(rows, length - start, vocabulary)` of the decoder from position `start` on."""
        decoder = self._need_decoder()
        accepted = inspect.signature(decoder.forward).parameters
        kwargs: dict[str, Any] = {} if per_layer is None else {"per_layer_inputs": per_layer}
        if "position_ids" in accepted:
            kwargs["position_ids"] = (attention_mask.cumsum(dim=1) - 1).clamp(min=0)
        if start and "logits_to_keep" in accepted:
            kwargs["logits_to_keep"] = embeds.shape[1] - start
        with self.reading(injected):
            logits = decoder(
                inputs_embeds=embeds, attention_mask=attention_mask, use_cache=False, **kwargs
            ).logits
        return logits[:, -(embeds.shape[1] - start) :]


__all__ = ["MemslotsModel", "MemslotsOutput"]
