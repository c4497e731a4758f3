"""The decoder fine-tuned on plain text, as role play's baseline: made, read, and measured."""

import json

import pytest
import torch
from tiny_models import words
from transformers import AutoModelForCausalLM

from lab.__main__ import lab
from lab.training.finetune_decoder import _encode, finetune_decoder
from memslots.evaluation import example_tasks
from memslots.evaluation.example_tasks import role_play
from memslots.evaluation.likelihood import TargetLoss


def dialogue(i):
    row = {"id": str(i), "context": words(30, i), "question": words(4, 90 + i)}
    return {**row, "answer": "rivers rise", "answers": ["rivers rise"]}


def test_tokens_are_those_of_the_measurement(model, monkeypatch):
    processor = model.processor
    row = dialogue(1)
    encoded = _encode(row, processor, context_tokens=12)
    measured = {}

    def seen(_model, prompts, targets, memory=None):
        measured.update(prompt=prompts[0], target=targets[0])
        return [TargetLoss(1.0, 1)]

    monkeypatch.setattr(example_tasks, "target_losses", seen)
    role_play(model, [row], [], lengths=[12], baselines=("full",))
    answer = measured["target"]
    assert encoded["input_ids"][-len(answer) :] == answer
    assert [label for label in encoded["labels"] if label != -100] == answer
    prompt = measured["prompt"]
    assert encoded["input_ids"][: -len(answer)] == prompt.before + prompt.after


@pytest.mark.parametrize("lora", [None, {"r": 4, "target_modules": "all-linear"}])
def test_it_learns_and_is_one_more_row_of_role_play(zoo, tmp_path, lora):
    compressor = zoo.compressor("gpt2", "llama")
    decoder = AutoModelForCausalLM.from_pretrained(zoo.folder("llama", "decoder"))
    before = {name: tensor.clone() for name, tensor in compressor.decoder.state_dict().items()}
    rows = [dialogue(i) for i in range(8)]
    training = {"use_cpu": True, "max_steps": 4, "learning_rate": 0.02, "warmup_steps": 0}
    training |= {"gradient_accumulation_steps": 1, "per_device_train_batch_size": 8}
    folder = finetune_decoder(decoder, compressor.processor, rows, tmp_path, lora, **training)

    tuned = AutoModelForCausalLM.from_pretrained(folder)
    own = compressor.decoder
    records = role_play(compressor, rows[:3], [4], lengths=[20], finetuned=tuned)
    assert compressor.decoder is own
    assert all(torch.equal(own.state_dict()[name], tensor) for name, tensor in before.items())
    value = {record["condition"]: record["value"] for record in records}
    assert value.keys() == {"full", "finetuned", "none", "memory", "head", "tail", "another"}
    assert value["finetuned"] < 0.5 * value["full"]


def test_from_the_command_line(zoo, tmp_path, capsys):
    checkpoint = zoo.saved()
    rows = [{**dialogue(i), "answers": {"text": ["rivers"], "answer_start": [0]}} for i in range(4)]
    for split in ("train", "validation"):
        (tmp_path / f"squad-{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = ["--data-dir", str(tmp_path)]
    tuned, results = tmp_path / "tuned", tmp_path / "results.json"
    arguments = ["finetune-decoder", checkpoint, str(tuned), "--data", "squad/train"]
    assert lab([*arguments, *data, "--steps", "1", "--whole"]) == 0
    arguments = [
        "eval",
        "--model",
        checkpoint,
        "--tasks",
        "roleplay",
        "--data",
        "roleplay=squad/validation",
    ]
    arguments += ["--rates", "4", "--lengths", "20", "--output", str(results)]
    assert lab([*arguments, *data, "--finetuned-decoder", str(tuned)]) == 0
    written = json.loads(results.read_text())
    assert written["finetuned_decoder"] == str(tuned)
    assert "finetuned" in {record["condition"] for record in written["records"]}
    assert "fine-tuned on such texts" in results.with_suffix(".md").read_text()

    other = zoo.folder("llama", "encoder")  # of another width
    capsys.readouterr()
    assert lab([*arguments, *data, "--force", "--finetuned-decoder", other]) == 2
    assert "hidden_size" in capsys.readouterr().err
    assert lab(["eval", "--model", checkpoint, "--tasks", "qa", "--finetuned-decoder", other]) == 2
    assert "roleplay" in capsys.readouterr().err
