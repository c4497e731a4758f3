"""Commands on terminals that lack a text's characters: those are escaped, and nothing is lost."""

import io
import json
import sys

import pytest

from memslots.cli import main

TEXT = "Ann 住在 São Paulo — 她 27 岁. 😀"


@pytest.fixture(params=["ascii", "cp1252"])
def run(request, monkeypatch, tmp_path):
    """Runs commands beside a text of that name: exit code, and what was shown on both streams."""
    (tmp_path / "文.txt").write_text(TEXT, "utf-8")
    monkeypatch.chdir(tmp_path)

    def run_command(*arguments: str) -> tuple[int, str, str]:
        streams = []
        for name in ("stdout", "stderr"):
            streams.append(io.BytesIO())
            stream = io.TextIOWrapper(streams[-1], request.param, write_through=True)
            monkeypatch.setattr(sys, name, stream)
        code = main(list(arguments))
        # What click prints to an ASCII stream is UTF-8, since it takes ASCII for a wrong setting.
        wide = "utf-8" if request.param == "ascii" else request.param
        out, err = (stream.getvalue().decode(wide) for stream in streams)
        return code, out, err

    return run_command


def test_every_command_shows_what_it_has(run, zoo):
    model = ["--model", zoo.saved(), "--device", "cpu"]
    asked = ["--question", "谁?", "--question", "她 owns 😀?", "--max-new-tokens", "4"]
    code, out, _ = run("ask", "--text", "文.txt", *model, *asked)
    assert (code, "\\u8c01?" in out, "\\U0001f600" in out) == (0, True, True)
    code, out, _ = run("ask", "--text", "文.txt", *model, *asked, "--json")
    assert [one["question"] for one in json.loads(out)["answers"]] == ["谁?", "她 owns 😀?"]
    code, out, err = run("compress", "文.txt", *model, "--output", "记.safetensors", "--keep-text")
    assert (code, "\\u8bb0.safetensors" in out) == (0, True), err
    code, out, err = run("reconstruct", "--memory", "记.safetensors", *model)
    assert (code, bool(out.strip())) == (0, True), err
    code, out, err = run("report", "--memory", "记.safetensors", "--text", "文.txt")
    assert (code, "tokens in" in out) == (0, True), err
    store = ["--store", "店"]
    code, out, err = run("store", "add", "文.txt", *store, *model)
    assert (code, "documents: 1 added" in out, "\\u5e97" in out) == (0, True, True), (out, err)
    for name in ("list", "info", "verify", "compact"):
        code, out, err = run("store", name, *store)
        assert (code, bool(out.strip())) == (0, True), (name, err)
    code, out, err = run("store", "get", "文.txt", *store, "--output", "又.safetensors")
    assert (code, "Memory(1 document" in out) == (0, True), (out, err)


@pytest.mark.parametrize(
    "arguments",
    [
        "ask --model tiny --text 没有.txt --question é",
        "compress 没有.txt --output 记.safetensors",
        "reconstruct --memory 没有.safetensors",
        "report --memory 没有.safetensors",
        "info --model 没有",
        "eval --model 没有 --tasks qa",
        "cram --text 没有.txt --method dense --length 4",
        "card --model 没有 --license apache-2.0",
        "train 没有",
        "store add 没有.txt --store 店",
        "store list --store 没有",
        "store get 没有 --store 没有 --output 记",
        "demo --没有",
    ],
)
def test_every_mistake_is_told(run, arguments):
    code, _, err = run(*arguments.split())
    assert code == 2
    assert err.startswith("error: ")
    assert "\\u6ca1\\u6709" in err
    assert "codec" not in err
