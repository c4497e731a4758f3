"""Commands that publish: card, push and push-space."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Column, Table

from .options import load_config, out, quiet

if TYPE_CHECKING:
    from memslots.hub_cards.hub_commit import StagedFile


def card(
    checkpoint: Annotated[Path, typer.Argument(help="Folder of the checkpoint.")],
    repo: Annotated[
        str | None, typer.Option(help="Its repository on the Hub, for the snippets.")
    ] = None,
    license_id: Annotated[
        str | None, typer.Option("--license", help="Its licence, such as apache-2.0.")
    ] = None,
    language: Annotated[str | None, typer.Option(help="Its language, such as en.")] = None,
    show: Annotated[
        bool, typer.Option("--print", help="Print the card without writing it.")
    ] = False,
) -> None:
    """Write the model card README.md from a checkpoint's configuration, results and recipe."""
    from memslots.hub_cards.model_card import build_card, save_card

    if not (checkpoint / "config.json").is_file():
        raise ValueError(f"{checkpoint} is no checkpoint's folder: it has no config.json.")
    quiet()
    config = load_config(str(checkpoint))
    made = build_card(config, checkpoint, repo, license=license_id, language=language)
    if show:
        typer.echo(str(made))
        return
    out.print(f"{save_card(made, checkpoint)}: card written")


def push(
    checkpoint: Annotated[Path, typer.Argument(help="Folder of the checkpoint.")],
    repo: Annotated[str, typer.Argument(help="Repository on the Hub, owner/name.")],
    private: Annotated[
        bool, typer.Option("--private", help="Make a new repository private.")
    ] = False,
    revision: Annotated[
        str | None, typer.Option(help="Branch to commit to. Default: main.")
    ] = None,
    create_pr: Annotated[
        bool, typer.Option("--create-pr", help="Open a pull request instead of committing.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List files and sizes without sending them.")
    ] = False,
    license_id: Annotated[
        str | None, typer.Option("--license", help="Its licence, such as apache-2.0.")
    ] = None,
    message: Annotated[
        str, typer.Option(help="The commit's message.")
    ] = "Upload memslots checkpoint",
) -> None:
    """Push a checkpoint in one commit: code, weights, processor, card and handler."""
    from memslots.hub_cards.push import push_checkpoint, staged

    quiet()
    if dry_run:
        with staged(checkpoint, repo, license=license_id) as (_, files):
            _list(files, repo)
        return
    made = push_checkpoint(
        checkpoint,
        repo,
        private=private or None,
        revision=revision,
        create_pr=create_pr,
        commit_message=message,
        license=license_id,
    )
    out.print(f"{made.pr_url or made.commit_url}", soft_wrap=True)
    out.print(f'Pin it: from_pretrained("{repo}", revision="{made.oid}")', soft_wrap=True)


def push_space(
    repo: Annotated[str, typer.Argument(help="The Space on the Hub, owner/name.")],
    model: Annotated[
        str, typer.Option("--model", help="Repository of the checkpoint that the Space shows.")
    ],
    revision: Annotated[
        str | None,
        typer.Option(help="Commit, branch or tag of the checkpoint. The Space is pinned to it."),
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make a new Space private.")] = False,
    title: Annotated[str | None, typer.Option(help="Heading of the page.")] = None,
    note: Annotated[
        str | None, typer.Option(help="A line on the page that says what the checkpoint can do.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List files and sizes without sending them.")
    ] = False,
) -> None:
    """Publish the page of `memslots demo --web` as a Space, in one commit."""
    from memslots.hub_cards import push_space as pushing

    quiet()
    if dry_run:
        with pushing.staged_space(repo, model, revision=revision, title=title, note=note) as files:
            _list(files, repo)
        return
    made = pushing.push_space(
        repo, model, revision=revision, private=private or None, title=title, note=note
    )
    out.print(f"{made.commit_url}", soft_wrap=True)


def _list(files: list[StagedFile], repo: str) -> None:
    table = Table("file", Column("bytes", justify="right"))
    for file in files:
        table.add_row(file.name, f"{file.size:,}")
    out.print(table)
    total = sum(file.size for file in files)
    out.print(f"{len(files)} files, {total:,} bytes to {repo}; nothing was sent.")
