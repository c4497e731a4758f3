"""Every page of results says which checkpoint it measured, and that is the one that is here."""

import json
import re
from pathlib import Path

import pytest

from memslots import MemslotsConfig, embedded
from memslots.checkpoints import ASSETS

ROOT = Path(__file__).parents[1]
PAGES = [
    "README.md",
    *(
        f"docs/{name}.md"
        for name in (
            "results",
            "verified",
            "how-to/chat",
            "compare",
            "smollm2",
            "sentence_pools",
            "performance",
            "memory_store",
            "developers",
        )
    ),
]

NAMED = re.compile(r"(?:[Cc]ompressor|checkpoint) `?([0-9a-f]{12})`?( \(an earlier one)?")
"""As pages name a compressor by its fingerprint."""


@pytest.fixture(scope="module")
def fingerprint() -> str:
    return MemslotsConfig.from_pretrained(embedded("tiny")).fingerprint[:12]


@pytest.mark.parametrize("page", PAGES)
def test_it_names_the_checkpoint_that_is_here(page, fingerprint):
    text = " ".join((ROOT / page).read_text("utf-8").split())
    named = NAMED.findall(text)
    if not named:  # what was trained for the page alone
        assert re.search(r"trained for (them|their tables) \(`lab/[\w./]+`, seed \d+\)", text), page
        assert "not carried" in text
    smol = json.loads((ASSETS / "smol" / "config.json").read_text("utf-8"))["fingerprint"][:12]
    for found, earlier in named:
        assert (found in (fingerprint, smol)) != bool(earlier), (page, found)


def test_the_embedded_card_is_of_its_checkpoint(fingerprint):
    assert fingerprint in (Path(embedded("tiny")) / "README.md").read_text("utf-8")


def test_the_readme_states_what_the_card_states():
    card = (Path(embedded("tiny")) / "README.md").read_text("utf-8")
    readme = (ROOT / "README.md").read_text("utf-8")
    row = re.search(r"\| memory, rate 8 \| [\d.]+ \| ([\d.]+%) \|.*", card)
    assert row[0] in (ROOT / "docs" / "developers.md").read_text("utf-8")
    assert f"**{row[1]} of questions right" in readme


def test_the_pages_state_what_the_curve_of_smol_ends_with():
    lines = (ASSETS / "smol" / "curve.jsonl").read_text("utf-8").splitlines()
    held_out = [line["held out"] for line in map(json.loads, lines) if "held out" in line][-1]
    fine, coarse = (f"{held_out[rate][1]:.0%}" for rate in ("r2/64", "r4/64"))
    for page in ("README.md", "docs/faq.md"):
        said = (ROOT / page).read_text("utf-8")
        assert f"repeats {fine} of an unseen book's tokens" in said, page
    assert f"| {fine} and {coarse} |" in (ROOT / "docs" / "developers.md").read_text("utf-8")


def test_the_readme_states_what_the_comparison_found():
    readme = (ROOT / "README.md").read_text("utf-8")
    lines = (ASSETS / "smol" / "curve.jsonl").read_text("utf-8").splitlines()
    seen = json.loads(lines[-1])["seen"]
    assert f"has read {seen / 1e6:.1f} million tokens" in readme
    page = (ROOT / "docs" / "compare.md").read_text("utf-8")
    shares: dict[str, list[int]] = {"memory": [], "cut": []}
    samples = set()
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[0] in shares:
            samples.add(int(cells[2]))
            shares[cells[0]].append(int(cells[5].split()[0]))
    assert len(shares["memory"]) == len(shares["cut"]) == 6  # two tasks at three rates
    worse = all(m < c for m, c in zip(shares["memory"], shares["cut"], strict=True))
    assert ("say less than a text cut to the same length" in readme) == worse
    (count,) = samples
    assert f"Left {count} questions, right {count} passages" in readme
