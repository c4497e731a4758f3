"""How compression grows with the text, and what a second question about a memory costs.

    python benchmarks/scaling.py
    python benchmarks/scaling.py --device cuda --preset gpt2-large-llama3

Times are of one text, tokenised, cut and encoded. The most memory is told apart: token ids as the
spans hold them, slots, and what is beyond both, which should not grow once a pass is full.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from measuring import DTYPES, Results, measure, options_of, peak_bytes, write_results
from shapes import QUESTION, build, context, described
from table_a7 import memory_positions, processor_of

from memslots import Memory, MemslotsModel, prefill

RATE = 16
MOST = 1_048_576
"""Tokens of the longest text."""
EXPONENT = 1.05
FLAT = 1.25
"""Most growth of the memory beyond ids and slots, from a full pass to the longest text."""
BATCH_TOKENS = 16384
"""Of a full pass; the default of `compress`."""
QUESTIONS = (1, 2, 10, 100)


def lengths_up_to(most: int, least: int = 1024) -> list[int]:
    """Lengths from `least` on, each four times the one before, and `most` at the end."""
    found = []
    while least < most:
        found.append(least)
        least *= 4
    return [*found, most]


def exponent(points: Sequence[tuple[float, float]]) -> float:
    """Slope of the line through points on two logarithmic axes, by least squares."""
    x = [math.log(length) for length, _ in points]
    y = [math.log(value) for _, value in points]
    middle = sum(x) / len(x), sum(y) / len(y)
    above = sum((a - middle[0]) * (b - middle[1]) for a, b in zip(x, y, strict=True))
    return above / sum((a - middle[0]) ** 2 for a in x)


def bytes_of_ids(model: MemslotsModel, text: str) -> int:
    """Bytes of a text's token ids as `segment` holds them: lists of Python integers."""
    each = sys.getsizeof(10**6)
    return sum(sys.getsizeof(span.ids) + each * len(span.ids) for span in model.segment([text])[0])


def measure_length(model: MemslotsModel, tokens: int, repeats: int) -> Results:
    """Seconds and most memory of compressing one text."""
    device = model.device.type
    text = context(tokens)
    made: list[Memory] = []

    def run() -> None:
        made[:] = [model.compress(text, rate=RATE, progress=False)]

    seconds = measure({"compress": run}, repeats, device)["compress"]["total"]
    memory = made.pop()
    peak = peak_bytes(run, device)
    ids = bytes_of_ids(model, text) if device == "cpu" else 0  # a GPU's peak is of tensors alone
    return {
        "tokens": tokens,
        "seconds": seconds,
        "slots": memory.slots.shape[0],
        "text_bytes": len(text.encode()),
        "ids_bytes": ids,
        "slots_bytes": memory.nbytes,
        "peak_bytes": peak,
        "beyond_bytes": None if peak is None else peak - ids - memory.nbytes,
    }


class PositionCount:
    """Counts what a decoder and an encoder are given to read, while it is open.

    Args:
        model: the compressor.
    """

    def __init__(self, model: MemslotsModel):
        self.model = model
        self.encoder_calls = 0
        self.decoder_positions = 0

    def __enter__(self) -> PositionCount:
        if not self.model.has_decoder:
            raise ValueError("there is no decoder to count; see attach_decoder.")
        body = self.model.decoder.base_model
        self._hooks = [
            self.model.encoder.register_forward_pre_hook(self._encoder, with_kwargs=True),
            body.register_forward_pre_hook(self._decoder, with_kwargs=True),
        ]
        return self

    def __exit__(self, *error) -> None:
        for hook in self._hooks:
            hook.remove()

    def _encoder(self, module, arguments, keywords) -> None:
        self.encoder_calls += 1

    def _decoder(self, module, arguments, keywords) -> None:
        inputs = keywords.get("inputs_embeds")
        inputs = keywords["input_ids"] if inputs is None else inputs
        self.decoder_positions += inputs.shape[0] * inputs.shape[1]


def measure_questions(model: MemslotsModel, tokens: int, repeats: int) -> list[Results]:
    """Seconds to the first token of so many questions about one memory, and what was read.

    Each number of questions is asked in two ways: of the memory, which every row then reads, and of
    a prefix, whose making counts.

    Args:
        model: with its decoder.
        tokens: of the one text.
        repeats: timed runs.
    """
    memory = model.compress(context(tokens), rate=RATE)
    question = len(processor_of(model).prompt(question=QUESTION).after)

    def answer(count: int, shared: bool) -> None:
        read = prefill(model, memory) if shared else memory
        model.generate(memory=read, question=[QUESTION] * count, max_new_tokens=1, do_sample=False)

    ways = {"anew": False, "shared": True}
    runs = {
        f"{way} {count}": (lambda count=count, shared=shared: answer(count, shared))
        for count in QUESTIONS
        for way, shared in ways.items()
    }
    seconds = measure(runs, repeats, model.device.type)
    rows = []
    for count in QUESTIONS:
        row: Results = {"questions": count}
        for way, shared in ways.items():
            with PositionCount(model) as counted:
                answer(count, shared)
            row[f"{way}_seconds"] = seconds[f"{way} {count}"]["total"]
            row[f"{way}_encoder_calls"] = counted.encoder_calls
            row[f"{way}_positions"] = counted.decoder_positions
        row["positions_if_read_once"] = memory_positions(model, memory) + (count - 1) * question
        rows.append(row)
    return rows


def grows_by(rows: list[Results]) -> float | None:
    """How many times more memory beyond ids and slots the longest text takes than a full pass."""
    full = [row for row in rows if row["tokens"] >= BATCH_TOKENS and row["beyond_bytes"]]
    return max(0.0, full[-1]["beyond_bytes"] / full[0]["beyond_bytes"]) if len(full) > 1 else None


def bars(results: Results) -> list[Results]:
    """Linear time, flat memory, and questions that read a memory no second time."""
    rows, asked = results["rows"], results["questions"]
    found = [
        {
            "bar": f"exponent of compression time, {rows[0]['tokens']:,} to "
            f"{rows[-1]['tokens']:,} tokens (at most)",
            "wanted": EXPONENT,
            "found": results["exponent"],
            "at_most": True,
        }
    ]
    if results["grows_by"] is not None:
        found.append(
            {
                "bar": "growth of memory beyond ids and slots, from a full pass to the longest "
                "text (at most)",
                "wanted": FLAT,
                "found": results["grows_by"],
                "at_most": True,
            }
        )
    last = asked[-1]
    found += [
        {
            "bar": f"encoder passes for {last['questions']} questions on one memory (at most)",
            "wanted": 0,
            "found": last["anew_encoder_calls"] + last["shared_encoder_calls"],
            "at_most": True,
        },
        {
            "bar": f"prompt tokens read for {last['questions']} questions over those of a memory "
            "read once (at most)",
            "wanted": 1,
            "found": last["shared_positions"] / last["positions_if_read_once"],
            "at_most": True,
        },
    ]
    return found


def shown(results: Results, pictures: Path) -> Results:
    """What `scaling.md.jinja` shows beside the results; draws its plot."""
    from plotting import growth

    points = [(row["tokens"], row["seconds"]) for row in results["rows"]]
    linear = [(tokens, points[-1][1] * tokens / points[-1][0]) for tokens, _ in points]
    lines = {"measured": points, "linear": linear}
    growth(lines, "tokens", "seconds", pictures / "scaling.png")
    return {"rate": RATE, "batch_tokens": BATCH_TOKENS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--most", type=int, default=MOST, help="tokens of the longest text")
    parser.add_argument("--asked-tokens", type=int, default=2048, help="of the text asked about")
    options = options_of(parser)
    on_cpu = options.device == "cpu"
    asked_preset = options.preset
    if on_cpu and options.preset == "small":
        options.preset = "thin"  # so that long texts take minutes, not hours
    dtype = DTYPES[options.device]
    model = build(options.preset, options.device, dtype)
    rows = [measure_length(model, n, options.repeats) for n in lengths_up_to(options.most)]
    if asked_preset != options.preset:
        model = build(asked_preset, options.device, dtype)
    results: Results = {
        "rows": rows,
        "exponent": exponent([(row["tokens"], row["seconds"]) for row in rows]),
        "grows_by": grows_by(rows),
        "questions": measure_questions(model, options.asked_tokens, options.repeats),
        "asked_tokens": options.asked_tokens,
        "asked_preset": asked_preset,
        "shapes": described(options.preset),
    }
    print(write_results("scaling", results, options))


if __name__ == "__main__":
    main()
