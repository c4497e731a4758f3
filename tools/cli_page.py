"""Writes docs/reference/cli.md, the pages of `memslots --help`, for `make docs`.

    python tools/cli_page.py

As `typer utils docs`, which cuts the sentences in the table of commands at 45 characters.
"""

from functools import partialmethod
from pathlib import Path

import click
import typer
from typer.cli import get_docs_for_click
from typer.core import TyperCommand, TyperGroup

from memslots.cli import app

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "cli.md"


def main() -> None:
    """Write the page."""
    for kind in (TyperCommand, TyperGroup):
        kind.get_short_help_str = partialmethod(click.Command.get_short_help_str, limit=1_000)
    command = typer.main.get_command(app)
    context = click.Context(command, info_name="memslots")
    text = get_docs_for_click(obj=command, ctx=context, name="memslots", title="Command line")
    PAGE.write_text(text.strip() + "\n", "utf-8")


if __name__ == "__main__":
    main()
