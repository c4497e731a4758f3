"""`--literals`: exact strings beside the slots, on every command that compresses a text."""

import json

import pytest

from memslots import Memory
from memslots.cli import main

TEXT = "She lives in Lagos and owns 27 maps. He left on 2024-05-01 with 3 keys."


@pytest.fixture(scope="module")
def checkpoint(zoo, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("literals") / "model"
    zoo.compressor(seed=0, segment_length=96, bundle_decoder=True).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def text(tmp_path) -> str:
    file = tmp_path / "notes.txt"
    file.write_text(TEXT, "utf-8")
    return str(file)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], []),
        (["--literals", "none"], []),
        (["--literals", "numbers"], ["27", "2024", "05", "01", "3"]),
        (["--literals", "dates, numbers"], ["27", "2024-05-01", "3"]),
    ],
)
def test_compress_keeps_what_is_named(checkpoint, text, tmp_path, capsys, given, expected):
    output = tmp_path / "memory.safetensors"
    code = main(["compress", text, "-o", str(output), "--model", checkpoint, *given])
    assert code == 0, capsys.readouterr().err
    memory = Memory.load(output)
    assert [literal.text for own in memory.literals for literal in own] == expected


def test_ask_counts_them(checkpoint, text, capsys):
    asked = ["ask", "--text", text, "-q", "When?", "--model", checkpoint]
    options = ["--max-new-tokens", "3", "--literals", "dates,numbers"]
    assert main([*asked, *options, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["literals"] == 3
    assert main([*asked, *options]) == 0
    assert "and 3 kept verbatim" in " ".join(capsys.readouterr().out.split())


def test_reconstruct_reads_with_them(checkpoint, text, capsys):
    assert main(["reconstruct", "-t", text, "--model", checkpoint, "--literals", "numbers"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["ask", "--text", "x", "-q", "?", "--literals", "names"],
            "names is not a kind of verbatim tokens",
        ),
        (["ask", "--memory", "x", "-q", "?", "--literals", "dates"], "goes with --text"),
        (["reconstruct", "--memory", "x", "--literals", "dates"], "goes with --text"),
        (
            ["compress", "x", "-o", "y", "--literals", ","],
            "nothing is not a kind of verbatim tokens",
        ),
    ],
)
def test_mistakes(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x").write_text(TEXT)
    assert main(arguments) == 2
    assert message in " ".join(capsys.readouterr().err.split())
