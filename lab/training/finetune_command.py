"""`python -m lab finetune-decoder`: role play's baseline, a decoder tuned on plain text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from memslots.cli.options import DataFolder, Device, Dtype, Revision, err, load_model, out
from memslots.extras import install_extra


def finetune(
    checkpoint: Annotated[str, typer.Argument(help="Folder or repository of the compressor.")],
    output: Annotated[Path, typer.Argument(help="Folder of the fine-tuned decoder. Resumes.")],
    data: Annotated[
        str, typer.Option(metavar="SET/SPLIT", help="Rows to train on.")
    ] = "hpd/paper_train",
    data_dir: DataFolder = None,
    whole: Annotated[bool, typer.Option("--whole", help="Train all weights, no LoRA.")] = False,
    steps: Annotated[int | None, typer.Option(min=1, help="In place of 3 epochs.")] = None,
    revision: Revision = None,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Fine-tune a copy of a checkpoint's decoder on plain text, for `eval --finetuned-decoder`."""
    try:
        from lab.training.finetune_decoder import LORA, finetune_decoder
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("memslots"):
            raise
        raise ValueError(
            f"training needs {error.name}, which is not installed: {install_extra('train')}."
        ) from error
    from memslots.data import source_rows

    loaded = source_rows(data, data_dir=data_dir, allow_stand_in=True)
    rows: list[Any] = [row for row in loaded if "question" in row]
    err.print(loaded.report.summary(), style="dim")
    model = load_model(checkpoint, revision, device, dtype)
    if not model.has_decoder:
        raise ValueError(f"{checkpoint} has no decoder to fine-tune.")
    decoder, processor = model.decoder, model.processor
    del model.decoder  # nothing else uses it
    given = {"use_cpu": decoder.device.type == "cpu"}
    if steps is not None:
        given["max_steps"] = steps
    finetune_decoder(decoder, processor, rows, output, None if whole else LORA, **given)
    out.print(f"{output}: the decoder, fine-tuned on rows of {data}")
