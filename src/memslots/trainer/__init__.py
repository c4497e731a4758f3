"""Training on TRL: the compressor's trainer, its configuration, and the tiny decoder's.

Needs the extra `train`: `pip install -e '.[train]'` in a checkout.
"""

from importlib import import_module

_EXPORTS = {
    "CompressorConfig": "compressor_config",
    "CompressorTrainer": "compressor_trainer",
}

__all__ = ["CompressorConfig", "CompressorTrainer"]


def __getattr__(name: str):
    # Late, so that what needs no TRL does not load it.
    if name in _EXPORTS:
        return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
