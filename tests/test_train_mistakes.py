"""`memslots train` on bad input: exit code 2 and one line that says what is wrong."""

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from datasets import Dataset, DatasetDict
from peft import LoraConfig
from test_pcc_recipes import small
from test_trainer import qa_rows, settings
from tiny_models import words

from memslots.cli import main
from memslots.trainer.compressor_trainer import CompressorTrainer
from memslots.trainer.row_sources import Sources
from memslots.trainer.source_checks import check_sources
from memslots.trainer.stage_data import stage_dataset

ROWS = Path(__file__).parent / "data_rows"


def lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def one_stage(zoo, name, **source):
    recipe = small("pcc_lite", zoo)
    section = recipe["compressor"]
    section["stages"] = [stage for stage in section["stages"] if stage["name"] == name]
    section["stages"][0].pop("after", None)
    section["stages"][0]["data"][0].update(source)
    return recipe


def mistake(recipe, folder, capsys, *options):
    """The line on stderr for a recipe that must be refused."""
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe))
    (folder / "data").mkdir(exist_ok=True)
    capsys.readouterr()
    arguments = ["--data-dir", str(folder / "data"), "--output", str(folder / "run"), *options]
    assert main(["train", str(file), *arguments]) == 2
    err = capsys.readouterr().err
    own = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(own) == 1, err
    assert "Traceback" not in err
    return own[0]


@pytest.mark.parametrize(
    ("stage", "file", "content", "message"),
    [
        ("finetune_qa", "squad-train.jsonl", "", "squad/train is empty"),
        (
            "finetune_qa",
            "squad-train.jsonl",
            lines({"id": "1", "context": "A."}),
            "SQuAD 2.0 needs id + context",
        ),
        ("finetune_qa", "other.jsonl", lines({"id": "1"}), "holds no file of SQuAD"),
        ("pretrain", "fineweb-train.jsonl", "", "fineweb/train is empty"),
        (
            "pretrain",
            "fineweb-train.jsonl",
            lines({"id": "1", "body": words(90)}),
            "FineWeb needs text",
        ),
        ("pretrain", "fineweb-train.jsonl", lines({"id": "1", "text": "Short."}), "gives no row"),
    ],
)
def test_data_that_cannot_be_trained_on(zoo, tmp_path, capsys, stage, file, content, message):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / file).write_text(content)
    said = mistake(one_stage(zoo, stage), tmp_path, capsys)
    assert message in said


def test_a_segment_longer_than_the_encoders_positions(zoo, tmp_path, capsys):
    recipe = one_stage(zoo, "pretrain")
    (tmp_path / "data").mkdir()
    shutil.copy(ROWS / "fineweb.jsonl", tmp_path / "data" / "fineweb-train.jsonl")
    recipe["compressor"]["config"]["segment_length"] = 600
    said = mistake(recipe, tmp_path, capsys)
    assert "are 750 tokens, but the encoder reads 512" in said


def test_a_loss_that_is_no_number(zoo, tmp_path, capsys, monkeypatch):
    (tmp_path / "data").mkdir()
    shutil.copy(ROWS / "squad.jsonl", tmp_path / "data" / "squad-train.jsonl")
    step = CompressorTrainer.compute_loss

    def spoilt(trainer, *args, **kwargs):
        trainer.model.markers.data[0] = float("nan")
        return step(trainer, *args, **kwargs)

    monkeypatch.setattr(CompressorTrainer, "compute_loss", spoilt)
    said = mistake(one_stage(zoo, "finetune_qa"), tmp_path, capsys)
    assert "the loss is not finite at step 0" in said


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": None}, "row 1 of the training dataset: 'answer' is None"),
        ({"question": ["Where?", None]}, "row 1 of the training dataset: 'question' is"),
        ({"context": None}, "row 1 of the training dataset: 'context' is None"),
        ({"answer": ["one"]}, "2 questions and 1 answers"),
        ({"question": [], "answer": []}, "'question' is empty"),
        ({"context": " \n"}, "row 1 of the training dataset: 'context' is empty or only white"),
        ({"question": ["Where?", ""]}, "row 1 of the training dataset: 'question' is empty or"),
    ],
)
def test_a_row_that_would_stop_training_is_named_before_it_starts(zoo, tmp_path, change, message):
    rows = qa_rows(2)
    rows[1] = {**rows[1], **change}
    with pytest.raises(ValueError, match=re.escape(message)):
        CompressorTrainer(zoo.compressor(), settings(tmp_path), Dataset.from_list(rows))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": None}, "row 1 of the training dataset: 'text' is None, not text"),
        ({"text": "A.", "compress_until": 1.5}, "'compress_until' is 5.0, not a number of char"),
        ({"text": "A.", "compress_until": -1}, "'compress_until' is -1, not a number of char"),
        ({"text": " \n"}, "row 1 of the training dataset: 'text' is empty or only white space"),
        (
            {"text": "  Ann is here.", "compress_until": 2},
            "row 1 of the training dataset: 'text' is empty or only white space",
        ),
    ],
)
def test_a_text_that_would_stop_training_is_named_before_it_starts(zoo, tmp_path, row, message):
    rows = [{"text": "Ann is here.", "compress_until": 5}, row]
    with pytest.raises(ValueError, match=re.escape(message)):
        CompressorTrainer(zoo.compressor(), settings(tmp_path), Dataset.from_list(rows))


@pytest.mark.parametrize("options", [{}, {"distillation_weight": 1.0}, {"pack_questions": True}])
def test_a_row_longer_than_the_decoder_reads_is_named_before_it_starts(zoo, tmp_path, options):
    model = zoo.compressor()
    limit = model.decoder.config.max_position_embeddings
    rows = qa_rows(2)
    args = settings(tmp_path, training_rates=[4], **options)
    fits = limit // 4 if options.get("distillation_weight") else 3 * limit
    rows[1] = {**rows[1], "context": words(fits // 3)}
    CompressorTrainer(model, args, Dataset.from_list(rows))
    rows[1] = {**rows[1], "context": words(5 * limit)}
    named = rf"row 1 of the training dataset .* tokens at rate 4, and the decoder reads {limit}"
    with pytest.raises(ValueError, match=named):
        CompressorTrainer(model, args, Dataset.from_list(rows))


def test_a_row_of_a_stream_is_named_when_it_comes(zoo, tmp_path):
    rows = qa_rows(4)
    rows[3] = {**rows[3], "answer": None}
    stream = Dataset.from_list(rows).to_iterable_dataset()
    trainer = CompressorTrainer(zoo.compressor(), settings(tmp_path), stream)
    with pytest.raises(ValueError, match="'answer' is None"):
        trainer.train()


def test_several_datasets_are_evaluated_by_name(zoo, tmp_path):
    evaluated = {"first": Dataset.from_list(qa_rows(2)), "second": Dataset.from_list(qa_rows(3))}
    trainer = CompressorTrainer(
        zoo.compressor(), settings(tmp_path), Dataset.from_list(qa_rows(2)), evaluated
    )
    assert {"eval_first_loss", "eval_second_loss"} <= set(trainer.evaluate())
    evaluated["second"] = Dataset.from_list([{"other": 1}])
    with pytest.raises(ValueError, match="evaluation second dataset has columns"):
        CompressorTrainer(
            zoo.compressor(), settings(tmp_path), Dataset.from_list(qa_rows(2)), evaluated
        )


def test_a_peft_config_and_several_training_sets_are_refused(zoo, tmp_path):
    model, rows = zoo.compressor(), Dataset.from_list(qa_rows(4))
    lora = LoraConfig(target_modules=["q_proj"], r=2)
    with pytest.raises(ValueError, match=r"frozen decoder.*encoder_lora"):
        CompressorTrainer(model, settings(tmp_path), rows, peft_config=lora)
    assert not any("lora" in name for name, _ in model.named_parameters())
    with pytest.raises(ValueError, match=r"datasets \['test', 'train'\].*dataset\['train'\]"):
        CompressorTrainer(model, settings(tmp_path), DatasetDict(train=rows, test=rows))


@pytest.mark.parametrize(
    "name", ["compute_metrics", "compute_loss_func", "formatting_func", "processing_class"]
)
def test_what_has_no_effect_on_a_compressor_is_refused(zoo, tmp_path, name):
    rows = Dataset.from_list(qa_rows(4))
    with pytest.raises(ValueError, match=f"^{name} has no effect on a compressor: "):
        CompressorTrainer(zoo.shared(), settings(tmp_path), rows, **{name: len})


@pytest.mark.parametrize("change", [{"rows": "2"}, {"file": 3}, {"questions": 1.5}])
def test_an_option_of_a_source_of_another_kind_is_named(tmp_path, change):
    ((name, value),) = change.items()
    stage = {"name": "first", "data": [{"kind": "jsonl", **change}]}
    with pytest.raises(
        ValueError, match=rf"source 1 \(jsonl\): option {name} is {value!r}; it must be "
    ):
        check_sources(stage, {}, Sources())


def test_texts_that_are_too_short_for_a_piece_are_counted(zoo, tmp_path, caplog):
    file = tmp_path / "notes.jsonl"
    file.write_text(lines({"text": words(90)}, *({"text": f"Note {i}."} for i in range(3))))
    source = {"kind": "jsonl", "file": str(file), "tokens": 16}
    assert len(stage_dataset([source], Sources(), zoo.shared().processor)) > 1
    assert "3 of 4 texts are shorter than the `tokens: 16` of a piece" in caplog.text


@pytest.mark.parametrize("options", [{"completion_weight": 1.0}, {"distillation_weight": 1.0}])
@pytest.mark.parametrize("until", [None, 11])
def test_texts_after_which_nothing_or_one_token_follows_do_not_stop_training(
    zoo, tmp_path, options, until
):
    rows = [{"text": "Ann is here.", "compress_until": until}]
    rows += [{"text": words(200, seed=3), "compress_until": None}]
    arguments = settings(tmp_path, max_steps=2, per_device_train_batch_size=1, **options)
    trainer = CompressorTrainer(zoo.compressor(), arguments, Dataset.from_list(rows))
    assert trainer.train().global_step == 2


def test_a_row_that_the_encoder_drops_is_named(zoo, tmp_path):
    rows = [{"context": "\u200b\u200b", "question": "Where?", "answer": "Lagos"}]
    trainer = CompressorTrainer(
        zoo.compressor("bert", "llama"), settings(tmp_path), Dataset.from_list(rows)
    )
    with pytest.raises(ValueError, match=r"row that begins '\\u200b\\u200b': context has no token"):
        trainer.train()
