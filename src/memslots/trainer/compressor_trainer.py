"""CompressorTrainer: TRL's SFTTrainer for a compressor before a frozen decoder."""

import inspect
import logging
import os
import random
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from transformers.trainer_utils import HubStrategy
from trl import SFTTrainer

from memslots.modeling.layout_memslots import (
    IGNORE,
    RECONSTRUCTION,
    TASKS,
    Row,
    max_positions,
)
from memslots.modeling.modeling_memslots import MemslotsModel
from memslots.trainer.collator import CompressorBatch, CompressorCollator, check_columns, check_rows
from memslots.trainer.compressor_config import CompressorConfig
from memslots.trainer.contrast_groups import ContrastGroups
from memslots.trainer.decoder_checkpointing import decoder_checkpointing
from memslots.trainer.distillation import Teacher, teach
from memslots.trainer.length_groups import GROUPED, LengthGroupedRows, row_lengths
from memslots.trainer.losses import TaskLosses, TrainingOutput
from memslots.trainer.saving import last_checkpoint, whole_or_removed
from memslots.trainer.sharded import with_tasks
from memslots.trainer.slot_cache import cached_slots
from memslots.trainer.step_metrics import StepMetrics

logger = logging.getLogger(__name__)

_NOT_TAKEN = {
    "compute_metrics": "evaluation computes losses alone; measure answers with "
    "memslots.evaluation.suite.evaluate_tasks",
    "preprocess_logits_for_metrics": "evaluation computes losses alone",
    "compute_loss_func": "the loss is that of completion_weight, answer_weight and "
    "distillation_weight; another one overrides compute_loss in a class of yours",
    "formatting_func": "rows have text, or context, question and answer; bring yours into that "
    "form with dataset.map(...)",
    "data_collator": "the trainer makes its own of model.processor",
    "processing_class": "the trainer takes model.processor",
}
"""Arguments of `SFTTrainer` that have no effect on a compressor, and what to do instead."""


class CompressorTrainer(SFTTrainer):
    """Trains encoder, memory tokens, markers and converter; the decoder stays bit-identical.

    Pre-training on `{"text"}` rows is PCC's: reconstruction and completion from one encoder pass,
    each averaged over its own target tokens, weighted by lambda (eqs. 3 to 5). Fine-tuning on
    `{"context", "question", "answer"}` rows (question and answer may be lists of equal length) adds
    the answers' loss. A dataset may hold rows of both kinds. What is logged beside the loss is said
    in `StepMetrics`.

    Args:
        model: the compressor, with its decoder and processor.
        args: see `CompressorConfig`.
        train_dataset: rows as above.
        eval_dataset: likewise, or several by name, as the Trainer takes them.
        card_writer: called with the model and a checkpoint's folder, to write its README.md.
        kwargs: as for `SFTTrainer`, but `peft_config`, `compute_metrics` and others that have no
            effect on a compressor.

    Raises:
        ValueError: a model without decoder or processor, a dataset without the columns, an empty
            dataset, rates that the model does not have, a `peft_config`, or an argument that would
            have no effect.

    Examples:
        >>> from datasets import Dataset
        >>> texts = Dataset.from_list([{"text": "Ann is here. Bob is there. Eve is late."}] * 4)
        >>> args = CompressorConfig(
        ...     str(folder), max_steps=1, report_to="none", save_strategy="no", use_cpu=True
        ... )
        >>> trainer = CompressorTrainer(model, args, texts)
        >>> outcome = trainer.train()  # doctest: +ELLIPSIS
        {'train_runtime': ...}
        >>> outcome.global_step
        1
    """

    _tag_names = ["memslots"]  # noqa: RUF012, the name and form are TRL's
    _name = "Compressor"

    def __init__(
        self,
        model: MemslotsModel,
        args: CompressorConfig,
        train_dataset: Dataset | IterableDataset,
        eval_dataset: Dataset | IterableDataset | dict[str, Dataset] | None = None,
        card_writer: Callable[[MemslotsModel, Path], None] | None = None,
        **kwargs: Any,
    ):
        if not isinstance(args, CompressorConfig):
            raise TypeError(f"args must be a CompressorConfig, got {type(args).__name__}.")
        if not model.has_decoder:
            raise ValueError(model.needs_decoder)
        if kwargs.get("peft_config") is not None:
            raise ValueError(
                "peft_config would train LoRA layers in the frozen decoder and leave the "
                "compressor as it is; give the compressor encoder_lora or decoder_lora, fields of "
                "MemslotsConfig, when it is made."
            )
        for name, instead in _NOT_TAKEN.items():
            if kwargs.get(name) is not None:
                raise ValueError(f"{name} has no effect on a compressor: {instead}.")
        processor = model.processor
        if isinstance(train_dataset, dict):
            raise ValueError(
                f"train_dataset is a dict of the datasets {sorted(train_dataset)}; give one of "
                "them, such as dataset['train']."
            )
        evaluated = eval_dataset if isinstance(eval_dataset, dict) else {"": eval_dataset}
        named = {f"evaluation {key}".strip(): value for key, value in evaluated.items()}
        for name, dataset in {"training": train_dataset, **named}.items():
            if dataset is None:
                continue
            first = next(iter(dataset), None)
            if first is None:
                raise ValueError(f"the {name} dataset is empty.")
            check_columns(list(first), name)
            if isinstance(dataset, Dataset):
                check_rows(dataset, name)
        if args.distillation_weight and os.environ.get("ACCELERATE_USE_FSDP", "") == "true":
            raise ValueError(
                "distillation_weight reads each text a second time, which does not work with "
                "FSDP; train with DDP, or set it to 0."
            )
        if args.pack_questions and processor.prompt_format != "plain":
            raise ValueError(
                "pack_questions=True needs prompt_format='plain': "
                "in a chat each question has its own row."
            )
        self.rates = args.training_rates or list(model.config.compression_rates)
        for rate in self.rates:
            processor.check_rate(rate)
        if args.reconstruction_rates is None:
            self.reconstruction_rates = self.rates
        else:
            self.reconstruction_rates = args.reconstruction_rates
        if not set(self.reconstruction_rates) <= set(self.rates):
            raise ValueError(
                f"reconstruction_rates {self.reconstruction_rates} holds rates that are not "
                f"trained; those that are trained are {sorted(set(self.rates))}."
            )
        collator = CompressorCollator(processor, args)
        limit = max_positions(model.decoder.config)
        for name, dataset in {"training": train_dataset, **named}.items():
            if isinstance(dataset, Dataset) and limit is not None:
                collator.check_lengths(dataset, name, min(self.rates), limit)
        self.card_writer = card_writer
        self.step_metrics = StepMetrics(self.rates)
        super().__init__(
            model=model,
            args=args,
            data_collator=collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            # The decoder's tokenizer: SFTTrainer takes any processor for a vision model's.
            processing_class=processor.tokenizer,
            **kwargs,
        )
        # SFTTrainer patches the model's forward with one that projects a single model's states.
        self.model.__dict__.pop("forward", None)
        # compute_loss divides by the whole step's target counts already (the way that both
        # transformers 5.16 and its successor, `loss_is_scaled_for_ga`, understand).
        self.model_accepts_loss_kwargs = True

    @property
    def task_weights(self) -> tuple[float, float, float]:
        """Weights of reconstruction, completion and answers (PCC, eq. 5)."""
        completion = self.args.completion_weight
        return (1 - completion, completion, self.args.answer_weight)

    def rate_of_step(self, step: int) -> int:
        """The rate that optimizer step `step` trains: the same after resuming, on every process and
        in every accumulated batch.

        Examples:
            >>> trainer.rate_of_step(3) in trainer.rates
            True
        """
        return random.Random(f"rate-{self.args.seed}-{step}").choice(self.rates)

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any):
        """As `Trainer.train`; True resumes from the newest checkpoint that is whole.

        Raises:
            ValueError: True, and there is no such checkpoint.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_checkpoint(Path(self.args.output_dir))
            if resume_from_checkpoint is None:
                raise ValueError(
                    f"{self.args.output_dir} holds no complete checkpoint to resume from; name "
                    "one, or train without resume_from_checkpoint."
                )
        self.step_metrics.reset()
        checkpointing: AbstractContextManager[None] = nullcontext()
        if self.args.gradient_checkpointing:
            checkpointing = decoder_checkpointing(self.model.decoder, self.model.reading)
        cache = self.args.slot_cache
        kept = cached_slots(self.model, self.args.cached_slots, Path(cache) if cache else None)
        with checkpointing, kept:
            return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As `Trainer.evaluate`; its time is left out of `tokens_per_second`.

        Examples:
            >>> metrics = trainer.evaluate(trainer.train_dataset)
            >>> metrics["eval_loss"] > 0
            True
        """
        with self.step_metrics.paused():
            return super().evaluate(*args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As `SFTTrainer.log`, with the values of `StepMetrics`.

        Examples:
            >>> trainer.log({"loss": 1.5})
            >>> trainer.state.log_history[-1]["loss"]
            1.5
        """
        mode = "train" if self.model.training else "eval"
        values = self.step_metrics.flush(mode, self.state.global_step, self._over_processes)
        for name, value in values.items():
            self._metrics[mode][name] = [value]
        super().log(logs, start_time)

    def _over_processes(self, tensor: torch.Tensor) -> torch.Tensor:
        if self.args.world_size == 1:
            return tensor
        return self.accelerator.reduce(tensor.to(self.args.device), reduction="sum").cpu()

    def _save_checkpoint(self, model, trial) -> None:
        """As `Trainer._save_checkpoint`, whole or not at all."""
        folder = Path(self._get_output_dir(trial=trial))
        kept = last_checkpoint(folder)
        unfinished = folder / f"checkpoint-{self.state.global_step}"
        with self.step_metrics.paused(), whole_or_removed(unfinished, kept):
            super()._save_checkpoint(model, trial)

    def gathered_weights(self) -> dict[str, torch.Tensor] | None:
        """Weights to save a model by that is spread over processes; None if none is.

        To be called by all processes; the main one gets them.

        Examples:
            >>> trainer.gathered_weights() is None
            True
        """
        if not self.is_fsdp_enabled:
            return None
        return self.accelerator.get_state_dict(self.model)

    def _get_train_sampler(self, train_dataset: Dataset | None = None):
        dataset = self.train_dataset if train_dataset is None else train_dataset
        strategy = self.args.train_sampling_strategy
        if self.args.contrast_rows > 1 and isinstance(dataset, Dataset):
            return ContrastGroups(
                len(dataset),
                self.args.contrast_rows,
                self.args.seed,
                lambda: int(self.state.epoch or 0),
            )
        if strategy not in GROUPED or not isinstance(dataset, Dataset):
            return super()._get_train_sampler(train_dataset)
        lengths = self._lengths(dataset)
        if strategy != "group_by_length":
            return super()._get_train_sampler(lengths)
        return LengthGroupedRows(
            lengths[self.args.length_column_name],
            self.args.train_batch_size
            * self.args.gradient_accumulation_steps
            * self.args.world_size,
            self.args.seed,
            lambda: int(self.state.epoch or 0),
        )

    def _get_eval_sampler(self, eval_dataset: Dataset):
        grouped = self.args.train_sampling_strategy in GROUPED and isinstance(eval_dataset, Dataset)
        return super()._get_eval_sampler(self._lengths(eval_dataset) if grouped else eval_dataset)

    def _lengths(self, dataset: Dataset) -> Dataset:
        """A dataset of nothing but every row's length, which is all that samplers read."""
        column = self.args.length_column_name
        processor, segments = self.data_collator.processor, self.args.training_segments
        return Dataset.from_dict({column: row_lengths(dataset, processor, segments, column)})

    def _set_signature_columns_if_needed(self) -> None:
        # SFTTrainer would keep only input_ids and labels, and train without any context.
        self._signature_columns = ["text", "compress_until", "context", "question", "answer"]

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device):
        """`(3,)` target tokens of each task in the whole step over all processes."""
        if not batch_samples:
            return None
        batches: list[CompressorBatch] = [sample["batch"] for sample in batch_samples]
        totals = torch.stack([batch.target_counts() for batch in batches]).sum(dim=0).to(device)
        if self.args.world_size > 1:
            totals = self.accelerator.gather(totals.unsqueeze(0)).sum(dim=0)
        return totals

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The weighted sum of the tasks' mean losses, at the step's rate.

        Examples:
            >>> inputs = trainer.data_collator([{"text": "Ann is here."}])
            >>> trainer.compute_loss(trainer.model, inputs).shape
            torch.Size([])
        """
        batch: CompressorBatch = inputs["batch"]
        training = self.model.training
        if training:
            self.step_metrics.begin(self.state.global_step)
        rate = self.rate_of_step(self.state.global_step) if training else min(self.rates)
        if rate not in self.reconstruction_rates:
            others = batch.without(RECONSTRUCTION)
            batch = others if others.rows else batch  # a batch of nothing else must learn something
        slots = batch.slots(rate)
        rows, weights = self._same_tasks(batch)
        device = inputs["segment_input_ids"].device
        processor = self.data_collator.processor
        laid_out = processor.lay_out(rows, slots)
        outputs: TrainingOutput = model(
            segment_input_ids=inputs["segment_input_ids"],
            segment_attention_mask=inputs["segment_attention_mask"],
            segment_rates=torch.full((len(slots),), rate, device=device),
            **{name: tensor.to(device) for name, tensor in laid_out.items()},
            criterion=TaskLosses(
                weights,
                num_items_in_batch,
                self._teacher(batch, device),
                self.args.distillation_weight,
            ),
        )
        loss = outputs.loss
        if loss is None:
            raise RuntimeError("the model returned no loss for a batch with labels.")
        if training and not bool(torch.isfinite(loss)):
            self._stop_at(inputs, outputs, rate)
        self._record_losses(outputs, batch, num_items_in_batch, rate)
        if training:
            self.step_metrics.add_work(
                slots_read=sum(slots[segment] for row in batch.rows for segment in row.segments),
                encoder_tokens=sum(batch.tokens),
                decoder_positions=int(laid_out["attention_mask"].sum()),
            )
        if num_items_in_batch is not None and training and self.args.world_size > 1:
            # Data parallelism averages gradients over processes, and each divided by all targets.
            loss = loss * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    @torch.no_grad()
    def _teacher(self, batch: CompressorBatch, device: torch.device) -> Teacher | None:
        """What the decoder predicts for the batch's targets from the texts themselves."""
        if not batch.teacher_rows:
            return None
        rows = sorted(batch.teacher_rows, key=lambda row: row.task)  # as forward goes through them
        inputs = self.data_collator.processor.lay_out(rows, [])
        mask, labels = inputs["attention_mask"].to(device), inputs["labels"].to(device)
        if not bool((labels != IGNORE).any()):
            return None
        start = int((labels != IGNORE).any(dim=0).nonzero()[0]) - 1
        decoder = self.model.decoder
        accepted = inspect.signature(decoder.forward).parameters
        options: dict[str, Any] = {}
        if "position_ids" in accepted:
            options["position_ids"] = (mask.cumsum(dim=1) - 1).clamp(min=0)
        if "logits_to_keep" in accepted:
            options["logits_to_keep"] = labels.shape[1] - start
        logits = decoder(
            input_ids=inputs["input_ids"].to(device),
            attention_mask=mask,
            use_cache=False,
            **options,
        ).logits
        targets = labels[:, start + 1 :]
        taught = logits[:, -(labels.shape[1] - start) : -1][targets != IGNORE]
        return teach(taught, self.args.distillation_top_k, self.args.distillation_temperature)

    def _same_tasks(self, batch: CompressorBatch) -> tuple[list[Row], tuple[float, ...]]:
        """The batch's rows and the tasks' weights; under FSDP also rows of others' tasks."""
        if not self.is_fsdp_enabled:
            return batch.rows, self.task_weights
        counts = self._over_processes(batch.target_counts())
        token = self.processing_class.eos_token_id or 0
        rows, made_up = with_tasks(batch.rows, [count > 0 for count in counts.tolist()], token)
        weighted = zip(self.task_weights, made_up, strict=True)
        return rows, tuple(0.0 if missing else weight for weight, missing in weighted)

    def _stop_at(self, inputs, outputs: TrainingOutput, rate: int) -> None:
        """Stops before a loss that is not a number reaches the weights."""
        tokenizer = self.data_collator.processor.encoder_tokenizer
        losses = dict(zip(TASKS, outputs.task_losses.tolist(), strict=True))  # type: ignore[union-attr]
        texts = [tokenizer.decode(ids[:12]) for ids in inputs["segment_input_ids"][:4]]
        raise FloatingPointError(
            f"the loss is not finite at step {self.state.global_step} (rate {rate}, {losses}); the "
            f"batch's first segments begin {texts}. Nothing of this step was learned and earlier "
            f"checkpoints in {self.args.output_dir} are whole: lower learning_rate or "
            "max_grad_norm, or train in bfloat16 or float32 instead of float16, and start again."
        )

    def _record_losses(
        self, outputs: TrainingOutput, batch: CompressorBatch, totals, rate: int
    ) -> None:
        counts, means = outputs.task_counts, outputs.task_losses
        if counts is None or means is None:
            raise RuntimeError("the model returned no task losses for a batch with labels.")
        if self.model.training and outputs.distillation_loss is not None:
            taught = counts if totals is None else totals.cpu()
            n_taught = int(taught[RECONSTRUCTION + 1 :].sum())
            self.step_metrics.add_distillation(
                float(outputs.distillation_loss) * n_taught, int(counts[RECONSTRUCTION + 1 :].sum())
            )
        divisor = counts if totals is None else totals.to(means.device)
        targets = batch.target_counts().to(means.device)  # without rows of other processes' tasks
        sums = means * divisor.clamp(min=1) * (targets > 0)
        mode = "train" if self.model.training else "eval"
        self.step_metrics.add_losses(mode, rate, sums, targets)

    def _issue_warnings_after_load(self, load_result) -> None:
        """Only for weights that a checkpoint of this model should hold."""
        load_result.missing_keys[:] = [k for k in load_result.missing_keys if self.model._holds(k)]
        super()._issue_warnings_after_load(load_result)

    def create_model_card(self, *args, **kwargs) -> None:
        """Write the card with `card_writer`, if one was given.

        Examples:
            >>> trainer.create_model_card()  # writes nothing: this one has no card_writer
        """
        if self.card_writer is not None and self.is_world_process_zero():
            self.card_writer(self.model, Path(self.args.output_dir))

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs,
    ):
        """Save the model and push it as `model.push_to_hub` does: all of it, in one commit.

        The Trainer's own would upload the output folder, pickled training arguments included.

        Args:
            commit_message: the message of the commit.
            blocking: must be True.
            token: `hub_token` by default.
            revision: `hub_revision` by default.
            private: whether a new repository is private; by default `hub_private_repo`.
            kwargs: arguments of the card; the compressor's card needs none.

        Examples:
            >>> trainer.push_to_hub()  # doctest: +SKIP
        """
        if not blocking:
            raise ValueError(
                "a compressor is pushed in one call that waits for the upload: give blocking=True."
            )
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        self.create_model_card()
        return self._publish(commit_message, token, revision, private)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """A push that fails costs neither the checkpoint, which is whole by now, nor the run."""
        if self.is_world_process_zero() and self.args.hub_strategy != HubStrategy.END:
            try:
                self._publish(f"Training in progress, step {self.state.global_step}")
            except (OSError, ValueError) as error:
                logger.warning(
                    "%s is not pushed, and training goes on: %s", checkpoint_folder, error
                )

    def _publish(
        self,
        message: str | None,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
    ):
        return self.model.push_to_hub(
            self.hub_model_id,
            commit_message=message,
            token=token or self.args.hub_token,
            revision=revision or self.args.hub_revision,
            private=self.args.hub_private_repo if private is None else private,
        )
