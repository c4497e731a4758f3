"""What an answer costs SmolLM2-135M-Instruct, from a text and from memories of `smol`.

    PYTHONPATH=. python benchmarks/real_weights.py --page docs/performance/smollm2.md

As `table_a7.py`, with a chapter of a novel in place of random words, and what has to be kept for
the next question: the text, slots, or a KV cache.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from measuring import DTYPES, Results, options_of, write_results
from page import hardware
from summary import pays_from
from table_a7 import NEW_TOKENS, measure_row

from lab.pages import render
from memslots import MemslotsModel, embedded
from memslots.evaluation.demo import chapter
from memslots.serving.serving_cost import cache_bytes, cached_layers

LENGTHS = (1024, 2048, 4096, 8000)
"""SmolLM2 has 8,192 positions, for question and answer too."""


def chapter_of(model: MemslotsModel, tokens: int) -> str:
    """The demonstration's chapter, from its beginning, as often as it takes."""
    encoder = model.processor.decoder_text
    ids = encoder.encode(chapter())
    return model.processor.decode((ids * (1 + tokens // len(ids)))[:tokens])


def measure_lengths(
    model: MemslotsModel, lengths: tuple[int, ...], repeats: int, new_tokens: int = NEW_TOKENS
) -> list[Results]:
    """The rows of each length: full text, then every rate, and `kept_bytes` of each."""
    layers = cached_layers(model.decoder.config)
    bits = 8 * model.decoder.dtype.itemsize
    rows = []
    for length in lengths:
        text = chapter_of(model, length)
        of_length = measure_row(model, 1, length, repeats, new_tokens, lambda *_, t=text: t)
        for row in of_length:
            row["cache_bytes"] = cache_bytes(layers, row["positions"], bits)
            row["kept_bytes"] = len(text.encode())
        for rate, row in zip(model.config.compression_rates, of_length[1:], strict=True):
            row["kept_bytes"] = model.compress(text, rate=rate).slots.nbytes
            whole, answered = (r["prefill"] + r["decode"] for r in (of_length[0], row))
            row["pays_from"] = pays_from(row["compress"], whole, answered)
        rows += of_length
        print(json.dumps(of_length), flush=True)
    return rows


def write_page(results: Results, page: Path) -> None:
    """Writes the page from a run's results."""
    page.parent.mkdir(parents=True, exist_ok=True)
    template = Path(__file__).with_name("real_weights.md.jinja")
    text = render(template, machine=hardware(results["setup"]), **results)
    page.write_text(text.rstrip() + "\n", "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS, help="tokens of a text")
    parser.add_argument("--page", type=Path, default=Path("docs/performance/smollm2.md"))
    options = options_of(parser)
    options.preset = "SmolLM2-135M-Instruct and smol"
    dtype = DTYPES[options.device]
    model = MemslotsModel.from_pretrained(embedded("smol"), dtype=dtype).to(options.device).eval()
    with torch.inference_mode():
        rows = measure_lengths(model, tuple(options.lengths), options.repeats)
    results: Results = {"rows": rows, "fingerprint": model.fingerprint[:12]}
    file = write_results("real_weights", results, options)
    write_page(json.loads(file.read_text("utf-8")), options.page)
    print(options.page)


if __name__ == "__main__":
    main()
