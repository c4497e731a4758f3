"""What results say of where they come from: the checkpoint and the machine."""

from __future__ import annotations

import hashlib
import os
import platform
from typing import Any

import torch
import transformers

from memslots.modeling import MemslotsModel


def describe_checkpoint(model: MemslotsModel) -> dict[str, Any]:
    """What was measured: the compressor's fingerprint, and the decoder's name or weights' hash."""
    config = model.config
    parts: dict[str, Any] = {"encoder": config.encoder_config, "decoder": config.decoder_config}
    decoder: dict[str, Any] = {
        "name": config.decoder_name_or_path,
        "revision": config.decoder_revision,
    }
    if config.bundle_decoder and model.has_decoder:  # small: the whole of it is hashed
        digest = hashlib.sha256()
        for name, tensor in sorted(model.decoder.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            values = tensor.detach().cpu().contiguous().reshape(-1)
            digest.update(values.view(torch.uint8).numpy().tobytes())
        decoder = {"bundled": True, "weights_sha256": digest.hexdigest()}
    return {
        "fingerprint": model.fingerprint,
        "decoder": {
            "type": parts["decoder"].model_type,
            "parameters": _parameters(model.decoder if model.has_decoder else None),
            **decoder,
        },
        "encoder": {
            "type": parts["encoder"].model_type,
            "parameters": _parameters(model.encoder),
        },
        "rates": list(config.compression_rates),
        "segment_length": config.segment_length,
    }


def _parameters(module: torch.nn.Module | None) -> int:
    return 0 if module is None else sum(p.numel() for p in module.parameters())


def hardware(model: MemslotsModel) -> str:
    """What the model runs on, without naming the machine."""
    if model.device.type != "cpu":
        return f"1 {model.device.type} device"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{cores} CPU cores"


def describe_machine(model: MemslotsModel) -> dict[str, str]:
    """Hardware, versions and precision that a measurement ran with."""
    return {
        "hardware": hardware(model),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "dtype": str(model.dtype).removeprefix("torch."),
    }
