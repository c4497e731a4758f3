"""Samples that a checkpoint's decoder answers from texts and memories; answers are kept at once."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from lab.compare.methods import text as read_text
from lab.compare.reading import Context, Reader, ask
from lab.compare.samples import Sample
from memslots import Memory, MemslotsModel
from memslots.cli.options import resolve_model
from memslots.modeling.layout_memslots import Prompt

Record = dict[str, Any]

_CONTEXT = "\ue0f4"  # a private-use character: no text has it


class Asked:
    """Answers of one checkpoint in bfloat16, kept as JSON lines; those that are there stay.

    Args:
        checkpoint: the compressor, a folder or `smol`.
        file: of the answers.

    Raises:
        ValueError: the file holds another checkpoint's.
    """

    def __init__(self, checkpoint: str, file: Path):
        name = resolve_model(checkpoint)
        self.model = MemslotsModel.from_pretrained(name, dtype=torch.bfloat16).eval()
        self.reader = Reader(self.model.decoder, self.model.processor.tokenizer)
        self.records = read_records(file, self.model.fingerprint)
        self._file = file
        file.parent.mkdir(parents=True, exist_ok=True)

    def find(self, **place: Any) -> Record | None:
        """The answer that has these values."""
        same = (r for r in self.records if all(r[key] == value for key, value in place.items()))
        return next(same, None)

    def ask(self, sample: Sample, make: Callable[[], Context], new_tokens: int) -> Record:
        """Figures of `lab.compare.reading.ask` and the right answer.

        Args:
            sample: whose answer is scored.
            make: reads its context.
            new_tokens: most tokens that are said.
        """
        with torch.no_grad():
            figures = ask(self.reader, make, sample.answer, new_tokens)
        return {**figures, "answer": sample.answer.strip()}

    def keep(self, record: Record) -> None:
        """Writes an answer down, with what `find` finds it by."""
        record["fingerprint"] = self.model.fingerprint
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
        self.records.append(record)

    def of_text(self, samples: Sequence[Sample], context: str) -> list[Context]:
        """The decoder's reading of a text in the samples' place, read once; empty for none.

        Args:
            samples: with the same words before the context.
            context: the text.
        """
        first = read_text(self.reader, samples[0]._replace(context=context), 1)
        contexts = [first]
        for sample in samples[1:]:
            asked = sample.asked if context else sample.asked.lstrip("\n")
            contexts.append(
                first._replace(asked=self.reader.split(sample.shown, context, asked)[2])
            )
        return contexts

    @torch.no_grad()
    def of_memory(
        self, samples: Sequence[Sample], memory: Memory, after: str = ""
    ) -> list[Context]:
        """Its reading of a memory of one document, then of the text `after`, once for all."""
        parts = [self.reader.split(s.shown, _CONTEXT, after + s.asked) for s in samples]
        before = [*self.model.processor.bos_ids, *parts[0][0]]
        (row,) = self.model.memory_rows(memory, [(0, Prompt(before))])
        embeds = self.model.row_inputs([row], memory)["inputs_embeds"][0]
        _, cache = self.reader.read(embeds[len(before) :], self.reader.after(before), len(before))
        beside = len(self.reader.ids(after)) if after else 0
        tokens = len(embeds) - len(before) + beside
        stored = memory.slots.numel() * memory.slots.element_size()
        return [Context(cache, asked, len(embeds), tokens, stored) for _, _, asked in parts]

    def cut(self, text: str, most: int, keep_end: bool = False) -> str:
        """The first tokens of a text, or its last, at most so many."""
        ids = self.reader.ids(text)
        return self.reader.tokenizer.decode(ids[-most:] if keep_end else ids[:most])


def read_records(file: Path, fingerprint: str = "") -> list[Record]:
    """Answers on disk, none where the file is missing.

    Args:
        file: what `Asked` wrote.
        fingerprint: of the checkpoint that goes on with them; any without.

    Raises:
        ValueError: they are another checkpoint's.
    """
    if not file.is_file():
        return []
    records = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    for found in {record["fingerprint"] for record in records}:
        if fingerprint and found != fingerprint:
            raise ValueError(
                f"{file} holds answers of compressor {found[:12]}, and this one is "
                f"{fingerprint[:12]}; give another folder of results."
            )
    return records


def whole(records: Sequence[Record], *keys: str) -> list[Record]:
    """Records of what was asked in every way; a run that was stopped leaves some that were not.

    Args:
        records: with a `way` each.
        keys: what tells apart what is asked about.
    """
    ways = {record["way"] for record in records}
    asked: dict[tuple[Any, ...], set[str]] = {}
    for record in records:
        asked.setdefault(tuple(record[key] for key in keys), set()).add(record["way"])
    return [r for r in records if asked[tuple(r[key] for key in keys)] == ways]
