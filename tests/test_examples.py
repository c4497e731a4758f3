"""The scripts of `examples/`, each run as it stands, on tiny models and without a network."""

import io
import json
import logging
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch
from loopback import served
from safetensors.torch import load_file
from test_push import hub  # noqa: F401, a fixture
from tiny_models import SENTENCES, TEXTS
from transformers import AutoModelForCausalLM

from memslots import MemslotsModel, verified
from memslots.making import new_compressor

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs a script of `examples/` with arguments: its global names, and what it printed."""

    def run_script(name: str, *arguments: object) -> tuple[dict, str]:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        names = runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return names, capsys.readouterr().out

    return run_script


@pytest.fixture
def rows(tmp_path):
    """Files with rows to train on."""
    texts, questions = tmp_path / "texts.jsonl", tmp_path / "questions.jsonl"
    long = " ".join(SENTENCES * 8)
    texts.write_text("".join(json.dumps({"text": f"{i}. {long}"}) + "\n" for i in range(4)))
    asked = {"context": TEXTS[1], "question": "Where was it signed?", "answer": "in Lagos"}
    questions.write_text((json.dumps(asked) + "\n") * 4)
    return texts, questions


def test_all_examples_are_run_here():
    source = Path(__file__).read_text("utf-8")
    run = set(re.findall(r'run\(\s*"([a-z_]+\.py)"', source))
    assert run == {path.name for path in EXAMPLES.glob("*.py")}


def test_answer_from_the_hub(run, hub, zoo, tmp_path):  # noqa: F811
    model = zoo.compressor(bundle_decoder=True)
    folder = tmp_path / "pushed"
    model.save_pretrained(folder)
    stored = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
    commit = hub.repository("me/model", stored).branches["main"]
    text = tmp_path / "notes.txt"
    text.write_text(TEXTS[1])
    asked = ["--text", text, "--question", "Where was it?", "--question", "Who owns the maps?"]
    names, printed = run("answer_from_hub.py", "me/model", commit, *asked)
    questions = ["Where was it?", "Who owns the maps?"]
    assert names["answers"] == model.generate(
        context=TEXTS[1], question=questions, max_new_tokens=32
    )
    assert all(f"{q} {a}" in printed for q, a in zip(questions, names["answers"], strict=True))
    assert any(f"/{commit}/" in path for _, path in hub.requests)


def test_an_agent_expands_a_segment(run):
    names, printed = run("expand_tool.py")
    assert "".join(one["text"] for one in names["result"]["segments"]) == names["text"]
    expanded = verified.expanded(names["model"], names["memory"], [0])
    asked = {"question": names["question"], "max_new_tokens": 8}
    assert names["answer"] == names["model"].generate(memory=expanded, **asked)
    assert "effective rate of" in printed


def shown_on(page: str) -> str:
    """What a page says that a script prints."""
    text = (EXAMPLES.parent / "docs" / page).read_text("utf-8")
    (shown,) = re.findall(r"prints:\n\n```text\n(.*?)```", text, re.DOTALL)
    return shown


def test_rag_finds_the_documents_and_answers_from_their_memories(run):
    names, printed = run("rag.py")
    assert names["right"] == 6
    assert names["store"].slot_dtype == "int8"
    assert f"{names['right']} of 6 right" in printed
    assert shown_on("how-to/rag.md") in printed


def test_rag_over_a_folder_compresses_a_text_once(run, tmp_path, monkeypatch):
    folder, store = tmp_path / "texts", tmp_path / "store"
    (folder / "more").mkdir(parents=True)
    (folder / "treaty.txt").write_text("The treaty was signed in Lagos on a rainy day in March.")
    (folder / "more" / "moss.txt").write_text("Carmen Moss is an engineer at Silver Bank.")
    asked = [folder, "Where was the treaty signed?", "What is Carmen Moss?", "--store", store]
    first, printed = run("rag.py", *asked)
    assert [line.split(",")[0].strip() for line in printed.splitlines() if "slots:" in line] == [
        str(folder / "treaty.txt"),
        str(folder / "more" / "moss.txt"),
    ]

    def refuse(*args, **kwargs):
        raise AssertionError("a text that the store has was compressed again")

    monkeypatch.setattr(MemslotsModel, "compress", refuse)
    second, printed_again = run("rag.py", *asked)
    assert printed_again == printed
    assert (len(first["new"]), second["new"]) == (2, [])


def test_train_for_your_llm(run, rows, zoo, tmp_path):
    encoder, decoder = zoo.folder("gpt2", "encoder"), zoo.folder("qwen3", "decoder")
    before = load_file(Path(decoder) / "model.safetensors")
    options = ["--texts", rows[0], "--questions", rows[1], "--output", tmp_path / "made"]
    names, printed = run(
        "train_for_your_llm.py", encoder, decoder, *options, "--steps", 2, "--batch", 2
    )
    assert "(right: in Lagos)" in printed
    assert [len(names[one]) for one in ("texts", "questions")] == [4, 4]
    made = MemslotsModel.from_pretrained(tmp_path / "made")
    fresh = new_compressor(encoder, decoder, compression_rates=[4, 16], segment_length=256)
    assert made.fingerprint == names["model"].fingerprint != fresh.fingerprint
    for name, weight in AutoModelForCausalLM.from_pretrained(decoder).state_dict().items():
        assert torch.equal(made.decoder.state_dict()[name], weight)
    assert all(
        torch.equal(w, before[n]) for n, w in made.decoder.state_dict().items() if n in before
    )


def test_adapt_to_another_llm(run, rows, zoo, tmp_path):
    old = zoo.saved()
    options = ["--questions", rows[1], "--output", tmp_path / "made"]
    second = zoo.folder("qwen3", "decoder")
    names, printed = run(
        "adapt_to_another_llm.py", old, second, *options, "--steps", 2, "--batch", 2
    )
    adapted = names["adapted"]
    assert adapted.fingerprint == names["memory"].fingerprint == zoo.shared().fingerprint
    assert adapted.decoder.config.model_type == "qwen3"
    answer = adapted.generate(
        memory=names["memory"], question="Where was it signed?", max_new_tokens=32
    )
    assert answer in printed


def test_evaluate(run, tmp_path):
    output = tmp_path / "results.json"
    rows = [
        {"id": str(i), "context": text, "question": "Who?", "answers": {"text": [text.split()[0]]}}
        for i, text in enumerate(TEXTS)
    ]
    (tmp_path / "squad-validation.jsonl").write_text("\n".join(map(json.dumps, rows)))
    given = ["--samples", 4, "--data-dir", tmp_path, "--output", output]
    names, printed = run("evaluate.py", *given)
    found = json.loads(output.read_text("utf-8"))
    assert found["samples"] == 4
    seen = {record["condition"] for record in found["records"]}
    assert {"memory", "full", "none", "another", "head", "tail"} <= seen
    (full,) = (
        record
        for record in names["results"]["records"]
        if (record["condition"], record["metric"]) == ("full", "exact_match")
    )
    assert f"full         {full['value']:.3f} " in printed
    assert "| The decoder reads |" in output.with_suffix(".md").read_text("utf-8")


def test_push_then_load_that_commit(run, hub, zoo, tmp_path):  # noqa: F811
    folder = tmp_path / "checkpoint"
    zoo.compressor(bundle_decoder=True).save_pretrained(folder)
    names, printed = run("push.py", folder, "me/mine", "--license", "mit")
    repository = hub.repositories["me/mine"]
    assert repository.private
    assert repository.branches["main"] == names["commit"].oid
    assert b"license: mit" in repository.find("main").files["README.md"]
    assert "model.safetensors" in printed


def test_serve(run):
    handler = logging.StreamHandler(io.StringIO())  # of the program that the server runs inside
    closed = []
    handler.close = lambda: closed.append(True)
    names, printed = run("serve.py")
    assert not closed
    assert names["answer"]["choices"][0]["message"]["content"].strip() == "Mumbai"
    assert names["memory"]["id"] in printed
    assert names["key"] not in printed
    assert shown_on("serving.md") in printed
    assert not names["thread"].is_alive()


def test_langchain_reads_memories(run):
    pytest.importorskip("langchain_core")
    names, printed = run("langchain_memories.py")
    assert [answer.strip() for answer in names["answers"]] == ["Lagos", "Mumbai"]
    assert "moss.txt: " in printed
    assert printed.splitlines()[-1] == "Lagos"


def test_llama_index_reads_memories(run):
    pytest.importorskip("llama_index.core")
    names, printed = run("llama_index_memories.py")
    assert str(names["answer"]) == "Lagos"
    assert printed.splitlines()[-1] == "Mumbai"


def test_the_openai_client_asks_the_gateway(run, monkeypatch):
    from memslots import embedded
    from memslots.serving.engines import TransformersEngine
    from memslots.serving.gateway import Gateway
    from memslots.serving.gateway_settings import GatewaySettings
    from memslots.serving.shelf import ProcessShelf

    model = MemslotsModel.from_pretrained(embedded("tiny"))
    settings = GatewaySettings(api_keys=("secret",))
    gateway = Gateway(model, TransformersEngine(model), ProcessShelf(), settings)
    monkeypatch.setenv("MEMSLOTS_API_KEY", "secret")
    with served(gateway.app()) as url:
        names, printed = run("openai_client.py", "--url", f"{url}/v1")
    assert names["answer"].choices[0].message.content == "Lagos"
    assert "".join(names["parts"]) == names["at_once"].choices[0].message.content == "Lagos"
    assert names["memory"]["id"] in printed


def test_streams_and_async_calls(run):
    names, _ = run("stream_and_async.py")
    expected = names["model"].generate(**names["asked"])
    assert "".join(names["words"]).strip() == names["streamed"] == expected
    assert len([word for word in names["words"] if word]) > 1
    assert names["answers"] == [expected, "Lagos"]
