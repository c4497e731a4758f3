"""`memslots cram`: optimises what a frozen LM gives a text back from: vectors or weights."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import Progress
from rich.table import Table

from .options import (
    Device,
    Dtype,
    Force,
    Json,
    Texts,
    choose_device,
    err,
    new_file,
    out,
    print_json,
    quiet,
    read_text,
    resolve_model,
)

if TYPE_CHECKING:
    from memslots.cramming import CrammedText, FrozenDecoder, Reading


def cram(
    text: Texts,
    decoder: Annotated[
        str | None,
        typer.Option(
            metavar="LLM",
            help="Optimise for this causal LM: a folder or repository, or the decoder of a "
            "checkpoint. By default it is that of the default checkpoint (see memslots ask "
            "--help).",
        ),
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            metavar="mem|dense|lora|dense+lora",
            help="Optimise the vectors themselves (mem), vectors through a linear layer (dense), "
            "low-rank changes of weights (lora), or both.",
        ),
    ] = "mem",
    length: Annotated[
        int | None,
        typer.Option(
            min=1, help="Take this many tokens from each text. By default it is all of them."
        ),
    ] = None,
    vectors: Annotated[int, typer.Option(help="Give each text this many vectors.")] = 1,
    rank: Annotated[int, typer.Option(help="Give the LoRA this rank.")] = 1,
    targets: Annotated[
        str,
        typer.Option(metavar="qkv|qk|vo|qkvo", help="Put the LoRA on these projections."),
    ] = "qkv",
    search: Annotated[
        bool, typer.Option("--search", help="Find the longest length, up to --length.")
    ] = False,
    step: Annotated[
        int, typer.Option(min=1, help="Raise the length by this many tokens with --search.")
    ] = 8,
    threshold: Annotated[
        float, typer.Option(help="Ask for this mean accuracy with --search.")
    ] = 0.99,
    max_steps: Annotated[
        int, typer.Option(help="Stop after this many optimizer steps for each text.")
    ] = 5000,
    patience: Annotated[
        int, typer.Option(help="Stop after this many steps without a higher accuracy.")
    ] = 2000,
    learning_rate: Annotated[
        float, typer.Option(help="Optimise with AdamW at this learning rate.")
    ] = 0.01,
    lr_scheduler_type: Annotated[
        str,
        typer.Option(
            metavar="constant|linear|cosine",
            help="Keep the learning rate, or let it fall to 0 over --max-steps; then give "
            "--patience no less than --max-steps.",
        ),
    ] = "constant",
    seeds: Annotated[
        int, typer.Option(min=1, help="Start each text this many times, with seeds 0 to N-1.")
    ] = 1,
    side_by_side: Annotated[int, typer.Option(help="Optimise this many texts in one batch.")] = 16,
    from_token_2: Annotated[
        bool,
        typer.Option("--from-token-2", help="Never train token 1, as the published code does."),
    ] = False,
    bos: Annotated[bool, typer.Option("--bos", help="Put a BOS before the vectors.")] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="Save the result in this safetensors file."
        ),
    ] = None,
    force: Force = False,
    as_json: Json = False,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Optimise vectors for each text until a frozen decoder writes the text out."""
    if output is not None and search:
        raise ValueError(
            "--output saves the vectors of one length, and --search tries several lengths; "
            "give only one of the two."
        )
    if output is not None:
        new_file(output, force, text)
    contents = [read_text(name) for name in text]
    import torch

    from memslots.cramming import (
        CrammingSettings,
        load_frozen_decoder,
        read_back,
        search_longest,
        theoretical_capacity,
    )
    from memslots.cramming import cram as cram_texts

    settings = CrammingSettings(
        method=method,
        vectors=vectors,
        rank=rank,
        targets=targets,
        learning_rate=learning_rate,
        lr_scheduler_type=lr_scheduler_type,
        max_steps=max_steps,
        patience=patience,
        first_token=not from_token_2,
        start_token=bos,
        side_by_side=side_by_side,
    )
    if dtype not in (None, "float32", "bfloat16", "float16"):
        raise ValueError(f"--dtype {dtype} cannot be used; choose float32, bfloat16 or float16.")
    quiet()
    name = resolve_model(decoder, "--decoder")
    frozen = load_frozen_decoder(name, getattr(torch, dtype or "float32"), choose_device(device))
    texts = [_head(frozen, name, body, length) for name, body in zip(text, contents, strict=True)]
    rows = [ids for ids in texts for _ in range(seeds)]
    starts = list(range(seeds)) * len(texts)
    started = time.perf_counter()
    record: dict[str, Any] = {
        "decoder": decoder or frozen.name,
        "method": method,
        "theoretical_capacity": theoretical_capacity(
            frozen.width, frozen.vocabulary, vectors=vectors
        )
        if settings.uses_vectors
        else None,
    }
    with Progress(console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task("", total=max_steps)

        def progress(tokens: int):
            def show(at: int, left: int, accuracy: float) -> None:
                line = f"{tokens} tokens, {left} texts left, accuracy {accuracy:.3f}"
                bar.update(task, completed=at, description=line)

            return show

        if search:
            shortest = min(map(len, texts))
            lengths = [*range(step, shortest, step), shortest]
            longest, tried = search_longest(
                frozen, rows, lengths, settings, starts, threshold, progress
            )
            readings = tried.get(longest.length, [])
            record["longest_length"] = longest.length
            record["accuracies"] = {str(n): value for n, value in longest.accuracies.items()}
        else:
            crammed = cram_texts(frozen, rows, settings, starts, progress(max(map(len, rows))))
            readings = read_back(frozen, crammed)
    record["seconds"] = round(time.perf_counter() - started, 1)
    names = [name for name in text for _ in range(seeds)]
    record["texts"] = [
        {"text": name, "seed": seed, **reading.record()}
        for name, seed, reading in zip(names, starts, readings, strict=bool(readings))
    ]
    if not search:
        for entry, text_crammed in zip(record["texts"], crammed, strict=True):
            entry.update(_effort(text_crammed))
    if as_json:
        print_json(record)
    else:
        _show(record, readings, frozen)
    if output is None or search:
        return
    _save(output, crammed, frozen, record["decoder"])  # last: a full disk hides no result
    if not as_json:
        out.print(f"{output}: the vectors of {len(rows)} text{'s' * (len(rows) > 1)}")


def _head(decoder: FrozenDecoder, name: str, text: str, length: int | None) -> list[int]:
    ids = decoder.encode(text)
    if length is not None and len(ids) < length:
        raise ValueError(
            f"{name} has {len(ids)} tokens, fewer than --length {length}; give a longer text or a "
            "smaller length."
        )
    return ids[:length]


def _effort(crammed: CrammedText) -> dict[str, Any]:
    return {
        "steps": crammed.steps,
        "best_step": crammed.best_step,
        "stopped": crammed.stopped,
        "trained_parameters": crammed.trained_parameters,
        "kept_parameters": crammed.kept_parameters,
    }


def _save(file: Path, crammed: list[CrammedText], decoder: FrozenDecoder, name: str) -> None:
    from safetensors.torch import save_file

    from memslots.writing import whole_file

    tensors = {
        f"{row}.{key}": part for row, text in enumerate(crammed) for key, part in text.kept.items()
    }
    facts = [{"ids": text.ids, "seed": text.seed, "accuracy": text.accuracy} for text in crammed]
    settings = crammed[0].settings
    metadata = {
        "decoder": name,
        "method": settings.method,
        "rank": str(settings.rank),
        "alpha": str(settings.alpha),
        "targets": settings.targets,
        "first_token": str(settings.first_token),
        "start_token": str(settings.start_token),
        "texts": json.dumps(facts),
    }
    with whole_file(file) as draft:
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, draft, metadata)


def _show(record: dict[str, Any], readings: list[Reading], decoder: FrozenDecoder) -> None:
    if "accuracies" in record:
        tried = ", ".join(f"{n}: {value:.3f}" for n, value in record["accuracies"].items())
        out.print(
            f"longest length: {record['longest_length']} tokens (accuracy by length: {tried})"
        )
    table = Table(title=f"{record['method']} against {record['decoder']}")
    columns = ("text", "seed", "tokens", "accuracy", "from token 2", "free-running", "token gain")
    for column in (*columns, "gain in bits", "steps"):
        table.add_column(column, justify="left" if column == "text" else "right")
    for entry in record["texts"]:
        both, later = entry["all_tokens"], entry["from_token_2"]
        table.add_row(
            entry["text"],
            str(entry["seed"]),
            str(entry["length"]),
            f"{both['accuracy']:.3f}",
            f"{later['accuracy']:.3f}",
            f"{both['free_running']:.3f}",
            f"{both['token_gain']:g}",
            f"{both['information_gain']:.1f}",
            str(entry.get("steps", "")),
        )
    if record["texts"]:
        out.print(table)
    if record["theoretical_capacity"] is not None:
        gains = [entry["all_tokens"]["token_gain"] for entry in record["texts"]] or [0.0]
        share = sum(gains) / len(gains) / record["theoretical_capacity"]
        out.print(
            f"In theory {record['theoretical_capacity']:.0f} tokens fit at 16 bits a number; the "
            f"token gain is {share:.1%} of that."
        )
    if readings:
        out.print("Free-running, the first text:", style="dim")
        out.print(
            decoder.tokenizer.decode([i for i in readings[0].produced if i >= 0]), markup=False
        )
