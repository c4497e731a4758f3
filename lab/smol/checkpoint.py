"""Puts trained slots into a compressor that users load.

python -m lab.smol.checkpoint RUN OUTPUT
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from lab.smol.train import load_slots
from memslots import MemslotsModel
from memslots.making import new_compressor
from memslots.smollm2 import smollm2


def compressor(
    weights: dict[str, torch.Tensor],
    decoder: str | None = None,
    segment_length: int = 64,
    **config,
) -> MemslotsModel:
    """A compressor with these weights.

    Args:
        weights: of `Slots.trained`, or a checkpoint's "slots".
        decoder: folder of the decoder that they were trained for; SmolLM2 without.
        segment_length: longest segment, in tokens.
        config: further fields of `MemslotsConfig`.

    Raises:
        ValueError: weights that a compressor lacks, or the other way round.
    """
    adapters = {name: w for name, w in weights.items() if name.endswith("lora_A.default.weight")}
    layers = {name.split(".")[2] for name in adapters}
    rank = len(next(iter(adapters.values())))
    places, hidden, _ = weights["group_pool.up"].shape
    model = new_compressor(
        "decoder",
        decoder or smollm2(),
        encoder_layers=len(layers),
        encoder_lora={"r": rank, "alpha": rank, "dropout": 0.0},
        pooling="groups",
        pool_hidden_size=hidden,
        converter_type="residual",
        converter_hidden_size=len(weights["converter.up.weight"]),
        **{
            "compression_rates": [rate for rate in (2, 4, 8) if rate <= places],
            "segment_length": segment_length,
            **config,
        },
    )
    outcome = model.load_state_dict(weights, strict=False)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    if outcome.unexpected_keys or trained - set(weights):
        raise ValueError(
            f"weights without a place: {outcome.unexpected_keys[:3]}; places without weights: "
            f"{sorted(trained - set(weights))[:3]}."
        )
    return model


def main(given: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="Folder that lab.smol.train wrote.")
    parser.add_argument("output", type=Path, help="Folder of the checkpoint to write.")
    parser.add_argument("--segment-length", type=int, default=64)
    options = parser.parse_args(given)
    weights, step, seen = load_slots(options.run)
    model = compressor(weights, segment_length=options.segment_length)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    model.save_pretrained(options.output)
    print(f"{options.output}: step {step}, {seen / 1e6:.2f} M tokens")


if __name__ == "__main__":
    main()
