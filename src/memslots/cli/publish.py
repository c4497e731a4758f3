"""Commands that publish: card and push."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import load_config, out, quiet


def card(
    checkpoint: Annotated[Path, typer.Argument(help="Folder of the checkpoint.")],
    repo: Annotated[
        str | None, typer.Option(help="Its repository on the Hub, for the snippets.")
    ] = None,
    license_id: Annotated[
        str | None, typer.Option("--license", help="Its licence, such as apache-2.0.")
    ] = None,
    language: Annotated[str | None, typer.Option(help="Its language, such as en.")] = None,
    show: Annotated[bool, typer.Option("--print", help="Print the card; write nothing.")] = False,
) -> None:
    """Write the model card README.md from a checkpoint's configuration, results and recipe."""
    from memslots.hub_cards.model_card import build_card, save_card

    if not (checkpoint / "config.json").is_file():
        raise ValueError(f"{checkpoint} is no checkpoint's folder: it has no config.json.")
    quiet()
    config = load_config(str(checkpoint))
    made = build_card(config, checkpoint, repo, license=license_id, language=language)
    if show:
        typer.echo(str(made))
        return
    out.print(f"{save_card(made, checkpoint)}: card written")
