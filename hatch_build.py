"""Lays the modeling code out beside the embedded weights, where git does not keep it."""

import runpy
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CheckpointCode(BuildHookInterface):
    """Run by hatchling before it gathers the wheel's files."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Do what `memslots.embedded` does in a checkout; `artifacts` then takes the files in."""
        package = Path(self.root, "src", "memslots")
        embedded = runpy.run_path(str(package / "checkpoints.py"))["embedded"]
        embedded("tiny")  # `smol` is laid out where it is used, with the decoder that is there
