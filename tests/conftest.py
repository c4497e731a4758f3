"""Settings for every test: no network (set before any library reads them), and one thread."""

import gc
import os
import shutil
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["MEMSLOTS_CHECKPOINT"] = "tiny"  # the default, SmolLM2 there or not
# Processes side by side would write the code of remote models over one another's, and trackio
# reads its folder's name when it is first imported, by whichever test that is.
os.environ["HF_MODULES_CACHE"] = tempfile.mkdtemp(prefix="memslots-modules-")
os.environ["TRACKIO_DIR"] = tempfile.mkdtemp(prefix="memslots-trackio-")

import pytest
import torch
from tiny_models import Zoo

torch.set_num_threads(1)  # tiny models gain nothing from more


HEAVY = (
    "test_smollm2",
    "test_pcc_recipes",
    "test_space_browser",
    "test_cli",
    "test_examples",
    "test_distributed",
    "test_sharded",
    "test_saving",
)
"""Files that take long, the longest first: what begins last should be short."""


def pytest_collection_modifyitems(items):
    """Heavy files first, the others in their order."""
    places = {name: place for place, name in enumerate(HEAVY)}
    items.sort(key=lambda item: places.get(item.path.stem, len(HEAVY)))


def pytest_collection_finish():
    """Modules stay, so no collection of garbage looks through them: Accelerate asks for many."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish():
    """Removes the folders made above."""
    for name in ("HF_MODULES_CACHE", "TRACKIO_DIR"):
        shutil.rmtree(os.environ[name], ignore_errors=True)


@pytest.fixture(scope="session")
def zoo(tmp_path_factory) -> Zoo:
    """Tiny models, made when first asked for."""
    return Zoo(tmp_path_factory.mktemp("zoo"))


@pytest.fixture(scope="session")
def model(zoo):
    """A compressor that tests read and do not change: GPT-2 encoder, Llama decoder."""
    return zoo.shared()
