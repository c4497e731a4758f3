"""Runs methods over the samples; a figure is on disk as soon as it is measured.

python -m lab.compare runs/compare/samples.jsonl runs/compare/figures.jsonl --decoder FOLDER \
        --methods text,none,cut --rates 2,4,8
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lab.compare.methods import METHODS, ONE_RATE, TOOLS
from lab.compare.reading import NEW_TOKENS, Reader, ask
from lab.compare.samples import read_samples


def compare(options: argparse.Namespace) -> None:
    """Measures what is not on disk yet."""
    torch.set_num_threads(options.threads)
    samples = read_samples(options.samples)
    methods, of_checkpoint = dict(METHODS), {}
    if options.checkpoint:
        from lab.compare.memory import memory_methods
        from memslots.cli.options import resolve_model
        from memslots.modeling import MemslotsModel

        name = resolve_model(options.checkpoint)
        compressor = MemslotsModel.from_pretrained(name, dtype=torch.bfloat16)
        decoder, fingerprint = compressor.decoder, compressor.fingerprint
        of_checkpoint = memory_methods(compressor)
        methods |= of_checkpoint
    else:
        decoder = AutoModelForCausalLM.from_pretrained(options.decoder, dtype=torch.bfloat16)
        fingerprint = ""
    decoder.eval()
    reader = Reader(decoder, AutoTokenizer.from_pretrained(options.decoder))
    names = options.methods.split(",")
    if unknown := [name for name in names if name not in methods]:
        sys.exit(f"unknown methods {unknown}; there are {', '.join(methods)}.")
    measured = _measured(options.figures, fingerprint)
    todo = [
        (name, rate, i)
        for i in range(len(samples))
        for name in names
        for rate in ([1] if name in ONE_RATE else options.rates)
        if (name, rate, i) not in measured
    ]
    started = time.monotonic()
    with options.figures.open("a", encoding="utf-8") as file:
        for done, (name, rate, i) in enumerate(todo, 1):
            sample = samples[i]
            answers = sample.task == "question"
            try:
                figures = ask(
                    reader,
                    lambda: methods[name](reader, sample, rate),  # noqa: B023
                    sample.answer,
                    NEW_TOKENS if answers else 1,
                )
            except ValueError as error:
                if name not in TOOLS.split(","):
                    raise
                print(f"{name} at rate {rate} fails on sample {i}, left out: {error}", flush=True)
                continue
            record = {"method": name, "rate": rate, "sample": i, "task": sample.task}
            record |= {"answer": sample.answer.strip(), **figures}
            record["fingerprint"] = fingerprint if name in of_checkpoint else ""
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
            file.flush()
            if done % 20 == 0 or done == len(todo):
                left = (time.monotonic() - started) / done * (len(todo) - done)
                print(f"{done} of {len(todo)}, {left / 60:.0f} min left", flush=True)


def _measured(figures: Path, fingerprint: str) -> set[tuple[str, int, int]]:
    """Method, rate and sample of what is on disk; another checkpoint's memories are dropped."""
    if not figures.is_file():
        return set()
    records = [json.loads(line) for line in figures.read_text(encoding="utf-8").splitlines()]
    kept = [record for record in records if record["fingerprint"] in ("", fingerprint)]
    if fingerprint and len(kept) < len(records):
        print(f"{len(records) - len(kept)} figures are another checkpoint's: measured again.")
        lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in kept)
        figures.write_text("".join(lines), encoding="utf-8")
    return {(record["method"], record["rate"], record["sample"]) for record in kept}


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("samples", type=Path, help="What lab.compare.samples wrote.")
    parser.add_argument("figures", type=Path, help="JSON lines to go on with.")
    parser.add_argument("--decoder", required=True, help="Folder of the decoder.")
    parser.add_argument("--checkpoint", help="Compressor for the methods memory and control.")
    parser.add_argument("--methods", default=TOOLS, help="Comma-separated.")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--rates",
        type=lambda text: [int(rate) for rate in text.split(",")],
        default=[2, 4, 8],
        help="Comma-separated.",
    )
    return parser.parse_args(given)


if __name__ == "__main__":
    compare(arguments())
