"""What a stage changes about the compressor that it starts from, or makes anew."""

from __future__ import annotations

import copy
import itertools
import logging
from pathlib import Path
from typing import Any

from datasets import Dataset, IterableDataset

from memslots.modeling.encoders_memslots import build_encoder
from memslots.modeling.modeling_memslots import MemslotsModel
from memslots.modeling.texts_memslots import check_detectors
from memslots.trainer.adapter_start import start_from_embeddings
from memslots.trainer.compressor_config import CompressorConfig
from memslots.trainer.pool_units import change_pool_unit
from memslots.trainer.slot_cache import cached_slots

logger = logging.getLogger(__name__)

_START_ROWS = 1500
"""Most rows whose sentences an adapter's start is fitted on: a few times a slot's width."""

CHANGEABLE = ("bundle_encoder", "literals", "pool_unit", "train_encoder")
"""Fields of `MemslotsConfig` that another stage may give another value: no weights hang on them."""


def first_section(section: dict[str, Any], name: str) -> dict[str, Any]:
    """The recipe's `compressor` section with the `config` of its stage `name`, which makes a model.

    Args:
        section: the section.
        name: of a stage that starts from no other.
    """
    stage = next(settings for settings in section["stages"] if settings["name"] == name)
    return {**section, "config": {**section["config"], **stage.get("config", {})}}


def change_stage(model: MemslotsModel, settings: dict[str, Any], is_new: bool) -> None:
    """Apply a stage's `pool_unit`, `config` and `new_encoder` to its model, in place.

    Args:
        model: the compressor that the stage trains.
        settings: the stage.
        is_new: whether the stage made the model, with its `config`.

    Raises:
        ValueError: fields that decide weights, for a model that has weights already.
    """
    changes = dict(settings.get("config", {}))
    if is_new:
        changes = {}
    fixed = sorted(set(changes) - set(CHANGEABLE))
    if fixed:
        raise ValueError(
            f"stage {settings['name']!r} starts from another one's weights, so its config may set "
            f"{list(CHANGEABLE)} only, not {fixed}; use `after: null` for a new compressor."
        )
    unit = settings.get("pool_unit", changes.pop("pool_unit", None))
    if unit is not None:
        change_pool_unit(model, unit)
    if "literals" in changes:
        check_detectors(changes["literals"], names_only=True)
        model.config.literals = changes["literals"]
        model.processor.literals = changes["literals"]
    if {"train_encoder", "bundle_encoder"} & set(changes):
        for name in {"train_encoder", "bundle_encoder"} & set(changes):
            setattr(model.config, name, changes[name])
        model.config.validate_architecture()
        model.freeze_sentence_encoder()
    if "new_encoder" in settings:
        give_new_encoder(model, settings["new_encoder"] or {})


def give_new_encoder(model: MemslotsModel, fields: dict[str, Any]) -> None:
    """Put an untrained encoder of the same architecture in the place of a sentence encoder.

    Args:
        model: a compressor with `pooling="sentence"` and `train_encoder=True`.
        fields: of the encoder's configuration that differ, such as `num_hidden_layers`.

    Raises:
        ValueError: another kind of compressor, a frozen encoder, or fields that do not exist.
    """
    config = model.config
    if config.pooling != "sentence" or not config.train_encoder:
        raise ValueError(
            "new_encoder is for pooling='sentence' with train_encoder=True: an untrained encoder "
            "that stays frozen says nothing about a text."
        )
    encoder_config = copy.deepcopy(config.encoder_config)
    unknown = sorted(name for name in fields if not hasattr(encoder_config, name))
    if unknown:
        raise ValueError(
            f"new_encoder: {type(encoder_config).__name__} has no fields {unknown}; see its "
            "documentation for those it has."
        )
    if "hidden_size" in fields:
        raise ValueError("new_encoder: hidden_size must stay, since the converter reads it.")
    for name, value in fields.items():
        setattr(encoder_config, name, value)
    before = model.encoder
    config.encoder_config = encoder_config
    config.encoder_name_or_path = None
    encoder = build_encoder(config)
    encoder.to(device=before.device, dtype=before.dtype)
    encoder.config.use_cache = False
    model.encoder = encoder
    model.freeze_sentence_encoder()
    config.fingerprint = None
    model._fingerprint = None


def start_adapter(
    model: MemslotsModel, start: str, rows: Dataset | IterableDataset, args: CompressorConfig
) -> None:
    """Give the adapter the initial weights that a stage's `start` names.

    Args:
        model: the compressor, in place.
        start: "embeddings", see `adapter_start`.
        rows: the stage's rows, some of whose texts are read.
        args: where slots are kept, since training reads the same texts.

    Raises:
        ValueError: another start.
    """
    if start != "embeddings":
        raise ValueError(f"start: {start!r} is unknown; it can only be 'embeddings'.")
    texts = [row["text"] or row["context"] for row in itertools.islice(rows, _START_ROWS)]
    file = Path(args.slot_cache) if args.slot_cache else None
    with cached_slots(model, args.cached_slots, file):
        explained = start_from_embeddings(model, texts)
    logger.info("the adapter's start explains %.0f%% of the embeddings", 100 * explained)
