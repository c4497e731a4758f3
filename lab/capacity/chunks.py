"""Table 2 of the AIRI report: trained compressors of one vector a chunk, on chunks held out."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from memslots.data.books import iterate_books
from memslots.evaluation.metrics import score
from memslots.modeling import MemslotsModel
from memslots.modeling.layout_memslots import IGNORE, RECONSTRUCTION, Prompt, Row
from memslots.modeling.texts_memslots import PlainText


def draw_chunks(
    books: str | Path | None, encoder: PlainText, tokens: int, count: int, seed: int = 0
) -> list[str]:
    """Distinct chunks of books in random order, each of exactly `tokens` encoder tokens.

    Args:
        books: see `iterate_books`; the training split, as many books as it takes.
        encoder: plain-text view of the encoder's tokenizer.
        tokens: of a chunk.
        count: chunks.
        seed: of their order.

    Raises:
        ValueError: the books hold fewer.
    """
    found: dict[str, None] = {}
    for book in iterate_books(books, "train"):
        text = " ".join(book[: 40 * tokens * count].split())
        for span in encoder.segment(text, tokens):
            if len(span.ids) == tokens:
                found.setdefault(text[span.start : span.end], None)
        if len(found) >= 4 * count:
            break
    if len(found) < count:
        raise ValueError(
            f"the books hold {len(found)} distinct chunks of {tokens} tokens, fewer than {count}; "
            "give more books."
        )
    return random.Random(f"chunks {seed}").sample(list(found), count)


def write_split(chunks: Sequence[str], test: int, folder: Path) -> None:
    """Writes `train.jsonl` and `test.jsonl`, the last `test` chunks being held out.

    Args:
        chunks: distinct, in random order.
        test: chunks of the test: 200 of 1,000 and 1 in 1,000 of many, in the report.
        folder: is made where it is missing.
    """
    if not 0 < test < len(chunks):
        raise ValueError(f"test={test} must leave some of the {len(chunks)} chunks on both sides.")
    folder.mkdir(parents=True, exist_ok=True)
    cut = len(chunks) - test
    for name, rows in (("train", chunks[:cut]), ("test", chunks[cut:])):
        lines = "".join(json.dumps({"text": text}) + "\n" for text in rows)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")


def read_chunks(folder: Path, split: str) -> list[str]:
    """The chunks of a split that `write_split` wrote."""
    lines = (folder / f"{split}.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines]


@torch.no_grad()
def reconstruction_accuracy(
    model: MemslotsModel, texts: Sequence[str], batch_size: int = 256
) -> dict[str, Any]:
    """Teacher-forced share of decoder tokens right, token 1 included, pads and EOS not.

    Args:
        model: with its decoder.
        texts: each of one segment.
        batch_size: texts at once.

    Returns:
        `tokens` (a share with Wilson's interval; tokens of one chunk are not independent, so it is
        too narrow), `chunks` (exact ones, likewise) and `slots` of all texts.
    """
    processor = model.processor
    decoder = model.decoder
    right: list[bool] = []
    exact: list[bool] = []
    slots = 0
    for start in range(0, len(texts), batch_size):
        batch = list(texts[start : start + batch_size])
        memory = model.compress(batch)
        slots += sum(segment.slots for segment in memory.segments)
        rows, at = [], 0
        for text, document in zip(batch, memory.documents, strict=True):
            own = list(range(at, at + len(document)))
            target = processor.decoder_text.encode(text)
            rows.append(Row(own, Prompt(processor.bos_ids), target, task=RECONSTRUCTION))
            at += len(document)
        inputs = model.row_inputs(rows, memory, padding_side="right")
        labels = inputs.pop("labels")[:, 1:]
        with model.reading():
            logits = decoder(**inputs, use_cache=False).logits[:, :-1]
        for hits, wanted in zip(logits.argmax(-1) == labels, labels != IGNORE, strict=True):
            own_hits = hits[wanted].tolist()
            right += own_hits
            exact.append(all(own_hits))
    return {"tokens": score(right), "chunks": score(exact), "slots": slots}
