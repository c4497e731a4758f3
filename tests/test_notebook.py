"""The notebook's cells, run in order as a kernel runs them, on a tiny LLM and for a few seconds."""

import ast
import json
from pathlib import Path

import pytest
from tiny_models import SENTENCES, TEXTS

from memslots import MemslotsModel

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "examples" / "first_contact.ipynb"


@pytest.fixture(scope="module")
def notebook() -> dict:
    return json.loads(NOTEBOOK.read_text("utf-8"))


def codes(notebook: dict) -> list[dict]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_it_is_kept_without_outputs_and_opens_in_jupyter(notebook):
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids)
    for cell in notebook["cells"]:
        assert cell["cell_type"] in ("code", "markdown")
        assert isinstance(cell["source"], list)
        assert "".join(cell["source"]).strip()
    for cell in codes(notebook):
        assert (cell["outputs"], cell["execution_count"]) == ([], None)
        ast.parse("".join(cell["source"]))  # no magics: any kernel runs it, and so does this test


def test_its_cells_run(notebook, zoo, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rows = [
        {
            "id": str(i),
            "context": f"{i}. {TEXTS[i % len(TEXTS)]}",
            "question": "Where was it signed?",
            "answers": {"text": [SENTENCES[0].split()[-1]]},
        }
        for i in range(24)
    ]
    (tmp_path / "squad-train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    decoder = zoo.folder("llama", "decoder")
    names: dict = {}
    for cell in codes(notebook):
        exec(compile("".join(cell["source"]), str(NOTEBOOK), "exec"), names)
        if "parameters" in cell["metadata"].get("tags", []):
            assert names["MINUTES"] == 10
            names |= {"DECODER": decoder, "MINUTES": 3 / 60, "DATA_DIR": tmp_path, "BATCH": 4}
    said = capsys.readouterr().out
    assert "In which city does the person live? Lagos\nHow old is the person? 34\n" in said
    # Of the embedded checkpoint's own demonstration: the slots are read, the control says nothing.
    assert names["score"]["memory, rate 4"] >= 5
    control = [n for name, n in names["score"].items() if name.startswith("control")]
    assert max(control) <= 1
    assert names["trainer"].state.global_step > 1
    assert names["after"] < names["before"]
    assert MemslotsModel.from_pretrained("my_compressor").fingerprint == names["kept"].fingerprint
    assert f"then {names['after']:.2f}" in said
