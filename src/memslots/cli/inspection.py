"""What a checkpoint is, from its configuration alone, and which fields a new one may set."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError

from memslots.configuration import apply_overrides
from memslots.hub_cards.checkpoint_facts import count_parameters
from memslots.modeling import MemslotsConfig

# Made by new_compressor, or arguments of their own.
_NOT_SETTABLE = {
    "encoder_config",
    "decoder_config",
    "encoder_name_or_path",
    "decoder_name_or_path",
    "decoder_fingerprint",
    "encoder_is_causal",
    "fingerprint",
}


def settable_fields(overrides: Sequence[str]) -> dict[str, Any]:
    """The fields of `MemslotsConfig` that `overrides` set.

    Args:
        overrides: `key=value`, such as `compression_rates=[4, 16]` or `encoder_lora={r: 16}`.

    Raises:
        ValueError: A field that does not exist or cannot be set, with the nearest right one.
    """
    declared = MemslotsConfig.__annotations__
    defaults = {
        field.name: field.default if field.default is not dataclasses.MISSING else None
        for field in dataclasses.fields(MemslotsConfig)
        if field.name in declared and field.name not in _NOT_SETTABLE
    }
    changed = apply_overrides(defaults, overrides)
    named = {override.partition("=")[0].strip().split(".")[0] for override in overrides}
    return {name: changed[name] for name in defaults if name in named}


def loading_arguments(option: str, pairs: Sequence[str]) -> dict[str, Any]:
    """Arguments of `from_pretrained` from `KEY=VALUE`, the value in YAML.

    Raises:
        ValueError: no `=`, or a value that is not YAML.
    """
    arguments = {}
    for text in pairs:
        key, equals, value = text.partition("=")
        if not equals or not key.strip().isidentifier():
            raise ValueError(f"{option} {text!r} is not KEY=VALUE, such as subfolder=models.")
        try:
            arguments[key.strip()] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ValueError(f"{option} {text!r}: the value is not YAML ({error}).") from error
    return arguments


def describe(
    name: str, config: MemslotsConfig, revision: str | None = None
) -> tuple[dict[str, str], dict[str, Any] | None]:
    """Facts of a checkpoint for a table, and its results where it has them; reads no weights.

    Args:
        name: Folder or repository.
        config: Its configuration.
        revision: Of the repository.
    """
    counts = count_parameters(config)
    parts: dict[str, Any] = {"encoder": config.encoder_config, "decoder": config.decoder_config}
    folder = Path(name)
    files = [path for path in folder.rglob("*") if path.is_file()] if folder.is_dir() else []
    encoder = "LoRA adapter, " if config.encoder_lora is not None else ""
    causal = "causal" if config.encoder_is_causal else "bidirectional"
    decoder = "in the checkpoint" if config.bundle_decoder else "by name"
    facts = {
        "encoder": f"{parts['encoder'].model_type} ({encoder}{causal}), "
        f"width {parts['encoder'].hidden_size}"
        f"{_origin(config.encoder_name_or_path, config.encoder_revision)}",
        "decoder": f"{parts['decoder'].model_type} ({decoder}), "
        f"width {config.get_text_config().hidden_size}"
        f"{_origin(config.decoder_name_or_path, config.decoder_revision)}",
        "rates": ", ".join(map(str, config.compression_rates)) + " encoder tokens per slot",
        "segment length": f"{config.segment_length} encoder tokens",
        "prompt": config.prompt_format,
        "parameters trained": f"{counts['trained']:,}",
        "parameters frozen": f"{counts['frozen']:,}",
        "fingerprint": config.fingerprint or "none (never saved)",
        "size on disk": f"{sum(path.stat().st_size for path in files) / 1e6:.1f} MB"
        if files
        else "not on this disk",
    }
    return facts, _read_results(name, revision)


def _origin(name: str | None, revision: str | None) -> str:
    pinned = f" at {revision}" if revision else ""
    return f", from {name}{pinned}" if name else ""


def _read_results(name: str, revision: str | None) -> dict[str, Any] | None:
    path = Path(name) / "results.json"
    if not Path(name).is_dir():
        try:
            path = Path(hf_hub_download(name, "results.json", revision=revision))
        except EntryNotFoundError:
            return None
    return json.loads(path.read_text("utf-8")) if path.is_file() else None
