"""Per-text optimised memory vectors: how much one vector can hold for a frozen decoder."""

from memslots.cramming.capacity import (
    LongestLength,
    longest_length,
    search_longest,
    theoretical_capacity,
)
from memslots.cramming.frozen_decoder import FrozenDecoder, load_frozen_decoder
from memslots.cramming.per_text import CrammedText, cram
from memslots.cramming.reading import Reading, generate_from_vectors, read_back
from memslots.cramming.settings import METHODS, TARGETS, CrammingSettings

__all__ = [
    "METHODS",
    "TARGETS",
    "CrammedText",
    "CrammingSettings",
    "FrozenDecoder",
    "LongestLength",
    "Reading",
    "cram",
    "generate_from_vectors",
    "load_frozen_decoder",
    "longest_length",
    "read_back",
    "search_longest",
    "theoretical_capacity",
]
