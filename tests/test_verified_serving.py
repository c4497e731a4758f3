"""Verified memories in the store and through the gateway's files: carried, or refused clearly."""

import base64
from dataclasses import replace

import pytest
import torch
from tiny_models import TEXTS

from memslots.modeling import Memory
from memslots.modeling.fidelity_memslots import read
from memslots.modeling.lossless_memslots import make_exact
from memslots.modeling.patches_memslots import pack_text
from memslots.modeling.pipeline_memslots import MemoryQuestionAnsweringPipeline
from memslots.serving.memory_upload import read_memory_file, write_memory_file
from memslots.serving.shelf import derived_id, described
from memslots.serving.store import MemoryStore

pytestmark = pytest.mark.filterwarnings("ignore:from the slots the decoder")


@pytest.fixture(scope="module")
def memory(model) -> Memory:
    made = model.compress(TEXTS, rate=8, exact="numbers", patches=True)
    spans = [TEXTS[s.text][s.start : s.end] for s in made.segments]
    kept = zip(made.checks, spans, strict=True)
    return replace(made, checks=tuple(replace(c, exact=pack_text(t)) for c, t in kept))


@pytest.fixture(scope="module")
def mixed(model, memory) -> Memory:
    as_text = model.compress(TEXTS[0], fidelity=1.0)
    return Memory.cat([as_text, memory])


@pytest.mark.parametrize("slot_dtype", ["bfloat16", "int8"])
def test_the_store_keeps_rates_texts_and_exact_texts(model, mixed, tmp_path, slot_dtype):
    store = MemoryStore(tmp_path / "store", slot_dtype=slot_dtype)
    ids = [f"text {i}" for i in range(len(mixed))]
    store.add(ids, mixed)
    found = store.get(ids)
    assert found.checks == mixed.checks
    assert found.literals == mixed.literals
    assert found.documents == mixed.documents
    assert model.reconstruct(found, exact=True) == [TEXTS[0], *TEXTS]
    assert store.verify().ok


def test_the_store_refuses_patches_to_slots_that_it_rounds(model, tmp_path):
    store = MemoryStore(tmp_path / "store")
    for dtype in (torch.float32, torch.bfloat16):
        plain = model.compress(TEXTS[0], exact=[], slot_dtype=dtype)
        spans = [TEXTS[0][s.start : s.end] for s in plain.segments]
        none = [[]] * len(spans)
        readings = [read(model.processor, one) for one in spans]
        exact = make_exact(model, plain, readings, none, none, always=True)
        checks = zip(plain.checks, exact, strict=True)
        patched = replace(plain, checks=tuple(replace(c, exact=e) for c, e in checks))
        if dtype == torch.float32:
            with pytest.raises(ValueError, match=r"patches to slots in float32.*slot_dtype="):
                store.add("one", patched)
        else:
            store.add("one", patched)
            assert model.reconstruct(store.get("one"), exact=True) == TEXTS[0]


def sent(memory) -> str:
    return base64.b64encode(write_memory_file(memory)).decode()


def test_files_that_travel_in_requests(model, mixed):
    assert read_memory_file(model, sent(mixed), 10_000).checks == mixed.checks
    assert derived_id(mixed[0]) != derived_id(mixed[1])
    shown = described("one", mixed[0], {})
    assert shown["segments_as_text"] == len(mixed[0].segments)
    assert shown["fidelity"] == [1.0] * len(mixed[0].segments)
    with pytest.raises(ValueError, match="more than the 100 characters"):
        read_memory_file(model, sent(mixed), 100)


def test_the_pipeline_reads_them(model, mixed):
    pipe = MemoryQuestionAnsweringPipeline(model=model)
    found = pipe(question=["Where?"] * len(mixed), memory=mixed, max_new_tokens=4)
    assert [one["answer"] for one in found] == model.generate(
        memory=mixed, question=["Where?"] * len(mixed), max_new_tokens=4
    )
