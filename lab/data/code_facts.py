"""Small functions and questions about their names: the sentence-pools article's trial with code.

The article asked for "function names, parameters, dependencies extracted from pool embeddings of
code snippets", and found 6% against 76% on text about people, with an encoder trained on prose.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from typing import Any

from lab.data.personas import SPLITS

CODE_FACTS = ("function", "parameter", "dependency")

_VERBS = tuple(
    "add build check clean close count fetch find load make merge move open parse plan print read "
    "send set sort split start stop store test write".split()
)
_NOUNS = tuple(
    "account archive book budget city cloud cup data design driver event export key loan map "
    "market network order page plate price report ring security star stock table team training "
    "water".split()
)
_PARAMETERS = tuple(
    "age author base city count country data degree energy first general group home key language "
    "limit name number order owner part path place point power prime query rate second side size "
    "source start state table target time title total unit user value water year".split()
)
_LIBRARIES = tuple(
    "amber anchor apex atlas cedar coral crystal delta eagle ember falcon granite harbor horizon "
    "iron liberty lunar maple ocean pacific pioneer royal silver solar summit union valley "
    "velvet".split()
)
_QUESTIONS = {
    "function": ("What is the function's name?", "Which function is defined?"),
    "parameter": ("What is the parameter's name?", "Which parameter does the function take?"),
    "dependency": ("Which library does the code import?", "What is the code's dependency?"),
}
_BODIES = (
    "import {dependency}\n\ndef {function}({parameter}):\n    return {dependency}.run({parameter})",
    "from {dependency} import run\n\ndef {function}({parameter}):\n    run({parameter})",
    "import {dependency}\n\ndef {function}({parameter}=None):\n"
    "    result = {dependency}.open({parameter})\n    return result",
)


def code_rows(
    split: str,
    n: int,
    questions: int = 1,
    contrast: int = 1,
    seed: int = 0,
    brief: bool = False,
) -> Iterator[dict[str, Any]]:
    """Yields rows about one short function each.

    Args:
        split: "train", "validation" or "test"; functions of a split have names that others have
            not.
        n: number of rows.
        questions: most questions a row, 1 to 3.
        contrast: so many rows in a row ask for the same, in the same words, with other answers.
        seed: another seed gives other rows.
        brief: ask in one word, "function", instead of a whole question.

    Yields:
        `{"context", "question", "answer", "fact", "other_context"}`, as `sentence_rows`.

    Raises:
        ValueError: another split, or questions that cannot be had.
    """
    if split not in SPLITS:
        raise ValueError(f"split={split!r} does not exist; choose one of {', '.join(SPLITS)}.")
    if not 1 <= questions <= len(CODE_FACTS) or contrast < 1:
        raise ValueError(
            f"questions={questions} must be 1 to {len(CODE_FACTS)}, contrast={contrast} at least 1."
        )
    draws = random.Random(f"memslots-code-{split}-{seed}")
    made = 0
    while made < n:
        block = random.Random(f"memslots-code-{split}-{seed}-{made}")
        asked = block.sample(CODE_FACTS, questions)
        words = [fact if brief else block.choice(_QUESTIONS[fact]) for fact in asked]
        taken: list[set[str]] = [set() for _ in asked]
        for _ in range(min(contrast, n - made)):
            snippet, other = (_another(draws, split, asked, taken) for _ in range(2))
            yield {
                "context": draws.choice(_BODIES).format(**snippet),
                "question": list(words),
                "answer": [snippet[fact] for fact in asked],
                "fact": list(asked),
                "other_context": draws.choice(_BODIES).format(**other),
            }
            made += 1


def _another(
    draws: random.Random, split: str, asked: list[str], taken: list[set[str]]
) -> dict[str, str]:
    while True:
        function = f"{draws.choice(_VERBS)}_{draws.choice(_NOUNS)}"
        snippet = {
            "function": function,
            "parameter": draws.choice(_PARAMETERS),
            "dependency": draws.choice(_LIBRARIES),
        }
        answers = [snippet[fact] for fact in asked]
        fresh = not any(a in others for a, others in zip(answers, taken, strict=True))
        if _split_of(function) == split and fresh:
            for answer, others in zip(answers, taken, strict=True):
                others.add(answer)
            return snippet


def _split_of(function: str) -> str:
    bucket = int.from_bytes(hashlib.sha256(function.encode()).digest()[:8], "big") % 100
    return "train" if bucket < 80 else "validation" if bucket < 90 else "test"
