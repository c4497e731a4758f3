"""Verified memory: what slots lose is found while compressing, and kept; see `compress`.

    from memslots import verified

    memory = verified.compress(model, text, fidelity=0.95, exact=["numbers"])
    print(verified.report(memory))

The memories are ordinary ones, which any checkpoint reads; making them needs this package.
"""

from .compressing import compress
from .expanding import expand, expanded
from .report import MemoryReport, SegmentReport, report

__all__ = ["MemoryReport", "SegmentReport", "compress", "expand", "expanded", "report"]
