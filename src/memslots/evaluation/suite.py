"""Runs the papers' tasks on a checkpoint, on the sets that they are measured on, in one run."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from memslots.data import named_source, source_rows
from memslots.evaluation import example_tasks, needle, tasks
from memslots.evaluation.asking import Asking
from memslots.evaluation.asking_choice import asking_of
from memslots.evaluation.conditions import BASELINES, check_baselines
from memslots.evaluation.machine import describe_checkpoint, describe_machine
from memslots.evaluation.sample_log import SampleLog
from memslots.evaluation.shares import prompt_warnings
from memslots.modeling import MemslotsModel
from memslots.modeling.decoders_memslots import weights_sample

TASKS: Mapping[str, tuple[str, ...]] = {
    "reconstruction": ("fineweb/train",),
    "completion": ("fineweb/train",),
    "qa": (
        "squad/paper_test",
        "hotpotqa/validation",
        "adversarialqa/validation",
        "natural_questions/validation",
    ),
    "cloze": ("pg19/validation",),
    "icl": ("gsm8k/paper_test", "sst2/validation", "wsc/validation"),
    "roleplay": ("hpd/paper_test",),
    "needle": ("pg19/validation",),
}
"""Every task, and the sets that it is measured on unless told otherwise."""

_READS = {"completion": "text", "needle": "text", "qa": "context", "roleplay": "context"}
"""The column that a task cannot do without; the others take any rows."""


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
    examples: int | None = 0,
    prompt: str | None = None,
    partial: str | Path | None = None,
) -> dict[str, Any]:
    """Measures a compressor.

    Args:
        model: the compressor with its decoder.
        names: names of `TASKS`.
        rates: encoder tokens per slot, by default all of the checkpoint's.
        baselines: see `conditions`.
        data: sets of a task as "name/split", in place of `TASKS`', or paths of files whose rows
            have `context`, `question` and `answer` (or `text`).
        data_dir: folder with local copies; the Hub without it. A set that cannot be had is
            replaced by its stand-in, if it has one, and the records and `notes` say so.
        samples: most rows of a set.
        lengths: decoder tokens of the inputs, for tasks that have several (the paper's without).
        seed: the seed of every draw.
        progress: called with a line before each set and after each batch of samples, with the
            time that the set still takes.
        finetuned_decoder: folder or repository of the decoder fine-tuned on plain text, which role
            play is compared with (PCC, table 4); see `python -m lab finetune-decoder`.
        examples: worked examples before each question of `qa` and `cloze`, for text and memory
            alike; None takes three if the decoder reads better with them (`choose_asking`).
        prompt: "plain" or "chat" words for these, by default the checkpoint's own.
        partial: JSON lines of every sample's scores, written as they come; a broken run of the same
            settings resumes from it.

    Returns:
        `records` (see `tasks`), what was measured, on what, and `notes` on the data read and on
        prompts that the full text scores badly with.

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
            f"finetuned_decoder {finetuned_decoder!r} is for the task roleplay, which is not "
            "among the tasks."
        )
    check_baselines(baselines)
    for rate in rates or ():
        model.processor.check_rate(rate)
    for name in names:
        for source in (data or {}).get(name, ()):
            if named_source(source)[2] is not None and name == "icl":
                raise ValueError(
                    f"icl shows examples of a set's train split, which the file {source} lacks; "
                    "name a set, such as gsm8k/test."
                )
    started = time.perf_counter()
    chosen = list(rates or model.config.compression_rates)
    options = _Options(chosen, tuple(baselines), data_dir, samples, lengths, seed)
    if finetuned_decoder is not None:
        tuned = AutoModelForCausalLM.from_pretrained(finetuned_decoder, dtype=model.dtype)
        options.finetuned = tuned.to(model.device)
    records: list[dict[str, Any]] = []
    notes: list[str] = []
    if {"qa", "cloze"} & set(names):
        options.asking, said = asking_of(model, examples, prompt, seed)
        notes.append(said)
    described = describe_checkpoint(model)
    settings = {
        "checkpoint": model.fingerprint,
        "decoder": described["decoder"],
        "decoder_weights": weights_sample(model.decoder),
        "converter": _converter_hash(model),
        "finetuned_decoder": finetuned_decoder,
        "rates": chosen,
        "baselines": list(baselines),
        "samples": samples,
        "seed": seed,
        "lengths": list(lengths or ()),
        "asking": str(options.asking),
        "literals": str(model.processor.literals),
    }
    each = 8 if model.device.type == "cpu" else 64
    options.log = SampleLog(partial, settings, progress, each)
    for name in names:
        for source in (data or {}).get(name, TASKS[name]):
            if progress is not None:
                progress(f"{name} on {source}")
            measured = options.run(model, name, source, notes)
            for line in prompt_warnings(measured):
                notes.append(line)
                if progress is not None:
                    progress(f"warning: {line}")
            records += measured
    return {
        "suite": "tasks",
        "records": records,
        "notes": notes,
        "rates": chosen,
        "baselines": list(baselines),
        "samples": samples,
        "seed": seed,
        "finetuned_decoder": finetuned_decoder,
        "checkpoint": described,
        "machine": describe_machine(model),
        "seconds": round(time.perf_counter() - started, 1),
    }


def _converter_hash(model: MemslotsModel) -> str:
    """Of what turns slots into what the decoder reads, which the fingerprint leaves out."""
    digest = sha256()
    for name, weight in model.state_dict().items():
        if not name.startswith(("encoder.", "decoder.")):
            values = weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            digest.update(name.encode() + values.numpy().tobytes())
    return digest.hexdigest()[:16]


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
        self.asking: Asking | None = None
        self.log = SampleLog()

    def run(self, model, name: str, source: str, notes: list[str]) -> list[dict[str, Any]]:
        """Records of one task on one set."""
        rows = self._rows(source, notes)
        column = _READS.get(name)
        if column is not None and not any(dict(row).get(column) for row in rows):
            raise ValueError(
                f"{name} on {source}: its rows have {', '.join(dict(rows[0]))}, and none a "
                f"{column} to read; choose another --data for {name}, or another task."
            )
        self.log.rows = sha256(json.dumps(rows).encode()).hexdigest()[:16]
        if name in ("icl", "roleplay", "needle"):

            def whole(places: list[int]) -> list[dict[str, Any]]:
                return [{"sample": 0, "records": self._whole(model, name, source, rows, notes)}]

            return self.log.collect((name, source, "whole"), 1, whole)[0]["records"]
        if name == "reconstruction":
            return tasks.reconstruction(
                model, rows, self.rates, data=source, samples=self.samples, log=self.log
            )
        if name == "completion":
            lengths = {} if self.lengths is None else {"lengths": self.lengths}
            return tasks.completion(
                model,
                rows,
                self.rates,
                data=source,
                baselines=self.baselines,
                samples=self.samples,
                log=self.log,
                **lengths,
            )
        if name == "cloze":
            return tasks.cloze(
                model,
                rows,
                self.rates,
                self.baselines,
                data=source,
                asking=self.asking,
                samples=self.samples,
                seed=self.seed,
                log=self.log,
            )
        asked = [row for row in rows if row["context"]]
        return tasks.question_answering(
            model,
            asked,
            self.rates,
            self.baselines,
            data=source,
            asking=self.asking,
            log=self.log,
        )

    def _whole(
        self, model, name: str, source: str, rows: list[Any], notes: list[str]
    ) -> list[dict[str, Any]]:
        """Records of the tasks whose samples are not kept one by one."""
        lengths = {} if self.lengths is None else {"lengths": self.lengths}
        if name == "icl":
            set_name = source.partition("/")[0]
            train = "paper_train" if source.endswith("paper_test") else "train"
            shown = self._rows(f"{set_name}/{train}", notes, limit=2000)
            beside = [name for name in self.baselines if name != "none"]  # always measured
            return example_tasks.in_context_learning(
                model,
                rows,
                shown,
                self.rates,
                baselines=beside,
                seed=self.seed,
                data=source,
                **lengths,
            )
        if name == "roleplay":
            dialogues = [row for row in rows if row["context"]]
            return example_tasks.role_play(
                model,
                dialogues,
                self.rates,
                data=source,
                finetuned=self.finetuned,
                baselines=self.baselines,
                **lengths,
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
        loaded = source_rows(
            source,
            data_dir=self.data_dir,
            limit=limit or self.samples,
            seed=self.seed,
            allow_stand_in=True,
        )
        rows = list(loaded)
        notes.append(loaded.report.summary())
        return rows


def _without_cuts(baselines: Sequence[str]) -> list[str]:
    """A cut finds a needle exactly when the needle stands in it, which is not a measurement."""
    return [name for name in baselines if name not in ("head", "tail")]
