"""Texts with questions, for visitors who have brought none."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Example:
    """A text and questions that it answers.

    Args:
        label: what the page calls it.
        kind: of text, in the words of `Settings.trained_on` where compressors are trained on it.
        text: the document.
        questions: about it.
    """

    label: str
    kind: str
    text: str
    questions: tuple[str, ...]

    def is_like(self, trained_on: str) -> bool:
        """Whether a compressor that was trained on this saw texts of the example's kind."""
        return self.kind in trained_on


def examples(trained_on: str = "") -> list[Example]:
    """All examples, those of a kind that the compressor was trained on first."""
    listed = json.loads(Path(__file__).with_name("examples.json").read_text("utf-8"))
    read = [Example(**{**each, "questions": tuple(each["questions"])}) for each in listed]
    return sorted(read, key=lambda example: not example.is_like(trained_on))
