"""Commands that publish: card, push and push-space."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Column, Table

from .options import Json, ModelFolder, Repo, load_config, out, print_json, quiet

if TYPE_CHECKING:
    from memslots.hub_cards.hub_commit import StagedFile


License = Annotated[
    str | None,
    typer.Option("--license", help="State this licence of the checkpoint, such as apache-2.0."),
]


def card(
    model: ModelFolder,
    repo: Annotated[
        str | None,
        typer.Option(metavar="OWNER/NAME", help="Name this Hub repository in the card's examples."),
    ] = None,
    license_id: License = None,
    language: Annotated[
        str | None, typer.Option(help="State that its texts are in this language, such as en.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the card without writing it.")
    ] = False,
) -> None:
    """Write the model card README.md from a checkpoint's configuration, results and recipe."""
    _check_folder(model)
    from memslots.hub_cards.model_card import build_card, save_card

    quiet()
    config = load_config(str(model))
    card = build_card(config, model, repo, license=license_id, language=language)
    if dry_run:
        typer.echo(str(card))
        return
    out.print(f"{save_card(card, model)}: card written", markup=False)


def _check_folder(model: Path) -> None:
    if not (model / "config.json").is_file():
        what = "it has no config.json" if model.is_dir() else "there is no such folder"
        raise ValueError(f"--model {model} is not a checkpoint's folder: {what}.")


def push(
    model: ModelFolder,
    repo: Repo,
    private: Annotated[
        bool, typer.Option("--private", help="Make a new repository private.")
    ] = False,
    revision: Annotated[
        str | None, typer.Option(help="Commit to this branch. By default it is main.")
    ] = None,
    create_pr: Annotated[
        bool, typer.Option("--create-pr", help="Open a pull request instead of committing.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List files and sizes without sending them.")
    ] = False,
    license_id: License = None,
    message: Annotated[
        str, typer.Option(help="Give the commit this message.")
    ] = "Upload memslots checkpoint",
    as_json: Json = False,
) -> None:
    """Push a checkpoint in one commit: code, weights, processor, card and handler."""
    _check_folder(model)
    from memslots.hub_cards.push import push_checkpoint, staged

    quiet()
    if dry_run:
        with staged(model, repo, license=license_id) as (_, files):
            _list(files, repo, as_json)
        return
    commit = push_checkpoint(
        model,
        repo,
        private=private or None,
        revision=revision,
        create_pr=create_pr,
        commit_message=message,
        license=license_id,
    )
    if as_json:
        print_json({"url": commit.pr_url or commit.commit_url, "revision": commit.oid})
        return
    out.print(f"{commit.pr_url or commit.commit_url}", soft_wrap=True)
    out.print(f'Pin it: from_pretrained("{repo}", revision="{commit.oid}")', soft_wrap=True)


def push_space(
    repo: Repo,
    model: Annotated[
        str,
        typer.Option(
            metavar="OWNER/NAME", help="Show the checkpoint of this Hub repository in the Space."
        ),
    ],
    revision: Annotated[
        str | None,
        typer.Option(help="Pin the Space to this commit, branch or tag of the checkpoint."),
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make a new Space private.")] = False,
    title: Annotated[str | None, typer.Option(help="Give the page this heading.")] = None,
    note: Annotated[
        str | None, typer.Option(help="Say in this line what the checkpoint can do.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List files and sizes without sending them.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Publish the page of `memslots demo --web` as a Space, in one commit."""
    from memslots.hub_cards import push_space as pushing

    quiet()
    if dry_run:
        with pushing.staged_space(repo, model, revision=revision, title=title, note=note) as files:
            _list(files, repo, as_json)
        return
    commit = pushing.push_space(
        repo, model, revision=revision, private=private or None, title=title, note=note
    )
    if as_json:
        print_json({"url": commit.commit_url, "revision": commit.oid})
        return
    out.print(f"{commit.commit_url}", soft_wrap=True)


def _list(files: list[StagedFile], repo: str, as_json: bool) -> None:
    if as_json:
        print_json({"repo": repo, "files": {file.name: file.size for file in files}})
        return
    table = Table("file", Column("bytes", justify="right"))
    for file in files:
        table.add_row(file.name, f"{file.size:,}")
    out.print(table)
    total = sum(file.size for file in files)
    out.print(f"{len(files)} files, {total:,} bytes to {repo}; nothing was sent.", markup=False)
