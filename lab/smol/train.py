"""Trains the slots of `smol`: short segments and fine rates first, on a CPU or a GPU, resuming.

    python -m lab.smol.train OUTPUT --books FOLDER --minutes 100
    python -m lab.smol.train OUTPUT --tokens FOLDER --minutes 9 --device cuda --scale 16

The first call writes the books' token ids as uint16 beside its checkpoint (10 MB), which `--tokens`
reads where there are no books. Every few minutes `last.pt` is written, and the same command goes on
from it; beside it the weights alone in bfloat16, `slots-*.safetensors`, small enough to be carried
and committed, from which `--start` begins with a new optimizer. The curve is in `curve.jsonl`.
docs/log.md says what was tried and what came of it, README.md here how a lent GPU is used.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import random
import re
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader, Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from lab.smol import factbook, wordnet
from lab.smol.compiled import compile_layers
from lab.smol.slots import Scores, Slots
from lab.smol.tasks import (
    CLOZE,
    COMPLETE,
    FACTS,
    NOUNS,
    RECALL,
    REPEAT,
    SEGMENTS,
    Rows,
    Tasks,
)
from memslots.smollm2 import smollm2
from memslots.writing import whole_file


class Phase(NamedTuple):
    """What is drawn from a step on.

    Args:
        step: the first one.
        tokens: of a segment.
        segments: of a step, times `--scale`.
        rates: drawn from, one a step.
        tasks: taken in turn, one a step.
        texts: segments of a text, drawn from, one a step.
    """

    step: int
    tokens: int
    segments: int
    rates: tuple[int, ...]
    tasks: tuple[str, ...]
    texts: tuple[int, ...] = SEGMENTS


LONG_TEXTS = (1, 1, 2, 3, 4, 6, 12)
"""Segments of a text, up to those of a page."""

SCHEDULE = (
    Phase(0, 8, 64, (2,), (REPEAT,)),
    Phase(40, 16, 40, (2,), (REPEAT,)),
    Phase(120, 16, 40, (2, 4), (REPEAT,)),
    Phase(260, 32, 24, (2, 4, 4, 4), (REPEAT,)),
    Phase(420, 64, 12, (2, 4, 4, 4, 4), (REPEAT,)),
    Phase(700, 64, 12, (2, 4, 4), (REPEAT, FACTS, COMPLETE, REPEAT, FACTS, RECALL, REPEAT, CLOZE)),
    Phase(
        1872,
        64,
        12,
        (2, 4, 4, 8),
        (
            *(REPEAT, NOUNS, COMPLETE, CLOZE, REPEAT, FACTS),
            *(REPEAT, NOUNS, COMPLETE, CLOZE, REPEAT, RECALL),
        ),
        LONG_TEXTS,
    ),
    Phase(
        3448,
        64,
        12,
        (2, 4, 4, 8),
        (
            *(REPEAT, NOUNS, COMPLETE, CLOZE, REPEAT, FACTS, COMPLETE),
            *(REPEAT, NOUNS, COMPLETE, CLOZE, REPEAT, FACTS, RECALL),
        ),
        LONG_TEXTS,
    ),
    Phase(
        6184,
        64,
        12,
        (2, 4, 4, 4, 8),
        (
            *(REPEAT, NOUNS, REPEAT, CLOZE, COMPLETE, RECALL, REPEAT),
            *(FACTS, REPEAT, NOUNS, CLOZE, COMPLETE, REPEAT, RECALL),
        ),
        LONG_TEXTS,
    ),
)
"""Short segments first: with 64 tokens from the start a model stands still (docs/log.md)."""

WARM_UP = 30
BETAS = (0.95, 0.99)
"""Of AdamW: steps differ in task and rate, so the mean is over more of them than one round."""
MOST_SCALED = 4.0
"""Times a step's gradient, at most, where its norm is below that of others: what follows a text."""

PROSE_TIMES = 4
SEGMENTS_HELD_OUT = 24
PART_BYTES = 15 * 2**20


class Steps(Dataset):
    """What a step trains on: a function of its number, so a resumed run draws as an unbroken one.

    Args:
        tasks: that rows are drawn from.
        scale: times the segments of a phase.
    """

    def __init__(self, tasks: Tasks, scale: int):
        self.tasks, self.scale = tasks, scale

    def __getitem__(self, step: int) -> tuple[Phase, str, int, Rows]:
        """The phase, the task, the rate and the rows of a step."""
        phase = next(phase for phase in reversed(SCHEDULE) if step >= phase.step)
        draw = random.Random(step)
        rate, task = draw.choice(phase.rates), phase.tasks[step % len(phase.tasks)]
        segments = max(1, phase.segments * self.scale)
        return phase, task, rate, self.tasks.rows(task, segments, phase.tokens, draw, phase.texts)

    def from_step(self, step: int, workers: int) -> Iterator[tuple[Phase, str, int, Rows]]:
        """All steps from one on, drawn by processes beside this one where there are `workers`."""
        numbers = range(step, 2**31)
        loader = DataLoader(self, None, sampler=numbers, num_workers=workers, collate_fn=unchanged)
        return iter(loader)


def unchanged(drawn: Any) -> Any:
    """A step as it was drawn."""
    return drawn


def texts_of(folder: Path, split: str) -> Iterator[str]:
    """The books of a split; to train on also GSM8K's problems and speeches, where these are."""
    with gzip.open(folder / f"books-{split}.jsonl.gz", "rt", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)["text"]
    problems = folder / "gsm8k-train.jsonl.gz"
    if split == "train" and problems.is_file():
        with gzip.open(problems, "rt", encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines]
        told = (f"{row['question']}\n{row['answer'].partition('####')[0]}" for row in rows)
        yield "\n".join(re.sub(r"<<.*?>>", "", text) for text in told)
    if split == "train":
        for file in sorted((folder / "sotu").glob("*.txt")):
            yield file.read_text(encoding="utf-8").strip()


def token_ids(books: Path, tokens: Path, split: str) -> torch.Tensor:
    """The ids of a split's texts, one after another, each ended by EOS; written once as uint16."""
    file = tokens / f"{split}.npy"
    if not file.is_file():
        tokenizer = AutoTokenizer.from_pretrained(smollm2())
        ids: list[int] = []
        for text in texts_of(books, split):
            ids += tokenizer(text, add_special_tokens=False)["input_ids"]
            ids.append(tokenizer.eos_token_id)
        tokens.mkdir(parents=True, exist_ok=True)
        np.save(file, np.array(ids, dtype=np.uint16))
    return torch.from_numpy(np.load(file).astype(np.int64))


def save_slots(weights: Mapping[str, torch.Tensor], folder: Path, step: int, seen: int) -> None:
    """Weights in bfloat16, in files of at most 15 MiB."""
    files: list[dict[str, torch.Tensor]] = [{}]
    room = PART_BYTES
    for name, weight in weights.items():
        kept = weight.detach().to("cpu", torch.bfloat16).contiguous()
        if kept.nbytes > room and files[-1]:
            files.append({})
            room = PART_BYTES
        files[-1][name] = kept
        room -= kept.nbytes
    told = {"format": "pt", "step": str(step), "seen": str(seen)}  # transformers wants the format
    for number, part in enumerate(files):
        with whole_file(folder / f"slots-{number}.safetensors") as draft:
            save_file(part, draft, metadata=told)


def load_slots(folder: Path) -> tuple[dict[str, torch.Tensor], int, int]:
    """What `save_slots` wrote, in float32, with the step and the tokens seen.

    Raises:
        FileNotFoundError: nothing is there.
    """
    weights: dict[str, torch.Tensor] = {}
    told = {"step": "0", "seen": "0"}
    files = sorted(folder.glob("slots-*.safetensors"))
    if not files:
        raise FileNotFoundError(f"{folder} holds no slots-*.safetensors; name a run's folder.")
    for file in files:
        with safe_open(file, "pt") as opened:
            told = opened.metadata()
            weights |= {name: opened.get_tensor(name).float() for name in opened.keys()}  # noqa: SIM118
    return weights, int(told["step"]), int(told["seen"])


def load_trained(slots: Slots, weights: dict[str, torch.Tensor], file: Path) -> None:
    """Loads exactly what is trained.

    Raises:
        ValueError: other names, as an earlier version of this module has.
    """
    trained = slots.trained().keys()
    if weights.keys() != trained:
        different = sorted(weights.keys() ^ trained)
        raise ValueError(
            f"{file} holds weights of other names ({different[0]} and {len(different) - 1} more). "
            "Begin with --start from slots-*.safetensors of this version."
        )
    slots.load_state_dict(weights, strict=False)


def scale_gradients(weights: list[nn.Parameter], norm: float) -> None:
    """Gives all gradients together this norm, but never scales them up by more than MOST_SCALED."""
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    total = nn.utils.get_total_norm(gradients)
    factor = (norm / (total + 1e-6)).clamp(max=MOST_SCALED)
    torch._foreach_mul_(gradients, factor)


def train_step(
    slots: Slots,
    optimizer: torch.optim.Optimizer,
    task: str,
    rows: Rows,
    rate: int,
    scored: float,
) -> Scores:
    """One step of a task; `scored` is how many tokens count, as a share of those of a full step."""
    # A step of few scored tokens is noise at the full rate (docs/log.md).
    weight = min(1.0, math.sqrt(scored))
    if task == REPEAT:
        scores = slots.reconstruct(rows.ids, rate)
    else:
        scores = slots.complete(**rows._asdict(), rate=rate)
    optimizer.zero_grad()
    (weight * scores.loss).backward()
    scale_gradients(list(slots.trained().values()), weight)
    optimizer.step()
    return scores


def pieces(ids: torch.Tensor, starts: list[int], first: int, length: int) -> torch.Tensor:
    """`(starts, length)` ids, `first` after each start."""
    return torch.stack([ids[start + first : start + first + length] for start in starts])


@torch.no_grad()
def held_out(
    slots: Slots,
    ids: torch.Tensor,
    world: list[factbook.Country],
    words: list[wordnet.Noun],
    tokenizer: PreTrainedTokenizerBase,
    device: str,
) -> dict[str, list[float]]:
    """Nats a token and share right on unseen books: `r4/64` reconstructs 64 tokens at rate 4."""
    starts = [i * 2000 for i in range(SEGMENTS_HELD_OUT)]
    figures = {}
    for rate, length in ((2, 64), (4, 64), (8, 64)):
        scores = slots.reconstruct(pieces(ids, starts, 0, length).to(device), rate)
        figures[f"r{rate}/{length}"] = [scores.nats, scores.right]
    before, after = (pieces(ids, starts, first, 64).to(device) for first in (0, 64))
    for name, scores in (
        ("after none", slots.without_memory(after)),
        ("after text", slots.without_memory(after, before)),
        *((f"after r{rate}", slots.complete(before, after, rate)) for rate in (2, 4)),
    ):
        figures[name] = [scores.nats, scores.right]
    for rate in (2, 4):
        # The control: another passage's memory.
        scores = slots.complete(before.roll(1, 0), after, rate)
        figures[f"after another r{rate}"] = [scores.nats, scores.right]
    tasks = Tasks(ids, world, words, tokenizer)
    short = ((task, 60, SEGMENTS) for task in (RECALL, CLOZE, FACTS))
    for task, segments, lengths in (*short, (NOUNS, 192, (12,))):
        rows = tasks.rows(task, segments, 64, random.Random(0), lengths).to(device)
        asked = rows._replace(distilled=0.0)._asdict()
        told = {name: asked[name] for name in ("following", "scored", "before", "shown")}
        for name, text in (("none", None), ("text", rows.ids)):
            scores = slots.without_memory(**told, ids=text)
            figures[f"{task} {name}"] = [scores.nats, scores.right]
        for rate in (2, 4, 8):
            scores = slots.complete(**asked, rate=rate)
            figures[f"{task} {rate}"] = [scores.nats, scores.right]
        scores = slots.complete(**asked | {"ids": rows.ids.roll(1, 0)}, rate=2)
        figures[f"{task} another"] = [scores.nats, scores.right]
    return figures


def train(options: argparse.Namespace) -> None:
    """Trains until the minutes are over."""
    torch.set_num_threads(options.threads)
    torch.set_float32_matmul_precision("high")  # TF32 beside a decoder in bfloat16, on a GPU
    options.output.mkdir(parents=True, exist_ok=True)
    folder = options.tokens or options.output
    texts, unseen = (token_ids(options.books, folder, split) for split in ("train", "validation"))
    name = options.decoder or smollm2()
    decoder = AutoModelForCausalLM.from_pretrained(name, dtype=torch.bfloat16)
    decoder = decoder.to(options.device).eval().requires_grad_(False)
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(name)
    slots = Slots(decoder, tokenizer, options.layers, options.rank)
    if options.device != "cpu":
        compile_layers(decoder.model)
        compile_layers(slots.encoder)
    world = factbook.load(options.factbook, folder / "factbook.json")
    known = [country for country in world if not country.held_out]
    unknown = [country for country in world if country.held_out]
    prose = [f"{text}\n\n" for country in known for text in country.prose]
    prose_ids = tokenizer(prose, add_special_tokens=False)["input_ids"]
    encyclopedic = torch.tensor([token for ids in prose_ids for token in ids])
    # A sixth of all texts, read several times a book's number of times.
    texts = torch.cat([texts, *[encyclopedic] * PROSE_TIMES])
    nouns = wordnet.load(options.wordnet, folder / "wordnet.json")
    taught = [noun for noun in nouns if not noun.held_out]
    unknown_nouns = [noun for noun in nouns if noun.held_out]
    steps = Steps(Tasks(texts, known, taught, tokenizer), options.scale)
    weights = slots.trained()
    optimizer = torch.optim.AdamW(
        weights.values(), lr=options.learning_rate, betas=BETAS, weight_decay=0.01, fused=True
    )
    checkpoint = options.output / "last.pt"
    step = seen = 0
    begun = {"starting from step": 0, "seen": 0}
    if checkpoint.is_file():
        saved = torch.load(checkpoint, map_location=options.device)
        load_trained(slots, saved["slots"], checkpoint)
        optimizer.load_state_dict(saved["optimizer"])
        step, seen = saved["step"], saved["seen"]
        begun = {"resuming from step": step, "seen": seen}
    elif options.start is not None:
        started_from, step, seen = load_slots(options.start)
        load_trained(slots, started_from, options.start)
        begun = {"starting from step": step, "seen": seen}
    say(options.output, begun | {"device": options.device})
    first_step = step

    def save() -> None:
        save_slots(weights, options.output, step, seen)
        kept = {name: weight.detach() for name, weight in weights.items()}
        state = optimizer.state_dict()
        with whole_file(checkpoint) as draft:
            torch.save({"slots": kept, "optimizer": state, "step": step, "seen": seen}, draft)

    def measure() -> None:
        figures = held_out(slots, unseen, unknown, unknown_nouns, tokenizer, options.device)
        rounded = {key: [round(value, 3) for value in pair] for key, pair in figures.items()}
        say(options.output, {"step": step, "seen": seen, "held out": rounded})

    started = last_saved = time.monotonic()
    ends = started + 60 * options.minutes
    recent: dict[str, list[torch.Tensor]] = defaultdict(list)
    for phase, task, rate, drawn in steps.from_step(step, options.workers):
        if time.monotonic() >= ends or step - first_step == options.steps:
            break
        left = (ends - time.monotonic()) / 60
        for group in optimizer.param_groups:
            falling = min(1.0, left / options.decay) if options.decay else 1.0
            group["lr"] = (
                options.learning_rate * min(1.0, (step + 1 - first_step) / WARM_UP) * falling
            )
        rows = drawn.to(options.device)
        read = phase.segments * options.scale * phase.tokens
        scores = train_step(slots, optimizer, task, rows, rate, int(drawn.scored.sum()) / read)
        step += 1
        seen += rows.ids.numel()
        recent[f"{task} {rate}"].append(torch.stack(scores[1:3]))
        if step % options.log_every == 0:
            means = {
                task: [round(mean, 3) for mean in torch.stack(values).mean(dim=0).tolist()]
                for task, values in sorted(recent.items())
            }
            minutes = round((time.monotonic() - started) / 60, 1)
            say(
                options.output,
                {"step": step, "tokens": phase.tokens, "seen": seen, "minutes": minutes, **means},
            )
            recent.clear()
        if step % (options.measure_every * options.log_every) == 0:
            measure()
        if time.monotonic() - last_saved > options.save_seconds:
            save()
            last_saved = time.monotonic()
    save()
    if step % (options.measure_every * options.log_every):
        measure()


def say(output: Path, line: dict[str, Any]) -> None:
    """A line of the curve, on the terminal and in `curve.jsonl`."""
    text = json.dumps(line)
    print(text, flush=True)
    with (output / "curve.jsonl").open("a", encoding="utf-8") as file:
        file.write(text + "\n")


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("output", type=Path, help="Folder of the checkpoint and the curve.")
    parser.add_argument("--books", type=Path, help="Folder with books-train.jsonl.gz.")
    parser.add_argument("--tokens", type=Path, help="Folder of their token ids; OUTPUT without.")
    parser.add_argument("--decoder", help="Folder of the decoder; SmolLM2 without.")
    parser.add_argument("--start", type=Path, help="Folder of slots-*.safetensors to begin with.")
    parser.add_argument("--minutes", type=float, default=60.0, help="Time to train.")
    parser.add_argument("--steps", type=int, help="At most, for a trial.")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--decay", type=float, default=0.0, help="Minutes of falling rate at end.")
    parser.add_argument("--device", default="cpu", help="cpu or cuda.")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--scale", type=int, default=1, help="Times the segments of a step.")
    parser.add_argument("--layers", type=int, default=8, help="Layers of the decoder that encode.")
    parser.add_argument("--rank", type=int, default=48, help="Of their LoRA.")
    parser.add_argument("--factbook", type=Path, help="Folder of the profiles, the first time.")
    parser.add_argument("--wordnet", type=Path, help="Folder of WordNet, the first time.")
    parser.add_argument("--workers", type=int, default=0, help="Processes that draw the steps.")
    parser.add_argument("--measure-every", type=int, default=5, help="Lines between two measures.")
    parser.add_argument("--log-every", type=int, default=20, help="Steps between two lines.")
    parser.add_argument("--save-seconds", type=float, default=240.0, help="Between checkpoints.")
    return parser.parse_args(given)


if __name__ == "__main__":
    train(arguments())
