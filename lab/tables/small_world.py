"""`python -m lab tables`: the papers' tables on the project's own small world, step by step."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from lab.tables.ablate import losses, train_and_measure
from lab.tables.ablations import ablated
from memslots.cli.options import Books, err, out, quiet, words

DATA = {"qa": ["personas/test"], "reconstruction": ["personas/test"]}
RATES = (4, 16, 64)
RATE_STEPS = 800
"""Of every checkpoint of the rates; after 200 steps, one that reads all of them answers nothing."""
FINEST_STEPS = 300
"""Of them at the finest rate alone, where a checkpoint for all rates begins with it."""
SAMPLES = 300
ADAPT_STEPS = 600
ADAPTATIONS = {
    "all": {"train": "all", "start": "random"},  # the paper's
    "all_from_embeddings": {"train": "all", "start": "embeddings"},
    "converter_from_embeddings": {"train": "converter", "start": "embeddings"},
}
TARGET = "finetune_qa"

Recipe = dict[str, Any]


def tables(
    books: Books = None,
    output: Annotated[
        Path, typer.Option(help="Folder of the runs; what is there is not run again.")
    ] = Path("runs/tables"),
    report: Annotated[
        Path | None, typer.Option(help="Markdown file to write, its pictures in a folder beside.")
    ] = None,
    only: Annotated[
        str | None, typer.Option(help="Steps, with commas between; all by default.")
    ] = None,
) -> None:
    """Train and measure the small world, and write the papers' figures and ours side by side."""
    from lab.recipes import lab_recipe
    from lab.tables.results_page import write_page

    names = list(STEPS) if only is None else words(only)
    unknown = sorted(set(names) - set(STEPS))
    if unknown:
        raise ValueError(f"--only {only}: {unknown} unknown; there are {', '.join(STEPS)}.")
    quiet()
    output.mkdir(parents=True, exist_ok=True)
    for name in names:
        err.print(f"step {name} ...", style="dim")
        STEPS[name](lab_recipe("small_world"), output, books)
    page = report or output / "results.md"
    write_page(output, page)
    out.print(f"{page}: the small world's tables")


def _whole(recipe: Recipe, output: Path, books: str | None) -> None:
    """The whole recipe, from which adaptation starts."""
    changed = ablated(recipe, "whole", TARGET)
    train_and_measure(changed, output / "whole" / "recipe", DATA, [4], SAMPLES, books, None)


def _rates(recipe: Recipe, output: Path, books: str | None) -> None:
    """Single-rate checkpoints and two for all rates, of one budget (figures 2 and 3)."""
    runs = {f"rate_{rate}": [rate] for rate in RATES}
    runs |= {"any_rate": list(RATES), "any_rate_finest_first": list(RATES)}
    for name, trained in runs.items():
        changed = _fine_tuned_alone(recipe)
        # A person in one segment, since a slot stands for at most a segment.
        changed["compressor"]["config"].update(segment_length=64, compression_rates=list(RATES))
        stages = changed["compressor"]["stages"]
        if name == "any_rate_finest_first":
            first = copy.deepcopy(stages[0])
            first.update(name="finest_first")
            flat = {"num_decay_steps": 0}
            first["training"].update(
                training_rates=trained[:1], max_steps=FINEST_STEPS, lr_scheduler_kwargs=flat
            )
            stages.insert(0, first)
        done = FINEST_STEPS * (len(stages) - 1)
        stages[-1]["training"].update(training_rates=trained, max_steps=RATE_STEPS - done)
        folder = output / "rates" / name
        train_and_measure(changed, folder, DATA, trained, SAMPLES, books, None)
        _write(folder / "curve.json", losses(folder, [stage["name"] for stage in stages]))


def _encoders(recipe: Recipe, output: Path, books: str | None) -> None:
    """Quality against the encoder's size: one layer, two as the recipe has, and three."""
    for layers in (1, 2, 3):
        changed = _fine_tuned_alone(recipe)
        changed["compressor"]["encoder"]["num_hidden_layers"] = layers
        folder = output / "encoders" / f"layers_{layers}"
        train_and_measure(changed, folder, DATA, [4], SAMPLES, books, None)
        _write(folder / "curve.json", losses(folder, [TARGET]))


def _adaptation(recipe: Recipe, output: Path, books: str | None) -> None:
    """The whole recipe's compressor before a further decoder, three ways (tables 5 and A2)."""
    from lab.recipes import lab_recipe
    from lab.training.run import run_recipe

    further = lab_recipe("tiny", ["decoder.seed=1", "decoder.model.intermediate_size=640"])
    further_decoder = run_recipe(further, output / "further_decoder", "decoder", books)
    first = output / "whole" / "recipe"
    if not (first / "results.json").is_file():
        raise ValueError("the step 'adaptation' starts from 'whole'; run that step first.")
    for name, way in ADAPTATIONS.items():
        changed = copy.deepcopy(recipe)
        stage = copy.deepcopy(changed["compressor"]["stages"][-1])
        stage.update(name=f"adapt_{name}", adapt={"decoder": str(further_decoder), **way})
        stage["training"]["max_steps"] = ADAPT_STEPS
        changed["compressor"]["stages"].append(stage)
        folder = output / "adaptation" / name
        if not folder.exists():  # goes on from the stages that are there
            folder.mkdir(parents=True)
            (folder / "decoder").symlink_to((first / "decoder").resolve())
            (folder / "compressor").mkdir()
            for done in ("pretrain", TARGET):
                source = (first / "compressor" / done).resolve()
                (folder / "compressor" / done).symlink_to(source)
        train_and_measure(changed, folder, DATA, [4], SAMPLES, books, None)


def _fine_tuned_alone(recipe: Recipe) -> Recipe:
    """The recipe without pre-training, half of the contexts reconstructed while fine-tuning."""
    changed = copy.deepcopy(recipe)
    stage = next(s for s in changed["compressor"]["stages"] if s["name"] == TARGET)
    stage["training"]["reconstruction_share"] = 0.5
    changed["compressor"]["stages"] = [stage]
    return changed


def _write(file: Path, results: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(results, indent=1, ensure_ascii=False), encoding="utf-8")


STEPS: dict[str, Callable[[Recipe, Path, str | None], None]] = {
    "whole": _whole,
    "rates": _rates,
    "encoders": _encoders,
    "adaptation": _adaptation,
}
"""What `python -m lab tables` does, in this order; each goes on where it was stopped."""
