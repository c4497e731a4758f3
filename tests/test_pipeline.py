"""pipeline("memory-question-answering"): its inputs, and that it answers as the model does."""

import json
from dataclasses import replace

import pytest
from tiny_models import QUESTIONS, TEXTS
from torch.utils.data import Dataset
from transformers import GenerationConfig, pipeline

from memslots.modeling import MemslotsConfig, MemslotsModel
from memslots.modeling.pipeline_memslots import MemoryQuestionAnsweringPipeline

NEW = {"max_new_tokens": 5}


@pytest.fixture(scope="module")
def pipe(model):
    return MemoryQuestionAnsweringPipeline(model, device="cpu", **NEW)


@pytest.fixture(scope="module")
def expected(model):
    memory = model.compress(TEXTS)
    answers = model.generate(memory=memory, question=QUESTIONS, **NEW)
    return [
        {"answer": answer, "n_tokens": tokens, "n_slots": slots, "rate": memory.rate}
        for answer, tokens, slots in zip(answers, memory.n_tokens, memory.n_slots, strict=True)
    ]


def test_one_question_and_lists(pipe, expected):
    assert pipe(question=QUESTIONS[0], context=TEXTS[0]) == expected[0]
    assert pipe({"question": QUESTIONS[0], "context": TEXTS[0]}) == expected[0]
    assert pipe(question=QUESTIONS, context=TEXTS) == expected
    assert pipe({"question": QUESTIONS, "context": TEXTS}) == expected
    one_list = pipe(question=[QUESTIONS[0]], context=TEXTS[0])
    assert one_list == [expected[0]]


@pytest.mark.parametrize("batch_size", [None, 1, 2, 100])
def test_dicts_answer_the_same_in_any_batch(pipe, expected, batch_size):
    items = [{"question": q, "context": c} for q, c in zip(QUESTIONS, TEXTS, strict=True)]
    assert pipe(items, batch_size=batch_size) == expected
    assert list(pipe((item for item in items), batch_size=batch_size)) == expected


def test_dataset_is_read_as_it_is_answered(pipe, expected):
    read = []

    class Rows(Dataset):
        def __len__(self):
            return len(TEXTS)

        def __getitem__(self, i):
            read.append(i)
            return {"question": QUESTIONS[i], "context": TEXTS[i]}

    answers = pipe(Rows(), batch_size=1)
    assert read == []
    assert next(answers) == expected[0]
    assert read == [0]
    assert list(answers) == expected[1:]


def test_memory_in_hand_and_on_disk(pipe, model, expected, tmp_path):
    memory = model.compress(TEXTS)
    memory.save(tmp_path / "m.safetensors")
    for given in (memory, tmp_path / "m.safetensors", str(tmp_path / "m.safetensors")):
        assert pipe(question=QUESTIONS, memory=given) == expected
    assert pipe(question=QUESTIONS[1], memory=memory[1]) == expected[1]
    many = pipe({"question": QUESTIONS, "memory": memory[0]})
    assert [found["answer"] for found in many] == model.generate(
        memory=memory[0], question=QUESTIONS, **NEW
    )
    # Memories and contexts at once, and coarser ones; each in its own place.
    mixed = [
        {"question": QUESTIONS[0], "context": TEXTS[0]},
        {"question": QUESTIONS[1], "memory": memory.at_rate(8)[1]},
        {"question": QUESTIONS[2], "memory": memory[2]},
    ]
    found = pipe(mixed)
    assert found[0] == expected[0]
    assert found[2] == expected[2]
    assert found[1]["rate"] == 8
    assert found[1]["n_slots"] < expected[1]["n_slots"]
    assert found[1] == pipe(question=QUESTIONS[1], memory=memory[1], rate=8)
    assert found[1] == pipe(question=QUESTIONS[1], context=TEXTS[1], rate=8)


def test_a_memory_that_is_refused_costs_no_answer(pipe, model, monkeypatch):
    asked = [{"question": QUESTIONS[0], "context": TEXTS[0]}]
    other = replace(model.compress(TEXTS[1]), fingerprint="0" * 64)
    monkeypatch.setattr(model, "encode", lambda *a, **k: pytest.fail("a text was encoded"))
    with pytest.raises(ValueError, match="compressor"):
        pipe([*asked, {"question": QUESTIONS[1], "memory": other}])


def test_a_text_is_encoded_once_however_many_ask(pipe, model, monkeypatch):
    encoded = []
    encode = model.encode
    monkeypatch.setattr(
        model,
        "encode",
        lambda segment_input_ids, *rest, **kwargs: (
            encoded.append(len(segment_input_ids)) or encode(segment_input_ids, *rest, **kwargs)
        ),
    )
    pipe(question=QUESTIONS, context=TEXTS[0])
    assert encoded == [len(model.segment(TEXTS[:1])[0])]
    encoded.clear()
    asked = [{"question": q, "context": text} for text in TEXTS[:2] for q in QUESTIONS]
    answers = pipe(asked)
    assert sum(encoded) == sum(map(len, model.segment(TEXTS[:2])))
    assert answers == [pipe(item) for item in asked]


def test_generate_arguments(pipe, model):
    both = pipe(question=QUESTIONS[:2], context=TEXTS[0], num_beams=2, num_return_sequences=2)
    flat = model.generate(
        memory=model.compress(TEXTS[0]),
        question=QUESTIONS[:2],
        num_beams=2,
        num_return_sequences=2,
        **NEW,
    )
    assert [found["answer"] for found in both] == [flat[:2], flat[2:]]
    nested = pipe(question=QUESTIONS[0], context=TEXTS[0], generate_kwargs={"max_new_tokens": 1})
    assert nested == pipe(question=QUESTIONS[0], context=TEXTS[0], max_new_tokens=1)
    with pytest.raises(ValueError, match="assistant_model"):
        pipe(question="Why?", context="A text.", assistant_model=model)
    with pytest.raises(ValueError, match=r"pipe\.model\.generate"):
        pipe(question="Why?", context="A text.", return_dict_in_generate=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "question is missing"),
        ({"question": "Why?"}, "either context or memory.*neither"),
        ({"inputs": {"question": "Why?", "context": "a", "memory": "b"}}, "got both"),
        ({"inputs": {"question": "Why?", "text": "a"}}, r"keys \['text'\]; allowed"),
        ({"inputs": []}, "empty list"),
        ({"inputs": {"question": [], "context": "a"}}, "question is an empty list"),
        ({"inputs": {"question": "a", "context": []}}, "context is an empty list"),
        ({"inputs": {"question": ["a"] * 2, "context": ["b"] * 3}}, "do not go together"),
        ({"inputs": {"question": "a", "context": "b"}, "question": "c"}, "not both"),
        ({"question": "a", "context": "b", "rate": 5}, "rate 5 is not one"),
        ({"question": "a", "context": " "}, "context"),
    ],
)
def test_mistakes_are_named(pipe, arguments, message):
    with pytest.raises(ValueError, match=message):
        pipe(**arguments)


def test_a_memory_of_nothing_is_not_answered(pipe, model):
    with pytest.raises(ValueError, match="0 contexts and 1 questions"):
        pipe(question="Why?", memory=model.compress("Ann is here.")[:0])


def test_wrong_types(pipe):
    for inputs in ("text", [["q"]], ["q"]):
        with pytest.raises(TypeError, match="dict"):
            pipe(inputs)
    with pytest.raises(TypeError, match="memory must be a Memory"):
        pipe(question="Why?", memory=3)


def test_found_by_name_and_saved_again(zoo, expected, tmp_path):
    found = pipeline(
        "memory-question-answering",
        model=zoo.saved(),
        trust_remote_code=True,
        device="cpu",
        batch_size=2,
        **NEW,
    )
    assert type(found).__module__.startswith("transformers_modules.")
    assert found(question=QUESTIONS, context=TEXTS) == expected
    found.save_pretrained(tmp_path / "again")
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    assert config["custom_pipelines"] == MemslotsConfig().to_dict()["custom_pipelines"]
    again = MemoryQuestionAnsweringPipeline(
        MemslotsModel.from_pretrained(tmp_path / "again"), device="cpu", **NEW
    )
    assert again(question=QUESTIONS, context=TEXTS) == expected


def test_a_generation_config_that_returns_a_dict_is_refused_first(pipe, monkeypatch):
    monkeypatch.setattr(pipe.model, "encode", lambda *args, **kwargs: pytest.fail("encoded"))
    config = GenerationConfig(return_dict_in_generate=True)
    with pytest.raises(ValueError, match="this pipeline returns answers"):
        pipe(question="Why?", context="Ann is here.", generation_config=config)
