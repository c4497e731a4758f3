"""The README's first Python block; tests/test_smollm2.py runs it."""

from lab.smol.shown import README, readme_block, shown


def test_its_first_python_block_is_on_the_first_screen():
    block = readme_block()
    before = README.read_text("utf-8").partition(block)[0]
    assert before.count("\n") < 20
    assert "src/" not in block
    assert len(shown(block)) >= 4
