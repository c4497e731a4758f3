"""MemslotsProcessor: two tokenizers, segmenting, and the prompt around a memory."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from transformers import AutoTokenizer, BatchFeature, PreTrainedConfig
from transformers.processing_utils import ProcessorMixin

from .configuration_memslots import AUTO_MAP, PLAIN_PROMPT
from .layout_memslots import (
    CONTEXT_END,
    Prompt,
    Row,
    lay_out,
    lay_out_row,
    literal_ids,
    slot_ranges,
)
from .memory_memslots import slots_for
from .texts_memslots import (
    Detectors,
    Literal,
    Message,
    PlainText,
    Span,
    as_list,
    chat_parts,
    check_text,
    literals_of_spans,
    unit_spans,
)


class MemslotsProcessor(ProcessorMixin):
    """Turns texts, questions and chats into what the model reads.

    Args:
        tokenizer: the decoder's tokenizer.
        encoder_tokenizer: the encoder's tokenizer.
        spread: whether `memory_positions` is "spread".
        units: arguments of `texts_memslots.unit_spans` with pooling "sentence", else None.
        segment_length: this and the others are fields of `MemslotsConfig`.
    """

    def __init__(
        self,
        tokenizer,
        encoder_tokenizer,
        segment_length: int = 256,
        compression_rates: Sequence[int] = (4,),
        prompt_format: str = "plain",
        plain_prompt: str = PLAIN_PROMPT,
        answer_end: str | None = None,
        markers: str = "segment",
        spread: bool = False,
        literals: str | Sequence[str] | None = None,
        units: dict[str, Any] | None = None,
        chat_template=None,
        vectors_per_slot: int = 1,  # as older checkpoints have it
    ):
        super().__init__(tokenizer, encoder_tokenizer, chat_template=chat_template)
        self.auto_map = {"AutoProcessor": AUTO_MAP["AutoProcessor"]}
        self.segment_length = segment_length
        self.compression_rates = list(compression_rates)
        self.prompt_format = prompt_format
        self.plain_prompt = plain_prompt
        self.answer_end = answer_end
        self.markers = markers
        self.spread = spread
        self.literals = literals
        self.units = units
        if prompt_format == "chat" and not tokenizer.chat_template:
            raise ValueError(
                "prompt_format='chat' needs a decoder tokenizer with a chat template, and "
                f"{tokenizer.name_or_path or type(tokenizer).__name__} has none; use 'plain'."
            )

    @classmethod
    def _load_tokenizer_from_pretrained(
        cls, sub_processor_type, pretrained_model_name_or_path, subfolder="", **kwargs
    ):
        # An empty config, because the checkpoint's own names remote code, which a tokenizer does
        # not need: AutoTokenizer would ask the user to trust it a second time.
        name = "" if sub_processor_type == "tokenizer" else sub_processor_type
        folder = "/".join(part for part in (subfolder, name) if part)
        return AutoTokenizer.from_pretrained(
            pretrained_model_name_or_path, subfolder=folder, config=PreTrainedConfig(), **kwargs
        )

    @cached_property
    def decoder_text(self) -> PlainText:
        """Plain-text view of the decoder's tokenizer."""
        return PlainText(self.tokenizer)

    @cached_property
    def encoder_text(self) -> PlainText:
        """Plain-text view of the encoder's tokenizer."""
        return PlainText(self.encoder_tokenizer)

    def to_dict(self) -> dict[str, Any]:
        """As `ProcessorMixin.to_dict`, without the cached views of the tokenizers."""
        views = {name: self.__dict__.pop(name, None) for name in ("decoder_text", "encoder_text")}
        try:
            return super().to_dict()
        finally:
            self.__dict__.update({name: view for name, view in views.items() if view is not None})

    @property
    def pad_id(self) -> int:
        """A decoder token id for masked positions."""
        pad, eos = self.tokenizer.pad_token_id, self.tokenizer.eos_token_id
        return pad if pad is not None else eos if eos is not None else 0

    @property
    def bos_ids(self) -> list[int]:
        """The decoder's BOS, if its tokenizer has one."""
        bos = self.tokenizer.bos_token_id
        return [] if bos is None else [bos]

    @property
    def eos_ids(self) -> list[int]:
        """The decoder's EOS, if its tokenizer has one."""
        eos = self.tokenizer.eos_token_id
        return [] if eos is None else [eos]

    # -- texts -------------------------------------------------------------------------------------

    def segment(self, text: str) -> list[Span]:
        """Spans of `text` that are compressed independently; `ValueError` if it cannot be.

        Examples:
            >>> [span.end for span in processor.segment("Ann is here.")]
            [12]
        """
        check_text(text, "context")
        spans = self.spans(text)
        if not spans[0].ids:
            raise ValueError(
                "context has no token in the encoder's vocabulary (the encoder's tokenizer drops "
                "all of its characters); there is nothing to compress."
            )
        return spans

    def spans(self, text: str) -> list[Span]:
        """As `segment`, of a text that is checked; one span without tokens if it has none.

        Examples:
            >>> len(processor.spans("Ann is here."))
            1
        """
        if self.units is None:
            return self.encoder_text.segment(text, self.segment_length)
        return unit_spans(self.encoder_text, text, window=self.segment_length, **self.units)

    def segment_literals(
        self, text: str, spans: Sequence[Span], literals: Detectors | None = None
    ) -> list[tuple[Literal, ...]]:
        """The verbatim strings of each span of `text`; `literals` as for `MemslotsModel.compress`.

        Examples:
            >>> text = "Ann owns 27 maps."
            >>> processor.segment_literals(text, processor.segment(text), "numbers")[0][0].text
            '27'
        """
        detectors = self.literals if literals is None else literals
        if not detectors:
            return [() for _ in spans]
        return literals_of_spans(text, [span.end for span in spans], detectors)

    def literal_ids(self, literals: Sequence[Sequence[Literal]]) -> list[list[int]]:
        """The verbatim tokens of each segment; an empty list if no segment has any.

        Examples:
            >>> processor.literal_ids([()])
            []
        """
        return literal_ids(literals, self.decoder_text.encode) if any(literals) else []

    def check_rate(self, rate: int | None) -> int:
        """`rate`, or the finest one; `ValueError` where the checkpoint was not trained for it.

        Examples:
            >>> processor.check_rate(None)
            2
        """
        if rate is None:
            return min(self.compression_rates)
        if type(rate) is not int or rate not in self.compression_rates:
            raise ValueError(
                f"rate {rate!r} is not one that this checkpoint was trained for: "
                f"{self.compression_rates}."
            )
        return rate

    # -- prompts -----------------------------------------------------------------------------------

    def prompt(
        self,
        question: str | None = None,
        messages: list[Message] | None = None,
        context: str | None = None,
        **template_kwargs,
    ) -> Prompt:
        """Decoder tokens around the memory, the same for training, generating and serving.

        Args:
            question: the user's question; with `prompt_format="chat"` it becomes one user message.
            messages: a chat instead, `[{"role": ..., "content": ...}]`; neighbours of one role are
                joined by a blank line. The memory stands where a content part
                `{"type": "memory"}` says, otherwise before the first user message.
            context: plain text in the memory's place (the full-text baseline).
            template_kwargs: passed to the chat template.

        Raises:
            ValueError: not one of `question` and `messages`, or what the format does not take.

        Examples:
            >>> processor.decode(processor.prompt(question="Who?").after).split()
            ['Question:', 'Who?', 'Answer:']
        """
        _check_either(question, messages)
        if messages is None:
            question = check_text(question, "question")
            if self.prompt_format == "plain":
                if template_kwargs:
                    raise ValueError(
                        f"chat_template_kwargs {sorted(template_kwargs)} go with a chat template, "
                        "and this compressor's prompts are plain; give messages=[...] or none."
                    )
                text = self.plain_prompt.replace("{question}", question)
                if context is not None:
                    text = context + CONTEXT_END + text
                return Prompt(self.bos_ids, self.decoder_text.encode(text))
            messages = [{"role": "user", "content": question}]
        return self._chat(messages, context, template_kwargs)

    def prompts(
        self,
        question: str | Sequence[str] | None,
        messages: list | None,
        template_kwargs: dict[str, Any],
    ) -> tuple[list[Prompt], bool]:
        """A prompt for each of one or several questions or chats, and whether it was a single one.

        Examples:
            >>> prompts, single = processor.prompts(["Who?", "Why?"], None, {})
            >>> len(prompts), single
            (2, False)
        """
        _check_either(question, messages)
        if not isinstance(template_kwargs, dict):
            raise TypeError(f"chat_template_kwargs must be a dict, got {template_kwargs!r}.")
        if messages is None:
            questions = as_list(question, "question")
            prompts = [self.prompt(question=text, **template_kwargs) for text in questions]
            return prompts, isinstance(question, str)
        if not isinstance(messages, (list, tuple)):
            raise TypeError(f"messages must be a list, got {type(messages).__name__}.")
        single = bool(messages) and isinstance(messages[0], dict)
        chats: list[Any] = [messages] if single else list(messages)
        if not chats:
            raise ValueError("messages is an empty list; give at least one message.")
        return [self.prompt(messages=chat, **template_kwargs) for chat in chats], single

    def answer_ids(self, answer: str) -> list[int]:
        """Decoder tokens of an answer as they follow the prompt, with a space if need be, and EOS.

        Examples:
            >>> processor.decode(processor.answer_ids("Ann")).strip()
            'Ann'
        """
        spaced = self.prompt_format == "plain" and not self.plain_prompt[-1:].isspace()
        return self.decoder_text.encode(" " + answer if spaced else answer) + self.eos_ids

    def _chat(self, messages: list[Message], context: str | None, template_kwargs: dict) -> Prompt:
        before: list[int] = []
        after: list[int] = []
        ids = before
        for part, text in chat_parts(self.tokenizer, messages, template_kwargs):
            if part == "memory":
                if context is not None:
                    ids += self.decoder_text.encode(context + CONTEXT_END)
                ids = after
            elif part == "message":
                ids += self.decoder_text.encode(text)
            elif text:
                ids += self.tokenizer(text, add_special_tokens=False)["input_ids"]
        if before[:1] != self.bos_ids:  # most templates write it themselves
            before = self.bos_ids + before
        return Prompt(before, after)

    # -- batches -----------------------------------------------------------------------------------

    def collate_segments(self, spans: Sequence[Span]) -> dict[str, torch.Tensor]:
        """Right-padded encoder inputs of segments: `segment_input_ids` and
        `segment_attention_mask`, each `(segments, tokens)`.

        Examples:
            >>> inputs = processor.collate_segments(processor.segment("Ann is here."))
            >>> inputs["segment_input_ids"].shape == inputs["segment_attention_mask"].shape
            True
        """
        length = max(len(span.ids) for span in spans)
        pad = self.encoder_tokenizer.pad_token_id or 0
        ids = torch.tensor([span.ids + [pad] * (length - len(span.ids)) for span in spans])
        mask = torch.tensor([[i < len(span.ids) for i in range(length)] for span in spans]).long()
        return {"segment_input_ids": ids, "segment_attention_mask": mask}

    def lay_out(self, rows: Sequence[Row], segment_slots: Sequence[int], padding_side="left"):
        """The tensors of decoder rows, see `layout_memslots.lay_out`.

        Examples:
            >>> row = Row([0], processor.prompt(question="Who?"))
            >>> (processor.lay_out([row], [3])["memory_ids"] > 0).sum().item()  # with two markers
            5
        """
        return lay_out(rows, segment_slots, self.pad_id, self.markers, padding_side, self.spread)

    def row_length(self, row: Row, segment_slots: Sequence[int]) -> int:
        """Prompt tokens that a row takes; arguments as in `lay_out`.

        Examples:
            >>> row = Row([0], processor.prompt(question="Who?"))
            >>> processor.row_length(row, [3]) == processor.lay_out([row], [3])["labels"].shape[1]
            True
        """
        return len(lay_out_row(row, slot_ranges(segment_slots), markers=self.markers).input_ids)

    def __call__(
        self,
        context: str | list[str],
        question: str | list[str],
        answer: str | list[str] | None = None,
        rate: int | None = None,
        padding_side: str = "left",
        literals: Detectors | None = None,
    ) -> BatchFeature:
        """Inputs of `MemslotsModel.forward` for n questions about n texts, one each; with labels
        where there are answers. `literals` are those of `MemslotsModel.compress`.

        Examples:
            >>> sorted(processor(context="Ann is here.", question="Who?", answer="Ann"))[:3]
            ['attention_mask', 'input_ids', 'labels']
        """
        contexts, questions = as_list(context, "context"), as_list(question, "question")
        answers = as_list(answer, "answer") if answer is not None else [None] * len(contexts)
        if not len(contexts) == len(questions) == len(answers):
            raise ValueError(
                "context, question and answer must have equal lengths, got "
                f"{len(contexts)}, {len(questions)} and {len(answers)}."
            )
        rate = self.check_rate(rate)
        spans: list[Span] = []
        rows: list[Row] = []
        for text, asked, answered in zip(contexts, questions, answers, strict=True):
            new = self.segment(text)
            segments = list(range(len(spans), len(spans) + len(new)))
            spans += new
            target = self.answer_ids(answered) if answered is not None else []
            beside = self.literal_ids(self.segment_literals(text, new, literals))
            rows.append(Row(segments, self.prompt(asked), target, literals=beside))
        slots = [slots_for(len(span.ids), rate) for span in spans]
        return BatchFeature(
            {
                **self.collate_segments(spans),
                "segment_rates": torch.full((len(spans),), rate),
                **self.lay_out(rows, slots, padding_side),
            }
        )

    def decode(self, ids, **kwargs) -> str:
        """Text of decoder tokens.

        Examples:
            >>> processor.decode(processor.decoder_text.encode("Ann is here."))
            'Ann is here.'
        """
        kwargs = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False, **kwargs}
        return self.tokenizer.decode(ids, **kwargs)


def _check_either(question: object, messages: object) -> None:
    if (question is None) == (messages is None):
        count = "neither" if question is None else "both"
        raise ValueError(f"give either question=... or messages=[...], got {count}.")
