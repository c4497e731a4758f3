"""The recipe of `memslots train own`: your LLM, your documents, this machine, so many minutes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

RATES = (2, 4, 8)

STAGES = (
    # name, share of the budget, tokens of a segment, rates
    ("begin", 0.1, 16, (2,)),
    ("grow", 0.2, 32, (2, 4)),
    ("read", 0.4, 64, RATES),
    ("questions", 0.3, None, RATES),
)
"""Finest rate and shortest segments first: with long segments from the start a compressor stands
still (docs/log.md)."""

LONGEST_SEGMENT = 128
"""Tokens that `STAGES` are said for; where memory is short, all are shorter alike."""

SHORTEST_BUDGET = 4.0
"""Minutes: below, a stage has less than half a minute, of which the first steps warm up."""


def own_recipe(
    decoder: str,
    texts: str | Path,
    questions: str | Path | None = None,
    minutes: float = 120.0,
    segment_length: int = LONGEST_SEGMENT,
    encoder_layers: int | None = None,
    chat: bool = False,
    on_gpu: bool = False,
    texts_kind: str = "text",
    positions: int | None = None,
    **decoder_kwargs: Any,
) -> dict[str, Any]:
    """A recipe that ends at the user's own decoder and nothing else.

    Args:
        decoder: repository or folder of a causal LM; it stays as it is, and its own first layers
            are the encoder.
        texts: file or folder of documents.
        questions: file of `context`, `question` and `answer`, trained beside the questions that are
            made from the texts.
        minutes: of training in all.
        segment_length: longest segment, in tokens; those that are trained grow up to half of it.
        encoder_layers: how many of the decoder's first layers encode; None takes all.
        chat: whether questions are asked by the decoder's chat template.
        on_gpu: larger batches, in bfloat16.
        positions: decoder positions of a batch, by default the most of `batch_sizes`.
        texts_kind: how they are read: "text", "jsonl" (`.json` too) or "parquet", see
            `memslots.data.raw_texts.format_of`.
        decoder_kwargs: for the decoder's `from_pretrained`: `subfolder`, `gguf_file`, ...

    Returns:
        A recipe as `load_recipe` gives them.

    Raises:
        ValueError: a budget too small for four stages.

    Examples:
        >>> recipe = own_recipe("HuggingFaceTB/SmolLM2-135M-Instruct", "notes.txt", minutes=60)
        >>> [(stage["name"], stage["minutes"]) for stage in recipe["compressor"]["stages"]]
        [('begin', 6.0), ('grow', 12.0), ('read', 24.0), ('questions', 18.0)]
    """
    if minutes < SHORTEST_BUDGET:
        raise ValueError(
            f"a budget of {minutes:g} minutes is too small: four stages need at least "
            f"{SHORTEST_BUDGET:g} minutes, and a useful compressor an hour of a GPU; give --budget "
            "2h, for example."
        )
    positions = positions or batch_sizes(on_gpu)[0][0]
    stages = []
    for name, share, tokens, rates in STAGES:
        if tokens is not None:
            tokens = max(2, tokens * segment_length // LONGEST_SEGMENT)
        stages.append(
            _stage(
                name,
                round(share * minutes, 2),
                tokens,
                rates,
                texts,
                texts_kind,
                questions,
                positions,
            )
        )
    config: dict[str, Any] = {
        "pooling": "groups",
        "converter_type": "residual",
        "compression_rates": list(RATES),
        "segment_length": segment_length,
        "prompt_format": "chat" if chat else "plain",
        "encoder_lora": {"r": 64, "alpha": 64, "dropout": 0.0},
    }
    if encoder_layers is not None:
        config["encoder_layers"] = encoder_layers
    return {
        "compressor": {
            "seed": 0,
            "encoder": "decoder",
            "decoder": decoder,
            "encoder_kwargs": {},
            "decoder_kwargs": decoder_kwargs,
            "config": config,
            "training": {
                "optim": "adamw_torch_fused",
                "adam_beta2": 0.98,
                "lr_scheduler_type": "constant_with_warmup",
                "learning_rate": 1e-3,
                "warmup_steps": 30,
                "weight_decay": 0.01,
                "max_grad_norm": 1.0,
                "bf16": on_gpu,
                "logging_steps": 10,
                "save_steps": 50,
                "report_to": "none",
            },
            "stages": stages,
        }
    }


def batch_sizes(on_gpu: bool) -> list[tuple[int, int]]:
    """Decoder positions and segment lengths to try, largest first, until one fits into memory.

    Larger batches than the first gain nothing: a CPU is no faster with them, and a GPU takes fewer
    steps in its time.

    Args:
        on_gpu: whether one trains.
    """
    most, least = (16_384, 1_024) if on_gpu else (1_024, 128)
    halved = [most >> n for n in range((most // least).bit_length())]
    return [(positions, LONGEST_SEGMENT) for positions in halved] + [
        (least // 2, LONGEST_SEGMENT // 2),
        (least // 4, LONGEST_SEGMENT // 4),
    ]


def _stage(
    name: str,
    minutes: float,
    tokens: int | None,
    rates: tuple[int, ...],
    texts: str | Path,
    texts_kind: str,
    questions: str | Path | None,
    positions: int,
) -> dict[str, Any]:
    training: dict[str, Any] = {"training_rates": list(rates)}
    if tokens is None:
        data = [{"kind": "cloze", "file": str(texts), "questions": 4, "characters": [200, 600]}]
        if questions is not None:
            data.append({"kind": "jsonl", "file": str(questions)})
        rows = max(1, positions // 512)
        training |= {"distillation_weight": 1.0, "reconstruction_share": 0.25}
    else:
        completes = name == "read"
        data = [{"kind": texts_kind, "file": str(texts), "tokens": tokens, "completion": completes}]
        rows = max(1, positions // (2 * tokens if not completes else 4 * tokens))
        training |= {"completion_weight": 0.5 if completes else 0.0}
        if completes:
            training |= {"completion_length": tokens, "distillation_weight": 0.5}
    training["per_device_train_batch_size"] = rows
    return {"name": name, "minutes": minutes, "data": data, "training": training}


def minutes_of(budget: str) -> float:
    """Minutes of a budget such as `90m`, `2h`, `1h30m` or a bare number of minutes.

    Raises:
        ValueError: anything else.

    Examples:
        >>> minutes_of("1h30m"), minutes_of("45")
        (90.0, 45.0)
    """
    written = re.sub(r"\s", "", budget.lower())
    hours, minutes = (
        rf"(?:(\d+(?:\.\d+)?){unit})?" for unit in ("h(?:ours?)?", "(?:m(?:in(?:ute)?s?)?)?")
    )
    match = re.fullmatch(hours + minutes, written)
    if match is None or not written:
        raise ValueError(f"--budget {budget!r} is not a length of time; give 2h, 90m or 1h30m.")
    return 60 * float(match[1] or 0) + float(match[2] or 0)
