"""`python -m lab ablate`: a recipe and what each of its parts is worth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from memslots.cli.measure import task_sources
from memslots.cli.options import Books, DataFolder, Sets, err, numbers, out, quiet, words


def ablate(
    recipe: Annotated[str, typer.Argument(help="A packaged recipe's name, or a YAML file.")],
    stage: Annotated[
        str | None,
        typer.Option(help="Compare after this stage; the first that reads questions by default."),
    ] = None,
    only: Annotated[
        str | None, typer.Option(help="Ablations, with commas between; all by default.")
    ] = None,
    sets: Sets = None,
    books: Books = None,
    data_dir: DataFolder = None,
    data: Annotated[
        list[str] | None,
        typer.Option(help="TASK=SET/SPLIT to measure on; qa=squad/validation by default."),
    ] = None,
    rates: Annotated[
        str | None, typer.Option(help="Rates to measure; those that were trained by default.")
    ] = None,
    samples: Annotated[int, typer.Option(help="Most rows of a set.")] = 200,
    output: Annotated[
        Path | None,
        typer.Option(help="Folder of the runs; runs/ablate-RECIPE by default. Resumes."),
    ] = None,
) -> None:
    """Train a recipe with each of its parts taken out, measure all, and set them side by side."""
    from lab.recipes import recipe_file
    from memslots.configuration import load_recipe

    folder = output or Path("runs") / f"ablate-{Path(recipe).stem}"
    from lab.tables.ablations import ABLATIONS, fine_tuning_stage
    from memslots.trainer.compressor_config import recipe_fields

    file = recipe_file(recipe)
    settings = load_recipe(file if file.is_file() else recipe, sets or [], recipe_fields())

    names = list(ABLATIONS) if only is None else words(only)
    unknown = sorted(set(names) - set(ABLATIONS))
    if unknown:
        raise ValueError(f"--only {only}: {unknown} unknown; there are {', '.join(ABLATIONS)}.")
    asked = task_sources(data or ["qa=squad/validation"])
    wanted = numbers(rates, "--rates")
    quiet()
    target = stage or fine_tuning_stage(settings)
    run_ablations(settings, names, target, folder, asked, wanted, samples, books, data_dir)
    out.print(f"{folder / 'ablations.md'} and pictures of the losses beside it")


def run_ablations(
    recipe: dict[str, Any],
    names: list[str],
    target: str,
    folder: Path,
    data: dict[str, list[str]],
    rates: list[int] | None,
    samples: int,
    books: str | None,
    data_dir: str | None,
) -> dict[str, Any]:
    """Trains and measures each ablation that is not there yet; writes `ablations.md` and pictures.

    Returns:
        The results of each.
    """
    from lab.tables.ablation_report import ablation_table, plot_losses
    from lab.tables.ablations import ablated, is_pretraining, stage_chain

    results, curves = {}, {}
    for name in names:
        err.print(f"ablation: {name} ...", style="dim")
        changed = ablated(recipe, name, target)
        results[name] = train_and_measure(
            changed, folder / name, data, rates, samples, books, data_dir
        )
        stages = [s["name"] for s in stage_chain(changed, target) if is_pretraining(s)]
        curves[name] = losses(folder / name, stages)
    measured = sorted({r["rate"] for r in results[names[0]]["records"] if r["rate"]})
    parts = []
    for rate in measured:
        parts += [f"**Rate {rate}**", "", ablation_table(results, rate)]
    (folder / "ablations.md").write_text("\n".join(parts), encoding="utf-8")
    for task in ("reconstruction", "completion"):
        title = f"pre-training: {task} loss"
        plot_losses(curves, f"{task}_loss", title, folder / f"{task}_loss.png")
    return results


def train_and_measure(
    recipe: dict[str, Any],
    folder: Path,
    data: dict[str, list[str]],
    rates: list[int] | None,
    samples: int,
    books: str | None,
    data_dir: str | None,
) -> dict[str, Any]:
    """Runs a recipe and measures its last checkpoint; what is there already is not done again."""
    from lab.training.run import run_recipe
    from memslots.evaluation.report import write_results
    from memslots.evaluation.suite import evaluate_tasks
    from memslots.modeling import MemslotsModel

    file = folder / "results.json"
    if file.is_file():
        return json.loads(file.read_text("utf-8"))
    checkpoint = run_recipe(recipe, folder, books=books, data_dir=data_dir)
    model = MemslotsModel.from_pretrained(checkpoint).eval()
    last = recipe["compressor"]["stages"][-1].get("training", {})
    trained = sorted(set(last.get("training_rates") or model.config.compression_rates))
    measured = evaluate_tasks(
        model,
        list(data),
        rates=rates or trained,
        baselines=("none", "full", "another"),
        data=data,
        data_dir=data_dir or books,
        samples=samples,
        progress=lambda line: err.print(f"{line} ...", style="dim"),
    )
    write_results(file, measured)
    return measured


def losses(folder: Path, stages: list[str]) -> list[dict[str, Any]]:
    """What was logged over the stages of a run, their steps counted on."""
    from memslots.trainer.run import LOSSES

    logged: list[dict[str, Any]] = []
    done = 0
    for stage in stages:
        history = json.loads((folder / "compressor" / stage / LOSSES).read_text("utf-8"))
        logged += [{**entry, "step": entry["step"] + done} for entry in history]
        done = logged[-1]["step"] if logged else done
    return logged
