"""What `test_saving` runs in a process of its own: a recipe unbroken, killed, and run again.

The runs are forked from here, so that the libraries are imported once.
"""

import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path

import torch
import yaml

from memslots.trainer.run import run_recipe


def start(recipe: dict, output: Path, data_dir: str) -> int:
    """Forks a run of the recipe; its process."""
    child = os.fork()
    if child:
        return child
    try:
        run_recipe(recipe, output, data_dir=data_dir)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def finish(child: int) -> None:
    """Waits for a run that must succeed."""
    _, status = os.waitpid(child, 0)
    if status:
        sys.exit(f"a run ended with status {status}")


def main(recipe_file: str, data_dir: str, output: str) -> None:
    """Runs the recipe to `output`/unbroken and, killed after a checkpoint, to `output`/killed."""
    torch.set_num_threads(1)
    recipe = yaml.safe_load(Path(recipe_file).read_text())
    folder = Path(output)
    finish(start(recipe, folder / "unbroken", data_dir))
    child = start(recipe, folder / "killed", data_dir)
    stage = folder / "killed" / "compressor" / recipe["compressor"]["stages"][0]["name"]
    deadline = time.monotonic() + 120
    while not list(stage.glob("checkpoints/*/trainer_state.json")) and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    left = sorted(path.name for path in stage.glob("checkpoints/*"))
    saved = (stage / "model.safetensors").exists()
    (folder / "left.json").write_text(json.dumps({"checkpoints": left, "saved": saved}))
    finish(start(recipe, folder / "killed", data_dir))


if __name__ == "__main__":
    main(*sys.argv[1:])
