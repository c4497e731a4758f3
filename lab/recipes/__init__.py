"""The lab's recipes: those of the package need no decoder of their own and no rows of the lab."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from memslots.configuration import load_recipe


def recipe_file(name: str) -> Path:
    """The file of a lab recipe."""
    return Path(__file__).parent / f"{name}.yaml"


def lab_recipe(name: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """A lab recipe, read as `load_recipe` reads those of the package."""
    return load_recipe(recipe_file(name), overrides)
