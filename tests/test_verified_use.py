"""The expand tool, and the command line's ways to verified memories."""

import json

import pytest
from tiny_models import CHAT_TEMPLATE, TEXTS, byte_bpe
from typer.testing import CliRunner

from memslots.cli import app
from memslots.tools import expand, run_expand, segment_list

pytestmark = pytest.mark.filterwarnings("ignore:from the slots the decoder")


def test_the_definition_is_one_that_chat_templates_take():
    tokenizer = byte_bpe(300)
    template = "{% for t in tools %}{{ t.function.name }}{% endfor %}" + CHAT_TEMPLATE
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tools=[expand], chat_template=template, tokenize=False
    )
    assert rendered.startswith("expand")
    assert json.loads(json.dumps(expand)) == expand


def test_calls_are_answered_and_wrong_ones_told(model):
    memory = model.compress(TEXTS[1], rate=8, keep_text=True)
    found = run_expand(model, memory, '{"segments": [1, 0, 1]}')["segments"]
    assert [one["segment"] for one in found] == [1, 0]
    assert found[1]["text"] == TEXTS[1][: memory.segments[0].end]
    deep = "[" * 100_000  # beyond the parser
    for wrong in ("{", "{}", '{"segments": []}', '{"segments": [99]}', '{"segments": ["0"]}', deep):
        assert "wrong arguments" in run_expand(model, memory, wrong)["error"]
    assert len(segment_list(memory).splitlines()) == len(memory.segments)


def test_command_line(zoo, tmp_path):
    zoo.shared()
    text = tmp_path / "text.txt"
    text.write_bytes("Café\r\n 27 maps.\n\n".encode())
    run = CliRunner().invoke
    kept, page = tmp_path / "kept.safetensors", tmp_path / "map.html"
    source = [str(text), "-o", str(kept)]
    made = run(app, ["compress", *source, "--fidelity", "0.9", "--exact", "numbers", "--keep-text"])
    assert made.exit_code == 0, made.output
    assert "effective rate" in made.output
    back = run(app, ["reconstruct", "--memory", str(kept), "--original"])
    assert back.stdout_bytes == text.read_bytes()
    shown = run(
        app, ["report", "--memory", str(kept), "--text", str(text), "--html", str(page), "--json"]
    )
    assert json.loads(shown.stdout)["totals"]["tokens"] > 0
    assert "Café" in page.read_text("utf-8")
    budget = run(app, ["compress", *source, "--force", "--max-slots", "3"])
    assert budget.exit_code == 0, budget.output
    for wrong in (["--fidelity", "2"], ["--exact", "phones"], ["--max-slots", "0"]):
        refused = run(app, ["compress", *source, "--force", *wrong])
        assert refused.exit_code != 0
        assert not refused.stdout or "Error" in refused.output or refused.exception
