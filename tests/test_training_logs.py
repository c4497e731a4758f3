"""What training logs, and that tensorboard and trackio receive it without a network."""

import json
import os
import socket
import sqlite3
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from test_trainer import fresh, mixed, qa_rows, settings, text_rows
from tiny_models import words

from memslots.modeling.memory_memslots import slots_for
from memslots.trainer.compressor_trainer import CompressorTrainer
from memslots.trainer.step_metrics import StepMetrics

LOGGED = ("slots_read", "tokens_per_second", "reconstruction_loss", "answer_loss")


class Clock:
    """Seconds that the test sets."""

    now = 0.0

    def __call__(self):
        return self.now


def test_rates_are_means_over_steps_and_over_time_that_training_took():
    clock = Clock()
    metrics = StepMetrics([8, 4], clock)
    metrics.begin(step=10)
    for rate, losses in ((4, [2.0, 0.0, 9.0]), (4, [4.0, 0.0, 1.0]), (8, [6.0, 0.0, 0.0])):
        counts = torch.tensor([2, 0, 5 if losses[2] else 0])
        metrics.add_losses("train", rate, torch.tensor(losses), counts)
        metrics.add_work(slots_read=6, encoder_tokens=70, decoder_positions=30)
    clock.now = 5.0
    with metrics.paused():
        clock.now = 105.0
    double = metrics.flush("train", 12, lambda tensor: 2 * tensor)  # as two equal processes

    assert double["slots_read"] == 2 * 18 / 2
    assert double["tokens_per_second"] == 2 * 300 / 5
    assert double["text_tokens_per_second"] == 2 * 210 / 5
    assert double["reconstruction_loss"] == pytest.approx(12 / 6)
    assert double["reconstruction_loss_rate_4"] == pytest.approx(6 / 4)
    assert double["reconstruction_loss_rate_8"] == pytest.approx(3)
    assert double["answer_loss"] == pytest.approx(1)
    assert "completion_loss" not in double
    assert "answer_loss_rate_8" not in double

    clock.now = 106.0
    metrics.add_work(6, 0, 10)
    assert metrics.flush("train", 13, lambda tensor: tensor) == {
        "slots_read": 6,
        "tokens_per_second": 10,
        "text_tokens_per_second": 0,
    }
    assert metrics.flush("train", 13, lambda tensor: tensor) == {}  # the summary at the end


@pytest.fixture
def trackio_folder():
    """Where trackio keeps its databases (tests/conftest.py)."""
    import trackio.utils

    folder = Path(os.environ["TRACKIO_DIR"])
    assert folder == trackio.utils.TRACKIO_DIR
    return folder


def test_tensorboard_and_trackio_receive_it_offline(zoo, tmp_path, trackio_folder, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    connected = []
    monkeypatch.setattr(socket.socket, "connect", lambda self, place: connected.append(place))
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    rows = mixed().select(range(8))
    args = {"report_to": ["tensorboard", "trackio"], "project": "offline", "training_rates": [4]}
    args |= {"gradient_accumulation_steps": 2, "reconstruction_share": 0.0}
    model = fresh(zoo, tmp_path)
    trainer = CompressorTrainer(model, settings(tmp_path / "out", **args), rows)
    trainer.train()

    logged = [entry for entry in trainer.state.log_history if "slots_read" in entry]
    assert len(logged) == 2
    # All 8 rows are a step: a text is read once to reconstruct and once to complete, a context
    # by both its questions.
    expected = 0
    for row in rows:
        spans = model.processor.segment(row["text"] or row["context"])
        used = spans if row["context"] else spans[:1]
        expected += 2 * sum(slots_for(len(span.ids), 4) for span in used)
    assert [entry["slots_read"] for entry in logged] == [expected] * 2

    events = EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    for name in LOGGED:
        written = [event.value for event in events.Scalars(f"train/{name}")]
        assert written == pytest.approx([entry[name] for entry in logged], rel=1e-5)

    with sqlite3.connect(trackio_folder / "offline.db") as database:
        found = [json.loads(row[0]) for row in database.execute("select metrics from metrics")]
    for name in LOGGED:
        written = [entry[f"train/{name}"] for entry in found if f"train/{name}" in entry]
        assert written == pytest.approx([entry[name] for entry in logged])
    assert not connected


@pytest.mark.parametrize("column", [None, "length"])
def test_batches_of_like_length_see_every_row_once(compressor, tmp_path, column):
    """Rows reach the collator whole, and grouped by the encoder tokens that they compress."""
    rows = [row for pair in zip(text_rows(48), qa_rows(48), strict=True) for row in pair]
    for i, row in enumerate(rows):
        if row["context"] is not None:
            row["context"] = words(2 + (7 * i) % 29, i)
        if column:
            row[column] = (11 * i) % 96
    args = settings(
        tmp_path,
        train_sampling_strategy="group_by_length",
        per_device_train_batch_size=4,
        training_segments=2,
    )
    dataset = Dataset.from_list(rows)
    trainer = CompressorTrainer(compressor, args, dataset, eval_dataset=dataset)
    assert next(iter(trainer.get_eval_dataloader()))["batch"].rows
    seen, spread, orders = [], [], []
    for epoch in (0.0, 0.5, 1.0):
        trainer.state.epoch = epoch
        order = list(trainer._get_train_sampler())
        lengths = trainer._get_train_sampler().lengths
        orders.append(order)
        assert sorted(order) == list(range(len(rows)))
        batches = [[lengths[i] for i in order[at : at + 4]] for at in range(0, len(order), 4)]
        spread.append(sum(max(batch) - min(batch) for batch in batches) / len(batches))
        seen.append(lengths)
    if column:
        assert seen[0] == [row["length"] for row in rows]
    else:
        processor = compressor.processor
        for row, length in zip(rows, seen[0], strict=True):
            spans = processor.segment(row["text"] or row["context"])
            used = spans if row["context"] else spans[:2]
            assert length == pytest.approx(sum(len(span.ids) for span in used), abs=2)
    assert max(spread) < (max(seen[0]) - min(seen[0])) / 4
    assert orders[0] == orders[1]  # as when an epoch is resumed
    assert orders[0] != orders[2]


@pytest.fixture
def compressor(zoo):
    return zoo.compressor("qwen3", "llama", compression_rates=[4, 8], segment_length=16)
