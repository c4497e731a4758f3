"""What the processes of `test_distributed` run: three steps on one checkpoint."""

import json
import sys
from pathlib import Path

import torch
from datasets import Dataset, IterableDataset

from memslots import MemslotsModel
from memslots.trainer.compressor_config import CompressorConfig
from memslots.trainer.compressor_trainer import CompressorTrainer


class Recording(CompressorTrainer):
    """Keeps the texts that this process compressed."""

    seen: list

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        rows = inputs["segment_input_ids"], inputs["segment_attention_mask"]
        self.seen += [ids[mask > 0].tolist() for ids, mask in zip(*rows, strict=True)]
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)


def main(start: str, rows_file: str, batch: str, output: str) -> None:
    """Trains `start` on the rows, stored and streamed; writes losses, weights and what was seen."""
    torch.set_num_threads(1)
    rows = json.loads(Path(rows_file).read_text())
    train(start, Dataset.from_list(rows), batch, Path(output) / "stored")
    streamed = IterableDataset.from_generator(lambda: iter(rows))
    train(start, streamed, batch, Path(output) / "streamed")


def train(start: str, dataset: Dataset | IterableDataset, batch: str, folder: Path) -> None:
    trainer = Recording(
        MemslotsModel.from_pretrained(start),
        CompressorConfig(
            str(folder),
            max_steps=3,
            per_device_train_batch_size=int(batch),
            learning_rate=1e-3,
            lr_scheduler_type="constant",
            report_to="none",
            save_strategy="no",
            logging_steps=1,
            disable_tqdm=True,
            use_cpu=True,
            dataloader_pin_memory=False,
            completion_length=12,
            training_rates=[4],
        ),
        dataset,
    )
    trainer.seen = []
    trainer.train()
    folder.mkdir(parents=True, exist_ok=True)
    rank = trainer.args.process_index
    (folder / f"seen-{rank}.json").write_text(json.dumps(trainer.seen))
    if trainer.is_world_process_zero():
        names = ("loss", "reconstruction_loss", "completion_loss", "answer_loss", "slots_read")
        logged = [entry for entry in trainer.state.log_history if "loss" in entry]
        losses = [float(entry[name]) for entry in logged for name in names if name in entry]
        (folder / "losses.json").write_text(json.dumps(losses))
        model = trainer.accelerator.unwrap_model(trainer.model)
        own = {k: v for k, v in model.state_dict().items() if not k.startswith("decoder.")}
        torch.save(own, folder / "weights.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
