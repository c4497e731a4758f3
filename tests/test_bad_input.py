"""Bad input: one clear error that says what was given and what to do, before any work is done."""

import re

import pytest
import torch
from datasets import Dataset
from huggingface_hub.errors import StrictDataclassError
from tiny_models import LONG, QUESTIONS, TEXTS

from memslots import MemslotsConfig, MemslotsModel
from memslots.evaluation.likelihood import target_losses
from memslots.trainer import CompressorConfig, CompressorTrainer


@pytest.fixture(scope="module")
def memory(model):
    return model.compress(TEXTS[:2])


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"context": ""}, ValueError, "context is empty or only white space; give some text"),
        ({"context": " \n\t\u3000"}, ValueError, "context is empty or only white space"),
        ({"context": ["A text.", " "]}, ValueError, r"context\[1\] is empty"),
        ({"context": []}, ValueError, "context is an empty list; give at least one"),
        ({"context": 5}, TypeError, "context must be a string or list of strings, got int"),
        ({"context": b"bytes"}, TypeError, "context must be .* got bytes"),
        ({"context": ["A", None]}, TypeError, r"context\[1\] must be .* got NoneType"),
        ({"context": "ab\ud800c"}, ValueError, r"lone surrogate \('\\ud800'\) at character 2"),
        ({"context": ["A", "\udfff"]}, ValueError, r"context\[1\] has a lone .* character 0"),
        ({"question": ""}, ValueError, "question is empty or only white space"),
        ({"question": "  "}, ValueError, "question is empty"),
        ({"question": []}, ValueError, "question is an empty list"),
        ({"question": None}, ValueError, "give either question=... or messages"),
        ({"question": 7}, TypeError, "question must be .* got int"),
        ({"question": ["Why?", 7]}, TypeError, "question must be .* got int"),
        ({"question": "why\udc00?"}, ValueError, "question has a lone surrogate .* character 3"),
        ({"context": ["A", "B"], "question": ["1", "2", "3"]}, ValueError, "2 contexts and 3 que"),
        ({"messages": [{"role": "user", "content": "Why?"}]}, ValueError, "messages.*got both"),
        ({"rate": 3}, ValueError, r"rate 3 is not one .* trained for: \[2, 4, 8\]"),
        ({"rate": "4"}, ValueError, r"rate '4' is not one .* \[2, 4, 8\]"),
        ({"rate": 4.0}, ValueError, r"rate 4.0 is not one"),
        ({"rate": 0}, ValueError, "rate 0 is not one"),
        ({"batch_size": 0}, ValueError, "batch_size must be a whole number from 1 to inf, got 0"),
    ],
)
def test_generate(model, arguments, kind, message):
    with pytest.raises(kind, match=message):
        model.generate(**{"context": "A text.", "question": "Why?", **arguments})


@pytest.mark.parametrize(
    ("messages", "kind", "message"),
    [
        ([], ValueError, "messages is an empty list"),
        ("Why?", TypeError, "messages must be a list, got str"),
        (5, TypeError, "messages must be a list, got int"),
        ([[]], ValueError, "at least one message"),
        ([{"role": "user"}], ValueError, "a dict with 'role' and 'content'"),
        ([{"role": "user", "content": None}], ValueError, "a string or list of parts, got None"),
        ([{"role": "user", "content": ["Why?"]}], ValueError, "a string or list of parts"),
        ([{"role": "user", "content": ""}], ValueError, "a message is empty"),
        ([{"role": "user", "content": [{"type": "text"}]}], TypeError, "a message must be a str"),
        ([{"role": "user", "content": [{"type": "image"}]}], ValueError, "at most one.*'image'"),
        ([{"role": "assistant", "content": "No."}], ValueError, "need a user message"),
        ([{"role": "user", "content": "a\ud900"}], ValueError, "lone surrogate .* character 1"),
    ],
)
def test_messages(model, messages, kind, message):
    with pytest.raises(kind, match=message):
        model.generate(context="A text.", messages=messages)


def test_both_or_neither_of_context_and_memory(model, memory):
    with pytest.raises(ValueError, match=r"either context=... or memory=..., got both"):
        model.generate(context="A text.", memory=memory, question="Why?")
    with pytest.raises(ValueError, match="got neither"):
        model.generate(question="Why?")
    with pytest.raises(ValueError, match="2 contexts and 3 questions do not go together"):
        model.generate(memory=memory, question=QUESTIONS)
    with pytest.raises(ValueError, match="no document"):
        model.generate(memory=memory[2:], question="Why?")


@pytest.mark.parametrize(
    ("text", "arguments", "kind", "message"),
    [
        ("", {}, ValueError, "context is empty"),
        ([], {}, ValueError, "context is an empty list; give at least one"),
        (["A", ""], {}, ValueError, r"context\[1\] is empty"),
        ({"a": 1}, {}, TypeError, "got dict"),
        ("A", {"rate": 5}, ValueError, r"rate 5 is not one .*\[2, 4, 8\]"),
        ("A", {"rate": True}, ValueError, "rate True is not one"),
        ("A", {"batch_tokens": 0}, ValueError, "batch_tokens must be at least 1, got 0"),
    ],
)
def test_compress(model, text, arguments, kind, message):
    with pytest.raises(kind, match=message):
        model.compress(text, **arguments)


def test_text_that_the_encoder_drops_whole(zoo):
    with pytest.raises(ValueError, match="no token in the encoder's vocabulary"):
        zoo.shared("bert", "qwen2").compress("\0\0\u200b")


def test_context_longer_than_the_decoder_holds(model):
    long = LONG + " " + LONG
    tokens = sum(len(s.ids) for s in model.segment([long])[0])
    calls = []
    hook = model.encoder.register_forward_pre_hook(lambda *_: calls.append(1))
    try:
        with pytest.raises(ValueError, match="slots fit") as error:
            model.generate(context=["Short.", long], question="Why?", max_new_tokens=8)
    finally:
        hook.remove()
    assert not calls  # nothing was encoded for nothing
    text = str(error.value)
    slots = int(re.search(r"context 1 has (\d+) slots at rate 2", text).group(1))
    assert tokens / 2 <= slots <= tokens / 2 + 200
    fit = int(re.search(r"(\d+) slots fit", text).group(1))
    assert 0 < fit < 512
    assert "the decoder reads 512" in text
    assert "no rate of this checkpoint would fit, so split the context" in text


def test_longer_context_names_the_rate_that_fits(zoo):
    model = zoo.compressor(markers="none", compression_rates=[2, 4, 12])
    n = 1
    while sum(len(s.ids) for s in model.segment([LONG[:n]])[0]) < 1200:
        n += 100
    text = LONG[:n]
    with pytest.raises(ValueError, match=r"rate=4 would fit"):
        model.generate(context=text, question="Why?", max_new_tokens=4)
    assert isinstance(model.generate(context=text, question="Why?", rate=4, max_new_tokens=4), str)
    with pytest.raises(ValueError, match=r"rate=12 would fit"):
        model.generate(context=text, question="Why?", rate=4, max_new_tokens=300)
    memory = model.compress(text)
    with pytest.raises(ValueError, match=r"rate=4 would fit"):
        model.generate(memory=memory, question="Why?", max_new_tokens=4)


def test_missing_decoder(zoo, memory):
    bare = MemslotsModel.from_pretrained(zoo.saved(), load_decoder=False)
    for use in (
        lambda: bare.generate(context="A text.", question="Why?"),
        lambda: bare.generate(memory=memory, question="Why?"),
        lambda: bare.reconstruct(memory),
    ):
        with pytest.raises(ValueError, match=r"without its decoder \(.*attach_decoder\(llm\)"):
            use()
    assert torch.equal(bare.compress(TEXTS[:2]).slots, memory.slots)


def test_missing_processor(zoo):
    model = zoo.compressor()
    del model.processor
    with pytest.raises(ValueError, match=r"no processor.*load it with from_pretrained"):
        model.compress("A text.")


def test_processor_lists(model):
    with pytest.raises(ValueError, match="equal lengths, got 2, 1 and 2"):
        model.processor(["a", "b"], ["c"])
    with pytest.raises(ValueError, match=r"rate 3 is not one"):
        model.processor("a", "b", "c", rate=3)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"compression_rates": []}, r"at least 1, got \[\]; for example"),
        ({"compression_rates": [0, 4]}, "distinct integers of at least 1"),
        ({"compression_rates": [4, 4]}, "distinct"),
        ({"compression_rates": [4, "8"]}, "compression_rates"),
        (
            {"compression_rates": [512]},
            "rate 512 is coarser than one slot per segment of 256 tokens",
        ),
        ({"segment_length": 0}, "segment_length must be at least 1"),
        ({"segment_length": "256"}, "segment_length"),
        ({"prompt_format": "xml"}, r"one of \['plain', 'chat'\], got 'xml'"),
        ({"plain_prompt": "Q:"}, "exactly once, got 'Q:'"),
        ({"plain_prompt": "{question} {question}"}, "exactly once"),
        ({"segment_length": 1000, "compression_rates": [4]}, "are 1250 tokens.*reads 1024"),
        ({"encoder_lora": {"rnk": 3}}, r"unknown keys \['rnk'\]"),
    ],
)
def test_config(fields, message):
    with pytest.raises((ValueError, StrictDataclassError), match=message):
        MemslotsConfig(**fields)


def test_config_round_trip(tmp_path):
    config = MemslotsConfig(compression_rates=[16, 4], segment_length=128, encoder_lora={"r": 8})
    assert config.compression_rates == [4, 16]
    assert config.max_slots == 32
    config.save_pretrained(tmp_path)
    loaded = MemslotsConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() == config.to_dict()
    assert loaded.encoder_lora == {**config.encoder_lora, "r": 8}


@pytest.mark.parametrize("decoder", ["gpt2", "llama"])
def test_training_rows_longer_than_the_decoders_positions(zoo, tmp_path, decoder):
    """GPT-2 would end in an IndexError, and Llama would read positions it never learned."""
    model = zoo.compressor("llama", decoder)
    room = model.config.decoder_config.max_position_embeddings
    message = f"takes [0-9]+ tokens, and the decoder reads {room}; use a coarser rate, a shorter"
    with pytest.raises(ValueError, match=message):
        model(**model.processor(LONG, "Why?", "So."))
    rows = Dataset.from_list([{"context": LONG, "question": "Why?", "answer": "So."}])
    args = CompressorConfig(
        output_dir=str(tmp_path), max_steps=1, per_device_train_batch_size=1, report_to="none",
        use_cpu=True, save_strategy="no", training_rates=[2],
    )  # fmt: skip
    with pytest.raises(ValueError, match=rf"row 0 .* and the decoder reads {room}: split"):
        CompressorTrainer(model, args, rows)
    with pytest.raises(ValueError, match=message):  # of a stream no row is seen before
        CompressorTrainer(model, args, rows.to_iterable_dataset()).train()
    prompt = model.processor.prompt(question="Why?")
    with pytest.raises(ValueError, match=message):
        target_losses(model, [prompt], [[5, 6]], model.compress(LONG))
    assert model(**model.processor(LONG, "Why?", "So.", rate=8)).loss > 0
