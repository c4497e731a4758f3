"""What `test_sharded` runs: a recipe in one process, and under FSDP2 in two, forked from here.

accelerate gives CPUs plain data parallelism whatever it is asked for, so its word for them is
changed; everything after that, torch's `fully_shard` included, is what GPUs run, over gloo.
"""

import os
import sys
import traceback
from pathlib import Path

import torch
import yaml
from accelerate.state import PartialState
from accelerate.utils import DistributedType

from memslots.trainer.run import run_recipe

FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "Qwen3DecoderLayer,LlamaDecoderLayer",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
}


def shard_on_cpus() -> None:
    """Lets accelerate take several CPUs for several GPUs."""
    original = PartialState.__init__

    def patched(self, *args, **kwargs):
        original(self, *args, **kwargs)
        if self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.MULTI_GPU

    PartialState.__init__ = patched


def start(recipe: dict, output: Path, data_dir: str, rank: int = 0, port: str = "") -> int:
    """Forks a process that runs the recipe, one of two that share it where a port is given."""
    child = os.fork()
    if child:
        return child
    try:
        os.environ["ACCELERATE_USE_CPU"] = "true"
        if port:
            rank_of = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            world = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
            place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            os.environ.update({**FSDP, **rank_of, **world, **place})
            shard_on_cpus()
        run_recipe(recipe, output, data_dir=data_dir)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def finish(*children: int) -> None:
    """Waits for processes that must succeed."""
    failed = [child for child in children if os.waitpid(child, 0)[1]]
    if failed:
        sys.exit(f"{len(failed)} of {len(children)} processes failed")


def main(recipe_file: str, data_dir: str, output: str, port: str) -> None:
    """Runs the recipe to `output`/alone and `output`/sharded, the latter resumed in its midst."""
    torch.set_num_threads(1)
    recipe = yaml.safe_load(Path(recipe_file).read_text())
    finish(start(recipe, Path(output, "alone"), data_dir))
    finish(*(start(recipe, Path(output, "sharded"), data_dir, rank, port) for rank in (0, 1)))


if __name__ == "__main__":
    main(*sys.argv[1:])
