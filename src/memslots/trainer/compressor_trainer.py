"""CompressorTrainer: TRL's SFTTrainer for a compressor before a frozen decoder."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from trl import SFTTrainer

from memslots.modeling.layout_memslots import RECONSTRUCTION, TASKS
from memslots.modeling.modeling_memslots import MemslotsModel, MemslotsOutput
from memslots.trainer.collator import CompressorBatch, CompressorCollator, check_columns
from memslots.trainer.compressor_config import CompressorConfig


class CompressorTrainer(SFTTrainer):
    """Trains encoder, memory tokens, markers and converter; the decoder stays bit-identical.

    Pre-training on `{"text"}` rows is PCC's: reconstruction and completion from one encoder pass,
    each averaged over its own target tokens, weighted by lambda (eqs. 3 to 5). Fine-tuning on
    `{"context", "question", "answer"}` rows (question and answer may be lists of equal length) adds
    the answers' loss. A dataset may hold rows of both kinds.

    Args:
        model: the compressor, with its decoder and processor.
        args: see `CompressorConfig`.
        train_dataset: rows as above.
        eval_dataset: likewise.
        card_writer: called with the model and a checkpoint's folder, to write its README.md.
        kwargs: as for `SFTTrainer`.

    Raises:
        ValueError: a model without decoder or processor, a dataset without the columns, an empty
            dataset, or rates that the model does not have.
    """

    _tag_names = ["memslots"]  # noqa: RUF012, the name and form are TRL's
    _name = "Compressor"

    def __init__(
        self,
        model: MemslotsModel,
        args: CompressorConfig,
        train_dataset: Dataset | IterableDataset,
        eval_dataset: Dataset | IterableDataset | None = None,
        card_writer: Callable[[MemslotsModel, Path], None] | None = None,
        **kwargs: Any,
    ):
        if not isinstance(args, CompressorConfig):
            raise TypeError(f"args must be a CompressorConfig, got {type(args).__name__}.")
        model._need_decoder()
        processor = model._need_processor()
        for name, dataset in (("training", train_dataset), ("evaluation", eval_dataset)):
            if dataset is None:
                continue
            first = next(iter(dataset), None)
            if first is None:
                raise ValueError(f"the {name} dataset is empty.")
            check_columns(list(first), name)
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
        self.card_writer = card_writer
        super().__init__(
            model=model,
            args=args,
            data_collator=CompressorCollator(processor, args),
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
        """
        return random.Random(f"rate-{self.args.seed}-{step}").choice(self.rates)

    def _set_signature_columns_if_needed(self) -> None:
        # SFTTrainer would keep only input_ids and labels, and train without any context.
        self._signature_columns = ["text", "context", "question", "answer"]

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device):
        """`(3,)` target tokens of each task in the whole optimizer step, over all processes."""
        if not batch_samples:
            return None
        totals = torch.stack([sample["batch"].target_counts() for sample in batch_samples])
        totals = totals.sum(dim=0).to(device)
        if self.args.world_size > 1:
            totals = self.accelerator.gather(totals.unsqueeze(0)).sum(dim=0)
        return totals

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The weighted sum of the tasks' mean losses, at the step's rate."""
        batch: CompressorBatch = inputs["batch"]
        training = self.model.training
        rate = self.rate_of_step(self.state.global_step) if training else min(self.rates)
        if rate not in self.reconstruction_rates:
            others = batch.without(RECONSTRUCTION)
            batch = others if others.rows else batch  # a batch of nothing else must learn something
        slots = batch.slots(rate)
        device = inputs["segment_input_ids"].device
        processor = self.data_collator.processor
        laid_out = processor.lay_out(batch.rows, slots)
        outputs: MemslotsOutput = model(
            segment_input_ids=inputs["segment_input_ids"],
            segment_attention_mask=inputs["segment_attention_mask"],
            segment_rates=torch.full((len(slots),), rate, device=device),
            **{name: tensor.to(device) for name, tensor in laid_out.items()},
            task_weights=self.task_weights,
            task_totals=num_items_in_batch,
        )
        loss = outputs.loss
        if loss is None:
            raise RuntimeError("the model returned no loss for a batch with labels.")
        if training and not bool(torch.isfinite(loss)):
            self._stop_at(inputs, outputs, rate)
        self._record(outputs, num_items_in_batch, rate, "train" if training else "eval")
        if num_items_in_batch is not None and training and self.args.world_size > 1:
            # Data parallelism averages gradients over processes, and each divided by all targets.
            loss = loss * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    def _stop_at(self, inputs, outputs: MemslotsOutput, rate: int) -> None:
        """Stops before a loss that is no number reaches the weights."""
        tokenizer = self.data_collator.processor.encoder_tokenizer
        losses = dict(zip(TASKS, outputs.task_losses.tolist(), strict=True))  # type: ignore[union-attr]
        texts = [tokenizer.decode(ids[:12]) for ids in inputs["segment_input_ids"][:4]]
        raise FloatingPointError(
            f"the loss is not finite at step {self.state.global_step} (rate {rate}, {losses}); the "
            f"batch's first segments begin {texts}. Nothing of this step was learned and earlier "
            f"checkpoints in {self.args.output_dir} are whole: lower learning_rate or "
            "max_grad_norm, or train in bfloat16 or float32 instead of float16, and start again."
        )

    def _record(self, outputs: MemslotsOutput, totals, rate: int, mode: str) -> None:
        counts, means = outputs.task_counts, outputs.task_losses
        if counts is None or means is None:
            return
        if totals is not None:  # per token of this batch, whatever the step's totals
            means = means * totals.to(means.device) / counts.clamp(min=1)
        for task, mean, count in zip(TASKS, means.tolist(), counts.tolist(), strict=True):
            if count:
                self._metrics[mode][f"{task}_loss"].append(mean)
                if len(self.rates) > 1:
                    self._metrics[mode][f"{task}_loss_rate_{rate}"].append(mean)

    def _issue_warnings_after_load(self, load_result) -> None:
        """Only for weights that a checkpoint of this model should hold."""
        load_result.missing_keys[:] = [k for k in load_result.missing_keys if self.model._holds(k)]
        super()._issue_warnings_after_load(load_result)

    def create_model_card(self, *args, **kwargs) -> None:
        """Write the card with `card_writer`, where one was given."""
        if self.card_writer is not None and self.is_world_process_zero():
            self.card_writer(self.model, Path(self.args.output_dir))
