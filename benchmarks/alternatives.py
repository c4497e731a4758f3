"""Memories against what a user would take instead, on the same decoder, context and question.

    python benchmarks/alternatives.py
    python benchmarks/alternatives.py --device cuda

Full text, with and without its KV cache kept; text cut to a memory's positions, and to as many
words that a token classifier chose, which is what LLMLingua-2 does; a quantised KV cache of
transformers; and where they are installed quanto, kvpress and LLMLingua-2 itself. With random
weights nothing is said of how good the answers are: see docs/results.md for that.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import torch
from measuring import (
    DTYPES,
    Results,
    TokenClock,
    measure,
    options_of,
    peak_bytes,
    write_results,
)
from shapes import build, context, described, token_classifier
from table_a7 import answer_from_memory, answer_from_text, full_text_ids, memory_positions
from torch.nn import functional
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import QuantizedCache

from memslots import MemslotsModel
from memslots.evaluation.llmlingua_baseline import MODEL, is_installed, llmlingua2
from memslots.serving.serving_cost import cache_bytes, cached_layers

RATE = 16
NEW_TOKENS = 32
QUANTO = {"bits": 4, "group": 64, "residual": 128}
"""transformers' own defaults."""

INSTALL = {
    "quanto": "pip install optimum-quanto",
    "kvpress": "pip install kvpress; up to 0.5.5 it conflicts with constraints.txt",
    "llmlingua": "pip install llmlingua, and --llmlingua-model; it fetches tiktoken's vocabulary",
}

CLASSIFIED = 512
"""Tokens that a classifier reads at once, as LLMLingua-2 cuts its texts."""


def decoder_of(model: MemslotsModel) -> PreTrainedModel:
    if not model.has_decoder:
        raise RuntimeError("shapes.build gives every model a decoder.")
    return model.decoder


def generate_on_cache(
    decoder: PreTrainedModel, ids: torch.Tensor, make_cache: Callable, new_tokens: int
) -> dict[str, float]:
    """Seconds of "prefill" and "decode" with a cache that is made or copied first.

    Args:
        decoder: the decoder.
        ids: `(1, positions)`, context and question.
        make_cache: returns an empty cache, or one that holds the first positions of `ids`.
        new_tokens: that are generated.
    """
    clock = TokenClock(ids.device.type)
    decoder.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        past_key_values=make_cache(),
        max_new_tokens=new_tokens,
        min_new_tokens=new_tokens,
        do_sample=False,
        stopping_criteria=[clock],
    )
    return clock.parts()


@torch.no_grad()
def read_context(decoder: PreTrainedModel, ids: torch.Tensor) -> DynamicCache:
    """The KV cache of a context, as a prefix cache would keep it."""
    cache = DynamicCache(config=decoder.config)
    decoder.model(input_ids=ids, past_key_values=cache, use_cache=True)
    return cache


def quanto_bytes(decoder: PreTrainedModel, positions: int) -> float:
    """As `cache_bytes`, of quanto's: a scale and a shift a group, the newest positions whole."""
    layers, whole = cached_layers(decoder.config), torch.finfo(decoder.dtype).bits
    newest = min(positions, QUANTO["residual"])
    packed = QUANTO["bits"] + 2 * whole / QUANTO["group"]
    return cache_bytes(layers, positions - newest, packed) + cache_bytes(layers, newest, whole)


def has_quanto() -> bool:
    """Whether optimum-quanto can be imported."""
    return find_spec("optimum") is not None and find_spec("optimum.quanto") is not None


def measure_alternatives(
    model: MemslotsModel,
    tokens: int,
    repeats: int,
    preset: str,
    new_tokens: int = NEW_TOKENS,
    llmlingua_model: str | None = None,
) -> Results:
    """A row for each way to have a context of so many tokens answered, and what was left out.

    Args:
        model: with its decoder.
        tokens: of the context.
        repeats: timed runs.
        preset: that the model is of.
        new_tokens: of an answer.
        llmlingua_model: name or folder of LLMLingua-2's own model; None leaves it out.
    """
    device, decoder = model.device.type, decoder_of(model)
    text = context(tokens)
    ids = full_text_ids(model, [text])
    memory = model.compress(text, rate=RATE)
    prompt = ids.shape[1] - tokens - 1  # of the question; one more is BOS
    positions = memory_positions(model, memory)
    kept_ids = positions - prompt
    cut = torch.cat([ids[:, :kept_ids], ids[:, -prompt:]], dim=1)
    prefix = read_context(decoder, ids[:, :-prompt])
    layers, bits = cached_layers(decoder.config), torch.finfo(decoder.dtype).bits
    utf8 = len(text.encode())

    def of_cut() -> dict[str, float]:
        return answer_from_text(model, cut, new_tokens)

    def on(make_cache: Callable) -> Callable[[], dict[str, float]]:
        return lambda: generate_on_cache(decoder, ids, make_cache, new_tokens)

    def compressed() -> dict[str, float]:
        return answer_from_memory(model, model.compress(text, rate=RATE), new_tokens)

    classifier = token_classifier(preset, device, decoder.dtype)
    words = ids[:, 1:-prompt]

    def of_chosen() -> dict[str, float]:
        clock = TokenClock(device)
        told = chosen_by(classifier, words, kept_ids - 1)
        short = torch.cat([ids[:, :1], told, ids[:, -prompt:]], dim=1)
        before = clock.elapsed()
        parts = answer_from_text(model, short, new_tokens)
        return {name: s + before * (name == "prefill") for name, s in parts.items()}

    full = ids.shape[1]
    # Name, what is run, positions in the decoder's cache, bytes kept until the next question.
    ways: list[tuple[str, Callable[[], dict[str, float]], int, float]] = [
        ("full text", lambda: answer_from_text(model, ids, new_tokens), full, utf8),
        (
            "full text, KV cache kept",
            on(lambda: copy.deepcopy(prefix)),
            full,
            cache_bytes(layers, full - prompt, bits),
        ),
        ("text cut to the memory's length", of_cut, positions, kept_ids / tokens * utf8),
        ("as many words, by LLMLingua-2's way", of_chosen, positions, kept_ids / tokens * utf8),
        (
            "quantised KV cache, fp8",
            on(lambda: QuantizedCache("fp8", decoder.config)),
            full,
            cache_bytes(layers, full, 8),
        ),
    ]
    left_out = {}
    if not has_quanto():
        left_out["quanto"] = INSTALL["quanto"]
    elif cache_bytes(layers, 1, 4) % (decoder.config.num_hidden_layers * QUANTO["group"]):
        # Keys of a layer and position, which are half of its numbers, must fill whole groups.
        left_out["quanto"] = f"keys of a position are no multiple of {QUANTO['group']} numbers"
    else:
        ways.append(
            (
                "quantised KV cache, quanto 4 bit",
                on(lambda: QuantizedCache("quanto", decoder.config, nbits=QUANTO["bits"])),
                full,
                quanto_bytes(decoder, full),
            )
        )
    if find_spec("kvpress") is not None:
        pressed = with_kvpress(model, ids, 1 - positions / full, new_tokens)
        ways.append(("kvpress, KnormPress", pressed, full, cache_bytes(layers, positions, bits)))
    else:
        left_out["kvpress"] = INSTALL["kvpress"]
    if is_installed() and llmlingua_model is not None:
        shorten = llmlingua2(llmlingua_model, device)

        def by_llmlingua() -> dict[str, float]:
            clock = TokenClock(device)
            shorten(text, kept_ids / tokens)
            before = clock.elapsed()
            return {name: s + before * (name == "prefill") for name, s in of_cut().items()}

        ways.append(
            ("LLMLingua-2, then its cut", by_llmlingua, positions, kept_ids / tokens * utf8)
        )
    else:
        left_out["llmlingua"] = INSTALL["llmlingua"]
    ways += [
        ("memory, compressed first", compressed, positions, memory.nbytes),
        (
            "memory, kept",
            lambda: answer_from_memory(model, memory, new_tokens),
            positions,
            memory.nbytes,
        ),
    ]
    seconds = measure({name: run for name, run, _, _ in ways}, repeats, device)
    rows = []
    for name, run, read, kept in ways:
        one = seconds[name]
        first = one["total"] - one["decode"]  # with compression, where that comes first
        rows.append(
            {
                "way": name,
                "positions": read,
                "first_token": first,
                "tokens_a_second": (new_tokens - 1) / one["decode"],
                "peak_bytes": peak_bytes(run, device),
                "kept_bytes": kept,
            }
        )
    for row in rows:
        row["first_token_ratio"] = rows[0]["first_token"] / row["first_token"]
    return {"tokens": tokens, "rate": RATE, "rows": rows, "left_out": left_out}


@torch.inference_mode()
def chosen_by(classifier: PreTrainedModel, ids: torch.Tensor, keep: int) -> torch.Tensor:
    """The tokens that a classifier would rather keep, in the text's order, `(1, keep)`.

    Args:
        classifier: of `shapes.token_classifier`.
        ids: `(1, tokens)`.
        keep: how many.
    """
    length = ids.shape[1]
    parts = functional.pad(ids, (0, -length % CLASSIFIED)).view(-1, CLASSIFIED)
    there = torch.arange(parts.numel(), device=ids.device).view_as(parts) < length
    scores = classifier(input_ids=parts, attention_mask=there.long()).logits.softmax(dim=-1)
    best = scores[..., 1].flatten()[:length].topk(keep).indices.sort().values
    return ids[:, best]


def with_kvpress(
    model: MemslotsModel, ids: torch.Tensor, share: float, new_tokens: int
) -> Callable[[], dict[str, float]]:
    """Full text, of whose KV cache a share is thrown away at prefill, as kvpress has it.

    Args:
        model: with its decoder.
        ids: `(1, positions)`.
        share: of the positions that go.
        new_tokens: that are generated.
    """
    from kvpress import KnormPress

    press = KnormPress(compression_ratio=share)

    def run() -> dict[str, float]:
        with press(decoder_of(model)):
            return answer_from_text(model, ids, new_tokens)

    return run


def shown(results: Results, pictures: Path) -> Results:
    """Nothing beside the results; draws the plot of `alternatives.md.jinja`."""
    from plotting import named_bars

    sooner = {row["way"]: row["first_token_ratio"] for row in results["rows"]}
    title = f"first token of an answer about {results['tokens']:,} tokens, times sooner"
    named_bars(sooner, title, pictures / "alternatives.png")
    return {}


def bars(results: Results) -> list[Results]:
    """None: the issue asks for the figures."""
    return []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, help="of the context")
    parser.add_argument("--llmlingua-model", help=f"name or folder, for example {MODEL}")
    options = options_of(parser)
    model = build(options.preset, options.device, DTYPES[options.device])
    tokens = options.tokens or (4096 if options.device == "cpu" else 16384)
    results = measure_alternatives(
        model, tokens, options.repeats, options.preset, llmlingua_model=options.llmlingua_model
    )
    results["shapes"] = described(options.preset)
    print(write_results("alternatives", results, options))


if __name__ == "__main__":
    main()
