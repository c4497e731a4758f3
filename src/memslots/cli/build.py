"""Commands that make and judge checkpoints: info, init, train, eval."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from memslots.extras import install_extra

from .options import (
    DTYPES,
    Books,
    DataFolder,
    Device,
    Dtype,
    Force,
    Install,
    Json,
    Literals,
    Model,
    Revision,
    RunFolder,
    Sets,
    Stage,
    literal_names,
    load_config,
    load_model,
    out,
    print_json,
    quiet,
    resolve_model,
    steps,
)


def info(
    as_json: Json = False,
    model: Model = None,
    revision: Revision = None,
) -> None:
    """Show a checkpoint's models, rates, sizes and results."""
    name = resolve_model(model)
    from .inspection import describe

    quiet()
    facts, results = describe(name, load_config(name, revision), revision)
    if as_json:
        named = {key.replace(" ", "_"): value for key, value in facts.items()}
        print_json({"model": name, **named, "results": results})
        return
    table = Table(show_header=False, title=name, title_justify="left")
    for key, value in facts.items():
        table.add_row(key, Text(value, overflow="fold"))
    out.print(table)
    if results is not None:
        from memslots.evaluation.report import rich_report

        out.print(rich_report(results))


OWN_PANEL = "With the recipe own"

DECODER_ARG: dict[str, str] = {
    "metavar": "KEY=VALUE",
    "help": "Give the decoder's from_pretrained this argument, such as gguf_file=model.gguf. "
    "Repeat it for more arguments.",
}


def init(
    decoder: Annotated[
        str,
        typer.Option(metavar="LLM", help="Read the slots with this LLM: a folder or repository."),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="FOLDER",
            help="Write the checkpoint to this folder, which must be new or empty.",
        ),
    ],
    encoder: Annotated[
        str,
        typer.Option(
            help="Write the slots with this model: a folder or repository, or the word decoder, "
            "which shares the LLM's own first layers."
        ),
    ] = "decoder",
    sets: Sets = None,
    encoder_args: Annotated[
        list[str] | None,
        typer.Option(
            "--encoder-arg",
            metavar="KEY=VALUE",
            help="Give the encoder's from_pretrained this argument. Repeat it for more arguments.",
        ),
    ] = None,
    decoder_args: Annotated[list[str] | None, typer.Option("--decoder-arg", **DECODER_ARG)] = None,
    dtype: Dtype = None,
) -> None:
    """Make a new, untrained compressor for an LLM."""
    if output.is_file() or (output.is_dir() and any(output.iterdir())):
        raise ValueError(f"{output} is not an empty folder; name a new one.")
    from .inspection import loading_arguments, settable_fields

    settings = settable_fields(sets or [])
    encoder_kwargs = loading_arguments("--encoder-arg", encoder_args or [])
    decoder_kwargs = loading_arguments("--decoder-arg", decoder_args or [])
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"--dtype {dtype} is not known; choose one of {', '.join(DTYPES)}.")
    import torch

    from memslots.making import new_compressor, usual_settings
    from memslots.writing import whole_folder

    quiet()
    usual = usual_settings(encoder, decoder, encoder_kwargs, decoder_kwargs)
    if {"pooling", "memory_positions"} & set(settings):  # another start, to which nothing is added
        for name in ("pooling", "converter_type", "compression_rates"):
            usual.pop(name, None)
    chosen = {name: value for name, value in usual.items() if name not in settings}
    kind = dtype if dtype in (None, "auto") else getattr(torch, dtype)
    compressor = new_compressor(
        encoder,
        decoder,
        dtype=kind,
        encoder_kwargs=encoder_kwargs,
        decoder_kwargs=decoder_kwargs,
        **{**chosen, **settings},
    )
    with whole_folder(output):
        compressor.save_pretrained(output)
    out.print(
        f"{output}: new compressor, rates {compressor.config.compression_rates}; it is untrained."
    )
    if chosen:
        told = ", ".join(f"{name}={_in_a_line(value)}" for name, value in chosen.items())
        out.print(
            Text(f"Chosen: {told}; --set KEY=VALUE changes a value."), style="dim", soft_wrap=True
        )


def _in_a_line(value: object) -> object:
    """The value; a text of several lines, or of none, as `--set` takes it."""
    plain = not isinstance(value, str) or (value.isprintable() and value.strip())
    return value if plain else json.dumps(value)


def train(
    recipe: Annotated[
        str,
        typer.Argument(
            help="Train by this recipe: own for your LLM and your texts, the name of a packaged "
            "recipe, or a YAML file."
        ),
    ],
    decoder: Annotated[
        str | None,
        typer.Option(
            metavar="LLM",
            help="Train for this LLM, a folder or repository.",
            rich_help_panel=OWN_PANEL,
        ),
    ] = None,
    decoder_args: Annotated[
        list[str] | None,
        typer.Option("--decoder-arg", rich_help_panel=OWN_PANEL, **DECODER_ARG),
    ] = None,
    texts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE|FOLDER",
            help="Train on the documents in this file or folder.",
            rich_help_panel=OWN_PANEL,
        ),
    ] = None,
    questions: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Train on the questions in this JSON file too, whose rows have context, "
            "question and answer; a SQuAD release works as well.",
            rich_help_panel=OWN_PANEL,
        ),
    ] = None,
    budget: Annotated[
        str,
        typer.Option(help="Train for so long, such as 2h or 90m.", rich_help_panel=OWN_PANEL),
    ] = "2h",
    stage: Stage = None,
    sets: Sets = None,
    books: Books = None,
    output: RunFolder = None,
    install: Install = None,
    data_dir: DataFolder = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Print sizes, steps and estimates without training."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Train a compressor by a recipe. Run the same command again to resume."""
    from memslots.configuration import load_recipe

    if as_json and not dry_run:
        raise ValueError("--json prints the plan of --dry-run; give that too.")
    if recipe != "own":
        load_recipe(recipe)  # a mistyped name is told before torch and TRL are imported
    from .inspection import loading_arguments

    folder = output or Path("runs") / Path(recipe).stem
    try:
        from memslots.trainer.compressor_config import recipe_fields
        from memslots.trainer.plan import free_memory, plan_recipe
        from memslots.trainer.run import (
            check_install,
            install_checkpoint,
            run_recipe,
            stages_to_run,
        )
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("memslots"):
            raise
        raise ValueError(
            f"training needs {error.name}, which is not installed: {install_extra('train')}."
        ) from error
    if install is not None:
        check_install(install)
    quiet()
    if recipe == "own":
        settings, plans = _own(
            decoder,
            texts,
            questions,
            budget,
            loading_arguments("--decoder-arg", decoder_args or []),
            sets or [],
            recipe_fields(),
            folder / "recipe.yaml",
        )
    elif (decoder, texts, questions, decoder_args) != (None, None, None, None):
        raise ValueError(
            "--decoder, --decoder-arg, --texts and --questions go with `memslots train own`."
        )
    else:
        settings, plans = load_recipe(recipe, sets or [], recipe_fields()), None
    if dry_run:
        from .plan_view import plan_table

        if plans is None or stage is not None:
            with steps(len(stages_to_run(settings["compressor"], stage))) as step:
                plans = plan_recipe(
                    settings,
                    stage=stage,
                    books=books,
                    data_dir=data_dir,
                    progress=lambda stage: step(f"planned {stage}"),
                )
        if as_json:
            stages = [dataclasses.asdict(plan) for plan in plans]
            print_json({"recipe": recipe, "free_memory": free_memory(), "stages": stages})
        else:
            out.print(plan_table(recipe, plans, free_memory()))
        return
    from memslots.hub_cards.model_card import write_card

    result = run_recipe(settings, folder, stage, books, write_card, data_dir)
    if install is not None:
        install_checkpoint(result, install)
    out.print(f"{install or result}: trained by recipe {recipe}")


def _own(
    decoder: str | None,
    texts: Path | None,
    questions: Path | None,
    budget: str,
    decoder_kwargs: dict,
    sets: list[str],
    fields: dict[str, list[str]],
    saved: Path,
) -> tuple[dict, list]:
    """The recipe for a user's own decoder and documents on this machine, and its plan."""
    if decoder is None or texts is None:
        raise ValueError(
            "train own needs --decoder and --texts: memslots train own --decoder "
            "HuggingFaceTB/SmolLM2-135M-Instruct --texts notes.txt --budget 2h"
        )
    for option, path in (("--texts", texts), ("--questions", questions)):
        if path is not None and not path.exists():
            raise ValueError(f"{option} {path} does not exist; name a file or folder of texts.")
    from memslots.configuration.own import batch_sizes, minutes_of, own_recipe
    from memslots.configuration.recipes import apply_overrides

    minutes = minutes_of(budget)
    own_recipe(decoder, texts, questions, minutes)  # a budget too small is told before loading
    import torch
    import yaml

    from memslots.data.raw_texts import format_of
    from memslots.making import SHARED_ENCODER, decoder_tokenizer, usual_settings
    from memslots.trainer.plan import plan_that_fits
    from memslots.trainer.row_sources import Sources
    from memslots.trainer.source_checks import check_long_enough, check_sources

    texts_kind, on_gpu = format_of(texts), torch.cuda.is_available()
    usual = usual_settings(SHARED_ENCODER, decoder, decoder_kwargs=decoder_kwargs)

    def recipe(positions: int, segment_length: int) -> dict:
        written = own_recipe(
            decoder,
            texts,
            questions,
            minutes,
            segment_length=segment_length,
            encoder_layers=usual["encoder_layers"],
            chat=usual.get("prompt_format") == "chat",
            on_gpu=on_gpu,
            texts_kind=texts_kind,
            positions=positions,
            **decoder_kwargs,
        )
        return apply_overrides(written, sets, fields)

    recipes = [recipe(*size) for size in batch_sizes(on_gpu)]
    tokenizer = decoder_tokenizer(decoder, decoder_kwargs)
    for stage in recipes[0]["compressor"]["stages"]:
        training = recipes[0]["compressor"]["training"] | stage["training"]
        check_sources(stage, training, Sources())
        check_long_enough(stage, tokenizer)
    begun = yaml.safe_load(saved.read_text("utf-8")) if saved.is_file() else None
    if begun in recipes:  # goes on as it began, however much memory is free today
        recipes = [begun]
    with steps(len(recipes[0]["compressor"]["stages"])) as step:
        return plan_that_fits(recipes, progress=lambda stage: step(f"planned {stage}"))


def evaluate(
    tasks: Annotated[
        str,
        typer.Option(
            help="Measure these tasks, separated by commas: reconstruction, completion, qa, cloze, "
            "icl, roleplay, needle."
        ),
    ] = "qa",
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Write the results to this JSON file; table and plots go beside it.",
        ),
    ] = Path("results.json"),
    force: Force = False,
    as_json: Json = False,
    rates: Annotated[
        str | None,
        typer.Option(
            help="Measure these rates, such as 4,16. By default it is all of the checkpoint's."
        ),
    ] = None,
    baselines: Annotated[
        str | None,
        typer.Option(
            help="Compare with these, separated by commas: full, none, head, tail, another (the "
            "control), llmlingua2. By default it is with all that can be run."
        ),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TASK=SET/SPLIT|FILE",
            help="Use another data set for a task, such as qa=squad/validation, or a file of your "
            "own, such as qa=asked.jsonl, whose rows have context, question and answer. Repeat it "
            "for more.",
        ),
    ] = None,
    data_dir: DataFolder = None,
    samples: Annotated[
        int, typer.Option(min=1, help="Read at most this many rows of each data set.")
    ] = 200,
    lengths: Annotated[
        str | None,
        typer.Option(help="Use inputs of these lengths in decoder tokens, such as 512,1024."),
    ] = None,
    finetuned_decoder: Annotated[
        str | None,
        typer.Option(
            metavar="LLM",
            help="Compare role play with this decoder, which was fine-tuned on the plain text.",
        ),
    ] = None,
    examples: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Show this many worked examples before each question of qa and cloze. By default "
            "it is three if the decoder reads better with them.",
        ),
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(
            metavar="plain|chat",
            help="Ask questions in plain text or by the chat template. By default it is as the "
            "checkpoint was trained.",
        ),
    ] = None,
    literals: Literals = None,
    model: Model = None,
    revision: Revision = None,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Measure a checkpoint against the full text, parts of it, the control and no context."""
    from .measure import check_output, measure, task_sources

    sets = task_sources(data or [])
    check_output(output, force, [source for sources in sets.values() for source in sources])
    beside = literal_names(literals)
    measure(
        load_model(model, revision, device, dtype),
        tasks,
        rates,
        baselines,
        sets,
        data_dir,
        samples,
        lengths,
        output,
        finetuned_decoder,
        beside,
        examples,
        prompt,
        as_json,
    )
