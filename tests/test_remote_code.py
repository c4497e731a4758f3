"""A checkpoint is enough: its own code, without memslots installed, answers as the package does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import QUESTIONS, TEXTS, words

import memslots.modeling
from memslots import MemslotsConfig, MemslotsModel, MemslotsProcessor
from memslots.modeling import Memory

pytestmark = pytest.mark.timeout(900)  # other processes import transformers

MODELING = Path(memslots.modeling.__file__).parent
ANSWERS = {"question": QUESTIONS, "max_new_tokens": 5}

# Neither package can be found, though they are installed.
BLOCKED = """
import importlib.machinery
find = importlib.machinery.PathFinder.find_spec
def find_others(name, path=None, target=None):
    blocked = name.split(".")[0] in ("memslots", "peft")
    return None if blocked else find(name, path, target)
importlib.machinery.PathFinder.find_spec = staticmethod(find_others)
# An installed peft without its package would count as available.
import importlib.metadata
version = importlib.metadata.version
def hidden(name):
    if name in ("peft", "memslots"):
        raise importlib.metadata.PackageNotFoundError(name)
    return version(name)
importlib.metadata.version = hidden
"""

# One process for all questions: most of its time is the import of transformers.
SCRIPT = """
import json, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoProcessor
folder, work, given = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
texts, answers = given["texts"], given["answers"]
trust = {"trust_remote_code": True}
found = {}
model = AutoModel.from_pretrained(folder, **trust)
found["module"] = type(model).__module__
found["config"] = type(AutoConfig.from_pretrained(folder, **trust)).__name__
found["fingerprint"] = model.fingerprint
memory = model.compress(texts)
memory.save(work / "remote-memory")
found["answers"] = model.generate(memory=memory, **answers)
found["one"] = model.generate(context=texts[0], question="Where?", max_new_tokens=5)
found["reconstruction"] = model.reconstruct(memory[0])
found["read"] = model.generate(memory=model.load_memory(work / "memory"), **answers)
causal = AutoModelForCausalLM.from_pretrained(folder, **trust)
found["causal"] = causal.generate(memory=memory, **answers)
processor = AutoProcessor.from_pretrained(folder, **trust)
inputs = processor(texts, answers["question"], ["a", "b", "c"])
found["loss"] = model(**inputs).loss.item()
bare = AutoModel.from_pretrained(folder, load_decoder=False, **trust)
found["bare"] = [not bare.has_decoder, torch.equal(bare.compress(texts).slots, memory.slots)]
try:
    bare.generate(memory=memory, question="Why?")
except ValueError as error:
    found["without"] = str(error)
bare.attach_decoder(causal.decoder)
found["attached"] = bare.generate(memory=memory, **answers)
model.save_pretrained(work / "again")
again = AutoModel.from_pretrained(work / "again", **trust)
found["again"] = again.generate(memory=memory, **answers)
from transformers import pipeline
pipe = pipeline("memory-question-answering", model=folder, max_new_tokens=5, **trust)
found["pipeline"] = [row["answer"] for row in pipe(question=answers["question"], context=texts)]
found["pipeline_memory"] = [
    row["answer"] for row in pipe(question=answers["question"], memory=str(work / "memory"))
]
found["imported"] = sorted({name.split(".")[0] for name in sys.modules} & {"memslots", "peft"})
print("RESULT" + json.dumps(found))
"""


def run_isolated(script: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    """Run `script` where neither memslots nor peft can be imported, with standard input closed."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment["HF_HOME"] = str(cwd / "hf")
    environment["HF_MODULES_CACHE"] = str(cwd / "modules")
    return subprocess.run(
        [sys.executable, "-I", "-c", BLOCKED + script, *arguments],
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("elsewhere")


@pytest.fixture(scope="module")
def remote(zoo, model, work):
    """What the isolated process found, and what it printed."""
    model.compress(TEXTS).save(work / "memory")
    given = json.dumps({"texts": TEXTS, "answers": ANSWERS})
    run = run_isolated(SCRIPT, zoo.saved(), str(work), given, cwd=work)
    assert run.returncode == 0, run.stderr[-3000:]
    before, _, result = run.stdout.rpartition("RESULT")
    return json.loads(result), before + run.stderr


def test_remote_code_runs_and_asks_nothing(remote):
    found, printed = remote
    assert found["module"].startswith("transformers_modules.")
    assert found["config"] == "MemslotsConfig"
    assert found["imported"] == []
    assert "trust" not in printed.lower()
    assert "[y/n]" not in printed.lower()


def test_remote_code_answers_as_the_package_does(model, remote):
    found, _ = remote
    memory = model.compress(TEXTS)
    expected = model.generate(memory=memory, **ANSWERS)
    assert found["fingerprint"] == model.fingerprint
    for way in (
        "answers",
        "read",
        "causal",
        "attached",
        "again",
        "pipeline",
        "pipeline_memory",
    ):
        assert found[way] == expected, way
    assert found["one"] == model.generate(context=TEXTS[0], question="Where?", max_new_tokens=5)
    assert found["reconstruction"] == model.reconstruct(memory[0])
    inputs = model.processor(TEXTS, QUESTIONS, ["a", "b", "c"])
    assert found["loss"] == pytest.approx(model(**inputs).loss.item(), rel=1e-4)


def test_without_decoder(remote):
    found, _ = remote
    assert found["bare"] == [True, True]
    assert "attach_decoder" in found["without"]


def test_memory_of_remote_code_is_read_by_the_package(model, remote, work):
    memory = model.load_memory(work / "remote-memory")
    assert memory.documents == model.compress(TEXTS).documents
    assert model.generate(memory=memory, **ANSWERS) == remote[0]["answers"]


@pytest.mark.parametrize("again", [False, True], ids=["package", "remote"])
def test_checkpoint_carries_all_code_and_both_tokenizers(zoo, remote, work, again):
    folder = work / "again" if again else Path(zoo.saved())
    sources = sorted(MODELING.glob("*_memslots.py"))
    assert [p.name for p in sources] == sorted(p.name for p in folder.glob("*.py"))
    for source in sources:
        assert (folder / source.name).read_bytes() == source.read_bytes()
    names = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert {"config.json", "model.safetensors", "processor_config.json", "tokenizer.json"} <= names
    assert "encoder_tokenizer/tokenizer.json" in names
    assert not [n for n in names if n.endswith((".bin", ".pt", ".pkl")) or "adapter" in n]
    config = json.loads((folder / "config.json").read_text())
    autos = {"AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoProcessor"}
    assert set(config["auto_map"]) == autos
    assert not any("--" in value for value in config["auto_map"].values())
    (registered,) = config["custom_pipelines"].values()
    assert registered["impl"].partition(".")[0] + ".py" in names


def test_memory_of_another_copy_of_the_class(model, monkeypatch):
    memory = model.compress(TEXTS)

    class Copy:
        """What a Memory of remote code is to the package: equal fields, another class."""

        def __init__(self):
            self.__dict__.update(vars(memory))

        __len__, segments = Memory.__len__, Memory.segments
        segment_rates, segment_texts = Memory.segment_rates, Memory.segment_texts

    assert model.generate(memory=Copy(), **ANSWERS) == model.generate(memory=memory, **ANSWERS)
    with pytest.raises(TypeError, match=r"memory must be a Memory .* got str"):
        model.generate(memory="doc.safetensors", question="Why?")


def test_missing_weight_is_an_error_that_names_it(zoo, tmp_path):
    model = zoo.shared()
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    for key in ("converter.up.weight", "memory_tokens", "encoder.h.1.mlp.c_fc.weight"):
        save_file(
            {k: v for k, v in weights.items() if k != key},
            tmp_path / "model.safetensors",
            metadata={"format": "pt"},
        )
        with pytest.raises(ValueError, match=f"lacks 1 weights.*{key}.*save it again"):
            MemslotsModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("decoder", ["llama", "qwen3"])  # the second ties its head
def test_bundled_decoder(zoo, tmp_path, decoder):
    model = zoo.compressor("gpt2", decoder, bundle_decoder=True)
    model.decoder.generation_config.max_new_tokens = 3
    model.decoder.generation_config.eos_token_id = [2, 7]
    model.save_pretrained(tmp_path)
    loaded = MemslotsModel.from_pretrained(tmp_path)
    assert not any(p.requires_grad for p in loaded.decoder.parameters())
    assert not loaded.decoder.training
    assert loaded.decoder.generation_config.max_new_tokens == 3
    assert loaded.decoder.generation_config.eos_token_id == [2, 7]
    for key, value in model.decoder.state_dict().items():
        assert torch.equal(value, loaded.decoder.state_dict()[key]), key
    arguments = {"context": TEXTS, "question": QUESTIONS, "max_new_tokens": 5}
    assert loaded.generate(**arguments) == model.generate(**arguments)
    bare = MemslotsModel.from_pretrained(tmp_path, load_decoder=False)
    assert not bare.has_decoder
    # Saved again, it would claim a decoder that it does not hold.
    with pytest.raises(ValueError, match=r"bundle_decoder.*attach_decoder"):
        bare.save_pretrained(tmp_path / "again")
    weights = load_file(tmp_path / "model.safetensors")
    lost = next(key for key in weights if key.startswith("decoder.") and "norm" in key)
    del weights[lost]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"lacks 1 weights.*{lost}"):
        MemslotsModel.from_pretrained(tmp_path)


def test_decoder_kwargs_go_to_the_decoder_alone(zoo):
    model = MemslotsModel.from_pretrained(zoo.saved(), decoder_kwargs={"dtype": torch.bfloat16})
    assert model.decoder.dtype == torch.bfloat16
    assert model.encoder.dtype == model.converter.up.weight.dtype == torch.float32
    assert isinstance(model.generate(context="A text.", question="Why?", max_new_tokens=2), str)
    model = MemslotsModel.from_pretrained(zoo.saved(), dtype=torch.bfloat16)
    assert model.decoder.dtype == model.encoder.dtype == torch.bfloat16


def test_missing_decoder_and_missing_checkpoint(zoo, tmp_path):
    model = zoo.compressor()
    model.config.decoder_name_or_path = str(tmp_path / "gone")
    model.save_pretrained(tmp_path / "c")
    with pytest.raises((OSError, ValueError), match="gone"):
        MemslotsModel.from_pretrained(tmp_path / "c")
    assert MemslotsModel.from_pretrained(tmp_path / "c", load_decoder=False).has_decoder is False
    with pytest.raises((OSError, ValueError), match="nowhere"):
        MemslotsModel.from_pretrained(tmp_path / "nowhere")


def test_attach_decoder_checks_what_it_is_given(zoo, model):
    from transformers import AutoModelForCausalLM

    bare = MemslotsModel.from_pretrained(zoo.saved(), load_decoder=False)
    assert bare.attach_decoder(model.decoder) is bare
    assert bare.decoder is model.decoder  # shared, not copied
    with pytest.raises(TypeError, match="takes a transformers causal LM, got str"):
        bare.attach_decoder("llama")
    with pytest.raises(TypeError, match=r"got MemslotsModel; give it compressor.decoder"):
        bare.attach_decoder(model)  # AutoModelForCausalLM loads one too
    other = AutoModelForCausalLM.from_pretrained(zoo.folder("llama", "encoder"))
    with pytest.raises(ValueError, match=r"hidden_size 32 .* the given one has 24"):
        bare.attach_decoder(other)


OVERRIDES = {
    "literals": "numbers",
    "answer_end": "\n",
    "plain_prompt": "Q: {question}",
    "markers": "memory",
    "compression_rates": [2, 4],
}


def test_fields_of_the_configuration_given_on_loading_are_followed(zoo):
    checkpoint = zoo.saved()
    by_config = MemslotsConfig.from_pretrained(checkpoint, **OVERRIDES)
    for model in (
        MemslotsModel.from_pretrained(checkpoint, **OVERRIDES),
        MemslotsModel.from_pretrained(checkpoint, config=by_config),
    ):
        for name, value in OVERRIDES.items():
            assert getattr(model.processor, name) == getattr(model.config, name) == value
        assert [literal.text for literal in model.compress("Ann owns 27 maps.").literals[0]] == [
            "27"
        ]
        with pytest.raises(ValueError, match="rate 8 is not one"):
            model.compress("Ann owns 27 maps.", rate=8)
    assert MemslotsModel.from_pretrained(checkpoint).processor.literals is None


def test_processor_round_trip(zoo, tmp_path):
    model = zoo.compressor(prompt_format="chat", plain_prompt="Q: {question} A:", markers="none")
    model.processor.encoder_text  # noqa: B018  a cached view is not written
    model.processor.save_pretrained(tmp_path)
    loaded = MemslotsProcessor.from_pretrained(tmp_path)
    for name in (
        "segment_length",
        "compression_rates",
        "prompt_format",
        "plain_prompt",
        "markers",
    ):
        assert getattr(loaded, name) == getattr(model.processor, name)
    assert loaded.prompt(question="Why?") == model.processor.prompt(question="Why?")
    assert loaded.segment(TEXTS[1]) == model.processor.segment(TEXTS[1])


def test_another_segmentation_has_another_fingerprint(zoo, tmp_path):
    zoo.compressor(pooling="mean").save_pretrained(tmp_path / "first")
    first = MemslotsModel.from_pretrained(tmp_path / "first")
    finer = MemslotsModel.from_pretrained(tmp_path / "first", segment_length=12)
    assert finer.fingerprint != first.fingerprint
    finer.compress(words(40)).save(tmp_path / "memory.safetensors")
    finer.save_pretrained(tmp_path / "finer")
    again = MemslotsModel.from_pretrained(tmp_path / "finer")
    assert again.load_memory(tmp_path / "memory.safetensors").fingerprint == again.fingerprint


def test_attention_is_chosen_for_encoder_and_decoder(zoo, tmp_path):
    zoo.compressor().save_pretrained(tmp_path)
    model = MemslotsModel.from_pretrained(tmp_path, attn_implementation="eager")
    assert model.encoder.config._attn_implementation == "eager"
    assert model.decoder.config._attn_implementation == "eager"
