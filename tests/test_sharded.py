"""FSDP: weights spread over processes train, log and save as whole ones do."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from test_pcc_recipes import data_dir, small  # noqa: F401 a fixture
from tiny_models import words

from memslots import MemslotsModel
from memslots.modeling.layout_memslots import ANSWER, COMPLETION, RECONSTRUCTION, Prompt, Row
from memslots.trainer.sharded import with_tasks

SCRIPT = Path(__file__).with_name("sharded_script.py")


def test_rows_are_made_up_for_tasks_that_others_have():
    rows = [
        Row([3, 4], Prompt([1]), [5, 6], task=ANSWER),
        Row([3], Prompt([1]), [7], input_only=1, task=COMPLETION),  # nothing left to predict
    ]
    same, made_up = with_tasks(rows, [False, False, True], token=2)
    assert (same, made_up) == (rows, [False, False, False])
    more, made_up = with_tasks(rows, [True, True, True], token=2)
    assert made_up == [True, True, False]
    assert more[:2] == rows
    assert [row.task for row in more[2:]] == [RECONSTRUCTION, COMPLETION]
    assert all(row.n_targets == 1 and row.segments == [3] for row in more[2:])


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_fsdp2_trains_as_one_process(zoo, data_dir, tmp_path):  # noqa: F811
    recipe = small("pcc_lite", zoo)
    section = recipe["compressor"]
    section["encoder"] = zoo.folder("qwen3", "encoder")  # without dropout, which processes draw
    stage = next(s for s in section["stages"] if s["name"] == "finetune_qa")
    del stage["after"]
    settings = {"learning_rate": 0.001, "warmup_steps": 0, "logging_steps": 1}
    stage["training"].update(settings, reconstruction_share=0.4, training_rates=[4])
    section["stages"] = [stage]
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, str(SCRIPT), str(file), str(data_dir), str(tmp_path), port]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-3000:]

    folders = [tmp_path / run / "compressor" / "finetune_qa" for run in ("alone", "sharded")]
    alone, sharded = (json.loads((folder / "losses.json").read_text()) for folder in folders)
    for one, two in zip(alone, sharded, strict=True):
        assert one.keys() == two.keys()
        for name in ("loss", "grad_norm", "answer_loss", "reconstruction_loss", "slots_read"):
            if name in one:
                assert two[name] == pytest.approx(one[name], rel=1e-3), name
    assert {"answer_loss", "reconstruction_loss"} <= {name for entry in alone for name in entry}
    whole, gathered = (MemslotsModel.from_pretrained(folder) for folder in folders)
    weights = gathered.state_dict()
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(weights[name], tensor, atol=2e-5, rtol=1e-3)
    stated = gathered.fingerprint
    gathered._fingerprint = None
    assert gathered.fingerprint == stated
    assert isinstance(gathered.generate(context=words(9), question="who?", max_new_tokens=2), str)
