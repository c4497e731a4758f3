"""Every public method of model, memory, processor and trainer has an example, and each one runs."""

import doctest
import inspect

import pytest
import torch
from datasets import Dataset

from memslots import Memory, MemslotsModel, MemslotsProcessor, verified
from memslots.chat import ChatMemory
from memslots.modeling.layout_memslots import Row
from memslots.trainer.compressor_config import CompressorConfig
from memslots.trainer.compressor_trainer import CompressorTrainer

INHERITED = {"train", "get_input_embeddings", "get_output_embeddings", "to_dict"}
"""Methods that are as those of transformers or torch."""


def methods(owner):
    """Public functions that this package gives a class."""
    for name in sorted(dir(owner)):
        member = inspect.getattr_static(owner, name)
        function = getattr(member, "__func__", None) or getattr(member, "__wrapped__", member)
        if name in INHERITED or (name.startswith("_") and name != "__call__"):
            continue
        if inspect.isfunction(function) and function.__module__.startswith("memslots."):
            yield name, getattr(owner, name)


PUBLIC = [
    pytest.param(name, method, id=f"{owner.__name__}.{name}")
    for owner in (MemslotsModel, Memory, MemslotsProcessor, ChatMemory)
    for name, method in methods(owner)
]
PUBLIC += [
    pytest.param(name, getattr(verified, name), id=f"verified.{name}")
    for name in ("compress", "expand", "expanded", "report")
]


PUBLIC += [
    pytest.param(name, member, id=f"CompressorTrainer.{name}")
    for name, member in [
        ("CompressorTrainer", CompressorTrainer),
        *methods(CompressorTrainer),  # the class's own example trains
    ]
]


@pytest.fixture(scope="module")
def trainer(zoo, tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("trainer"))
    args = CompressorConfig(folder, report_to="none", use_cpu=True, disable_tqdm=False)
    return CompressorTrainer(zoo.compressor(), args, Dataset.from_list([{"text": "Ann."}]))


@pytest.fixture(scope="module")
def names(zoo, trainer, tmp_path_factory):
    model = zoo.compressor().eval()
    folder = tmp_path_factory.mktemp("examples")
    model.compress("Ann is here.").save(folder / "ann.safetensors")
    return {
        "model": model,
        "processor": model.processor,
        "Memory": Memory,
        "MemslotsModel": MemslotsModel,
        "MemslotsProcessor": MemslotsProcessor,
        "ChatMemory": ChatMemory,
        "CompressorConfig": CompressorConfig,
        "CompressorTrainer": CompressorTrainer,
        "trainer": trainer,
        "Row": Row,
        "torch": torch,
        "verified": verified,
        "folder": folder,
        "checkpoint": zoo.saved(),
    }


@pytest.mark.filterwarnings("ignore:from the slots the decoder")
@pytest.mark.parametrize(("name", "method"), PUBLIC)
def test_it_has_an_example_that_runs(name, method, names):
    found = doctest.DocTestFinder(recurse=False).find(method, name, globs=dict(names))
    (example,) = [test for test in found if test.examples] or [None]
    assert example is not None, f"{name} has no example"
    told: list[str] = []
    runner = doctest.DocTestRunner(verbose=False)
    runner.run(example, out=told.append)
    assert not runner.failures, "".join(told)
