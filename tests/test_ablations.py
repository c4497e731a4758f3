"""Ablations of a recipe, and the page that sets the small world's figures beside the papers'."""

import copy
import json

import pytest
import yaml

from lab import sources  # noqa: F401, whose kinds are named below
from lab.__main__ import lab
from lab.recipes import lab_recipe, recipe_file
from lab.tables.ablation_report import ablation_table, plot_losses
from lab.tables.ablations import ABLATIONS, ablated, fine_tuning_stage, stage_chain
from lab.tables.quoted import quoted, quoted_cells
from lab.tables.results_page import write_page
from memslots.configuration import load_recipe
from memslots.data import load_rows


@pytest.fixture
def recipe():
    return load_recipe("pcc_lite")


def names(recipe):
    return [stage["name"] for stage in recipe["compressor"]["stages"]]


def test_the_chain_of_a_stage_follows_after(recipe):
    assert [s["name"] for s in stage_chain(recipe, "adapt_qa")] == [
        "warmup", "pretrain", "adapt", "adapt_qa",
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"stage 'nowhere' is not in this recipe.*'warmup'"):
        stage_chain(recipe, "nowhere")


def test_each_ablation_takes_one_thing_out(recipe):
    untouched = copy.deepcopy(recipe)
    target = fine_tuning_stage(recipe)
    assert target == "finetune_qa"
    made = {name: ablated(recipe, name, target) for name in ABLATIONS}
    assert recipe == untouched
    assert names(made["whole"]) == ["warmup", "pretrain", "finetune_qa"]
    assert names(made["no_pretraining"]) == ["finetune_qa"]
    # PCC's warm-up is reconstruction alone.
    assert names(made["no_reconstruction"]) == ["pretrain", "finetune_qa"]
    pretrain, finetune = made["no_reconstruction"]["compressor"]["stages"]
    assert pretrain["training"]["completion_weight"] == 1.0
    assert finetune["training"]["reconstruction_share"] == 0.0
    weights = [
        stage["training"]["completion_weight"]
        for stage in made["no_completion"]["compressor"]["stages"][:2]
    ]
    assert weights == [0.0, 0.0]
    assert made["no_markers"]["compressor"]["config"]["markers"] == "none"
    assert made["one_marker_pair"]["compressor"]["config"]["markers"] == "memory"
    for name, changed in made.items():
        unchanged = name in ("whole", "no_markers", "one_marker_pair")
        assert (
            changed["compressor"]["stages"] == made["whole"]["compressor"]["stages"]
        ) == unchanged


def test_what_cannot_be_ablated_is_said(recipe):
    with pytest.raises(ValueError, match=r"ablation 'no_encoder' is unknown; there are whole"):
        ablated(recipe, "no_encoder", "finetune_qa")
    with pytest.raises(ValueError, match="no pre-training to take out"):
        fine_tuning_stage(lab_recipe("tiny"))


def test_ablate_trains_measures_and_compares(zoo, tmp_path, capsys):
    """The command end to end, and once more without training again."""
    recipe = lab_recipe("small_world")
    section = recipe["compressor"]
    del recipe["decoder"], section["encoder"]
    section["config"] = {"compression_rates": [4], "segment_length": 32}
    section = {
        **section,
        "encoder": zoo.folder("gpt2", "encoder"),
        "decoder": zoo.folder("llama", "decoder"),
    }
    section["training"].update(per_device_train_batch_size=2, use_cpu=True, logging_steps=1)
    section["stages"][0]["data"] = [{"kind": "persona_texts", "rows": 8, "sentences": 8}]
    section["stages"][1]["data"][0]["rows"] = 8
    for stage in section["stages"]:
        stage["training"].update(max_steps=2)
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump({"compressor": section}))
    command = [
        "ablate", str(file), "--only", "whole,no_pretraining,no_completion", "--samples", "3",
        "--data", "qa=personas/test", "--output", str(tmp_path / "out"),
    ]  # fmt: skip
    assert lab(command) == 0
    table = (tmp_path / "out" / "ablations.md").read_text()
    assert "| the whole recipe |" in table
    assert "| 23.51 | 15.96 |" in table  # PCC, table 6
    assert (tmp_path / "out" / "reconstruction_loss.png").is_file()
    results = tmp_path / "out" / "whole" / "results.json"
    written = results.stat().st_mtime_ns
    (tmp_path / "out" / "ablations.md").unlink()
    assert lab(command) == 0
    assert (tmp_path / "out" / "ablations.md").read_text() == table
    assert results.stat().st_mtime_ns == written
    capsys.readouterr()
    assert lab([*command[:-1], str(tmp_path / "other"), "--data", "qa"]) == 2
    assert "must be TASK=SET/SPLIT" in capsys.readouterr().err


def record(task, metric, value, rate=4):
    return {
        "task": task, "data": "personas/test", "condition": "memory", "rate": rate, "length": None,
        "metric": metric, "value": value, "low": value - 0.1, "high": value + 0.1, "n": 9,
        "positions": 12.0,
    }  # fmt: skip


def results_of(value):
    return {
        "records": [record("qa", "f1", value), record("qa", "exact_match", value / 2)],
        "checkpoint": {"encoder": {"parameters": 10}, "decoder": {"parameters": 20}},
        "machine": {"hardware": "2 CPU cores", "torch": "2", "dtype": "float32"},
    }


def test_the_table_sets_ours_beside_the_papers():
    table = ablation_table({"whole": results_of(0.8), "no_pretraining": results_of(0.3)}, 4)
    lines = table.splitlines()
    assert "qa f1, personas/test" in lines[0]
    assert lines[2] == (
        "| the whole recipe | 0.8 (0.7 to 0.9) | 0.4 (0.3 to 0.5) | 49.78 | 37.86 |"
    )


def test_losses_are_drawn_only_where_there_are_any(tmp_path):
    curves = {"whole": [{"step": 1, "reconstruction_loss": 2.0}, {"step": 2, "loss": 1.0}]}
    assert plot_losses(curves, "reconstruction_loss", "t", tmp_path / "a" / "one.png")
    assert (tmp_path / "a" / "one.png").stat().st_size > 1000
    assert not plot_losses(curves, "completion_loss", "t", tmp_path / "two.png")
    assert not (tmp_path / "two.png").exists()


def test_the_page_is_written_from_the_steps_that_are_there(tmp_path):
    with pytest.raises(ValueError, match="holds no results yet"):
        write_page(tmp_path / "runs", tmp_path / "results.md")
    for name in ("layers_1", "layers_2"):
        folder = tmp_path / "runs" / "encoders" / name
        folder.mkdir(parents=True)
        (folder / "results.json").write_text(json.dumps(results_of(0.5)))
    write_page(tmp_path / "runs", tmp_path / "results.md")
    page = (tmp_path / "results.md").read_text()
    assert "## Quality against encoder size" in page
    assert "| 2 layers | 10 | qa f1 | 0.5 | 0.4 to 0.6 | 9 |" in page
    assert "## Rates" not in page
    assert "20 parameters" in page
    assert "it must mean without the context (19.79)" in page
    assert "*Quoted, not measured here: PCC, table 5; " in page


def test_quoted_figures_are_marked_as_such():
    assert quoted_cells("pcc_reconstruction")["cells"][0] == ["4", "100.0"]
    assert quoted("pcc_reconstruction")["rows"][0] == {"rate": 4, "bleu": 100.0}
    with pytest.raises(ValueError, match=r"no table 'none' is quoted; there are pcc_table_6"):
        quoted("none")


def test_personas_are_a_data_set():
    rows = list(load_rows("personas", "test", limit=5, seed=3))
    assert rows == list(load_rows("personas", "test", limit=5, seed=3))
    assert all(row["answer"] in row["context"] for row in rows if not row["answer"].isdigit())
    assert all(row["answers"] == [row["answer"]] for row in rows)
    assert recipe_file("small_world").is_file()
