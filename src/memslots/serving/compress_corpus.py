"""Compressing a corpus into a store: one worker or several, on this machine or under Ray Data.

One process reads the documents, leaves out those that the store has, and writes; the workers do
nothing but compress. So there is one writer however many workers there are, and the store's folder
need not be shared with their machines. What makes a run resumable is that it asks the store.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from .catalogue import Place
from .corpus import Document, Unusable
from .corpus_workers import CompressorSpec, CorpusCompressor, in_processes, under_ray
from .store import MemoryStore
from .store_format import MADE_WITH, encode_metadata, pa

if TYPE_CHECKING:
    from memslots.modeling import MemslotsModel

LOOK_UP = 256
"""Documents that the store is asked about at once."""
BATCH_DOCUMENTS = 64
BATCH_CHARACTERS = 200_000
"""A worker gets so much at once: enough for full encoder batches."""
KEEP_BYTES = 32 * 2**20
KEEP_SECONDS = 5.0
"""The store gets what is ready when it is so large or so old."""


@dataclass
class CorpusReport:
    """What became of a corpus.

    Args:
        added: Documents compressed and stored now.
        there: Documents that the store had.
        duplicates: Documents whose text is in the store, or earlier in the corpus, by another id.
        changed: Ids that are in the store with another text or rate, or made with other options,
            and were left so.
        unusable: What could not be used and why, by its place.
        seconds: All in all.
    """

    added: int = 0
    there: int = 0
    duplicates: int = 0
    changed: list[str] = field(default_factory=list)
    unusable: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0


def add_corpus(
    store: MemoryStore,
    documents: Iterable[Document | Unusable],
    spec: CompressorSpec,
    workers: int = 1,
    ray: bool = False,
    replace: bool = False,
    total_bytes: int | None = None,
    progress: bool | None = None,
    model: MemslotsModel | None = None,
) -> CorpusReport:
    """Compresses the documents that a store does not have, and stores them as they get ready.

    Stopped at any moment, and run again, it goes on if it was: what is stored is left out.

    Args:
        store: Where they go.
        documents: Of `read_documents`.
        spec: The compressor.
        workers: Processes that compress.
        ray: Run them under Ray Data, on the cluster that `RAY_ADDRESS` names or on this machine.
        replace: Whether documents whose id is there with another text, rate or options replace
            those.
        total_bytes: The corpus's size, for the progress bar.
        progress: Whether to show one; by default where standard error is a terminal.
        model: The compressor where it is loaded already; for one worker without Ray.

    Raises:
        ValueError: Another compressor's store, or fewer than one worker.
        ImportError: `ray=True` without Ray.
    """
    if workers < 1:
        raise ValueError(f"workers={workers} is not possible; give 1 or more.")
    started = time.perf_counter()
    report = CorpusReport()
    bar = tqdm(
        total=total_bytes,
        desc="compressing",
        unit="B",
        unit_scale=True,
        disable=None if progress is None else not progress,
    )
    keeper = _Keeper(store, report, replace, bar.update)
    batches = _batches(keeper.missing(documents, spec.rate, spec.made_with))
    if ray:
        results = under_ray(batches, spec, workers)
    elif workers > 1:
        results = in_processes(batches, spec, workers)
    else:
        results = map(CorpusCompressor(spec, model), batches)
    with bar:
        for result in results:
            keeper.take(result)
        keeper.store_ready()
    if report.added:
        store.compact()
    report.seconds = time.perf_counter() - started
    return report


class _Keeper:
    """Knows what is stored, what is on its way, and stores what is ready."""

    def __init__(
        self,
        store: MemoryStore,
        report: CorpusReport,
        replace: bool,
        advance: Callable[[int], Any],
    ):
        self.store, self.report, self.replace, self.advance = store, report, replace, advance
        self.sizes: dict[str, int] = {}  # of the documents on their way, by id
        self.keys: dict[str, str] = {}  # and their texts' hashes
        self.seen: set[int] = set()  # hashes of all ids so far: a corpus may have many millions
        self.stored: list[str] = []  # since the store was last asked
        self.ready: list[pa.Table] = []
        self.stored_at = time.monotonic()

    def missing(
        self,
        documents: Iterable[Document | Unusable],
        rate: int | None,
        made_with: Mapping[str, Any],
    ) -> Iterator[Document]:
        """Those documents that are to be compressed; the others are counted.

        Args:
            documents: The corpus.
            rate: That they are wanted at; None if each segment gets its own.
            made_with: What is asked for beside it; the documents' metadata then say so.
        """

        def wanted_so(place: Place) -> bool:
            return rate in (None, place.rate) and place.made_with == made_with

        source = iter(documents)
        while part := list(islice(source, LOOK_UP)):
            for stored in self.stored:
                del self.sizes[stored], self.keys[stored]
            self.stored = []
            on_their_way = set(self.keys.values())
            once: dict[str, Document] = {}  # a second document of an id counts for nothing
            for item in part:
                if isinstance(item, Unusable):
                    self.report.unusable[item.where] = item.reason
                elif hash(item.id) in self.seen:
                    self.report.unusable[item.id] = (
                        "its id comes twice in the corpus, and the first was taken"
                    )
                else:
                    self.seen.add(hash(item.id))
                    once[item.id] = item
                    continue
                self.advance(item.size)
            hashes = {
                key: hashlib.sha256(item.text.encode()).hexdigest() for key, item in once.items()
            }
            places = self.store.places(list(hashes))
            texts = self.store.texts(list(hashes.values()))
            keys = {place.text_key for place in texts if wanted_so(place)} | on_their_way
            for item in once.values():
                place, key = places.get(item.id), hashes[item.id]
                if place is not None and place.text_key == key and wanted_so(place):
                    self.report.there += 1
                elif place is not None and not self.replace:
                    self.report.changed.append(item.id)
                elif place is None and key in keys:
                    self.report.duplicates += 1
                else:
                    self.sizes[item.id], self.keys[item.id] = item.size, key
                    keys.add(key)
                    yield _noted(item, made_with)
                    continue
                self.advance(item.size)

    def take(self, result: pa.Table) -> None:
        """Keeps a worker's result until there is enough to store."""
        for row in result.to_pylist():
            for key, reason in json.loads(row["failed"]).items():
                self.report.unusable[key] = reason
                self._settle(key)
            if row["rows"]:
                self.ready.append(pa.ipc.open_stream(row["rows"]).read_all())
        large = sum(rows["slots"].nbytes for rows in self.ready) >= KEEP_BYTES
        if large or time.monotonic() - self.stored_at >= KEEP_SECONDS:
            self.store_ready()

    def store_ready(self) -> None:
        """Stores what is ready; from here on it is safe."""
        self.stored_at = time.monotonic()
        if not self.ready:
            return
        rows = pa.concat_tables(self.ready)
        added = self.store.add_rows(rows, existing="replace" if self.replace else "skip")
        self.report.added += added
        self.report.there += len(rows) - added  # another run of the same corpus was quicker
        for key in rows["id"].to_pylist():
            self._settle(key)
        self.ready = []

    def _settle(self, key: str) -> None:
        self.stored.append(key)
        self.advance(self.sizes[key])


def _noted(document: Document, made_with: Mapping[str, Any]) -> Document:
    """The document, whose metadata say what it is made with."""
    if not made_with:
        return document
    metadata = {**json.loads(document.metadata), MADE_WITH: made_with}
    return replace(document, metadata=encode_metadata(metadata))


def _batches(documents: Iterable[Document]) -> Iterator[pa.Table]:
    """Documents in tables of a size that a worker can make full encoder batches of."""
    names = ("id", "text", "metadata")
    batch: list[dict[str, str]] = []
    characters = 0
    for document in documents:
        batch.append({name: getattr(document, name) for name in names})
        characters += len(document.text)
        if len(batch) >= BATCH_DOCUMENTS or characters >= BATCH_CHARACTERS:
            yield _texts(batch)
            batch, characters = [], 0
    if batch:
        yield _texts(batch)


def _texts(batch: list[dict[str, str]]) -> pa.Table:
    schema = pa.schema([(name, pa.large_string()) for name in ("id", "text", "metadata")])
    return pa.Table.from_pylist(batch, schema=schema)
