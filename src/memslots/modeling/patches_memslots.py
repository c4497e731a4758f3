"""Patches: the few bytes that make a segment's text exact again.

Two ways, whichever is smaller. *Patches* name the decoder tokens that greedy decoding from the
slots would get wrong (or almost: see `lossless_memslots`), and the byte edits that turn the decoded
text into the true one, since tokenizers are not invertible. *Stored* text is the bytes themselves,
deflated where that is smaller; it needs no slots. Either begins with its kind (1 byte) and the
SHA-256 of the text (32 bytes); numbers are LEB128.
"""

import hashlib
import zlib
from collections.abc import Iterator
from difflib import SequenceMatcher
from typing import NamedTuple

RAW, DEFLATED, PATCHED, PATCHED_DEFLATED = range(4)
"""Kinds of what is kept."""

HEAD = 1 + 32
"""Bytes before the payload."""

LARGEST = 2**26
"""Bytes of one segment's text or patches; who sends more in a memory file means harm."""

COMPARED = 8192
"""Bytes of differing texts that are aligned; longer ones are replaced whole."""

MOST_EDITS = COMPARED + 1
"""One around each byte of what is aligned."""

WIDEST = 4
"""Bytes of a character in UTF-8, at most."""

NUMBER = 5
"""Bytes of a number, at most."""


class Edit(NamedTuple):
    """Bytes to put in the place of others.

    Args:
        start: first byte that is replaced.
        end: one past the last.
        put: what takes their place.
    """

    start: int
    end: int
    put: bytes


class Patches(NamedTuple):
    """How a decoder writes a text exactly.

    Args:
        tokens: tokens to decode.
        forced: token ids by place, where the decoder's own choice is not taken.
        edits: changes to the decoded text's bytes, in order.
    """

    tokens: int
    forced: dict[int, int]
    edits: list[Edit]


def pack_text(text: str) -> bytes:
    """The text without a decoder's help, in as few bytes as may be."""
    data = text.encode()
    deflated = _deflate(data)
    kind, payload = (DEFLATED, deflated) if len(deflated) < len(data) else (RAW, data)
    return bytes([kind]) + hashlib.sha256(data).digest() + payload


def pack_patches(text: str, patches: Patches) -> bytes:
    """The text as patches to what a decoder writes."""
    payload = bytearray()
    _put(payload, patches.tokens)
    _put(payload, len(patches.forced))
    last = -1
    for place, token in sorted(patches.forced.items()):
        _put(payload, place - last - 1)
        _put(payload, token)
        last = place
    reached = 0
    for edit in patches.edits:
        _put(payload, edit.start - reached)
        _put(payload, edit.end - edit.start)
        _put(payload, len(edit.put))
        payload += edit.put
        reached = edit.end
    plain = bytes(payload)
    deflated = _deflate(plain)
    smaller = len(deflated) < len(plain)
    kind, kept = (PATCHED_DEFLATED, deflated) if smaller else (PATCHED, plain)
    return bytes([kind]) + hashlib.sha256(text.encode()).digest() + kept


def needs_slots(exact: bytes) -> bool:
    """Whether the text is made from the slots, with a decoder; else it is here whole."""
    return exact[:1] in (bytes([PATCHED]), bytes([PATCHED_DEFLATED]))


def stored_text(exact: bytes, characters: int | None = None) -> str:
    """The text that `pack_text` kept.

    Args:
        exact: what `pack_text` gave.
        characters: of the text, where this is known; no more is inflated.

    Raises:
        ValueError: damaged bytes, patches, or a text of another length.
    """
    kind, payload = _parts(exact)
    if kind not in (RAW, DEFLATED):
        raise ValueError("these are patches to slots; the model has to read them (expand).")
    most = LARGEST if characters is None else min(LARGEST, WIDEST * characters)
    data = _inflate(payload, most) if kind == DEFLATED else payload
    text = checked_text(exact, data, "stored text")
    if characters not in (None, len(text)):
        raise ValueError(
            f"a stored text has {len(text)} characters, and its segment has {characters}; compress "
            "the text again."
        )
    return text


def read_patches(
    exact: bytes, most_tokens: int = LARGEST, characters: int = LARGEST // 4
) -> Patches:
    """The patches that `pack_patches` wrote.

    Args:
        exact: what it gave.
        most_tokens: that a decoder may be asked to write.
        characters: of the text.

    Raises:
        ValueError: damaged bytes, a stored text, or more than such a text's patches can be.
    """
    kind, payload = _parts(exact)
    if kind not in (PATCHED, PATCHED_DEFLATED):
        raise ValueError("this is a stored text, no patches.")
    # What is forced takes two numbers, an edit three and its bytes.
    most = 2 * NUMBER * (1 + most_tokens) + 3 * NUMBER * MOST_EDITS + WIDEST * characters
    data = _inflate(payload, min(most, LARGEST)) if kind == PATCHED_DEFLATED else payload
    numbers = _Reader(data)
    tokens, count, place = numbers.next(), numbers.next(), -1
    forced: dict[int, int] = {}
    if not count <= tokens <= most_tokens:
        raise ValueError(
            f"patches for {tokens} tokens, {count} of them forced, and a segment of this memory "
            f"has {most_tokens} at most; compress the text again."
        )
    for _ in range(count):
        place += numbers.next() + 1
        forced[place] = numbers.next()
    if place >= tokens:
        raise ValueError(
            f"a patch forces token {place} of {tokens}; they are damaged, compress the text again."
        )
    edits: list[Edit] = []
    reached = 0
    while not numbers.done:
        if len(edits) == MOST_EDITS:
            raise ValueError(f"patches of more than {MOST_EDITS} edits; compress the text again.")
        start = reached + numbers.next()
        reached = start + numbers.next()
        edits.append(Edit(start, reached, numbers.bytes(numbers.next())))
    return Patches(tokens, forced, edits)


def checked_text(exact: bytes, data: bytes, name: str) -> str:
    """`data` as text, if it is what was kept.

    Raises:
        ValueError: it has another SHA-256, or is no text.
    """
    if hashlib.sha256(data).digest() != exact[1:HEAD]:
        raise ValueError(f"the {name} is not the one that was compressed: its SHA-256 differs.")
    try:
        return data.decode()
    except UnicodeDecodeError as error:  # somebody's own bytes, with their own SHA-256
        raise ValueError(f"the {name} is no UTF-8; compress the text again.") from error


def edits_between(decoded: str, text: str) -> list[Edit]:
    """What makes `text` of `decoded`, in bytes of UTF-8."""
    if decoded == text:
        return []
    old, new = decoded.encode("utf-8", "surrogatepass"), text.encode()
    first = 0
    while first < min(len(old), len(new)) and old[first] == new[first]:
        first += 1
    last = 0
    while last < min(len(old), len(new)) - first and old[-1 - last] == new[-1 - last]:
        last += 1
    old_part, new_part = old[first : len(old) - last], new[first : len(new) - last]
    if max(len(old_part), len(new_part)) > COMPARED:
        return [Edit(first, len(old) - last, new_part)]
    matcher = SequenceMatcher(None, old_part, new_part, autojunk=False)
    return [
        Edit(first + a, first + b, new_part[c:d])
        for tag, a, b, c, d in matcher.get_opcodes()
        if tag != "equal"
    ]


def apply_edits(decoded: str, edits: list[Edit]) -> bytes:
    """The bytes of `decoded` with `edits` made."""
    old = decoded.encode("utf-8", "surrogatepass")
    return b"".join(_pieces(old, edits))


def _pieces(old: bytes, edits: list[Edit]) -> Iterator[bytes]:
    reached = 0
    for edit in edits:
        yield old[reached : edit.start]
        yield edit.put
        reached = edit.end
    yield old[reached:]


def _parts(exact: bytes) -> tuple[int, bytes]:
    if len(exact) < HEAD or exact[0] > PATCHED_DEFLATED:
        raise ValueError("the bytes of this exact text are damaged; compress the text again.")
    return exact[0], exact[HEAD:]


def _deflate(data: bytes) -> bytes:
    # Without zlib's header and checksum: SHA-256 says whether it is right.
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(data) + packer.flush()


def _inflate(data: bytes, most: int) -> bytes:
    try:
        opened = zlib.decompressobj(-15)
        found = opened.decompress(data, most + 1)  # one more, to read the end behind the last byte
        if opened.unconsumed_tail or not opened.eof or len(found) > most:
            raise zlib.error(f"no end within {most} bytes")
        return found
    except zlib.error as error:
        raise ValueError(
            f"the bytes of this exact text are damaged ({error}); compress the text again."
        ) from error


def _put(target: bytearray, number: int) -> None:
    while number > 127:
        target.append(number & 127 | 128)
        number >>= 7
    target.append(number)


class _Reader:
    """LEB128 numbers and bytes, one after another."""

    def __init__(self, data: bytes):
        self._data, self._place = data, 0

    @property
    def done(self) -> bool:
        return self._place >= len(self._data)

    def next(self) -> int:
        number = shift = 0
        while True:
            (byte,) = self.bytes(1)
            number |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return number
            if shift == 7 * NUMBER:
                raise ValueError("the patches of this text are damaged; compress the text again.")

    def bytes(self, count: int) -> bytes:
        found = self._data[self._place : self._place + count]
        if len(found) < count:
            raise ValueError("the patches of this text are cut off; compress the text again.")
        self._place += count
        return found
