"""Loading a checkpoint with the parts of memslots that this Space carries."""

from __future__ import annotations

from typing import Any

import torch

from memslots.modeling import MemslotsModel

from .settings import Settings


def load_model(settings: Settings) -> Any:
    """The checkpoint's weights at the pinned revision; none of its code is run.

    Raises:
        ValueError: a model of another kind.
    """
    config, _ = MemslotsModel.config_class.get_config_dict(
        settings.model, revision=settings.revision
    )
    if config.get("model_type") != "memslots":
        raise ValueError(
            f"{settings.model} is a {config.get('model_type')!r} model, no memslots checkpoint; "
            "set the variable MEMSLOTS_MODEL to one."
        )
    # Without an accelerator bfloat16 can be some hundred times slower than float32.
    accelerated = torch.accelerator.is_available()
    model = MemslotsModel.from_pretrained(
        settings.model,
        revision=settings.revision,
        dtype="auto" if accelerated else torch.float32,
    )
    if accelerated:
        model = model.to(torch.accelerator.current_accelerator())
    return model.eval()
