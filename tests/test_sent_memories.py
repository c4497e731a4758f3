"""Memory files that strangers send: what no compressor writes is refused before it costs."""

import base64
import json
import os
import tracemalloc
import zlib

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tiny_models import TEXTS

from memslots import Memory, sent_memories, verified
from memslots.modeling.memory_files_memslots import pack_text, write_file
from memslots.sent_memories import load_sent_memory
from memslots.serving.memory_upload import read_memory_file

pytestmark = pytest.mark.filterwarnings("ignore:from the slots the decoder")

MOST = 10_000


@pytest.fixture(scope="module")
def memory(model) -> Memory:
    """Slots and literals, kept texts, and one text that is read as text."""
    made = verified.compress(model, TEXTS[:2], rate=8, exact="numbers", keep_text=True)
    made = Memory.cat([made, verified.compress(model, TEXTS[2], fidelity=1.0)])
    return made.join()


@pytest.fixture
def forged(memory, tmp_path):
    """What comes of reading a file with another header or other tensors, its checksum right."""

    def make(change=None, tensors=None, most=MOST):
        path = tmp_path / "forged.safetensors"
        memory.save(path)
        with safe_open(path, framework="pt") as file:
            header = json.loads(file.metadata()["memslots"])
            kept = {name: file.get_tensor(name) for name in ("slots", "texts")}
        if change is not None:
            change(header)
        write_file(path, header, {**kept, **(tensors or {})})
        return base64.b64encode(path.read_bytes()).decode()

    return make


def test_what_was_compressed_is_taken(model, memory, forged):
    read = read_memory_file(model, forged(), MOST)
    assert (read.documents, read.checks, read.literals) == (
        memory.documents,
        memory.checks,
        memory.literals,
    )
    assert (read.texts, read.texts[2]) == (memory.texts, None)
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
        (put("rates", [8, 16, 10**9]), "memory has rates|rates is"),
        (put("rates", "all"), "memory has rates|rates is"),
        (put("nested", "yes"), "memory has nested 'yes'"),
        (put("pooling", "mean"), "memory has pooling 'mean'"),
        (put("fingerprint", 7), "not a sound memory|not that of a memory"),
        (
            put("text_sha256", 0, "0" * 63),
            "text_sha256 that is not|not the one that was compressed",
        ),
        (put("text_sha256", 0, {}), "text_sha256 that is not|not the one that was compressed"),
        (put("unknown_tokens", []), "how many tokens were unknown"),
        (put("unknown_tokens", 0, -1), "how many tokens were unknown"),
        (put("documents", []), "segments, its documents"),
        (put("documents", [1]), "segments, its documents"),
        (put("documents", [-1]), "segments, its documents"),
        (put("segments", 0, 0, 99), "segment of numbers"),
        (put("segments", 0, 1, -1), "segment of numbers"),
        (put("segments", 0, 2, 0), "segment of numbers"),
        (put("segments", 0, 2, 10**30), "segment of numbers"),
        (put("segments", TEXT, 3, 10**9), "segment of numbers"),
        (put("segments", 0, 3, "8"), "not a sound memory|not that of a memory"),
        (put("segments", 0, [1]), "not a sound memory|not that of a memory"),
        (put("checks", 0, []), "not a sound memory|not that of a memory|not enough values"),
        (put("checks", 0, 0, 0), "not how rate 0"),
        (put("checks", 0, 1, -1), "not counted right"),
        (put("checks", 0, 3, [[0, 10**9]]), "lost token outside"),
        (put("checks", 0, 3, [[0, 1]] * 5000), "not counted right"),
        (put("checks", 0, 3, [["a", "b"]]), "invalid literal"),
        (put("checks", 0, 4, "a text beside slots"), "whose text is not"),
        (put("texts", []), "one run for each hash"),
        (put("texts", 0, 0, -1), "kept text has no size"),
        (put("texts", 0, 0, 10**12), "kept text has no size"),
        (put("texts", 0, 1, 10**12), "keeps 10000000"),
        (put("texts", 0, 1, 2), "no end after 2 bytes"),
        (put("texts", 0, None), "kept texts, and the texts have|is damaged"),
        (put("checks", TEXT, 4, None), "whose text is not"),
        (put("checks", TEXT, 4, "x" * 9_000), "whose text is not"),
        (put("checks", TEXT, 4, [1]), "whose text is not"),
        (
            put("literals", 0, [[10**9, 10**9 + 1, "x"]]),
            "tokens that are not of their segment",
        ),
        (
            put("literals", 0, [[0, 1, "much more"]]),
            "tokens that are not of their segment",
        ),
        (put("literals", 0, [[0, 1, "\ud800"]]), "tokens that are not of their segment"),
        (put("literals", 0, [[0, 1]]), "not a sound memory|not that of a memory"),
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

    monkeypatch.setattr(sent_memories, "MOST_HEADER", 5000)
    with pytest.raises(ValueError, match=r"header of \d+ bytes, and at most 5000 are accepted"):
        read_memory_file(model, forged(stuffed), MOST)
    monkeypatch.undo()


def test_json_that_is_nested_deep(model, tmp_path):
    save_file({"slots": torch.zeros(1, 1)}, tmp_path / "deep", {"memslots": "[" * 60_000})
    content = base64.b64encode((tmp_path / "deep").read_bytes()).decode()
    with pytest.raises(ValueError, match="memory cannot be read as a memory"):
        read_memory_file(model, content, MOST)


@pytest.mark.parametrize(
    ("slots", "message"),
    [
        (lambda own: own.long(), "floating-point, got torch.int64"),
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


def test_kept_texts_of_another_type(model, memory, forged):
    wrong = {"texts": torch.zeros(9, dtype=torch.int64)}
    with pytest.raises(ValueError, match="kept texts are bytes"):
        read_memory_file(model, forged(tensors=wrong), MOST)


BIG = 2**25


def kept(data: bytes, size: int | None = None):
    """A change of the header and tensors that keeps these deflated bytes as the first text."""

    def change(header):
        header["texts"] = [[len(data), len(data) if size is None else size], None, None]

    return change, {"texts": torch.frombuffer(bytearray(data), dtype=torch.uint8)}


@pytest.mark.parametrize(
    ("data", "size", "message"),
    [
        (zlib.compress(bytes(BIG)), 100, "no end after 100 bytes"),
        (zlib.compress(bytes(BIG)), BIG, f"keeps {BIG} bytes of text"),
        (zlib.compress(b"\xff" * 9), 9, "a kept text is damaged"),
        (b"\xff" * 200, 200, "a kept text is damaged"),
        (pack_text(TEXTS[0] + "!"), len(TEXTS[0]) + 1, "is not the one that was compressed"),
    ],
)
def test_bombs_are_refused_before_they_cost_memory(model, forged, data, size, message):
    change, tensors = kept(data, size)
    content = forged(change, tensors)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=message):
            read_memory_file(model, content, MOST)
        assert tracemalloc.get_traced_memory()[1] < 6 * len(data) + 2**22
    finally:
        tracemalloc.stop()


# -- files that cost more than they are ------------------------------------------------------------


def several(times):
    """The first segment so many times, with all that belongs to it."""

    def change(header):
        header["segments"] = [header["segments"][0]] * times
        header["checks"] = [header["checks"][0]] * times
        header["literals"] = [header["literals"][0]] * times
        header["documents"] = [times]
        for name in ("text_sha256", "unknown_tokens"):
            header[name] = header[name][:1]
        header["texts"] = [None]

    return change


def test_segments_are_in_their_texts_order_and_apart(model, memory, forged):
    n_slots, nothing = memory.segments[0].slots, torch.empty(0, dtype=torch.uint8)

    def read(times):
        slots = memory.slots[:n_slots].repeat(times, 1)
        tensors = {"slots": slots, "texts": nothing}
        return read_memory_file(model, forged(several(times), tensors), MOST)

    for times in (2, 20):
        with pytest.raises(ValueError, match="not after the one before"):
            read(times)
    assert read(1)


def test_texts_without_a_segment_are_refused(model, memory, forged):
    def change(header):
        for name in ("text_sha256", "unknown_tokens", "texts"):
            header[name] += [None if name == "texts" else header[name][-1]] * 1000

    with pytest.raises(ValueError, match="texts that no segment belongs to"):
        read_memory_file(model, forged(change), MOST)


def test_a_pipe_is_not_replaced_by_a_memory(memory, tmp_path):
    """Root could replace a device of the machine."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="give a file name in an existing folder"):
        memory.save(tmp_path / "pipe")
    assert (tmp_path / "pipe").is_fifo()


def test_literals_are_in_their_texts_order_and_apart(model, memory, forged):
    text, start = TEXTS[0], memory.segments[0].start

    def literal(a, b):
        return [start + a, start + b, text[start + a : start + b]]

    apart = [literal(3, 5), literal(5, 7), literal(7, 8)]
    assert read_memory_file(model, forged(put("literals", 0, apart)), MOST).literals[0]
    for wrong in (
        [literal(3, 5), literal(3, 5)],
        [literal(5, 7), literal(3, 5)],
        [literal(3, 5), literal(4, 6)],
        [literal(3, 8), literal(4, 5)],
        [literal(3, 4), literal(3, 8)],
        [literal(3, 5)] * 100,
    ):
        with pytest.raises(ValueError, match=r"verbatim tokens at .* not after those before"):
            read_memory_file(model, forged(put("literals", 0, wrong)), MOST)


def test_more_parts_than_are_taken_are_refused_unparsed(model, memory, forged, monkeypatch):
    for part in ("[0, 1]", "{}", '["\\u005b"]'):
        many = json.loads(f"[{', '.join([part] * sent_memories.MOST_LISTS)}]")
        content = forged(put("more", many))
        with monkeypatch.context() as patched:
            patched.setattr(json, "loads", lambda text: pytest.fail("it was parsed"))
            with pytest.raises(ValueError, match=r"memory has \d+ segments, verbatim and lost"):
                read_memory_file(model, content, MOST)


def test_documents_beyond_the_decoders_positions_are_refused(model, memory, forged, monkeypatch):
    parts = len(memory.segments) + sum(memory.n_literals)
    for most, refused in ((parts, False), (parts - 1, True)):
        monkeypatch.setattr(model.decoder.config, "max_position_embeddings", most)
        if refused:
            with pytest.raises(
                ValueError, match=f"{parts} segments and verbatim tokens, .* reads {most} tok"
            ):
                read_memory_file(model, forged(), MOST)
        else:
            assert read_memory_file(model, forged(), MOST)


def test_segments_of_no_token_are_read_as_text_alone(model, memory, forged):
    def emptied(header):
        header["segments"][0][3:] = [0, 0]

    slots = memory.slots[memory.segments[0].slots :].clone()
    with pytest.raises(ValueError, match="segment without tokens"):
        read_memory_file(model, forged(emptied, {"slots": slots}), MOST)


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
    with pytest.raises(ValueError, match="is not a file"):
        load_sent_memory(model, tmp_path / "folder", MOST)
    with pytest.raises(FileNotFoundError, match="no memory file"):
        load_sent_memory(model, tmp_path / "nothing", MOST)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(ValueError, match="is not a file"):
            load_sent_memory(model, tmp_path / "pipe", MOST)
        (tmp_path / "a").symlink_to(tmp_path / "b")
        (tmp_path / "b").symlink_to(tmp_path / "a")
        with pytest.raises(FileNotFoundError, match="no memory file"):
            load_sent_memory(model, tmp_path / "a", MOST)
        (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
        with pytest.raises(FileNotFoundError, match="no memory file"):
            load_sent_memory(model, tmp_path / "gone", MOST)


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
    "segments literals checks texts"
).split()


class NoSuchPart(Exception):
    """The field has no part so deep."""


@pytest.mark.parametrize("name", HEADER)
def test_whatever_a_header_holds_a_value_error_says_it_is_wrong(model, forged, name):
    """Of any type, in the whole field's place and in the place of each of its parts."""
    for value in ODD:
        for deep in range(4):

            def change(header, deep=deep, value=value):
                target, last = header, name
                for _ in range(deep):
                    if not isinstance(target[last], list) or not target[last]:
                        raise NoSuchPart
                    target, last = target[last], 0
                target[last] = value

            try:
                read = read_memory_file(model, forged(change), MOST)
            except NoSuchPart:
                break
            except ValueError:
                continue
            assert model.generate(memory=read, question="Why?", max_new_tokens=1) is not None
