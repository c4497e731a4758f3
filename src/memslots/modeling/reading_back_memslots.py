"""Texts from memories: kept ones exactly, others as the decoder reads them back.

`reconstruct` is a method of `MemslotsModel`.
"""

from collections.abc import Sequence
from typing import Any

from .decoders_memslots import check_generate_kwargs
from .layout_memslots import beside_slots, reading_row
from .memory_memslots import Memory


def reconstruct(
    self, memory: Memory, batch_size: int = 32, exact: bool = False, **generate_kwargs
) -> str | list[str]:
    """The text that the decoder reads back from the slots, segment by segment (`<AE>`, eq. 4).

    Args:
        self: a `MemslotsModel`.
        memory: one document or several; of several, a list is returned.
        batch_size: segments that are generated at once.
        exact: whether the text must be the one that was compressed, byte for byte; the memory was
            then made with `compress(..., keep_text=True)`, and no decoder is asked.
        generate_kwargs: as in `generate`; greedy by default.

    Raises:
        ValueError: with `exact`, segments whose text was not kept, or one that has another SHA-256
            than the text that was compressed.

    Examples:
        >>> model.reconstruct(model.compress("Ann is here.", keep_text=True), exact=True)
        'Ann is here.'
    """
    self.check_memory(memory)
    check_generate_kwargs({"batch_size": batch_size, **generate_kwargs})
    if exact and generate_kwargs:
        raise ValueError(
            f"exact=True leaves nothing to choose; leave out {sorted(generate_kwargs)}."
        )
    if generate_kwargs.get("return_dict_in_generate"):
        raise ValueError("reconstruct returns text; return_dict_in_generate is for generate.")
    chosen = range(len(memory.segments))
    if exact:
        kept = memory.kept_texts(chosen)
        texts = [memory.expand(i) if text is None else text for i, text in enumerate(kept)]
    else:
        texts = read_back(self, memory, chosen, batch_size, generate_kwargs)
    rest = iter(texts)
    documents = ["".join(next(rest) for _ in document) for document in memory.documents]
    return documents[0] if len(documents) == 1 else documents


def read_back(
    model, memory: Memory, chosen: Sequence[int], batch_size: int, generate_kwargs: dict[str, Any]
) -> list[str]:
    """What the decoder writes of each of the `chosen` segments."""
    processor = model.processor
    texts = dict(enumerate(memory.segment_texts))
    beside = beside_slots(memory, processor.decoder_text.encode)
    # Segments of like length end together, and none is cut short or runs far beyond its end.
    order = sorted((i for i in chosen if texts[i] is None), key=lambda i: memory.segments[i].tokens)
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        rows = [reading_row(i, processor.bos_ids, [], beside[i]) for i in batch]
        longest = max(memory.segments[i].tokens for i in batch)
        kwargs = {"max_new_tokens": 2 * longest + 16, "do_sample": False, **generate_kwargs}
        output = model.generate_rows(rows, memory, kwargs)
        for i, ids in zip(batch, output, strict=True):
            texts[i] = processor.decode(ids)
    return [texts[i] or "" for i in chosen]
