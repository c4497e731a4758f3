"""The rows of a recipe's stage, from the sources that the stage lists."""

import logging
import random
from collections.abc import Iterator, Sequence
from typing import Any

from datasets import Dataset, Features, IterableDataset, List, Value

from memslots.data import ADAPTERS, load_rows
from memslots.data.books import iterate_books
from memslots.data.cloze import CHARACTERS, KINDS, cloze_rows
from memslots.data.demonstrations import demonstration_context
from memslots.data.raw_texts import raw_texts
from memslots.data.schema import by_context
from memslots.modeling import MemslotsProcessor
from memslots.trainer.row_sources import ROW_SOURCES, SPLIT_SOURCES, Sources, source_rows

logger = logging.getLogger(__name__)

Row = dict[str, Any]

FEATURES = Features(
    {
        "text": Value("string"),
        "compress_until": Value("int64"),
        "context": Value("string"),
        "question": List(Value("string")),
        "answer": List(Value("string")),
    }
)

_LONG = 40
"""Characters for each token of a segment, beyond which most of a text is not trained."""

_FULL = 0.9
"""Share of a piece's tokens that it must reach: the last piece of a text is often a few words."""


def stage_dataset(
    sources: list[dict[str, Any]],
    origin: Sources,
    processor: MemslotsProcessor,
    endless: bool = False,
) -> Dataset | IterableDataset:
    """A dataset of text and question-answering rows, the same for the same arguments.

    Args:
        sources: each `{"kind", ...}`: a data set of `memslots.data.ADAPTERS` with its `split`. A
            set of texts is cut into pieces of `tokens` encoder tokens, each with as many of the
            text that follows for completion (`completion: false` leaves them out). A set of
            questions gives at most `rows` questions, all of a context's in one row (or at most
            `questions` of them); for in-context learning `demonstrations` are the decoder tokens of
            the context that other rows make. Or `books` (`rows` of `characters`), `cloze`
            (questions made of raw texts, see `memslots.data.cloze`: at most `rows` contexts of
            `characters`, `questions` each), or a kind of `ROW_SOURCES` or `SPLIT_SOURCES` with its
            options. `file` is the file or folder that `books`, `cloze` or a data set is read from,
            in place of `origin`'s. A `seed` of its own gives other rows than the same source of
            another stage.
        origin: where the data come from.
        processor: cuts and counts.
        endless: a streamed source begins again where it ends. Only so does a resumed run find its
            place in a later pass: as many rows as were trained are skipped, and the Trainer stops
            skipping where a stream ends.

    Raises:
        ValueError: an unknown kind of source, a stage without rows, or a streamed source beside
            others.
    """
    parts = []
    for number, source in enumerate(sources):
        options = {key: value for key, value in source.items() if key != "kind"}
        # Seeds of training differ from those of every evaluation, and the split does anyway.
        drawn = _number(f"stage-{options.pop('seed', origin.seed)}-{number}")
        if source["kind"] in ROW_SOURCES:
            parts.append(list(ROW_SOURCES[source["kind"]](drawn, origin, **options)))
        elif source["kind"] in SPLIT_SOURCES:
            question_rows = source_rows(source, "train", source["rows"], drawn)
            parts.append(
                [_question(r["context"], r["question"], r["answer"]) for r in question_rows]
            )
        elif source["kind"] in ADAPTERS:
            if ADAPTERS[source["kind"]].streaming:
                options |= {"drawn": drawn, "origin": origin, "processor": processor}
                return _streamed(source["kind"], sources, options, endless)
            parts.append(list(data_set_rows(source["kind"], drawn, origin, processor, **options)))
        else:
            raise ValueError(
                f"source kind {source['kind']!r} is unknown; there are "
                f"{sorted({*ROW_SOURCES, *SPLIT_SOURCES, *ADAPTERS})}; a program adds its own "
                "to memslots.trainer.row_sources.ROW_SOURCES."
            )
    rows = [{**dict.fromkeys(FEATURES), **row} for part in parts for row in part]
    if not rows:
        raise ValueError("the stage lists no rows to train on.")
    return Dataset.from_list(rows, features=FEATURES)


def _streamed(
    kind: str, sources: list[dict[str, Any]], options: dict[str, Any], endless: bool
) -> IterableDataset:
    if len(sources) > 1:
        raise ValueError(
            f"{kind} is streamed, so it must be its stage's only source; the stage lists "
            f"{[source['kind'] for source in sources]}."
        )
    read = _again_and_again if endless else data_set_rows
    return IterableDataset.from_generator(
        read, gen_kwargs={"kind": kind, **options}, features=FEATURES
    )


def _again_and_again(**options: Any) -> Iterator[Row]:
    while True:
        empty = True
        for row in data_set_rows(**options):
            empty = False
            yield row
        if empty:
            raise ValueError(
                f"{options['kind']}/{options.get('split', 'train')} gives no row to train on: its "
                "texts are shorter than `tokens`, or none can be read (the warnings above say why)."
            )


def data_set_rows(
    kind: str,
    drawn: int,
    origin: Sources,
    processor: MemslotsProcessor,
    split: str = "train",
    rows: int | None = None,
    tokens: int | None = None,
    completion: bool = True,
    demonstrations: int | None = None,
    questions: int | None = None,
    file: str | None = None,
) -> Iterator[Row]:
    """Rows of a set of `ADAPTERS`; its options are those of such a source, see `stage_dataset`."""
    loaded = load_rows(kind, split, data_dir=file or origin.data_dir, limit=rows, seed=drawn)
    if demonstrations is not None:
        yield from _in_context(list(loaded), demonstrations, drawn, processor)
        return
    without_context = long_texts = short_texts = texts = 0
    asked: list[Any] = []
    for loaded_row in loaded:
        row: dict[str, Any] = dict(loaded_row)
        if "text" not in row and not row["context"]:
            without_context += 1  # a dialogue's first line: there is nothing to compress
        elif "text" not in row and ADAPTERS[kind].streaming:
            yield _question(row["context"], [row["question"]], [row["answer"]])
        elif "text" not in row:
            asked.append(row)
        elif tokens is None:
            long_texts += len(row["text"]) > _LONG * processor.segment_length
            yield _text(row["text"])
        else:
            pieces = list(_pieces(row["text"], tokens, completion, processor))
            texts, short_texts = texts + 1, short_texts + (not pieces)
            yield from pieces
    for group in by_context(asked, questions):
        yield _question(group["context"], group["question"], group["answer"])
    if without_context:
        logger.warning("%s/%s: %d rows have no context, left out", kind, split, without_context)
    if short_texts:
        logger.warning(
            "%s/%s: %d of %d texts are shorter than the `tokens: %d` of a piece, left out; lower "
            "it, or join short texts",
            kind,
            split,
            short_texts,
            texts,
            tokens,
        )
    if long_texts:
        logger.warning(
            "%s/%s: %d texts are far longer than a segment, and only the beginning of each is "
            "trained; say `tokens: %d` in the source to train all of them",
            kind,
            split,
            long_texts,
            processor.segment_length,
        )


def _pieces(
    text: str, tokens: int, completion: bool, processor: MemslotsProcessor
) -> Iterator[Row]:
    """Every full segment of a text once, each followed by the next if that is wanted."""
    spans = processor.encoder_text.segment(text, tokens)
    for at, span in enumerate(spans):
        if len(span.ids) >= _FULL * tokens:
            last = spans[min(at + 1, len(spans) - 1)] if completion else span
            # Said, since a model's segment may hold piece and continuation together.
            yield _text(text[span.start : last.end], span.end - span.start)


def _in_context(
    rows: list[Any], tokens: int, drawn: int, processor: MemslotsProcessor
) -> Iterator[Row]:
    def count(text: str) -> int:
        return len(processor.decoder_text.encode(text))

    for number, row in enumerate(rows):
        rng = random.Random(f"{drawn}-{number}")
        context = demonstration_context(rows, tokens, count, rng, leave_out=row["id"])
        yield _question(context, [row["question"]], [row["answer"]])


def _text(text: str, compress_until: int | None = None) -> Row:
    row = dict.fromkeys(FEATURES)
    return {**row, "text": text, "compress_until": compress_until}


def _question(context: str, questions: list[str], answers: list[str]) -> Row:
    row = dict.fromkeys(FEATURES)
    return {**row, "context": context, "question": questions, "answer": answers}


def _cloze(
    drawn: int,
    origin: Sources,
    rows: int | None = None,
    questions: int = 4,
    characters: Sequence[int] = CHARACTERS,
    kinds: Sequence[str] = KINDS,
    file: str | None = None,
) -> Iterator[Row]:
    shortest, longest = characters
    texts = raw_texts(file) if file else iterate_books(origin.books, limit=40)
    for row in cloze_rows(texts, drawn, questions, rows, (shortest, longest), kinds):
        yield _question(row["context"], row["question"], row["answer"])


def _books(
    drawn: int, origin: Sources, rows: int, characters: int = 900, file: str | None = None
) -> Iterator[Row]:
    rng = random.Random(drawn)
    library = list(iterate_books(file or origin.books, limit=40))
    count = 0
    while count < rows:
        book = rng.choice(library)
        start = rng.randrange(max(1, len(book) - characters))
        text = book[start : start + characters].partition(" ")[2]  # from a word's beginning
        if text.strip():
            count += 1
            yield _text(text)


def _number(seed: str) -> int:
    return random.Random(seed).getrandbits(31)


ROW_SOURCES.update(books=_books, cloze=_cloze)
