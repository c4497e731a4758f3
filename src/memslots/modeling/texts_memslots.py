"""User text is data: tokens without control tokens, and segments to be compressed one by one."""

import json
import re
from typing import Any, NamedTuple

from jinja2 import TemplateError
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

logger = logging.get_logger(__name__)

NEEDS_SENTENCEX = (
    "splitting a text into sentences needs sentencex: pip install sentencex; "
    "pool_unit='paragraph' and 'text' need nothing."
)


BYTE_ORDER_MARK = "\ufeff"
"""What some editors (Windows Notepad) write before a text in UTF-8; no model reads it."""


def render_chat(tokenizer, messages: list[dict[str, Any]], **template_kwargs) -> str:
    """A chat by the tokenizer's template, up to where its answer begins; `ValueError` without."""
    template_kwargs |= {"tokenize": False, "add_generation_prompt": True}
    try:
        return tokenizer.apply_chat_template(messages, **template_kwargs)
    except TemplateError as error:
        roles = [message["role"] for message in messages]
        raise ValueError(f"the chat template refuses a chat of {roles}: {error}.") from error


class Span(NamedTuple):
    """A segment of a text before it is compressed.

    Args:
        start: first character.
        end: one past the last character.
        ids: the encoder's tokens of exactly these characters.
    """

    start: int
    end: int
    ids: list[int]


class PlainText:
    """Encodes text with a tokenizer's model alone: no added-token matching, no special tokens.

    `split_special_tokens=True` would not do: added tokens that are not special (`<tool_call>`)
    would still become single control ids. The backend is copied without its added tokens; where a
    vocabulary holds a control string as an ordinary piece, that piece is encoded in two parts.

    Args:
        tokenizer: a tokenizer of transformers with a `tokenizers` backend.

    Raises:
        ValueError: a tokenizer that has no such backend.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        if not tokenizer.is_fast:
            raise ValueError(
                f"{type(tokenizer).__name__} has no `tokenizers` backend, which memslots needs for "
                "character offsets. Load it with AutoTokenizer from a checkpoint that has a "
                "tokenizer.json, or pip install sentencepiece protobuf, which convert a "
                "SentencePiece model."
            )
        state = json.loads(tokenizer.backend_tokenizer.to_str())
        state.update(added_tokens=[], post_processor=None, truncation=None, padding=None)
        self.unk_id = tokenizer.unk_token_id
        added = tokenizer.added_tokens_decoder.items()
        control = {index for index, token in added if token.content.strip()}
        self.control_ids = (control | set(tokenizer.all_special_ids)) - {self.unk_id}
        if state["model"]["type"] == "Unigram":
            # Its pieces hold control strings as text. Renamed, they do not match, and the string is
            # read as smaller pieces in place; cut in two, it would gain a space.
            vocabulary = state["model"]["vocab"]
            for index in self.control_ids:
                if index < len(vocabulary):
                    vocabulary[index][0] = f"\ue0f2{index}\ue0f3"
        self.backend = Tokenizer.from_str(json.dumps(state))

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, never a control token."""
        return self._encode(text)[0]

    def encode_with_places(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """As `encode`, with the characters `(start, end)` that each token stands for."""
        return self._encode(text)

    def _encode(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        if text.startswith(BYTE_ORDER_MARK):  # says how a file is written, and nothing of its text
            ids, offsets = self._encode(text[1:])
            return ids, [(start + 1, end + 1) for start, end in offsets]
        encoding = self.backend.encode(text, add_special_tokens=False)
        ids, offsets = encoding.ids, encoding.offsets
        if self.control_ids.isdisjoint(ids):
            return ids, offsets
        cuts = [
            start + 1
            for index, (start, end) in zip(ids, offsets, strict=True)
            if index in self.control_ids and end - start > 1
        ]
        if not cuts:
            return ids, offsets
        ids, offsets = [], []
        for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
            # Again, since what is left of one control string may be another.
            piece_ids, piece_offsets = self._encode(text[start:end])
            ids += piece_ids
            offsets += [(start + first, start + last) for first, last in piece_offsets]
        return ids, offsets

    def segment(self, text: str, length: int) -> list[Span]:
        """Cut `text` into spans of at most `length` tokens, on character boundaries.

        Each span is tokenized by itself, so that a span compressed alone gives the same slots as it
        does inside its text. Spans tile the text; one character that takes more than `length`
        tokens is a span of its own.

        Args:
            text: any text without lone surrogates.
            length: most encoder tokens of a span.
        """
        spans: list[Span] = []
        start = 0
        while start < len(text):
            end, ids = self._next_span(text, start, length)
            if ids or not spans:
                spans.append(Span(start, end, ids))
            else:  # characters that the tokenizer drops join the span before them
                spans[-1] = spans[-1]._replace(end=end)
            start = end
        return spans

    def _next_span(self, text: str, start: int, length: int) -> tuple[int, list[int]]:
        # A window of the text instead of the rest keeps the whole linear; tokens close to the
        # window's end may not be those of the full text, hence the margin.
        window, margin = 6 * length, 16
        while True:
            piece = text[start : start + window]
            ids, offsets = self._encode(piece)
            complete = start + window >= len(text)
            if complete and len(ids) <= length:
                return len(text), ids
            if complete or len(ids) > length + margin:
                break
            window *= 2
        count = length
        while count > 0:
            cut = offsets[count - 1][1]
            whole = cut > 0 and offsets[count][0] >= cut
            if whole:
                alone = self.encode(piece[:cut])
                if len(alone) <= length:
                    return start + cut, alone
            count -= 1
        cut = max(1, offsets[0][1])
        return start + cut, self.encode(piece[:cut])


def check_text(text: object, name: str) -> str:
    """`text` itself, if it can be compressed or asked.

    Args:
        text: what the user gave.
        name: the argument's name, for the message.

    Raises:
        TypeError: not a string.
        ValueError: empty, only white space, or with a lone surrogate.
    """
    if not isinstance(text, str):
        raise TypeError(f"{name} must be a string or a list of strings, got {type(text).__name__}.")
    if not text.strip():
        raise ValueError(f"{name} is empty or only white space; give some text.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{name} has a lone surrogate ({text[error.start]!r}) at character {error.start}, "
            "which no tokenizer can represent; decode the source with errors='replace'."
        ) from error
    return text


def as_list(value, name: str) -> list:
    """`value` as a list; `TypeError` for anything but a string or a list or tuple."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, (list, tuple)):
        return list(value)
    raise TypeError(f"{name} must be a string or a list of strings, got {type(value).__name__}.")


def split_units(text: str, unit: str, language: str = "en") -> list[tuple[int, int]]:
    """Character spans of the sentences, the paragraphs or the whole of `text`; they tile it.

    Args:
        text: any text.
        unit: "sentence", "paragraph" (between blank lines) or "text".
        language: ISO 639-1 code, for sentences.

    Raises:
        ImportError: sentences without sentencex.
    """
    if unit == "text":
        return [(0, len(text))]
    if unit == "paragraph":
        ends = [match.end() for match in re.finditer(r"\n[^\S\n]*\n\s*", text)]
    else:
        try:
            import sentencex
        except ImportError as error:
            raise ImportError(NEEDS_SENTENCEX) from error
        ends = [one["end_index"] for one in sentencex.get_sentence_boundaries(language, text)]
    ends = [*[end for end in ends if end < len(text)], len(text)]
    spans: list[tuple[int, int]] = []
    start = 0
    for end in ends:
        if end > start and (text[start:end].strip() or not spans):
            spans.append((start, end))
        elif end > start:  # white space between paragraphs ends the unit before it
            spans[-1] = (spans[-1][0], end)
        start = end
    return spans


class UnitSplitter:
    """Cuts texts into the units that get one vector each.

    Args:
        encoder_text: plain-text view of the encoder's tokenizer.
        unit: "sentence", "paragraph" or "text".
        language: ISO 639-1 code, for sentences.
        window: most encoder tokens of a unit; longer ones are cut, and a warning says so.
        lead: white space before each unit, where the encoder's prompt ends in some.
        lower_case: whether the encoder was trained on lower-cased text.
    """

    def __init__(
        self,
        encoder_text: PlainText,
        unit: str,
        language: str,
        window: int,
        lead: str = "",
        lower_case: bool = False,
    ):
        self.encoder_text = encoder_text
        self.unit = unit
        self.language = language
        self.window = window
        self.lead = lead
        self.lower_case = lower_case

    def segment(self, text: str) -> list[Span]:
        """The spans of `text`, which tile it; ids are those of a span without white space around.

        Units without a token (control characters) join the one before them.
        """
        spans: list[Span] = []
        cut = pieces = 0
        for start, end in split_units(text, self.unit, self.language):
            own = [Span(start, end, self._ids(text[start:end]))]
            if len(own[0].ids) > self.window:
                own = self._cut(text, start, end)
                cut, pieces = cut + 1, pieces + len(own)
            for span in own:
                if span.ids or not spans:
                    spans.append(span)
                else:
                    spans[-1] = spans[-1]._replace(end=span.end)
        if cut:
            logger.warning(
                f"{cut} {self.unit}{'s are' if cut > 1 else ' is'} longer than the sentence "
                f"encoder's window of {self.window} tokens; cut into {pieces} pieces, one slot "
                "each."
            )
        if len(spans) > 1 and not spans[0].ids:
            spans[1] = spans[1]._replace(start=spans[0].start)
            del spans[0]
        return spans

    def _ids(self, text: str) -> list[int]:
        text = text.strip()
        return self.encoder_text.encode(self.lead + (text.lower() if self.lower_case else text))

    def _cut(self, text: str, start: int, end: int) -> list[Span]:
        room = self.window
        while True:
            pieces = self.encoder_text.segment(text[start:end], room)
            places = [(start + piece.start, start + piece.end) for piece in pieces]
            spans = [Span(first, last, self._ids(text[first:last])) for first, last in places]
            if room == 1 or all(len(span.ids) <= self.window for span in spans):
                return spans
            room = max(1, room - 1)  # without the white space around it, a piece may take more
