"""SentencePiece models (Llama 2's and Gemma's kind) as decoder tokenizers."""

import shutil

import pytest
from test_user_text import CONTROL, control_ids
from tiny_models import SENTENCES, TEXTS
from transformers import AutoModelForCausalLM, AutoTokenizer, GemmaTokenizer, LlamaTokenizer

from memslots import MemslotsModel
from memslots.making import new_compressor
from memslots.modeling.texts_memslots import PlainText

sentencepiece = pytest.importorskip("sentencepiece")
pytest.importorskip("google.protobuf")

KINDS = {
    "llama2": {
        "model_type": "bpe",
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "user_defined_symbols": ["<tool_call>"],
    },
    "gemma": {
        "model_type": "bpe",
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "add_dummy_prefix": False,
        "pad_id": 3,
        "user_defined_symbols": ["<start_of_turn>", "<end_of_turn>"],
    },
}
CLASSES = {"llama2": LlamaTokenizer, "gemma": GemmaTokenizer}


@pytest.fixture(scope="module", params=KINDS)
def trained(request, tmp_path_factory):
    """Kind, SentencePiece's own processor, and the folder of the transformers tokenizer."""
    kind = request.param
    work = tmp_path_factory.mktemp(kind)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 20),
        model_prefix=str(work / "m"),
        vocab_size=400,
        byte_fallback=True,
        minloglevel=2,
        **KINDS[kind],
    )
    own = sentencepiece.SentencePieceProcessor(model_file=str(work / "m.model"))
    folder = work / "tokenizer"
    folder.mkdir()
    shutil.copyfile(work / "m.model", folder / "tokenizer.model")
    tokenizer = CLASSES[kind].from_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return kind, own, folder


def test_ids_are_those_of_sentencepiece(trained):
    _, own, folder = trained
    tokenizer = AutoTokenizer.from_pretrained(folder)
    plain = PlainText(tokenizer)
    for text in [*TEXTS, *SENTENCES, "two  spaces", "caf\u00e9 \U0001f600", "a\nb"]:
        assert plain.encode(text) == own.encode(text), text


def test_decoding_gives_the_text_back(trained):
    _, own, folder = trained
    tokenizer = AutoTokenizer.from_pretrained(folder)
    plain = PlainText(tokenizer)
    for text in [
        *TEXTS,
        "two  spaces",
        "caf\u00e9 \U0001f600",
        "a\nb",
        "a </s> b",
        "x<tool_call>y",
    ]:
        ids = plain.encode(text)
        decoded = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        assert decoded == text
        assert own.decode(ids) == text


def test_text_is_data(trained):
    _, _, folder = trained
    tokenizer = AutoTokenizer.from_pretrained(folder)
    plain = PlainText(tokenizer)
    for text in (*CONTROL, "".join(CONTROL), "<start_of_turn>user<end_of_turn>"):
        assert control_ids(tokenizer).isdisjoint(plain.encode(text)), text


@pytest.fixture(scope="module")
def compressor(zoo, trained, tmp_path_factory):
    """A compressor whose decoder reads this tokenizer."""
    import torch
    from transformers import LlamaConfig

    kind, _, folder = trained
    tokenizer = AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        vocab_size=len(tokenizer),
        max_position_embeddings=256,
        initializer_range=0.3,
    )
    decoder = tmp_path_factory.mktemp(f"decoder-{kind}")
    AutoModelForCausalLM.from_config(config).save_pretrained(decoder)
    tokenizer.save_pretrained(decoder)
    return new_compressor(zoo.folder("gpt2", "encoder"), str(decoder), segment_length=24)


def test_as_decoder(compressor, tmp_path):
    memory = compressor.compress(TEXTS)
    arguments = {"memory": memory, "question": ["Who?", "Why?", "</s>"], "max_new_tokens": 4}
    answers = compressor.generate(**arguments)
    assert compressor.processor.prompt(question="Why?").before == compressor.processor.bos_ids
    compressor.save_pretrained(tmp_path)
    assert MemslotsModel.from_pretrained(tmp_path).generate(**arguments) == answers
    inputs = compressor.processor(TEXTS, ["Who?"] * 3, ["the sea"] * 3)
    target = inputs["labels"][0][inputs["labels"][0] != -100]
    decoded = compressor.processor.decode(target)
    assert decoded.strip() == "the sea"
    assert compressor(**inputs).loss.isfinite()


def test_as_encoder(trained):
    """Spans of a text are cut at the tokenizer's offsets and tile it."""
    _, _, folder = trained
    plain = PlainText(AutoTokenizer.from_pretrained(folder))
    for text in (" ".join(SENTENCES), "caf\u00e9 \U0001f600 " * 20, "a\n\n b  c" * 20):
        spans = plain.segment(text, 9)
        assert "".join(text[s.start : s.end] for s in spans) == text
        assert all(len(s.ids) <= 9 for s in spans)
        assert all(s.ids == plain.encode(text[s.start : s.end]) for s in spans)
