"""Encoders compiled by `torch.compile`: for a corpus, or a server's life."""

from __future__ import annotations

import os
import shutil
import sys
from typing import Any

from memslots.modeling import MemslotsModel


def compile_encoder(model: MemslotsModel, **options: Any) -> None:
    """Compile the encoder of `model` in place.

    Shapes are symbolic, so whatever lengths texts have there are no more graphs than two: for
    passes of several segments, and of one. Each takes up to half a minute when it is first needed.
    Slots are those of the encoder as it is, up to rounding; nothing of it is saved.

    Args:
        model: A compressor.
        options: Of `torch.compile`; `dynamic=True` by default.

    Raises:
        ValueError: On a CPU, no C++ compiler.

    Examples:
        >>> compile_encoder(model, backend="eager")  # doctest: +SKIP
    """
    if model.encoder.device.type == "cpu" and "backend" not in options:
        check_compiler()
    model.encoder.compile(**{"dynamic": True, **options})


def check_compiler() -> None:
    """Refuse to compile for a CPU without the C++ compiler that torch would call.

    Raises:
        ValueError: it is not there.
    """
    usual = {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
    compiler = os.environ.get("CXX", usual)
    if shutil.which(compiler) is None:
        raise ValueError(
            f"compiling for a CPU needs a C++ compiler, and there is no {compiler!r} here; "
            "install one (Debian: apt install g++), name another in CXX, or do not compile."
        )
