"""Pushing to a Hub on loopback: one commit that loads, or nothing; and no secret leaves."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import yaml
from huggingface_hub import ModelCard
from local_hub import TOKEN, LocalHub
from sentence_encoders import sentence_encoder
from test_cards import bare
from test_remote_code import BLOCKED
from tiny_models import QUESTIONS, TEXTS

from memslots.cli import main
from memslots.configuration import load_recipe
from memslots.hub_cards import push
from memslots.hub_cards.hub_commit import PushError
from memslots.hub_cards.push import push_checkpoint, staged
from memslots.making import new_compressor
from memslots.modeling import MemslotsModel

ANSWERS = {"context": TEXTS[0], "question": QUESTIONS, "max_new_tokens": 5}


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub that this process and, by `environment`, others talk to."""
    server = LocalHub()
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    # transformers keeps one client; older versions make one a call.
    monkeypatch.setattr("transformers.utils.hub._hf_api", None, raising=False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    # Retries wait; here they need not.
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    yield server
    server.close()


@pytest.fixture(scope="module")
def bundled(zoo, tmp_path_factory):
    """A folder with a whole checkpoint, and beside it what must never be published."""
    model = zoo.compressor(bundle_decoder=True)
    folder = tmp_path_factory.mktemp("bundled") / "finetune_qa"
    model.save_pretrained(folder)
    (folder / "checkpoints" / "checkpoint-1").mkdir(parents=True)
    for name in ("optimizer.pt", "training_args.bin", ".env", "checkpoints/checkpoint-1/rng.pth"):
        (folder / name).write_bytes(b"private")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(load_recipe("pcc_lite")))
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    return model, folder


FRESH = """
import json, sys
import torch
torch.set_num_threads(1)
from transformers import AutoModel, AutoProcessor
repo, revision, given = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
model = AutoModel.from_pretrained(repo, trust_remote_code=True, revision=revision)
print("RESULT" + json.dumps([model.generate(**given), model.fingerprint]))
"""


@pytest.mark.timeout(600)
def test_push_then_load_in_a_fresh_process(hub, bundled, tmp_path):
    model, folder = bundled
    made = push_checkpoint(folder, "me/model")
    repository = hub.repositories["me/model"]
    assert [commit.title for commit in repository.commits[1:]] == ["Upload memslots checkpoint"]
    assert made.oid == repository.branches["main"]
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("HF_")},
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    environment.pop("PYTHONPATH", None)
    run = subprocess.run(
        [sys.executable, "-I", "-c", BLOCKED + FRESH, "me/model", made.oid, json.dumps(ANSWERS)],
        cwd=tmp_path,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    found = json.loads(run.stdout.rpartition("RESULT")[2])
    assert found == [model.generate(**ANSWERS), model.fingerprint]
    assert TOKEN not in run.stdout + run.stderr


def test_one_commit_holds_all_and_nothing_else(hub, bundled):
    _, folder = bundled
    push_checkpoint(folder, "me/model")
    repository = hub.repositories["me/model"]
    files = repository.find("main").files
    code = {
        path.name for path in Path(push.memslots.modeling.__file__).parent.glob("*_memslots.py")
    }
    assert code <= set(files)
    rest = set(files) - code - {".gitattributes"}
    assert {
        "config.json",
        "model.safetensors",
        "README.md",
        "handler.py",
        "sent_memories.py",
    } <= rest
    assert {"processor_config.json", "tokenizer.json", "encoder_tokenizer/tokenizer.json"} <= rest
    assert {"decoder/generation_config.json", "recipe.yaml"} <= rest
    known = {"README.md", "handler.py", "sent_memories.py", "recipe.yaml"}
    assert not [n for n in rest - known if not n.endswith((".json", ".safetensors", ".jinja"))]
    assert "model.safetensors" in repository.lfs
    assert b"private" not in files.values()
    # The card knows its repository and its recipe's stage, and keeps the licence.
    card = ModelCard(files["README.md"].decode())
    assert card.data.license == "mit"
    assert '"me/model"' in card.text
    assert "- Stage finetune_qa" in card.text
    assert "`handler.py` is here" in card.text
    # No folder of this machine is named anywhere.
    home = str(folder.parents[1])
    for name, content in files.items():
        assert home.encode() not in content, name
        assert TOKEN.encode() not in content, name


def test_what_is_told_of_the_training_travels(bundled, tmp_path):
    model, folder = bundled
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / "recipe.yaml").unlink()
    told = {
        "curve.jsonl": '{"step": 5, "seen": 640, "held out": {"r2/64": [0.2, 0.9]}}\n',
        "training.json": '{"data": ["books"], "runs": ["640 tokens on a CPU"]}',
        "NOTICE": "whose data it was trained on",
    }
    for name, text in told.items():
        (tmp_path / "copy" / name).write_text(text)
    with staged(tmp_path / "copy", "me/model", model) as (_, files):
        sent = {file.name: file.path for file in files}
        assert {name: sent[name].read_text("utf-8") for name in told} == told
        card = sent["README.md"].read_text("utf-8")
    assert "- Data: books.\n- Runs: 640 tokens on a CPU.\n- Length: 5 steps" in card


def test_second_push_takes_away_what_the_first_left(hub, bundled):
    _, folder = bundled
    old = {"model-00001-of-00002.safetensors": b"x", "old_memslots.py": b"x", "notes.md": b"kept"}
    hub.repository("me/model", old)
    push_checkpoint(folder, "me/model")
    files = hub.repositories["me/model"].find("main").files
    assert not {"model-00001-of-00002.safetensors", "old_memslots.py"} & set(files)
    assert files["notes.md"] == b"kept"
    assert len(hub.repositories["me/model"].commits) == 2


def test_private_branch_and_pull_request(hub, bundled):
    _, folder = bundled
    push_checkpoint(folder, "me/model", private=True, revision="next")
    repository = hub.repositories["me/model"]
    assert repository.private
    assert set(repository.find("main").files) == {".gitattributes"}
    assert "model.safetensors" in repository.find("next").files
    made = push_checkpoint(folder, "me/model", create_pr=True)
    assert made.pr_url.endswith("/discussions/1")
    assert set(repository.find("main").files) == {".gitattributes"}
    assert "model.safetensors" in repository.find("refs/pr/1").files


@pytest.mark.parametrize(
    "request_line",
    ["api/repos/create", "validate-yaml", "preupload", "objects/batch", "PUT /lfs", "verify",
     "/commit/main"],
)  # fmt: skip
def test_503_is_tried_again(hub, bundled, request_line):
    hub.fail(request_line, 503, times=2)
    push_checkpoint(bundled[1], "me/model")
    assert all(left == 0 for _, _, left in hub.failures)
    assert len(hub.repositories["me/model"].commits) == 2


@pytest.mark.parametrize("status", [500, 403])
def test_a_failed_upload_leaves_no_commit(hub, bundled, status):
    hub.fail("PUT /lfs", status, times=1000)
    with pytest.raises(PushError, match="nothing was committed"):
        push_checkpoint(bundled[1], "me/model")
    repository = hub.repositories["me/model"]
    assert [commit.title for commit in repository.commits] == ["initial commit"]
    assert not any("/commit/" in path for _, path in hub.requests)


def test_a_commit_whose_answer_is_lost_is_not_made_twice(hub, bundled):
    hub.lose_answer_of = "commit"
    with pytest.raises(PushError, match="changed meanwhile"):
        push_checkpoint(bundled[1], "me/model")
    assert len(hub.repositories["me/model"].commits) == 2


def test_no_hub_is_one_clear_error(bundled, hub):
    hub.server.shutdown()
    hub.server.server_close()
    with pytest.raises(PushError, match=r"making the repository failed 5 times"):
        push_checkpoint(bundled[1], "me/model")


def test_wrong_token_is_refused_and_not_shown(hub, bundled, monkeypatch, capsys, caplog):
    monkeypatch.setenv("HF_TOKEN", "hf_wrongSecret")
    assert main(["push", "--model", str(bundled[1]), "--repo", "me/model"]) == 2
    captured = capsys.readouterr()
    assert "401" in captured.err
    assert "hf_wrongSecret" not in captured.out + captured.err + caplog.text
    assert not hub.repositories


# -- from Python -----------------------------------------------------------------------------------


def pushed(hub, name):
    """The files of the one commit after the first, and its title."""
    (commit,) = hub.repositories[name].commits[1:]
    return commit.files, commit.title


def test_push_to_hub_of_a_model(hub, bundled):
    model, _ = bundled
    model.push_to_hub("me/model", private=True, commit_message="From Python", tags=["mine"])
    files, title = pushed(hub, "me/model")
    assert title == "From Python"
    assert hub.repositories["me/model"].private
    assert {"handler.py", "model.safetensors", "modeling_memslots.py"} <= set(files)
    card = ModelCard(files["README.md"].decode())
    assert card.data.tags[0] == "memslots"
    assert card.data.tags[-1] == "mine"
    assert '"me/model"' in card.text


def test_save_pretrained_pushes_on_request(hub, bundled, tmp_path):
    bundled[0].save_pretrained(tmp_path / "c", push_to_hub=True, repo_id="me/other")
    assert "handler.py" in pushed(hub, "me/other")[0]


def test_a_local_decoder_is_refused_before_anything_is_sent(hub, zoo):
    with pytest.raises(ValueError, match="a path on this disk"):
        zoo.shared().push_to_hub("me/model")
    assert hub.requests == []


def test_without_the_package_a_model_pushes_itself(hub, bundled, monkeypatch):
    monkeypatch.setattr("memslots.modeling.checkpoint_memslots.entry_points", lambda group: ())
    bundled[0].push_to_hub("me/plain")
    files, _ = pushed(hub, "me/plain")
    assert {"README.md", "model.safetensors", "pipeline_memslots.py"} <= set(files)
    again = MemslotsModel.from_pretrained("me/plain")
    assert again.generate(**ANSWERS) == bundled[0].generate(**ANSWERS)


@pytest.mark.parametrize("strategy", ["end", "every_save"])
def test_push_of_the_trainer(hub, zoo, tmp_path, strategy):
    from datasets import Dataset

    from memslots.hub_cards.model_card import write_card
    from memslots.trainer.compressor_config import CompressorConfig
    from memslots.trainer.compressor_trainer import CompressorTrainer

    arguments = CompressorConfig(
        output_dir=str(tmp_path / "run"),
        max_steps=1,
        per_device_train_batch_size=1,
        save_strategy="steps",
        save_steps=1,
        report_to="none",
        disable_tqdm=True,
        push_to_hub=True,
        hub_model_id="me/trained",
        hub_strategy=strategy,
        hub_private_repo=True,
    )
    rows = Dataset.from_list([{"text": " ".join(TEXTS)}])
    model = zoo.compressor(bundle_decoder=True)
    trainer = CompressorTrainer(model, arguments, rows, card_writer=write_card)
    trainer.train()
    assert (tmp_path / "run" / "README.md").is_file()
    repository = hub.repositories["me/trained"]
    titles = [commit.title for commit in repository.commits[1:]]
    assert titles == (["Training in progress, step 1"] if strategy == "every_save" else [])
    trainer.push_to_hub()
    files = repository.find("main").files
    assert repository.private
    assert repository.commits[-1].title in ("End of training", *titles)
    assert {"handler.py", "README.md", "model.safetensors", "pipeline_memslots.py"} <= set(files)
    assert "training_args.bin" not in files
    again = MemslotsModel.from_pretrained("me/trained")
    assert again.generate(**ANSWERS) == model.eval().generate(**ANSWERS)
    with pytest.raises(ValueError, match="blocking=True"):
        trainer.push_to_hub(blocking=False)


# -- what is refused -------------------------------------------------------------------------------


def test_local_decoder_is_refused_and_one_on_the_hub_taken(hub, zoo, tmp_path):
    model = zoo.compressor()
    model.save_pretrained(tmp_path / "c")
    with pytest.raises(ValueError, match=r"decoder of this checkpoint is .* a path on this disk"):
        push_checkpoint(tmp_path / "c", "me/model")
    model.config.decoder_name_or_path = "runs/decoder"  # looks like a repository
    model.save_pretrained(tmp_path / "c")
    with pytest.raises(ValueError, match="'runs/decoder' is not a repository on the Hub"):
        push_checkpoint(tmp_path / "c", "me/model")
    assert not hub.repositories
    hub.repository("runs/decoder")
    push_checkpoint(tmp_path / "c", "me/model")
    config = json.loads(hub.repositories["me/model"].find("main").files["config.json"])
    assert config["decoder_name_or_path"] == "runs/decoder"
    assert config["encoder_name_or_path"] is None  # a path of this disk, and not needed


def test_a_local_sentence_encoder_that_is_not_in_the_checkpoint_is_refused(hub, zoo, tmp_path):
    (tmp_path / "sentences").mkdir()
    model = new_compressor(
        sentence_encoder(tmp_path / "sentences"),
        zoo.folder("llama", "decoder"),
        pooling="sentence",
        bundle_encoder=False,
        bundle_decoder=True,
    )
    model.save_pretrained(tmp_path / "c")
    with pytest.raises(ValueError, match=r"encoder of this checkpoint is .* a path on this disk"):
        push_checkpoint(tmp_path / "c", "me/model")
    assert not hub.repositories


def test_a_checkpoint_that_does_not_load_is_refused(hub, bundled, tmp_path):
    def broken(name, change):
        folder = tmp_path / name
        shutil.copytree(bundled[1], folder)
        change(folder)
        return folder

    cut = broken("cut", lambda f: os.truncate(f / "model.safetensors", 5000))
    gone = broken("gone", lambda f: (f / "model.safetensors").unlink())
    mute = broken("mute", lambda f: (f / "tokenizer.json").unlink())
    for folder in (cut, gone, mute):
        with pytest.raises(ValueError, match="does not load, so it is not pushed"):
            push_checkpoint(folder, "me/model")
    with pytest.raises(ValueError, match=r"has no config\.json"):
        push_checkpoint(tmp_path / "nowhere", "me/model")
    with pytest.raises(ValueError, match="names no repository"):
        push_checkpoint(bundled[1], "me/model/extra")
    assert hub.requests == []


def test_a_recipe_with_paths_stays_here(bundled, tmp_path, caplog):
    shutil.copytree(bundled[1], tmp_path / "c")
    recipe = load_recipe("pcc_lite")
    recipe["compressor"]["decoder"] = "/data/llms/llama"
    (tmp_path / "c" / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    with staged(tmp_path / "c", "me/model") as (_, files):
        assert "recipe.yaml" not in {file.name for file in files}
    assert "left out" in caplog.text


# -- command line ----------------------------------------------------------------------------------


def test_dry_run_lists_and_sends_nothing(hub, bundled, capsys):
    assert main(["push", "--model", str(bundled[1]), "--repo", "me/model", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    weights = (bundled[1] / "model.safetensors").stat().st_size
    assert re.search(rf"model\.safetensors\W+{weights:,}", printed)
    assert "handler.py" in printed
    assert "nothing was sent" in printed
    command = ["push", "--model", str(bundled[1]), "--repo", "me/model", "--dry-run", "--json"]
    assert main(command) == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed["repo"] == "me/model"
    assert listed["files"]["model.safetensors"] == weights
    assert hub.requests == []


def test_command_line(hub, bundled, capsys):
    arguments = [
        "push",
        "--model",
        str(bundled[1]),
        "--repo",
        "me/model",
        "--private",
        "--license",
        "apache-2.0",
    ]
    assert main(arguments) == 0
    captured = capsys.readouterr()
    repository = hub.repositories["me/model"]
    assert repository.private
    assert repository.branches["main"] in captured.out
    assert TOKEN not in captured.out + captured.err
    assert b"license: apache-2.0" in repository.find("main").files["README.md"]
    assert main([*arguments, "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["revision"] == repository.branches["main"]
    assert "me/model" in made["url"]
    hub.fail("PUT /lfs", 403, times=100)
    hub.objects.clear()
    assert main(["push", "--model", str(bundled[1]), "--repo", "me/other"]) == 2
    assert "nothing was committed" in capsys.readouterr().err


def test_card_is_valid_on_the_hub(hub, tmp_path):
    bare(tmp_path).validate()
    with pytest.raises(ValueError, match="bad metadata"):
        ModelCard("---\ntags: [1]\n---\n").validate()


def test_the_hub_answers_ranges(hub, bundled, tmp_path):
    push_checkpoint(bundled[1], "me/model")
    whole = (bundled[1] / "model.safetensors").read_bytes()
    path = huggingface_hub.hf_hub_download("me/model", "model.safetensors")
    assert Path(path).read_bytes() == whole
    session = huggingface_hub.utils.get_session()
    url = hub.url + "/me/model/resolve/main/model.safetensors"
    part = session.get(url, headers={"Range": "bytes=10-19"}, follow_redirects=True)
    assert (part.status_code, part.content) == (206, whole[10:20])
    assert hub.ranges[-1] == "bytes=10-19"


def test_pushed_from_the_hub_again(hub, bundled):
    push_checkpoint(bundled[1], "me/model")
    again = MemslotsModel.from_pretrained("me/model")
    assert again.generate(**ANSWERS) == bundled[0].generate(**ANSWERS)
