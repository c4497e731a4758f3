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
    read_back,
    theoretical_capacity,
)
from memslots.cramming.capacity import THRESHOLD
from memslots.cramming.per_text import CrammedText, MemoryReader, stack

Cell = dict[str, Any]


def plan_cells(settings: dict[str, Any], decoders: dict[str, str], books: str | None) -> list[Cell]:
    """All cells, each with everything that its result depends on.

    Args:
        settings: the recipe's `capacity` section.
        decoders: folder of each decoder by its name in the recipe.
        books: see `CapacityTexts`.
    """
    shared = {
        "optimiser": settings["optimiser"],
        "dtype": settings.get("dtype", "float32"),
        "books": CapacityTexts(books).digest(),
    }
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
        for name, method, seed in itertools.product(
            settings["decoders"], methods, range(block["seeds"])
        ):
            cells.append(
                {
                    **shared,
                    **method,
                    "kind": "search",
                    "decoder": name,
                    "source": block["source"],
                    "seed": seed,
                    "first_token": block.get("first_token", True),
                    **({"start_token": True} if block.get("start_token") else {}),
                    "lengths": settings["lengths"],
                    "texts": settings["texts"],
                }
            )
    for name in settings["decoders"]:
        cell = {"kind": "structure", "decoder": name, "source": "books", "seed": 0}
        cells.append({**shared, **cell, **settings["structure"]})
    for cell in cells:
        if (rate := settings.get("learning_rates", {}).get(cell["method"])) is not None:
            cell["optimiser"] = {**cell["optimiser"], "learning_rate": rate}
        cell["decoder_folder"] = decoders[cell["decoder"]]
        cell["weights"] = weights[cell["decoder"]]
    return cells


def _weights_digest(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()[:12]


def cell_file(cell: Cell, folder: Path) -> Path:
    """Where a cell's result stands; another setting gives another file."""
    digest = hashlib.sha256(json.dumps(_stated(cell), sort_keys=True).encode()).hexdigest()[:8]
    parts = [cell["kind"], cell["decoder"], cell["method"]]
    if "rank" in cell:
        parts += [cell["targets"], f"r{cell['rank']}"]
    parts += [cell["source"], f"seed{cell['seed']}"]
    if not cell.get("first_token", True):
        parts.append("from2")
    if cell.get("start_token"):
        parts.append("bos")
    return folder / ("-".join([*parts, digest]) + ".json")


def _stated(cell: Cell) -> Cell:
    """What a result depends on, without where the decoder lies on this machine."""
    return {key: value for key, value in cell.items() if key != "decoder_folder"}


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
    decoder = load_frozen_decoder(cell["decoder_folder"], getattr(torch, cell["dtype"]))
    # On rows this short a step takes a fifth less time so than with SDPA.
    decoder.model.set_attn_implementation("eager")
    texts = CapacityTexts(books)
    if cell["kind"] == "search":
        result = _search(cell, decoder, texts, folder)
    else:
        result = _structure(cell, decoder, texts)
    record = {
        "cell": _stated(cell),
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
    file = cell_file(cell, folder)
    _write(file, record)
    return file


def _write(file: Path, record: Any) -> None:
    unfinished = file.with_suffix(f".{os.getpid()}.tmp")
    unfinished.write_text(json.dumps(record, indent=1), encoding="utf-8")
    unfinished.replace(file)


def settings_of(cell: Cell) -> CrammingSettings:
    """How a cell's texts are crammed."""
    names = ("rank", "targets", "first_token", "start_token")
    chosen = {key: cell[key] for key in names if key in cell}
    return CrammingSettings(method=cell["method"], **chosen, **cell["optimiser"])


def _search(
    cell: Cell, decoder: FrozenDecoder, texts: CapacityTexts, folder: Path
) -> dict[str, Any]:
    first = cell["first_token"]
    tried: dict[int, dict[str, Any]] = {}

    def accuracy(length: int) -> float:
        # Minutes of work, so each length has a file of its own.
        part = {**cell, "kind": f"length{length}", "lengths": [length]}
        file = cell_file(part, folder)
        if not file.is_file():
            _write(file, _length(part, decoder, texts, length))
        tried[length] = json.loads(file.read_text("utf-8"))
        kept = [t["accuracy" if first else "accuracy_from_token_2"] for t in tried[length]["texts"]]
        return sum(kept) / len(kept)

    # Upwards, not by halving: a step costs as much as the text is long, and failing most of all.
    longest = 0
    for length in (n for n in cell["lengths"] if n > 1 or first):
        if accuracy(length) < THRESHOLD:
            break
        longest = length
    gains = {n: _mean_of(entry, "token_gain") for n, entry in tried.items()}
    best = max(gains, key=lambda n: gains[n])
    return {
        "longest_length": longest,
        "lengths": {str(n): tried[n]["texts"] for n in sorted(tried)},
        "token_gain": gains[best],
        "at_length": best,
        "utilisation": gains[best] / theoretical_capacity(decoder.width, decoder.vocabulary),
        "steps_to_exact": _mean_of(tried[longest], "steps") if longest else None,
        "trained_parameters": tried[best]["trained_parameters"],
        "kept_parameters": tried[best]["kept_parameters"],
        "errors": [tried[n]["errors"] for n in sorted(tried) if n > longest],
    }


def _mean_of(entry: dict[str, Any], field: str) -> float:
    return sum(text[field] for text in entry["texts"]) / len(entry["texts"])


def _length(
    cell: Cell, decoder: FrozenDecoder, texts: CapacityTexts, length: int
) -> dict[str, Any]:
    """What is kept of each text of one length, and where it goes wrong."""
    settings = settings_of(cell)
    made = cram(
        decoder, texts.ids(cell["source"], decoder, cell["texts"], length), settings, cell["seed"]
    )
    readings = read_back(decoder, made)
    return {
        "texts": [
            _text(reading, text, another)
            for reading, text, another in zip(
                readings, made, _with_another_memory(decoder, made), strict=True
            )
        ],
        "trained_parameters": made[0].trained_parameters,
        "kept_parameters": made[0].kept_parameters,
        "errors": error_patterns(readings, decoder.tokenizer, texts.reference(decoder)),
    }


def _text(reading: Reading, made: CrammedText, another: float) -> dict[str, Any]:
    measured = reading.metrics()
    return {
        **{name: round(value, 4) for name, value in measured.items()},
        "accuracy_from_token_2": round(reading.metrics(first=False)["accuracy"], 4),
        "without": sum(reading.bare_right) / len(reading.ids),
        "another": another,
        "steps": made.steps,
        "stopped": made.stopped,
    }


@torch.no_grad()
def _with_another_memory(decoder: FrozenDecoder, made: Sequence[CrammedText]) -> list[float]:
    """Accuracy of each text behind what was crammed for the text before it, the control."""
    reader = MemoryReader(decoder, made[0].settings)
    kept = stack([made[i - 1] for i in range(len(made))])
    ids = torch.tensor([text.ids for text in made])
    right = reader.logits(kept, ids).argmax(-1) == ids
    return right.double().mean(1).tolist()


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
