"""Every page of results says which checkpoint it measured, and that is the one that is here."""

import json
import re
from collections import defaultdict
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
            "ablations",
            "capacity_compressors",
            "performance",
            "performance/smollm2",
            "performance/prefix-cache",
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
        trained = r"trained for (them|their tables?) \(`lab/[\w./]+`, seed \d+\)"
        assert re.search(trained, text), page
        assert "do not come with the package" in text
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


def test_the_pages_state_what_smol_repeats():
    page = (ROOT / "docs" / "smollm2.md").read_text("utf-8").partition("\n## Repeating: ")[2]
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| ")]
    right = {cells[0]: f"{float(cells[4].split()[0]):.0f}%" for cells in rows[1:4]}
    fine, coarse = right["2"], right["4"]
    for page in ("README.md", "docs/faq.md"):
        said = (ROOT / page).read_text("utf-8")
        assert f"repeats {fine} of an unseen book's tokens" in said, page
    readme = (ROOT / "README.md").read_text("utf-8")
    assert f"from its slots at rate 2 and {coarse} at rate 4" in readme
    assert f"| {fine} and {coarse} |" in (ROOT / "docs" / "developers.md").read_text("utf-8")


def test_the_faq_says_what_each_rate_costs_and_gives():
    faq = (ROOT / "docs" / "faq.md").read_text("utf-8")
    page = (ROOT / "docs" / "smollm2.md").read_text("utf-8").partition("\n## Repeating: ")[2]
    asked = (ROOT / "docs" / "compare.md").read_text("utf-8").partition("\n## What follows")[0]
    for rate in (2, 4, 8):
        right = re.search(rf"^\| {rate} \|(?: [\d.]+ \|){{3}} ([\d.]+)", page, re.MULTILINE)
        row = rf"^\| memory \| {rate} \|(?: [\d.]+ \|){{3}} (\d+)"
        closed = re.search(row, asked, re.MULTILINE)
        cells = f"| {rate} | {float(right[1]):.0f}% | {closed[1]}% | {1000 // rate} |"
        assert cells in faq
    timed = (ROOT / "docs" / "performance" / "smollm2.md").read_text("utf-8")
    (line,) = re.findall(r"^\| 4,096 \| rate 8 \| (.*) \|$", timed, re.MULTILINE)
    seconds = float(line.split(" | ")[1].replace(",", "")) / 1000
    peak = line.split(" | ")[-1]
    assert f"{seconds:.1f} s for 4,096 tokens at rate 8, and {peak} beside the weights" in faq


def test_the_findings_name_the_longest_length_of_each_start():
    longest = defaultdict(dict)
    for file in (ROOT / "lab" / "capacity" / "cells").glob("search-*-bos-*.json"):
        found = json.loads(file.read_text("utf-8"))
        cell = found["cell"]
        longest[cell["method"], cell["source"]][cell["seed"]] = found["result"]["longest_length"]
    for method in ("mem", "dense"):
        *first, last = [str(n) for _, n in sorted(longest[method, "books"].items())]
        said = f"{', '.join(first)} and {last}"
        for page in ("findings", "developers"):
            assert said in (ROOT / "docs" / f"{page}.md").read_text("utf-8"), page
        assert set(longest[method, "random"].values()) == {32}


def test_the_readme_states_what_the_comparison_found():
    readme = (ROOT / "README.md").read_text("utf-8")
    lines = (ASSETS / "smol" / "curve.jsonl").read_text("utf-8").splitlines()
    seen = json.loads(lines[-1])["seen"]
    assert f"has read {seen / 1e6:.1f} million tokens" in readme
    page = (ROOT / "docs" / "compare.md").read_text("utf-8")
    shares: dict[str, list[int]] = defaultdict(list)  # on questions, then on what follows
    samples = set()
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[0] in ("memory", "cut", "control", "kvpress ExpectedAttention", "kvpress SnapKV"):
            samples.add(int(cells[2]))
            shares[cells[0]].append(int(cells[5].split()[0]))
    memory, cut = shares["memory"], shares["cut"]
    press = shares["kvpress ExpectedAttention"]
    assert f"close {memory[4]}% and {memory[5]}% of the gap at rates 4 and 8" in readme
    assert f"tokens as they have slots {cut[4]}% and {cut[5]}%" in readme
    control = shares["control"]
    assert f"another text's memory {control[4]}% and {control[5]}%" in readme
    asked = f"{memory[1]}% and {memory[2]}% against {cut[1]}% and {cut[2]}%"
    assert f"On questions it is {asked}" in readme
    assert all(of < other for of, other in zip(memory, press, strict=True))
    assert f"does better at every rate ({press[1]}% and {press[2]}% on questions)" in readme
    press = shares["kvpress SnapKV"]
    assert all(of > other for of, other in zip(memory[:3], press[:3], strict=True))
    assert f"SnapKV worse on questions ({press[1]}% and {press[2]}%)" in readme
    (count,) = samples
    assert f"Left {count} questions, right {count} passages" in readme
