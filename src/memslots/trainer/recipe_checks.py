"""What is wrong with a recipe's keys and the kinds of their values, found before anything loads."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from memslots.modeling import MemslotsConfig
from memslots.trainer.adapt import adapt_to_decoder
from memslots.trainer.compressor_config import CompressorConfig, recipe_fields

_WORDS = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "text",
    dict: "a mapping",
    type(None): "null",
}
"""How a type is told; what is not here is a list."""

_STAGE = {
    "name": str,
    "data": list[dict],
    "training": dict,
    "config": dict,
    "adapt": dict,
    "new_encoder": dict | None,
    "after": str | None,
    "start": str,
    "pool_unit": str | None,
    "by_name_only": bool,
    "tokens": int,
    "batch_size": int,
    "minutes": float,
}
_SECTION = {
    "seed": int,
    "stages": list[dict],
    "training": dict,
    "config": dict,
    "encoder": str | dict,  # a dict in the lab's recipes, which make their own
    "decoder": str,
    "checkpoint": str,
    "encoder_kwargs": dict | None,
    "decoder_kwargs": dict | None,
    "threads": int,
}
_ABOVE_0 = ("tokens", "batch_size", "rows", "threads", "minutes")


def check_recipe(recipe: dict[str, Any], makes_models: bool = True) -> None:
    """Refuse a recipe that lacks a key, or has one that nothing reads or of another kind.

    Args:
        recipe: what `load_recipe` gave.
        makes_models: whether its `encoder` and `decoder`, or its `checkpoint`, are what the first
            stage starts from.

    Raises:
        ValueError: names the key, what it holds and what is allowed.
    """
    section = recipe.get("compressor")
    if not isinstance(section, dict):
        raise ValueError(
            f"the recipe's section `compressor` is {section!r}; it must be a mapping with "
            f"{', '.join(_SECTION)}."
        )
    needed = ["seed", "training", "stages"]
    if "checkpoint" not in section:
        needed += ["config", "encoder", "decoder"] if makes_models else ["config"]
    _check("compressor", section, _SECTION, needed)
    if not section["stages"]:
        raise ValueError("compressor.stages lists no stage; give at least one with name and data.")
    _check_arguments("compressor", section, makes_models)
    names: list[str] = []
    for number, stage in enumerate(section["stages"], start=1):
        place = f"stage {stage['name']!r}" if "name" in stage else f"stage {number}"
        _check(place, stage, _STAGE, ["name", "data"])
        if stage["name"] in names:
            raise ValueError(f"two stages are named {stage['name']!r}; give each its own name.")
        if not stage["data"]:
            raise ValueError(f"{place} lists no source in `data`; give at least one.")
        names.append(stage["name"])
        _check_arguments(place, stage, makes_models)


def check_values(place: str, values: Mapping[str, Any], kinds: Mapping[str, Any]) -> None:
    """Refuse keys that `kinds` does not have, and values of other kinds than it says.

    Args:
        place: what holds them, before every message.
        values: by key.
        kinds: of each key a type, or an annotation; what says nothing may be anything.

    Raises:
        ValueError: names the key, what it holds and what is allowed.
    """
    for name, value in values.items():
        if name not in kinds:
            known = f"; it may have {', '.join(kinds)}" if len(kinds) < 20 else ""
            raise ValueError(f"{place}{name!r} is unknown{near(str(name), kinds)}{known}.")
        if not _fits(value, kinds[name]):
            raise ValueError(f"{place}{name} is {value!r}; it must be {_told(kinds[name])}.")
        if name in _ABOVE_0 and isinstance(value, int | float) and value <= 0:
            raise ValueError(f"{place}{name} is {value}; it must be above 0.")


def near(name: str, known: Iterable[str]) -> str:
    """A word in brackets about the known name that is nearest, if one is near."""
    close = get_close_matches(name, known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _check_arguments(place: str, holder: Mapping[str, Any], makes_models: bool) -> None:
    """Of `training`, `config` and `adapt`."""
    training, fields = get_type_hints(CompressorConfig), recipe_fields()
    named = {name: training[name] for name in fields["compressor.training"]}
    check_values(f"{place}: training: ", holder.get("training", {}), named)
    if makes_models:  # whoever makes others, as the lab does, may have fields of their own
        # Their kinds are the configuration's to judge.
        config = dict.fromkeys(MemslotsConfig.__annotations__, Any)
        check_values(f"{place}: config: ", holder.get("config", {}), config)
    if "adapt" in holder:
        parameters = inspect.signature(adapt_to_decoder).parameters.values()
        kinds = {each.name: each.annotation for each in parameters if each.name != "model"}
        _check(f"{place}: adapt", holder["adapt"], kinds, ["decoder"])


def _check(
    place: str, values: Mapping[str, Any], kinds: Mapping[str, Any], needed: Sequence[str]
) -> None:
    for name in needed:
        if name not in values:
            raise ValueError(f"{place} lacks {name!r}; it needs {', '.join(needed)}.")
    check_values(f"{place}: ", values, kinds)


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value is of a type or an annotation."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return any(_fits(value, part) for part in parts)
    if origin in (list, Sequence):  # text is a sequence too, of letters
        return isinstance(value, list) and all(_fits(each, parts[0]) for each in value)
    kind = origin or kind
    if not isinstance(kind, type) or kind in (Any, inspect.Parameter.empty):
        return True
    if isinstance(value, bool) or kind is not float:
        return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    return isinstance(value, int | float)


def _told(kind: Any) -> str:
    parts = get_args(kind) if get_origin(kind) in (Union, UnionType) else [kind]
    words = [_WORDS.get(get_origin(part) or part, "a list") for part in parts]
    return " or ".join(dict.fromkeys(words))
