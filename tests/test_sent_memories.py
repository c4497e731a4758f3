"""Memory files that strangers send: what no compressor writes is refused before it costs."""

import base64
import hashlib
import json
import os
import tracemalloc
import zlib
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tiny_models import SEGMENT, TEXTS

from memslots.modeling import Memory, memory_loading_memslots
from memslots.modeling.memory_files_memslots import write_memory_file
from memslots.modeling.patches_memslots import (
    DEFLATED,
    LARGEST,
    PATCHED,
    PATCHED_DEFLATED,
    Edit,
    Patches,
    pack_patches,
    pack_text,
    read_patches,
    stored_text,
)
from memslots.serving.memory_upload import read_memory_file
from memslots.serving.memory_upload import write_memory_file as write_upload

pytestmark = pytest.mark.filterwarnings("ignore:from the slots the decoder")

MOST = 10_000


@pytest.fixture(scope="module")
def memory(model) -> Memory:
    """Slots and literals, stored texts, and one text that is read as text."""
    made = model.compress(TEXTS[:2], rate=8, exact="numbers", patches=True)
    made = Memory.cat([made, model.compress(TEXTS[2], fidelity=1.0)])
    return made.join()


@pytest.fixture
def forged(memory, tmp_path):
    """What comes of reading a file with another header or other tensors, its checksum right."""

    def make(change=None, tensors=None, most=MOST):
        path = tmp_path / "forged.safetensors"
        memory.save(path)
        with safe_open(path, framework="pt") as file:
            header = json.loads(file.metadata()["memslots"])
            kept = {name: file.get_tensor(name) for name in ("slots", "exact")}
        if change is not None:
            change(header)
        write_memory_file(path, header, {**kept, **(tensors or {})})
        return base64.b64encode(path.read_bytes()).decode()

    return make


def test_what_was_compressed_is_taken(model, memory, forged):
    read = read_memory_file(model, forged(), MOST)
    assert (read.documents, read.checks, read.literals) == (
        memory.documents,
        memory.checks,
        memory.literals,
    )
    assert model.reconstruct(read, exact=True) == "".join(TEXTS[:3])


def put(name, *place_and_value):
    """A change of one value deep in the header."""
    *places, value = place_and_value

    def change(header):
        target, last = header, name
        for place in places:
            target, last = target[last], place
        target[last] = value

    return change


TEXT = -1  # the last segment is read as text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("rate", 3), "memory has rate 3; allowed"),
        (put("rate", 10**30), "memory has rate 1000"),
        (put("rates", [8, 16, 10**9]), "memory has rates"),
        (put("rates", "all"), "memory has rates"),
        (put("nested", "yes"), "memory has nested 'yes'"),
        (put("pooling", "mean"), "memory has pooling 'mean'"),
        (put("fingerprint", 7), "no memory's"),
        (put("text_sha256", 0, "0" * 63), "text_sha256 that is none"),
        (put("text_sha256", 0, {}), "text_sha256 that is none"),
        (put("unknown_tokens", []), "unknown tokens"),
        (put("unknown_tokens", 0, -1), "unknown tokens"),
        (put("documents", []), "segments, its documents"),
        (put("documents", [1]), "segments, its documents"),
        (put("documents", [-1]), "segments, its documents"),
        (put("segments", 0, 0, 99), "segment of numbers"),
        (put("segments", 0, 1, -1), "segment of numbers"),
        (put("segments", 0, 2, 0), "segment of numbers"),
        (put("segments", 0, 2, 10**30), "segment of numbers"),
        (put("segments", TEXT, 3, 10**9), "segment of numbers"),
        (put("segments", 0, 3, "8"), "no memory's"),
        (put("segments", 0, [1]), "no memory's"),
        (put("checks", []), "bytes of exact texts"),
        (put("checks", 0, 0, 0), "not how rate 0"),
        (put("checks", 0, 1, -1), "not counted right"),
        (put("checks", 0, 3, [[0, 10**9]]), "lost token outside"),
        (put("checks", 0, 3, [[0, 1]] * 5000), "not counted right"),
        (put("checks", 0, 3, [["a", "b"]]), "invalid literal"),
        (put("checks", 0, 4, "a text beside slots"), "whose text is not"),
        (put("checks", 0, 5, 10**12), "exact text has|segments have"),
        (put("checks", TEXT, 4, None), "whose text is not"),
        (put("checks", TEXT, 4, "x" * 9_000), "whose text is not"),
        (put("checks", TEXT, 4, [1]), "whose text is not"),
        (put("literals", 0, [[10**9, 10**9 + 1, "x"]]), "literal that is not of its segment"),
        (put("literals", 0, [[0, 1, "much more"]]), "literal that is not of its segment"),
        (put("literals", 0, [[0, 1, "\ud800"]]), "literal that is not of its segment"),
        (put("literals", 0, [[0, 1]]), "no memory's"),
        (put("version", 1), "altered"),
    ],
)
def test_headers_that_no_compressor_writes(model, forged, change, message):
    with pytest.raises(ValueError, match=message):
        read_memory_file(model, forged(change), MOST)


def test_files_of_many_characters_and_long_headers(model, forged, monkeypatch):
    characters = sum(map(len, TEXTS[:3]))
    assert read_memory_file(model, forged(), characters)
    with pytest.raises(ValueError, match="characters"):
        read_memory_file(model, forged(), characters - 1)

    def stuffed(header):
        header["more"] = "x" * 5000

    monkeypatch.setattr(memory_loading_memslots, "MOST_HEADER", 5000)
    with pytest.raises(ValueError, match=r"header of \d+ bytes, and 5000 are read"):
        read_memory_file(model, forged(stuffed), MOST)
    monkeypatch.undo()


def test_json_that_is_nested_deep(model, tmp_path):
    save_file({"slots": torch.zeros(1, 1)}, tmp_path / "deep", {"memslots": "[" * 200_000})
    content = base64.b64encode((tmp_path / "deep").read_bytes()).decode()
    with pytest.raises(ValueError, match="memory cannot be read as a memory"):
        read_memory_file(model, content, MOST)


@pytest.mark.parametrize(
    ("slots", "message"),
    [
        (lambda own: own.long(), "int64 slots"),
        (lambda own: own.to(torch.float8_e4m3fn), "float8_e4m3fn slots"),
        (lambda own: own.repeat(1, 2), "slots of width"),
        (lambda own: own * float("inf"), "not finite"),
        (lambda own: own[1:], "need slots of shape"),
        (lambda own: own[None], "need slots of shape"),
    ],
)
def test_slots_that_no_compressor_writes(model, memory, forged, slots, message):
    with pytest.raises(ValueError, match=message):
        read_memory_file(model, forged(tensors={"slots": slots(memory.slots).contiguous()}), MOST)


def test_exact_texts_of_another_type(model, memory, forged):
    wrong = {"exact": torch.zeros(9, dtype=torch.int64)}
    with pytest.raises(ValueError, match="in their place"):
        read_memory_file(model, forged(tensors=wrong), MOST)


def with_exact(memory, exact) -> Memory:
    """A memory whose first segment keeps these bytes."""
    first, *others = memory.checks
    return replace(memory, checks=(replace(first, exact=exact), *others))


def sent(memory, tmp_path) -> str:
    memory.save(tmp_path / "sent")
    return base64.b64encode((tmp_path / "sent").read_bytes()).decode()


def deflated(data: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(data) + packer.flush()


def packed(kind: int, payload: bytes, data: bytes = b"") -> bytes:
    return bytes([kind]) + hashlib.sha256(data).digest() + payload


BIG = 2**25


@pytest.mark.parametrize(
    ("exact", "message"),
    [
        (lambda text: pack_patches(text, Patches(10**6, {}, [])), "patches for 1000000 tokens"),
        (lambda text: pack_patches(text, Patches(2**40, {}, [])), "damaged"),
        (lambda text: pack_patches(text, Patches(5, {7: 1}, [])), "forces token 7 of 5"),
        (lambda text: pack_patches(text, Patches(5, dict.fromkeys(range(9), 1), [])), "9 of them"),
        (
            lambda text: pack_patches(text, Patches(5, {}, [Edit(0, 0, b"")] * 9000)),
            "more than 8193 edits",
        ),
        (lambda text: packed(PATCHED, b"\xff" * BIG), "damaged"),
        (lambda text: packed(PATCHED_DEFLATED, deflated(bytes(BIG))), "no end within"),
        (lambda text: packed(DEFLATED, deflated(bytes(BIG)), bytes(BIG)), "no end within"),
        (lambda text: pack_text(text + "!"), "stored text has [0-9]+ characters"),
        (lambda text: packed(DEFLATED, deflated(b"\xff" * 9), b"\xff" * 9), "no UTF-8"),
    ],
)
def test_bombs_are_refused_before_they_cost_memory(model, memory, tmp_path, exact, message):
    bytes_kept = exact(TEXTS[0][: memory.segments[0].end])
    content = sent(with_exact(memory, bytes_kept), tmp_path)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=message):
            read_memory_file(model, content, MOST)
        assert tracemalloc.get_traced_memory()[1] < 6 * len(bytes_kept) + 2**22
    finally:
        tracemalloc.stop()


def test_patches_in_hand_are_bounded_by_the_decoder(model, memory, monkeypatch):
    """Also where nothing was loaded: the decoder is not made to write."""
    monkeypatch.setattr(model.decoder, "generate", lambda *a, **k: pytest.fail("it was asked"))
    text = TEXTS[0][: memory.segments[0].end]
    for tokens, forced, message in (
        (8 * SEGMENT + 1, {}, "patches for"),
        (3, {1: 10**6}, "force a token beyond"),
    ):
        wrong = with_exact(memory, pack_patches(text, Patches(tokens, forced, [])))
        with pytest.raises(ValueError, match=message):
            model.expand(wrong, 0)


def test_the_widest_texts_and_most_patches_still_come_back():
    wide = "\U0001f600" * 50
    assert stored_text(pack_text(wide), 50) == wide
    with pytest.raises(ValueError, match="no end within"):
        stored_text(pack_text(wide), 49)
    edits = [Edit(2 * i, 2 * i + 1, b"ab") for i in range(8000)]
    whole = Patches(700, dict.fromkeys(range(700), 2**31), edits)
    assert read_patches(pack_patches("x", whole), 700, 16_000) == whole
    assert read_patches(pack_patches("x", Patches(LARGEST, {}, [])), LARGEST).tokens == LARGEST


# -- files that cost more than they are ------------------------------------------------------------


def several(times):
    """The first segment so many times, with all that belongs to it."""

    def change(header):
        header["segments"] = [header["segments"][0]] * times
        header["checks"] = [[*header["checks"][0][:5], 0]] * times
        header["literals"] = [header["literals"][0]] * times
        header["documents"] = [times]

    return change


def test_segments_are_in_their_texts_order_and_apart(model, memory, forged):
    n_slots = memory.segments[0].slots
    tensors = {"exact": torch.zeros(0, dtype=torch.uint8)}
    for times in (2, 20):
        slots = memory.slots[:n_slots].repeat(times, 1)
        with pytest.raises(ValueError, match="not after the one before"):
            read_memory_file(model, forged(several(times), {**tensors, "slots": slots}), MOST)
    assert read_memory_file(
        model, forged(several(1), {**tensors, "slots": memory.slots[:n_slots].clone()}), MOST
    )


def test_literals_are_in_their_texts_order_and_each_once(model, memory, forged):
    text = "".join(TEXTS[:1])
    first = memory.segments[0]
    words = [[i, i + 1, text[i]] for i in range(first.start, first.end)]
    for literals in ([words[3]] * 2, [words[4], words[3]], [words[3]] * 1000):
        with pytest.raises(ValueError, match=r"literal at .* not after the one before"):
            read_memory_file(model, forged(put("literals", 0, literals)), MOST)
    nested = [words[3], [words[3][0], words[3][0] + 2, text[words[3][0] :][:2]], words[4]]
    assert read_memory_file(model, forged(put("literals", 0, nested)), MOST)


def test_segments_of_no_token_are_read_as_text_alone(model, memory, forged):
    def emptied(header):
        header["segments"][0][3:] = [0, 0]

    slots = memory.slots[memory.segments[0].slots :].clone()
    with pytest.raises(ValueError, match="segment of no tokens"):
        read_memory_file(model, forged(emptied, {"slots": slots}), MOST)
    white = model.compress("   ", exact=True)
    assert read_memory_file(model, base64.b64encode(write_upload(white)).decode(), MOST)


@pytest.mark.parametrize(("dtype", "value"), [(torch.float64, 1e300), (torch.float32, 3e38)])
def test_slots_that_are_finite_only_in_the_file(model, memory, forged, dtype, value):
    slots = memory.slots.to(dtype)
    slots[0, 0] = value
    with pytest.raises(ValueError, match="too large to be read"):
        read_memory_file(model, forged(tensors={"slots": slots}), MOST)
    slots[0, 0] = 1e3
    assert read_memory_file(model, forged(tensors={"slots": slots}), MOST)


def test_what_is_no_file_is_refused_at_once(model, tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match="is no file"):
        model.load_memory(tmp_path / "folder", MOST)
    with pytest.raises(FileNotFoundError, match="no memory file"):
        model.load_memory(tmp_path / "nothing", MOST)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(ValueError, match="is no file"):
            model.load_memory(tmp_path / "pipe", MOST)
        (tmp_path / "a").symlink_to(tmp_path / "b")
        (tmp_path / "b").symlink_to(tmp_path / "a")
        with pytest.raises(FileNotFoundError, match="no memory file"):
            model.load_memory(tmp_path / "a", MOST)
        (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
        with pytest.raises(FileNotFoundError, match="no memory file"):
            model.load_memory(tmp_path / "gone", MOST)


ODD = [
    None,
    True,
    0,
    -1,
    1.5,
    10**30,
    1e400,
    "",
    "x",
    "\ud800",
    [],
    [[]],
    [[[]]],
    [None],
    {},
    {"a": []},
]
HEADER = (
    "version format rate rates nested pooling fingerprint text_sha256 unknown_tokens documents "
    "segments literals checks"
).split()


@pytest.mark.parametrize("name", HEADER)
def test_whatever_a_header_holds_a_value_error_says_it_is_wrong(model, forged, name):
    """Of any type, in the whole field's place and in the place of each of its parts."""
    for value in ODD:
        for deep in range(4):

            def change(header, deep=deep, value=value):
                target, last = header, name
                for _ in range(deep):
                    if not isinstance(target[last], list) or not target[last]:
                        return
                    target, last = target[last], 0
                target[last] = value

            try:
                read = read_memory_file(model, forged(change), MOST)
            except ValueError:
                continue
            assert model.generate(memory=read, question="Why?", max_new_tokens=1) is not None
