"""Runs the papers' tasks on a checkpoint, on the sets that they are measured on, in one run."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from transformers import AutoModelForCausalLM, PreTrainedModel

from memslots.data import load_rows
from memslots.evaluation import needle, tasks
from memslots.evaluation.conditions import BASELINES, check_baselines
from memslots.evaluation.machine import describe_checkpoint, describe_machine
from memslots.modeling import MemslotsModel

TASKS: Mapping[str, tuple[str, ...]] = {
    "reconstruction": ("fineweb/train",),
    "completion": ("fineweb/train",),
    "qa": (
        "squad/paper_test",
        "hotpotqa/validation",
        "adversarialqa/validation",
        "natural_questions/validation",
    ),
    "icl": ("gsm8k/paper_test", "sst2/validation", "wsc/validation"),
    "roleplay": ("hpd/paper_test",),
    "needle": ("pg19/validation",),
}
"""Every task, and the sets that it is measured on unless told otherwise."""


def evaluate_tasks(
    model: MemslotsModel,
    names: Sequence[str],
    rates: Sequence[int] | None = None,
    baselines: Sequence[str] = BASELINES,
    data: Mapping[str, Sequence[str]] | None = None,
    data_dir: str | None = None,
    samples: int = 200,
    lengths: Sequence[int] | None = None,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
    finetuned_decoder: str | None = None,
) -> dict[str, Any]:
    """Measures a compressor.

    Args:
        model: the compressor with its decoder.
        names: of `TASKS`.
        rates: encoder tokens per slot, by default all of the checkpoint's.
        baselines: see `conditions`.
        data: sets of a task as "name/split", in place of `TASKS`'.
        data_dir: folder with local copies; the Hub without it. A set that cannot be had is
            replaced by its stand-in, where it has one, and the records and `notes` say so.
        samples: most rows of a set.
        lengths: decoder tokens of the inputs, for tasks that have several (the paper's without).
        seed: of every draw.
        progress: called with a line before each set.
        finetuned_decoder: folder or repository of the decoder fine-tuned on plain text, which role
            play is compared with (PCC, table 4); see `python -m lab finetune-decoder`.

    Returns:
        `records` (see `tasks`), what was measured, on what, and `notes` on the data read.

    Raises:
        ValueError: unknown tasks, baselines or rates; no decoder; data that cannot be read.
    """
    unknown = sorted(set(names) - set(TASKS))
    if unknown or not names:
        raise ValueError(f"tasks {unknown} are unknown; choose some of {', '.join(TASKS)}.")
    if not model.has_decoder:
        raise ValueError("measuring needs the decoder; load the model with load_decoder=True.")
    if finetuned_decoder is not None and "roleplay" not in names:
        raise ValueError(
            f"finetuned_decoder {finetuned_decoder!r} is for the task roleplay, which is not asked."
        )
    check_baselines(baselines)
    for rate in rates or ():
        model.processor.check_rate(rate)
    started = time.perf_counter()
    chosen = list(rates or model.config.compression_rates)
    options = _Options(chosen, tuple(baselines), data_dir, samples, lengths, seed)
    if finetuned_decoder is not None:
        tuned = AutoModelForCausalLM.from_pretrained(finetuned_decoder, dtype=model.dtype)
        options.finetuned = tuned.to(model.device)
    records: list[dict[str, Any]] = []
    notes: list[str] = []
    for name in names:
        for source in (data or {}).get(name, TASKS[name]):
            if progress is not None:
                progress(f"{name} on {source}")
            records += options.run(model, name, source, notes)
    return {
        "suite": "tasks",
        "records": records,
        "notes": notes,
        "rates": chosen,
        "baselines": list(baselines),
        "samples": samples,
        "seed": seed,
        "finetuned_decoder": finetuned_decoder,
        "checkpoint": describe_checkpoint(model),
        "machine": describe_machine(model),
        "seconds": round(time.perf_counter() - started, 1),
    }


class _Options:
    """What all tasks of a run share."""

    def __init__(self, rates, baselines, data_dir, samples, lengths, seed):
        self.rates = rates
        self.baselines = baselines
        self.data_dir = data_dir
        self.samples = samples
        self.lengths = lengths
        self.seed = seed
        self.finetuned: PreTrainedModel | None = None

    def run(self, model, name: str, source: str, notes: list[str]) -> list[dict[str, Any]]:
        """Records of one task on one set."""
        rows = self._rows(source, notes)
        lengths = {} if self.lengths is None else {"lengths": self.lengths}
        if name == "reconstruction":
            return tasks.reconstruction(model, rows, self.rates, data=source)
        if name == "completion":
            return tasks.completion(model, rows, self.rates, data=source, **lengths)
        if name == "qa":
            asked = [row for row in rows if row["context"]]
            return tasks.question_answering(model, asked, self.rates, self.baselines, data=source)
        if name == "icl":
            set_name = source.partition("/")[0]
            train = "paper_train" if source.endswith("paper_test") else "train"
            shown = self._rows(f"{set_name}/{train}", notes, limit=2000)
            return tasks.in_context_learning(
                model, rows, shown, self.rates, seed=self.seed, data=source, **lengths
            )
        if name == "roleplay":
            dialogues = [row for row in rows if row["context"]]
            return tasks.role_play(
                model, dialogues, self.rates, data=source, finetuned=self.finetuned, **lengths
            )
        asked = needle.needle_rows(
            model,
            [row["text"] for row in rows],
            self.lengths or (512, 1024, 2048, 4096),
            depths=(0.0, 0.25, 0.5, 0.75, 1.0),
            samples=max(1, self.samples // 60),
            seed=self.seed,
        )
        return needle.needle_in_a_haystack(
            model, asked, self.rates, _without_cuts(self.baselines), data=source
        )

    def _rows(self, source: str, notes: list[str], limit: int | None = None) -> list[Any]:
        name, slash, split = source.partition("/")
        if not slash:
            raise ValueError(f"data {source!r} must be name/split, for example squad/validation.")
        loaded = load_rows(
            name,
            split,
            data_dir=self.data_dir,
            limit=limit or self.samples,
            seed=self.seed,
            allow_stand_in=True,
        )
        rows = list(loaded)
        notes.append(loaded.report.summary())
        return rows


def _without_cuts(baselines: Sequence[str]) -> list[str]:
    """A cut finds a needle exactly when the needle stands in it, which is no measurement."""
    return [name for name in baselines if name not in ("head", "tail")]
