"""What the figures of docs/performance.md say, in sentences that are made from them."""

from __future__ import annotations

import math
from collections.abc import Mapping

from measuring import Results

RATE = "rate 16"


def takeaways(found: Mapping[str, Results]) -> list[str]:
    """A sentence or two for each benchmark that was run.

    Args:
        found: the results by benchmark.
    """
    makers = {
        "table_a7": _answers,
        "alternatives": _instead,
        "scaling": _long_texts,
        "against_published": _compression,
        "training_throughput": _training,
        "gateway_load": _load,
    }
    return [line for name, make in makers.items() if name in found for line in make(found[name])]


def pays_from(compress: float, full: float, answered: float) -> int | None:
    """The question about one text from which on compressing it first is quicker; None for never.

    Args:
        compress: seconds of compressing.
        full: seconds of an answer from full text.
        answered: seconds of an answer from the memory.
    """
    if answered >= full:
        return None
    return max(1, math.ceil(compress / (full - answered)))


def _answers(results: Results) -> list[str]:
    rows = [row for row in results["rows"] if row["reads"] == RATE and "total_ratio" in row]
    if not rows:
        return []
    row = max(rows, key=lambda one: one["length"])
    full = next(
        one
        for one in results["rows"]
        if (one["batch"], one["length"], one["reads"]) == (row["batch"], row["length"], "full text")
    )
    turn = pays_from(
        row["compress"], full["prefill"] + full["decode"], row["prefill"] + row["decode"]
    )
    pays = "compressing does not pay" if turn is None else f"compressing pays from question {turn}"
    return [
        f"**An answer** of 32 tokens about {row['batch']} x {row['length']:,} tokens at {RATE} "
        f"comes {row['total_ratio']:.2f} times as fast with the compression counted, and "
        f"{row['cached_ratio']:.2f} times from a kept memory: {pays} on. Its first token comes "
        f"{row['prefill_ratio']:.1f} times sooner, for {row['position_ratio']:.1f} times fewer "
        "positions. Decoding gains the least, since each new token costs a pass of the decoder "
        "either way: long texts and short answers gain most."
    ]


def _instead(results: Results) -> list[str]:
    rows = {row["way"]: row for row in results["rows"]}
    memory, cache = rows["memory, kept"], rows["full text, KV cache kept"]
    times = cache["kept_bytes"] / memory["kept_bytes"]
    first = cache["first_token"] / memory["first_token"]
    said = f"{first:.1f} times sooner" if first >= 1 else f"{1 / first:.1f} times later"
    return [
        f"**Against a kept KV cache** of the same {results['tokens']:,} tokens, the strongest "
        f"alternative when a text is asked again, a kept memory takes {times:,.0f} times fewer "
        f"bytes, and its first token comes {said}. Text cut to as few positions costs about what a "
        "kept memory does, and loses what was cut."
    ]


def _long_texts(results: Results) -> list[str]:
    last, asked = results["rows"][-1], results["questions"][-1]
    return [
        f"**Long texts**: {last['tokens']:,} tokens take {last['seconds']:,.1f} s on the shapes of "
        f"that part, as time grows with tokens to the power {results['exponent']:.3f}. "
        f"{asked['questions']} questions about one memory are "
        f"{asked['anew_seconds'] / asked['shared_seconds']:.1f} times as fast where they share "
        "what the decoder read (`prefill`); the gateway does that by itself "
        "([prefix cache](serving.md#the-prefix-cache))."
    ]


def _compression(results: Results) -> list[str]:
    row = max(results["rows"], key=lambda one: one["segments"])
    return [
        f"**Compression** of {row['segments']} segments is {row['ratio']:.2f} times as fast as the "
        f"published way, and spends {row['floor_share']:.0%} of its time on operations at the "
        "machine's matrix rate."
    ]


def _training(results: Results) -> list[str]:
    row = results["rows"][0]
    return [
        f"**Training** on both tasks is {row['ratio']:.2f} times as fast as the published way. The "
        "frozen decoder takes most of either."
    ]


def _load(results: Results) -> list[str]:
    load = results["load"]
    return [
        f"**The gateway** gave {load['answers'] / load['seconds']:.1f} answers a second to "
        f"{load['clients']} clients with {load['errors']} errors, and its memory changed by "
        f"{load['growth']:+.1%}."
    ]
