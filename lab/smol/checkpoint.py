"""Puts trained slots into a compressor that users load.

    python -m lab.smol.checkpoint RUN OUTPUT
    python -m lab.smol.checkpoint RUN src/memslots/assets/smol --package
    python -m lab.smol.checkpoint src/memslots/assets/smol OUTPUT --hub

The second writes what `memslots.embedded("smol")` lays out: the decoder by its name on the Hub, one
tokenizer, and the slots in the files that training begins from (`lab.smol.train --start`). The
third writes what `memslots push --license apache-2.0` publishes (SmolLM2's licence).
`training.json`, which the card reads, and `NOTICE` are kept by hand.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file

from lab.smol.train import load_slots, save_slots
from memslots import MemslotsModel
from memslots.making import new_compressor
from memslots.smollm2 import HUB_ID, smollm2

FILES = (
    "config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)
"""Of a checkpoint, beside its weights and its code."""

RECORDS = ("curve.jsonl", "training.json", "NOTICE")
"""What is told of a training, copied along where it is there."""

ASKED = "\n\nQuestion: {question}\nAnswer:"
"""As `lab.smol.tasks` asks."""


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
            "plain_prompt": ASKED,
            "answer_end": "\n",
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


def name_by_hub(model: MemslotsModel) -> None:
    """Names the decoder by its repository on the Hub, in place of a folder of this machine."""
    model.config.decoder_name_or_path = model.config.encoder_name_or_path = HUB_ID
    for part in (model.config.decoder_config, model.config.encoder_config):
        part._name_or_path = HUB_ID


def copy_records(run: Path, folder: Path) -> None:
    """Copies what is told of a training beside the weights that came of it."""
    for name in RECORDS:
        if (run / name).is_file() and run.resolve() != folder.resolve():
            shutil.copyfile(run / name, folder / name)


def package(model: MemslotsModel, run: Path, folder: Path) -> None:
    """Writes the checkpoint as the package carries it, with what is told of the run.

    Args:
        model: in the precision that it is carried in.
        run: that its weights come from.
        folder: of the package; what it has of an earlier checkpoint is replaced.
    """
    _, step, seen = load_slots(run)
    name_by_hub(model)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as draft:
        model.save_pretrained(draft)
        weights = load_file(Path(draft, "model.safetensors"))
        for name in FILES:
            shutil.copyfile(Path(draft, name), folder / name)
    save_slots(weights, folder, step, seen)
    parts = sorted(folder.glob("slots-*.safetensors"))
    for part in parts:
        part.chmod(0o644)  # a wheel keeps it
    index = {
        "metadata": {"total_size": sum(weight.nbytes for weight in weights.values())},
        "weight_map": {name: part.name for part in parts for name in load_file(part)},
    }
    text = json.dumps(index, indent=2, sort_keys=True) + "\n"
    (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")
    copy_records(run, folder)


def main(given: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="Folder that lab.smol.train wrote.")
    parser.add_argument("output", type=Path, help="Folder of the checkpoint to write.")
    parser.add_argument("--segment-length", type=int, default=64)
    parser.add_argument("--package", action="store_true", help="As the package carries it.")
    parser.add_argument("--hub", action="store_true", help="As it is published.")
    options = parser.parse_args(given)
    weights, step, seen = load_slots(options.run)
    model = compressor(weights, segment_length=options.segment_length)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    if options.package:
        package(model, options.run, options.output)
    else:
        if options.hub:
            name_by_hub(model)
        model.save_pretrained(options.output)
        copy_records(options.run, options.output)
    print(f"{options.output}: step {step}, {seen / 1e6:.2f} M tokens")


if __name__ == "__main__":
    main()
