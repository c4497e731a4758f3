"""What is read of a text: tokens, segments that are compressed, strings kept beside their slots.

User text is data: no part of it becomes a control token. A pooled vector keeps the gist of a text
and loses its digits (the sentence-pools article), so what must come back exactly is kept as
verbatim tokens of a span of characters. The decoder reads a segment's spans after its slots, each
encoded by itself after one space, which keeps neighbours apart and gives it the tokens that it has
in prose.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
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


class Span(NamedTuple):
    """Characters `start` to `end` of a text, and the encoder's tokens of exactly these."""

    start: int
    end: int
    ids: list[int]


class PlainText:
    """Encodes text with a tokenizer's model alone: no added-token matching, no special tokens.

    `split_special_tokens=True` would not do: added tokens that are not special (`<tool_call>`)
    would still become single control ids. The backend is copied without its added tokens; where a
    vocabulary holds a control string as an ordinary piece, that piece is encoded in two parts.

    Raises:
        ValueError: a tokenizer without a `tokenizers` backend.
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
        return self.encode_with_places(text)[0]

    def encode_with_places(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """As `encode`, with the characters `(start, end)` that each token stands for."""
        if text.startswith(BYTE_ORDER_MARK):  # says how a file is written, and nothing of its text
            ids, offsets = self.encode_with_places(text[1:])
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
            piece_ids, piece_offsets = self.encode_with_places(text[start:end])
            ids += piece_ids
            offsets += [(start + first, start + last) for first, last in piece_offsets]
        return ids, offsets

    def segment(self, text: str, length: int) -> list[Span]:
        """Cut `text` into spans of at most `length` tokens, on character boundaries.

        Each span is tokenized by itself, so that a span compressed alone gives the same slots as it
        does inside its text. Spans tile the text; one character that takes more than `length`
        tokens is a span of its own.
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
            ids, offsets = self.encode_with_places(piece)
            complete = start + window >= len(text)
            if complete and len(ids) <= length:
                return len(text), ids
            if complete or len(ids) > length + margin:
                break
            window *= 2
        for count in range(length, 0, -1):
            cut = offsets[count - 1][1]
            if 0 < cut <= offsets[count][0]:
                alone = self.encode(piece[:cut])
                if len(alone) <= length:
                    return start + cut, alone
        cut = max(1, offsets[0][1])
        return start + cut, self.encode(piece[:cut])


def check_text(text: object, name: str) -> str:
    """`text` itself, if it can be compressed or asked; `name` is the argument's, for the message.

    Raises:
        TypeError: not a string.
        ValueError: empty, only white space, or with a lone surrogate.
    """
    if not isinstance(text, str):
        raise TypeError(f"{name} must be a string or a list of strings, got {type(text).__name__}.")
    if not text.removeprefix(BYTE_ORDER_MARK).strip():
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
    """A text or several as a list; `TypeError` for anything else, `ValueError` for none."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, bytes) or not (isinstance(value, Sequence) or hasattr(value, "tolist")):
        raise TypeError(f"{name} must be a string or list of strings, got {type(value).__name__}.")
    if not len(value):
        raise ValueError(f"{name} is an empty list; give at least one {name}.")
    return list(value)


# -- chats -----------------------------------------------------------------------------------------

Message = dict[str, Any]

# Private-use characters stand for the user's text while a chat template is rendered, so that only
# the template's own text is read with added-token matching.
_SENTINEL = "\ue0f0{}\ue0f1"
_SENTINEL_PATTERN = re.compile("\ue0f0(memory|[0-9]+)\ue0f1")


def render_chat(tokenizer, messages: list[Message], **template_kwargs) -> str:
    """A chat by the tokenizer's template, up to where its answer begins; `ValueError` without."""
    template_kwargs |= {"tokenize": False, "add_generation_prompt": True}
    try:
        return tokenizer.apply_chat_template(messages, **template_kwargs)
    except TemplateError as error:
        roles = [message["role"] for message in messages]
        raise ValueError(f"the chat template refuses a chat of {roles}: {error}.") from error


def chat_parts(
    tokenizer, messages: list[Message], template_kwargs: dict[str, Any]
) -> list[tuple[str, str]]:
    """What a chat is rendered into, up to where its answer begins, in order.

    Returns:
        `("template", text)`, whose control strings are control tokens; `("message", text)`, which
        is somebody's text; and once `("memory", "")`.

    Raises:
        ValueError: no template, one that refuses the chat or loses a part of it, or no chat.
    """
    if not tokenizer.chat_template:
        raise ValueError(
            "messages=[...] needs a decoder tokenizer with a chat template, and this decoder's "
            "has none. Use question=... instead."
        )
    hidden, texts = _hide_texts(messages)
    pieces = _SENTINEL_PATTERN.split(render_chat(tokenizer, hidden, **template_kwargs))
    if sorted(pieces[1::2]) != sorted([*map(str, range(len(texts))), "memory"]):
        raise ValueError(
            "the decoder's chat template drops or repeats a message: it rendered "
            f"{[messages[0]['role'], '...']} into parts {pieces[1::2]}. Use the roles that it "
            "supports."
        )
    parts = [("template", pieces[0])]
    for name, following in zip(pieces[1::2], pieces[2::2], strict=True):
        parts.append(("memory", "") if name == "memory" else ("message", texts[int(name)]))
        parts.append(("template", following))
    return parts


def _hide_texts(messages: list[Message]) -> tuple[list[Message], list[str]]:
    """The chat with sentinels for contents, and the texts that they stand for."""
    if not isinstance(messages, list) or not messages:
        raise ValueError("messages must be a list with at least one message.")
    texts: list[str] = []
    hidden: list[Message] = []
    placed = False
    for message in messages:
        if not isinstance(message, dict) or not {"role", "content"} <= set(message):
            raise ValueError(f"a message is a dict with 'role' and 'content', got {message!r:.80}.")
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
            raise ValueError(f"message content is a string or list of parts, got {content!r:.80}.")
        rendered = ""
        for part in parts:
            if part.get("type") == "memory" and not placed:
                rendered += _SENTINEL.format("memory")
                placed = True
            elif part.get("type") == "text":
                rendered += _SENTINEL.format(len(texts))
                texts.append(check_text(part.get("text"), "a message"))
            else:
                raise ValueError(
                    "message parts are {'type': 'text', 'text': ...} and at most one "
                    f"{{'type': 'memory'}} in the chat, got {part!r:.80}."
                )
        if hidden and {**hidden[-1], "content": rendered} == {**message, "content": rendered}:
            hidden[-1]["content"] += f"\n\n{rendered}"  # templates may want roles to alternate
        else:
            hidden.append({**message, "content": rendered})
    if not placed:
        users = [m for m in hidden if m["role"] == "user"]
        if not users:
            raise ValueError("messages need a user message, in which the memory is placed.")
        users[0]["content"] = _SENTINEL.format("memory") + users[0]["content"]
    return hidden, texts


# -- units of a sentence encoder -------------------------------------------------------------------


def split_units(text: str, unit: str, language: str = "en") -> list[tuple[int, int]]:
    """Character spans of the sentences, the paragraphs or the whole of `text`; they tile it.

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
        ends = [part["end_index"] for part in sentencex.get_sentence_boundaries(language, text)]
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


def unit_spans(
    encoder_text: PlainText,
    text: str,
    unit: str,
    language: str,
    window: int,
    lead: str = "",
    lower_case: bool = False,
) -> list[Span]:
    """The spans of a text that get one vector each; they tile it.

    Their ids are those of the span without white space around it, behind `lead` (where the
    encoder's prompt ends in white space). Units without a token (control characters) join the one
    before them; of those above `window` tokens a warning says that they are cut.
    """

    def span_of(start: int, end: int) -> Span:
        stripped = text[start:end].strip()
        ids = encoder_text.encode(lead + (stripped.lower() if lower_case else stripped))
        return Span(start, end, ids)

    def pieces_of(start: int, end: int) -> list[Span]:
        for room in range(window, 0, -1):
            pieces = encoder_text.segment(text[start:end], room)
            spans = [span_of(start + piece.start, start + piece.end) for piece in pieces]
            if all(len(span.ids) <= window for span in spans):
                break  # else: without the white space around it, a piece may take more
        return spans

    spans: list[Span] = []
    cut = count = 0
    for start, end in split_units(text, unit, language):
        pieces = [span_of(start, end)]
        if len(pieces[0].ids) > window:
            pieces = pieces_of(start, end)
            cut, count = cut + 1, count + len(pieces)
        for span in pieces:
            if span.ids or not spans:
                spans.append(span)
            else:
                spans[-1] = spans[-1]._replace(end=span.end)
    if cut:
        logger.warning(
            f"{cut} {unit}{'s are' if cut > 1 else ' is'} longer than the sentence encoder's "
            f"window of {window} tokens; cut into {count} pieces, one slot each."
        )
    if len(spans) > 1 and not spans[0].ids:
        spans[1] = spans[1]._replace(start=spans[0].start)
        del spans[0]
    return spans


# -- literals ----------------------------------------------------------------------------------

MONTHS = (
    "Jan(?:uary)?|Feb(?:ruary)?|Mar(?:ch)?|Apr(?:il)?|May|June?|July?|Aug(?:ust)?|"
    "Sept?(?:ember)?|Oct(?:ober)?|Nov(?:ember)?|Dec(?:ember)?"
)

_W = r"[^\W\u0590-\u1dff\u2000-\U0010ffff]"
"""A letter or digit of Latin, Greek or Cyrillic, where spaces stand around words; others, such as
Chinese, Japanese, Thai, Korean and Hebrew, may touch a number."""


class Literal(NamedTuple):
    """Characters `start` to `end` of a source text, which the decoder reads as they are."""

    start: int
    end: int
    text: str


Detector = Callable[[str], Iterable[tuple[int, int]]]
"""From a text to the `(start, end)` character spans of what it detects, in any order."""

Detectors = str | Detector | Sequence[str | Detector]
"""A detector's name, a detector, or several of either."""


def by_pattern(*patterns: str) -> Detector:
    """A detector of all matches of regular expressions, or of their group `kept`."""
    compiled = [re.compile(pattern) for pattern in patterns]

    def detect(text: str) -> Iterator[tuple[int, int]]:
        for pattern in compiled:
            for match in pattern.finditer(text):
                yield match.span("kept" if "kept" in pattern.groupindex else 0)

    return detect


DETECTORS: dict[str, Detector] = {
    # 27, 1,000.5, -3, $40, 12:30, 95.5%; no digits in a word of `_W` (those are identifiers).
    "numbers": by_pattern(rf"(?<!{_W})(?:(?<!\S)[+-])?[$€£¥]?\d+(?:[.,:]\d+)*(?:[eE][+-]?\d+)?%?"),
    "dates": by_pattern(
        rf"(?<!{_W})\d{{4}}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d(?:\.\d+)?)?Z?)?(?!{_W})",
        rf"(?<!{_W})\d{{1,2}}[./]\d{{1,2}}[./]\d{{2,4}}(?!{_W})",
        rf"(?<!{_W})(?:\d{{1,2}}(?:st|nd|rd|th)? )?(?:{MONTHS})\.?,? \d{{1,4}}"
        rf"(?:st|nd|rd|th)?(?:, \d{{4}})?(?!{_W})",
    ),
    # Words with a letter and a digit: UUIDs, hashes, order numbers, part numbers.
    "identifiers": by_pattern(
        rf"(?<!{_W})(?<!-)(?=(?:{_W}|-)*\d)(?=(?:{_W}|-)*[A-Za-z])"
        rf"[A-Za-z0-9](?:(?:{_W}|-)*[A-Za-z0-9])?(?!{_W}|-)"
    ),
    "urls": by_pattern(
        r"(?:https?://|ftp://|www\.)[^\s<>\"\u3000-\u303f\uff00-\uff65]*"
        r"[^\s<>\"'.,;:!?)\]}\u3000-\u303f\uff00-\uff65]",
        r"(?<![\w.+-])[\w.+-]{1,64}@[\w-]+(?:\.[\w-]+)+",
    ),
    # Fenced and quoted code, calls, snake_case, camelCase.
    "code": by_pattern(
        r"```[^\n`]*\n?(?P<kept>[^`]+?)\s*```",
        r"(?<!`)`(?P<kept>[^`\n]+)`(?!`)",
        rf"(?<!{_W})(?<![.`])[A-Za-z_]\w*(?:\.\w+)*\([^()\n]{{0,200}}\)",
        rf"(?<!{_W})[A-Za-z]{_W}*_{_W}+",
        rf"(?<!{_W})[a-z]+(?:[A-Z][a-z0-9]+)+(?!{_W})",
    ),
    "quotes": by_pattern(
        r'"(?P<kept>[^"\n]{1,300})"',
        r"“(?P<kept>[^“”\n]{1,300})”",
        r"«\s?(?P<kept>[^«»\n]{1,300}?)\s?»",
        r"[「『„](?P<kept>[^「『」』„“”\n]{1,300})[」』“”]",
    ),
}
"""Detectors by name; add your own by a new name, or give a function in a name's place."""


def check_detectors(literals: Detectors | None, names_only: bool = False) -> list[Detector]:
    """The detectors that `literals` names; with `names_only`, functions are refused too.

    Raises:
        ValueError: an unknown name, or something else than names and functions.
    """
    several = isinstance(literals, (list, tuple))
    named: Any = literals if several else [] if literals is None else [literals]
    detectors = []
    for detector in named:
        if isinstance(detector, str) and detector in DETECTORS:
            detectors.append(DETECTORS[detector])
        elif callable(detector) and not names_only:
            detectors.append(detector)
        else:
            others = "" if names_only else ", or a function from a text to (start, end) spans"
            raise ValueError(
                f"literals={detector!r} is not a kind of verbatim tokens; choose from "
                f"{sorted(DETECTORS)}{others}."
            )
    return detectors


def find_literals(text: str, literals: Detectors | None) -> list[Literal]:
    """What the detectors find in `text`, in its order; spans that overlap are one.

    Raises:
        ValueError: an unknown detector, or one that gives no spans of this text.
    """
    spans: list[tuple[int, int]] = []
    for detector in check_detectors(literals):
        detected: Any = detector(text)
        for span in detected if isinstance(detected, Iterable) else [detected]:
            start, end = check_span(span, text)
            # White space around a literal says nothing, and the layout puts a space before it.
            end -= len(text[start:end]) - len(text[start:end].rstrip())
            start = end - len(text[start:end].lstrip())
            if start < end:
                spans.append((start, end))
    chosen: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if chosen and start < chosen[-1][1]:
            start, before = chosen.pop()
            end = max(before, end)
        chosen.append((start, end))
    return [Literal(start, end, text[start:end]) for start, end in chosen]


def literals_of_spans(
    text: str, ends: Sequence[int], literals: Detectors | None
) -> list[tuple[Literal, ...]]:
    """The verbatim strings of each segment; one that a cut divides stays whole where it begins.

    `ends` are one past the last character of each segment; the last segment takes what is left.
    """
    by_segment: list[list[Literal]] = [[] for _ in ends]
    segment = 0
    for literal in find_literals(text, literals):
        while segment < len(ends) - 1 and literal.start >= ends[segment]:
            segment += 1
        by_segment[segment].append(literal)
    return [tuple(literals_) for literals_ in by_segment]


def check_span(span: object, text: str) -> tuple[int, int]:
    """A detector's span; `ValueError` where it is none of this text."""
    if isinstance(span, (tuple, list)) and len(span) >= 2:
        start, end = span[0], span[1]
        if type(start) is int and type(end) is int and 0 <= start <= end <= len(text):
            return start, end
    raise ValueError(
        f"a detector of literals gives (start, end) with 0 <= start <= end <= {len(text)}, the "
        f"text's length in characters; got {span!r}."
    )
