"""Reconstruction at some of the trained rates only, and stages with other rows of the same kind."""

import pytest
from datasets import Dataset
from tiny_models import TEXTS

from lab import sources  # noqa: F401, whose kinds are named below
from memslots.modeling.layout_memslots import ANSWER, RECONSTRUCTION
from memslots.trainer import CompressorConfig, CompressorTrainer
from memslots.trainer.stage_data import Sources, stage_dataset

QUESTIONS = [
    {"context": text, "question": "Where?", "answer": f"in {i}"} for i, text in enumerate(TEXTS)
]


def trainer(zoo, folder, rows, **settings):
    args = CompressorConfig(
        output_dir=str(folder), report_to="none", use_cpu=True, save_strategy="no",
        reconstruction_share=1.0, per_device_train_batch_size=2, max_steps=1, **settings,
    )  # fmt: skip
    return CompressorTrainer(zoo.compressor(), args, Dataset.from_list(rows))


def losses_of(one, rate):
    """Task losses of the first batch at `rate`."""
    batch = next(iter(one.get_train_dataloader()))
    one.rate_of_step = lambda step: rate
    one.model.train()
    _, outputs = one.compute_loss(one.model, batch, return_outputs=True)
    return outputs.task_counts


def test_other_rates_learn_the_answers_alone(zoo, tmp_path):
    one = trainer(zoo, tmp_path, QUESTIONS, training_rates=[2, 4], reconstruction_rates=[2])
    at_2, at_4 = losses_of(one, 2), losses_of(one, 4)
    assert at_2[RECONSTRUCTION] > 0
    assert at_4[RECONSTRUCTION] == 0
    assert at_2[ANSWER] == at_4[ANSWER] > 0


def test_by_default_every_rate_reconstructs(zoo, tmp_path):
    one = trainer(zoo, tmp_path, QUESTIONS, training_rates=[2, 4])
    assert losses_of(one, 2)[RECONSTRUCTION] == losses_of(one, 4)[RECONSTRUCTION] > 0


def test_a_batch_of_nothing_else_keeps_its_rows(zoo, tmp_path):
    rows = [{"text": text} for text in TEXTS]
    one = trainer(
        zoo, tmp_path, rows, training_rates=[2, 4], reconstruction_rates=[2], completion_weight=0.0
    )
    assert losses_of(one, 4)[RECONSTRUCTION] > 0


def test_rates_that_are_not_trained_are_refused(zoo, tmp_path):
    with pytest.raises(ValueError, match=r"reconstruction_rates \[8\] .* are \[2, 4\]"):
        trainer(zoo, tmp_path, QUESTIONS, training_rates=[2, 4], reconstruction_rates=[8])


def test_a_sources_own_seed_gives_other_rows(zoo):
    processor = zoo.shared().processor
    source = {"kind": "personas", "rows": 4, "questions": 2}
    first = stage_dataset([source], Sources(), processor)["context"]
    again = stage_dataset([dict(source)], Sources(), processor)["context"]
    other = stage_dataset([{**source, "seed": 1}], Sources(), processor)["context"]
    assert list(first) == list(again)
    assert not set(first) & set(other)
