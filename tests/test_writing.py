"""Whatever writes weights says so where the disk is full, and leaves what was there."""

import resource
import signal
from contextlib import contextmanager

import pytest
import torch
from safetensors import SafetensorError
from sentence_encoders import sentence_encoder
from tiny_models import SENTENCES

from lab.smol.train import load_slots, save_slots
from memslots.cli import main
from memslots.hub_cards.push import staged
from memslots.making import new_compressor
from memslots.trainer.slot_cache import cached_slots
from memslots.writing import whole_file


@contextmanager
def no_room(most=512):
    """No file gets longer than `most` bytes, as on a disk that is full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


FULL = r"no room to write .*{} \([\d,]+ MB free on its disk\); free some space"


def test_smols_slots(tmp_path):
    before = {"slots": torch.zeros(4, 4)}
    save_slots(before, tmp_path, step=1, seen=2)
    with no_room(), pytest.raises(OSError, match=FULL.format("slots-0.safetensors")):
        save_slots({"slots": torch.ones(400, 4)}, tmp_path, step=3, seen=4)
    weights, step, seen = load_slots(tmp_path)
    assert torch.equal(weights["slots"], before["slots"])
    assert (step, seen) == (1, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["slots-0.safetensors"]


def test_kept_slots_of_a_sentence_encoder(zoo, tmp_path):
    encoder = sentence_encoder(tmp_path / "encoder")
    decoder = zoo.folder("llama", "decoder")
    model = new_compressor(encoder, decoder, pooling="sentence", pool_unit="text")
    file = tmp_path / "kept" / "slots.safetensors"
    said = pytest.raises(OSError, match=FULL.format("slots.safetensors"))
    with no_room(64), said, cached_slots(model, most=10, file=file):
        model.compress(SENTENCES)
    assert not list(file.parent.iterdir())


def test_crammed_texts_are_shown_before_they_are_kept(zoo, tmp_path, capsys):
    text, kept = tmp_path / "text.txt", tmp_path / "kept.safetensors"
    text.write_text(SENTENCES[0])
    asked = ["cram", "--text", text, "--decoder", zoo.folder("llama", "decoder"), "--method"]
    asked += ["mem", "--length", 6, "--vectors", 16, "--max-steps", 2, "--output", kept, "--json"]
    with no_room():
        assert main([str(one) for one in asked]) == 2
    told = capsys.readouterr()
    assert '"theoretical_capacity"' in told.out  # minutes of work
    assert "no room to write" in told.err
    assert not [path for path in tmp_path.iterdir() if path != text]


@pytest.mark.parametrize("most", [160, 13_000, 20_000])  # tokenizers have an error of their own
def test_a_new_compressor(zoo, tmp_path, capsys, most):
    encoder, decoder = zoo.folder("gpt2", "encoder"), zoo.folder("llama", "decoder")
    made = ["--encoder", encoder, "--decoder", decoder, "--output", str(tmp_path / "made")]
    made += ["--set", "segment_length=16"]
    with no_room(most):
        assert main(["init", *made]) == 2
    assert "no room to write" in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.iterdir())
    assert main(["init", *made]) == 0  # the same command again, once there is room


def test_the_files_of_a_push(zoo, tmp_path):
    model = zoo.compressor(bundle_decoder=True)
    model.save_pretrained(tmp_path / "saved")
    for most in (160, 13_000):
        said = pytest.raises(OSError, match=FULL.format("memslots-push-[^ ]*"))
        with no_room(most), said, staged(tmp_path / "saved", "me/model", model):
            raise AssertionError("it was staged")


def test_other_failures_are_named_and_keep_what_was_there(tmp_path):
    file = tmp_path / "kept.safetensors"
    file.write_text("before")

    def write():
        with whole_file(file) as draft:
            draft.write_text("half")
            raise SafetensorError("permission denied")

    with pytest.raises(OSError, match=r"cannot write .*kept\.safetensors: permission"):
        write()
    assert file.read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["kept.safetensors"]
