"""The tables of `smol` on real text, on a tiny compressor."""

import json

import pytest
from tiny_models import words

from lab.smol import real_text


@pytest.fixture(scope="module")
def books(tmp_path_factory) -> str:
    file = tmp_path_factory.mktemp("books") / "books-validation.jsonl"
    rows = [json.dumps({"text": words(2000, seed)}) for seed in range(2)]
    file.write_text("\n".join(rows))
    return str(file)


def test_passages_are_taken_in_turns_and_evenly(books):
    texts = [words(3000), words(3000, 1)]
    found = real_text.passages(texts, 3)
    assert [len(text) for text in found] == [real_text.PASSAGE_CHARACTERS] * 3
    assert [[found[i] in text for text in texts] for i in range(3)] == [
        [True, False],
        [False, True],
        [True, False],
    ]


@pytest.mark.filterwarnings("ignore:from the slots the decoder gives back")
def test_the_page_says_what_comes_back_beside_the_controls(model, books, tmp_path, monkeypatch):
    monkeypatch.setattr(real_text, "LENGTHS", (32, 64))
    monkeypatch.setattr(real_text, "PASSAGE_CHARACTERS", 150)
    checkpoint = str(tmp_path / "checkpoint")
    model.save_pretrained(checkpoint)
    page = tmp_path / "page.md"
    command = [str(tmp_path / "run"), "--books", books, "--page", str(page)]
    command += ["--model", checkpoint, "--samples", "2"]
    real_text.main(command)
    text = page.read_text()
    for name in ("the full text", "nothing", "memory", "another text's memory (control)"):
        assert f"| {name} |" in text
    assert "times as many tokens as one for all (" in text
    fidelity = json.loads((tmp_path / "run" / "fidelity.json").read_text())
    for record in fidelity:
        assert record["tokens"] > record["slots"] > 0
        assert max(record["right"], record["another"], record["none"]) <= record["tokens"]
    repeated = json.loads((tmp_path / "run" / "repeated.json").read_text())
    for record in repeated:
        if record["text"] == repeated[0]["text"]:
            assert f"> {real_text.one_line(record['repeated'])}\n" in text
        exact = {**record, "counts": real_text.bleu_counts(record["text"], record["text"])}
        assert real_text.bleu([record]) < real_text.bleu([exact]) == pytest.approx(1)
    monkeypatch.setattr(real_text, "measure_fidelity", lambda *_: pytest.fail("ran again"))
    real_text.main(command)
    assert page.read_text() == text
