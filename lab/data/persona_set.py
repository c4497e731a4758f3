"""The personas as a data set: short biographies, each with a question about one of its facts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lab.data.personas import persona_rows
from memslots.data.schema import Adapter, Layout, QuestionRow

_ROWS = {"train": 100_000, "validation": 2_000, "test": 2_000}


def _raw_rows(split: str, data_dir: str | Path | None, seed: int) -> Iterator[Mapping[str, Any]]:
    for number, row in enumerate(persona_rows(split, _ROWS[split], seed=seed)):
        yield {"id": f"{split}-{seed}-{number}", **row}


def _question(raw: Mapping[str, Any]) -> QuestionRow:
    return {
        "id": raw["id"],
        "context": raw["context"],
        "question": raw["question"],
        "answer": raw["answer"],
        "answers": [raw["answer"]],
    }


PERSONAS = Adapter(
    name="personas",
    title="generated personas",
    licence="of this package",
    splits={split: split for split in _ROWS},
    layouts=(Layout(("id", "context", "question", "answer"), _question),),
    generate=_raw_rows,
)
