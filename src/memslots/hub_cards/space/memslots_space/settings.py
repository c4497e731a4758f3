"""What a Space may be told: by `space.json`, written when it was published, or by its variables."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

PREFIX = "MEMSLOTS_"
"""A variable's name is this and the setting's, as in `MEMSLOTS_MAX_CHARACTERS`."""


@dataclass(frozen=True)
class Settings:
    """What the page shows and allows.

    Args:
        model: the checkpoint, a Hub repository or a folder.
        revision: its commit; what is not pinned may change under the Space, code included.
        title: the page's heading.
        note: a line under it, for what this checkpoint can and cannot do.
        trained_on: the checkpoint's training texts in words; other texts get a warning. Empty where
            the checkpoint does not say.
        max_characters: longest document.
        max_new_tokens: longest answer, in tokens.
        max_segments_read_back: segments that one press of "Read back" reconstructs.
        queue: visitors who may wait at once.
    """

    model: str
    revision: str | None = None
    title: str = "Ask a compressed document"
    note: str = ""
    trained_on: str = ""
    max_characters: int = 20_000
    max_new_tokens: int = 64
    max_segments_read_back: int = 8
    queue: int = 32

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type == "int" and (type(value) is not int or value < 1):
                raise ValueError(f"{field.name} must be an integer of at least 1, got {value!r}.")
        if not isinstance(self.model, str) or not self.model:
            raise ValueError(
                "this Space names no checkpoint; set its variable MEMSLOTS_MODEL to a repository, "
                "and MEMSLOTS_REVISION to a commit of it."
            )


def read_settings(path: Path, variables: Mapping[str, str] = os.environ) -> Settings:
    """The settings of a file, with what variables say instead.

    Args:
        path: `space.json`; it may be missing.
        variables: the environment.

    Raises:
        ValueError: a setting that is unknown, missing or cannot be.
    """
    stated: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    known = {field.name: field.type for field in fields(Settings)}
    unknown = sorted(set(stated) - set(known))
    if unknown:
        raise ValueError(f"{path.name} does not know {unknown}; it has {sorted(known)}.")
    told = {}
    for name, kind in known.items():
        value = variables.get(f"{PREFIX}{name.upper()}")
        if value:
            told[name] = int(value) if kind == "int" and value.isdecimal() else value
    if told.get("model", stated.get("model")) != stated.get("model"):
        for name in ("revision", "trained_on"):  # they were the other checkpoint's
            stated.pop(name, None)
    settings = replace(Settings(model="none"), **{"model": "", **stated, **told})
    if settings.revision is None and not Path(settings.model).is_dir():
        logger.warning(
            "%s is not pinned: its code and weights may change. Set MEMSLOTS_REVISION to a commit.",
            settings.model,
        )
    return settings
