"""A run that is killed or runs out of disk loses nothing that was saved, and goes on from it."""

import errno
import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from test_pcc_recipes import small
from test_trainer import fresh, mixed, settings
from tiny_models import words
from transformers import TrainerCallback

from memslots import MemslotsModel
from memslots.trainer.compressor_trainer import CompressorTrainer
from memslots.trainer.saving import is_saved, last_checkpoint, save_whole

SCRIPT = Path(__file__).with_name("killed_runs_script.py")


def test_a_streamed_recipe_killed_and_run_again_ends_as_unbroken(zoo, tmp_path):
    """SIGKILL in the stream's second pass; dropout, accumulation and two rates."""
    recipe = small("pcc_lite", zoo)
    stage = next(s for s in recipe["compressor"]["stages"] if s["name"] == "pretrain")
    stage["tokens"] = 8 * 2 * stage["data"][0]["tokens"]  # 8 steps of 2 rows
    stage["training"].update(learning_rate=0.01, warmup_steps=0, training_rates=[4, 16])
    recipe["compressor"]["stages"] = [stage]
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe))
    data = tmp_path / "data"
    data.mkdir()
    # Rows for one step and a half: every pass of the stream ends within a step.
    text = words(40, seed=2)
    (data / "fineweb-train.jsonl").write_text(json.dumps({"id": "0", "text": text}) + "\n")

    command = [sys.executable, str(SCRIPT), str(file), str(data), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    left = json.loads((tmp_path / "left.json").read_text())
    assert not left["saved"]
    assert "checkpoint-8" not in left["checkpoints"]
    whole, resumed = (
        MemslotsModel.from_pretrained(tmp_path / run / "compressor" / "pretrain").state_dict()
        for run in ("unbroken", "killed")
    )
    for name, tensor in whole.items():
        torch.testing.assert_close(resumed[name], tensor, atol=1e-6, rtol=1e-5)


class FullDisk(TrainerCallback):
    """From a step on, no file of this process may grow beyond some bytes."""

    def __init__(self, step, room):
        self.step, self.room = step, room

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.room, hard))


@pytest.fixture
def file_limit():
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.pt"])
def test_a_full_disk_leaves_the_checkpoint_before(zoo, tmp_path, file_limit, file):
    model = fresh(zoo, tmp_path)
    own = (tmp_path / "start" / "model.safetensors").stat().st_size
    room = own // 2 if file == "model.safetensors" else own + own // 2  # two moments a weight
    args = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 1}
    args |= {"training_rates": [4]}
    out = tmp_path / "out"
    full = FullDisk(step=1, room=room)
    trainer = CompressorTrainer(model, settings(out, **args), mixed(), callbacks=[full])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with pytest.raises(OSError, match=r"no room to write .*checkpoint-2 .*checkpoint-1 is whole"):
        trainer.train()
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in out.glob("checkpoint-*")] == ["checkpoint-1"]

    loaded = MemslotsModel.from_pretrained(out / "checkpoint-1")
    trainer = CompressorTrainer(loaded, settings(out, **args), mixed())
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 2
    assert (out / "checkpoint-2" / "optimizer.pt").stat().st_size > own


def test_a_half_written_checkpoint_is_not_resumed_from(tmp_path):
    assert last_checkpoint(tmp_path) is None
    for step in (5, 10, 15, 20):
        (tmp_path / f"checkpoint-{step}").mkdir()
    (tmp_path / "checkpoint-5" / "trainer_state.json").write_text("{}")
    (tmp_path / "checkpoint-10" / "trainer_state.json").write_text("{}")
    (tmp_path / "checkpoint-15" / "trainer_state.json").write_text('{"epo')
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")


def test_a_copy_of_a_checkpoint_under_another_name_is_none(tmp_path):
    for name in ("checkpoint-7", "checkpoint-best", "checkpoint-9-copy"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "trainer_state.json").write_text("{}")
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-7")


def test_a_push_that_fails_costs_no_checkpoint(zoo, tmp_path, monkeypatch, caplog):
    def unreachable(*given, **options):
        raise ConnectionError("the network failed again and again; nothing was committed")

    monkeypatch.setattr(CompressorTrainer, "init_hf_repo", lambda trainer, **options: None)
    monkeypatch.setattr(CompressorTrainer, "_publish", unreachable)
    arguments = {"push_to_hub": True, "hub_model_id": "me/x", "max_steps": 2, "save_steps": 1}
    arguments["save_strategy"] = "steps"
    trainer = CompressorTrainer(zoo.compressor(), settings(tmp_path, **arguments), mixed())
    assert trainer.train().global_step == 2
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")
    assert "checkpoint-1 is not pushed, and training goes on: the network failed" in caplog.text


def test_a_model_is_saved_whole_or_not_at_all(tmp_path):
    folder = tmp_path / "stage"
    (folder / "checkpoints").mkdir(parents=True)

    def half(unfinished):
        unfinished.mkdir()
        (unfinished / "model.safetensors").write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match=r"no room to write .*checkpoint-9 is whole\. Free some"):
        save_whole(half, folder, kept="checkpoint-9")
    assert [path.name for path in tmp_path.rglob("*")] == ["stage", "checkpoints"]
    assert not is_saved(folder)

    def whole(unfinished):
        (unfinished / "tokenizer").mkdir(parents=True)
        (unfinished / "tokenizer" / "vocabulary").write_text("new")
        (unfinished / "model.safetensors").write_text("whole")

    (folder / "tokenizer").mkdir()  # of a run that was killed while its files were moved
    (folder / "tokenizer" / "old").write_text("old")
    save_whole(whole, folder)
    assert is_saved(folder)
    assert [path.name for path in (folder / "tokenizer").iterdir()] == ["vocabulary"]
    assert (folder / "checkpoints").is_dir()
    assert [path.name for path in tmp_path.iterdir()] == ["stage"]


def test_other_errors_while_saving_stay_what_they_are(tmp_path):
    def broken(unfinished):
        raise PermissionError(errno.EACCES, "Permission denied", str(unfinished))

    with pytest.raises(PermissionError, match="Permission denied"):
        save_whole(broken, tmp_path / "stage")
