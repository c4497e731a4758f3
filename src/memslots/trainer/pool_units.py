"""What a stage of a curriculum pools: the next may give a vector to less text than the last."""

from __future__ import annotations

from memslots.modeling.configuration_memslots import CHOICES
from memslots.modeling.modeling_memslots import MemslotsModel


def change_pool_unit(model: MemslotsModel, unit: str) -> None:
    """Let a sentence compressor give one vector to each `unit`; its memories are others' then.

    Args:
        model: a compressor with `pooling="sentence"`.
        unit: "sentence", "paragraph" or "text".

    Raises:
        ValueError: another kind of compressor, or an unknown unit.
    """
    if model.config.pooling != "sentence":
        raise ValueError(
            f"pool_unit is for pooling='sentence', and this compressor has "
            f"pooling={model.config.pooling!r}; leave pool_unit out of the stage."
        )
    if unit not in CHOICES["pool_unit"]:
        raise ValueError(f"pool_unit must be one of {list(CHOICES['pool_unit'])}, got {unit!r}.")
    processor = model.processor
    model.config.pool_unit = unit
    processor.units = {**(processor.units or {}), "unit": unit}
    model.config.fingerprint = None
    model._fingerprint = None


def pooled_plan(hidden_size: int, segment_length: int) -> dict:
    """A stand-in for `MemslotsConfig.sentence_encoder`, for plans that load no weights.

    Args:
        hidden_size: of the encoder's backbone.
        segment_length: longest unit, in encoder tokens.
    """
    head = [{"kind": "pooling", "modes": ["mean"]}]
    ids = {"prefix_ids": [0], "suffix_ids": [0]}
    return {"head": head, "slot_size": hidden_size, "window": segment_length, **ids}
