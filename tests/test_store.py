"""The memory store: what goes in comes out, and nothing else is lost or changed by it."""

import dataclasses
import itertools
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from store_memories import FINGERPRINT, make_memory, same_documents
from store_writer import text_of

from memslots.modeling.memory_memslots import Memory
from memslots.modeling.texts_memslots import Literal
from memslots.serving import store_files, store_format
from memslots.serving.maintenance import rebuild_catalogue
from memslots.serving.quantise import from_bytes, to_bytes
from memslots.serving.store import MemoryStore

TEXTS = [
    "The treaty was signed in Lagos.",
    "Why?",
    "Rivers rise in the hills, and cross the plain.",
]
IDS = ["a/one.txt", "zwei 😀", "3"]


def filled(folder: Path, slot_dtype: str = "bfloat16") -> tuple[MemoryStore, Memory]:
    store, memory = MemoryStore(folder / "store", slot_dtype), make_memory(TEXTS)
    store.add(IDS, memory, [{"year": 1920, "tags": ["x"]}, {"year": 1921}, None])
    return store, memory


def only_file(store: MemoryStore) -> Path:
    (path,) = (store.path / "data").iterdir()
    return path


# -- the same comes out ----------------------------------------------------------------------------


def test_what_was_added_comes_out_in_the_order_asked(tmp_path):
    store, memory = filled(tmp_path)
    back = MemoryStore(tmp_path / "store", create=False).get(IDS)
    assert same_documents(back, memory)
    assert back.dtype == torch.bfloat16
    assert torch.equal(back.slots, memory.slots.bfloat16())
    reverse = store.get(IDS[::-1])
    assert reverse.text_sha256 == memory.text_sha256[::-1]
    assert torch.equal(reverse[0].slots, memory[2].slots.bfloat16())
    assert same_documents(store.get([IDS[1], IDS[1]]), Memory.cat([memory[1], memory[1]]))


def as_stored(slots, slot_dtype):
    return from_bytes(*to_bytes(slots, slot_dtype), slot_dtype, *slots.shape)


def test_int8_is_off_by_at_most_half_a_step_of_each_slot(tmp_path):
    store, memory = filled(tmp_path, "int8")
    back = store.get(IDS)
    assert same_documents(back, memory)
    assert back.dtype == torch.float32
    step = memory.slots.abs().amax(dim=1, keepdim=True) / 127
    assert ((back.slots - memory.slots).abs() <= step * 0.501).all()
    assert torch.equal(back.slots, as_stored(memory.slots, "int8"))


def test_int8_keeps_zeros_and_survives_tiny_and_huge_slots():
    slots = torch.stack(
        [torch.zeros(4), torch.full((4,), 1e-42), torch.tensor([3e38, 0, -1e30, 1])]
    )
    back = as_stored(slots, "int8")
    assert torch.isfinite(back).all()
    assert torch.equal(back[:2], torch.zeros(2, 4))
    assert back[2, 0] == pytest.approx(3e38)


def test_the_bytes_of_slots_are_counted_as_they_are_stored(tmp_path):
    for slot_dtype in ("bfloat16", "int8"):
        store = MemoryStore(tmp_path / slot_dtype, slot_dtype)
        memory = make_memory(["x" * 4000] * 8, d_encoder=64)
        store.add([str(i) for i in range(8)], memory)
        slots = memory.slots.shape[0] * (64 * 2 if slot_dtype == "bfloat16" else 64 + 4)
        size = only_file(store).stat().st_size
        assert slots < size < 1.2 * slots + 20_000
        assert store.info().bytes == size + (store.path / "catalogue.sqlite").stat().st_size


def test_joined_documents_and_coarser_rates(tmp_path):
    store = MemoryStore(tmp_path / "store")
    joined = make_memory(TEXTS).join()
    store.add("all", joined)
    assert same_documents(store.get("all"), joined)
    store.add("fine", make_memory(TEXTS[:1], rate=2))
    assert same_documents(store.get("all", rate=8), joined.at_rate(8))
    with pytest.raises(ValueError, match=r"rates \[2, 4\]; say rate=4"):
        store.get(["all", "fine"])
    assert [m.rate for m in (store.get("fine"), store.get(["all", "fine"], rate=4))] == [2, 4]


def test_literals_are_kept_with_their_segments(tmp_path):
    store, memory = MemoryStore(tmp_path / "store"), make_memory(TEXTS)
    numbers = itertools.count()
    documents = tuple(
        tuple(
            dataclasses.replace(s, literals=(Literal(s.start, s.end, f"№ {next(numbers)} 😀"),))
            for s in document
        )
        if i % 2
        else document
        for i, document in enumerate(memory.documents)
    )
    memory = dataclasses.replace(memory, documents=documents)
    store.add(IDS, memory)
    store.add("without", make_memory(["none at all"]))
    assert sum(memory.n_literals)
    assert same_documents(store.get(IDS), memory)
    assert same_documents(store.get(IDS[2]), memory[2])
    assert store.get("without").literals == ()
    assert store.get(["without", *IDS]).literals == ((), *memory.literals)


def test_every_field_of_a_memory_has_a_place_in_the_format():
    """A new field must be stored: by itself where JSON holds it, else in a new format version."""
    memory = make_memory(TEXTS)
    (row,) = store_format.encode_memory(["a"], memory[0], ["{}"], "bfloat16").to_pylist()
    kept = {"slots", "documents", "text_sha256", "unknown_tokens", "rate", "fingerprint"}
    kept |= {"texts", *json.loads(row["compressor"])}
    assert {field.name for field in dataclasses.fields(Memory)} == kept
    beside = {"rate", "literals", "check"}  # in the columns `rate` and `literals`
    assert set(vars(memory.segments[0])) == {*store_format.SEGMENT_COLUMNS, *beside}


def test_ids_metadata_and_texts_are_found(tmp_path):
    store, memory = filled(tmp_path)
    assert len(store) == 3
    assert list(store.ids()) == sorted(IDS)
    assert IDS[1] in store
    assert "nobody" not in store
    assert 3 not in store
    assert store.find({"year": 1920}) == [IDS[0]]
    assert store.find({"tags": ["x"], "year": 1920}) == [IDS[0]]
    assert (
        store.find({"tags": ["y"]}) == store.find({"year": "1920"}) == store.find({"no": 1}) == []
    )
    assert store.find(text_sha256=memory.text_sha256[1]) == [IDS[1]]
    store.add("types", make_memory(["types"]), {"t": True, "n": None, "o": {"b": [1.5], "a": "é"}})
    for wanted in ({"t": True}, {"n": None}, {"o": {"a": "é", "b": [1.5]}}):
        assert store.find(wanted) == ["types"]
    assert store.find({"t": 1}) == store.find({"n": 0}) == []


def test_deleting_replacing_and_compacting(tmp_path):
    store, memory = filled(tmp_path)
    store.delete([IDS[0]])
    store.add(IDS[1], make_memory(["another text"]), replace=True)
    assert list(store.ids()) == sorted(IDS[1:])
    assert store.get(IDS[1]).text_sha256 == make_memory(["another text"]).text_sha256
    assert store.find({"year": 1921}) == []
    assert store.info().deleted == 2
    secret = memory[0].slots.bfloat16().view(torch.uint8).numpy().tobytes()
    assert any(secret in file.read_bytes() for file in (store.path / "data").iterdir())
    (store.path / "data" / "left-by-a-dead-writer.arrow").write_bytes(b"half")
    assert store.verify().left_over == ["left-by-a-dead-writer.arrow"]
    store.compact()
    assert secret not in only_file(store).read_bytes()
    assert store.info().deleted == 0
    assert torch.equal(store.get(IDS[2]).slots, memory[2].slots.bfloat16())
    assert store.verify().ok
    before = only_file(store)
    store.compact()
    assert only_file(store) == before  # nothing to do
    store.delete(IDS[1:])
    store.compact()
    assert len(store) == 0
    assert list((store.path / "data").iterdir()) == []
    store.add(
        "new", make_memory(["x"], fingerprint="b" * 64)
    )  # an empty store takes any compressor
    assert store.fingerprint == "b" * 64


def test_large_additions_are_cut_into_files_and_stay_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(store_files, "FILE_BYTES", 2000)
    store = MemoryStore(tmp_path / "store")
    texts = [f"text {i} " * (i + 1) for i in range(20)]
    memory = make_memory(texts)
    store.add([f"{i}" for i in range(20)], memory)
    assert store.info().files > 2
    back = store.get([f"{i}" for i in range(20)])
    assert same_documents(back, memory)
    assert torch.equal(back.slots, memory.slots.bfloat16())
    store.delete([f"{i}" for i in range(0, 20, 2)])
    store.compact()
    rest = [f"{i}" for i in range(1, 20, 2)]
    assert same_documents(store.get(rest), make_memory(texts[1::2]))
    assert store.verify().documents == 10


def test_reading_one_document_leaves_the_others_unread(tmp_path):
    """Damage the slots of all others: a store that read them would notice."""
    store = MemoryStore(tmp_path / "store")
    memory = make_memory([f"{i} " * 200 for i in range(20)], d_encoder=32)
    store.add([str(i) for i in range(20)], memory)
    path = only_file(store)
    data = bytearray(path.read_bytes())
    mine = memory[7].slots.bfloat16().view(torch.uint8).numpy().tobytes()
    for i in range(20):
        other = memory[i].slots.bfloat16().view(torch.uint8).numpy().tobytes()
        if other != mine:
            data[data.index(other)] ^= 1
    path.write_bytes(data)
    assert torch.equal(store.get("7").slots, memory[7].slots.bfloat16())
    assert set(store.verify().problems) == {str(i) for i in range(20)} - {"7"}


# -- bad input -------------------------------------------------------------------------------------


def test_mistakes_are_refused_and_change_nothing(tmp_path):
    store, memory = filled(tmp_path)
    before = (store.info(), sorted(os.listdir(store.path / "data")))
    one = make_memory(["x"])
    nan = dataclasses.replace(one, slots=one.slots / 0)
    refused = [
        ("in the store .* already", lambda: store.add(IDS[0], one)),
        ("come twice", lambda: store.add(["n", "n"], make_memory(["x", "y"]))),
        ("1 ids .* 2 documents", lambda: store.add("n", make_memory(["x", "y"]))),
        ("1 to 1024 characters", lambda: store.add("", one)),
        ("1 to 1024 characters", lambda: store.add([7], one)),
        ("lone surrogate", lambda: store.add("\ud800", one)),
        ("what JSON can hold", lambda: store.add("n", one, {"x": {1, 2}})),
        ("what JSON can hold", lambda: store.add("n", one, {"x": float("nan")})),
        ("string keys", lambda: store.add("n", one, {1: 2})),
        ("NaN or infinite", lambda: store.add("n", nan)),
        ("floating", lambda: store.add("n", one.to(torch.int32))),
        ("this one is of b{12}", lambda: store.add("n", make_memory(["x"], fingerprint="b" * 64))),
        (r"slots of 9\)", lambda: store.add("n", make_memory(["x"], d_encoder=9))),
        ("'nobody' not in the store", lambda: store.get([IDS[0], "nobody"])),
        ("at least one id", lambda: store.get([])),
        ("'nobody' not in the store", lambda: store.delete([IDS[0], "nobody"])),
        ("bfloat16, not int8", lambda: MemoryStore(store.path, "int8")),
        ("choose one of", lambda: MemoryStore(tmp_path / "n", "float64")),
        ("not a memory store and not empty", lambda: MemoryStore(tmp_path)),
    ]
    for message, call in refused:
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(FileNotFoundError, match="no memory store"):
        MemoryStore(tmp_path / "nowhere", create=False)
    assert (store.info(), sorted(os.listdir(store.path / "data"))) == before
    assert same_documents(store.get(IDS), memory)


@pytest.mark.parametrize("wait", ["x", None, True, -1, float("nan"), float("inf")])
def test_a_wait_is_seconds(tmp_path, wait):
    with pytest.raises(ValueError, match="wait must be seconds"):
        MemoryStore(tmp_path / "store", wait=wait)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("wrong", [5, None, ("a",), ["a"], b"a", 2**70, "\ud800", {"a": 1}])
def test_values_of_a_wrong_type_are_no_damage(tmp_path, wrong):
    # A tuple got the advice to move the catalogue away, others errors of sqlite3 and of Python.
    store, _ = filled(tmp_path)
    for ask in (store.get, store.read, store.places, store.texts):
        with pytest.raises(ValueError, match=r"is a string of valid Unicode, got"):
            ask([wrong])
    if wrong is not None:
        with pytest.raises(ValueError, match=r"text_sha256 is a string of valid Unicode, got"):
            store.find(text_sha256=wrong)
    assert wrong not in store
    assert "" not in store
    assert len(store) == 3


@pytest.mark.parametrize("wrong", [None, "memory.safetensors", [make_memory(["Why?"])], 5])
def test_only_memories_are_added(tmp_path, wrong):
    store, _ = filled(tmp_path)
    with pytest.raises(TypeError, match=r"memory must be a Memory .* got (None|str|list|int)"):
        store.add("new", wrong)
    with pytest.raises(ValueError, match=r"is a string of valid Unicode, got"):
        store.get(5)
    assert "new" not in store


def test_metadata_are_found_as_they_are_kept(tmp_path):
    # JSON's keys are strings, also those inside.
    store, memory = filled(tmp_path)
    metadata = {"pages": {1: (2, 3)}, "large": 2**80, "nul": "a\0b"}
    store.add("new", memory[0], metadata)
    assert store.find(metadata) == store.find({"pages": {"1": [2, 3]}}) == ["new"]
    assert store.find({"pages": {1: (2, 4)}}) == []


def test_a_place_that_cannot_be_a_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    for place in (tmp_path / "file" / "store", tmp_path / "link"):
        with pytest.raises(
            ValueError, match=r"cannot make a memory store at .*; name a new folder"
        ):
            MemoryStore(place)


def test_a_store_that_was_begun_and_not_made_is_made(tmp_path):
    (tmp_path / "store" / "data").mkdir(parents=True)
    (tmp_path / "store" / "catalogue.sqlite").touch()
    (tmp_path / "store" / "catalogue.sqlite-journal").touch()
    with pytest.raises(FileNotFoundError, match="no memory store"):
        MemoryStore(tmp_path / "store", create=False)
    store, memory = filled(tmp_path)
    assert same_documents(store.get(IDS), memory)


def test_a_newer_format_is_refused(tmp_path):
    store, _ = filled(tmp_path)
    with sqlite3.connect(store.path / "catalogue.sqlite") as db:
        db.execute("UPDATE store SET value = '99' WHERE key = 'version'")
    with pytest.raises(ValueError, match=r"store format 99; .* Update memslots"):
        MemoryStore(store.path)


def test_no_bit_of_a_file_can_change_unnoticed(tmp_path):
    """Whatever bit is flipped, or wherever the file is cut: the right memory, or an error."""
    store, _ = filled(tmp_path, "int8")
    right = store.get(IDS)
    path = only_file(store)
    data, rng = path.read_bytes(), random.Random(0)
    noticed = 0
    for n in range(250):
        damaged, at = bytearray(data), rng.randrange(len(data))
        if n % 10 == 0:
            del damaged[at:]
        else:
            damaged[at] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        try:
            back = store.get(IDS)
        except ValueError:
            noticed += 1
        else:
            assert same_documents(back, right)
            assert torch.equal(back.slots, right.slots)
    assert noticed > 100  # the rest is padding between the columns
    path.write_bytes(data)
    assert store.verify().ok


def test_one_damaged_document_costs_no_other(tmp_path):
    store, memory = filled(tmp_path)
    store.add("else", make_memory(["elsewhere"]))
    slots = memory[1].slots.bfloat16().view(torch.uint8).numpy().tobytes()
    path = next(f for f in (store.path / "data").iterdir() if slots in f.read_bytes())
    path.write_bytes(path.read_bytes().replace(slots, slots[::-1]))
    found = store.verify()
    assert set(found.problems) == {IDS[1]}
    assert "altered" in found.problems[IDS[1]]
    assert found.documents == 4
    store.compact()  # must not copy what it cannot check
    assert set(store.verify().problems) == {IDS[1]}
    assert same_documents(store.get(IDS[::2]), Memory.cat([memory[0], memory[2]]))
    store.delete(IDS[1])
    store.compact()
    assert store.verify().ok
    only_file(store).unlink()
    assert set(store.verify().problems) == {IDS[0], IDS[2], "else"}
    with pytest.raises(ValueError, match="is missing"):
        store.get("else")


def test_a_catalogue_that_disagrees_with_the_files_is_noticed(tmp_path):
    store, _ = filled(tmp_path)
    with sqlite3.connect(store.path / "catalogue.sqlite") as db:
        db.execute("UPDATE documents SET rate = 8 WHERE id = ?", (IDS[0],))
    assert set(store.verify().problems) == {IDS[0]}
    catalogue = store.path / "catalogue.sqlite"
    catalogue.write_bytes(b"not a database, but long enough to be looked at" * 100)
    with pytest.raises(ValueError, match=r"or not a catalogue.*move it away.*store rebuild"):
        store.get(IDS[0])
    catalogue.unlink()
    assert rebuild_catalogue(store.path).documents == len(store)


@pytest.mark.parametrize(
    ("limit", "length", "message"),
    [(4000, 9000, "the disk is full"), (49152, 10, "catalogue.sqlite cannot be used")],
    ids=["slots", "catalogue"],
)
def test_a_full_disk_loses_nothing(tmp_path, limit, length, message):
    """A limit on the size of files stands in for a full disk: it needs no rights and no mount."""
    resource = pytest.importorskip("resource", reason="Windows has no limit on file sizes")
    store = MemoryStore(tmp_path / "store")
    store.add("before", make_memory(["before"]))
    memory = make_memory(["x" * length])

    def add_many():
        for i in range(10000):
            store.add(f"doc{i}", memory, {"note": "y" * 2000})

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(OSError, match=message):
            add_many()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(store.ids()) == sorted(["before", *(f"doc{i}" for i in range(len(store) - 1))])
    found = store.verify()
    assert found.ok
    assert not found.left_over
    store.add("after", make_memory(["after"]))


# -- other writers, and writers that die -----------------------------------------------------------


def test_writers_beside_each_other(tmp_path):
    """Eight threads add their own documents and fight for one id: each id is there once."""
    store = MemoryStore(tmp_path / "store")

    def write(worker: int) -> int:
        won = 0
        for i in range(5):
            store.add(f"{worker}-{i}", make_memory([f"{worker} {i}"]))
            try:
                store.add(f"contested-{i}", make_memory([f"by {worker}"]))
                won += 1
            except ValueError:  # the only one that its ids and memory can cause: already there
                pass
        return won

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(write, range(8))) == 5
    assert len(store) == 45
    assert store.verify().ok


def test_reading_goes_on_while_files_are_rewritten(tmp_path):
    store = MemoryStore(tmp_path / "store")
    for i in range(12):
        store.add(str(i), make_memory([f"text {i}"]))
    done = threading.Event()
    read = 0

    def compact():
        for i in range(5):
            store.add(f"more {i}", make_memory([f"more {i}"]))
            store.compact()
        done.set()

    thread = threading.Thread(target=compact)
    thread.start()
    while not done.is_set():
        for i in range(12):
            assert same_documents(store.get(str(i)), make_memory([f"text {i}"]))
            read += 1
    thread.join()
    assert read
    assert store.verify().ok


def test_a_writer_of_much_keeps_no_reader_away(tmp_path):
    """SQLite would lock readers out as soon as what is changed outgrows its cache of 2 MB."""
    store, _ = filled(tmp_path)
    reader = MemoryStore(store.path, wait=0.0)
    with store._catalogue.write() as db:
        store._catalogue.set_header(db, **{f"note {i}": "x" * 100_000 for i in range(40)})
        assert list(reader.ids()) == list(store.ids())


def test_a_writer_that_never_ends_is_reported(tmp_path):
    store, _ = filled(tmp_path)
    impatient = MemoryStore(store.path, wait=0.1)
    with store._catalogue.write():
        with pytest.raises(TimeoutError, match="another process has been writing"):
            impatient.add("n", make_memory(["x"]))
        assert same_documents(impatient.get(IDS), make_memory(TEXTS))  # readers do not wait
    impatient.add("n", make_memory(["x"]))


def kill_writers(folder: Path, times: int, seed: int) -> None:
    """Kills a writer so many times, and checks the store after each."""
    store, rng = MemoryStore(folder), random.Random(seed)
    added: set[int] = set()
    deleted: set[int] = set()
    start = 0
    script = [sys.executable, str(Path(__file__).parent / "store_writer.py"), str(folder)]
    with subprocess.Popen(
        script, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        for _ in range(times):
            print(start, file=server.stdin, flush=True)
            wanted, child, now = rng.randrange(0, 5), None, 0
            for line in server.stdout:  # let it acknowledge a few, then kill it at some moment
                word, *rest = line.split()
                if word == "pid":
                    child = int(rest[0])
                elif word == "dead":
                    child = None
                    break
                else:
                    {"added": added, "deleted": deleted}[word].add(int(rest[0]))
                    now += 1
                if child and now >= wanted:
                    time.sleep(rng.random() * 0.03)
                    os.kill(child, signal.SIGKILL)
                    wanted = 10**9
            there = {int(one.removeprefix("doc")) for one in store.ids()}
            assert added - deleted <= there | {n for n in added if n % 5 == 0}, "lost"
            assert not deleted & there, "a deletion was lost"
            # At most the one addition that was not yet acknowledged, which is whole.
            assert len(there - added) <= 1
            added |= there
            start = max(added, default=-1) + 1
        server.stdin.close()
    assert len(added) >= times / 2
    found = store.verify()
    assert found.ok
    kept = sorted(number for number in added if f"doc{number}" in store)
    assert all(number % 5 == 0 for number in added - set(kept))
    memory = make_memory([text_of(number) for number in kept])
    back = store.get([f"doc{number}" for number in kept])
    assert same_documents(back, memory)
    assert torch.equal(back.slots, memory.slots.bfloat16())
    assert store.find({"number": kept[-1]}) == [f"doc{kept[-1]}"]
    store.compact()
    assert store.verify().left_over == []
    assert store.fingerprint == FINGERPRINT


@pytest.mark.parametrize("times", [5, pytest.param(50, marks=pytest.mark.slow)])
@pytest.mark.timeout(900)  # on a machine with other work, forks of a process with torch are slow
def test_nothing_acknowledged_is_lost_when_writers_are_killed(tmp_path, times):
    kill_writers(tmp_path / "store", times, seed=times)
