"""Two processes train as one does: every row seen once, the same losses and weights."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_models import words

SCRIPT = Path(__file__).with_name("distributed_script.py")
BATCH = 4


def rows():
    """Texts and questions of unlike lengths: the processes have unlike numbers of targets."""
    made = []
    for i in range(6):
        made.append({"text": words(30 + 5 * i, i), "context": None, "question": None})
        made[-1]["answer"] = None
        question = {"text": None, "context": words(8 + 3 * i, 50 + i)}
        made.append({**question, "question": ["where?"], "answer": [words(1 + i % 3, 90 + i)]})
    return made


def train(processes, start, rows_file, output):
    arguments = [str(start), str(rows_file), str(BATCH // processes), str(output)]
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(
        [*launcher, str(SCRIPT), *arguments],
        capture_output=True,
        text=True,
        timeout=240,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def trained(processes, output):
    """What every process saw, the losses, and the weights."""
    seen = [json.loads(file.read_text()) for file in sorted(output.glob("seen-*.json"))]
    assert len(seen) == processes
    losses = json.loads((output / "losses.json").read_text())
    return seen, losses, torch.load(output / "weights.pt")


@pytest.fixture(scope="module")
def runs(zoo, tmp_path_factory):
    """Folders of one process and of two, each of which trained on stored and on streamed rows."""
    folder = tmp_path_factory.mktemp("distributed")
    model = zoo.compressor("qwen3", "llama", compression_rates=[4, 8], segment_length=16)
    model.save_pretrained(folder / "start")
    rows_file = folder / "rows.json"
    rows_file.write_text(json.dumps(rows()))
    train(1, folder / "start", rows_file, folder / "one")
    train(2, folder / "start", rows_file, folder / "two")
    return folder


@pytest.mark.parametrize("kind", ["stored", "streamed"])
def test_two_processes_train_as_one(runs, kind):
    (alone,), losses, weights = trained(1, runs / "one" / kind)
    (first, second), two_losses, two_weights = trained(2, runs / "two" / kind)

    assert first != second
    assert sorted([*first, *second]) == sorted(alone)
    assert two_losses == pytest.approx(losses, rel=1e-3)
    for name, weight in weights.items():
        torch.testing.assert_close(two_weights[name], weight, atol=2e-5, rtol=1e-3)
