"""examples/rag.py, run as it stands."""

import runpy
from pathlib import Path


def test_the_rag_example_finds_the_documents_and_answers_from_their_memories(capsys):
    result = runpy.run_path(str(Path(__file__).parents[1] / "examples" / "rag.py"))
    assert result["hits"] == 20
    assert result["right"] >= 18  # of 20
    assert result["store"].slot_dtype == "int8"
    assert "20 of 20 found" in capsys.readouterr().out
