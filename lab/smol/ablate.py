"""What the start, the order of lengths and each task are worth: PCC's table 6 on SmolLM2, in small.

    python -m lab.smol.ablate runs/ablations --tokens FOLDER --page docs/ablations.md

Every row trains slots of rate 2 from nothing, with the same number of steps and the same draws:
first texts, then questions about countries. What is left out is named; all else is
`lab.smol.train`'s.
`--tokens` is the folder that `lab.smol.train` reads. Rows that were measured are kept.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from lab.pages import render
from lab.smol import factbook
from lab.smol.slots import Scores, Slots
from lab.smol.tasks import COMPLETE, FACTS, REPEAT, Tasks
from lab.smol.train import pieces, token_ids, train_step
from lab.tables.quoted import quoted
from memslots.evaluation.intervals import with_interval
from memslots.smollm2 import smollm2
from memslots.start_weights import draw_linear

RATE = 2
FEW, SOME, MANY = 8, 16, 64
"""Tokens of a segment: at first, then, and of a text with questions."""
STEP_TOKENS = 384
WARM_UP = 10


class Row(NamedTuple):
    """A row of the table.

    Args:
        name: what is left out.
        quoted: of PCC's table 6.
        tasks: of the steps on texts, in turn; none where there are no such steps.
        lengths: tokens of a segment, in the first third of these steps and in the others.
        drawn: whether the converter starts from random weights, as PCC's does.
        marked: whether `<MEM>` and `</MEM>` stand around the slots.
    """

    name: str
    quoted: str | None = None
    tasks: tuple[str, ...] = (REPEAT, COMPLETE)
    lengths: tuple[int, int] = (FEW, SOME)
    drawn: bool = False
    marked: bool = True


ROWS = (
    Row("the whole recipe", "whole"),
    Row("without pre-training", "no_pretraining", ()),
    Row("without reconstruction", "no_reconstruction", (COMPLETE,)),
    Row("without completion", "no_completion", (REPEAT,)),
    Row("without the start in the decoder's embeddings", drawn=True),
    Row("without short segments first", lengths=(MANY, MANY)),
    Row("without `<MEM>` and `</MEM>`", "no_markers", marked=False),
)


def draw_anew(slots: Slots) -> None:
    """PCC's converter: what it gives has the embeddings' size and no direction yet."""
    nn.init.zeros_(slots.converter.skip.weight)
    draw_linear(slots.converter.down, slots.table.float().std().item() / math.sqrt(0.425))


def train_row(slots: Slots, tasks: Tasks, row: Row, steps: tuple[int, int]) -> None:
    """Trains as a row says: so many steps on texts, then so many on questions."""
    if row.drawn:
        draw_anew(slots)
    optimizer = torch.optim.AdamW(
        slots.trained().values(), lr=1e-3, betas=(0.9, 0.98), weight_decay=0.01
    )
    on_texts, on_questions = steps
    first = 0 if row.tasks else on_texts
    for step in range(first, on_texts + on_questions):
        draw = random.Random(step)
        if step < on_texts:
            task = row.tasks[step % len(row.tasks)]
            length = row.lengths[3 * step >= on_texts]
        else:
            task, length = FACTS, MANY
        left = on_texts + on_questions - step
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(1.0, (step + 1 - first) / WARM_UP, left / on_questions)
        rows = tasks.rows(task, STEP_TOKENS // length, length, draw, (1,))
        scored = int(rows.scored.sum()) / STEP_TOKENS
        scores = train_step(slots, optimizer, task, rows, RATE, scored)
        if step % 10 == 9:
            print(f"{row.name}: step {step + 1}, {task} {scores.nats:.2f} nats", flush=True)


@torch.no_grad()
def measure(slots: Slots, tasks: Tasks, count: int) -> dict[str, list[list[float]]]:
    """Of so many unseen texts and questions, one by one: `[nats a token, share right, tokens]`.

    Returns:
        `repeat`, segments of 16 tokens; `memory`, `text` and `none`, the same questions.
    """

    def of(scores: Scores, tokens: int) -> list[float]:
        return [scores.nats, scores.right, tokens]

    starts = [i * 2000 for i in range(count)]
    segments = pieces(tasks.texts, starts, 0, SOME).split(1)
    figures = {"repeat": [of(slots.reconstruct(ids, RATE), SOME + 1) for ids in segments]}
    figures |= {name: [] for name in ("memory", "text", "none")}
    for number in range(count):
        rows = tasks.rows(FACTS, 1, MANY, random.Random(f"ablate {number}"), (1,))
        asked = rows._replace(distilled=0.0)._asdict()
        told = {name: asked[name] for name in ("following", "scored", "before", "shown")}
        tokens = int(rows.scored.sum())
        figures["memory"].append(of(slots.complete(**asked, rate=RATE), tokens))
        figures["text"].append(of(slots.without_memory(**told, ids=rows.ids), tokens))
        figures["none"].append(of(slots.without_memory(**told), tokens))
    return figures


def summary(figures: dict[str, list[list[float]]]) -> dict[str, Any]:
    """A row's figures with intervals over segments and over texts with questions."""

    def mean(values: Sequence[Sequence[float]], at: int) -> float:
        return sum(v[at] * v[2] for v in values) / sum(v[2] for v in values)

    def share(asked: Sequence[Sequence[Sequence[float]]]) -> float:
        memory, text, none = (mean(side, 0) for side in zip(*asked, strict=True))
        return (none - memory) / (none - text)

    asked = list(zip(figures["memory"], figures["text"], figures["none"], strict=True))
    return {
        "right": with_interval(figures["repeat"], lambda values: mean(values, 1)),
        "nats": with_interval(figures["memory"], lambda values: mean(values, 0)),
        "share": with_interval(asked, share),
        "ends": [mean(figures[name], 0) for name in ("text", "none")],
        "n": len(asked),
    }


def write_page(folder: Path, page: Path) -> None:
    """Writes the page from the rows that are there.

    Raises:
        ValueError: there are none.
    """
    files = [(row, folder / f"{number}.json") for number, row in enumerate(ROWS)]
    measured = [(row, json.loads(file.read_text("utf-8"))) for row, file in files if file.is_file()]
    if not measured:
        raise ValueError(f"{folder} has no rows yet.")
    theirs = {row["name"]: row["f1"] for row in quoted("pcc_table_6")["rows"]}
    rows = [
        {"name": row.name, "f1": theirs.get(row.quoted, ""), **kept, **summary(kept["figures"])}
        for row, kept in measured
    ]
    template = Path(__file__).with_name("ablations.md.jinja")
    text = render(template, rows=rows, step_tokens=STEP_TOKENS, segment=SOME)
    page.write_text(text.rstrip() + "\n", "utf-8")


def ablate(options: argparse.Namespace) -> None:
    """Trains and measures the rows that are not there yet, and writes the page."""
    torch.set_num_threads(options.threads)
    options.output.mkdir(parents=True, exist_ok=True)
    texts, unseen = (
        token_ids(options.tokens, options.tokens, split) for split in ("train", "validation")
    )
    name = options.decoder or smollm2()
    tokenizer = AutoTokenizer.from_pretrained(name)
    world = factbook.load(None, options.tokens / "factbook.json")
    taught, held_out = (
        Tasks(ids, [country for country in world if country.held_out == unknown], [], tokenizer)
        for ids, unknown in ((texts, False), (unseen, True))
    )
    for number, row in enumerate(ROWS):
        file = options.output / f"{number}.json"
        if file.is_file():
            before = json.loads(file.read_text("utf-8"))["steps"]
            if before != options.steps:
                raise ValueError(
                    f"{file} was trained for {before} steps, and now it is {options.steps}; give "
                    "those, or another folder."
                )
            continue
        decoder = AutoModelForCausalLM.from_pretrained(name, dtype=torch.bfloat16)
        decoder = decoder.eval().requires_grad_(False)
        torch.manual_seed(0)
        slots = Slots(decoder, tokenizer, options.layers, marked=row.marked)
        started = time.process_time()
        train_row(slots, taught, row, tuple(options.steps))
        seconds = round(time.process_time() - started)
        figures = measure(slots, held_out, options.count)
        kept = {"steps": options.steps, "cpu_seconds": seconds, "figures": figures}
        file.write_text(json.dumps(kept), "utf-8")
        write_page(options.output, options.page)
    write_page(options.output, options.page)


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("output", type=Path, help="Folder of the rows.")
    parser.add_argument("--tokens", type=Path, required=True, help="Of lab.smol.train.")
    parser.add_argument("--page", type=Path, required=True, help="Markdown to write.")
    parser.add_argument("--decoder", help="Folder of the decoder; SmolLM2 without.")
    parser.add_argument("--layers", type=int, default=8, help="Layers of the decoder that encode.")
    parser.add_argument(
        "--steps", type=int, nargs=2, default=[80, 40], help="On texts, and on questions."
    )
    parser.add_argument("--count", type=int, default=64, help="Held-out texts of each task.")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser.parse_args(given)


if __name__ == "__main__":
    ablate(arguments())
