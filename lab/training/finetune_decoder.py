"""The decoder fine-tuned on plain text: what table 4 of PCC compares role-play from memory with."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import PreTrainedModel
from trl import SFTConfig, SFTTrainer

from memslots.data.schema import QuestionRow
from memslots.evaluation.asking import Asking
from memslots.modeling.layout_memslots import IGNORE
from memslots.modeling.processing_memslots import MemslotsProcessor
from memslots.trainer.saving import last_checkpoint, save_whole

LORA = {"r": 64, "lora_alpha": 32, "lora_dropout": 0.1, "target_modules": "all-linear"}
"""PCC-Large's numbers for its encoder; the paper does not say how this decoder was tuned."""

TRAINING: dict[str, Any] = {  # table A4, HPD; the batch is of 8 rows, accumulated
    "learning_rate": 1e-5,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 100,
    "max_grad_norm": 0.5,
    "num_train_epochs": 3,
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 8,
    "gradient_checkpointing": True,
    "logging_steps": 20,
    "report_to": "none",
}


def finetune_decoder(
    decoder: PreTrainedModel,
    processor: MemslotsProcessor,
    rows: Sequence[QuestionRow],
    output: Path,
    lora: dict[str, Any] | None = LORA,
    context_tokens: int = 1500,
    **training: Any,
) -> Path:
    """Fine-tune a decoder to answer from contexts in plain text, and save it.

    Args:
        decoder: a causal LM that no compressor uses; it is changed in place.
        processor: writes prompts and answers as every measurement of the compressor does.
        rows: of the training split, with contexts.
        output: receives model and tokenizer; and `checkpoints`, from which a killed run goes on.
        lora: of peft's `LoraConfig`, merged when done; None trains all weights.
        context_tokens: most decoder tokens of a context, its last ones (1,500 in table 4).
        training: arguments of `SFTConfig` in place of `TRAINING`'s.

    Returns:
        `output`, which `AutoModelForCausalLM` loads.

    Raises:
        ValueError: no row has a context.
    """
    encoded = [_encode(row, processor, context_tokens) for row in rows if row["context"]]
    if not encoded:
        raise ValueError(f"none of the {len(rows)} rows has a context to answer from.")
    checkpoints = output / "checkpoints"
    fixed = {
        "output_dir": str(checkpoints),
        "max_length": None,
        "dataset_kwargs": {"skip_prepare_dataset": True},
        "save_total_limit": 1,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "bf16": torch.cuda.is_available(),
    }
    decoder.requires_grad_(True)
    trainer = SFTTrainer(
        model=decoder,
        args=SFTConfig(**{**TRAINING, **fixed, **training}),
        train_dataset=Dataset.from_list(encoded),
        processing_class=processor.tokenizer,
        peft_config=LoraConfig(**lora, task_type="CAUSAL_LM") if lora is not None else None,
    )
    trainer.train(resume_from_checkpoint=last_checkpoint(checkpoints))
    tuned = trainer.accelerator.unwrap_model(trainer.model)
    if lora is not None:
        tuned = tuned.merge_and_unload()

    def save(unfinished: Path) -> None:
        tuned.save_pretrained(unfinished)
        processor.tokenizer.save_pretrained(unfinished)

    if trainer.is_world_process_zero():
        save_whole(save, output, kept=last_checkpoint(checkpoints))
    return output


def _encode(row: QuestionRow, processor: MemslotsProcessor, context_tokens: int) -> dict[str, Any]:
    """One row's tokens, with labels on the answer."""
    kept = processor.decoder_text.encode(row["context"])[-context_tokens:]
    context = processor.decode(kept, skip_special_tokens=False)
    asking = Asking.of(processor)
    (prompt,) = asking.prompts(processor, [row["question"]], [context])
    before = [*prompt.before, *prompt.after]
    answer = asking.answer_ids(processor, row["answer"]) + processor.eos_ids
    return {"input_ids": [*before, *answer], "labels": [IGNORE] * len(before) + answer}
