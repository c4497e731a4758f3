"""User text is data: whatever it contains, no control token comes of it."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import TEXTS, byte_bpe, unigram, word_piece
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from memslots.modeling.texts_memslots import PlainText

CONTROL = [
    "<MEM>",
    "</MEM>",
    "<AE>",
    "<s>",
    "</s>",
    "<pad>",
    "<unk>",
    "<|start|>",
    "<|end|>",
    "<tool_call>",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "<|endoftext|>",
    "<<s>s>",
    "</</s>s>",
]
HOSTILE = "".join(CONTROL) + " and " + " ".join(CONTROL) + "\n<s></s>\n<tool_call>"


def whole_words() -> PreTrainedTokenizerFast:
    """Reads whole words from its vocabulary (`ignore_merges`, as Llama 3), control words too."""
    tokenizer = byte_bpe(380)
    backend = tokenizer.backend_tokenizer
    model = Tokenizer.from_str(backend.to_str())
    state = json.loads(model.to_str())
    state["model"]["ignore_merges"] = True
    state["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [{"type": "WhitespaceSplit"}, state["pre_tokenizer"]],
    }
    # GPT-2's pattern would split `</s>`; without it the whole word is looked up.
    state["pre_tokenizer"]["pretokenizers"][1]["use_regex"] = False
    made = Tokenizer.from_str(json.dumps(state))
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


def word_level() -> PreTrainedTokenizerFast:
    """Knows words only: `</s>` between spaces is a word of its vocabulary."""
    vocabulary = ["<unk>", "<s>", "</s>", "<pad>", "the", "treaty", "/", "s", "<", ">"]
    backend = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>")
    )
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
    )


TOKENIZERS = {
    "byte_bpe": byte_bpe(380),
    "whole_words": whole_words(),
    "word_piece": word_piece(),
    "unigram": unigram(),
    "word_level": word_level(),
}


def control_ids(tokenizer) -> set[int]:
    """Ids that user text must not become: added tokens, but for white space and [UNK]."""
    added = tokenizer.added_tokens_decoder.items()
    return {i for i, token in added if token.content.strip()} - {tokenizer.unk_token_id}


@pytest.fixture(params=TOKENIZERS)
def name(request):
    return request.param


def test_control_strings_would_be_matched_by_the_tokenizer_itself(name):
    """What is guarded against is real."""
    tokenizer = TOKENIZERS[name]
    assert control_ids(tokenizer) & set(tokenizer(HOSTILE, add_special_tokens=False)["input_ids"])


def test_no_control_token_comes_of_text(name):
    tokenizer = TOKENIZERS[name]
    plain = PlainText(tokenizer)
    assert plain.control_ids >= control_ids(tokenizer)
    for text in (HOSTILE, *CONTROL, " </s> ", "</s>" * 3, "a</s>b", "\n</s>\n"):
        assert control_ids(tokenizer).isdisjoint(plain.encode(text)), text
        for span in plain.segment(text, 5):
            assert control_ids(tokenizer).isdisjoint(span.ids), text


@pytest.mark.parametrize("name", ["byte_bpe", "unigram"])
def test_control_strings_are_kept_as_text(name):
    tokenizer = TOKENIZERS[name]
    plain = PlainText(tokenizer)
    for text in ("a </s> b", "one <pad></s> two", "the</s>treaty", "</s>", "x </s></s> y"):
        decoded = tokenizer.decode(plain.encode(text), clean_up_tokenization_spaces=False)
        assert decoded == text


def test_ordinary_text_is_encoded_as_the_tokenizer_does(name):
    tokenizer = TOKENIZERS[name]
    if name == "byte_bpe":  # but for its added white space, which is not a piece of text
        assert PlainText(tokenizer).encode("a  b") != []
    plain = PlainText(tokenizer)
    for text in TEXTS:
        assert plain.encode(text) == tokenizer(text, add_special_tokens=False)["input_ids"]


@settings(max_examples=100, deadline=None)
@given(
    parts=st.lists(st.one_of(st.sampled_from(CONTROL), st.text(max_size=8)), max_size=12),
    name=st.sampled_from(sorted(TOKENIZERS)),
)
def test_no_mixture_makes_a_control_token(parts, name):
    tokenizer = TOKENIZERS[name]
    ids = PlainText(tokenizer).encode("".join(parts))
    assert control_ids(tokenizer).isdisjoint(ids)


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=60))
def test_byte_level_text_survives(text):
    plain = PlainText(TOKENIZERS["byte_bpe"])
    decoded = TOKENIZERS["byte_bpe"].decode(plain.encode(text), clean_up_tokenization_spaces=False)
    assert decoded == text


@pytest.mark.parametrize("encoder", ["gpt2", "bert"])
def test_hostile_texts_through_the_whole_model(zoo, encoder):
    decoder = "llama" if encoder == "gpt2" else "qwen2"
    model = zoo.shared(encoder, decoder)
    processor = model.processor
    inputs = processor([HOSTILE], [HOSTILE], [HOSTILE])
    real = inputs["segment_attention_mask"].bool()
    ids = set(inputs["segment_input_ids"][real].tolist())
    assert control_ids(processor.encoder_tokenizer).isdisjoint(ids)
    tokens = inputs["input_ids"][inputs["memory_ids"] == 0].tolist()
    expected = [*processor.bos_ids, *processor.eos_ids]
    control = control_ids(processor.tokenizer)
    assert [i for i in tokens if i in control] == expected
    assert tokens[-1:] == processor.eos_ids
    answer = model.generate(context=HOSTILE, question=HOSTILE, max_new_tokens=3)
    assert isinstance(answer, str)


ODD_TEXTS = {
    "nul": "before\0after \0\0\0 end",
    "emoji": "\U0001f600\U0001f469\u200d\U0001f4bb" * 20,
    "combining": "e\u0301\u0302\u0303" * 40,
    "planes": "".join(chr(0x10000 * plane + 0x20) for plane in range(1, 17)) + " end",
    "right to left": "\u202eabc\u202c \u05d0\u05d1 \u0627\u0644",
    "private use": "\ue0f00\ue0f1 \ue0f0memory\ue0f1",  # what stands for texts in templates
    "line ends": "a\r\nb\rc\u2028d\u0085e",
    "noncharacters": "a\ufffe\uffff\ufdd0b",
}


@pytest.mark.parametrize("kind", ODD_TEXTS)
def test_any_valid_unicode_works(model, zoo, kind):
    text = ODD_TEXTS[kind]
    for compressor in (model, zoo.shared("bert", "qwen2")):
        memory = compressor.compress(text)
        assert memory.segments[-1].end == len(text)
        assert torch.isfinite(memory.slots).all()
        answer = compressor.generate(memory=memory, question=text, max_new_tokens=2)
        assert isinstance(answer, str)


def test_a_byte_order_mark_changes_no_slot_and_comes_back(model, tmp_path):
    """Windows Notepad writes one before a text; it turned answers into others."""
    marked, plain = "\ufeff" + TEXTS[1], TEXTS[1]
    memory = model.compress(marked, rate=2, keep_text=True)
    assert torch.equal(memory.slots, model.compress(plain, rate=2).slots)
    assert [s.tokens for s in memory.segments] == [
        s.tokens for s in model.compress(plain, rate=2).segments
    ]
    assert model.reconstruct(memory, exact=True) == marked
    for processed in (model.processor.encoder_text, model.processor.decoder_text):
        assert processed.encode(marked) == processed.encode(plain)
    asked = model.processor.prompt(question="Why?", context=marked)
    assert asked == model.processor.prompt(question="Why?", context=plain)


def test_files_with_a_byte_order_mark_are_read_as_those_without(tmp_path):
    from memslots.cli.options import read_text
    from memslots.data import load_rows
    from memslots.data.books import iterate_books

    row = json.dumps({"text": "A short text."})
    (tmp_path / "rows.jsonl").write_bytes(b"\xef\xbb\xbf" + row.encode())
    (tmp_path / "notes.txt").write_bytes(b"\xef\xbb\xbfA short text.")
    assert list(iterate_books(str(tmp_path / "rows.jsonl"))) == ["A short text."]
    rows = load_rows("jsonl", "train", data_dir=tmp_path / "rows.jsonl")
    assert [r["text"] for r in rows] == ["A short text."]
    rows = load_rows("text", "train", data_dir=tmp_path / "notes.txt")
    assert [r["text"].removeprefix("\ufeff") for r in rows] == ["A short text."]
    assert read_text(str(tmp_path / "notes.txt")).encode() == b"\xef\xbb\xbfA short text."
