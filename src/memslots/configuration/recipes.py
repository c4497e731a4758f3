"""Recipes: YAML files that say how a system is trained, with overrides from the command line."""

from __future__ import annotations

import copy
import re
from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml


def packaged_recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    folder = files("memslots.configuration")
    return sorted(
        entry.name.removesuffix(".yaml")
        for entry in folder.iterdir()
        if entry.name.endswith(".yaml")
    )


def load_recipe(
    name_or_path: str | Path,
    overrides: Sequence[str] = (),
    fields: Mapping[str, Collection[str]] | None = None,
) -> dict[str, Any]:
    """Reads a recipe and applies overrides.

    Args:
        name_or_path: A packaged recipe's name (`tiny`) or a YAML file of the same sections.
        overrides: `section.key=value` each, the value in YAML; see `apply_overrides`.
        fields: What may be set though the recipe leaves it out; see `apply_overrides`.

    Raises:
        ValueError: No such recipe, a file that is not a YAML mapping, or an unknown key.
    """
    name = str(name_or_path)
    if name in packaged_recipes():
        text = files("memslots.configuration").joinpath(f"{name}.yaml").read_text("utf-8")
    elif Path(name).is_file():
        text = Path(name).read_text("utf-8")
    else:
        raise ValueError(
            f"recipe {name!r} is neither a file nor a packaged recipe"
            f"{_nearest(name, packaged_recipes())}; packaged are {', '.join(packaged_recipes())}."
        )
    recipe = _parse(text, f"recipe {name!r}")
    if not isinstance(recipe, dict) or not recipe:
        raise ValueError(
            f"recipe {name!r} must be a YAML mapping of sections; it holds {recipe!r}."
        )
    return apply_overrides(recipe, overrides, fields)


def apply_overrides(
    settings: dict[str, Any],
    overrides: Sequence[str],
    fields: Mapping[str, Collection[str]] | None = None,
) -> dict[str, Any]:
    """A copy of `settings` with `key.sub=value` replaced.

    Only keys that exist can be set, and those of `fields`: a mistyped key would else be a new one.

    Args:
        settings: Nested dicts and lists; a list's items are named by number
            (`decoder.curriculum.0.steps=10`).
        overrides: The value of each is YAML: `0.1`, `true`, `[4, 16]`, `{256: 1.0}`.
        fields: By a mapping's place, such as `compressor.stages.*.training`, keys that it may have,
            as the fields of the class that it is handed to.

    Raises:
        ValueError: No `=`, a value that is not YAML, or an unknown key, with the nearest right one.
    """
    changed = copy.deepcopy(settings)
    for override in overrides:
        path, equals, value = override.partition("=")
        if not equals or not path.strip():
            raise ValueError(f"override {override!r} must be key=value, for example seed=1.")
        parsed = _parse(value, f"the value of {override!r}")
        parts = path.strip().split(".")
        target: Any = changed
        for depth, part in enumerate(parts):
            path, last = ".".join(parts[:depth]), depth == len(parts) - 1
            places = [place for place in fields or {} if last and fnmatchcase(path, place)]
            allowed = [name for place in places for name in (fields or {})[place]]
            key = _find(target, part, path, override, allowed)
            if last:
                target[key] = parsed
            else:
                target = target[key]
    return changed


def _find(target: Any, part: str, path: str, override: str, allowed: Collection[str] = ()) -> Any:
    """The key or index of `target` that `part` names, or a new one of `allowed`."""
    if isinstance(target, list):
        keys: dict[str, Any] = {str(index): index for index in range(len(target))}
    elif isinstance(target, dict):
        keys = {str(key): key for key in target}
    else:
        raise ValueError(f"override {override!r}: {path} is {target!r} and has no keys below it.")
    if part in allowed:
        return part
    if part not in keys:
        where = f"in {path}" if path else "at the top"
        known = ", ".join(keys) + (f" and {len(allowed)} more that may be set" if allowed else "")
        raise ValueError(
            f"override {override!r}: there is no key {part!r} "
            f"{where}{_nearest(part, [*keys, *allowed])}; known are {known}."
        )
    return keys[part]


class _Loader(yaml.SafeLoader):
    """Reads `1e-4` as the number that it is in YAML 1.2 and JSON: PyYAML wants `1.0e-4`."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def _nearest(name: str, known: list[str]) -> str:
    close = get_close_matches(name, known, n=1, cutoff=0.5)
    return f", did you mean {close[0]!r}?" if close else ""


def _parse(text: str, what: str) -> Any:
    try:
        return _Loader(text).get_single_data()
    except yaml.YAMLError as error:
        raise ValueError(f"{what} is not valid YAML: {' '.join(str(error).split())}.") from error
