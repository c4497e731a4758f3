"""`python -m lab capacity`: the AIRI report's tables and figures on decoders trained here."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from memslots.checkpoints import embedded
from memslots.cli.options import Books, Sets, err, out, quiet
from memslots.extras import install_extra


def capacity(
    books: Books = None,
    output: Annotated[
        Path, typer.Option(help="Folder of the decoder and the cells; what is there is kept.")
    ] = Path("runs/capacity"),
    report: Annotated[
        Path | None, typer.Option(help="Markdown to write; OUTPUT/capacity.md without.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes, of one thread each.")] = 2,
    only: Annotated[
        str | None, typer.Option(help="Cells whose names hold this, such as search-books-dense.")
    ] = None,
    at_most: Annotated[int | None, typer.Option(min=0, help="Run so many cells and stop.")] = None,
    table_2: Annotated[
        bool, typer.Option("--table-2/--no-table-2", help="Train and measure table 2 as well.")
    ] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the cells; run none.")] = False,
    settings: Annotated[
        Path | None, typer.Option(help="YAML of the same sections as the lab's.")
    ] = None,
    sets: Sets = None,
) -> None:
    """Measure how much a memory vector holds; the same command goes on with a stopped run."""
    from lab.capacity.report import load_records, write_capacity_page
    from lab.capacity.runs import cell_file, plan_cells, run_cells
    from memslots.configuration import load_recipe

    packaged = Path(__file__).with_name("capacity.yaml")
    recipe = load_recipe(settings or packaged, sets or [])
    quiet()
    trained = output / "small" / "decoder"
    if "books" in recipe["capacity"]["decoders"] and not (trained / "model.safetensors").is_file():
        if dry_run:
            raise ValueError(
                f"{trained} is not there yet, and the cells depend on it; run with --at-most 0 "
                "once, which trains it."
            )
        err.print("training the small decoder on books ...", style="dim")
        _train(recipe, output / "small", books)
    decoders = {"embedded": embedded("tiny"), "books": str(trained)}
    cells = plan_cells(recipe["capacity"], decoders, books)
    folder = output / "cells"
    chosen = [c for c in cells if only is None or only in cell_file(c, folder).stem]
    if not chosen:
        raise ValueError(f"--only {only}: no cell's name holds that; see --dry-run.")
    if dry_run:
        for cell in chosen:
            file = cell_file(cell, folder)
            typer.echo(f"{'done' if file.is_file() else 'to do'}  {file.stem}")
        return
    waiting = [cell for cell in chosen if not cell_file(cell, folder).is_file()]
    run_cells(waiting[:at_most], folder, books, workers, lambda line: err.print(line, style="dim"))
    chunks = []
    if table_2 and "chunks" in recipe:
        chunks = _train_chunks(recipe["chunks"], output / "chunks", books)
    page = report or output / "capacity.md"
    records = load_records(cell_file(cell, folder) for cell in cells)
    write_capacity_page(records, page, len(cells) - len(records), chunks)
    out.print(f"{page}: {len(records)} of {len(cells)} cells", soft_wrap=True)


def _train(recipe: dict[str, Any], folder: Path, books: str | None) -> None:
    with _training_is_installed():
        from lab.training.tiny_decoder import train_tiny_decoder
    train_tiny_decoder(recipe, folder, books)


def _train_chunks(section: dict[str, Any], folder: Path, books: str | None) -> list[dict[str, Any]]:
    with _training_is_installed():
        from lab.capacity.chunk_runs import run_chunks
    return run_chunks(section, folder, books, lambda line: err.print(line, style="dim"))


@contextlib.contextmanager
def _training_is_installed() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("memslots"):
            raise
        raise ValueError(
            f"training needs {error.name}, which is not installed: {install_extra('train')}."
        ) from error
