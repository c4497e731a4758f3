"""The travelling room: what `save_pretrained` copies to the Hub; see tests/test_import_rule.py."""

from .configuration_memslots import MemslotsConfig
from .memory_files_memslots import Segment
from .memory_memslots import Memory
from .modeling_memslots import MemslotsModel, MemslotsOutput
from .processing_memslots import MemslotsProcessor

__all__ = [
    "Memory",
    "MemslotsConfig",
    "MemslotsModel",
    "MemslotsOutput",
    "MemslotsProcessor",
    "Segment",
]
