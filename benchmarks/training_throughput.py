"""Training throughput against the way of the published code.

    python benchmarks/training_throughput.py
    python benchmarks/training_throughput.py --device cuda

Both learn reconstruction and completion of the same texts: ours from one encoder pass, the
published way in a batch for each task. Counted are forward, backward and one update of AdamW, and
the target tokens of both tasks.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import published_way
import torch
from datasets import Dataset
from measuring import DTYPES, Results, measure, options_of, peak_bytes, write_results
from shapes import build, context, described

from memslots import MemslotsModel
from memslots.modeling.layout_memslots import COMPLETION, RECONSTRUCTION
from memslots.trainer import CompressorConfig, CompressorTrainer

WANTED = 2.0
"""Least times more target tokens a second, both tasks together."""

TASKS = {"reconstruction": RECONSTRUCTION, "completion": COMPLETION}


class Steps:
    """One batch, and a training step on it by either way.

    Args:
        model: with its decoder.
        texts: in the batch, each of one segment and as many tokens to complete.
        rate: encoder tokens a slot.
        folder: that the trainer may write to.
    """

    def __init__(self, model: MemslotsModel, texts: int, rate: int, folder: str):
        length = model.config.segment_length
        rows = [{"text": context(2 * length, seed)} for seed in range(texts)]
        arguments = CompressorConfig(
            output_dir=folder,
            training_rates=[rate],
            completion_length=length,
            per_device_train_batch_size=texts,
            report_to=[],
            use_cpu=model.device.type == "cpu",
        )
        self.model, self.rate = model.train(), rate
        self.trainer = CompressorTrainer(
            model=model, args=arguments, train_dataset=Dataset.from_list(rows)
        )
        inputs = self.trainer.data_collator(rows)
        self.inputs = {
            name: value.to(model.device) if isinstance(value, torch.Tensor) else value
            for name, value in inputs.items()
        }
        self.targets = inputs["batch"].target_counts()
        self.items = self.trainer._get_num_items_in_batch([inputs], model.device)
        self.language_model = published_way.with_head(model)
        trained = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-6)

    def ours(self) -> None:
        """Both tasks from one encoder pass, as `CompressorTrainer` has them."""
        loss = self.trainer.compute_loss(self.model, self.inputs, num_items_in_batch=self.items)
        loss.backward()
        self.update()

    def published(self, *tasks: int) -> None:
        """A batch for each task, and one update."""
        for task in tasks:
            loss = published_way.task_loss(
                self.language_model, self.model, self.inputs, task, self.rate
            )
            loss.backward()
        self.update()

    def update(self) -> None:
        """An update of the weights, by the same optimizer for both ways."""
        self.optimizer.step()
        self.optimizer.zero_grad()


def measure_training(model: MemslotsModel, texts: int, rate: int, repeats: int) -> Results:
    """Target tokens a second, both ways, and the most memory that a step takes."""
    device = model.device.type
    with tempfile.TemporaryDirectory() as folder:
        steps = Steps(model, texts, rate, folder)
        runs = {
            "memslots": steps.ours,
            "published": lambda: steps.published(*TASKS.values()),
            **{
                f"published, {name}": lambda task=task: steps.published(task)
                for name, task in TASKS.items()
            },
        }
        seconds = measure(runs, repeats, device)
        peaks = {name: peak_bytes(runs[name], device) for name in ("memslots", "published")}
    targets = {name: int(steps.targets[task]) for name, task in TASKS.items()}
    both = sum(targets.values())
    return {
        "texts": texts,
        "rate": rate,
        "targets": targets,
        "seconds": {name: one["total"] for name, one in seconds.items()},
        "tokens_a_second": {
            name: both / seconds[name]["total"] for name in ("memslots", "published")
        },
        "ratio": seconds["published"]["total"] / seconds["memslots"]["total"],
        "peak_bytes": peaks,
    }


def most_possible(sizes: Results, rate: int) -> float:
    """Times fewer operations than the published way, the heads left aside: a bound on `ratio`.

    A trained weight costs 6 operations a position, a frozen one 4 (forward, and the gradient of
    what goes into it). Both ways run the decoder once over the rows of each task; the published way
    runs the encoder for each task too.

    Args:
        sizes: of `shapes.described`.
        rate: encoder tokens a slot.
    """
    length = sizes["segment_length"]
    slots = -(-length // rate)
    encoder = 6 * sizes["encoder"]["parameters"] * (length + slots)
    decoder = 4 * sizes["decoder"]["parameters"] * len(TASKS) * (length + slots)
    return (len(TASKS) * encoder + decoder) / (encoder + decoder)


def bars(results: Results) -> list[Results]:
    """Tokens a second of both tasks against the published way."""
    return [
        {
            "bar": f"training tokens/s, both tasks, rate {row['rate']}",
            "wanted": WANTED,
            "found": row["ratio"],
            "why": "Training: both ways run the same frozen decoder, so with these shapes at most "
            f"{most_possible(results['shapes'], row['rate']):.2f} times fewer operations "
            "are possible.",
        }
        for row in results["rows"]
    ]


def shown(results: Results, pictures: Path) -> Results:
    """What `training_throughput.md.jinja` shows beside the results."""
    return {"most_possible": most_possible(results["shapes"], results["rows"][0]["rate"])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=int, default=4, help="in a batch")
    parser.add_argument("--rates", type=int, nargs="+", default=[4, 16])
    options = options_of(parser)
    model = build(options.preset, options.device, DTYPES[options.device])
    results: Results = {
        "rows": [measure_training(model, options.texts, r, options.repeats) for r in options.rates],
        "shapes": described(options.preset),
    }
    print(write_results("training_throughput", results, options))


if __name__ == "__main__":
    main()
