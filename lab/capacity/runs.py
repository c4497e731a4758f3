"""Runs the cells of the capacity tables: each cell's result is a JSON file, and none runs twice."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from lab.capacity.error_patterns import error_patterns
from lab.capacity.texts import CapacityTexts
from lab.capacity.vector_structure import interpolate, nearest_embeddings, reach_of_ends
from memslots.cramming import (
    CrammingSettings,
    FrozenDecoder,
    Reading,
    cram,
    load_frozen_decoder,
    longest_length,
    read_back,
    theoretical_capacity,
)
from memslots.cramming.per_text import CrammedText

Cell = dict[str, Any]

_GAIN_LENGTH = 8
"""Tokens at which gains are measured where not even the shortest text is given back."""


def plan_cells(settings: dict[str, Any], decoders: dict[str, str], books: str | None) -> list[Cell]:
    """All cells, each with everything that its result depends on.

    Args:
        settings: the recipe's `capacity` section.
        decoders: folder of each decoder by its name in the recipe.
        books: see `CapacityTexts`.
    """
    shared = {"optimiser": settings["optimiser"], "books": CapacityTexts(books).digest()}
    weights = {name: _weights_digest(Path(decoders[name])) for name in settings["decoders"]}
    cells = []
    for block in settings["searches"]:
        methods = [
            {"method": method, "rank": rank, "targets": targets}
            if method.endswith("lora")
            else {"method": method}
            for method in block["methods"]
            for rank in (block.get("ranks", [1]) if method.endswith("lora") else [1])
            for targets in (block.get("targets", ["qkv"]) if method.endswith("lora") else [""])
        ]
        named = [name for name in block["decoders"] if name in settings["decoders"]]
        for name, method, seed in itertools.product(named, methods, range(block["seeds"])):
            cells.append(
                {
                    **shared,
                    **method,
                    "kind": "search",
                    "decoder": name,
                    "source": block["source"],
                    "seed": seed,
                    "first_token": block.get("first_token", True),
                    "lengths": settings["lengths"],
                    "texts": settings["texts"],
                }
            )
    scatter = settings["scatter"]
    for name, method, source in itertools.product(
        settings["decoders"], scatter["methods"], scatter["sources"]
    ):
        cell = {"kind": "scatter", "decoder": name, "method": method, "source": source}
        cells.append({**shared, **cell, "seed": 0, "lengths": scatter["lengths"]})
    for name in settings["decoders"]:
        cell = {"kind": "structure", "decoder": name, "source": "books", "seed": 0}
        cells.append({**shared, **cell, **settings["structure"]})
    for cell in cells:
        cell["decoder_folder"] = decoders[cell["decoder"]]
        cell["weights"] = weights[cell["decoder"]]
    return cells


def _weights_digest(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()[:12]


def cell_file(cell: Cell, folder: Path) -> Path:
    """Where a cell's result stands; another setting gives another file."""
    told = {key: value for key, value in cell.items() if key != "decoder_folder"}
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:8]
    parts = [cell["kind"], cell["decoder"], cell["method"]]
    if "rank" in cell:
        parts += [cell["targets"], f"r{cell['rank']}"]
    parts += [cell["source"], f"seed{cell['seed']}"]
    if not cell.get("first_token", True):
        parts.append("from2")
    return folder / ("-".join([*parts, digest]) + ".json")


def run_cells(
    cells: Sequence[Cell],
    folder: Path,
    books: str | None,
    workers: int = 2,
    progress: Callable[[str], None] = lambda line: None,
) -> None:
    """Runs the cells that have no result yet, in processes of one thread each.

    Args:
        cells: of `plan_cells`.
        folder: of the results.
        books: see `CapacityTexts`.
        workers: processes; 1 runs in this one.
        progress: is told each cell that is done.
    """
    folder.mkdir(parents=True, exist_ok=True)
    waiting = [cell for cell in cells if not cell_file(cell, folder).is_file()]
    started = time.monotonic()

    def tell(number: int, file: Path) -> None:
        seconds = time.monotonic() - started
        left = seconds / number * (len(waiting) - number) / 60
        progress(f"{number} of {len(waiting)}: {file.stem}, about {left:.0f} minutes left")

    if workers <= 1:
        for number, cell in enumerate(waiting, 1):
            tell(number, run_cell(cell, folder, books))
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        running = [pool.submit(run_cell, cell, folder, books, 1) for cell in waiting]
        try:
            for number, done in enumerate(as_completed(running), 1):
                tell(number, done.result())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def run_cell(cell: Cell, folder: Path, books: str | None, threads: int | None = None) -> Path:
    """Runs one cell and writes its file, whole or not at all.

    Args:
        cell: of `plan_cells`.
        folder: of the results.
        books: see `CapacityTexts`.
        threads: of torch in this process; as they are without.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    started, used = time.perf_counter(), time.process_time()
    decoder = load_frozen_decoder(cell["decoder_folder"])
    texts = CapacityTexts(books)
    run = {"search": _search, "scatter": _scatter, "structure": _structure}[cell["kind"]]
    result = run(cell, decoder, texts)
    record = {
        "cell": cell,
        "decoder": {
            "width": decoder.width,
            "vocabulary": decoder.vocabulary,
            "parameters": sum(p.numel() for p in decoder.model.parameters()),
            "capacity": theoretical_capacity(decoder.width, decoder.vocabulary),
        },
        "seconds": round(time.perf_counter() - started, 1),
        "cpu_seconds": round(time.process_time() - used, 1),
        "result": result,
    }
    config = json.loads((Path(cell["decoder_folder"]) / "config.json").read_text("utf-8"))
    if config.get("fingerprint"):  # the decoder of a compressor
        record["compressor"] = config["fingerprint"]
    file = cell_file(cell, folder)
    unfinished = file.with_suffix(f".{os.getpid()}.tmp")
    unfinished.write_text(json.dumps(record, indent=1), encoding="utf-8")
    unfinished.replace(file)
    return file


def settings_of(cell: Cell) -> CrammingSettings:
    """How a cell's texts are crammed."""
    chosen = {key: cell[key] for key in ("rank", "targets", "first_token") if key in cell}
    return CrammingSettings(method=cell["method"], **chosen, **cell["optimiser"])


def _search(cell: Cell, decoder: FrozenDecoder, texts: CapacityTexts) -> dict[str, Any]:
    settings, lengths = settings_of(cell), cell["lengths"]
    whole = texts.ids(cell["source"], decoder, cell["texts"], lengths[-1])
    tried: dict[int, dict[str, float]] = {}
    readings: dict[int, list[Reading]] = {}
    efforts: dict[int, list[CrammedText]] = {}

    def accuracy(length: int) -> float:
        heads = [ids[:length] for ids in whole]
        efforts[length] = cram(decoder, heads, settings, cell["seed"])
        readings[length] = read_back(decoder, efforts[length])
        tried[length] = _means(readings[length], efforts[length])
        return tried[length]["accuracy" if settings.first_token else "accuracy_from_token_2"]

    usable = [n for n in lengths if n > 1 or settings.first_token]
    found = longest_length(accuracy, usable)
    # A longer text may gain more tokens though not all of them: gains are looked for up to twice.
    reach = 2 * found.length or _GAIN_LENGTH
    beyond = [n for n in usable if found.length < n <= reach]
    if beyond and max(tried) < beyond[-1]:
        accuracy(beyond[-1])
    gains = {n: values["token_gain"] for n, values in tried.items()}
    best = max(gains, key=lambda n: gains[n])
    failed = [n for n in sorted(tried) if n > found.length]
    return {
        "longest_length": found.length,
        "searched_to": found.searched_to,
        "lengths": {str(n): tried[n] for n in sorted(tried)},
        "token_gain": gains[best],
        "at_length": best,
        "utilisation": gains[best] / theoretical_capacity(decoder.width, decoder.vocabulary),
        "steps_to_exact": tried[found.length]["steps"] if found.length else None,
        "trained_parameters": efforts[best][0].trained_parameters,
        "kept_parameters": efforts[best][0].kept_parameters,
        "errors": error_patterns(
            [r for n in failed for r in readings[n]], decoder.tokenizer, texts.reference(decoder)
        ),
    }


def _means(readings: Sequence[Reading], made: Sequence[CrammedText]) -> dict[str, float]:
    """What is kept of one length: means over its texts."""
    both = [reading.metrics() for reading in readings]
    later = [reading.metrics(first=False) for reading in readings]
    columns = {
        "accuracy": [m["accuracy"] for m in both],
        "accuracy_from_token_2": [m["accuracy"] for m in later],
        "free_running": [m["free_running"] for m in both],
        "token_gain": [m["token_gain"] for m in both],
        "token_gain_from_token_2": [m["token_gain"] for m in later],
        "information_gain": [m["information_gain"] for m in both],
        "accuracy_at_16_bit": [r.right_at_16_bit / len(r.ids) for r in readings],
        "steps": [float(text.steps) for text in made],
    }
    return {name: round(sum(values) / len(values), 4) for name, values in columns.items()}


def _scatter(cell: Cell, decoder: FrozenDecoder, texts: CapacityTexts) -> dict[str, Any]:
    """Cross-entropy of each whole text without and with its memory, in nats."""
    lengths = cell["lengths"]
    whole = texts.ids(cell["source"], decoder, len(lengths), lengths[-1])
    heads = [ids[:length] for ids, length in zip(whole, lengths, strict=True)]
    made = cram(decoder, heads, settings_of(cell), cell["seed"])
    points = []
    for reading in read_back(decoder, made):
        points.append(
            {
                "length": len(reading.ids),
                "bare": round(sum(reading.bare_losses), 4),
                "with_memory": round(sum(reading.losses), 4),
                "accuracy": round(reading.metrics()["accuracy"], 4),
            }
        )
    return {"points": points}


def _structure(cell: Cell, decoder: FrozenDecoder, texts: CapacityTexts) -> dict[str, Any]:
    """Neighbours of vectors, likeness of two vectors of one text, and the line between two."""
    own = texts.ids(cell["source"], decoder, cell["texts"], cell["length"])
    seeds = list(range(cell["seeds"]))
    rows = [ids for ids in own for _ in seeds]
    made = cram(decoder, rows, settings_of(cell), seeds * len(own))
    exact = [text.accuracy == 1.0 for text in made]
    vectors = torch.stack([text.kept["vectors"] for text in made])  # (rows, vectors, d_decoder)
    cosines = torch.nn.functional.cosine_similarity(
        vectors.flatten(1).unsqueeze(0), vectors.flatten(1).unsqueeze(1), dim=-1
    )
    owner = torch.arange(len(own)).repeat_interleave(len(seeds))
    alike = owner.unsqueeze(0) == owner.unsqueeze(1)
    itself = torch.eye(len(rows), dtype=torch.bool)
    lines = []
    for first, second in itertools.combinations(range(0, len(rows), len(seeds)), 2):
        if exact[first] and exact[second]:
            points = interpolate(
                decoder,
                vectors[first],
                vectors[second],
                rows[first],
                rows[second],
                start_token=settings_of(cell).start_token,
            )
            lines.append({"points": points, "reach": reach_of_ends(points)})
    return {
        "exact": exact,
        "neighbours": nearest_embeddings(decoder, vectors, rows),
        "cosine_of_one_text": _mean(cosines[alike & ~itself]),
        "cosine_of_two_texts": _mean(cosines[~alike]),
        "lines": lines,
    }


def _mean(values: torch.Tensor) -> float | None:
    return round(values.mean().item(), 4) if len(values) else None
