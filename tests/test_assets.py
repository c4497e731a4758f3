"""The embedded checkpoint: small, whole, and with the code of this version."""

from pathlib import Path

import memslots
from memslots import MemslotsModel

ROOT = Path(memslots.__file__).parent
TINY = ROOT / "assets" / "tiny"


def test_its_code_is_the_packages():
    own = {p.name: p.read_text("utf-8") for p in (ROOT / "modeling").glob("*_memslots.py")}
    assert {p.name: p.read_text("utf-8") for p in TINY.glob("*.py")} == own


def test_it_is_small_enough_for_the_repository():
    assert sum(p.stat().st_size for p in TINY.rglob("*") if p.is_file()) < 25_000_000


def test_its_fingerprint_is_the_one_it_states():
    model = MemslotsModel.from_pretrained(TINY)
    stated = model.config.fingerprint
    model._fingerprint = None
    assert model.fingerprint == stated


def test_it_names_no_folder_of_the_machine_that_made_it():
    model = MemslotsModel.from_pretrained(TINY)
    assert model.config.encoder_name_or_path is None
    assert model.config.decoder_name_or_path is None
