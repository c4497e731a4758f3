"""The README's first Python block runs as printed."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_first_python_block_runs_as_printed(tmp_path):
    readme = (ROOT / "README.md").read_text("utf-8")
    block = re.search(r"^```python\n(.*?)^```", readme, flags=re.MULTILINE | re.DOTALL)
    assert block, "README.md has no ```python block"
    assert readme[: block.start()].count("\n") < 20
    assert "src/" not in block.group(1)
    run = subprocess.run(
        [sys.executable, "-c", block.group(1)],
        cwd=tmp_path,
        env={**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    printed = run.stdout.strip().splitlines()
    assert printed[0].startswith("Memory(1 document, ")
    assert printed[-1].strip()
