"""Verified memories over HTTP: what `compress` takes, `expand`, literals, and hostile files."""

import base64
import threading
from dataclasses import replace

import httpx
import pytest
import torch
from loopback import served
from tiny_models import QUESTIONS, TEXTS

from memslots import MemslotsModel, verified
from memslots.serving.engines import TransformersEngine, expanded_with
from memslots.serving.gateway import Gateway
from memslots.serving.gateway_settings import GatewaySettings
from memslots.serving.memory_upload import write_memory_file
from memslots.serving.shelf import ProcessShelf, StoreShelf
from memslots.serving.store import MemoryStore

pytestmark = [
    pytest.mark.filterwarnings("ignore:from the slots the decoder"),
    pytest.mark.filterwarnings("ignore:the exact text of segments"),
]

CHAT, MEMORIES = "/v1/chat/completions", "/v1/memories"
NEW = 6
NUMBERS = "She owns 27 maps, he owns 3 keys, and they met in 1999 in Lagos."


@pytest.fixture(scope="module")
def client(zoo):
    gateway = Gateway(zoo.shared(), TransformersEngine(zoo.shared()), ProcessShelf())
    with served(gateway.app()) as url, httpx.Client(base_url=url, timeout=60) as one:
        yield one


def made(client, **fields):
    response = client.post(MEMORIES, json=fields)
    assert response.status_code == 200, response.text
    return response.json()


def loaded(client, model, one, folder):
    """The memory of an id, by way of its file."""
    content = client.get(f"{MEMORIES}/{one['id']}?format=safetensors").content
    (folder / "memory").write_bytes(content)
    return model.load_memory(folder / "memory")


def asked(client, **fields):
    body = {"messages": [{"role": "user", "content": QUESTIONS[0]}], "max_tokens": NEW, **fields}
    return client.post(CHAT, json=body)


def answered(response):
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]["message"]["content"]


@pytest.mark.parametrize(
    "fields",
    [
        {"fidelity": 0.4},
        {"fidelity": 0.01, "rates": [2, 8]},
        {"max_slots": 60},
        {"max_slots": 60, "fidelity": 0.5, "exact": ["numbers"]},
        {"rate": 8, "exact": ["numbers"], "keep_text": True},
        {"rate": 8, "exact": True},
        {"rate": 8, "exact": []},
        {"rate": 8, "exact": True, "keep_text": False},
        {"rate": 8, "literals": ["numbers"]},
        {"rate": 8, "exact": False, "keep_text": False},
    ],
)
def test_memories_are_those_that_compress_makes(client, model, tmp_path, fields):
    text = NUMBERS + " " + TEXTS[1]
    one = made(client, text=text, **fields)
    expected = verified.compress(model, text, **fields)
    found = loaded(client, model, one, tmp_path)
    assert (found.documents, found.checks, found.literals) == (
        expected.documents,
        expected.checks,
        expected.literals,
    )
    # Two passes over one text may differ in the last bits, by where their tensors lie in memory.
    torch.testing.assert_close(found.slots, expected.slots)
    assert one["fidelity"] == [check.fidelity for check in expected.checks]
    assert one["segments_as_text"] == expected.segment_rates.count(0)
    assert one["literals"] == sum(expected.n_literals)
    report = client.get(f"{MEMORIES}/{one['id']}?format=report").json()
    assert report == {"id": one["id"], **verified.report(expected).to_dict()}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"fidelity": 0}, "fidelity: it must be greater than 0, got 0"),
        ({"fidelity": 1.5}, "fidelity: it must be less than or equal to 1, got 1.5"),
        ({"fidelity": "much"}, "fidelity: it must be a valid number, got 'much'"),
        ({"fidelity": 0.9, "rate": 8}, "rate=8 fixes what fidelity"),
        ({"fidelity": 0.9, "rates": [3]}, "rate 3 is not one"),
        ({"fidelity": 0.9, "rates": []}, "rates is a list of rates"),
        ({"rates": [8]}, "goes with fidelity"),
        ({"max_slots": 0}, "max_slots: it must be greater than or equal to 1"),
        ({"max_slots": 1}, "max_slots=1 is too little"),
        ({"exact": ["phones"]}, "'phones' is not a kind of verbatim tokens"),
        ({"exact": "numbers"}, "exact"),
        ({"keep_text": "yes"}, "keep_text: it must be a valid boolean, got 'yes'"),
        ({"literals": ["names"]}, "'names' is not a kind of verbatim tokens"),
        ({"slot_dtype": "int8"}, "slot_dtype: this gateway does not know"),
    ],
)
def test_what_cannot_be_asked(client, fields, message):
    response = client.post(MEMORIES, json={"text": TEXTS[1], **fields})
    assert response.status_code == 400, response.text
    assert message in response.json()["error"]["message"]


def test_a_file_is_what_it_was_compressed_to(client, model):
    file = base64.b64encode(write_memory_file(model.compress(TEXTS[0]))).decode()
    for name, value in {"fidelity": 0.5, "exact": [], "literals": [], "keep_text": False}.items():
        response = client.post(MEMORIES, json={"memory": file, name: value})
        assert response.status_code == 400
        assert f"{name} is for a text" in response.json()["error"]["message"]


# -- expand ----------------------------------------------------------------------------------------


def test_expanded_segments_are_read_as_generate_reads_them(client, model):
    kept = made(client, text=TEXTS[1], rate=8, keep_text=True)
    plain = made(client, text=TEXTS[2], rate=8)
    memories = [
        model.compress(TEXTS[0], rate=8, keep_text=True),  # a document's text is at hand
        model.compress(TEXTS[1], rate=8, keep_text=True),
        model.compress(TEXTS[2], rate=8),
    ]
    context = memories[0].cat(memories).join()
    assert len(context.segments) > 3
    first_kept = len(memories[0].segments)
    seen = set()
    for expand in ([], [first_kept], [0, first_kept, -1], [-1, -1]):
        expected = model.generate(
            memory=verified.expanded(model, context, expand),
            question=QUESTIONS[0],
            max_new_tokens=NEW,
        )
        response = asked(
            client,
            documents=TEXTS[:1],
            memory_ids=[kept["id"], plain["id"]],
            rate=8,
            expand=expand,
        )
        assert answered(response) == expected
        seen.add(response.json()["usage"]["prompt_tokens"])
    assert len(seen) > 2  # text takes other positions than slots


def test_texts_that_come_with_a_request_are_read_as_they_are(model, zoo):
    bare = MemslotsModel.from_pretrained(zoo.saved(), load_decoder=False)
    texts = [TEXTS[1], TEXTS[2]]
    context = bare.compress(texts, rate=8).join()
    asked_for = [0, -1]
    expanded = expanded_with(context, texts, asked_for, bare)
    first, last = context.segments[0], context.segments[-1]
    assert expanded.segment_texts[0] == TEXTS[1][first.start : first.end]
    assert expanded.segment_texts[-1] == TEXTS[2][last.start : last.end]
    assert sum(text is not None for text in expanded.segment_texts) == 2
    with pytest.raises(ValueError, match="decoder"):  # not at hand, and nobody to read it back
        expanded_with(context, texts[:1], asked_for, bare)


def test_expanding_again_and_not_expanding_do_not_mix(client, model):
    """Prefixes of one id are kept apart by what is expanded."""
    one = made(client, text=TEXTS[1], rate=8, keep_text=True)
    memory = model.compress(TEXTS[1], rate=8, keep_text=True)
    for expand in ([], [0], [], [0], [1]):
        expected = model.generate(
            memory=verified.expanded(model, memory, expand),
            question=QUESTIONS[0],
            max_new_tokens=NEW,
        )
        assert answered(asked(client, memory_ids=[one["id"]], expand=expand)) == expected


@pytest.mark.parametrize(
    ("expand", "message"),
    [
        ([99], "segments are integers from 0 to"),
        ([-99], "segments are integers from 0 to"),
        (["0"], "expand.0: it must be a valid integer"),
        ([True], "expand.0: it must be a valid integer"),
        ([0.5], "expand.0: it must be a valid integer"),
        (0, "expand: it must be a valid list, got 0"),
        ([0] * 17, "17 segments are too many; 16 at most"),
    ],
)
def test_segments_that_cannot_be_expanded(client, expand, message):
    response = asked(client, documents=TEXTS[1:2], expand=expand)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert message in error["message"]
    assert error["param"].startswith("expand")


def test_the_decoder_is_asked_in_the_thread_in_which_it_answers(zoo, monkeypatch):
    """Reading hooks into the decoder's layers: two readings at once would meet each other's."""
    model = zoo.compressor(decoder_lora={"r": 2})
    threads = set()
    model.decoder.register_forward_pre_hook(
        lambda module, args: threads.add(threading.current_thread().name.rsplit("_")[0])
    )
    gateway = Gateway(model, TransformersEngine(model), ProcessShelf())
    with served(gateway.app()) as url, httpx.Client(base_url=url, timeout=60) as client:
        one = made(client, text=TEXTS[0], rate=8, exact=["numbers"], keep_text=True)
        assert threads == {"memslots-generate"}
        threads.clear()
        kept = gateway._shelf.get([one["id"]])[0]
        (document,) = kept.documents
        unchecked = tuple(replace(segment, check=None) for segment in document)
        unkept = replace(kept, documents=(unchecked,), texts=())
        gateway._shelf.put("unkept", unkept, {})
        answered(asked(client, memory_ids=["unkept"], expand=[0]))
        assert threads == {"memslots-generate"}


# -- stores and settings ---------------------------------------------------------------------------


def test_what_goes_into_a_store_is_verified_as_it_is_kept(model, tmp_path):
    """A store rounds slots, so they are rounded before they are asked."""
    shelf = StoreShelf(MemoryStore(tmp_path / "store"))
    assert shelf.slot_dtype == torch.bfloat16
    gateway = Gateway(model, TransformersEngine(model), shelf)
    with served(gateway.app()) as url, httpx.Client(base_url=url, timeout=60) as client:
        for text in TEXTS:
            one = made(client, text=text, rate=8, exact=True)
            (memory,) = shelf.get([one["id"]])
            expected = verified.compress(model, text, rate=8, exact=True, slot_dtype=torch.bfloat16)
            assert memory.checks == expected.checks
            assert model.reconstruct(memory, exact=True) == text
        assert made(client, text=TEXTS[0], exact=False)["fidelity"] == []
    assert StoreShelf(MemoryStore(tmp_path / "int8", "int8")).slot_dtype is None


def test_literals_of_the_gateway_and_of_a_request(model):
    settings = GatewaySettings(literals=("numbers",))
    gateway = Gateway(model, TransformersEngine(model), ProcessShelf(), settings)
    with served(gateway.app()) as url, httpx.Client(base_url=url, timeout=60) as client:
        assert made(client, text=NUMBERS)["literals"] == 3
        assert made(client, text=NUMBERS, literals=[])["literals"] == 0
        for literals, fields in (("numbers", {}), ([], {"literals": []})):
            memory = model.compress(NUMBERS, literals=literals)
            expected = model.generate(memory=memory, question=QUESTIONS[0], max_new_tokens=NEW)
            assert answered(asked(client, documents=[NUMBERS], **fields)) == expected


def test_limits_of_the_settings():
    with pytest.raises(ValueError, match="max_expand must be 1 or more"):
        GatewaySettings(max_expand=0)
    for seconds in ({"shutdown": float("inf")}, {"shutdown": 0}, {"timeout": float("nan")}):
        with pytest.raises(ValueError, match="shutdown finite"):
            GatewaySettings(**seconds)
