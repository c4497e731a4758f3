"""`python -m lab train`: recipes that make their own decoder, or read the lab's rows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lab.recipes import recipe_file
from memslots.cli.options import Books, DataFolder, Install, RunFolder, Sets, Stage, out, quiet


def train(
    recipe: Annotated[str, typer.Argument(help="tiny, small_world, exact_strings, or a file.")],
    stage: Stage = None,
    sets: Sets = None,
    books: Books = None,
    output: RunFolder = None,
    install: Install = None,
    data_dir: DataFolder = None,
) -> None:
    """Train by a recipe; run it again to resume."""
    from lab.training.run import run_recipe
    from memslots.configuration import load_recipe
    from memslots.hub_cards.model_card import write_card
    from memslots.trainer.compressor_config import recipe_fields
    from memslots.trainer.run import install_checkpoint

    quiet()
    file = recipe_file(recipe)
    settings = load_recipe(file if file.is_file() else recipe, sets or [], recipe_fields())
    folder = output or Path("runs") / Path(recipe).stem
    result = run_recipe(settings, folder, stage, books, write_card, data_dir)
    if install is not None:
        install_checkpoint(result, install)
    out.print(f"{install or result}: trained by recipe {recipe}")
