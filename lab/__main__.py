"""`python -m lab`: what the Makefile runs, with the lab's rows and recipes beside the package's."""

from __future__ import annotations

import sys

import typer

from lab.capacity.command import capacity
from lab.sentence.command import tables_sentence
from lab.suite.command import suite
from lab.tables.ablate import ablate
from lab.tables.small_world import tables
from lab.training.command import train
from lab.training.finetune_command import finetune
from memslots.cli import main
from memslots.cli.build import evaluate

app = typer.Typer(
    name="python -m lab",
    help=__doc__,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command(epilog="Example: python -m lab train tiny --books ../shared/data")(train)
app.command(epilog="Example: python -m lab suite --questions 1000 --check")(suite)
app.command("eval", epilog="Example: python -m lab eval --data qa=personas/test")(evaluate)
app.command(epilog="Example: python -m lab ablate small_world --data qa=personas/test")(ablate)
app.command(epilog="Example: python -m lab tables --report results.md")(tables)
app.command("tables-sentence", epilog="Example: python -m lab tables-sentence")(tables_sentence)
app.command(epilog="Example: python -m lab capacity --output runs/capacity")(capacity)
app.command("finetune-decoder", epilog="Example: python -m lab finetune-decoder model tuned")(
    finetune
)


def lab(arguments: list[str] | None = None) -> int:
    """Runs a command of the lab; mistakes are told as `memslots` tells them."""
    from lab import sources  # noqa: F401

    return main(arguments, app, "python -m lab")


if __name__ == "__main__":
    sys.exit(lab())
