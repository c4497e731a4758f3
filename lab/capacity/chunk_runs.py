"""Table 2 of `python -m lab capacity`: trains each column at each size and measures it."""

from __future__ import annotations

import copy
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from lab.capacity import latent_converters, pools  # noqa: F401, whose names the columns have
from lab.capacity.chunks import (
    draw_chunks,
    read_chunks,
    reconstruction_accuracy,
    write_split,
)
from lab.training.run import run_recipe
from memslots.modeling import MemslotsModel
from memslots.modeling.texts_memslots import PlainText


def run_chunks(
    section: dict[str, Any],
    output: Path,
    books: str | None,
    progress: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Trains and measures what has no result yet; the results, in the section's order.

    Args:
        section: `chunks` of the settings.
        output: folder of runs, data and results.
        books: see `iterate_books`.
        progress: is told what begins.
    """
    results = []
    for column in section["columns"]:
        for size in section["sizes"]:
            if size["chunks"] not in column.get("only", [size["chunks"]]):
                continue
            words = re.findall(r"[\w.]+", column["name"])
            name = f"{'_'.join(words)}-{size['chunks']}"
            file = output / f"{name}.json"
            recipe = copy.deepcopy(section["recipe"])
            recipe["compressor"]["config"].update(column["config"])
            recipe["compressor"]["stages"][0]["training"]["max_steps"] = size["max_steps"]
            asked = {"recipe": recipe, "size": size, "tokens": section["tokens"]}
            if file.is_file() and json.loads(file.read_text("utf-8"))["asked"] == asked:
                results.append(json.loads(file.read_text("utf-8")))
                continue
            progress(f"table 2: {column['name']}, {size['chunks']:,} chunks ...")
            started = time.perf_counter()
            run = output / name
            run_recipe(recipe, run, stage="decoder", books=books)
            data = output / f"data-{size['chunks']}"
            if not (data / "test.jsonl").is_file():
                encoder = PlainText(AutoTokenizer.from_pretrained(run / "encoder_tokenizer"))
                drawn = draw_chunks(books, encoder, section["tokens"], size["chunks"])
                write_split(drawn, size["test"], data)
            last = run_recipe(recipe, run, stage="chunks", books=books, data_dir=str(data))
            model = MemslotsModel.from_pretrained(last).eval()
            record = {
                "asked": asked,
                "column": column["name"],
                "size": size,
                "test": reconstruction_accuracy(model, read_chunks(data, "test")),
                "train": reconstruction_accuracy(
                    model, read_chunks(data, "train")[: 5 * size["test"]]
                ),
                "trained_parameters": sum(
                    p.numel() for n, p in model.named_parameters() if not n.startswith("decoder.")
                ),
                "seconds": round(time.perf_counter() - started, 1),
            }
            unfinished = file.with_suffix(".tmp")
            unfinished.write_text(json.dumps(record, indent=1), encoding="utf-8")
            unfinished.replace(file)
            results.append(record)
    return results
