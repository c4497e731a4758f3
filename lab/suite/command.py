"""`python -m lab suite`: the embedded checkpoint's targets, its card and a table of the docs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from memslots.cli.options import Device, Dtype, Revision, err, load_model, out, resolve_model


def suite(
    checkpoint: Annotated[
        str | None, typer.Argument(help="Folder or repository; tiny by default.")
    ] = None,
    questions: Annotated[int, typer.Option(min=1, help="Questions about one person.")] = 1000,
    output: Annotated[Path | None, typer.Option(help="Write all numbers as JSON.")] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Exit with 1 if a target is missed.")
    ] = False,
    card: Annotated[
        bool, typer.Option("--card", help="Write results.json and the card into CHECKPOINT.")
    ] = False,
    page: Annotated[
        Path | None, typer.Option(help="Fill the results block of this Markdown file.")
    ] = None,
    books: Annotated[str | None, typer.Option(help="Reconstruct passages of these too.")] = None,
    revision: Revision = None,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Measure a checkpoint of the biographies on held-out people."""
    checkpoint = checkpoint or "tiny"
    folder = Path(resolve_model(checkpoint))
    if card and not folder.is_dir():
        raise ValueError(f"--card writes into a folder, and {folder} is none.")
    if output is not None and not output.resolve().parent.is_dir():
        raise ValueError(f"--output {output}: there is no folder {output.resolve().parent}.")
    from lab.suite.tiny_suite import evaluate_tiny
    from memslots.evaluation import report

    model = load_model(checkpoint, revision, device, dtype)
    results = evaluate_tiny(
        model,
        n_questions=questions,
        n_reconstructions=min(200, questions),
        n_many=min(200, questions),
        books=books,
        progress=lambda line: err.print(f"{line} ...", style="dim"),
    )
    out.print(report.rich_report(results))
    if output is not None:
        report.write_results(output, results)
    if card:
        from memslots.hub_cards.model_card import write_card

        report.write_results(folder / "results.json", results)
        write_card(model, folder)
    if page is not None:
        report.fill_block(page, results)
    if check and not all(target.ok for target in report.targets(results)):
        raise typer.Exit(1)
