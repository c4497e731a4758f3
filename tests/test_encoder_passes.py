"""The host puts the next pass of a corpus together while a GPU works on the one before.

A tensor on the meta device has no values, so whatever would wait for one raises there. The encoder
is left out: transformers itself waits once, when it looks for packed texts.
"""

import copy
from types import SimpleNamespace

import pytest
import torch
from sentence_encoders import sentence_encoder
from tiny_models import LONG, TEXTS

import lab.capacity.pools  # noqa: F401 - which adds three
from memslots import MemslotsModel
from memslots.making import new_compressor
from memslots.modeling.encoders_memslots import encode_spans, states_read, to_device


def assert_never_waits(model: MemslotsModel, rate: int) -> None:
    spans = [span for document in model.segment([*TEXTS, LONG]) for span in document]
    expected = encode_spans(model, spans, rate, batch_tokens=64)
    without_values = copy.deepcopy(model).to("meta")
    embeddings = without_values.encoder.get_input_embeddings()

    def forward(input_ids=None, inputs_embeds=None, **options):
        states = embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        return SimpleNamespace(last_hidden_state=states)

    without_values.encoder.forward = forward
    slots = encode_spans(without_values, spans, rate, batch_tokens=64)
    assert slots.device.type == "meta"
    assert slots.shape == expected.shape


@pytest.mark.parametrize("pooling", ["memory_tokens", "mean", "groups", "last", "min", "attention"])
def test_a_pass_never_waits_for_the_device(zoo, pooling):
    assert_never_waits(zoo.compressor(pooling=pooling), rate=4)


def test_memory_tokens_spread_over_the_segment_do_not_wait(zoo):
    assert_never_waits(zoo.compressor(memory_positions="spread"), rate=4)


def test_a_sentence_encoder_does_not_wait(zoo, tmp_path):
    encoder = sentence_encoder(tmp_path)
    model = new_compressor(encoder, zoo.folder("llama", "decoder"), pooling="sentence")
    assert_never_waits(model, model.config.compression_rates[0])


@pytest.mark.parametrize("pooling", ["memory_tokens", "mean", "groups"])
def test_slots_are_those_of_a_pass_that_finds_its_states_itself(zoo, pooling):
    """And tokens of padding beyond the longest segment change nothing."""
    model = zoo.compressor(pooling=pooling).eval()
    spans = [span for document in model.segment([*TEXTS, LONG]) for span in document]
    inputs = model.processor.collate_segments(spans)
    rates = torch.full((len(spans),), 4)
    inputs = {name: torch.nn.functional.pad(ids, (0, 3)) for name, ids in inputs.items()}
    with torch.no_grad():
        slots = model.encode(**inputs, segment_rates=rates)
    torch.testing.assert_close(slots, encode_spans(model, spans, 4, batch_tokens=64))


def test_states_read_are_those_of_slots_or_of_tokens():
    lengths, counts = torch.tensor([3, 1]), torch.tensor([2, 1])
    width, places, slots, _ = states_read(lengths, counts, pooled=False)
    assert (width, places.tolist(), slots) == (5, [3, 4, 6], 3)
    width, places, slots, _ = states_read(lengths, counts, pooled=True)
    assert (width, places.tolist(), slots) == (3, [0, 1, 2, 3], 3)


def test_a_gpu_fetches_from_pinned_memory(monkeypatch):
    """There is none here: what is asked of torch is all that can be seen."""
    calls = []

    def pin_memory(tensor):
        calls.append("pin")
        return tensor

    def to(tensor, device, non_blocking=False):
        calls.append((device, non_blocking))
        return tensor

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin_memory)
    monkeypatch.setattr(torch.Tensor, "to", to)
    to_device(torch.zeros(1), torch.device("cuda"))
    assert calls == ["pin", (torch.device("cuda"), True)]
    calls.clear()
    to_device(torch.zeros(1), torch.device("cpu"))
    assert calls == [(torch.device("cpu"), False)]


def test_equal_segments_are_encoded_once(zoo, monkeypatch):
    model = zoo.compressor().eval()
    once = model.compress([TEXTS[0], LONG], rate=4)
    encoded = []
    encode = model.encode

    def counted(segment_input_ids, **arguments):
        encoded.append(len(segment_input_ids))
        return encode(segment_input_ids, **arguments)

    monkeypatch.setattr(model, "encode", counted)
    memory = model.compress([TEXTS[0], LONG, TEXTS[0]], rate=4)
    spans = [span for document in model.segment([TEXTS[0], LONG]) for span in document]
    assert sum(encoded) == len({tuple(span.ids) for span in spans})
    assert memory.n_slots == (*once.n_slots, once.n_slots[0])
    expected = torch.cat([once.slots, once[0].slots])
    torch.testing.assert_close(memory.slots, expected)
