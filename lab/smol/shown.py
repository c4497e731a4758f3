"""Writes down what `smol` answers where that is shown: the README's first block, the demonstration.

    python -m lab.smol.shown

Run it after new weights came in (`make smol-shown`): it puts what the block prints under the block,
there and on the documentation's front page, as comments, and the answers of `memslots demo` into
tests/golden/smol_shown.json. Whatever comes out is written, right or wrong; tests/test_smollm2.py
holds all to it.
"""

from __future__ import annotations

import io
import json
import re
from contextlib import redirect_stdout
from pathlib import Path

import torch

from memslots import MemslotsModel, embedded
from memslots.evaluation.demo import article_page, run_demo, shown_rates

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
FRONT_PAGE = ROOT / "docs" / "index.md"
"""Of the documentation, which shows the README's first block."""

SHOWN = ROOT / "tests" / "golden" / "smol_shown.json"
PRINTS = "# prints: "


def readme_block() -> str:
    """The README's first Python block."""
    block = re.search(r"^```python\n(.*?)^```", README.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    if block is None:
        raise ValueError(f"{README} has no ```python block")
    return block[1]


def printed(block: str) -> list[str]:
    """The lines that a block prints, without the empty ones."""
    said = io.StringIO()
    with redirect_stdout(said):
        exec(block, {})
    return [line.strip() for line in said.getvalue().splitlines() if line.strip()]


def shown(block: str) -> list[str]:
    """The lines that a block says it prints."""
    return [
        line.removeprefix(PRINTS) for line in block.splitlines() if line.startswith(PRINTS.strip())
    ]


def demo_answers(model: MemslotsModel) -> dict[str, list[str]]:
    """What the demonstration answers with `smol` in float32, by condition."""
    readings = run_demo(model, article_page(), shown_rates(model), read_back=False)
    return {reading.name: reading.answers or [] for reading in readings}


def main() -> None:
    """Writes both."""
    block = readme_block()
    code = [line for line in block.splitlines() if not line.startswith(PRINTS.strip())]
    lines = [*code, *(PRINTS + line for line in printed(block))]
    for page in (README, FRONT_PAGE):
        text = page.read_text("utf-8").replace(block, "\n".join(lines) + "\n", 1)
        page.write_text(text, encoding="utf-8")
    model = MemslotsModel.from_pretrained(embedded("smol"), dtype=torch.float32)
    answers = json.dumps(demo_answers(model), indent=2, ensure_ascii=False)
    SHOWN.write_text(answers + "\n", encoding="utf-8")
    print("\n".join(lines), answers, sep="\n\n")


if __name__ == "__main__":
    main()
