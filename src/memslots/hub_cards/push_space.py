"""Publishing a Space for a checkpoint that is on the Hub: one commit, or nothing."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, HfApi, SpaceCard
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

from memslots.hub_cards import space
from memslots.hub_cards.checkpoint_facts import CARD, trained_on
from memslots.hub_cards.hub_commit import (
    Commit,
    StagedFile,
    check_repo_id,
    commit_files,
    retried,
)
from memslots.hub_cards.push import check_parts, publishable
from memslots.hub_cards.space.memslots_space.settings import Settings
from memslots.modeling import MemslotsConfig

logger = logging.getLogger(__name__)

SETTINGS, PAGE = "space.json", "memslots_space"
SDK = "gradio"
MESSAGE = "Upload memslots Space"

_CARRIED = ("__init__.py", "chat.py", "interruption.py", "modeling", "verified")
"""Of this package, what the page calls; there is no memslots to install where a Space runs."""


def push_space(
    repo_id: str,
    model: str,
    *,
    revision: str | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    title: str | None = None,
    note: str | None = None,
    commit_message: str = MESSAGE,
) -> CommitInfo:
    """Push a Space that shows a checkpoint.

    Args:
        repo_id: the Space's repository, `owner/name`; made if it does not exist.
        model: the checkpoint's repository.
        revision: the checkpoint's, main by default; the Space is pinned to its commit.
        private: whether a new Space is private.
        token: as everywhere in huggingface_hub.
        title: the page's heading, instead of the usual one.
        note: a line on the page, for what this checkpoint can and cannot do.
        commit_message: the message of the one commit.

    Raises:
        ValueError: a checkpoint that a Space could not load.
        PushError: the network failed again and again; nothing was committed.
        HfHubHTTPError: the Hub refused.
    """
    with staged_space(
        repo_id, model, revision=revision, token=token, title=title, note=note
    ) as files:
        return commit_files(
            HfApi(token=token),
            repo_id,
            files,
            Commit(commit_message),
            ours=(f"{PAGE}/*", "memslots/*"),
            private=private,
            space_sdk=SDK,
        )


@contextmanager
def staged_space(
    repo_id: str,
    model: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    title: str | None = None,
    note: str | None = None,
) -> Iterator[list[StagedFile]]:
    """The files that a push of the Space would bring, while the block runs; see `push_space`.

    The checkpoint is looked up on the Hub, since its commit is pinned; nothing is sent.
    """
    check_repo_id(repo_id)
    commit = pinned(model, revision, token)
    told = {key: value for key, value in (("title", title), ("note", note)) if value is not None}
    known = trained_on(model, commit, token)
    settings = Settings(model=model, revision=commit, trained_on=known, **told)  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory(prefix="memslots-space-") as parent:
        stage = Path(parent)
        source = Path(space.__file__).parent
        for name in ("app.py", "requirements.txt"):
            shutil.copyfile(source / name, stage / name)
        caches = shutil.ignore_patterns("__pycache__", "*.pyc")
        shutil.copytree(source / PAGE, stage / PAGE, ignore=caches)
        package = source.parents[1]
        (stage / "memslots").mkdir()
        for name in _CARRIED:
            if (package / name).is_dir():
                shutil.copytree(package / name, stage / "memslots" / name, ignore=caches)
            else:
                shutil.copyfile(package / name, stage / "memslots" / name)
        card = SpaceCard.load(source / CARD)
        card.data.models = [model]
        card.data.title = settings.title
        card.save(stage / CARD)
        chosen = {key: value for key, value in asdict(settings).items() if value != ""}
        (stage / SETTINGS).write_text(json.dumps(chosen, indent=2) + "\n", "utf-8")
        yield [
            StagedFile(path.relative_to(stage).as_posix(), path)
            for path in sorted(stage.rglob("*"))
            if path.is_file()
        ]


def pinned(model: str, revision: str | None, token: str | bool | None = None) -> str:
    """The commit of a checkpoint on the Hub that a Space can load.

    Raises:
        ValueError: no repository there, no memslots checkpoint, or one that names what others do
            not have.
    """
    check_repo_id(model)
    if Path(model).is_dir():
        raise ValueError(
            f"{model} is a folder here, and a Space loads its checkpoint from the Hub; push it "
            f"first, with `memslots push --model {model} --repo owner/name`, and give that name."
        )
    api = HfApi(token=token)
    try:
        info: Any = retried(
            partial(api.model_info, model, revision=revision), "reading the checkpoint"
        )
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        at = f" at revision {revision!r}" if revision else ""
        raise ValueError(
            f"there is no checkpoint {model!r}{at} on the Hub that this token can see; push it "
            "first with `memslots push`."
        ) from error
    stated, _ = MemslotsConfig.get_config_dict(model, revision=info.sha, token=token)
    if stated.get("model_type") != MemslotsConfig.model_type:
        raise ValueError(
            f"{model} is a {stated.get('model_type', 'nameless')!r} model, no memslots checkpoint."
        )
    config = MemslotsConfig.from_dict(stated)
    publishable(config)
    check_parts(api, config)
    if info.private:
        logger.warning(
            "%s is private: give the Space a secret HF_TOKEN that can read it (Settings, "
            "Variables and secrets). A public Space then answers everyone from it.",
            model,
        )
    return str(info.sha)
