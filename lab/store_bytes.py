"""What a memory store costs: bytes per source token, and the fidelity lost by bfloat16 and int8.

    python -m lab.store_bytes --questions 500 --output runs/store_bytes

Stores are made and measured on the disk, with all that they keep beside the slots, for short
documents (one person each) and for long ones (many people joined). Beside them stand the same
texts in UTF-8 and the decoder's KV cache of them, which is what a prefix cache would keep. The
answers and reconstructions are of the same memories in float32, bfloat16 and int8, in one run.
"""

import argparse
import hashlib
import json
import platform
import statistics
import tempfile
import zlib
from dataclasses import replace
from pathlib import Path

import pyarrow
import torch
import transformers

from lab.data.personas import persona_rows
from lab.pages import render
from memslots import Memory, MemslotsModel, embedded
from memslots.evaluation.answering import (
    answer_from_memory,
    compare_segments,
    memories_at_rates,
    processor_of,
    reconstruct_segments,
)
from memslots.evaluation.metrics import exact_match, wilson_interval
from memslots.serving.quantise import SLOT_DTYPES, from_bytes, to_bytes
from memslots.serving.store import MemoryStore

LONG = 40
"""Short texts that are joined to a long one."""


def store_bytes(memory: Memory, slot_dtype: str) -> int:
    """Bytes on the disk of a store with these documents, compacted."""
    with tempfile.TemporaryDirectory() as folder:
        store = MemoryStore(Path(folder) / "store", slot_dtype)
        store.add([str(i) for i in range(len(memory))], memory)
        return store.info().bytes


@torch.no_grad()
def cache_bytes(model: MemslotsModel, text: str) -> int:
    """Bytes of the decoder's KV cache after it has read a text, in the dtype it runs in."""
    ids = torch.tensor([processor_of(model).decoder_text.encode(text)])
    cache = model.decoder(input_ids=ids.to(model.device), use_cache=True).past_key_values
    return sum(
        tensor.numel() * tensor.element_size()
        for layer in cache.layers
        for tensor in (layer.keys, layer.values)
    )


def measure_bytes(model: MemslotsModel, texts: list[str], rates: list[int]) -> list[dict]:
    """A row for each way to keep the texts, with bytes per encoder token of the source."""
    memories = memories_at_rates(model, texts, rates)
    tokens = sum(memories[rates[0]].n_tokens)
    sample = texts[:20]
    cached = sum(cache_bytes(model, text) for text in sample)
    per_token = cached / sum(memories[rates[0]][: len(sample)].n_tokens)
    raw = "\n".join(texts).encode()
    rows = [
        {"kept": "text, UTF-8", "bytes_per_token": len(raw) / tokens},
        {"kept": "text, zlib", "bytes_per_token": len(zlib.compress(raw, 9)) / tokens},
        {"kept": "KV cache, float32", "bytes_per_token": per_token},
        {"kept": "KV cache, bfloat16", "bytes_per_token": per_token / 2},
    ]
    for rate in rates:
        for slot_dtype in SLOT_DTYPES:
            size = store_bytes(memories[rate], slot_dtype)
            kept = f"store, rate {rate}, {slot_dtype}"
            rows.append({"kept": kept, "bytes_per_token": size / tokens})
    return rows


def measure_fidelity(
    model: MemslotsModel, rows: list[dict], rates: list[int], reconstructions: int
) -> list[dict]:
    """A row for each rate and dtype: exact match, answers that differ, tokens reconstructed."""
    texts = [row["context"] for row in rows]
    found = []
    for rate, memory in memories_at_rates(model, texts, rates).items():
        plain: list[str] = []
        for dtype in ("float32", *SLOT_DTYPES):
            slots = memory.slots.float()
            stored = slots
            if dtype != "float32":
                stored = from_bytes(*to_bytes(slots, dtype), dtype, *slots.shape).to(slots.device)
            kept = replace(memory, slots=stored)
            error = (kept.slots.float() - slots).norm() / slots.norm()
            answers = answer_from_memory(model, kept, [row["question"] for row in rows], 16)
            plain = plain or answers
            right = sum(exact_match(a, row["answer"]) for a, row in zip(answers, rows, strict=True))
            part = kept[:reconstructions]
            compared = compare_segments(
                model, part, texts[:reconstructions], reconstruct_segments(model, part)
            )
            tokens = sum(len(one["tokens"]) for one in compared)
            found.append(
                {
                    "rate": rate,
                    "slots": dtype,
                    "relative_error": float(error),
                    "exact_match": right / len(rows),
                    "interval": wilson_interval(right, len(rows)),
                    "answers_changed": sum(a != b for a, b in zip(answers, plain, strict=True)),
                    "tokens_right": sum(sum(one["right"]) for one in compared) / tokens,
                    "tokens_aligned": sum(one["aligned"] for one in compared) / tokens,
                }
            )
    return found


def mean_tokens(model: MemslotsModel, texts: list[str]) -> float:
    return statistics.mean(sum(len(s.ids) for s in spans) for spans in model.segment(texts))


def markdown(results: dict) -> str:
    """The results as the tables of docs/memory_store.md."""
    return render(Path(__file__).with_name("store_bytes.md.jinja"), **results)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=embedded("tiny"))
    parser.add_argument("--questions", type=int, default=500)
    parser.add_argument("--reconstructions", type=int, default=100)
    parser.add_argument("--seed", type=int, default=61_000)
    parser.add_argument("--output", type=Path, default=Path("runs/store_bytes"))
    options = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    model = MemslotsModel.from_pretrained(options.model, dtype=torch.float32)
    rates = sorted(model.config.compression_rates)
    rows = list(persona_rows("test", options.questions, seed=options.seed))
    texts = [row["context"] for row in rows]
    long = [" ".join(texts[i : i + LONG]) for i in range(0, len(texts), LONG)]
    memory = model.compress(texts[:1])
    results = {
        "questions": len(rows),
        "short": measure_bytes(model, texts, rates),
        "long": measure_bytes(model, long, rates),
        "fidelity": measure_fidelity(model, rows, rates, options.reconstructions),
        "setup": {
            "compressor": model.fingerprint,
            "d_encoder": memory.slots.shape[1],
            "tokens_short": mean_tokens(model, texts),
            "tokens_long": mean_tokens(model, long),
            "seed": options.seed,
            "texts_sha256": hashlib.sha256("\n".join(texts).encode()).hexdigest(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "pyarrow": pyarrow.__version__,
            "python": platform.python_version(),
        },
    }
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "results.json").write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    (options.output / "results.md").write_text(markdown(results), "utf-8")
    print(markdown(results))


if __name__ == "__main__":
    main()
