"""Recipes, one YAML a system, and their loader; `MemslotsConfig` under the name users look for."""

from typing import TYPE_CHECKING

from .recipes import apply_overrides, load_recipe, packaged_recipes

if TYPE_CHECKING:
    from memslots.modeling import MemslotsConfig

__all__ = ["MemslotsConfig", "apply_overrides", "load_recipe", "packaged_recipes"]


def __getattr__(name: str):
    # Late, so that reading a recipe does not wait for torch.
    if name == "MemslotsConfig":
        from memslots.modeling import MemslotsConfig

        return MemslotsConfig
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
