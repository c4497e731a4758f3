"""push_to_hub sends a checkpoint that loads: code, processor and weights in one commit."""

from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from transformers import AutoModel

from memslots import MemslotsModel

TEXT = "the cat sat on the mat"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub that writes each commit's files into a folder."""
    commits = []

    def create_repo(self, repo_id, **kwargs):
        return SimpleNamespace(repo_id=repo_id)

    def create_commit(self, repo_id, operations, **kwargs):
        folder = tmp_path / "hub" / repo_id
        for operation in operations:
            target = folder / operation.path_in_repo
            target.parent.mkdir(parents=True, exist_ok=True)
            with operation.as_file() as source:
                target.write_bytes(source.read())
        commits.append(folder)

    monkeypatch.setattr(HfApi, "create_repo", create_repo)
    monkeypatch.setattr(HfApi, "create_commit", create_commit)
    monkeypatch.setattr(ModelCard, "load", classmethod(lambda cls, *a, **k: ModelCard("# card")))
    return commits


@pytest.mark.parametrize("bundle", [False, True])
def test_what_is_pushed_loads(zoo, hub, bundle):
    model = zoo.compressor(bundle_decoder=bundle)
    model.push_to_hub("me/compressor")

    (folder,) = hub
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "model.safetensors", "modeling_memslots.py", "README.md"} <= names
    assert "memory_memslots.py" in names
    for loaded in (
        MemslotsModel.from_pretrained(folder),
        AutoModel.from_pretrained(folder, trust_remote_code=True),
    ):
        assert torch.equal(loaded.compress(TEXT).slots, model.compress(TEXT).slots)
        arguments = {"context": TEXT, "question": "the cat", "max_new_tokens": 4}
        assert loaded.generate(**arguments) == model.generate(**arguments)


def test_save_pretrained_pushes_on_request(zoo, hub, tmp_path):
    zoo.compressor().save_pretrained(tmp_path / "compressor", push_to_hub=True, repo_id="me/other")
    assert (hub[-1] / "model.safetensors").is_file()
    assert hub[-1].name == "other"
