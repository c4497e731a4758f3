"""Settings for every test: no network (set before any library reads them), and one thread."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest
import torch
from tiny_models import Zoo

torch.set_num_threads(1)  # tiny models gain nothing from more


@pytest.fixture(scope="session")
def zoo(tmp_path_factory) -> Zoo:
    """Tiny models, made when first asked for."""
    return Zoo(tmp_path_factory.mktemp("zoo"))


@pytest.fixture(scope="session")
def model(zoo):
    """A compressor that tests read and do not change: GPT-2 encoder, Llama decoder."""
    return zoo.shared()
