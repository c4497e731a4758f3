"""Literals: exact strings that ride beside the slots as ordinary decoder tokens.

A pooled vector keeps the gist of a text and loses its digits ("owns 880 radios" and "owns 881
radios" have a cosine similarity of 0.96 in the sentence-pools article), so what must come back
exactly is kept as text: a literal is a span of characters of the source. In the decoder's input the
tokens of a segment's literals follow its slots, in the order of the text and before `</MEM>`: the
marker then ends everything that stands for the segment, so a literal runs neither into the next
segment's nor into the question. Each literal is encoded by itself after one space, which keeps
neighbours apart and gives it the tokens that it has in prose.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

MONTHS = (
    "Jan(?:uary)?|Feb(?:ruary)?|Mar(?:ch)?|Apr(?:il)?|May|June?|July?|Aug(?:ust)?|"
    "Sept?(?:ember)?|Oct(?:ober)?|Nov(?:ember)?|Dec(?:ember)?"
)


class Literal(NamedTuple):
    """A string that the decoder reads as it is.

    Args:
        start: first character in the source text.
        end: one past its last character.
        text: the characters themselves.
    """

    start: int
    end: int
    text: str


Detector = Callable[[str], Iterable[tuple[int, int]]]
"""From a text to the `(start, end)` character spans of what it detects, in any order."""

Detectors = str | Detector | Sequence[str | Detector]
"""A detector's name, a detector, or several of either."""


def by_pattern(*patterns: str) -> Detector:
    """A detector of all matches of regular expressions; of a named group `kept`, where it is one's.

    Args:
        patterns: as for `re`.
    """
    compiled = [re.compile(pattern) for pattern in patterns]

    def detect(text: str) -> list[tuple[int, int]]:
        return [
            match.span("kept" if "kept" in pattern.groupindex else 0)
            for pattern in compiled
            for match in pattern.finditer(text)
        ]

    return detect


DETECTORS: dict[str, Detector] = {
    # 27, 1,000.5, -3, $40, 12:30, 95.5%; no digits inside a word (those are identifiers).
    "numbers": by_pattern(r"(?<!\w)(?:(?<!\S)[+-])?[$€£¥]?\d+(?:[.,:]\d+)*(?:[eE][+-]?\d+)?%?"),
    "dates": by_pattern(
        r"(?<!\w)\d{4}-\d{2}-\d{2}(?:[T ]\d{2}:\d{2}(?::\d{2}(?:\.\d+)?)?Z?)?(?!\w)",
        r"(?<!\w)\d{1,2}[./]\d{1,2}[./]\d{2,4}(?!\w)",
        rf"(?<!\w)(?:\d{{1,2}}(?:st|nd|rd|th)? )?(?:{MONTHS})\.?,? \d{{1,4}}"
        r"(?:st|nd|rd|th)?(?:, \d{4})?(?!\w)",
    ),
    # Words with a letter and a digit: UUIDs, hashes, order numbers, part numbers.
    "identifiers": by_pattern(
        r"(?<![\w-])(?=[\w-]*\d)(?=[\w-]*[A-Za-z])[A-Za-z0-9](?:[\w-]*[A-Za-z0-9])?(?![\w-])"
    ),
    "urls": by_pattern(
        r"(?:https?://|ftp://|www\.)[^\s<>\"]*[^\s<>\"'.,;:!?)\]}]",
        r"(?<![\w.+-])[\w.+-]{1,64}@[\w-]+(?:\.[\w-]+)+",
    ),
    # Fenced and quoted code, calls, snake_case, camelCase.
    "code": by_pattern(
        r"```[^\n`]*\n?(?P<kept>[^`]+?)\s*```",
        r"(?<!`)`(?P<kept>[^`\n]+)`(?!`)",
        r"(?<![\w.`])[A-Za-z_]\w*(?:\.\w+)*\([^()\n]{0,200}\)",
        r"(?<!\w)[A-Za-z]\w*_\w+",
        r"(?<!\w)[a-z]+(?:[A-Z][a-z0-9]+)+(?!\w)",
    ),
    "quotes": by_pattern(
        r'"(?P<kept>[^"\n]{1,300})"',
        r"“(?P<kept>[^”\n]{1,300})”",
        r"«\s?(?P<kept>[^»\n]{1,300}?)\s?»",
    ),
}
"""Detectors by name; add your own by a new name, or give a function in a name's place."""


def check_detectors(literals: Detectors | None, names_only: bool = False) -> list[Detector]:
    """The detectors that `literals` names.

    Args:
        literals: a name of `DETECTORS`, a function, or a list of them; None or an empty list for
            none.
        names_only: whether only names will do, as in a configuration file.

    Raises:
        ValueError: an unknown name, or something else than names and functions.
    """
    if literals is None:
        return []
    single = isinstance(literals, str) or callable(literals)
    named = [literals] if single else literals
    if not isinstance(named, (list, tuple)):
        named = [named]
    detectors = []
    for detector in named:
        if isinstance(detector, str) and detector in DETECTORS:
            detectors.append(DETECTORS[detector])
        elif callable(detector) and not names_only:
            detectors.append(detector)
        else:
            others = "" if names_only else ", or a function from a text to (start, end) spans"
            raise ValueError(
                f"literals={detector!r} is no detector of literals; "
                f"use names of {sorted(DETECTORS)}{others}."
            )
    return detectors


def find_literals(text: str, literals: Detectors | None) -> list[Literal]:
    """What the detectors find in `text`, in its order; of spans that overlap, the longest.

    Args:
        text: the source.
        literals: as for `check_detectors`.

    Raises:
        ValueError: an unknown detector, or one that gives no spans of this text.
    """
    spans: set[tuple[int, int]] = set()
    for detector in check_detectors(literals):
        for span in detector(text):
            start, end = check_span(span, text)
            # White space around a literal says nothing, and the layout puts a space before it.
            while start < end and text[start].isspace():
                start += 1
            while end > start and text[end - 1].isspace():
                end -= 1
            if start < end:
                spans.add((start, end))
    chosen: list[tuple[int, int]] = []
    reached = 0
    # Of overlapping spans the one that begins first, and of those the longest; what a longer one
    # begins before is part of it nearly always ("2024" in "5 March 2024").
    for start, end in sorted(spans, key=lambda span: (span[0], -span[1])):
        if start >= reached:
            chosen.append((start, end))
            reached = end
        elif chosen and end - start > chosen[-1][1] - chosen[-1][0]:
            before = chosen[-2][1] if len(chosen) > 1 else 0
            if start >= before:
                chosen[-1] = (start, end)
                reached = end
    return [Literal(start, end, text[start:end]) for start, end in chosen]


def literals_of_spans(
    text: str, ends: Sequence[int], literals: Detectors | None
) -> list[tuple[Literal, ...]]:
    """The literals of each segment of a text; one that a cut divides stays whole where it begins.

    Args:
        text: the source.
        ends: one past the last character of each segment, rising; the last segment takes what is
            left.
        literals: as for `check_detectors`.
    """
    by_segment: list[list[Literal]] = [[] for _ in ends]
    segment = 0
    for literal in find_literals(text, literals):
        while segment < len(ends) - 1 and literal.start >= ends[segment]:
            segment += 1
        by_segment[segment].append(literal)
    return [tuple(literals_) for literals_ in by_segment]


def check_span(span: object, text: str) -> tuple[int, int]:
    """A detector's span.

    Raises:
        ValueError: it is none of this text.
    """
    if isinstance(span, (tuple, list)) and len(span) >= 2:
        start, end = span[0], span[1]
        if type(start) is int and type(end) is int and 0 <= start <= end <= len(text):
            return start, end
    raise ValueError(
        f"a detector of literals gives (start, end) with 0 <= start <= end <= {len(text)}, the "
        f"text's length in characters; got {span!r}."
    )
