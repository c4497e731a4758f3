"""Compression against the way of the published code, and against the machine's matrix rate.

    python benchmarks/against_published.py
    python benchmarks/against_published.py --device cuda

Both read the same text, tokenisation included, and give the same slots. The floor is the encoder's
operations over the rate of a product of large matrices, taken in the same run.
"""

from __future__ import annotations

import argparse
import copy
from functools import partial
from pathlib import Path

import published_way
from measuring import (
    DTYPES,
    Results,
    matrix_rate,
    measure,
    options_of,
    peak_bytes,
    write_results,
)
from shapes import build, context, described, preset_of

from memslots import MemslotsModel
from memslots.compiling import compile_encoder
from memslots.modeling.memory_memslots import slots_for

SEGMENTS = 32
RATES = (4, 16)
BATCH_TOKENS = (1024, 4096, 16384)
SPEED = {"cpu": 1.5, "cuda": 8.0}
"""Least times faster than the published way."""
FLOOR_SHARE = {"cpu": 0.6, "cuda": 0.4}
"""Least share of the machine's matrix rate."""


def encoder_operations(model: MemslotsModel, lengths: list[int], rate: int) -> float:
    """Operations of encoding segments: 2 a weight and position, and attention's own products.

    Embeddings are looked up, padding is not counted, and of attention only what a causal encoder
    sees.

    Args:
        model: with a causal encoder.
        lengths: tokens of each segment.
        rate: encoder tokens a slot.
    """
    embeddings = {id(model.encoder.get_input_embeddings().weight)}
    weights = sum(
        p.numel()
        for name, p in model.encoder.named_parameters()
        if p.dim() == 2 and id(p) not in embeddings and "wpe" not in name
    )
    config = model.config.encoder_config
    positions = [length + slots_for(length, rate) for length in lengths]
    pairs = sum(n * (n + 1) / 2 for n in positions)
    attention = 4 * config.hidden_size * config.num_hidden_layers * pairs
    return 2 * weights * sum(positions) + attention


def compiled_twin(model: MemslotsModel) -> MemslotsModel | None:
    """The model with an encoder of its own that is compiled; None where nothing can compile it."""
    twin = copy.deepcopy(model, {id(model.decoder): model.decoder})
    try:
        compile_encoder(twin)
    except ValueError as error:
        print(error)
        return None
    return twin


def measure_segments(
    model: MemslotsModel,
    segments: int,
    rate: int,
    repeats: int,
    compiled: MemslotsModel | None = None,
) -> Results:
    """One text of so many full segments, both ways, and with a compiled encoder."""
    device = model.device.type
    length = model.config.segment_length
    text = context(segments * length)
    language_model = published_way.with_head(model)
    ours = partial(model.compress, text, rate=rate, progress=False)
    theirs = partial(published_way.compress, language_model, model, text, rate)
    difference = (ours().slots - theirs()).float().norm() / ours().slots.float().norm()

    def run(way):
        return lambda: drop(way())

    ways = {"memslots": run(ours), "published": run(theirs)}
    if compiled is not None:
        ways["compiled"] = run(partial(compiled.compress, text, rate=rate, progress=False))
    seconds = measure(ways, repeats, device)
    fused = None if compiled is None else seconds["compiled"]["total"]
    return {
        "segments": segments,
        "tokens": segments * length,
        "rate": rate,
        "memslots": seconds["memslots"]["total"],
        "published": seconds["published"]["total"],
        "compiled": fused,
        "ratio": seconds["published"]["total"] / seconds["memslots"]["total"],
        "operations": encoder_operations(model, [length] * segments, rate),
        "memslots_peak": peak_bytes(ours, device),
        "published_peak": peak_bytes(theirs, device),
        "slots_differ_by": float(difference),
    }


def drop(result: object) -> None:
    """Lets go of a result, which `measure` would take for seconds."""


def measure_batch_tokens(model: MemslotsModel, rate: int, repeats: int) -> list[Results]:
    """Seconds of the largest text at several sizes of an encoder pass."""
    text = context(SEGMENTS * model.config.segment_length)
    runs = {}
    for tokens in BATCH_TOKENS:
        way = partial(model.compress, text, rate=rate, batch_tokens=tokens, progress=False)
        runs[str(tokens)] = lambda way=way: drop(way())
    runs["segment"] = lambda: drop(model.segment([text]))
    seconds = measure(runs, repeats, model.device.type)
    return [{"batch_tokens": name, "seconds": one["total"]} for name, one in seconds.items()]


def bars(results: Results) -> list[Results]:
    """Speed against the published way, and the share of the floor, at the most segments."""
    device = results["setup"]["device"]
    found = []
    for row in results["rows"]:
        if row["segments"] != SEGMENTS:
            continue
        where = f"{row['segments']} segments, rate {row['rate']}"
        found.append(
            {
                "bar": f"compression against the published way, {where}",
                "wanted": SPEED[device],
                "found": row["ratio"],
            }
        )
        found.append(
            {
                "bar": f"encoder operations over the matrix rate, {where}",
                "wanted": FLOOR_SHARE[device],
                "found": row["floor_share"],
                "why": "Share of the matrix rate: tokenising, norms, activations and attention's "
                "softmax take time and count as no operations.",
            }
        )
        if row["compiled"] is None:
            continue
        found.append(
            {
                "bar": f"compression against the published way, compiled encoder, {where}",
                "wanted": SPEED[device],
                "found": row["published"] / row["compiled"],
            }
        )
        found.append(
            {
                "bar": f"encoder operations over the matrix rate, compiled encoder, {where}",
                "wanted": FLOOR_SHARE[device],
                "found": row["floor_share"] * row["memslots"] / row["compiled"],
            }
        )
    return found


def shown(results: Results, pictures: Path) -> Results:
    """What `against_published.md.jinja` shows beside the results; draws its plot."""
    from plotting import grouped_bars

    labels = list(dict.fromkeys(str(row["segments"]) for row in results["rows"]))
    groups = {
        f"rate {rate}": [row["ratio"] for row in results["rows"] if row["rate"] == rate]
        for rate in dict.fromkeys(row["rate"] for row in results["rows"])
    }
    file = pictures / "against-published.png"
    grouped_bars(labels, groups, "times faster, by segments", file)
    return {"segments": SEGMENTS, "rate": RATES[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--segments", nargs="+", type=int, default=[1, 8, SEGMENTS])
    options = options_of(parser)
    dtype = DTYPES[options.device]
    model = build(options.preset, options.device, dtype)
    rates = [rate for rate in RATES if rate in preset_of(options.preset).rates]
    rate_found = matrix_rate(options.device, dtype, options.repeats)
    compiled = compiled_twin(model)
    rows = [
        measure_segments(model, segments, rate, options.repeats, compiled)
        for segments in options.segments
        for rate in rates
    ]
    for row in rows:
        row["floor_share"] = row["operations"] / rate_found / row["memslots"]
    results: Results = {
        "matrix_rate": rate_found,
        "rows": rows,
        "batch_tokens": measure_batch_tokens(model, rates[0], options.repeats),
        "shapes": described(options.preset),
    }
    print(write_results("against_published", results, options))


if __name__ == "__main__":
    main()
