"""Verified memories in the store and through the gateway's files: carried, or refused clearly."""

import base64

import pytest
from tiny_models import TEXTS

from memslots import verified
from memslots.modeling import Memory
from memslots.modeling.pipeline_memslots import MemoryQuestionAnsweringPipeline
from memslots.serving.memory_upload import read_memory_file, write_memory_file
from memslots.serving.shelf import derived_id, described
from memslots.serving.store import MemoryStore

pytestmark = pytest.mark.filterwarnings("ignore:from the slots the decoder")


@pytest.fixture(scope="module")
def memory(model) -> Memory:
    return verified.compress(model, TEXTS, rate=8, exact="numbers", keep_text=True)


@pytest.fixture(scope="module")
def mixed(model, memory) -> Memory:
    as_text = verified.compress(model, TEXTS[0], fidelity=1.0)
    return Memory.cat([as_text, memory])


@pytest.mark.parametrize("slot_dtype", ["bfloat16", "int8"])
def test_the_store_keeps_rates_texts_and_exact_texts(model, mixed, tmp_path, slot_dtype):
    store = MemoryStore(tmp_path / "store", slot_dtype=slot_dtype)
    ids = [f"text {i}" for i in range(len(mixed))]
    store.add(ids, mixed)
    found = store.get(ids)
    assert (found.checks, found.texts) == (mixed.checks, mixed.texts)
    assert found.literals == mixed.literals
    assert found.documents == mixed.documents
    assert model.reconstruct(found, exact=True) == [TEXTS[0], *TEXTS]
    assert store.verify().ok


def sent(memory) -> str:
    return base64.b64encode(write_memory_file(memory)).decode()


def test_files_that_travel_in_requests(model, mixed):
    assert read_memory_file(model, sent(mixed), 10_000).checks == mixed.checks
    assert derived_id(mixed[0]) != derived_id(mixed[1])
    shown = described("one", mixed[0], {})
    assert shown["segments_as_text"] == len(mixed[0].segments)
    assert shown["fidelity"] == [1.0] * len(mixed[0].segments)
    with pytest.raises(ValueError, match="for 100 characters"):
        read_memory_file(model, sent(mixed), 100)


def test_the_pipeline_reads_them(model, mixed):
    pipe = MemoryQuestionAnsweringPipeline(model=model)
    found = pipe(question=["Where?"] * len(mixed), memory=mixed, max_new_tokens=4)
    assert [one["answer"] for one in found] == model.generate(
        memory=mixed, question=["Where?"] * len(mixed), max_new_tokens=4
    )
