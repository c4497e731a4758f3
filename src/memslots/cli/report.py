"""`memslots report`: what a memory holds, and what its slots lose."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import read_text


def report(
    memory: Annotated[Path, typer.Argument(help="Memory file from `memslots compress`.")],
    context: Annotated[
        list[str] | None,
        typer.Option("--context", "-c", help="The texts that were compressed. The map needs them."),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option("--html", help="HTML file to write: the text with the lost tokens marked."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show how large each segment is and what its slots give back. Needs no checkpoint."""
    from memslots import verified
    from memslots.modeling import Memory

    texts = None if not context else [read_text(one) for one in context]
    found = verified.report(Memory.load(memory), texts)
    typer.echo(found.to_json() if as_json else str(found))
    if html is not None:
        found.save_html(html)
