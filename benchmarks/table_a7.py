"""PCC's table A7: compression, prefill, decoding and the whole, from text and from memories.

    python benchmarks/table_a7.py
    python benchmarks/table_a7.py --device cuda --preset gpt2-large-llama3

Full text is given as token ids, ready made; memories go through `model.generate`, with all that it
does beside the decoder. Every position counts: BOS, slots, markers, question. Prefill is the time
to the first of 32 tokens. "Cached" is without the compression; from a prefix (`prefill`),
without the decoder's reading of the memory too.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from measuring import (
    DTYPES,
    Results,
    TokenClock,
    measure,
    options_of,
    peak_bytes,
    peak_that_fits,
    write_results,
)
from shapes import QUESTION, build, context, described

from memslots import Memory, MemslotsModel, prefill
from memslots.modeling.processing_memslots import MemslotsProcessor
from memslots.prefix import Prefix

NEW_TOKENS = 32

PAPER_ROWS = [(16, 1024), (32, 1024), (16, 2048), (8, 4096), (4, 8192)]
"""Batch and length of table A7."""

PEAK_LENGTH, PEAK_BATCHES = 8192, tuple(2**power for power in range(11))
"""Texts for figure A1, where full text ran out of an A100's 80 GB at 8 x 8192."""

CPU_ROWS = [(1, 1024), (2, 1024), (1, 2048), (1, 4096), (1, 8192)]

PAPER: dict[tuple[int, int], dict[str, tuple[float, float, float]]] = {
    (16, 1024): {
        "full text": (0, 1378.79, 1437.60),
        "rate 4": (604.71, 359.20, 956.97),
        "rate 16": (509.83, 100.95, 1090.76),
        "rate 128": (500.88, 35.87, 1051.63),
    },
    (32, 1024): {
        "full text": (0, 2774.99, 2372.02),
        "rate 4": (1189.60, 709.19, 1087.64),
        "rate 16": (998.91, 188.27, 1047.38),
        "rate 128": (975.19, 37.49, 1057.84),
    },
    (16, 2048): {
        "full text": (0, 2830.40, 2311.84),
        "rate 4": (1217.97, 718.31, 1037.90),
        "rate 16": (1025.82, 188.61, 1069.69),
        "rate 128": (1000.76, 37.30, 1059.60),
    },
    (8, 4096): {
        "full text": (0, 2910.01, 2320.38),
        "rate 4": (1257.87, 720.62, 1062.48),
        "rate 16": (1076.08, 189.72, 1068.69),
        "rate 128": (1047.36, 37.13, 1082.19),
    },
    (4, 8192): {
        "full text": (0, 3091.50, 2145.15),
        "rate 4": (1343.40, 730.81, 1084.96),
        "rate 16": (1145.68, 187.20, 1032.63),
        "rate 128": (1114.67, 36.75, 1058.20),
    },
}
"""Milliseconds of compression, prefill and decoding: GPT2-large, Llama-3-8B, A100 80GB."""

PREFILL_SHARE = 0.8
"""Least speed-up of a cached prefill, as a share of the ratio of positions, on a CPU."""


def processor_of(model: MemslotsModel) -> MemslotsProcessor:
    if not hasattr(model, "processor"):
        raise RuntimeError("shapes.build gives every model a processor.")
    return model.processor


def full_text_ids(model: MemslotsModel, texts: Sequence[str]) -> torch.Tensor:
    """Decoder ids `(texts, positions)` of BOS, text and question; texts of one length."""
    processor = processor_of(model)
    prompt = processor.prompt(question=QUESTION)
    rows = [[*prompt.before, *processor.decoder_text.encode(t), *prompt.after] for t in texts]
    return torch.tensor(rows, device=model.device)


def memory_positions(model: MemslotsModel, memory: Memory) -> int:
    """Decoder positions of BOS, slots, markers, literals and question; of the longest document."""
    prompt = processor_of(model).prompt(question=QUESTION)
    return max(model.memory_positions(memory)) + len(prompt.before) + len(prompt.after)


def answer_from_text(model: MemslotsModel, ids: torch.Tensor, new_tokens: int) -> dict[str, float]:
    """Seconds of "prefill" and "decode" of full text, by the decoder's own `generate`."""
    if not model.has_decoder:
        raise RuntimeError("shapes.build gives every model a decoder.")
    clock = TokenClock(str(ids.device.type))
    model.decoder.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=new_tokens,
        min_new_tokens=new_tokens,
        do_sample=False,
        stopping_criteria=[clock],
    )
    return clock.parts()


def answer_from_memory(
    model: MemslotsModel, memory: Memory | Prefix, new_tokens: int
) -> dict[str, float]:
    """Seconds of "prefill" and "decode" of memories; one question for all of them."""
    clock = TokenClock(model.device.type)
    model.generate(
        memory=memory,
        question=QUESTION,
        batch_size=len(memory),
        max_new_tokens=new_tokens,
        min_new_tokens=new_tokens,
        do_sample=False,
        stopping_criteria=[clock],
        stop_strings=None,  # a checkpoint's `answer_end` would make some answers shorter
    )
    return clock.parts()


def measure_row(
    model: MemslotsModel,
    batch: int,
    length: int,
    repeats: int,
    new_tokens: int = NEW_TOKENS,
    make_text: Callable[[int, int], str] = context,
) -> list[Results]:
    """The rows of one batch and length: full text, then every rate.

    Args:
        model: with its decoder.
        batch: texts.
        length: tokens of each.
        repeats: timed runs.
        new_tokens: that are generated.
        make_text: of so many tokens, and another one for another seed.
    """
    device = model.device.type
    texts = [make_text(length, seed) for seed in range(batch)]
    ids = full_text_ids(model, texts)
    rates = list(model.config.compression_rates)
    memories = {rate: model.compress(texts, rate=rate) for rate in rates}
    runs = {}
    if fits(model, ids):
        runs["full text"] = lambda: answer_from_text(model, ids, new_tokens)
    whole = dict(runs)
    prefixes = {rate: prefill(model, memory) for rate, memory in memories.items()}
    for rate, memory in memories.items():
        name = f"rate {rate}"
        runs[f"prefix {name}"] = lambda prefix=prefixes[rate]: answer_from_memory(
            model, prefix, new_tokens
        )
        runs[f"compress {name}"] = lambda rate=rate: compress(model, texts, rate)
        runs[name] = lambda memory=memory: answer_from_memory(model, memory, new_tokens)
        whole[name] = lambda rate=rate: answer_from_memory(
            model, model.compress(texts, rate=rate), new_tokens
        )
    seconds = measure(runs, repeats, device)
    prefix_bytes = {f"rate {rate}": prefix.nbytes for rate, prefix in prefixes.items()}
    prefixes.clear()
    runs.clear()  # they hold the prefixes, which are no part of what a run takes
    peaks = {name: peak_bytes(run, device) for name, run in whole.items()}
    rows = []
    for name in ["full text", *(f"rate {rate}" for rate in rates)]:
        positions = ids.shape[1]
        if name != "full text":
            positions = memory_positions(model, memories[int(name.split()[1])])
        row: Results = {
            "batch": batch,
            "length": length,
            "reads": name,
            "positions": positions,
            "peak_bytes": peaks.get(name),
            "out_of_memory": name not in seconds,
        }
        if name in seconds:
            row["compress"] = seconds.get(f"compress {name}", {"total": 0.0})["total"]
            row["prefill"] = seconds[name]["prefill"]
            row["decode"] = seconds[name]["decode"]
        if name in prefix_bytes:
            row["prefix_prefill"] = seconds[f"prefix {name}"]["prefill"]
            row["prefix_bytes"] = prefix_bytes[name]
        rows.append(row)
    return with_ratios(rows)


def measure_peaks(
    model: MemslotsModel,
    length: int = PEAK_LENGTH,
    batches: Sequence[int] = PEAK_BATCHES,
    new_tokens: int = NEW_TOKENS,
) -> list[Results]:
    """Most memory of full text and of every rate, at rising batches, until it is too much.

    Args:
        model: with its decoder.
        length: tokens of each text.
        batches: texts, rising; a way that ran out of memory is not tried with more.
        new_tokens: that are generated.
    """
    device = model.device.type
    rates = {f"rate {rate}": rate for rate in model.config.compression_rates}
    left, rows = ["full text", *rates], []
    for batch in batches:
        texts = [context(length, seed) for seed in range(batch)]
        ids = full_text_ids(model, texts)
        for name in list(left):

            def run(name: str = name, ids: torch.Tensor = ids, texts: list[str] = texts) -> None:
                if name == "full text":
                    answer_from_text(model, ids, new_tokens)
                else:
                    answer_from_memory(model, model.compress(texts, rate=rates[name]), new_tokens)

            peak, too_much = peak_that_fits(run, device)
            if too_much:
                left.remove(name)
            rows.append(
                {
                    "batch": batch,
                    "length": length,
                    "reads": name,
                    "peak_bytes": peak,
                    "out_of_memory": too_much,
                }
            )
        if "full text" not in left:  # what the figure is for is known
            break
    return rows


def fits(model: MemslotsModel, ids: torch.Tensor) -> bool:
    """Whether full text fits into a GPU's memory, as far as its first token; True on a CPU."""
    if model.device.type == "cpu":
        return True
    try:
        answer_from_text(model, ids, 1)
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return False
    return True


def compress(model: MemslotsModel, texts: list[str], rate: int) -> None:
    model.compress(texts, rate=rate)


def with_ratios(rows: list[Results]) -> list[Results]:
    """Adds to the rows of one batch and length what they are times faster than full text.

    "total_ratio" is with compression, "cached_ratio" without, "prefill_ratio" of the first token
    alone; "position_ratio" is how many times fewer positions are read.
    """
    full = rows[0]
    for row in rows[1:]:
        row["position_ratio"] = full["positions"] / row["positions"]
        if full["out_of_memory"]:
            continue
        whole = full["prefill"] + full["decode"]
        answered = row["prefill"] + row["decode"]
        row["prefill_ratio"] = full["prefill"] / row["prefill"]
        row["cached_ratio"] = whole / answered
        row["total_ratio"] = whole / (row["compress"] + answered)
    return rows


def paper_row(batch: int, length: int, reads: str) -> Results | None:
    """The paper's ratios of a row, where it has that row."""
    times = PAPER.get((batch, length))
    if times is None or reads == "full text" or reads not in times:
        return None
    _, prefill, decode = times["full text"]
    own_compress, own_prefill, own_decode = times[reads]
    answered = own_prefill + own_decode
    return {
        "prefill_ratio": prefill / own_prefill,
        "cached_ratio": (prefill + decode) / answered,
        "total_ratio": (prefill + decode) / (own_compress + answered),
    }


def bars(results: Results) -> list[Results]:
    """The bars: on a CPU a share of the ratio of positions, on a GPU the paper's ratios."""
    found = []
    on_cpu = results["setup"]["device"] == "cpu"
    for row in results["rows"]:
        if "prefill_ratio" not in row:
            continue
        where = f"{row['batch']} x {row['length']:,}, {row['reads']}"
        if on_cpu and row["length"] >= 4096:
            found.append(
                {
                    "bar": f"prefill speed-up over how many times fewer prompt tokens, {where}",
                    "wanted": PREFILL_SHARE,
                    "found": row["prefill_ratio"] / row["position_ratio"],
                }
            )
        paper = paper_row(row["batch"], row["length"], row["reads"])
        if not on_cpu and paper is not None:
            for name, said in (
                ("prefill_ratio", "prefill from a memory"),
                ("total_ratio", "total with compression"),
                ("cached_ratio", "total from a memory"),
            ):
                found.append(
                    {
                        "bar": f"{said} against full text, {where}",
                        "wanted": paper[name],
                        "found": row[name],
                    }
                )
    return found


def shown(results: Results, pictures: Path) -> Results:
    """What `table_a7.md.jinja` shows beside the results; draws its plots."""
    from plotting import grouped_bars

    compared = [row for row in results["rows"] if "prefill_ratio" in row]
    if compared:
        labels = list(dict.fromkeys(f"{row['batch']} x {row['length']:,}" for row in compared))
        groups = {
            f"{reads}, {said}": [
                row[key] for row in compared if row["reads"] == reads and key in row
            ]
            for reads in dict.fromkeys(row["reads"] for row in compared)
            for key, said in (("total_ratio", "with compression"), ("cached_ratio", "kept"))
        }
        title = "times faster than full text, whole answer"
        grouped_bars(labels, groups, title, pictures / "table-a7.png")
    rows = [*results["rows"], *results.get("peaks", [])]
    ran_out = [
        f"{row['reads']} at {row['batch']} x {row['length']:,}"
        for row in rows
        if row["out_of_memory"]
    ]
    paper = [
        {"batch": batch, "length": length, **ratios}
        for batch, length in PAPER
        if (ratios := paper_row(batch, length, "rate 16")) is not None
    ]
    return {
        "compared": bool(compared),
        "peaks": draw_peaks(rows, pictures),
        "ran_out": list(dict.fromkeys(ran_out)),
        "paper": paper,
    }


def draw_peaks(rows: list[Results], pictures: Path) -> bool:
    """Figure A1, the most memory by tokens; whether there is enough to draw."""
    from plotting import growth

    points: dict[str, dict[int, float]] = {}
    for row in rows:
        if row["peak_bytes"]:
            tokens = row["batch"] * row["length"]
            known = points.setdefault(row["reads"], {})
            known[tokens] = max(known.get(tokens, 0.0), row["peak_bytes"] / 2**20)
    lines = {reads: sorted(peaks.items()) for reads, peaks in points.items() if len(peaks) > 1}
    if lines:
        file = pictures / "table-a7-memory.png"
        growth(lines, "tokens (batch x length)", "most memory beyond the weights, MiB", file)
    return bool(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--rows", nargs="+", metavar="BATCHxLENGTH", help="by default the paper's, or a CPU's few"
    )
    options = options_of(parser)
    rows = [*PAPER_ROWS, (8, 8192)] if options.device == "cuda" else CPU_ROWS
    if options.rows:
        rows = [tuple(map(int, row.split("x"))) for row in options.rows]
    model = build(options.preset, options.device, DTYPES[options.device])
    results: Results = {"rows": [], "shapes": described(options.preset)}
    for batch, length in rows:
        measured = measure_row(model, batch, length, options.repeats)
        results["rows"] += measured
        for row in measured:
            print(json.dumps(row))
        write_results("table_a7", results, options)  # a lent machine may end before all rows do
    if options.device == "cuda" and not options.rows:
        results["peaks"] = measure_peaks(model)
    print(write_results("table_a7", results, options))


if __name__ == "__main__":
    main()
