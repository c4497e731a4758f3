"""What is known of a checkpoint, for its card: from its files alone, and nothing beyond them."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from huggingface_hub import hf_hub_download, metadata_load
from huggingface_hub.errors import EntryNotFoundError, HFValidationError
from huggingface_hub.utils import validate_repo_id
from transformers import AutoModelForCausalLM

from memslots.data import ADAPTERS
from memslots.modeling import MemslotsConfig, MemslotsModel

logger = logging.getLogger(__name__)

CARD, HANDLER, RECIPE, RESULTS = "README.md", "handler.py", "recipe.yaml", "results.json"
CURVE, TRAINING, NOTICE = "curve.jsonl", "training.json", "NOTICE"

STATED = ("license", "license_name", "license_link", "language", "datasets", "base_model")
"""Metadata that people state and no file of a checkpoint tells: kept from an earlier card."""

_GENERATED = {
    "personas": "generated short biographies, with questions",
    "persona_texts": "generated short biographies",
    "books": "public-domain books",
}
_ENGLISH = {*_GENERATED, "fineweb", "squad", "hotpotqa", "adversarialqa", "natural_questions"} | {
    "gsm8k",
    "sst2",
    "wsc",
    "pg19",
}
_PATH = re.compile(r"(?:(?<=[\s(\"'=])|^)(?:[A-Za-z]:\\|~|\.{0,2}/)[^\s)\"']*[^\s)\"':;,.]")


@dataclass(frozen=True)
class Stage:
    """One stage of training.

    Args:
        name: as the recipe names it.
        data: each source in words.
        kinds: each source's name.
        length: how long, in words, as the recipe sets it.
    """

    name: str
    data: tuple[str, ...]
    kinds: tuple[str, ...]
    length: str = ""


@dataclass(frozen=True)
class CheckpointFacts:
    """Everything that a card may state; what is not known is None or empty.

    Args:
        config: the checkpoint's configuration.
        parameters: how many are `trained` and `frozen`.
        results: of `memslots eval`, where they are this compressor's.
        stages: training up to this checkpoint, from the recipe beside it.
        has_recipe: whether `recipe.yaml` is there.
        curve: the last measurement of `curve.jsonl` (`lab.smol.train`): `step`, `seen` tokens, and
            what is `held out`.
        training: of `training.json`, where no recipe tells: the `data` and the `runs`, in words.
        trains_decoder: whether that recipe trains the decoder too, before the compressor.
        has_handler: whether `handler.py` is there.
        stated: metadata of an earlier card, see `STATED`.
    """

    config: MemslotsConfig
    parameters: dict[str, int]
    results: dict[str, Any] | None = None
    stages: tuple[Stage, ...] = ()
    has_recipe: bool = False
    curve: dict[str, Any] | None = None
    training: dict[str, list[str]] | None = None
    trains_decoder: bool = False
    has_handler: bool = False
    stated: dict[str, Any] = field(default_factory=dict)

    @property
    def encoder(self) -> str | None:
        """The encoder's repository on the Hub."""
        return hub_id(self.config.encoder_name_or_path)

    @property
    def decoder(self) -> str | None:
        """The decoder's repository on the Hub."""
        return hub_id(self.config.decoder_name_or_path)

    @property
    def base_models(self) -> list[str]:
        """Repositories that this checkpoint is built on, the decoder first."""
        return list(dict.fromkeys(name for name in (self.decoder, self.encoder) if name))

    @property
    def kinds(self) -> list[str]:
        """Names of all sources of training, in order."""
        return list(dict.fromkeys(kind for stage in self.stages for kind in stage.kinds))

    @property
    def datasets(self) -> list[str]:
        """Sets on the Hub that it was trained on."""
        ids = [_set_id(kind) for kind in self.kinds]
        return list(dict.fromkeys(name for name in ids if name))

    @property
    def language(self) -> str | None:
        """The one language of all training data, if it is known of every source."""
        return "en" if self.kinds and set(self.kinds) <= _ENGLISH else None

    @property
    def is_of_personas(self) -> bool:
        """Whether it was trained or measured on the generated biographies."""
        measured = self.results is not None and self.results.get("suite") == "tiny"
        return "personas" in self.kinds or (measured and not self.kinds)


def gather_facts(config: MemslotsConfig, folder: str | Path) -> CheckpointFacts:
    """Reads what stands beside a checkpoint's weights.

    Args:
        config: the checkpoint's.
        folder: its folder; `results.json`, `recipe.yaml`, `curve.jsonl`, `training.json` and
            `README.md` may be missing.

    Raises:
        ValueError: a results, recipe or training file that cannot be read.
    """
    folder = Path(folder)
    recipe = _read_recipe(folder / RECIPE)
    return CheckpointFacts(
        config=config,
        parameters=count_parameters(config),
        results=_read_results(folder / RESULTS, config.fingerprint),
        stages=tuple(_stages(recipe, folder.name)) if recipe else (),
        has_recipe=recipe is not None,
        curve=_read_curve(folder / CURVE),
        training=_read_training(folder / TRAINING),
        trains_decoder=recipe is not None and "decoder" in recipe,
        has_handler=(folder / HANDLER).is_file(),
        stated=_read_stated(folder / CARD),
    )


def trained_on(model: str, revision: str | None = None, token: str | bool | None = None) -> str:
    """The kinds of text in a checkpoint's training, in words; empty if no recipe says.

    Args:
        model: folder or repository.
        revision: of a repository.
        token: as everywhere in huggingface_hub.

    Raises:
        ValueError: a recipe that cannot be read.
    """
    path = Path(model, RECIPE)
    if not path.parent.is_dir():
        try:
            path = Path(hf_hub_download(model, RECIPE, revision=revision, token=token))
        except EntryNotFoundError:
            return ""
    stages = _stages(_read_recipe(path) or {}, Path(model).name)
    kinds = dict.fromkeys(kind for stage in stages for kind in stage.kinds)
    return ", ".join(_title(kind) for kind in kinds)


def hub_id(name: str | None) -> str | None:
    """`name` where it is a repository's id and no folder here; local paths never reach a card."""
    if name is None or Path(name).exists():
        return None
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name


def without_paths(lines: Iterable[str]) -> list[str]:
    """The lines, with local paths in them left out."""
    return [_PATH.sub("a local copy", line) for line in lines]


def count_parameters(config: MemslotsConfig) -> dict[str, int]:
    """Parameters that training changes and those it leaves, the decoder's among the latter.

    An encoder of the decoder's own layers has no others.
    """
    with torch.device("meta"):  # shapes only: a decoder of any size costs nothing
        compressor = MemslotsModel(config, load_decoder=False)
        decoder = AutoModelForCausalLM.from_config(config.decoder_config)
    counts = {"trained": 0, "frozen": sum(p.numel() for p in decoder.parameters())}
    for parameter in compressor.parameters():
        if parameter.requires_grad:
            counts["trained"] += parameter.numel()
        elif config.encoder_layers is None:
            counts["frozen"] += parameter.numel()
    return counts


def _set_id(kind: str) -> str | None:
    return ADAPTERS[kind].hub_id if kind in ADAPTERS else None


def _title(kind: str) -> str:
    return _GENERATED.get(kind) or (ADAPTERS[kind].title if kind in ADAPTERS else kind)


def _read_results(path: Path, fingerprint: str | None) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        results = json.loads(path.read_text("utf-8"))
        measured = results["checkpoint"]["fingerprint"]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} holds no results of `memslots eval` ({error!r}); measure again or remove it."
        ) from error
    if fingerprint is not None and measured != fingerprint:
        logger.warning(
            "%s is of compressor %s and this checkpoint is %s: the card leaves it out.",
            path.name,
            measured[:12],
            fingerprint[:12],
        )
        return None
    return results


def _read_curve(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a curve of training ({error}); remove it.") from error
    measured = [line for line in lines if "held out" in line]
    return measured[-1] if measured else None


def _read_training(path: Path) -> dict[str, list[str]] | None:
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text("utf-8"))
        return {name: [str(words) for words in record[name]] for name in ("data", "runs")}
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} must hold the lists `data` and `runs` ({error!r}); correct it or remove it."
        ) from error


def _read_recipe(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        recipe = yaml.safe_load(path.read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a recipe: {' '.join(str(error).split())}") from error
    if not isinstance(recipe, dict) or "stages" not in recipe.get("compressor", {}):
        raise ValueError(f"{path} is not a recipe: it has no compressor.stages.")
    return recipe


def _read_stated(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    metadata = metadata_load(path) or {}
    return {key: metadata[key] for key in STATED if metadata.get(key)}


def _stages(recipe: dict[str, Any], folder: str) -> Iterator[Stage]:
    """The stages that led to this checkpoint; none if the recipe leaves open which one it is."""
    stages = {stage["name"]: stage for stage in recipe.get("compressor", {}).get("stages", ())}
    names = list(stages)
    before = {
        name: stages[name].get("after") or (names[i - 1] if i else None)
        for i, name in enumerate(names)
    }
    ends = [name for name in names if name not in before.values()]
    last = recipe.get("stage") or (folder if folder in stages else None)
    if last is None and len(ends) == 1:
        last = ends[0]
    chain: list[str] = []
    while last is not None and last in stages:
        chain.insert(0, last)
        last = before[last]
    for name in chain:
        sources = stages[name]["data"]
        yield Stage(
            name,
            tuple(_in_words(source) for source in sources),
            tuple(source["kind"] for source in sources),
            _length(stages[name]),
        )


def _length(stage: dict[str, Any]) -> str:
    training = stage.get("training", {})
    for count, unit in (
        (stage.get("minutes"), "minute"),
        (training.get("max_steps"), "step"),
        (training.get("num_train_epochs"), "epoch"),
    ):
        if count:
            return f"{count:,} {unit}{'' if count == 1 else 's'}"
    return ""


def _in_words(source: dict[str, Any]) -> str:
    kind = source["kind"]
    dataset = _set_id(kind)
    parts = [f"`{dataset}`" if dataset else _title(kind)]
    if "split" in source:
        parts.append(f"split {source['split']}")
    if "rows" in source:
        parts.append(f"{source['rows']:,} rows")
    if "tokens" in source:
        parts.append(f"pieces of {source['tokens']} tokens")
    return ", ".join(parts)
