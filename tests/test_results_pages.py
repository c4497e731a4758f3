"""Every page of results says which checkpoint it measured, and that is the one that is here."""

import re
import tomllib
from pathlib import Path

import pytest

from memslots import MemslotsConfig, embedded

ROOT = Path(__file__).parents[1]
NAV = tomllib.loads((ROOT / "zensical.toml").read_text("utf-8"))["project"]["nav"]
(RESULTS,) = (entry["Results"] for entry in NAV if "Results" in entry)
PAGES = [
    f"docs/{name}" for entry in RESULTS for name in entry.values() if name != "log.md"
]  # the log tells of earlier ones
PAGES += ["README.md", "docs/memory_store.md"]

NAMED = re.compile(r"[Cc]ompressor `?([0-9a-f]{12})`?( \(an earlier one)?")
"""As pages name a compressor by its fingerprint."""


@pytest.fixture(scope="module")
def fingerprint() -> str:
    return MemslotsConfig.from_pretrained(embedded()).fingerprint[:12]


@pytest.mark.parametrize("page", PAGES)
def test_it_names_the_checkpoint_that_is_here(page, fingerprint):
    text = " ".join((ROOT / page).read_text("utf-8").split())
    named = NAMED.findall(text)
    if not named:  # what was trained for the page alone
        assert re.search(r"trained for (them|their tables) \(`lab/[\w./]+`, seed \d+\)", text), page
        assert "not carried" in text
    for found, earlier in named:
        assert (found == fingerprint) != bool(earlier), (page, found)


def test_the_embedded_card_is_of_its_checkpoint(fingerprint):
    assert fingerprint in (Path(embedded()) / "README.md").read_text("utf-8")


def test_the_readme_states_what_the_card_states():
    card = (Path(embedded()) / "README.md").read_text("utf-8")
    readme = (ROOT / "README.md").read_text("utf-8")
    row = re.search(r"\| memory, rate 8 \| [\d.]+ \| ([\d.]+%) \|.*", card)
    assert row[0] in readme
    assert f"**{row[1]} of questions right" in readme
