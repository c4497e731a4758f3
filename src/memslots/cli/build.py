"""Commands that make and judge checkpoints: info, init, train, eval."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from .options import (
    DTYPES,
    Device,
    Dtype,
    Literals,
    Revision,
    Sets,
    literal_names,
    load_config,
    load_model,
    out,
    quiet,
    resolve_model,
)


def info(
    model: Annotated[
        str | None, typer.Argument(help="Folder or repository; the embedded one by default.")
    ] = None,
    revision: Revision = None,
) -> None:
    """Show what a checkpoint is: models, rates, sizes and results."""
    from .inspection import describe

    quiet()
    name = resolve_model(model)
    facts, results = describe(name, load_config(name, revision), revision)
    table = Table(show_header=False, title=name, title_justify="left")
    for key, value in facts.items():
        table.add_row(key, Text(value))
    out.print(table)
    if results is not None:
        from memslots.evaluation.report import rich_report

        out.print(rich_report(results))


def init(
    encoder: Annotated[str, typer.Argument(help="Folder or repository of the encoder.")],
    decoder: Annotated[str, typer.Argument(help="Folder or repository of the decoder.")],
    output: Annotated[Path, typer.Argument(help="Folder to write; must be new or empty.")],
    sets: Sets = None,
    dtype: Dtype = None,
) -> None:
    """Make a new, untrained compressor from two pretrained models."""
    from .inspection import settable_fields

    if output.is_file() or (output.is_dir() and any(output.iterdir())):
        raise ValueError(f"{output} is not an empty folder; name a new one.")
    settings = settable_fields(sets or [])
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"--dtype {dtype} is not known; choose one of {', '.join(DTYPES)}.")
    import torch

    from memslots.making import new_compressor

    quiet()
    kind = dtype if dtype in (None, "auto") else getattr(torch, dtype)
    made = new_compressor(encoder, decoder, dtype=kind, **settings)
    made.save_pretrained(output)
    out.print(f"{output}: new compressor, rates {made.config.compression_rates}; it is untrained.")


def train(
    recipe: Annotated[str, typer.Argument(help="A packaged recipe's name, or a YAML file.")],
    stage: Annotated[str | None, typer.Option(help="Run this stage only.")] = None,
    sets: Sets = None,
    books: Annotated[
        str | None, typer.Option(help="JSONL file or folder of books; PG-19 from the Hub without.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder of the run; runs/RECIPE by default. Resumes.")
    ] = None,
    install: Annotated[
        Path | None, typer.Option(help="Copy the finished checkpoint into this folder.")
    ] = None,
    data_dir: Annotated[
        str | None, typer.Option(help="Folder with local copies of the data sets.")
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Print sizes, steps and estimates; train nothing."),
    ] = False,
) -> None:
    """Train by a recipe; the same command goes on with a run that was stopped."""
    from memslots.configuration import load_recipe

    folder = output or Path("runs") / Path(recipe).stem
    try:
        from memslots.trainer.compressor_config import recipe_fields
        from memslots.trainer.plan import plan_recipe
        from memslots.trainer.run import install_checkpoint, run_recipe
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("memslots"):
            raise
        raise ValueError(
            f"training needs {error.name}, which is not installed: pip install 'memslots[train]'."
        ) from error
    quiet()
    settings = load_recipe(recipe, sets or [], recipe_fields())
    if dry_run:
        from .plan_view import plan_table

        out.print(plan_table(recipe, plan_recipe(settings)))
        return
    from memslots.hub_cards.model_card import write_card

    result = run_recipe(settings, folder, stage, books, write_card, data_dir)
    if install is not None:
        install_checkpoint(result, install)
    out.print(f"{install or result}: trained by recipe {recipe}")


def evaluate(
    checkpoint: Annotated[
        str | None, typer.Argument(help="Folder or repository; the embedded one by default.")
    ] = None,
    tasks: Annotated[
        str,
        typer.Option(help="With commas between: reconstruction,completion,qa,icl,roleplay,needle."),
    ] = "qa",
    output: Annotated[
        Path, typer.Option(help="JSON to write; table and plots go beside it.")
    ] = Path("results.json"),
    rates: Annotated[str | None, typer.Option(help="Rates to measure, such as 4,16.")] = None,
    baselines: Annotated[
        str | None,
        typer.Option(
            help="What memories are compared with: full,none,head,tail,another by default, and "
            "llmlingua2 where it is installed."
        ),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(metavar="TASK=SET/SPLIT", help="Another set for a task; repeatable."),
    ] = None,
    data_dir: Annotated[
        str | None, typer.Option(help="Folder with local copies of the data sets.")
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Most rows of a set.")] = 200,
    lengths: Annotated[
        str | None, typer.Option(help="Input lengths in decoder tokens, such as 512,1024.")
    ] = None,
    finetuned_decoder: Annotated[
        str | None, typer.Option(help="Compare role play with this one, tuned on the plain text.")
    ] = None,
    literals: Literals = None,
    revision: Revision = None,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Measure a checkpoint, beside the full text, cuts of it, another's memory and none."""
    from .measure import measure

    beside = literal_names(literals)
    measure(
        load_model(checkpoint, revision, device, dtype),
        tasks,
        rates,
        baselines,
        data or [],
        data_dir,
        samples,
        lengths,
        output,
        finetuned_decoder,
        beside,
    )
