"""Memories made of random numbers, for tests of the store: no model is needed to keep slots."""

import hashlib

import torch

from memslots.modeling.memory_files_memslots import Segment
from memslots.modeling.memory_memslots import Memory, slots_for

FINGERPRINT = "a" * 64


def make_memory(
    texts: list[str],
    rate: int = 4,
    d_encoder: int = 8,
    fingerprint: str = FINGERPRINT,
    segment: int = 24,
    nested: bool = True,
) -> Memory:
    """One document a text, a token a character; slots are random numbers of the text's own."""
    documents, slots = [], []
    for i, text in enumerate(texts):
        document = []
        for start in range(0, len(text), segment):
            end = min(start + segment, len(text))
            document.append(Segment(i, start, end, end - start, slots_for(end - start, rate), rate))
        documents.append(tuple(document))
        generator = torch.Generator().manual_seed(len(text) * 1009 + sum(text.encode()))
        n_slots = sum(s.slots for s in document)
        slots.append(torch.randn(n_slots, d_encoder, generator=generator))
    return Memory(
        slots=torch.cat(slots),
        documents=tuple(documents),
        text_sha256=tuple(hashlib.sha256(text.encode()).hexdigest() for text in texts),
        unknown_tokens=tuple(text.count("?") for text in texts),
        rate=rate,
        rates=(2, 4, 8),
        nested=nested,
        fingerprint=fingerprint,
    )


def same_documents(one: Memory, other: Memory) -> bool:
    """Whether two memories are equal in all but their slots."""
    return (
        all(
            getattr(one, name) == getattr(other, name)
            for name in vars(one)
            if name not in ("slots", "documents")
        )
        and one.documents == other.documents
    )
