"""Raw rows of a set, as they stand in its files or on the Hub. `datasets` reads both.

Local JSON is read as text and parsed here, a line or a file at a time: `datasets` infers one
type for each column and gives a whole file up at the first line that does not fit, whereas here
such a line is one bad row.
"""

from __future__ import annotations

import glob
import json
import re
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from memslots.data.schema import Adapter, BadRow, DataNotFound
from memslots.extras import install_extra

RawRow = Mapping[str, Any] | BadRow
"""A row as it stands in the source, or what is wrong with it."""

_SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}
# What reading a damaged file or an unreachable Hub ends in (pyarrow's errors are ValueErrors).
_READING_ERRORS = (OSError, ValueError, RuntimeError, EOFError, zlib.error)


def find_files(adapter: Adapter, split: str, data_dir: str | Path) -> list[Path]:
    """Finds the files of one split under `data_dir`.

    Args:
        adapter: Whose files.
        split: One of its splits.
        data_dir: A folder that holds them, directly or in a folder of the set's name, or one file.

    Raises:
        DataNotFound: There are none.
    """
    if not str(data_dir):  # Path("") would be the current folder
        raise DataNotFound("data_dir='' names nothing; give a folder or a file, or None.")
    folder = Path(data_dir)
    if not folder.exists():
        raise DataNotFound(f"data_dir={str(data_dir)!r} does not exist; give a folder or a file.")
    if folder.is_file():
        return [folder]
    if adapter.suffixes:
        return _plain_files(adapter, split, folder)
    patterns = [*adapter.files.get(split, ()), *_usual_names(adapter, split)]
    for pattern in patterns:
        for place in (folder / adapter.name, folder):
            files = sorted({*place.glob(pattern), *place.glob(f"{pattern}.gz")})
            if files:
                return files
    raise DataNotFound(
        f"data_dir={str(data_dir)!r} holds no file of {adapter.title}, split {split!r}; looked "
        f"for {', '.join(patterns)} (also with .gz, also in {adapter.name}/){_other_ways(adapter)}."
    )


def _usual_names(adapter: Adapter, split: str) -> list[str]:
    """Names that any set may have: our own, and those of a folder downloaded from the Hub."""
    names = [f"{adapter.name}-{split}*.{ending}" for ending in ("jsonl", "json", "parquet")]
    hub_split = adapter.splits[split]
    return names + [
        f"{place}/{hub_split}-*.parquet" for place in (adapter.hub_config, "data") if place
    ]


def _other_ways(adapter: Adapter) -> str:
    stand_in = f", or take its stand-in {adapter.stand_in!r}" if adapter.stand_in else ""
    return f"; {adapter.where}{stand_in}"


def _plain_files(adapter: Adapter, split: str, folder: Path) -> list[Path]:
    endings = tuple(e + gz for e in adapter.suffixes for gz in ("", ".gz"))
    files = sorted(f for f in folder.iterdir() if f.is_file() and f.name.endswith(endings))
    if not files:
        raise DataNotFound(
            f"data_dir={str(folder)!r} holds no {' or '.join(adapter.suffixes)} file "
            f"(also with .gz); put the texts there, or choose the adapter of their format."
        )
    named = {
        name: [f for f in files if _names_split(f, words)] for name, words in _SPLIT_WORDS.items()
    }
    if named[split] or (split == "train" and not any(named.values())):
        read = named[split] or files
        others = [file for name in named if name != split for file in named[name]]
        _warn_of_left_out(folder, read, others, f" (named {split!r})" if named[split] else "")
        return read
    raise DataNotFound(
        f"data_dir={str(folder)!r} has no file for split {split!r} among "
        f"{', '.join(file.name for file in files)}; name it after the split ({split}.jsonl, "
        f"books-{split}.txt), or give the file itself as data_dir."
    )


def _warn_of_left_out(folder: Path, read: list[Path], others: list[Path], named: str) -> None:
    """Names what of a folder is neither read nor another split's: a user may take it to be read."""
    expected = {*read, *others}
    left_out = sorted(
        entry.name
        for entry in folder.iterdir()
        if entry not in expected and not entry.name.startswith((".", "README", "LICENSE"))
    )
    if left_out:
        more = f" and {len(read) - 1} more are" if len(read) > 1 else " is"
        warnings.warn(
            f"of {folder} {read[0].name}{named}{more} read, and not {', '.join(left_out[:5])}"
            f"{' ...' * (len(left_out) > 5)}: only files of one format are, of no folder in it, "
            "and only those named after the split where some are. Move or rename the others.",
            stacklevel=2,
        )


def _names_split(file: Path, words: tuple[str, ...]) -> bool:
    return re.search(rf"(?<![a-z])({'|'.join(words)})(?![a-z])", file.name.lower()) is not None


def local_rows(adapter: Adapter, files: list[Path]) -> Callable[[], Iterator[RawRow]]:
    """Returns what opens local files and yields their rows; nothing is copied to a cache.

    Args:
        adapter: Says how the rows of a JSON or tab-separated file are found.
        files: `.jsonl`, `.json`, `.tsv`, `.txt` (one text a file), each also as `.gz`, or
            `.parquet`.

    Raises:
        ValueError: Files of another kind.
    """
    readers: list[Callable[[], Iterator[RawRow]]] = []
    for file in files:
        ending = ending_of(file)
        if ending not in _READERS:
            raise ValueError(
                f"{file} cannot be read: its name ends in {ending or 'nothing'!r}; allowed are "
                f"{', '.join(_READERS)} (text also with .gz). Convert or rename it."
            )
        readers.append(_READERS[ending](adapter, file))

    def open_all() -> Iterator[RawRow]:
        for reader in readers:
            yield from reader()

    return open_all


def ending_of(file: Path) -> str:
    """How a file's name ends, such as `.jsonl`, whether or not it is packed by gzip."""
    return Path(file.name.removesuffix(".gz")).suffix.lower()


def _stream(builder: str, file: Path, **options: Any) -> Iterator[Mapping[str, Any]]:
    # A path is a pattern to `datasets`, hence the escape.
    files = {"train": [glob.escape(str(file.resolve()))]}
    if builder == "text":
        options["encoding"] = "utf-8-sig"  # without a byte order mark
    try:
        yield from _load_dataset()(
            builder, data_files=files, split="train", streaming=True, **options
        )
    except _READING_ERRORS as error:
        raise ValueError(
            f"{file} could not be read ({type(error).__name__}: {error}); check that it is "
            f"complete, what its ending says, and UTF-8 where it is text."
        ) from error


def _jsonl(adapter: Adapter, file: Path) -> Callable[[], Iterator[RawRow]]:
    return lambda: _parsed_lines(line["text"] for line in _stream("text", file))


def _parsed_lines(lines: Iterable[str]) -> Iterator[RawRow]:
    for line in lines:
        if line.strip():
            try:
                yield _record(json.loads(line))
            except (ValueError, RecursionError):  # nested too deep, or a number too long for Python
                yield BadRow("not JSON")


def _json(adapter: Adapter, file: Path) -> Callable[[], Iterator[RawRow]]:
    def read() -> Iterator[RawRow]:
        for whole in _stream("text", file, sample_by="document"):
            text = whole["text"]
            if not text.strip():
                continue
            try:
                document = json.loads(text)
            except (ValueError, RecursionError) as error:
                if getattr(error, "msg", "") == "Extra data":  # JSON lines by the name of .json
                    yield from _parsed_lines(text.split("\n"))
                    continue
                raise ValueError(f"{file} is not JSON ({error}); download it again.") from error
            try:
                yield from (_record(item) for item in adapter.unnest(document))
            except (BadRow, LookupError, TypeError, AttributeError) as error:
                raise ValueError(
                    f"{file} does not have the layout of {adapter.title}: {type(error).__name__}: "
                    f"{error}. Download its release again."
                ) from error

    return read


def _record(item: Any) -> RawRow:
    if isinstance(item, Mapping | BadRow):
        return item
    return BadRow(f"a {type(item).__name__} in place of a row with columns")


def _tsv(adapter: Adapter, file: Path) -> Callable[[], Iterator[RawRow]]:
    def read() -> Iterator[RawRow]:
        columns = adapter.tsv_columns
        for number, line in enumerate(_stream("text", file)):
            # Split at tabs alone: the sentences hold quotation marks that quote nothing.
            cells = line["text"].split("\t")
            if number == 0 and set(cells) & set(adapter.tsv_columns):
                columns = tuple(cells)
            elif len(cells) == len(columns):
                yield dict(zip(columns, cells, strict=True))
            elif line["text"].strip():
                yield BadRow(f"{len(cells)} tab-separated cells, not {len(columns)}")

    return read


def _txt(adapter: Adapter, file: Path) -> Callable[[], Iterator[RawRow]]:
    return lambda: (
        {"id": file.name.split(".", maxsplit=1)[0], **whole}
        for whole in _stream("text", file, sample_by="document")
    )


def _parquet(adapter: Adapter, file: Path) -> Callable[[], Iterator[RawRow]]:
    return lambda: iter(_stream("parquet", file))


_READERS: dict[str, Callable[[Adapter, Path], Callable[[], Iterator[RawRow]]]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".tsv": _tsv,
    ".txt": _txt,
    ".parquet": _parquet,
}


def hub_rows(adapter: Adapter, split: str, streaming: bool) -> Callable[[], Iterator[RawRow]]:
    """Opens a set on the Hub, and returns what yields its rows.

    Args:
        adapter: Which set.
        split: One of its splits.
        streaming: Read it over the network instead of downloading all of it first.

    Raises:
        DataNotFound: The set is not on the Hub, or the Hub cannot be reached.
    """
    if adapter.hub_id is None:
        raise DataNotFound(f"{adapter.title} is not on the Hub{_other_ways(adapter)}.")
    load_dataset = _load_dataset()
    hub_split = adapter.splits[split]
    try:
        try:
            rows = load_dataset(
                adapter.hub_id, adapter.hub_config, split=hub_split, streaming=streaming
            )
        except RuntimeError as error:
            if "scripts are no longer supported" not in str(error):
                raise
            # The Hub keeps a Parquet copy of the sets that came with a loading script.
            exported = f"hf://datasets/{adapter.hub_id}@refs/convert/parquet"
            files = f"{exported}/{adapter.hub_config or 'default'}/{hub_split}/*.parquet"
            rows = load_dataset(
                "parquet", data_files={"train": files}, split="train", streaming=streaming
            )
    except _READING_ERRORS as error:
        raise DataNotFound(
            f"{adapter.title} ({adapter.hub_id}) could not be loaded from the Hub "
            f"({type(error).__name__}: {error}){_other_ways(adapter)}."
        ) from error
    return lambda: iter(rows)


def _load_dataset() -> Callable[..., Any]:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ImportError(f"reading datasets needs: {install_extra('train')}") from error
    return load_dataset
