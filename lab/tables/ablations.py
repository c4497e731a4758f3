"""Ablations of a recipe: what pre-training, each of its tasks and the markers are worth.

PCC, section 3.5, table 6 and figure 4. Each ablation is the same recipe with one thing taken out,
so that all start from the same weights and read the same rows.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

from memslots.trainer.run import previous_stage

Recipe = dict[str, Any]

_TEXT_KINDS = ("books", "persona_texts", "fineweb", "pg19", "text")


def stage_chain(recipe: Recipe, target: str) -> list[dict[str, Any]]:
    """The stages that lead to `target`, itself included, in their order.

    Raises:
        ValueError: there is no such stage.
    """
    stages = recipe["compressor"]["stages"]
    by_name = {stage["name"]: stage for stage in stages}
    if target not in by_name:
        raise ValueError(f"stage {target!r} is not in this recipe; its stages are {[*by_name]}.")
    chain = [by_name[target]]
    while (before := previous_stage(stages, chain[0]["name"])) is not None:
        chain.insert(0, by_name[before])
    return chain


def is_pretraining(stage: dict[str, Any]) -> bool:
    """Whether a stage reads texts and not questions."""
    # JSON and Parquet files may hold either; texts are those that are cut into pieces.
    return all(source["kind"] in _TEXT_KINDS or "tokens" in source for source in stage["data"])


def fine_tuning_stage(recipe: Recipe) -> str:
    """The first stage that reads questions: what the ablations are measured after.

    Raises:
        ValueError: there is none, or nothing is pre-trained before it.
    """
    for stage in recipe["compressor"]["stages"]:
        if not is_pretraining(stage):
            if not any(map(is_pretraining, stage_chain(recipe, stage["name"]))):
                break
            return stage["name"]
    raise ValueError(
        "this recipe has no stage of texts followed by one of questions, so there is no "
        "pre-training to take out; name a stage with --stage, or ablate another recipe."
    )


def _whole(recipe: Recipe) -> None:
    """Takes nothing out."""


def _without_pretraining(recipe: Recipe) -> None:
    section = recipe["compressor"]
    section["stages"] = [stage for stage in section["stages"] if not is_pretraining(stage)]


def _without_reconstruction(recipe: Recipe) -> None:
    section = recipe["compressor"]
    # A stage of reconstruction alone, PCC's warm-up, has nothing left to learn.
    section["stages"] = [stage for stage in section["stages"] if not _reconstructs_only(stage)]
    for stage in section["stages"]:
        task = "completion_weight" if is_pretraining(stage) else "reconstruction_share"
        stage.setdefault("training", {})[task] = 1.0 if is_pretraining(stage) else 0.0


def _without_completion(recipe: Recipe) -> None:
    for stage in recipe["compressor"]["stages"]:
        if is_pretraining(stage):
            stage.setdefault("training", {})["completion_weight"] = 0.0


def _without_markers(recipe: Recipe) -> None:
    recipe["compressor"]["config"]["markers"] = "none"


def _one_pair(recipe: Recipe) -> None:
    recipe["compressor"]["config"]["markers"] = "memory"


def _reconstructs_only(stage: dict[str, Any]) -> bool:
    return is_pretraining(stage) and stage.get("training", {}).get("completion_weight") == 0


ABLATIONS: Mapping[str, Callable[[Recipe], None]] = {
    "whole": _whole,
    "no_pretraining": _without_pretraining,
    "no_reconstruction": _without_reconstruction,
    "no_completion": _without_completion,
    "no_markers": _without_markers,
    "one_marker_pair": _one_pair,
}
"""Every ablation: changes a recipe in place."""


def ablated(recipe: Recipe, name: str, target: str) -> Recipe:
    """A copy of `recipe` that ends at stage `target`, with what `name` says taken out.

    Args:
        recipe: what `load_recipe` gave.
        name: of `ABLATIONS`.
        target: the stage after which the ablations are compared.

    Raises:
        ValueError: no such ablation or stage.
    """
    if name not in ABLATIONS:
        raise ValueError(f"ablation {name!r} is unknown; there are {', '.join(ABLATIONS)}.")
    changed = copy.deepcopy(recipe)
    section = changed["compressor"]
    section["stages"] = copy.deepcopy(stage_chain(recipe, target))
    ABLATIONS[name](changed)
    for stage in section["stages"]:  # the chain is the order now, and what it named may be gone
        stage.pop("after", None)
    return changed
