"""Memory on disk: what is written is read back, and anything else is one clear error."""

import json
import os

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tiny_models import QUESTIONS, TEXTS

from memslots.modeling import Memory
from memslots.modeling.memory_files_memslots import write_file


@pytest.fixture(scope="module")
def memory(model) -> Memory:
    return model.compress(TEXTS)


@pytest.fixture
def path(memory, tmp_path):
    path = tmp_path / "doc.safetensors"
    memory.save(path)
    return path


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_round_trip(model, memory, tmp_path, dtype):
    path = tmp_path / "doc.safetensors"
    kept = memory.to(dtype)
    kept.save(path)
    read = Memory.load(path)
    assert torch.equal(read.slots, kept.slots)
    assert read.dtype == dtype
    assert {**vars(read), "slots": None} == {**vars(kept), "slots": None}
    assert model.load_memory(str(path)).documents == memory.documents
    answers = model.generate(memory=read, question=QUESTIONS, max_new_tokens=5)
    assert answers == model.generate(memory=kept, question=QUESTIONS, max_new_tokens=5)
    assert [file.name for file in tmp_path.iterdir()] == ["doc.safetensors"]


def test_slices_and_empty_memories_round_trip(memory, tmp_path):
    for part in (memory[1], memory[1:], memory.join(), memory.at_rate(8), memory[3:]):
        part.save(tmp_path / "part")
        read = Memory.load(tmp_path / "part")
        assert torch.equal(read.slots, part.slots)
        assert read.documents == part.documents


def test_a_document_keeps_its_own_rate(model, memory, tmp_path):
    mixed = Memory.cat([memory.as_text({0: "Ann is here."}), model.compress(TEXTS[1], rate=8)])
    mixed[-1].save(tmp_path / "part")
    assert set(Memory.load(tmp_path / "part").segment_rates) == {8}


def test_saving_replaces_a_file_whole(memory, path):
    memory[0].save(path)
    assert len(Memory.load(path)) == 1


def test_saving_through_a_link_replaces_what_it_points_to(memory, tmp_path):
    (tmp_path / "disk").mkdir()
    memory.save(tmp_path / "disk" / "doc")
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "doc")
    memory[0].save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert len(Memory.load(tmp_path / "disk" / "doc")) == 1
    assert [file.name for file in (tmp_path / "disk").iterdir()] == ["doc"]


def test_saving_to_nowhere(memory, tmp_path):
    for place in (tmp_path, tmp_path / "missing" / "doc"):
        with pytest.raises(ValueError, match="give a file name in an existing folder"):
            memory.save(place)


def test_truncated_file(path):
    whole = path.read_bytes()
    for length in (0, 4, 8, 60, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="cut off"):
            Memory.load(path)


def test_one_altered_byte(path):
    whole = path.read_bytes()
    header = int.from_bytes(whole[:8], "little")
    # Length, every third byte of header and metadata, and samples of the data.
    positions = [*range(8), *range(8, 8 + header, 3), *range(8 + header, len(whole), 97)]
    for position in positions:
        for flip in (0x01, 0xFF):
            altered = bytearray(whole)
            altered[position] ^= flip
            path.write_bytes(altered)
            with pytest.raises(
                ValueError, match=r"Compress the text again|Update memslots|no memslots"
            ) as error:
                Memory.load(path)
            assert str(path) in str(error.value)


def test_other_files(tmp_path, path):
    with pytest.raises(FileNotFoundError, match=r"no memory file at '.*missing'"):
        Memory.load(tmp_path / "missing")
    with pytest.raises(FileNotFoundError, match="no memory file"):
        Memory.load(tmp_path)
    other = tmp_path / "other"
    save_file({"slots": torch.zeros(2, 3)}, other)
    with pytest.raises(ValueError, match="no memslots memory"):
        Memory.load(other)
    other.write_text("The treaty was signed in Lagos. " * 20)
    with pytest.raises(ValueError, match="another kind of file"):
        Memory.load(other)


def test_newer_format(tmp_path):
    for version in (5, 0):
        header = json.dumps({"format": "memslots.memory", "version": version})
        save_file({"slots": torch.zeros(2, 3)}, tmp_path / "new", metadata={"memslots": header})
        with pytest.raises(
            ValueError, match=rf"version {version}; this memslots reads .* up to version 4"
        ):
            Memory.load(tmp_path / "new")


def test_another_compressors_memory_is_refused(zoo, model, memory, path):
    other = zoo.compressor(seed=1)
    assert other.fingerprint != model.fingerprint
    for use in (
        lambda: other.generate(memory=memory, question="Why?"),
        lambda: other.reconstruct(memory),
        lambda: other.load_memory(path),
    ):
        with pytest.raises(ValueError, match="written by compressor") as error:
            use()
        assert model.fingerprint[:12] in str(error.value)
        assert other.fingerprint[:12] in str(error.value)
    with pytest.raises(ValueError, match="one compressor"):
        Memory.cat([memory, other.compress(TEXTS)])


def test_fingerprint_follows_encoder_and_segmentation_only(zoo):
    model = zoo.compressor(compression_rates=[4])
    before = model.fingerprint

    def step(parameters):
        optimizer = torch.optim.SGD(parameters, lr=0.1)
        inputs = model.processor(TEXTS, QUESTIONS, ["yes", "no", "it rained"])
        optimizer.zero_grad()
        model(**inputs).loss.backward()
        optimizer.step()

    step([*model.converter.parameters(), model.markers])
    assert model.fingerprint == before
    step([model.memory_tokens])
    changed = model.fingerprint
    assert changed != before
    step(model.encoder.parameters())
    assert model.fingerprint not in (before, changed)


def test_fingerprint_follows_another_encoder(zoo):
    model, other = (zoo.compressor(seed=seed) for seed in (0, 1))
    memory = model.compress(TEXTS)
    other.encoder.wte.weight.data += 1  # which torch does not count
    model.encoder = other.encoder
    with pytest.raises(ValueError, match="this memory was written by compressor"):
        model.generate(memory=memory, question=QUESTIONS[0])


def test_fingerprint_follows_segment_length(zoo):
    # 22 and 24 tokens give equally many memory tokens, and so equal weights.
    one, two = (zoo.compressor(segment_length=n, compression_rates=[12]) for n in (22, 24))
    assert torch.equal(one.memory_tokens, two.memory_tokens)
    assert one.fingerprint != two.fingerprint


def test_a_full_disk(memory, path):
    resource = pytest.importorskip("resource")
    whole, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (512, limits[1]))
    try:
        with pytest.raises(OSError, match=r"cannot write .*doc.safetensors") as error:
            memory.save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "disk" in str(error.value)
    assert path.read_bytes() == whole
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("segments", 3),
        ("segments", [[0, 1]]),
        ("segments", [["a", 0, 1, 1, None]]),
        ("documents", ["x"]),
        ("text_sha256", None),
        ("rates", 4),
        ("rate", "4"),
        ("unknown_tokens", 7),
        ("fingerprint", 5),
        ("literals", [3]),
        ("checks", [[]]),
        ("version", "1"),
        ("version", None),
    ],
)
def test_headers_of_other_types(memory, tmp_path, name, value):
    path = tmp_path / "odd"
    memory.save(path)
    with safe_open(path, framework="pt") as file:
        header, slots = json.loads(file.metadata()["memslots"]), file.get_tensor("slots")
    write_file(path, {**header, name: value}, {"slots": slots})
    with pytest.raises(ValueError, match=r"odd|literals go with segments|a check of 0 parts"):
        Memory.load(path)


def test_paths_of_bytes_are_taken_as_open_takes_them(model, tmp_path):
    memory = model.compress("Ann owns 27 maps.")
    memory.save(os.fsencode(tmp_path / "m"))
    assert Memory.load(os.fsencode(tmp_path / "m")).documents == memory.documents
    assert model.load_memory(os.fsencode(tmp_path / "m")).documents == memory.documents
