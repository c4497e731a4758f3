"""Memory and its control, another passage's memory, as methods of the comparison."""

from __future__ import annotations

import torch

from lab.compare.methods import Method
from lab.compare.reading import Context, Reader
from lab.compare.samples import Sample
from memslots.modeling import MemslotsModel
from memslots.modeling.layout_memslots import Prompt


def memory_methods(model: MemslotsModel) -> dict[str, Method]:
    """Methods of a compressor whose decoder is the reader's."""

    @torch.no_grad()
    def read(reader: Reader, sample: Sample, context: str, rate: int) -> Context:
        memory = model.compress(context, rate=rate)
        # Tokenised as beside a text, which a private-use character stands for.
        shown, _, asked = reader.split(sample.shown, "\ue0f4", sample.asked)
        before = [*model.processor.bos_ids, *shown]
        (row,) = model.memory_rows(memory, [(0, Prompt(before))])
        embeds = model.row_inputs([row], memory)["inputs_embeds"][0]
        _, cache = reader.read(embeds[len(before) :], reader.after(before), len(before))
        stored = memory.slots.numel() * memory.slots.element_size()
        return Context(cache, asked, len(embeds), len(embeds) - len(before), stored)

    return {
        "memory": lambda reader, sample, rate: read(reader, sample, sample.context, rate),
        "control": lambda reader, sample, rate: read(reader, sample, sample.other, rate),
    }
