"""A store that lost its catalogue, and searches and ids that are not plain text."""

import dataclasses
import itertools
import re
from fractions import Fraction

import pytest
import torch
from store_memories import make_memory, same_documents

from memslots.modeling import Memory
from memslots.modeling.memory_files_memslots import SegmentCheck
from memslots.serving.catalogue import NAME
from memslots.serving.maintenance import rebuild_catalogue
from memslots.serving.quantise import SLOT_DTYPES, to_bytes
from memslots.serving.store import MemoryStore

TEXTS = {f"{letter}.txt": f"The text of {letter}. " * 5 for letter in "abcde"}


@pytest.fixture
def store(tmp_path) -> MemoryStore:
    made = MemoryStore(tmp_path / "store")
    made.add(list(TEXTS)[:3], make_memory(list(TEXTS.values())[:3]), {"part": 1})
    made.add(list(TEXTS)[3:], make_memory(list(TEXTS.values())[3:]), {"part": 2})
    return made


@pytest.mark.parametrize("lost", ["unlink", "emptied"])
def test_a_lost_catalogue_is_no_empty_store(store, lost):
    before = {key: store.get(key) for key in TEXTS}
    catalogue = store.path / NAME
    catalogue.unlink() if lost == "unlink" else catalogue.write_bytes(b"")
    files = sorted((store.path / "data").iterdir())
    for create in (True, False):
        with pytest.raises(ValueError, match="store rebuild --store"):
            MemoryStore(store.path, create=create)
    assert sorted((store.path / "data").iterdir()) == files
    (store.path / f"{NAME}-journal").write_bytes(b"of the lost one")
    rebuilt = rebuild_catalogue(store.path)
    assert (rebuilt.documents, rebuilt.problems) == (5, {})
    again = MemoryStore(store.path)
    assert list(again.ids()) == list(TEXTS)
    assert again.find({"part": 2}) == ["d.txt", "e.txt"]
    assert again.info().documents == 5
    assert again.verify().ok
    again.compact()
    for key, memory in before.items():
        kept = again.get(key)
        assert same_documents(kept, memory)
        assert torch.equal(kept.slots, memory.slots)
    with pytest.raises(ValueError, match="has a catalogue"):
        rebuild_catalogue(store.path)


def test_all_that_goes_through_a_store_says_how_far_it_is(store, capsys):
    """By a bar of all rows, with the time left; a store as small as this shows it if asked."""
    store.compact()
    store.delete("b.txt")
    assert store.verify().ok
    assert capsys.readouterr().err == ""
    store.verify(progress=True)
    assert "verifying: 100%" in capsys.readouterr().err
    store.compact(progress=True)
    assert re.search(r"compacting: 100%.* 4/4 ", capsys.readouterr().err)
    (store.path / NAME).unlink()
    rebuild_catalogue(store.path, progress=True)
    assert re.search(r"rebuilding: 100%.* 4/4 ", capsys.readouterr().err)


def test_of_documents_that_were_replaced_the_newest_comes_back(store):
    store.add("a.txt", make_memory(["Another text."]), replace=True)
    store.delete("b.txt")
    (store.path / NAME).unlink()
    assert rebuild_catalogue(store.path).documents == 5  # b.txt was not compacted away
    again = MemoryStore(store.path)
    assert same_documents(again.get("a.txt"), make_memory(["Another text."]))
    again.compact()
    assert again.verify().documents == 5


def test_damaged_rows_are_named_and_cost_no_other(store):
    (store.path / NAME).unlink()
    first, second = sorted((store.path / "data").iterdir(), key=lambda file: file.stat().st_size)
    data = bytearray(second.read_bytes())
    slots = make_memory(list(TEXTS.values())[:1]).slots.to(torch.bfloat16)
    place = data.find(slots.view(torch.uint8).numpy().tobytes())
    data[place] ^= 1
    second.write_bytes(data)
    first.write_bytes(first.read_bytes()[:-200])
    rebuilt = rebuild_catalogue(store.path)
    assert rebuilt.documents == 2
    assert sorted(rebuilt.problems) == sorted([f"{second.name}, row 0", first.name])
    assert list(MemoryStore(store.path).ids()) == ["b.txt", "c.txt"]


def test_a_folder_without_a_readable_document_is_not_made_a_store(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "x.arrow").write_bytes(b"nothing")
    for folder in (tmp_path, tmp_path / "data", tmp_path / "nowhere"):
        with pytest.raises(ValueError, match="no document that can be read; name the folder"):
            rebuild_catalogue(folder)
    assert [file.name for file in tmp_path.iterdir()] == ["data"]


def verified(text: str, rates: list[int]) -> Memory:
    """One document whose segments have rates of their own."""
    plain = make_memory([text], rate=4)
    (document,) = plain.documents
    segments = tuple(
        dataclasses.replace(
            segment, slots=-(-segment.tokens // rate), rate=rate, check=SegmentCheck()
        )
        for segment, rate in zip(document, itertools.cycle(rates), strict=False)
    )
    slots = torch.randn(sum(segment.slots for segment in segments), 8)
    return dataclasses.replace(plain, slots=slots, documents=(segments,), rate=min(rates))


def test_rates_that_cat_joins_are_got_together(tmp_path):
    store = MemoryStore(tmp_path / "store")
    kept = {"fine": verified("A fine text. " * 6, [2]), "mixed": verified("Mixed. " * 9, [4, 8])}
    for key, memory in kept.items():
        store.add(key, memory)
    store.add("plain", make_memory(["A plain text. " * 4], rate=4))
    store.add("coarse", make_memory(["A coarse text. " * 4], rate=8))
    several = store.get(["fine", "mixed", "plain"])
    assert (
        several.segment_rates
        == Memory.cat([store.get(key) for key in ("fine", "mixed", "plain")]).segment_rates
    )
    assert set(several.segment_rates) == {2, 4, 8}
    with pytest.raises(ValueError, match=r"rates \[4, 8\]; say rate=8"):
        store.get(["plain", "coarse"])


ODD = [
    "a\0b",
    "a",
    "a\0",
    "\0",
    "",
    'quote " and \\ and \n',
    2**63,
    2**63 + 1,
    -(2**63) - 1,
    2**63 - 1,
    float(2**63),
    10**400,
    1,
    1.0,
    0,
    0.0,
    -0.0,
    True,
    False,
    None,
    [1],
    [1.0],
    [True],
    ["a\0b"],
    {},
    [],
    {"a\0b": 1},
    {"a": 1},
    {"a": [2**63]},
]


def in_json(stored, value) -> bool:
    """Whether two values are one in JSON: by exact fractions for numbers, else by their text."""

    def plain(part):
        if isinstance(part, int | float) and not isinstance(part, bool):
            return f"number {Fraction(part)}"
        if isinstance(part, list):
            return [plain(one) for one in part]
        if isinstance(part, dict):
            return {name: plain(one) for name, one in part.items()}
        return repr(part)

    return repr(plain(stored)) == repr(plain(value))


@pytest.mark.parametrize("key", ["plain", "nul\0key", "nul", "", "$.a[0]", 'a"b'])
def test_metadata_are_found_by_what_json_says(tmp_path, key):
    store = MemoryStore(tmp_path / "store")
    for number, value in enumerate(ODD):
        store.add(f"{number:02}", make_memory(["x" * (number + 1)]), {key: value})
    for value in ODD:
        same = [f"{number:02}" for number, stored in enumerate(ODD) if in_json(stored, value)]
        assert store.find({key: value}) == same, value
    assert store.find({f"{key}x": 1}) == []


@pytest.mark.parametrize("key", ["nl\n", "a\0b", "\x1b[2J", "tab\t", "c\x85", "line\u2028", "\x7f"])
def test_ids_with_control_characters_are_refused(tmp_path, key):
    store = MemoryStore(tmp_path / "store")
    with pytest.raises(ValueError, match="control character"):
        store.add(key, make_memory(["text"]))
    assert len(store) == 0
    store.add("Größe 日本\u200d\U0001f600 x", make_memory(["text"]))


@pytest.mark.parametrize("key", ["..", ".", "a/../b", "./a"])
def test_ids_that_clients_would_drop_from_an_address_are_refused(tmp_path, key):
    store = MemoryStore(tmp_path / "store")
    with pytest.raises(ValueError, match=r"a part that is \. or \.\."):
        store.add(key, make_memory(["text"]))
    store.add("a..b/.c", make_memory(["text"]))


@pytest.mark.parametrize("slot_dtype", SLOT_DTYPES)
@pytest.mark.parametrize("huge", [1e300, -1e39, torch.finfo(torch.float32).max])
def test_slots_that_rounding_makes_infinite_are_refused(slot_dtype, huge):
    slots = torch.full((2, 4), huge, dtype=torch.float64)
    if slot_dtype == "int8" and abs(huge) < 1e39:
        return  # has a scale of its own
    with pytest.raises(ValueError, match=r"NaN or infinite|too large"):
        to_bytes(slots, slot_dtype)
