"""Publishing a checkpoint: code, weights, processor, card and handler in one commit, or nothing."""

from __future__ import annotations

import copy
import logging
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import CommitInfo, HfApi

import memslots.modeling
import memslots.sent_memories
from memslots.hub_cards.checkpoint_facts import (
    CARD,
    CURVE,
    HANDLER,
    NOTICE,
    RECIPE,
    RESULTS,
    TRAINING,
    hub_id,
    without_paths,
)
from memslots.hub_cards.hub_commit import (
    Commit,
    StagedFile,
    check_repo_id,
    commit_files,
    retried,
)
from memslots.hub_cards.model_card import build_card, save_card
from memslots.modeling import MemslotsConfig, MemslotsModel, MemslotsProcessor
from memslots.writing import saying_when_full

logger = logging.getLogger(__name__)

WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
_TAKEN_AS_THEY_ARE = (*WEIGHTS, NOTICE, "generation_config.json", "decoder/generation_config.json")
_OURS = (*WEIGHTS, "*_memslots.py")
"""What an earlier push left behind in the repository and this one does not bring is removed."""

MESSAGE = "Upload memslots checkpoint"


def push_checkpoint(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    token: str | bool | None = None,
    commit_message: str = MESSAGE,
    commit_description: str | None = None,
    **stated: Any,
) -> CommitInfo:
    """Push a checkpoint's folder.

    Args:
        folder: what `save_pretrained` wrote; it is loaded first, and not changed.
        repo_id: `owner/name`; made if it does not exist.
        private: whether a new repository is private.
        revision: branch; made if it does not exist.
        create_pr: open a pull request instead of committing.
        token: as everywhere in huggingface_hub; by default the one that is logged in.
        commit_message: the message of the one commit.
        commit_description: likewise.
        stated: the card's metadata that no file tells (`license`, `language`, ...).

    Raises:
        ValueError: a checkpoint that does not load, or whose decoder could not be found elsewhere.
        PushError: the network failed again and again; nothing was committed.
        HfHubHTTPError: the Hub refused.
    """
    with staged(folder, repo_id, **stated) as (model, files):
        commit = Commit(commit_message, commit_description, revision, create_pr)
        return _push(model.config, files, repo_id, private, token, commit)


def push_model(
    model: MemslotsModel,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    token: str | bool | None = None,
    commit_message: str | None = None,
    commit_description: str | None = None,
    max_shard_size: int | str = "50GB",
    tags: list[str] | None = None,
) -> CommitInfo:
    """Push a model in memory: what `model.push_to_hub` does where this package is installed.

    Its card has no results, which only a folder that was measured has: see `push_checkpoint`.

    Args:
        model: the compressor.
        repo_id: as for `push_checkpoint`, as are the arguments that are not listed.
        private: whether a new repository is private.
        revision: branch; made if it does not exist.
        create_pr: open a pull request instead of committing.
        token: as everywhere in huggingface_hub.
        commit_message: the message of the one commit.
        commit_description: likewise.
        max_shard_size: the most bytes of a weights file.
        tags: tags to add to the card's own.

    Raises:
        ValueError: a model that others could not load.
        PushError: the network failed again and again; nothing was committed.
        HfHubHTTPError: the Hub refused.
    """
    publishable(model.config)
    with tempfile.TemporaryDirectory(prefix="memslots-push-") as parent:
        folder = Path(parent) / "checkpoint"
        with saying_when_full(folder):
            model.save_pretrained(folder, max_shard_size=max_shard_size)
        card = Path(str(model.name_or_path)) / CARD
        if card.is_file():  # the licence that it states holds for what was made of it
            shutil.copyfile(card, folder / CARD)
        with staged(folder, repo_id, model, tags=tags) as (_, files):
            commit = Commit(commit_message or MESSAGE, commit_description, revision, create_pr)
            return _push(model.config, files, repo_id, private, token, commit)


@contextmanager
def staged(
    folder: str | Path, repo_id: str, model: MemslotsModel | None = None, **stated: Any
) -> Iterator[tuple[MemslotsModel, list[StagedFile]]]:
    """The loaded model and the files that a push of it would bring, while the block runs.

    Args:
        folder: the checkpoint's folder.
        repo_id: `owner/name`.
        model: what was saved there; it is loaded without.
        stated: see `push_checkpoint`.

    Raises:
        ValueError: see `push_checkpoint`.
    """
    folder = Path(folder)
    check_repo_id(repo_id)
    model = _loaded(folder) if model is None else model
    config = publishable(model.config)
    with tempfile.TemporaryDirectory(prefix="memslots-push-") as parent:
        stage = Path(parent)
        with saying_when_full(stage):
            config.save_pretrained(stage)
            model.processor.save_pretrained(stage)
            for source in sorted(Path(memslots.modeling.__file__).parent.glob("*_memslots.py")):
                shutil.copyfile(source, stage / source.name)
            shutil.copyfile(Path(__file__).with_name(HANDLER), stage / HANDLER)
            checks = Path(memslots.sent_memories.__file__)  # what the handler imports
            shutil.copyfile(checks, stage / checks.name)
            for name in (RESULTS, CURVE, TRAINING, CARD):
                if (folder / name).is_file():
                    shutil.copyfile(folder / name, stage / name)
            _take_recipe(folder, stage)
            save_card(build_card(config, stage, repo_id, **stated), stage)
        files = {
            path.relative_to(stage).as_posix(): path
            for path in sorted(stage.rglob("*"))
            if path.is_file()
        }
        for path in sorted(folder.rglob("*")):
            name = path.relative_to(folder).as_posix()
            # Of the folder only what is known by name: no optimizer states, pickles or caches.
            if path.is_file() and any(
                fnmatch(name, pattern) and name.count("/") == pattern.count("/")
                for pattern in _TAKEN_AS_THEY_ARE
            ):
                files.setdefault(name, path)
        yield model, [StagedFile(name, path) for name, path in sorted(files.items())]


def publishable(config: MemslotsConfig) -> MemslotsConfig:
    """A copy of a configuration that names nothing of this disk.

    Raises:
        ValueError: others could not load the decoder, or an encoder that is not bundled.
    """
    if not config.bundle_decoder:
        _check_origin("decoder", config.decoder_name_or_path, "or set config.bundle_decoder = True")
    if config.encoder_lora is not None:
        _check_origin(
            "encoder", config.encoder_name_or_path, "or call memslots.making.merge_encoder(model)"
        )
    elif not config.bundle_encoder:
        _check_origin("encoder", config.encoder_name_or_path, "or make it with bundle_encoder=True")
    clean = copy.deepcopy(config)
    clean.decoder_name_or_path = hub_id(config.decoder_name_or_path)
    clean.encoder_name_or_path = hub_id(config.encoder_name_or_path)
    for part in (clean.encoder_config, clean.decoder_config):
        part._name_or_path = hub_id(part._name_or_path) or ""  # type: ignore[union-attr]
    return clean


def _check_origin(part: str, name: str | None, otherwise: str) -> None:
    if name is None:
        raise ValueError(
            f"this checkpoint names no {part}, so nobody could load it; set "
            f"config.{part}_name_or_path to its repository on the Hub, {otherwise}, and save again."
        )
    if hub_id(name) is None:
        raise ValueError(
            f"the {part} of this checkpoint is {name!r}, a path on this disk, which others do not "
            f"have; set config.{part}_name_or_path to its repository on the Hub, {otherwise}, and "
            "save again."
        )


def _loaded(folder: Path) -> MemslotsModel:
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} is not a checkpoint's folder: it has no config.json.")
    stated, _ = MemslotsConfig.get_config_dict(folder)
    if stated.get("model_type") != MemslotsConfig.model_type:
        raise ValueError(f"{folder} holds a {stated.get('model_type')!r} model, no compressor.")
    config = MemslotsConfig.from_dict(stated)
    publishable(config)  # known before anything is read or downloaded
    try:
        # A named decoder has its own repository; it may be far too large for this machine.
        model = MemslotsModel.from_pretrained(
            folder, load_decoder=config.bundle_decoder, dtype="auto"
        )
        if not isinstance(model.processor, MemslotsProcessor):
            raise ValueError("it has no processor.")
        if config.fingerprint is not None:
            model._fingerprint = None  # not the one that the file states
            if model.fingerprint != config.fingerprint:
                raise ValueError(
                    f"its weights are those of compressor {model.fingerprint[:12]}, not of "
                    f"{config.fingerprint[:12]} as its config.json says."
                )
    except Exception as error:
        raise ValueError(f"{folder} does not load, so it is not pushed: {error}") from error
    return model


def _take_recipe(folder: Path, stage: Path) -> None:
    """The recipe, unless it names files of this disk."""
    if not (folder / RECIPE).is_file():
        return
    recipe = yaml.safe_load((folder / RECIPE).read_text("utf-8"))
    texts = list(_strings(recipe))
    if without_paths(texts) != texts or any(Path(text).exists() for text in texts if "/" in text):
        logger.warning("%s names paths on this disk and is left out.", RECIPE)
        return
    names = [stage["name"] for stage in recipe.get("compressor", {}).get("stages", [])]
    if folder.name in names and "stage" not in recipe:
        recipe["stage"] = folder.name  # in the repository the folder's name is lost
    with (stage / RECIPE).open("w", encoding="utf-8") as file:
        yaml.safe_dump(recipe, file, sort_keys=False, allow_unicode=True)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _strings(item)
    elif isinstance(value, str) and len(value) < 1000:
        yield value


# -- the Hub ---------------------------------------------------------------------------------------


def _push(
    config: MemslotsConfig,
    files: list[StagedFile],
    repo_id: str,
    private: bool | None,
    token: str | bool | None,
    commit: Commit,
) -> CommitInfo:
    api = HfApi(token=token)
    check_parts(api, config)
    return commit_files(api, repo_id, files, commit, _OURS, private)


def check_parts(api: HfApi, config: MemslotsConfig) -> None:
    """Raises `ValueError` for a decoder or encoder that no repository on the Hub holds."""
    for part, name, needed in (
        ("decoder", config.decoder_name_or_path, not config.bundle_decoder),
        (
            "encoder",
            config.encoder_name_or_path,
            config.encoder_lora is not None or not config.bundle_encoder,
        ),
    ):
        if needed and not retried(partial(api.repo_exists, str(name)), "looking it up"):
            raise ValueError(
                f"the {part} {name!r} is not a repository on the Hub that this token can see; "
                "others could not load the checkpoint."
            )
