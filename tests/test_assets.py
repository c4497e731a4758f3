"""The embedded checkpoint: small, whole, and with the code of this version."""

import shutil
from pathlib import Path

import pytest

import memslots
from memslots import MemslotsModel, checkpoints, embedded

MODELING = Path(memslots.__file__).parent / "modeling"


def code_of(folder) -> dict[str, str]:
    return {path.name: path.read_text("utf-8") for path in Path(folder).glob("*_memslots.py")}


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A copy of a package's rooms: two files of code, and weights without them."""
    for name in ("modeling_memslots.py", "memory_memslots.py", "__init__.py"):
        path = tmp_path / "modeling" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"# {name}\n")
    (tmp_path / "assets" / "tiny").mkdir(parents=True)
    (tmp_path / "assets" / "tiny" / "config.json").write_text("{}")
    monkeypatch.setattr(checkpoints, "MODELING", tmp_path / "modeling")
    monkeypatch.setattr(checkpoints, "ASSETS", tmp_path / "assets")
    return tmp_path


def test_its_code_is_the_packages():
    assert code_of(embedded("tiny")) == code_of(MODELING) != {}
    assert not Path(embedded("tiny"), "__init__.py").exists()


def test_a_checkout_lays_the_code_out_again_when_it_changed(package):
    folder = Path(embedded("tiny"))
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "memory_memslots.py",
        "modeling_memslots.py",
    ]
    (package / "modeling" / "modeling_memslots.py").write_text("# changed\n")
    (package / "modeling" / "memory_memslots.py").rename(
        package / "modeling" / "processing_memslots.py"
    )
    assert embedded("tiny") == str(folder)
    assert code_of(folder) == code_of(package / "modeling")


def test_where_the_code_is_right_nothing_is_written(package):
    folder = Path(embedded("tiny"))
    before = {path: path.stat().st_ino for path in folder.iterdir()}
    embedded("tiny")
    assert {path: path.stat().st_ino for path in folder.iterdir()} == before


def test_another_name_says_what_there_is(package):
    with pytest.raises(ValueError, match=r"no embedded checkpoint 'large'; choose from tiny\."):
        embedded("large")
    shutil.rmtree(package / "assets" / "tiny")
    with pytest.raises(ValueError, match="make tiny"):
        embedded("tiny")


def test_it_is_small_enough_for_the_repository():
    files = Path(embedded("tiny")).rglob("*")
    assert sum(path.stat().st_size for path in files if path.is_file()) < 25_000_000


def test_its_fingerprint_is_the_one_it_states():
    model = MemslotsModel.from_pretrained(embedded("tiny"))
    stated = model.config.fingerprint
    model._fingerprint = None
    assert model.fingerprint == stated


def test_it_names_no_folder_of_the_machine_that_made_it():
    model = MemslotsModel.from_pretrained(embedded("tiny"))
    assert model.config.encoder_name_or_path is None
    assert model.config.decoder_name_or_path is None
