"""`memslots train own`: a user's own decoder and documents, limited by time."""

import json
import re
import shutil

import pytest
import torch
from tiny_models import SENTENCES

from memslots import MemslotsModel
from memslots.cli import main
from memslots.configuration.own import minutes_of, own_recipe
from memslots.data.raw_texts import format_of
from memslots.making import new_compressor
from memslots.trainer import time_budget
from memslots.trainer.compressor_trainer import CompressorTrainer
from memslots.trainer.log_line import LogLine
from memslots.trainer.row_sources import Sources
from memslots.trainer.run import run_recipe
from memslots.trainer.source_checks import check_sources
from memslots.trainer.time_budget import TIME_FILE, TimeBudget


@pytest.fixture
def texts(tmp_path):
    file = tmp_path / "notes.txt"
    file.write_text("\n\n".join(" ".join(SENTENCES[i % 3 :]) for i in range(12)), encoding="utf-8")
    return file


def refused(capsys, *arguments):
    assert main(["train", "own", *map(str, arguments)]) == 2
    return capsys.readouterr().err


def small(decoder, texts, minutes):
    recipe = own_recipe(decoder, texts, minutes=4, segment_length=32, encoder_layers=1)
    section = recipe["compressor"]
    section["config"]["encoder_lora"]["r"] = 2
    section["stages"] = [s for s in section["stages"] if s["name"] in ("begin", "read")]
    for stage in section["stages"]:
        stage["minutes"] = minutes
        stage["data"][0]["tokens"] = 8
        stage["training"]["per_device_train_batch_size"] = 2
    section["training"] |= {"use_cpu": True, "disable_tqdm": True, "save_steps": 2}
    return recipe


def test_it_ends_at_the_users_decoder(zoo, texts, tmp_path):
    decoder = zoo.folder("llama", "decoder")
    result = run_recipe(small(decoder, texts, 0.02), tmp_path / "run")
    model = MemslotsModel.from_pretrained(result)
    assert model.config.decoder_name_or_path == decoder
    assert model.config.encoder_layers == 1
    untrained = new_compressor(
        "decoder", decoder, **small(decoder, texts, 1)["compressor"]["config"]
    )
    assert not torch.equal(model.converter.down.weight, untrained.converter.down.weight)
    logged = json.loads((result / "losses.json").read_text())
    assert any("distillation_loss" in line for line in logged)
    assert all("minutes_left" in line for line in logged if "loss" in line)


def test_a_stage_that_is_complete_is_named_and_what_the_recipe_says_otherwise_now(
    zoo, texts, tmp_path, capsys
):
    recipe = small(zoo.folder("llama", "decoder"), texts, 0.01)
    del recipe["compressor"]["stages"][1]
    result = run_recipe(recipe, tmp_path / "run")
    weights = (result / "model.safetensors").read_bytes()
    capsys.readouterr()
    assert run_recipe(recipe, tmp_path / "run") == result
    assert capsys.readouterr().out == "begin: complete already\n"
    recipe["compressor"]["stages"][0]["data"][0]["tokens"] = 16
    recipe["compressor"]["training"]["learning_rate"] = 0.25
    run_recipe(recipe, tmp_path / "run")
    told = capsys.readouterr().out
    assert "with another compressor.training, begin.data; to train it again, remove" in told
    assert str(result) in told
    assert (result / "model.safetensors").read_bytes() == weights


def test_a_stage_that_goes_on_names_what_the_recipe_says_otherwise_now(
    zoo, texts, tmp_path, capsys, monkeypatch
):
    recipe = small(zoo.folder("llama", "decoder"), texts, 60)
    del recipe["compressor"]["stages"][1]
    step = CompressorTrainer.compute_loss

    def killed(trainer, *args, **kwargs):
        if trainer.state.global_step == 3:
            raise KeyboardInterrupt
        return step(trainer, *args, **kwargs)

    monkeypatch.setattr(CompressorTrainer, "compute_loss", killed)
    for rate in (0.01, 0.01, 0.25):
        recipe["compressor"]["training"]["learning_rate"] = rate
        with pytest.raises(KeyboardInterrupt):
            run_recipe(recipe, tmp_path / "run")
        told = capsys.readouterr().out
        assert ("goes on with another compressor.training; to begin it" in told) is (rate == 0.25)
    assert "resuming from step 2" in told
    checkpoints = tmp_path / "run" / "compressor" / "begin" / "checkpoints"
    assert str(checkpoints) in told
    assert (checkpoints / TIME_FILE).is_file()
    shutil.rmtree(checkpoints)  # as told: to begin it again, with all of its time
    assert not list(tmp_path.rglob(TIME_FILE))


def test_documents_may_be_json_lines(zoo, texts, tmp_path, capsys):
    decoder = zoo.folder("llama", "decoder")
    rows = tmp_path / "notes.jsonl"
    rows.write_text(
        "".join(json.dumps({"text": t}) + "\n" for t in texts.read_text().split("\n\n"))
    )
    command = ["train", "own", "--decoder", decoder, "--texts", str(rows), "--budget", "4m"]
    assert main([*command, "--dry-run"]) == 0
    capsys.readouterr()
    recipe = own_recipe(decoder, rows, minutes=4, texts_kind=format_of(rows), encoder_layers=1)
    assert {s["data"][0]["kind"] for s in recipe["compressor"]["stages"]} == {"jsonl", "cloze"}
    sources = Sources(0)
    for stage in recipe["compressor"]["stages"]:
        stage["data"][0].update({"characters": [40, 400]} if stage["name"] == "questions" else {})
        check_sources(stage, stage["training"], sources)
    other = tmp_path / "notes.docx"
    other.write_bytes(b"PK")
    assert "must end in one of" in refused(capsys, "--decoder", decoder, "--texts", other)


def test_a_resumed_stage_has_only_the_rest_of_its_time(tmp_path):
    now = [0.0]
    budget = TimeBudget(1.0, tmp_path, cooldown=0.5, clock=lambda: now[0])

    class State:
        is_world_process_zero = True

    class Control:
        should_training_stop = False

    budget.on_train_begin(None, State, Control)
    now[0] = 20.0
    assert budget.factor() == 1.0
    budget.on_save(None, State, Control)
    assert json.loads((tmp_path / TIME_FILE).read_text()) == {"seconds": 20.0}
    again = TimeBudget(1.0, tmp_path, cooldown=0.5, clock=lambda: now[0])
    again.on_train_begin(None, State, Control)
    now[0] = 45.0
    assert again.spent == 45.0
    assert again.factor() == pytest.approx(0.5)
    assert not again.on_step_end(None, State, Control).should_training_stop
    now[0] = 60.0
    assert again.on_step_end(None, State, Control).should_training_stop


def test_all_processes_stop_by_the_clock_of_the_main_one(tmp_path, monkeypatch):
    class Control:
        should_training_stop = False

    budget = TimeBudget(1.0, tmp_path, clock=lambda: 0.0)
    budget.on_train_begin(None, None, None)
    monkeypatch.setattr(time_budget, "broadcast_object_list", lambda values: [60.5])
    assert budget.on_step_end(None, None, Control).should_training_stop


def test_the_learning_rate_falls_within_the_time(tmp_path):
    now = [0.0]
    budget = TimeBudget(1.0, tmp_path, cooldown=0.5, clock=lambda: now[0])
    budget.on_train_begin(None, None, None)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    now[0] = 45.0
    budget.on_step_begin(None, None, None, optimizer=optimizer)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.5)


def test_a_log_line_says_where_a_stage_stands(zoo, texts, tmp_path, capsys, monkeypatch):
    recipe = small(zoo.folder("llama", "decoder"), texts, 1)
    recipe["compressor"]["stages"] = recipe["compressor"]["stages"][1:]
    (stage,) = recipe["compressor"]["stages"]
    del stage["minutes"]
    stage["training"] |= {"max_steps": 3, "training_rates": [2]}
    recipe["compressor"]["training"] |= {"logging_steps": 1, "save_steps": 1}
    monkeypatch.setattr("memslots.trainer.run.save_whole", _killed)
    with pytest.raises(KeyboardInterrupt):
        run_recipe(recipe, tmp_path / "run")
    lines = capsys.readouterr().out.splitlines()
    found = [line for line in lines if line.startswith("read step")]
    assert [line.split(" | ")[0] for line in found] == [f"read step {n} of 3" for n in (1, 2, 3)]
    told = (
        r"reconstruction \d+\.\d{3} \| completion \d+\.\d{3} \| distillation \d+\.\d{3} \| "
        r"[\d,]+ tokens/s of text \| \d+ min left"
    )
    assert all(re.search(told, line) for line in found)
    with pytest.raises(KeyboardInterrupt):
        run_recipe(recipe, tmp_path / "run")
    assert "read: resuming from step 3" in capsys.readouterr().out


def _killed(*args, **kwargs):
    raise KeyboardInterrupt


def test_a_log_line_of_a_stage_by_time_guesses_its_steps(tmp_path, capsys):
    now = [0.0]
    budget = TimeBudget(2.0, tmp_path, clock=lambda: now[0])
    line = LogLine("read", budget)

    class State:
        is_world_process_zero = True
        global_step = 5

    for callback in (budget, line):
        callback.on_train_begin(None, State, None)
    now[0] = 30.0
    line.on_log(None, State, None, logs={"answer_loss": 2.0})
    line.on_log(None, State, None, logs={"eval_loss": 2.0})
    told = capsys.readouterr().out.splitlines()
    assert told == [
        "read: resuming from step 5",
        "read step 5 of about 20 | answer 2.000 | 2 min left",
    ]


def test_no_room_for_checkpoints_is_told_before_training(zoo, texts, tmp_path, monkeypatch):
    import shutil

    from memslots.trainer.compressor_trainer import CompressorTrainer

    full = shutil._ntuple_diskusage(10**9, 10**9, 1000)
    monkeypatch.setattr("memslots.trainer.saving.shutil.disk_usage", lambda place: full)
    monkeypatch.setattr(CompressorTrainer, "train", None)
    with pytest.raises(OSError, match=r"two checkpoints of this stage take .*Nothing was trained"):
        run_recipe(small(zoo.folder("llama", "decoder"), texts, 1), tmp_path / "run")


def test_a_dry_run_says_what_it_would_do(zoo, texts, capsys):
    decoder = zoo.folder("llama", "decoder")
    command = ["train", "own", "--decoder", decoder, "--texts", str(texts), "--budget", "10m"]
    assert main([*command, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in ("begin", "grow", "read", "questions"))
    assert main([*command, "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert [stage["name"] for stage in plan["stages"]] == ["begin", "grow", "read", "questions"]
    assert all(stage["seconds"] > 0 for stage in plan["stages"])
    assert "prints the plan of --dry-run" in refused(capsys, *command[2:], "--json")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "needs --decoder and --texts"),
        (["--decoder", "x", "--texts", "missing.txt"], "--texts missing.txt does not exist"),
        (["--decoder", "x", "--texts", ".", "--questions", "q.jsonl"], "--questions q.jsonl does"),
        (["--decoder", "x", "--texts", ".", "--budget", "3m"], "3 minutes is too small"),
        (["--decoder", "x", "--texts", ".", "--budget", "soon"], "give 2h, 90m or 1h30m"),
    ],
)
def test_what_is_missing_or_wrong_is_said_before_anything_loads(capsys, arguments, message):
    assert message in re.sub(r"\s+", " ", refused(capsys, *arguments))


@pytest.mark.parametrize("target", ["models", "models/notes.txt", "."])
def test_a_folder_that_holds_something_else_is_not_installed_to(
    texts, tmp_path, capsys, monkeypatch, target
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "notes.txt").write_text("Of years.")
    command = ("--decoder", "nowhere", "--texts", texts, "--install", target)
    assert f"--install {target} is there and is no compressor's folder" in refused(capsys, *command)
    assert (tmp_path / "models" / "notes.txt").read_text() == "Of years."


def test_its_options_belong_to_it(capsys):
    assert main(["train", "pcc_lite", "--decoder", "x"]) == 2
    assert "go with `memslots train own`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("budget", "minutes"),
    [
        *(("2h", 120), ("90m", 90), ("1h30m", 90), ("45", 45), ("0.5h", 30), ("2 h", 120)),
        *(("90min", 90), ("2hours", 120), ("1h 30m", 90), ("2H", 120), ("5 minutes", 5)),
    ],
)
def test_budgets_are_read_as_people_write_them(budget, minutes):
    assert minutes_of(budget) == minutes
