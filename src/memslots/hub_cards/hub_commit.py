"""One commit to a repository of the Hub, or nothing.

huggingface_hub retries what it may: asking for upload modes, the LFS batch, and each file's upload.
It does not retry making the repository, checking the card, or the commit itself, since a commit
whose answer was lost would be made twice; here those are retried, the commit with its parent named,
so that the Hub refuses a second one.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import (
    CommitInfo,
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
)
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import get_session, validate_repo_id

logger = logging.getLogger(__name__)

_TRANSIENT = (408, 429, 500, 502, 503, 504)
_WAITS = (1.0, 2.0, 4.0, 8.0)
"""Seconds before each further try."""

T = TypeVar("T")


class PushError(OSError):
    """A push that failed on the way; the repository's files are as they were."""


@dataclass(frozen=True)
class StagedFile:
    """One file of a push.

    Args:
        name: the file's name in the repository.
        path: on this disk.
    """

    name: str
    path: Path

    @property
    def size(self) -> int:
        """Bytes."""
        return self.path.stat().st_size


@dataclass(frozen=True)
class Commit:
    """What is said of a commit, and where it goes.

    Args:
        message: its first line.
        description: the rest.
        revision: branch; made if it does not exist. By default main.
        create_pr: open a pull request instead.
    """

    message: str
    description: str | None = None
    revision: str | None = None
    create_pr: bool = False


def check_repo_id(repo_id: str) -> None:
    """Raises `ValueError` for anything but `name` or `owner/name`."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"{repo_id!r} names no repository; give owner/name. {error}") from error


def commit_files(
    api: HfApi,
    repo_id: str,
    files: Sequence[StagedFile],
    settings: Commit,
    ours: Sequence[str],
    private: bool | None = None,
    space_sdk: str | None = None,
) -> CommitInfo:
    """Makes the repository where it is missing, and commits the files.

    Args:
        api: a Hub client with the token.
        repo_id: `owner/name`.
        files: what the commit brings.
        settings: further settings of the commit.
        ours: patterns, with as many slashes as the names they match; what an earlier push left
            behind and this one does not bring is removed.
        private: whether a new repository is private.
        space_sdk: what a Space runs on; None makes a model's repository.

    Raises:
        PushError: the network failed again and again; nothing was committed.
        HfHubHTTPError: the Hub refused.
    """
    kind = "model" if space_sdk is None else "space"
    repo_id = retried(
        lambda: api.create_repo(
            repo_id, private=private, repo_type=kind, space_sdk=space_sdk, exist_ok=True
        ),
        "making the repository",
    ).repo_id
    revision, create_pr = settings.revision, settings.create_pr
    if revision is not None and not create_pr and not revision.startswith("refs/"):
        retried(
            lambda: api.create_branch(repo_id, branch=revision, repo_type=kind, exist_ok=True),
            "making the branch",
        )
    info: Any = retried(
        partial(api.repo_info, repo_id, revision=revision, repo_type=kind),
        "reading the repository",
    )
    new = {file.name for file in files}
    stale = [
        name
        for name in (sibling.rfilename for sibling in info.siblings or [])
        if name not in new
        and any(
            fnmatch(name, pattern) and name.count("/") == pattern.count("/") for pattern in ours
        )
    ]
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        *(CommitOperationAdd(path_in_repo=f.name, path_or_fileobj=f.path) for f in files),
        *(CommitOperationDelete(path_in_repo=name) for name in stale),
    ]

    def commit() -> CommitInfo:
        return api.create_commit(
            repo_id,
            operations,
            commit_message=settings.message,
            commit_description=settings.description,
            repo_type=kind,
            revision=revision,
            create_pr=create_pr,
            parent_commit=info.sha,
        )

    return retried(commit, "uploading")


def retried(action: Callable[[], T], doing: str) -> T:
    """The action's result, tried again where the network or the Hub fails for a moment.

    Args:
        action: what is done.
        doing: the same in words, for messages.

    Raises:
        PushError: it failed each time.
    """
    # huggingface_hub 1 is built on httpx and 2 on httpx2; the errors have one name in both.
    network = sys.modules[type(get_session()).__mro__[-3].__module__.partition(".")[0]]
    for wait in (*_WAITS, None):
        try:
            return action()
        except Exception as error:
            cause = error.__cause__ if type(error) is RuntimeError else error  # of an upload
            status = cause.response.status_code if isinstance(cause, HfHubHTTPError) else None
            lost = isinstance(cause, network.TransportError)
            if status == 412:  # the parent is no longer the branch's head
                raise PushError(
                    f"{doing} failed: the repository changed meanwhile, by somebody else or by an "
                    "earlier try whose answer was lost; look at its history, and push again if "
                    "this push is not there."
                ) from error
            if not lost and status not in _TRANSIENT:
                if cause is error:
                    raise
                raise PushError(f"{doing} failed, nothing was committed: {cause}") from error
            if wait is None:
                raise PushError(
                    f"{doing} failed {len(_WAITS) + 1} times, nothing was committed: {cause}"
                ) from error
            logger.warning("%s failed (%s); trying again in %g s.", doing, cause, wait)
        time.sleep(wait)
    raise AssertionError("unreachable")
