"""`python -m lab capacity`: the AIRI report's tables and figures on SmolLM2."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from memslots.cli.options import Books, Sets, err, out, quiet, resolve_model
from memslots.extras import install_extra


def capacity(
    books: Books = None,
    output: Annotated[
        Path, typer.Option(help="Folder of the cells; what is there is kept.")
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
        bool,
        typer.Option("--table-2", help="Table 2 alone: trained compressors, a page of its own."),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the cells; run none.")] = False,
    settings: Annotated[
        Path | None, typer.Option(help="YAML of the same sections as the lab's.")
    ] = None,
    sets: Sets = None,
) -> None:
    """Measure how much a memory vector holds; the same command goes on with a stopped run."""
    from lab.capacity.report import load_records, write_capacity_page, write_compressors_page
    from lab.capacity.runs import cell_file, plan_cells, run_cells
    from memslots.configuration import load_recipe
    from memslots.smollm2 import smollm2

    packaged = Path(__file__).with_name("capacity.yaml")
    recipe = load_recipe(settings or packaged, sets or [])
    quiet()
    if table_2:
        page = report or output / "capacity_compressors.md"
        write_compressors_page(_train_chunks(recipe["chunks"], output / "chunks", books), page)
        out.print(str(page), soft_wrap=True)
        return
    named = recipe["capacity"]["decoders"]
    decoders = {name: smollm2() if name == "smollm2" else resolve_model(name) for name in named}
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
    page = report or output / "capacity.md"
    records = load_records(cell_file(cell, folder) for cell in cells)
    write_capacity_page(records, page, len(cells) - len(records))
    out.print(f"{page}: {len(records)} of {len(cells)} cells", soft_wrap=True)


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
