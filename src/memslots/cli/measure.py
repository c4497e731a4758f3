"""`memslots eval --tasks`: the papers' tasks, printed and written as JSON, Markdown and plots."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table

from .options import err, new_file, not_replaced, numbers, out, print_json, words

if TYPE_CHECKING:
    from memslots.modeling import MemslotsModel


def measure(
    model: MemslotsModel,
    tasks: str,
    rates: str | None,
    baselines: str | None,
    sets: dict[str, list[str]],
    data_dir: str | None,
    samples: int,
    lengths: str | None,
    output: Path,
    finetuned_decoder: str | None = None,
    literals: Sequence[str] | None = None,
    examples: int | None = None,
    prompt: str | None = None,
    as_json: bool = False,
) -> None:
    """Runs the tasks and writes `output`, the same name with `.md`, and a folder of plots.

    Args:
        model: with its decoder.
        tasks: names, with commas between, as are rates, baselines and lengths.
        rates: numbers; all of the checkpoint's without.
        baselines: names; all that can be run without.
        sets: of each task, see `task_sources`.
        data_dir: folder with local copies of the sets.
        samples: most rows of a set.
        lengths: numbers; the paper's without.
        output: a `.json` file.
        finetuned_decoder: folder or repository, for the task roleplay.
        literals: names of what rides beside the slots; None leaves it to the checkpoint.
        examples: worked examples before each question; None chooses.
        prompt: "plain" or "chat" words; the checkpoint's own without.
        as_json: print the results as JSON in place of the table.

    Every sample's scores stand in `OUTPUT.partial.jsonl` as they come, from which a broken run goes
    on, and in `OUTPUT.samples.jsonl` when all is done.

    Raises:
        ValueError: names or numbers that are not known.
    """
    from memslots.evaluation.conditions import default_baselines
    from memslots.evaluation.report import write_results
    from memslots.evaluation.suite import evaluate_tasks
    from memslots.evaluation.tables import markdown, plot

    names = words(tasks)
    unasked = sorted(set(sets) - set(names))
    if unasked:
        raise ValueError(
            f"--data names {', '.join(unasked)}, which --tasks {tasks} does not measure."
        )
    read_beside(model, literals)
    partial = output.with_suffix(".partial.jsonl")
    results = evaluate_tasks(
        model,
        names,
        rates=numbers(rates, "--rates"),
        baselines=default_baselines() if baselines is None else words(baselines),
        data=sets,
        data_dir=data_dir,
        samples=samples,
        lengths=numbers(lengths, "--lengths"),
        progress=lambda line: err.print(line, style="dim", markup=False),
        finetuned_decoder=finetuned_decoder,
        examples=examples,
        prompt=prompt,
        partial=partial,
    )
    if literals is not None:
        results["literals"] = list(literals)
    if as_json:
        print_json(results)
    else:
        _show(results)
    for note in results["notes"]:
        err.print(note, style="dim", markup=False)
    write_results(output, results)
    output.with_suffix(".md").write_text(markdown(results), encoding="utf-8")
    plot(results, output.with_suffix(""))
    if partial.is_file():
        partial.replace(output.with_suffix(".samples.jsonl"))
    if not as_json:
        written = f"{output}, {output.with_suffix('.md')} and {output.with_suffix('')}/"
        out.print(written, markup=False)


def check_output(output: Path, force: bool, inputs: Sequence[str | Path] = ()) -> None:
    """Refuse, before anything is loaded, a file that results cannot be written to.

    Args:
        output: of the results.
        force: whether the results, and what goes beside them, may replace earlier ones.
        inputs: files that are read, which neither the results nor what goes beside them replace.

    Raises:
        ValueError: no `.json` file, no folder to write it in, a file of `inputs`, or one that is
            there already; a broken run's scores may be, since the run goes on from them.
    """
    if output.suffix != ".json":
        raise ValueError(f"--output {output}: name a .json file; table and plots go beside it.")
    endings = (".json", ".md", ".partial.jsonl", ".samples.jsonl")
    for ending in endings:
        not_replaced(output.with_suffix(ending), inputs, "--output")
    for ending in endings:
        goes_on = ending == ".partial.jsonl"
        new_file(output.with_suffix(ending), force or goes_on)


def _show(results: dict[str, Any]) -> None:
    """The tables of the Markdown, each condition named once, without columns that are empty."""
    from memslots.evaluation.tables import tables

    for table in tables(results["records"]):
        shown = [i for i in range(len(table.header)) if any(row[i] for row in table.rows)]
        grid = Table(title=table.title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False)
        for i in shown:
            grid.add_column(
                table.header[i], justify="left" if i in table.left else "right", overflow="fold"
            )
        before = None
        for row in table.rows:
            repeated = row[:2] == before
            grid.add_row(*("" if repeated and i < 2 else row[i] for i in shown))
            before = row[:2]
        out.print(grid)


def read_beside(model: MemslotsModel, literals: Sequence[str] | None) -> None:
    """Measure with these verbatim tokens, whatever the checkpoint says of them."""
    if literals is not None:
        model.processor.literals = list(literals)


def task_sources(arguments: Sequence[str]) -> dict[str, list[str]]:
    """`TASK=SET/SPLIT` and `TASK=FILE` arguments as the sources that each task is measured on.

    Raises:
        ValueError: no task, or neither a set and its split nor a file.
    """
    from memslots.data import named_source

    sets: dict[str, list[str]] = {}
    for argument in arguments:
        task, equals, source = argument.partition("=")
        if not equals:
            raise ValueError(
                f"--data {argument}: must be TASK=SET/SPLIT or TASK=FILE, for example "
                "qa=squad/train."
            )
        try:
            named_source(source)
        except ValueError as error:
            raise ValueError(f"--data {argument}: {error}") from error
        sets.setdefault(task, []).append(source)
    return sets
