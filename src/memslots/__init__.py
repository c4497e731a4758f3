"""memslots turns a long context into a few memory slots that your Hugging Face LLM reads."""

from importlib import import_module

__version__ = "0.2.0"

_EXPORTS = {
    "ChatMemory": "chat",
    "Memory": "modeling",
    "MemslotsConfig": "modeling",
    "MemslotsModel": "modeling",
    "MemslotsProcessor": "modeling",
    "new_compressor": "making",
    "embedded": "checkpoints",
    "prefill": "prefix",
}

__all__ = [
    "ChatMemory",
    "Memory",
    "MemslotsConfig",
    "MemslotsModel",
    "MemslotsProcessor",
    "__version__",
    "embedded",
    "new_compressor",
    "prefill",
]


def __getattr__(name: str):
    # Late, so that `memslots --help` does not wait for torch.
    if name in _EXPORTS:
        return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
