"""Goes on training the embedded checkpoint with numbers beside its slots, as literals.

    python benchmarks/literals_training.py runs/verified/with_literals

An untrained decoder input of slots and literals disturbs a compressor that only ever saw slots;
this shows what some minutes of training with `literals` in the configuration mend. What is there
already is not trained again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from memslots import MemslotsModel
from memslots.cli.options import resolve_model
from memslots.trainer import CompressorConfig, CompressorTrainer
from memslots.trainer.stage_data import Sources, stage_dataset

STEPS = 300
SOURCE = {"kind": "personas", "rows": 4800, "people": 1, "questions": 8, "seed": 2}
TRAINING = {
    "per_device_train_batch_size": 16,
    "learning_rate": 0.0005,
    "adam_beta2": 0.98,
    "weight_decay": 0.01,
    "lr_scheduler_type": "warmup_stable_decay",
    "lr_scheduler_kwargs": {"num_decay_steps": 200, "min_lr_ratio": 0.02},
    "warmup_steps": 30,
    "logging_steps": 25,
    "save_steps": 100,
    "save_total_limit": 1,
    "report_to": "none",
    "pack_questions": True,
    "reconstruction_share": 0.25,
    "reconstruction_rates": [4],
    "seed": 0,
}


def train_with_literals(folder: Path, steps: int = STEPS, model: str | None = None) -> Path:
    """A checkpoint in `folder` that keeps numbers as literals and has learned to read them so.

    Args:
        folder: of the checkpoint; a run that was stopped goes on.
        steps: of training.
        model: what to start from, the embedded checkpoint by default.
    """
    if (folder / "model.safetensors").is_file():
        return folder
    compressor = MemslotsModel.from_pretrained(resolve_model(model))
    compressor.config.literals = compressor.processor.literals = ["numbers"]
    rows = stage_dataset([SOURCE], Sources(TRAINING["seed"]), compressor.processor)
    state = folder.with_name(f"{folder.name}.training")
    args = CompressorConfig(str(state), max_steps=steps, use_cpu=True, **TRAINING)
    trainer = CompressorTrainer(compressor, args, train_dataset=rows)
    trainer.train(resume_from_checkpoint=any(state.glob("checkpoint-*")))
    compressor.eval().save_pretrained(folder)
    return folder


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("folder", type=Path)
    arguments.add_argument("--steps", type=int, default=STEPS)
    given = arguments.parse_args()
    train_with_literals(given.folder, given.steps)
