"""Loading a checkpoint with its own code; memslots need not be installed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModel
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from .settings import Settings


@dataclass(frozen=True)
class Compressor:
    """A checkpoint in hand.

    Args:
        model: a `MemslotsModel` with its decoder, of the installed package or of remote code.
        chat_memory: `ChatMemory` of the same code.
    """

    model: Any
    chat_memory: type[Any]


def load_compressor(settings: Settings) -> Compressor:
    """Loads model and chat class from the checkpoint's repository, at the pinned revision.

    Raises:
        ValueError: a model of another kind.
    """
    # Without an accelerator bfloat16 can be some hundred times slower than float32.
    accelerated = torch.accelerator.is_available()
    model = AutoModel.from_pretrained(
        settings.model,
        revision=settings.revision,
        trust_remote_code=True,
        dtype="auto" if accelerated else torch.float32,
    )
    if model.config.model_type != "memslots":
        raise ValueError(
            f"{settings.model} is a {model.config.model_type!r} model, no memslots checkpoint; set "
            "the variable MEMSLOTS_MODEL to one."
        )
    if accelerated:
        model = model.to(torch.accelerator.current_accelerator())
    chat_memory = get_class_from_dynamic_module(
        "chat_memslots.ChatMemory", settings.model, revision=settings.revision
    )
    return Compressor(model.eval(), chat_memory)
