"""Memory tokens spread over their segment: still nested, still the same batched as alone."""

import itertools

import pytest
import torch
from tiny_models import words

from memslots import MemslotsModel
from memslots.modeling.encoders_memslots import check_takes_positions, spread_places
from memslots.modeling.layout_memslots import RECONSTRUCTION, Prompt, Row, lay_out

TEXTS = [words(30, 1), words(7, 2), words(55, 3)]


@pytest.fixture(scope="module")
def spread(zoo):
    return zoo.compressor("qwen3", "llama", memory_positions="spread")


def test_places_lie_evenly_for_any_first_k():
    places = spread_places(50)
    assert min(places) > 0
    assert max(places) == places[0] == 1
    for k in range(1, len(places) + 1):
        edges = [0.0, *sorted(places[:k]), 1.0]
        widest = max(b - a for a, b in itertools.pairwise(edges))
        assert widest <= 2 / k


def test_coarse_slots_are_the_first_of_finer_ones(spread):
    fine, coarse = spread.config.compression_rates[0], spread.config.compression_rates[-1]
    memory = spread.compress(TEXTS, rate=fine).at_rate(coarse)
    torch.testing.assert_close(memory.slots, spread.compress(TEXTS, rate=coarse).slots)


def test_every_slot_sees_the_whole_segment(spread):
    """A causal encoder without a mask took the spread positions for several packed texts."""
    words_of = TEXTS[2].split()
    changed = " ".join([*words_of[:3], "otherwise", *words_of[4:]])
    before, after = spread.compress(TEXTS[2]).slots, spread.compress(changed).slots
    kept = min(len(before), len(after))
    assert ((before[:kept] - after[:kept]).abs().amax(dim=1) > 1e-6).all()


def test_decoder_reads_slots_in_the_order_of_the_text():
    row = Row([0], Prompt([7], []), target=[8, 9], task=RECONSTRUCTION)
    plain = lay_out([row], [4], pad_id=0)["memory_ids"][0].tolist()
    ordered = lay_out([row], [4], pad_id=0, spread=True)["memory_ids"][0].tolist()
    assert plain == [0, 1, 4, 5, 6, 7, 2, 3, 0, 0]
    assert ordered == [0, 1, 7, 5, 6, 4, 2, 3, 0, 0]  # places 1/4, 1/2, 3/4 and 1


def test_batched_is_single(spread):
    together = spread.compress(TEXTS)
    alone = torch.cat([spread.compress(text).slots for text in TEXTS])
    torch.testing.assert_close(together.slots, alone, atol=1e-5, rtol=1e-4)


def test_places_matter_and_are_saved(zoo, spread, tmp_path):
    after = zoo.compressor("qwen3", "llama")
    assert not torch.allclose(after.compress(TEXTS[0]).slots, spread.compress(TEXTS[0]).slots)
    assert after.fingerprint != spread.fingerprint
    spread.save_pretrained(tmp_path)
    loaded = MemslotsModel.from_pretrained(tmp_path)
    assert torch.equal(loaded.compress(TEXTS).slots, spread.compress(TEXTS).slots)


def test_wrong_settings_are_named(zoo):
    with pytest.raises(ValueError, match=r"\['after', 'spread'\], got 'middle'"):
        zoo.compressor("qwen3", "llama", memory_positions="middle")

    class NoPositions:
        def forward(self, inputs_embeds, attention_mask):
            raise AssertionError

    with pytest.raises(ValueError, match="position_ids"):
        check_takes_positions(NoPositions())
