"""Memory in hand: segments, rates, selecting and combining."""

import itertools
import time

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_models import LONG, QUESTIONS, SEGMENT, TEXTS, Zoo, byte_bpe, unigram, word_piece, words

from memslots.modeling import Memory
from memslots.modeling.memory_memslots import slots_for
from memslots.modeling.texts_memslots import PlainText


@pytest.fixture(scope="module")
def memory(model) -> Memory:
    return model.compress(TEXTS)


def test_long_text_is_the_concatenation_of_its_segments(model):
    whole = model.compress(LONG)
    assert len(whole.segments) > 20
    alone = [model.compress(LONG[s.start : s.end]) for s in whole.segments]
    assert [m.segments[0].tokens for m in alone] == [s.tokens for s in whole.segments]
    slots = torch.cat([m.slots for m in alone])
    torch.testing.assert_close(whole.slots, slots, rtol=0, atol=1e-5)


def test_spans_tile_the_text_and_a_short_segment_gets_few_slots(memory):
    for text, document in zip(TEXTS, memory.documents, strict=True):
        assert document[0].start == 0
        assert document[-1].end == len(text)
        for left, right in itertools.pairwise(document):
            assert left.end == right.start
        for segment in document:
            assert 1 <= segment.tokens <= SEGMENT
            assert segment.slots == -(-segment.tokens // memory.rate)
    assert memory.segments[0].tokens < SEGMENT


@pytest.mark.parametrize("rate", [2, 4, 8])
def test_at_rate_equals_a_fresh_compress(model, memory, rate):
    coarse, fresh = memory.at_rate(rate), model.compress(TEXTS, rate=rate)
    assert coarse.documents == fresh.documents
    assert coarse.rate == fresh.rate == rate
    torch.testing.assert_close(coarse.slots, fresh.slots, rtol=1e-4, atol=1e-5)


def test_at_rate_refuses_what_it_cannot_do(model, memory):
    with pytest.raises(ValueError, match=r"rate 5 is not one .* trained for: \[2, 4, 8\]"):
        memory.at_rate(5)
    with pytest.raises(
        ValueError, match=r"has rate 8; the finer rate 2 .* Compress the text again"
    ):
        memory.at_rate(8).at_rate(2)


@pytest.mark.parametrize("rate", [4.0, np.int64(4), "4", True, None, [4]])
def test_at_rate_takes_an_integer(memory, rate):
    # NumPy's was taken, and the memory could then not be saved.
    with pytest.raises(ValueError, match=r"^rate .* is not one .* trained for: \[2, 4, 8\]"):
        memory.at_rate(rate)


@pytest.mark.parametrize("text", [None, 5, b"x", "ab\ud800"])
def test_a_segment_is_read_as_a_text(memory, text):
    # None took the segment out of what the decoder reads, without a word.
    with pytest.raises((TypeError, ValueError), match=r"^the text of segment 0 (must|has)"):
        memory.as_text({0: text})
    assert memory.as_text({0: "Short.", 1: ""}).segment_texts[:2] == ("Short.", "")


@pytest.mark.parametrize("index", [99, -99, "0", 1.0, None])
def test_segments_are_named_by_their_number(memory, index):
    count = len(memory.segments)
    for call in (memory.expand, lambda i: memory.as_text({i: "Short."})):
        with pytest.raises((IndexError, TypeError), match=f"memory has {count} segments, .*index"):
            call(index)


def test_slots_are_floating_point(memory):
    with pytest.raises(ValueError, match=r"slots .*floating-point.* got torch.int8"):
        memory.to(torch.int8)


def test_nothing_is_neither_joined_nor_read(model, memory):
    nothing = memory[:0]
    for call in (
        nothing.join,
        lambda: model.generate(memory=nothing, question="Why?"),
        lambda: model.reconstruct(memory=nothing),
    ):
        with pytest.raises(ValueError, match="memory has no documents"):
            call()


def test_bidirectional_encoder_has_no_nested_rates(zoo):
    model = zoo.shared("bert", "qwen2")
    memory = model.compress(TEXTS)
    assert not memory.nested
    assert memory.at_rate(2) is memory
    with pytest.raises(ValueError, match=r"cannot be made of those.*again with rate=4"):
        memory.at_rate(4)
    with pytest.raises(ValueError, match="cannot be made of those"):
        model.generate(memory=memory, question="Why?", rate=4)
    assert model.compress(TEXTS, rate=4).slots.shape[0] < memory.slots.shape[0]


def test_selecting(memory):
    assert len(memory) == 3
    assert [len(m) for m in memory] == [1, 1, 1]
    assert memory[-1].documents[0][0].text == 0
    assert memory[-1].text_sha256 == memory.text_sha256[-1:]
    assert torch.equal(memory[1:].slots, memory.slots[memory.n_slots[0] :])
    assert memory[::-1].n_slots == memory.n_slots[::-1]
    assert torch.equal(memory[::-1][2].slots, memory[0].slots)
    assert len(memory[5:]) == 0
    with pytest.raises(IndexError, match="3 documents, there is no index 3"):
        memory[3]
    with pytest.raises(TypeError, match="int or a slice, not str"):
        memory["a"]


def test_cat_undoes_selecting(memory):
    again = Memory.cat([memory[i] for i in range(3)])
    assert torch.equal(again.slots, memory.slots)
    assert again.documents == memory.documents
    assert again.text_sha256 == memory.text_sha256
    with pytest.raises(ValueError, match="at least one memory"):
        Memory.cat([])
    with pytest.raises(ValueError, match="their rate is 2 and 4"):
        Memory.cat([memory, memory.at_rate(4)])
    for wrong in ([memory, None], ["people.safetensors"], "people.safetensors", [memory, [memory]]):
        with pytest.raises(
            TypeError, match=r"joins memories from compress or .*got (None|str|list)"
        ):
            Memory.cat(wrong)


def test_join_reads_as_one_context(model, memory):
    joined = memory.join()
    assert len(joined) == 1
    assert joined.n_slots == (memory.slots.shape[0],)
    assert joined.n_tokens == (sum(memory.n_tokens),)
    # A text cut at its own segment borders is the same context.
    whole = model.compress(TEXTS[1])
    parts = [TEXTS[1][s.start : s.end] for s in whole.segments]
    rejoined = model.compress(parts).join()
    torch.testing.assert_close(rejoined.slots, whole.slots, rtol=0, atol=1e-5)
    arguments = {"question": QUESTIONS, "max_new_tokens": 5}
    assert model.generate(memory=rejoined, **arguments) == model.generate(memory=whole, **arguments)


def test_sizes_and_words(memory):
    assert memory.nbytes == memory.slots.numel() * 4
    half = memory.to(torch.bfloat16)
    assert half.dtype == torch.bfloat16
    assert half.nbytes * 2 == memory.nbytes
    assert memory.dtype == torch.float32  # a copy, not in place
    text = repr(memory)
    parts = ("3 documents", "rate 2", "float32 on cpu", memory.fingerprint[:12], "17,184 bytes")
    for part in parts:
        assert part in text
    assert f"{sum(memory.n_tokens)} tokens in {memory.slots.shape[0]} slots of 24" in text
    assert "1 document," in repr(memory[0])
    assert f"{len(memory.segments)} segments" in text


def test_memories_can_be_compared_and_hashed(memory):
    assert memory == memory
    assert memory != memory[0]
    assert len({memory, memory[0]}) == 2


def test_unknown_tokens_are_counted(zoo):
    memory = zoo.shared("bert", "qwen2").compress(["All is known.", "\u13a0\u13a1 and \u13a2"])
    assert memory.unknown_tokens[0] == 0
    assert memory.unknown_tokens[1] >= 2


def test_slots_must_fit_the_segments(memory):
    with pytest.raises(ValueError, match=r"need slots of shape \(.*got"):
        Memory(**{**vars(memory), "slots": memory.slots[:-1]})


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    lengths=st.lists(st.integers(1, 5 * SEGMENT), min_size=1, max_size=4), seed=st.integers(0, 9)
)
def test_ragged_batches_equal_one_by_one(model, lengths, seed):
    texts = [words(length, seed + i)[: 3 * length] for i, length in enumerate(lengths)]
    together = model.compress(texts, batch_tokens=200)
    for text, document in zip(texts, together, strict=True):
        alone = model.compress(text)
        assert document.documents == alone.documents
        torch.testing.assert_close(document.slots, alone.slots, rtol=0, atol=1e-5)


TOKENIZERS = {"byte_bpe": byte_bpe(340), "word_piece": word_piece(), "unigram": unigram()}


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=40, deadline=None)
@given(text=st.text(max_size=300), length=st.integers(1, 40))
def test_any_text_is_tiled_by_spans_that_stand_alone(name, text, length):
    plain = PlainText(TOKENIZERS[name])
    check_spans(plain, text, length)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_hostile_texts_are_tiled(name):
    plain = PlainText(TOKENIZERS[name])
    for text in (
        "e\u0301" * 200,  # combining marks
        "a" + "\u0301" * 300,
        "\U0001f469\u200d\U0001f469\u200d\U0001f467" * 50,  # joined emoji
        "\0" * 500 + "end",
        "a\0b" * 100,
        " " * 400 + "x" + " " * 400,
        "\ufdfa" * 40,  # one character that NFKC makes eighteen
        "".join(chr(plane * 0x10000 + 0xF600) for plane in range(17)) * 20,  # all planes
        "</s><s>[SEP]<pad>" * 40,
    ):
        for length in (1, 7, 24):
            check_spans(plain, text, length)


def check_spans(plain: PlainText, text: str, length: int) -> None:
    spans = plain.segment(text, length)
    assert "".join(text[s.start : s.end] for s in spans) == text
    assert all(s.start < s.end for s in spans)
    for previous, span in itertools.pairwise(spans):
        assert previous.end == span.start
    for i, span in enumerate(spans):
        own = text[span.start : span.end]
        assert span.ids == plain.encode(own)
        # One character, or one composed of several, may take more; it is a span of its own.
        assert (
            len(span.ids) <= length or len(span.ids) == len(plain.encode(own[:1])) or length == 1
        ), i
        assert plain.control_ids.isdisjoint(span.ids)


def test_slots_for():
    assert [slots_for(n, 4) for n in (1, 4, 5, 8, 9)] == [1, 1, 2, 2, 3]


def test_megabyte_without_a_space_takes_seconds(zoo: Zoo):
    text = "abcdefghij" * 100_000
    for plain in (zoo.shared().processor.encoder_text, PlainText(word_piece())):
        started = time.process_time()
        spans = plain.segment(text, 256)
        assert time.process_time() - started < 20
        assert spans[-1].end == len(text)
