"""Arguments of `CompressorTrainer`."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import torch
from trl import SFTConfig

from memslots.modeling import MemslotsConfig
from memslots.modeling.texts_memslots import check_detectors


@dataclass
class CompressorConfig(SFTConfig):
    """Configuration of `CompressorTrainer`: TRL's `SFTConfig` and what compressing adds.

    Defaults that differ from `SFTConfig`:
        - `bf16`: on only where an accelerator does it; a CPU is far slower with it.
        - `gradient_checkpointing`: off.
        - `remove_unused_columns`: off, since the context is a column of its own.
        - `prediction_loss_only`: on.
        - `accelerator_config`: every process reads a streamed dataset for itself.

    Args:
        completion_weight: lambda of PCC, eq. 5. 0 trains reconstruction only (the paper's warm-up
            stage and its ablation "w/o text completion"), 1 completion only.
        answer_weight: weight of the mean loss over answer tokens.
        distillation_weight: weight of distillation from the full text: the mean divergence, over
            target tokens of completion and answers, of what the decoder predicts from the memory
            from what it predicts from the text itself (arXiv 2503.10337, 2506.06266). 0 leaves
            that second reading out.
        distillation_temperature: softens both distributions.
        distillation_top_k: likeliest tokens of the text's distribution that are kept apart; all
            others count as one.
        reconstruction_share: share of question-answering contexts that are reconstructed too, so
            that `<AE>` is not forgotten.
        reconstruction_rates: rates at which reconstruction is trained, by default all that are
            trained: the coarsest may be left to the questions, where no slot can hold every word.
        training_rates: rates to train, by default all of the model's; where there are several, each
            step draws one as a function of `seed` and the step's number.
        training_literals: kinds of verbatim tokens kept beside the slots while training, by
            default those of the model's configuration.
        literals_share: share of contexts that have them; below 1 the compressor learns to be read
            with them and without.
        training_segments: most segments of a `text` row that are compressed.
        completion_length: most decoder tokens of the text that follows them to be completed.
        questions_per_context: most questions of a row that are trained on at a time.
        pack_questions: all of a context's questions follow one another in one decoder row, each
            answer a target, instead of a row each; cheaper where contexts have many questions.
            Plain prompts only.
        contrast_rows: so many successive rows of the dataset always share a batch; they ask for the
            same fact and have other values, so that only their context tells the answers apart.
        cached_slots: most slots of a frozen sentence encoder that are kept, so that it reads each
            sentence once; 0 keeps none.
        slot_cache: file that they are kept in beyond this run.
        shortcut_check_steps: optimizer steps between two checks that the decoder reads its slots
            (see `ShortcutCheck`), which `run_recipe` makes on held-out rows of a stage's source.
        shortcut_check_rows: held-out rows of a check.
    """

    completion_weight: float = field(
        default=0.5, metadata={"help": "Lambda of PCC, eq. 5: weight of completion."}
    )
    answer_weight: float = field(default=1.0, metadata={"help": "Weight of the answers' loss."})
    distillation_weight: float = field(
        default=0.0, metadata={"help": "Weight of distillation from the full text."}
    )
    distillation_temperature: float = field(
        default=1.0, metadata={"help": "Softens the distributions that are distilled."}
    )
    distillation_top_k: int = field(
        default=64, metadata={"help": "Tokens of the teacher's distribution that are kept."}
    )
    reconstruction_share: float = field(
        default=0.1, metadata={"help": "Share of QA contexts that are reconstructed too."}
    )
    reconstruction_rates: list[int] | None = field(
        default=None, metadata={"help": "Rates at which reconstruction is trained, by default all."}
    )
    training_rates: list[int] | None = field(
        default=None, metadata={"help": "Compression rates to train, by default all."}
    )
    training_literals: list[str] | None = field(
        default=None, metadata={"help": "Literals beside the slots, by default the model's own."}
    )
    literals_share: float = field(
        default=1.0,
        metadata={"help": "Share of contexts that have verbatim tokens beside their slots."},
    )
    training_segments: int = field(
        default=1, metadata={"help": "Most segments of a text row that are compressed."}
    )
    completion_length: int = field(
        default=256, metadata={"help": "Most tokens to complete after a text row's segments."}
    )
    questions_per_context: int | None = field(
        default=None, metadata={"help": "Most questions of a row that are trained on at a time."}
    )
    bf16: bool | None = field(default=None, metadata={"help": "See SFTConfig."})
    accelerator_config: dict | str | None = field(
        default=None, metadata={"help": "See TrainingArguments; streams are not dispatched."}
    )
    dataset_kwargs: dict[str, Any] | None = field(default=None, metadata={"help": "See SFTConfig."})
    pack_questions: bool = field(
        default=False, metadata={"help": "Train a context's questions in one decoder row."}
    )
    contrast_rows: int = field(
        default=1, metadata={"help": "Successive rows that always share a batch."}
    )
    cached_slots: int = field(
        default=50_000, metadata={"help": "Slots of a frozen sentence encoder that are kept."}
    )
    slot_cache: str | None = field(
        default=None, metadata={"help": "File that keeps them beyond this run."}
    )
    shortcut_check_steps: int | None = field(
        default=None, metadata={"help": "Steps between checks that the slots are read."}
    )
    shortcut_check_rows: int = field(default=48, metadata={"help": "Held-out rows of a check."})
    gradient_checkpointing: bool = field(default=False, metadata={"help": "See TrainingArguments."})
    remove_unused_columns: bool | None = field(
        default=False, metadata={"help": "Must stay off: the context is a column of its own."}
    )
    prediction_loss_only: bool = field(default=True, metadata={"help": "See TrainingArguments."})

    def __post_init__(self):
        for name, low, high in (
            ("completion_weight", 0, 1),
            ("reconstruction_share", 0, 1),
            ("literals_share", 0, 1),
            ("answer_weight", 0, float("inf")),
            ("distillation_weight", 0, float("inf")),
        ):
            if not low <= getattr(self, name) <= high:
                raise ValueError(
                    f"{name} must be between {low} and {high}, got {getattr(self, name)}."
                )
        for name in (
            "training_segments",
            "completion_length",
            "questions_per_context",
            "contrast_rows",
            "shortcut_check_steps",
            "shortcut_check_rows",
            "distillation_top_k",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")
        if not 0 < self.distillation_temperature < float("inf"):
            raise ValueError(
                "distillation_temperature must be above 0 and finite, got "
                f"{self.distillation_temperature}."
            )
        check_detectors(self.training_literals, names_only=True)
        if self.cached_slots < 0:
            raise ValueError(f"cached_slots must be 0 or more, got {self.cached_slots}.")
        if self.per_device_train_batch_size % self.contrast_rows:
            raise ValueError(
                f"contrast_rows={self.contrast_rows} rows must fit a batch a whole number of "
                f"times, but per_device_train_batch_size is {self.per_device_train_batch_size}."
            )
        if self.remove_unused_columns:
            raise ValueError(
                "remove_unused_columns=True would drop the context before training sees it; "
                "leave it False."
            )
        if self.label_smoothing_factor:
            raise ValueError(
                f"label_smoothing_factor={self.label_smoothing_factor} has no effect on a "
                "compressor's losses; leave it 0."
            )
        if self.bf16 is None:
            self.bf16 = (
                not self.fp16 and torch.cuda.is_available() and torch.cuda.is_bf16_supported()
            )
        if self.accelerator_config is None:
            # Each process reads the stream and keeps its own share: segments and rows of a batch
            # are not tensors that one process could hand to the others.
            self.accelerator_config = {"dispatch_batches": False}
        # Newer transformers call it so, and warn of the old name, which TRL still sets.
        if getattr(self, "activation_checkpointing", True) is None:
            self.activation_checkpointing = self.gradient_checkpointing
        self.dataset_kwargs = {**(self.dataset_kwargs or {}), "skip_prepare_dataset": True}
        super().__post_init__()


def recipe_fields() -> dict[str, list[str]]:
    """What a recipe may set in each place beside what it has there: see `apply_overrides`."""
    training = [field.name for field in dataclasses.fields(CompressorConfig) if field.init]
    config = [name for name in MemslotsConfig.__annotations__ if not name.endswith("_config")]
    return {
        "compressor": ["checkpoint"],
        "compressor.training": training,
        "compressor.stages.*.training": training,
        "compressor.config": config,
    }
