"""The travelling room: what `save_pretrained` copies to the Hub.

Flat files that import one another as `from .sibling import name` and otherwise only torch,
transformers (with tokenizers and tqdm, which it brings), safetensors, huggingface_hub and, guarded,
peft and sentencex.
"""

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
