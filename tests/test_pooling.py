"""Slots as means of token states, and where markers may stand."""

from dataclasses import replace

import pytest
import torch
from datasets import Dataset
from tiny_models import LONG, QUESTIONS, TEXTS

from memslots.modeling import Memory, MemslotsModel
from memslots.modeling.layout_memslots import MEM, MEM_END, Row
from memslots.trainer import CompressorConfig, CompressorTrainer


@pytest.fixture(scope="module", params=["gpt2", "bert"])
def mean(zoo, request) -> MemslotsModel:
    return zoo.compressor(encoder=request.param, pooling="mean").eval()


def test_slots_are_means_of_the_states_of_rate_tokens(mean):
    memory = mean.compress(LONG, rate=4)
    assert mean.memory_tokens is None
    start = 0
    for segment, span in zip(memory.segments, mean.processor.segment(LONG), strict=True):
        with torch.no_grad():
            states = mean.encoder(input_ids=torch.tensor([span.ids])).last_hidden_state[0]
        expected = torch.stack([group.mean(dim=0) for group in states.split(4)])
        assert segment.slots == len(expected)
        own = memory.slots[start : start + segment.slots]
        torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-5)
        start += segment.slots


@pytest.mark.parametrize("rate", [4, 8])
def test_a_coarser_rate_averages_and_equals_a_fresh_one(mean, rate):
    fine, fresh = mean.compress([*TEXTS, LONG], rate=2), mean.compress([*TEXTS, LONG], rate=rate)
    coarse = fine.at_rate(rate)
    assert coarse.documents == fresh.documents
    torch.testing.assert_close(coarse.slots, fresh.slots, rtol=1e-4, atol=1e-5)


def test_rates_that_are_no_multiples_are_encoded_again(zoo):
    model = zoo.compressor(pooling="mean", compression_rates=[2, 3])
    memory = model.compress(TEXTS)
    assert not memory.coarsens_to(3)
    with pytest.raises(ValueError, match=r"cannot be made of those.*mean.*rate=3"):
        memory.at_rate(3)


def test_batched_equals_single_and_saved_equals_loaded(mean, tmp_path):
    batch = mean.generate(context=TEXTS, question=QUESTIONS[0], max_new_tokens=6)
    alone = [mean.generate(context=t, question=QUESTIONS[0], max_new_tokens=6) for t in TEXTS]
    assert batch == alone
    memory = mean.compress(TEXTS)
    memory.save(tmp_path / "memory.safetensors")
    loaded = Memory.load(tmp_path / "memory.safetensors")
    assert loaded.pooling == "mean"
    assert torch.equal(loaded.at_rate(4).slots, memory.at_rate(4).slots)
    mean.save_pretrained(tmp_path / "model")
    again = MemslotsModel.from_pretrained(tmp_path / "model").eval()
    assert again.fingerprint == mean.fingerprint
    assert again.generate(memory=loaded, question=QUESTIONS[0], max_new_tokens=6) == alone


def test_it_has_another_fingerprint_than_memory_tokens(zoo):
    """Or a memory of one could be read as the other's."""
    one, other = zoo.compressor(pooling="mean"), zoo.compressor()
    torch.testing.assert_close(
        next(one.encoder.parameters()), next(other.encoder.parameters()), rtol=0, atol=0
    )
    assert one.fingerprint != other.fingerprint


def test_a_step_trains_encoder_and_converter(zoo, tmp_path):
    model = zoo.compressor(pooling="mean")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    args = CompressorConfig(
        output_dir=str(tmp_path), max_steps=2, per_device_train_batch_size=2, learning_rate=0.01,
        report_to="none", use_cpu=True, save_strategy="no", training_rates=[2, 4],
    )  # fmt: skip
    CompressorTrainer(model, args, Dataset.from_list([{"text": t} for t in [*TEXTS, LONG]])).train()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert {name.split(".")[0] for name in moved} == {"encoder", "converter", "markers"}


def test_it_uses_all_of_the_encoders_positions(zoo):
    """No memory token takes one."""
    zoo.compressor(pooling="mean", segment_length=512)
    with pytest.raises(ValueError, match="memory tokens"):
        zoo.compressor(segment_length=512)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pooling": "max"}, r"pooling must be one of \['memory_tokens', 'mean'.*got 'max'"),
        ({"markers": "all"}, r"markers must be one of .*got 'all'"),
        (
            {"pooling": "mean", "memory_positions": "spread"},
            "memory_positions='spread' needs pooling 'memory_tokens'",
        ),
    ],
)
def test_unknown_settings_are_refused(zoo, settings, message):
    with pytest.raises(ValueError, match=message):
        zoo.compressor(**settings)


@pytest.mark.parametrize(("markers", "pairs"), [("segment", 3), ("memory", 1), ("none", 0)])
def test_markers_stand_where_the_config_says(zoo, markers, pairs):
    model = zoo.compressor(markers=markers).eval()
    whole = model.compress(LONG)
    kept = whole.documents[0][:3]
    slots = [segment.slots for segment in kept]
    memory = replace(whole, documents=(kept,), slots=whole.slots[: sum(slots)])
    row = Row([0, 1, 2], model.processor.prompt(question=QUESTIONS[0]))
    ids = model.processor.lay_out([row], slots)["memory_ids"][0].tolist()
    assert ids.count(MEM) == ids.count(MEM_END) == pairs
    assert len(ids) == model.processor.row_length(row, slots)
    inside = [i for i in ids if i]
    if markers == "memory":
        assert (inside[0], inside[-1]) == (MEM, MEM_END)
    answers = model.generate(memory=memory, question=QUESTIONS[:2], max_new_tokens=4)
    alone = [model.generate(memory=memory, question=q, max_new_tokens=4) for q in QUESTIONS[:2]]
    assert answers == alone
