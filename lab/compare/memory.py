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
    def read(
        reader: Reader, sample: Sample, context: str, rate: int, text_after: str = ""
    ) -> Context:
        memory = model.compress(context, rate=rate)
        # Tokenised as beside a text, which a private-use character stands for.
        shown, _, late, asked = reader.split(sample.shown, "\ue0f4", text_after, sample.asked)
        before = [*model.processor.bos_ids, *shown]
        (row,) = model.memory_rows(memory, [(0, Prompt(before))])
        embeds = model.row_inputs([row], memory)["inputs_embeds"][0]
        _, cache = reader.read(embeds[len(before) :], reader.after(before), len(before))
        if late:
            _, cache = reader.read(late, cache, len(embeds))
        stored = memory.slots.numel() * memory.slots.element_size() + len(text_after.encode())
        after = len(embeds) + len(late)
        return Context(cache, asked, after, after - len(before), stored)

    def and_tail(reader: Reader, sample: Sample, rate: int) -> Context:
        """Half of the tokens that the rate leaves are the text's last ones, as they are."""
        ids = reader.ids(sample.context)
        at = len(ids) - len(ids) // (2 * rate)
        early, late = reader.tokenizer.decode(ids[:at]), reader.tokenizer.decode(ids[at:])
        coarser = min(2 * rate, max(model.config.compression_rates))
        return read(reader, sample, early, coarser, late)

    return {
        "memory": lambda reader, sample, rate: read(reader, sample, sample.context, rate),
        "memory and tail": and_tail,
        "control": lambda reader, sample, rate: read(reader, sample, sample.other, rate),
    }
