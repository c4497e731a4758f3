"""Spans that have to come back exactly: which of a text's characters `exact=` asks for."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from memslots.interruption import Stopped, between, looking
from memslots.modeling.texts_memslots import (
    DETECTORS,
    Detector,
    Literal,
    check_detectors,
    check_span,
    find_literals,
)

Exact = bool | str | re.Pattern | Callable[[str], Any] | Sequence[Any]
"""True for every kind of `DETECTORS`; a name of one, a compiled regular expression, a function, or
a list of these."""

_WORD = re.compile(r"\w(?:\S*\w)?")


def exact_detectors(exact: Exact | None) -> list[Detector]:
    """Detectors of what has to be exact; none for None and False.

    Args:
        exact: as for `verified.compress`. A function gets a text and gives `(start, end)`
            spans, as for `literals`; or it gets one word (its characters up to white space, without
            punctuation around them) and says whether that must be exact.

    Raises:
        ValueError: an unknown name, or something else than names, patterns and functions.
    """
    if exact is None or exact is False:
        return []
    if exact is True:
        return [_named(name, DETECTORS[name]) for name in DETECTORS]
    single = isinstance(exact, (str, re.Pattern)) or callable(exact)
    detectors = []
    for kind in [exact] if single or not isinstance(exact, (list, tuple)) else exact:
        if isinstance(kind, re.Pattern):
            detectors.append(_named(f"re.compile({kind.pattern!r})", _by_pattern(kind)))
        elif isinstance(kind, str) and kind in DETECTORS:
            detectors.append(_named(kind, DETECTORS[kind]))
        elif callable(kind):
            detectors.append(_of_function(kind))
        else:
            try:
                check_detectors(kind)
            except ValueError as error:
                raise ValueError(
                    str(error).replace("literals=", "exact=", 1)
                    + " A regular expression is given as re.compile(...)."
                ) from error
            raise ValueError(f"exact={kind!r} is not known; use names of {sorted(DETECTORS)}.")
    return detectors


def exact_spans(text: str, detectors: Sequence[Detector]) -> list[Literal]:
    """What has to be exact in a text, in order, without overlaps.

    Raises:
        ValueError: a detector raised, or gives no spans of this text; named, with the span.
    """
    return find_literals(text, looking(detectors)) if detectors else []


def _by_pattern(pattern: re.Pattern) -> Detector:
    return lambda text: (match.span() for match in pattern.finditer(text))


def _named(name: str, detector: Callable[[str], Iterable[tuple[int, int]]]) -> Detector:
    def detect(text: str) -> Iterable[tuple[int, int]]:
        return _checked(name, _asked(name, detector, text, 0, len(text)), text)

    return detect


def _checked(name: str, spans: Any, text: str) -> list[tuple[int, int]]:
    """What a detector gave, as spans of the text.

    Raises:
        ValueError: it is something else; the detector is named.
    """
    if isinstance(spans, Iterable) and not isinstance(spans, str):
        try:
            return [check_span(span, text) for span in between(spans)]
        except ValueError as error:
            raise ValueError(f"exact: {name}: {error}") from error
    shown = text if len(text) <= 60 else text[:60] + "..."
    raise ValueError(
        f"exact: {name} gave {spans!r} for {shown!r}; it has to give a list of (start, end) spans "
        "of a text, or True or False for a word."
    )


def _of_function(function: Callable[[str], Any]) -> Detector:
    name = getattr(function, "__qualname__", None) or repr(function)

    def detect(text: str) -> Iterable[tuple[int, int]]:
        answer = _asked(name, function, text, 0, len(text))
        if not isinstance(answer, bool):
            return _checked(name, answer, text)
        # A predicate, which says yes or no.
        words = [match.span() for match in between(_WORD.finditer(text))]
        said = [_asked(name, function, text[a:b], a, b) for a, b in between(words)]
        return [span for span, yes in zip(words, said, strict=True) if yes]

    return detect


def _asked(name: str, function: Callable[[str], Any], span: str, start: int, end: int) -> Any:
    try:
        answer = function(span)
        return list(between(answer)) if isinstance(answer, Iterator) else answer
    except Stopped:
        raise
    except Exception as error:  # a user's function may raise anything; it is named
        raise _failed(name, span, 0, end - start, error, start) from error


def _failed(
    name: str, text: str, start: int, end: int, error: Exception, shift: int = 0
) -> ValueError:
    shown = text[start:end]
    shown = shown if len(shown) <= 60 else shown[:60] + "..."
    return ValueError(
        f"exact: {name} raised {type(error).__name__} ({error}) on characters {start + shift} to "
        f"{end + shift}, {shown!r}; it has to give (start, end) spans of a text, or say of a word "
        "whether it must be exact."
    )
