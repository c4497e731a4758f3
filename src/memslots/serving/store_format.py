"""The rows of a memory store: one document each, as Arrow columns (docs/memory_store.md).

A row is complete in itself: it needs neither the catalogue nor another row to become a `Memory`,
and its checksum covers all of it.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from memslots.extras import install_extra
from memslots.modeling.memory_files_memslots import (
    pack_text,
    segments_from_json,
    segments_to_json,
    unpack_text,
)
from memslots.modeling.memory_memslots import Memory

from .quantise import from_bytes, to_bytes

try:
    import pyarrow as pa
except ImportError as error:
    raise ImportError(f"the memory store needs Arrow: {install_extra('store')}") from error

FORMAT = "memslots.store"
FORMAT_VERSION = 1
MAX_ID_CHARACTERS = 1024
MADE_WITH = "memslots_made_with"
"""Key of a document's metadata under which `store add` notes its options beside the rate."""

SEGMENT_COLUMNS = ("text", "start", "end", "tokens", "slots")

_WORD = pa.dictionary(pa.int32(), pa.string())  # the same in every row of a file, as a rule

SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("text_sha256", pa.list_(pa.binary(32)), nullable=False),
        pa.field("unknown_tokens", pa.list_(pa.int64()), nullable=False),
        pa.field("rate", pa.int32(), nullable=False),
        pa.field(
            "segments",
            pa.list_(pa.struct([(name, pa.int64()) for name in SEGMENT_COLUMNS])),
            nullable=False,
        ),
        pa.field("d_encoder", pa.int32(), nullable=False),
        pa.field("slot_dtype", _WORD, nullable=False),
        pa.field("slots", pa.large_binary(), nullable=False),
        pa.field("scales", pa.large_binary()),
        pa.field("literals", pa.large_binary()),
        pa.field("metadata", pa.string(), nullable=False),
        pa.field("fingerprint", _WORD, nullable=False),
        pa.field("compressor", _WORD, nullable=False),
        pa.field("checksum", pa.binary(32), nullable=False),
    ],
    metadata={"format": FORMAT, "version": str(FORMAT_VERSION)},
)
"""Columns of the Arrow files; what each holds is in docs/memory_store.md."""

# Fields of Memory that have a column; the others go into `compressor`, as JSON.
_HAVE_COLUMNS = {"slots", "documents", "text_sha256", "unknown_tokens", "rate", "fingerprint"}
_HAVE_COLUMNS |= {"texts"}


class CorruptRow(ValueError):
    """A row whose contents are not those that were written."""


def check_ids(ids: str | Sequence[str], new: bool = False) -> list[str]:
    """The ids as a list.

    Args:
        ids: An id or several.
        new: Whether they are to be stored: then without control characters, line breaks and parts
            that are . or .., which lists, logs and addresses would not show or would drop.

    Raises:
        ValueError: An id is no string, empty, too long or not valid Unicode, or comes twice.
    """
    ids = [ids] if isinstance(ids, str) or not isinstance(ids, Iterable) else list(ids)
    for key in ids:
        if not isinstance(key, str) or not 0 < len(key) <= MAX_ID_CHARACTERS:
            raise ValueError(
                f"an id is a string of 1 to {MAX_ID_CHARACTERS} characters, got {str(key)[:80]!r}."
            )
        if not is_unicode(key):
            raise ValueError(f"the id {key!r} holds a lone surrogate; give valid Unicode.")
        if new and has_control(key):
            raise ValueError(
                f"the id {key[:80]!r} holds a control character or a line break; leave it out."
            )
        if new and {".", ".."} & set(key.split("/")):
            raise ValueError(
                f"the id {key[:80]!r} has a part that is . or .., which clients drop from an "
                "address; name it otherwise."
            )
    if len(set(ids)) < len(ids):
        twice = [key for key, times in Counter(ids).items() if times > 1]
        raise ValueError(f"each id may come once in a call; {shorten(twice)} come twice or more.")
    return ids


def check_strings(values: Iterable[object], name: str) -> list[str]:
    """The values as a list.

    Args:
        values: Ids or hashes that are looked up.
        name: What they are, for the message.

    Raises:
        ValueError: One that cannot be in a store: no string, or not valid Unicode.
    """
    strings = []
    for value in values:
        if not isinstance(value, str) or not is_unicode(value):
            raise ValueError(f"{name} is a string of valid Unicode, got {repr(value)[:80]}.")
        strings.append(value)
    return strings


def has_control(text: str) -> bool:
    """Whether a text holds a control character or a line break."""
    return not text.isprintable() and any(
        unicodedata.category(character) in ("Cc", "Zl", "Zp") for character in text
    )


def is_unicode(text: str) -> bool:
    """Whether a string can be written as UTF-8: Python's may hold lone surrogates."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def shorten(names: Sequence[str], most: int = 3) -> str:
    """The first few names, quoted, for an error message."""
    shown = ", ".join(repr(name[:80]) for name in names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")


def text_key(text_sha256: Sequence[str]) -> str:
    """What documents are told apart by: the text's hash, or that of the hashes of several texts."""
    if len(text_sha256) == 1:
        return text_sha256[0]
    return hashlib.sha256("".join(text_sha256).encode()).hexdigest()


def encode_metadata(metadata: Mapping[str, Any] | None) -> str:
    """A document's metadata as one line of JSON with sorted keys.

    Raises:
        ValueError: No mapping from strings to what JSON can hold.
    """
    if metadata is None:
        return "{}"
    if not isinstance(metadata, Mapping) or not all(isinstance(key, str) for key in metadata):
        raise ValueError(f"metadata is a dict with string keys, got {str(metadata)[:80]!r}.")
    try:
        text = json.dumps(dict(metadata), sort_keys=True, ensure_ascii=False, allow_nan=False)
    except RecursionError as error:
        raise ValueError("metadata are nested too deep; flatten them.") from error
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"metadata must be what JSON can hold ({error}); got {str(metadata)[:80]!r}."
        ) from error
    if not is_unicode(text):
        raise ValueError("metadata holds a lone surrogate; give valid Unicode.")
    return text


def encode_memory(
    ids: Sequence[str], memory: Memory, metadata: Sequence[str], slot_dtype: str
) -> pa.Table:
    """Rows of `SCHEMA`, one per document.

    Args:
        ids: One a document, checked.
        memory: n documents.
        metadata: One a document, of `encode_metadata`.
        slot_dtype: One of `quantise.SLOT_DTYPES`.

    Raises:
        ValueError: Not one id and one metadata a document, slots that cannot be kept, or a memory
            that holds more than this format has a place for.
    """
    if not hasattr(memory, "documents"):
        raise TypeError(
            f"memory must be a Memory of compress or load_memory, got {type(memory).__name__}."
        )
    if not len(ids) == len(metadata) == len(memory):
        raise ValueError(
            f"give one id and one metadata for each document: {len(ids)} ids and {len(metadata)} "
            f"metadata for a memory of {len(memory)} documents."
        )
    compressor = _compressor_json(memory)
    rows = []
    for i, (key, document) in enumerate(zip(ids, _documents(memory), strict=True)):
        slots, scales = to_bytes(document.slots, slot_dtype)
        row: dict[str, Any] = {
            "id": key,
            "text_sha256": [bytes.fromhex(value) for value in document.text_sha256],
            "unknown_tokens": list(document.unknown_tokens),
            "rate": document.rate,
            "segments": [
                {name: getattr(segment, name) for name in SEGMENT_COLUMNS}
                for segment in document.segments
            ],
            "d_encoder": document.slots.shape[1],
            "slot_dtype": slot_dtype,
            "slots": slots,
            "scales": scales,
            "literals": _beside(document),
            "metadata": metadata[i],
            "fingerprint": document.fingerprint,
            "compressor": compressor,
        }
        rows.append({**row, "checksum": checksum(row)})
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def decode_row(row: Mapping[str, Any]) -> Memory:
    """The memory of one document.

    Args:
        row: The columns of `SCHEMA`, as `to_pylist` gives them.

    Raises:
        CorruptRow: Its checksum does not match.
        ValueError: It was written by a newer memslots.
    """
    try:
        right = row["checksum"] == checksum(row)
    except (TypeError, AttributeError):  # nothing where there was something
        right = False
    if not right:
        raise CorruptRow(f"the row of {str(row['id'])[:80]!r} was altered after it was written")
    more = {name: _tuples(value) for name, value in json.loads(row["compressor"]).items()}
    beside = json.loads(row["literals"] or "{}")
    if isinstance(beside, list):  # literals alone
        beside = {"literals": beside}
    more["texts"] = tuple(
        None if kept is None else unpack_text(base64.b64decode(kept[0]), kept[1])
        for kept in beside.get("texts", [])
    )
    unknown = set(more) - {field.name for field in dataclasses.fields(Memory)}
    if unknown:
        raise ValueError(
            f"{row['id']!r} has {', '.join(sorted(unknown))}, which this memslots does not know; "
            "update memslots."
        )
    slots = from_bytes(
        row["slots"],
        row["scales"],
        row["slot_dtype"],
        sum(segment["slots"] for segment in row["segments"]),
        row["d_encoder"],
    )
    numbers = [[segment[name] for name in SEGMENT_COLUMNS] for segment in row["segments"]]
    segments = segments_from_json(
        numbers, row["rate"], beside.get("literals", ()), beside.get("checks", ())
    )
    return Memory(
        slots=slots,
        documents=(tuple(segments),),
        text_sha256=tuple(value.hex() for value in row["text_sha256"]),
        unknown_tokens=tuple(row["unknown_tokens"]),
        rate=row["rate"],
        fingerprint=row["fingerprint"],
        **more,
    )


def checksum(row: Mapping[str, Any]) -> bytes:
    """SHA-256 of everything in a row but the checksum itself."""
    plain = [
        row["id"],
        [value.hex() for value in row["text_sha256"]],
        row["unknown_tokens"],
        row["rate"],
        [[segment[name] for name in SEGMENT_COLUMNS] for segment in row["segments"]],
        row["d_encoder"],
        row["slot_dtype"],
        row["metadata"],
        row["fingerprint"],
        row["compressor"],
    ]
    digest = hashlib.sha256(json.dumps(plain).encode())
    for name in ("slots", "scales", "literals"):
        data = row[name]
        digest.update(f" {name} {'none' if data is None else len(data)} ".encode())
        digest.update(data or b"")
    return digest.digest()


def _documents(memory: Memory) -> Iterator[Memory]:
    """Each document of a memory by itself. In two steps: indexing costs the memory's length."""
    for start in range(0, len(memory), 32):
        part = memory[start : start + 32]
        for i in range(len(part)):
            yield part[i]


def _beside(document: Memory) -> bytes | None:
    """Literals as a list, or with checks or a kept text a dict, as JSON; None if none is."""
    beside = segments_to_json(document.segments)
    if "checks" not in beside and not document.texts:
        return json.dumps(beside["literals"]).encode() if beside else None
    held = {
        "literals": beside.get("literals", []),
        "checks": beside.get("checks", []),
        "texts": [
            None
            if text is None
            else [base64.b64encode(pack_text(text)).decode(), len(text.encode())]
            for text in document.texts
        ],
    }
    return json.dumps(held).encode()


def _compressor_json(memory: Memory) -> str:
    """The fields of a memory that are the same for all of its documents and have no column."""
    more = {
        field.name: getattr(memory, field.name)
        for field in dataclasses.fields(memory)
        if field.name not in _HAVE_COLUMNS
    }
    try:
        return json.dumps(more, sort_keys=True)
    except TypeError as error:
        raise ValueError(
            f"store format {FORMAT_VERSION} has no place for a field of this memory ({error}); "
            "update memslots, or keep the memory with memory.save(path)."
        ) from error


def _tuples(value: Any) -> Any:
    """JSON knows lists only; a memory's fields are tuples."""
    return tuple(_tuples(part) for part in value) if isinstance(value, list) else value
