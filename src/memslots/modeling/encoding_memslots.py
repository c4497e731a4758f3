"""Writing slots: segments through the encoder, in batches, to a `Memory`."""

import hashlib
import os
import shutil
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.nn import functional
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from .exact_spans_memslots import Exact
from .layout_memslots import spread_places, token_batches
from .literals_memslots import Detectors, Literal
from .memory_memslots import Memory, Segment, slots_for
from .pooling_memslots import GroupPool, pool_groups
from .processing_memslots import MemslotsProcessor, as_list
from .sentences_memslots import SentenceHead
from .tokenization_memslots import Span, check_text
from .verified_memslots import compress_verified, wanted_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel as _Model
else:
    _Model = object


def check_compiler() -> None:
    """Refuse to compile for a CPU without the C++ compiler that torch would call.

    Raises:
        ValueError: it is not there.
    """
    usual = {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
    compiler = os.environ.get("CXX", usual)
    if shutil.which(compiler) is None:
        raise ValueError(
            f"compiling for a CPU needs a C++ compiler, and there is no {compiler!r} here; "
            "install one (Debian: apt install g++), name another in CXX, or do not compile."
        )


class StatesRead(NamedTuple):
    """Which of the encoder's states become slots.

    Args:
        width: positions of the encoder's rows.
        places: `(states,)`, in the states flattened to `(segments * width, d)`: those of
            memory tokens or, where states are pooled, of tokens.
        slots: how many slots they make.
        rate: most tokens of a slot, where that is known.
    """

    width: int
    places: torch.Tensor
    slots: int
    rate: int | None = None


def states_read(
    lengths: torch.Tensor, counts: torch.Tensor, pooled: bool, rate: int | None = None
) -> StatesRead:
    """Of a batch of segments. For a GPU's tensors this waits.

    Args:
        lengths: `(segments,)`, tokens of each.
        counts: `(segments,)`, slots of each.
        pooled: slots are made of the tokens' states, not of memory tokens'.
        rate: most tokens of a slot, where that is known.
    """
    first = torch.zeros_like(lengths) if pooled else lengths
    ends = lengths if pooled else lengths + counts
    width = int(ends.max())
    positions = torch.arange(width, device=lengths.device)
    read = (positions >= first.unsqueeze(1)) & (positions < ends.unsqueeze(1))
    return StatesRead(width, read.flatten().nonzero().squeeze(1), int(counts.sum()), rate)


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """`tensor` on `device`; a GPU fetches it from pinned memory while the host goes on."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


class EncodingMixin(_Model):
    """`encode` and `compress` of `MemslotsModel`."""

    encoder: PreTrainedModel
    memory_tokens: torch.Tensor | None
    pooling_query: torch.Tensor | None
    group_pool: GroupPool | None
    sentence_head: SentenceHead | None

    if TYPE_CHECKING:

        @property
        def fingerprint(self) -> str: ...  # noqa: D102

        def _need_processor(self) -> MemslotsProcessor: ...

    def encode(
        self,
        segment_input_ids: torch.Tensor,
        segment_attention_mask: torch.Tensor,
        segment_rates: torch.Tensor,
        read: StatesRead | None = None,
    ) -> torch.Tensor:
        """Slots of a batch of segments, one encoder pass (PCC, eq. 1).

        Args:
            segment_input_ids: `(segments, tokens)`, right-padded.
            segment_attention_mask: `(segments, tokens)`, 1 for tokens.
            segment_rates: `(segments,)`, encoder tokens per slot of each.
            read: of `states_read` for these segments, its places on their device; without it, it is
                found there, for which a GPU is waited for.

        Returns:
            `(total_slots, d_encoder)`, segment after segment.
        """
        lengths = segment_attention_mask.sum(dim=1)
        if self.sentence_head is not None:
            return self._sentence_slots(segment_input_ids, lengths, self.sentence_head)
        counts = -(-lengths // segment_rates)
        if read is None:
            read = states_read(lengths, counts, self.memory_tokens is None)
        if self.memory_tokens is None:
            return self._pooled_slots(segment_input_ids, lengths, segment_rates, counts, read)
        return self._memory_token_slots(
            segment_input_ids, lengths, counts, self.memory_tokens, read
        )

    def _memory_token_slots(
        self,
        segment_input_ids: torch.Tensor,
        lengths: torch.Tensor,
        counts: torch.Tensor,
        memory_tokens: torch.Tensor,
        read: StatesRead,
    ) -> torch.Tensor:
        """Last states of memory tokens.

        They follow each segment's last token, and padding follows them, so that a short segment
        sees neither padding nor a gap in its positions.
        """
        embeds = self.encoder.get_input_embeddings()(segment_input_ids)
        lengths = lengths.unsqueeze(1)
        ends = lengths + counts.unsqueeze(1)
        positions = torch.arange(read.width, device=embeds.device).unsqueeze(0)
        is_slot = (positions >= lengths) & (positions < ends)
        slot_index = (positions - lengths).clamp(0, memory_tokens.shape[0] - 1)
        token_index = positions.clamp(max=embeds.shape[1] - 1).expand(embeds.shape[0], -1)
        tokens = embeds.gather(1, token_index.unsqueeze(-1).expand(-1, -1, embeds.shape[2]))
        # Some encoders scale inside their embedding layer; memory tokens are made at that scale.
        memory = memory_tokens.to(embeds.dtype)[slot_index]
        inputs = torch.where(is_slot.unsqueeze(-1), memory, tokens)
        # Under a causal encoder what follows cannot be seen, so no mask (and no slower kernel).
        mask = None if self.config.encoder_is_causal else (positions < ends).long()
        placed = {}
        if self.config.memory_positions == "spread":
            places = to_device(torch.tensor(spread_places(self.config.max_slots)), embeds.device)
            spread = (places[slot_index] * lengths).ceil().long() - 1
            placed["position_ids"] = torch.where(is_slot, spread, positions)
            if mask is None:  # without one, transformers takes falling positions for packed texts
                mask = torch.ones_like(placed["position_ids"])
        states = self.encoder(inputs_embeds=inputs, attention_mask=mask, **placed).last_hidden_state
        return states.flatten(0, 1)[read.places]

    def _pooled_slots(
        self,
        segment_input_ids: torch.Tensor,
        lengths: torch.Tensor,
        rates: torch.Tensor,
        counts: torch.Tensor,
        read: StatesRead,
    ) -> torch.Tensor:
        """One vector of the last states of `rate` tokens each; a last group may be short."""
        positions = torch.arange(read.width, device=segment_input_ids.device).unsqueeze(0)
        # Under a causal encoder padding, which follows, cannot be seen.
        causal = self.config.encoder_is_causal
        mask = None if causal else (positions < lengths.unsqueeze(1)).long()
        input_ids = segment_input_ids[:, : read.width]
        states = self.encoder(input_ids=input_ids, attention_mask=mask).last_hidden_state
        first = counts.cumsum(dim=0) - counts
        groups = first.unsqueeze(1) + positions // rates.unsqueeze(1)
        if self.group_pool is not None:
            embeds = self.encoder.get_input_embeddings()(input_ids)
            return self.group_pool(
                embeds.flatten(0, 1)[read.places],
                states.flatten(0, 1)[read.places],
                groups.flatten()[read.places],
                read.slots,
                read.rate,
            )
        return pool_groups(
            states.flatten(0, 1)[read.places],
            groups.flatten()[read.places],
            read.slots,
            self.config.pooling,
            self.pooling_query,
        )

    def _sentence_slots(
        self, segment_input_ids: torch.Tensor, lengths: torch.Tensor, head: SentenceHead
    ) -> torch.Tensor:
        """One vector a segment, as its sentence encoder makes it: with its special tokens."""
        around = self.config.sentence_encoder
        prefix, suffix = (
            to_device(torch.tensor(around[name], dtype=torch.long), segment_input_ids.device)
            for name in ("prefix_ids", "suffix_ids")
        )
        rows = segment_input_ids.shape[0]
        ends = (lengths + len(prefix)).unsqueeze(1)
        ids = torch.cat([prefix.expand(rows, -1), segment_input_ids], dim=1)
        ids = functional.pad(ids, (0, len(suffix)))
        for i, token in enumerate(suffix):
            ids = ids.scatter(1, ends + i, token.expand(rows, 1))
        positions = torch.arange(ids.shape[1], device=ids.device).unsqueeze(0)
        mask = (positions < ends + len(suffix)).long()
        states = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        return head(states, mask)

    @torch.no_grad()
    def compress(
        self,
        text: str | Sequence[str],
        rate: int | None = None,
        batch_tokens: int | None = None,
        progress: bool | None = None,
        literals: Detectors | None = None,
        rates: Sequence[int] | None = None,
        fidelity: float | None = None,
        max_slots: int | None = None,
        exact: Exact | None = None,
        patches: bool | None = None,
        slot_dtype: torch.dtype | None = None,
    ) -> Memory:
        """Compress one text or several, once; the memory then answers any number of questions.

        Args:
            text: a text, or n texts (n documents).
            rate: encoder tokens per slot; one of `config.compression_rates`, by default the finest.
            batch_tokens: most encoder tokens, padding included, in one encoder pass; by default
                4,096 on a CPU, where larger ones are slower, and 16,384 elsewhere.
            progress: show a progress bar; by default when there are more than 20 passes.
            literals: what rides beside the slots as ordinary tokens and so comes back exactly:
                "numbers", another name of `literals_memslots.DETECTORS`, a function from a text to
                `(start, end)` spans, or a list of these; `[]` for nothing, None for what the
                checkpoint's config says.
            rates: with `fidelity` or `max_slots`, the rates to choose from, by default all.
            fidelity: share of each segment's decoder tokens that its slots must give back, as the
                decoder itself says (teacher-forced); each segment gets the coarsest rate that does,
                and stays text where none does.
            max_slots: most slots of each text, spent where they give back most; with `fidelity`,
                segments that have that take no more, and the tokens of those left as text count.
            exact: what must come back exactly: True for every kind of
                `literals_memslots.DETECTORS`, a name of one, a compiled regular expression, a
                function (see `exact_spans_memslots`), or a list of these. Spans that the slots do
                not give back, teacher-forced and free-running, become literals beside them. `[]`
                only checks.
            patches: whether what makes the whole text exact is kept (on the disk; the decoder
                never reads it), for `reconstruct(memory, exact=True)`; by default where `exact` is
                True.
            slot_dtype: what slots are rounded to before they are checked, such as the dtype of a
                store that they go to: patches are of these very slots.

        Returns:
            A `Memory` of n documents on this model's device.

        Raises:
            ValueError: an empty text, a lone surrogate, a rate it was not trained for, a fidelity
                outside (0, 1], fewer `max_slots` than the coarsest rate takes, or no decoder where
                one is asked.
            TypeError: not a string.
        """
        texts = as_list(text, "context")
        if not texts:
            raise ValueError("compress needs at least one text, got an empty list.")
        if batch_tokens is not None and batch_tokens < 1:
            raise ValueError(f"batch_tokens must be at least 1, got {batch_tokens}.")
        wanted = wanted_of(self, rate, rates, fidelity, max_slots, exact, patches, slot_dtype)
        if wanted is not None:
            return compress_verified(self, texts, literals, wanted, batch_tokens, progress)
        rate = self._need_processor().check_rate(rate)
        spans = self.segment(texts)
        found = self._find_literals(texts, spans, literals)
        return self._compress_spans(texts, spans, found, rate, batch_tokens, progress)

    def segment(self, texts: list[str]) -> list[list[Span]]:
        """Spans of each text, which `compress` encodes independently; errors name the text."""
        processor = self._need_processor()
        for i, text in enumerate(texts):
            check_text(text, "context" if len(texts) == 1 else f"context[{i}]")
        return [processor.segment(text) for text in texts]

    def _find_literals(
        self, texts: list[str], spans: list[list[Span]], literals: Detectors | None
    ) -> list[list[tuple[Literal, ...]]]:
        """Literals of each span of each text."""
        find = self._need_processor().segment_literals
        return [find(text, own, literals) for text, own in zip(texts, spans, strict=True)]

    @torch.no_grad()
    def _compress_spans(
        self,
        texts: list[str],
        spans: list[list[Span]],
        literals: list[list[tuple[Literal, ...]]],
        rate: int,
        batch_tokens: int | None = None,
        progress: bool | None = None,
    ) -> Memory:
        flat = [span for document in spans for span in document]
        slots = self.encode_spans(flat, rate, batch_tokens, progress)
        return self.memory_of(texts, spans, slots, rate, literals)

    @torch.no_grad()
    def encode_spans(
        self,
        flat: Sequence[Span],
        rate: int,
        batch_tokens: int | None,
        progress: bool | None = None,
    ) -> torch.Tensor:
        """Slots `(total_slots, d_encoder)` of segments, one after another, encoded in batches."""
        processor = self._need_processor()
        counts = [slots_for(len(span.ids), rate) for span in flat]
        offsets = [0]
        for count in counts:
            offsets.append(offsets[-1] + count)
        device = self.encoder.device
        slots = torch.empty(offsets[-1], self.config.slot_size, device=device, dtype=self.dtype)
        pooled = self.config.pooling != "memory_tokens"
        appended = [0] * len(flat) if pooled else counts
        most = batch_tokens or (4096 if device.type == "cpu" else 16384)
        batches = list(token_batches([len(span.ids) for span in flat], appended, most))
        training = self.encoder.training
        self.encoder.eval()
        try:
            show = len(batches) > 20 if progress is None else progress
            # `slots` was made outside, so that what is returned may be trained on. Nothing of ours
            # waits for a GPU: the next pass is put together and sent while it works. (transformers
            # waits once a pass, as it looks for packed texts, when that is done.)
            with torch.inference_mode():
                for batch in tqdm(batches, desc="compressing", unit="batch", disable=not show):
                    inputs = processor.collate_segments([flat[i] for i in batch])
                    lengths = inputs["segment_attention_mask"].sum(dim=1)
                    numbers = torch.tensor([counts[i] for i in batch])
                    read = states_read(lengths, numbers, pooled, rate)
                    encoded = self.encode(
                        **{name: to_device(tensor, device) for name, tensor in inputs.items()},
                        segment_rates=torch.full((len(batch),), rate, device=device),
                        read=read._replace(places=to_device(read.places, device)),
                    )
                    rows = torch.cat([torch.arange(offsets[i], offsets[i + 1]) for i in batch])
                    slots[to_device(rows, device)] = encoded.to(slots.dtype)
        finally:
            self.encoder.train(training)
        return slots

    def compile_encoder(self, **options: Any) -> None:
        """Compile the encoder in place with `torch.compile`: for a corpus, or a server's life.

        Shapes are symbolic, so whatever lengths texts have there are no more graphs than two: for
        passes of several segments, and of one. Each takes up to half a minute when it is first
        needed. Slots are those of the encoder as it is, up to rounding; nothing of it is saved.

        Args:
            options: of `torch.compile`; `dynamic=True` by default.

        Raises:
            ValueError: on a CPU, no C++ compiler.
        """
        if self.encoder.device.type == "cpu" and "backend" not in options:
            check_compiler()
        self.encoder.compile(**{"dynamic": True, **options})

    def memory_of(
        self,
        texts: Sequence[str],
        spans: Sequence[Sequence[Span]],
        slots: torch.Tensor,
        rate: int,
        literals: Sequence[Sequence[tuple[Literal, ...]]] = (),
    ) -> Memory:
        """A memory of this compressor.

        Args:
            texts: the documents.
            spans: of each.
            slots: `(total_slots, d_encoder)` of all spans at `rate`.
            rate: encoder tokens per slot.
            literals: of each span of each text, or none.
        """
        unk = self._need_processor().encoder_text.unk_id
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
            nested=self.config.encoder_is_causal and self.config.pooling == "memory_tokens",
            pooling=self.config.pooling,
            literals=tuple(own for document in literals for own in document),
            fingerprint=self.fingerprint,
        )
