"""What a recipe would train, read and cost, before anything is loaded or downloaded but configs.

Parameters are counted on the meta device, so a 70B encoder takes no memory. Memory and time are
estimates: activations after Korthikanti et al. 2022 ("Reducing Activation Recomputation in Large
Transformer Models", 34 bytes a position, width and layer in 16 bit, attention scores never kept),
time as operations over the measured matrix rate of this machine at 40% use.
"""

import time
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from memslots.data import ADAPTERS
from memslots.modeling import MemslotsConfig, MemslotsModel
from memslots.modeling.encoders_memslots import SHARED_ENCODER, first_layers_config
from memslots.modeling.memory_memslots import slots_for
from memslots.trainer.adapt import choose_trained
from memslots.trainer.pool_units import pooled_plan
from memslots.trainer.run import adaptation, previous_stage, trained_part, training_arguments
from memslots.trainer.start_checkpoint import checkpoint_config

_UTILISATION = 0.4
_ACTIVATION_BYTES = 34  # a position, width and layer in 16 bit
_CHECKPOINT_BYTES = 2  # the same where activations are computed again


_SENTENCE_TOKENS = 256
"""Longest unit of a sentence encoder where a recipe leaves that to its window."""


@dataclass(frozen=True)
class StagePlan:
    """What one stage would do.

    Args:
        name: of the stage.
        after: the stage or the checkpoint that it starts from, or None.
        trained: parameters that are trained.
        frozen: parameters that are not, decoder included.
        rows_per_step: rows of one optimizer step, over all processes.
        steps: optimizer steps; None where the data set's size is not known beforehand.
        tokens: encoder tokens in all; None likewise, or where rows are of no one length.
        memory: bytes on each device.
        seconds: of training in all; None likewise.
    """

    name: str
    after: str | None
    trained: int
    frozen: int
    rows_per_step: int
    steps: int | None
    tokens: int | None
    memory: float
    seconds: float | None


def plan_recipe(
    recipe: dict[str, Any], world_size: int = 1, rate: float | None = None
) -> list[StagePlan]:
    """Plans every stage of a recipe's compressor.

    Args:
        recipe: what `load_recipe` gave.
        world_size: devices that train together.
        rate: operations a second of one device; measured on this machine without it.

    Raises:
        ValueError: settings that do not go together.
        OSError: an encoder or decoder whose configuration cannot be had.
    """
    section = recipe["compressor"]
    if "decoder" in recipe:
        raise ValueError("this recipe makes its own decoder; `python -m lab train` runs it.")
    if "checkpoint" in section:
        section = {**section, "config": _config_of(section["checkpoint"])}
    rate = rate or matrix_rate()
    encoder, decoder = _configs(recipe)
    plans = []
    for settings in section["stages"]:
        after = previous_stage(section["stages"], settings["name"]) or section.get("checkpoint")
        adapt = adaptation(section, settings["name"])
        reads = AutoConfig.from_pretrained(adapt["decoder"]) if adapt else decoder
        plans.append(_plan_stage(section, settings, after, encoder, reads, world_size, rate))
    return plans


def matrix_rate(size: int = 1024, repeats: int = 5) -> float:
    """Operations a second of a square matrix product on this machine's best device."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    size = 8192 if device == "cuda" else size
    a = torch.randn(size, size, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        (a @ a)[0, 0].item()  # waits for the device
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def _configs(recipe: dict[str, Any]) -> tuple[PreTrainedConfig, PreTrainedConfig]:
    section = recipe["compressor"]
    if "checkpoint" in section:
        config = checkpoint_config(section["checkpoint"])
        return config.encoder_config, config.decoder_config
    decoder = AutoConfig.from_pretrained(section["decoder"])
    if section["encoder"] != SHARED_ENCODER:
        return AutoConfig.from_pretrained(section["encoder"]), decoder
    layers = section["config"].get("encoder_layers")
    return first_layers_config(decoder, layers or decoder.num_hidden_layers), decoder


def _config_of(checkpoint: str) -> dict[str, Any]:
    """What a checkpoint's configuration says beside its encoder's and decoder's."""
    found = checkpoint_config(checkpoint).to_diff_dict()
    return {k: v for k, v in found.items() if k not in ("encoder_config", "decoder_config")}


def _plan_stage(
    section: dict[str, Any],
    settings: dict[str, Any],
    after: str | None,
    encoder: PreTrainedConfig,
    decoder: PreTrainedConfig,
    world_size: int,
    rate: float,
) -> StagePlan:
    given = {**section["config"], **settings.get("config", {}), "bundle_decoder": False}
    if given.get("pooling") == "sentence":
        window = given.setdefault("segment_length", _SENTENCE_TOKENS)
        width = encoder.get_text_config().hidden_size
        given["sentence_encoder"] = pooled_plan(width, window)
    config = MemslotsConfig(encoder_config=encoder, decoder_config=decoder, **given)
    with torch.device("meta"):
        model = MemslotsModel(config)
        reader = AutoModelForCausalLM.from_config(decoder)
    choose_trained(model, trained_part(section, settings["name"]))
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    own = sum(p.numel() for p in model.parameters())
    if config.encoder_layers is not None:  # its base is the decoder's, counted there
        own = trained
    reads = sum(p.numel() for p in reader.parameters())

    arguments = training_arguments(section, settings, world_size)
    each = arguments.get("per_device_train_batch_size", 8)
    rows = each * world_size * arguments.get("gradient_accumulation_steps", 1)
    length = max((s.get("tokens") or config.segment_length for s in settings["data"]), default=0)
    known = [_rows_of(source) for source in settings["data"]]
    steps = arguments.get("max_steps")
    if steps is None and None not in known:
        epochs = arguments.get("num_train_epochs", 3)
        steps = -(-sum(known) // rows) * epochs  # type: ignore[arg-type]

    rates = arguments.get("training_rates") or config.compression_rates
    slots = slots_for(length, min(rates))
    # Decoder positions of a row: what its slots become, and a text of its length.
    read = slots + length
    bytes_each = 2 if torch.cuda.is_available() else 4
    kept = _CHECKPOINT_BYTES if arguments.get("gradient_checkpointing") else _ACTIVATION_BYTES
    activations = kept * each * (bytes_each / 2)
    activations *= (length + slots) * _size(encoder) + read * _size(decoder)
    # Weights of all; gradients and AdamW's two moments in 32 bit of what is trained.
    memory = (own + reads) * bytes_each + trained * (bytes_each + 8) + activations
    # Forward 2, backward through activations 2, gradients of weights 2 where they are trained.
    weights = sum(p.numel() for p in model.encoder.parameters())
    # An encoder under LoRA has no gradients of its weights, a frozen one no backward pass at all.
    learns = any(p.requires_grad for p in model.encoder.parameters())
    passes = 2 if not learns else 4 if config.encoder_lora is not None else 6
    operations = passes * weights * (length + slots) + 4 * reads * read
    seconds = None
    if "minutes" in settings:
        seconds, steps = 60 * settings["minutes"], None
    elif steps is not None:
        seconds = steps * rows * operations / (rate * world_size * _UTILISATION)
    return StagePlan(
        name=settings["name"],
        after=after,
        trained=trained,
        frozen=own - trained + reads,
        rows_per_step=rows,
        steps=steps,
        tokens=steps * rows * length if steps is not None and "tokens" in settings else None,
        memory=memory,
        seconds=seconds,
    )


def _rows_of(source: dict[str, Any]) -> int | None:
    if source.get("rows") is not None:
        return source["rows"]
    adapter = ADAPTERS.get(source["kind"])
    split = adapter.paper.get(source.get("split", "train")) if adapter is not None else None
    return split.count if split is not None else None


def _size(config: PreTrainedConfig) -> int:
    text = config.get_text_config()
    return text.num_hidden_layers * text.hidden_size
