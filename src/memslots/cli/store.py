"""`memslots store`: a folder of memories."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from .options import (
    DTYPES,
    Device,
    Dtype,
    Exact,
    Fidelity,
    Force,
    Json,
    KeepText,
    Literals,
    MaxSlots,
    MemoryOutput,
    Model,
    Rate,
    Rates,
    Revision,
    choose_device,
    err,
    literal_names,
    load_config,
    load_model,
    new_file,
    out,
    print_json,
    quiet,
    resolve_model,
    verification,
)

if TYPE_CHECKING:
    from memslots.serving.compress_corpus import CorpusReport
    from memslots.serving.store import MemoryStore

app = typer.Typer(
    help="Keep the memories of many documents in a folder.",
    epilog="Example: memslots store add texts/ --store memories --workers 4",
    context_settings={"help_option_names": ["-h", "--help"]},
)

Store = Annotated[
    Path,
    typer.Option("--store", metavar="FOLDER", help="Use the store in this folder."),
]
Ids = Annotated[
    list[str],
    typer.Argument(help="Take the documents of these ids, which `memslots store list` shows."),
]

_SHOWN = 5  # of each kind of document that was not stored


@app.command(epilog="Example: memslots store add texts/ --store memories --rate 8 --workers 4")
def add(
    folder: Annotated[
        Path,
        typer.Argument(
            help="Compress the .txt, .md, .jsonl and .parquet files in this folder, or one file."
        ),
    ],
    store: Store,
    slot_dtype: Annotated[
        str | None,
        typer.Option(
            "--slot-dtype",
            metavar="bfloat16|int8",
            help="Keep the slots of a new store in this precision. By default it is bfloat16.",
        ),
    ] = None,
    workers: Annotated[
        int, typer.Option(min=1, help="Compress in this many processes at once.")
    ] = 1,
    compiled: Annotated[
        bool,
        typer.Option(
            "--compile", help="Compile the encoder first. Takes up to a minute, then is faster."
        ),
    ] = False,
    ray: Annotated[
        bool, typer.Option("--ray", help="Run the workers under Ray Data (see RAY_ADDRESS).")
    ] = False,
    replace: Annotated[
        bool,
        typer.Option(
            "--replace", help="Replace documents whose text, rate or options have changed."
        ),
    ] = False,
    text_column: Annotated[
        str, typer.Option(help="Read the text from this column or field.")
    ] = "text",
    id_column: Annotated[
        str, typer.Option(help="Read the id from this column or field, if it is there.")
    ] = "id",
    as_json: Json = False,
    rate: Rate = None,
    literals: Literals = None,
    rates: Rates = None,
    fidelity: Fidelity = None,
    max_slots: MaxSlots = None,
    exact: Exact = None,
    keep_text: KeepText = False,
    model: Model = None,
    revision: Revision = None,
    device: Device = None,
    dtype: Dtype = None,
) -> int:
    """Compress a corpus into a store. Run the same command again to resume.

    Documents that the store already has, made with the same options, are not compressed again.
    The exit code is 1 if a document could not be stored.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"--dtype {dtype} is not known; choose one of {', '.join(DTYPES)}.")
    beside = literal_names(literals)
    asked = verification(rate, rates, fidelity, max_slots, exact, keep_text)
    from memslots.compiling import check_compiler
    from memslots.serving.compress_corpus import add_corpus
    from memslots.serving.corpus import corpus_files, read_documents
    from memslots.serving.corpus_workers import CompressorSpec
    from memslots.serving.store import MemoryStore

    files = corpus_files(folder)
    name = resolve_model(model)
    place = choose_device(device)
    quiet()
    config = load_config(name, revision)
    if "fidelity" in asked or "max_slots" in asked:
        for candidate in asked.get("rates", ()):
            if candidate not in config.compression_rates:
                raise ValueError(
                    f"--rates {rates}: {candidate} is not one that the compressor was trained for: "
                    f"{sorted(config.compression_rates)}."
                )
    elif rate is None:
        rate = min(config.compression_rates)
    elif rate not in config.compression_rates:
        raise ValueError(
            f"--rate {rate} is not one that the compressor was trained for: "
            f"{sorted(config.compression_rates)}."
        )
    if compiled and place.type == "cpu":
        check_compiler()
    kept = MemoryStore(store, slot_dtype)
    if kept.fingerprint and config.fingerprint and kept.fingerprint != config.fingerprint:
        raise ValueError(
            f"the store {str(store)!r} holds memories of compressor {kept.fingerprint[:12]}, and "
            f"{name} is {config.fingerprint[:12]}; name another store, or that checkpoint."
        )
    alone = workers == 1 and not ray
    spec = CompressorSpec(
        model=str(Path(name).resolve()) if Path(name).is_dir() else name,
        slot_dtype=kept.slot_dtype,
        rate=rate,
        revision=revision,
        device=str(place),
        dtype=dtype or ("float32" if place.type == "cpu" else "auto"),
        literals=None if beside is None else tuple(beside),
        compiled=compiled,
        verification=asked,
    )
    report = add_corpus(
        kept,
        read_documents(folder, text_column, id_column),
        spec,
        workers=workers,
        ray=ray,
        replace=replace,
        total_bytes=sum(path.stat().st_size for path in files),
        model=load_model(name, revision, device, dtype, load_decoder=bool(asked))
        if alone
        else None,
    )
    if as_json:
        print_json({**dataclasses.asdict(report), "documents": len(kept)})
        return _code(report)
    return _show(report, kept)


def _show(report: CorpusReport, store: MemoryStore) -> int:
    out.print(
        f"documents: {report.added} added, {report.there} stored before, {report.duplicates} with "
        f"a text that is stored under another id, {report.seconds:.1f} s",
        soft_wrap=True,
    )
    out.print(Text(repr(store)), style="dim", soft_wrap=True)
    _list("could not be used", [f"{at}: {why}" for at, why in report.unusable.items()])
    _list("changed and left alone (--replace takes the new ones)", report.changed)
    return _code(report)


def _code(report: CorpusReport) -> int:
    return 1 if report.unusable or report.changed else 0


def _list(what: str, places: list[str]) -> None:
    if places:
        err.print(f"{len(places)} {what}:")
        for place in places[:_SHOWN]:
            err.print(Text(f"  {place}"), soft_wrap=True)
        if len(places) > _SHOWN:
            err.print(f"  and {len(places) - _SHOWN} more")


@app.command(epilog="Example: memslots store verify --store memories")
def verify(store: Store, as_json: Json = False) -> int:
    """Check every document against its checksum. The exit code is 1 if one is damaged."""
    report = _open(store).verify()
    if as_json:
        print_json(dataclasses.asdict(report))
        return 1 if report.problems else 0
    for place, problem in report.problems.items():
        out.print(Text(f"{place}: {problem}"), soft_wrap=True)
    if report.left_over:
        err.print(
            f"{len(report.left_over)} files left over from interrupted writers; `store compact` "
            "removes them"
        )
    bad = len(report.problems)
    out.print(f"{report.documents} documents read, " + (f"{bad} damaged" if bad else "all sound"))
    return 1 if bad else 0


@app.command(epilog="Example: memslots store info --store memories --json")
def info(store: Store, as_json: Json = False) -> None:
    """Show how much a store holds."""
    facts = dataclasses.asdict(_open(store).info())
    if as_json:
        print_json(facts)
        return
    table = Table(show_header=False, title=Text(str(store)), title_justify="left")
    for key, value in facts.items():
        if key == "rates":
            value = ", ".join(f"{n} at {rate}" for rate, n in value.items()) or "none"
        shown = f"{value:,}" if isinstance(value, int) else str(value)
        table.add_row(key.replace("_", " "), Text(shown, overflow="fold"))
    out.print(table)


@app.command("list", epilog='Example: memslots store list --store memories --where source="a.txt"')
def list_ids(
    store: Store,
    where: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="List only documents with this metadata; the value is JSON or a string. Repeat it "
            "for more keys.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Print the ids of the documents, one on each line."""
    kept, metadata = _open(store), {}
    for condition in where or []:
        key, equals, value = condition.partition("=")
        if not key or not equals:
            raise ValueError(f"--where {condition} is not KEY=VALUE.")
        try:
            metadata[key] = json.loads(value)
        except json.JSONDecodeError:
            metadata[key] = value
    ids = kept.find(metadata) if metadata else kept.ids()
    if as_json:
        print_json({"ids": list(ids)})
        return
    for document_id in ids:
        typer.echo(document_id)


@app.command(epilog="Example: memslots store get a.txt b.txt --store memories -o ab.safetensors")
def get(
    ids: Ids,
    store: Store,
    output: MemoryOutput,
    force: Force = False,
    as_json: Json = False,
    rate: Rate = None,
) -> None:
    """Copy documents into one memory file, which `ask` and `reconstruct` read."""
    new_file(output, force)
    if store.resolve() in output.resolve().parents:
        raise ValueError(f"--output {output} is in the store {store}; name a file outside it.")
    memory = _open(store).get(ids, rate=rate)
    memory.save(output)
    if as_json:
        sizes = {"tokens": sum(memory.n_tokens), "slots": sum(memory.n_slots), "rate": memory.rate}
        print_json({"output": str(output), "documents": len(memory), **sizes})
        return
    out.print(Text(repr(memory)), soft_wrap=True)


@app.command(epilog="Example: memslots store delete a.txt --store memories")
def delete(ids: Ids, store: Store, as_json: Json = False) -> None:
    """Delete documents. `memslots store compact` then removes their slots from the disk."""
    _open(store).delete(ids)
    if as_json:
        print_json({"deleted": ids})
        return
    out.print(f"{len(ids)} deleted")


@app.command(epilog="Example: memslots store compact --store memories")
def compact(store: Store, as_json: Json = False) -> None:
    """Remove deleted documents from the disk and join small files."""
    kept = _open(store)
    before = kept.info()
    kept.compact()
    after = kept.info()
    if as_json:
        sizes = {"before": before, "after": after}
        print_json({name: {"files": of.files, "bytes": of.bytes} for name, of in sizes.items()})
        return
    out.print(f"{before.files} files, {before.bytes:,} bytes -> {after.files}, {after.bytes:,}")


@app.command(epilog="Example: memslots store rebuild --store memories")
def rebuild(store: Store, as_json: Json = False) -> int:
    """Make a lost catalogue again from the documents. The exit code is 1 if one cannot be read.

    Documents that were deleted but not yet compacted come back.
    """
    from memslots.serving.maintenance import rebuild_catalogue

    rebuilt = rebuild_catalogue(store)
    if as_json:
        print_json(dataclasses.asdict(rebuilt))
        return 1 if rebuilt.problems else 0
    for place, problem in rebuilt.problems.items():
        out.print(Text(f"{place}: {problem}"), soft_wrap=True)
    out.print(f"{rebuilt.documents} documents are in the catalogue again")
    return 1 if rebuilt.problems else 0


def _open(path: Path) -> MemoryStore:
    from memslots.serving.store import MemoryStore

    return MemoryStore(path, create=False)
