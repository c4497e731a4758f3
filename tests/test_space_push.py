"""Pushing a Space to a Hub on loopback, and running what was pushed without memslots installed."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from huggingface_hub import HfApi, SpaceCard
from local_hub import TOKEN
from test_push import bundled, hub  # noqa: F401  (fixtures)
from test_remote_code import BLOCKED
from tiny_models import QUESTIONS, TEXTS

from memslots import embedded
from memslots.cli import main
from memslots.hub_cards import push_space as pushing
from memslots.hub_cards import space
from memslots.hub_cards.hub_commit import PushError
from memslots.hub_cards.push import push_checkpoint
from memslots.hub_cards.push_space import push_space, staged_space

ROOT = Path(__file__).parents[1]
SOURCE = Path(space.__file__).parent


@pytest.fixture
def checkpoint(hub, bundled):  # noqa: F811
    """The commit of `me/model` on the Hub."""
    commit = push_checkpoint(bundled[1], "me/model").oid
    hub.requests.clear()
    return commit


def sent(server):
    return [line for line in server.requests if line[0] != "GET" and line[0] != "HEAD"]


def test_one_commit_holds_the_space(hub, checkpoint):  # noqa: F811
    made = push_space("me/demo", "me/model", private=True, title="Ask me", note="Only facts.")
    repository = hub.repositories["spaces/me/demo"]
    assert (repository.sdk, repository.private) == ("gradio", True)
    assert [commit.title for commit in repository.commits[1:]] == ["Upload memslots Space"]
    assert made.oid == repository.branches["main"]
    files = dict(repository.find("main").files)
    del files[".gitattributes"]
    settings = json.loads(files.pop("space.json"))
    assert settings["model"] == "me/model"
    assert settings["revision"] == checkpoint
    assert (settings["title"], settings["note"]) == ("Ask me", "Only facts.")
    card = SpaceCard(files.pop("README.md").decode())
    assert (card.data.sdk, card.data.app_file, card.data.title) == ("gradio", "app.py", "Ask me")
    assert card.data.models == ["me/model"]
    # The rest are the files of this package, all of them and as they are.
    own = {
        path.relative_to(SOURCE).as_posix(): path.read_bytes()
        for path in SOURCE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    own = {name: data for name, data in own.items() if name not in ("__init__.py", "README.md")}
    package = SOURCE.parents[1]
    carried = [package / "__init__.py", package / "chat.py", package / "interruption.py"]
    carried += [*package.glob("modeling/*.py"), *package.glob("verified/*.py")]
    own |= {path.relative_to(package.parent).as_posix(): path.read_bytes() for path in carried}
    assert files == own
    for content in files.values():
        assert TOKEN.encode() not in content
        assert str(ROOT).encode() not in content


def test_the_space_knows_what_its_checkpoint_was_trained_on(hub, checkpoint):  # noqa: F811
    push_space("me/demo", "me/model")
    assert json.loads(settings_of(hub))["trained_on"] == "FineWeb, SQuAD 2.0"
    recipe = Path(embedded(), "recipe.yaml")
    HfApi().upload_file(path_or_fileobj=recipe, path_in_repo=recipe.name, repo_id="me/model")
    push_space("me/demo", "me/model")
    trained_on = json.loads(settings_of(hub))["trained_on"]
    assert trained_on == "generated short biographies, with questions, conversations"


def settings_of(hub):  # noqa: F811
    return hub.repositories["spaces/me/demo"].find("main").files["space.json"]


def test_a_second_push_moves_the_pin_and_takes_away_what_is_gone(hub, checkpoint, bundled):  # noqa: F811
    old = {"memslots_space/old.py": b"x", "notes.md": b"kept"}
    hub.repository("spaces/me/demo", old)
    push_space("me/demo", "me/model")
    bundled[0].push_to_hub("me/model", tags=["new"])
    newer = hub.repositories["me/model"].branches["main"]
    assert newer != checkpoint
    push_space("me/demo", "me/model")
    files = hub.repositories["spaces/me/demo"].find("main").files
    assert json.loads(files["space.json"])["revision"] == newer
    assert "memslots_space/old.py" not in files
    assert files["notes.md"] == b"kept"
    push_space("me/demo", "me/model", revision=checkpoint)
    files = hub.repositories["spaces/me/demo"].find("main").files
    assert json.loads(files["space.json"])["revision"] == checkpoint


def test_dry_run_sends_nothing(hub, checkpoint, capsys):  # noqa: F811
    assert main(["push-space", "--repo", "me/demo", "--model", "me/model", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    size = (SOURCE / "app.py").stat().st_size
    assert re.search(rf"app\.py\W+{size:,}", printed)
    assert "space.json" in printed
    assert "nothing was sent" in printed
    assert sent(hub) == []
    assert "spaces/me/demo" not in hub.repositories


def test_command_line(hub, checkpoint, capsys, caplog):  # noqa: F811
    hub.repositories["me/model"].private = True
    assert main(["push-space", "--repo", "me/demo", "--model", "me/model", "--private"]) == 0
    captured = capsys.readouterr()
    assert "/spaces/me/demo/commit/" in captured.out.replace("\n", "")
    assert "is private: give the Space a secret HF_TOKEN" in caplog.text
    assert TOKEN not in captured.out + captured.err + caplog.text
    assert hub.repositories["spaces/me/demo"].private


def test_503_is_tried_again_and_a_refusal_leaves_no_commit(hub, checkpoint):  # noqa: F811
    hub.fail("/api/spaces/me/demo/commit", 503, times=2)
    push_space("me/demo", "me/model")
    assert len(hub.repositories["spaces/me/demo"].commits) == 2
    hub.fail("/api/spaces/me/other/commit", 500, times=100)
    with pytest.raises(PushError, match="nothing was committed"):
        push_space("me/other", "me/model")
    assert len(hub.repositories["spaces/me/other"].commits) == 1


def test_what_a_space_could_not_load_is_refused(hub, checkpoint, tmp_path):  # noqa: F811
    def refused(message, model="me/model", repo="me/demo", **given):
        with pytest.raises(ValueError, match=message):
            push_space(repo, model, **given)

    refused("no checkpoint 'me/nothing' on the Hub", "me/nothing")
    refused("no checkpoint 'me/model' at revision 'v9'", revision="v9")
    refused("names no repository", repo="me/demo/extra")
    refused("names no repository", str(tmp_path))
    hub.repository("me/llama", {"config.json": b'{"model_type": "llama"}'})
    refused("is a 'llama' model, no memslots checkpoint", "me/llama")
    files = dict(hub.repositories["me/model"].find("main").files)
    config = json.loads(files["config.json"])
    config |= {"bundle_decoder": False, "decoder_name_or_path": "me/decoder"}
    hub.repository("me/named", {**files, "config.json": json.dumps(config).encode()})
    refused("the decoder 'me/decoder' is not a repository on the Hub", "me/named")
    hub.repository("me/decoder")
    with staged_space("me/demo", "me/named"):
        pass
    assert sent(hub) == []


def test_a_folder_is_no_model_of_a_space(hub, tmp_path, monkeypatch):  # noqa: F811
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="is a folder here"):
        push_space("me/demo", "runs")
    assert hub.requests == []


def test_versions_are_those_of_the_tests():
    pins = dict(re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M))
    wanted = dict(re.findall(r"^([\w-]+)==(\S+)$", (SOURCE / "requirements.txt").read_text(), re.M))
    assert set(wanted) == {"torch", "transformers", "safetensors"}
    assert wanted == {name: pins[name] for name in wanted}
    header = yaml.safe_load((SOURCE / "README.md").read_text("utf-8").split("---")[1])
    assert header["sdk_version"] == pins["gradio"]
    assert header["short_description"] == header["short_description"][:60]  # the Hub's limit


# The package of this checkout is hidden; what the Space carries is found.
INSTALLED_IS_HIDDEN = BLOCKED.replace(
    "return None if blocked else find(name, path, target)",
    """found = find(name, path, target)
    here = found is None or not found.origin or found.origin.startswith(os.getcwd())
    return found if here or not blocked else None""",
).replace("import importlib.machinery", "import importlib.machinery, os", 1)

# `python app.py` would run until it is stopped; this is the same, with a question in between.
SCRIPT = """
import json, os, sys, urllib.request
import torch
torch.set_num_threads(1)
sys.path.insert(0, os.getcwd())
import app
from memslots_space import answers
from memslots_space.page import ChatMemory
class Asked(app.Page):
    def serve(self):
        given = json.loads(sys.argv[1])
        *_, document = answers.compress(self.model, given["context"], 4)
        control = self._control(given["context"], 4)
        asked = answers.answer_all(self.model, document, control, given["question"], 5)
        found = {a.source: a.text for a in asked}
        _, url, _ = super().serve(prevent_thread_lock=True, quiet=True)
        html = urllib.request.urlopen(url, timeout=60).read().decode()
        loaded = type(self.model).__module__, ChatMemory.__module__
        import memslots
        titled = self.settings.title in html
        result = [found, self.settings.revision, loaded, titled, memslots.__file__]
        print("RESULT" + json.dumps(result))
        self.blocks.close()
app.Page = Asked
app.main()
"""


@pytest.mark.timeout(600)
def test_the_pushed_space_runs_without_memslots(hub, checkpoint, bundled, tmp_path):  # noqa: F811
    pytest.importorskip("gradio", reason="the page needs memslots[demo]")
    push_space("me/demo", "me/model")
    folder = tmp_path / "space"
    for name, content in hub.repositories["spaces/me/demo"].find("main").files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("HF_")},
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    environment.pop("PYTHONPATH", None)
    asked = {"context": TEXTS[1], "question": QUESTIONS[0]}
    run = subprocess.run(
        [sys.executable, "-I", "-c", INSTALLED_IS_HIDDEN + SCRIPT, json.dumps(asked)],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert run.returncode == 0, run.stderr[-30000:]
    found, revision, loaded, titled, carried = json.loads(
        run.stdout.rpartition("RESULT")[2].splitlines()[0]
    )
    model, _ = bundled
    memory = model.compress(TEXTS[1], rate=4)
    answer = model.generate(memory=memory, question=QUESTIONS[0], max_new_tokens=5)
    assert found["Memory"] == answer
    assert set(found) == {"Memory", "Full text", "Control"}
    assert revision == checkpoint
    assert loaded == ["memslots.modeling.modeling_memslots", "memslots.chat"]
    assert Path(carried).parent == folder / "memslots"
    assert titled
    assert "is not pinned" not in run.stderr


def test_help_names_the_space(capsys):
    assert main(["push-space", "--help"]) == 0
    last = capsys.readouterr().out.strip().rpartition("Example:")[2]
    assert last.split()[:2] == ["memslots", "push-space"]
    assert pushing.SDK == "gradio"
