"""CompressorTrainer: the traps of SFTTrainer, and what must not change while training."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from tiny_models import words
from transformers import TrainerCallback

from memslots import MemslotsModel
from memslots.modeling.layout_memslots import ANSWER, COMPLETION, RECONSTRUCTION
from memslots.trainer.collator import CompressorCollator
from memslots.trainer.compressor_config import CompressorConfig
from memslots.trainer.compressor_trainer import CompressorTrainer
from memslots.trainer.saving import last_checkpoint


def qa_rows(n=8):
    return [
        {
            "text": None,
            "context": words(12, i),
            "question": ["Where?", "Who was it?"],
            "answer": [words(1, 50 + i), words(2, 70 + i)],
        }
        for i in range(n)
    ]


def text_rows(n=8):
    return [
        {"text": words(40 + i, 100 + i), "context": None, "question": None, "answer": None}
        for i in range(n)
    ]


def mixed():
    pairs = zip(text_rows(), qa_rows(), strict=True)
    return Dataset.from_list([row for pair in pairs for row in pair])


@pytest.fixture
def compressor(zoo):
    return zoo.compressor("qwen3", "llama", compression_rates=[4, 8], segment_length=16)


def settings(folder, **given):
    given = {
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "completion_length": 12,
        **given,
    }
    return CompressorConfig(str(folder), **given)


def weights(model, own=True):
    return {
        k: v.clone() for k, v in model.state_dict().items() if k.startswith("decoder.") is not own
    }


def fresh(zoo, tmp_path):
    """Two equal compressors can be made from one saved."""
    folder = tmp_path / "start"
    if not folder.exists():
        model = zoo.compressor("qwen3", "llama", compression_rates=[4, 8], segment_length=16)
        model.save_pretrained(folder)
    return MemslotsModel.from_pretrained(folder)


def first_gradients(zoo, tmp_path, rows, **given):
    """Gradients of the first optimizer step, over however many batches it takes."""
    model = fresh(zoo, tmp_path)
    seen = {}

    class Watched(CompressorTrainer):
        def _clip_grad_norm(self, wrapped):
            for name, parameter in model.named_parameters():
                if parameter.grad is not None:
                    seen[name] = parameter.grad.clone()
            return super()._clip_grad_norm(wrapped)

    trainer = Watched(
        model,
        settings(tmp_path / "out", max_steps=1, max_grad_norm=1e9, **given),
        Dataset.from_list(rows),
    )
    trainer.train()
    assert seen, "the Trainer no longer clips in _clip_grad_norm: look at the gradients elsewhere"
    return seen, trainer


def test_training_moves_the_compressor_and_leaves_the_decoder_bit_identical(compressor, tmp_path):
    decoder, own = weights(compressor, own=False), weights(compressor)
    CompressorTrainer(compressor, settings(tmp_path), mixed()).train()
    after = compressor.state_dict()
    assert all(torch.equal(after[k], v) for k, v in decoder.items())
    for part in ("encoder.", "converter.", "memory_tokens", "markers"):
        assert any(not torch.equal(after[k], v) for k, v in own.items() if k.startswith(part)), part
    assert not compressor.decoder.training


@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_torch_fused"])
def test_training_changes_the_fingerprint(zoo, tmp_path, optim):
    """Fused optimizers change weights without raising their version counters."""
    model = fresh(zoo, tmp_path)  # loaded: it trusts the fingerprint that its checkpoint states
    before = model.fingerprint
    CompressorTrainer(model, settings(tmp_path / "out", optim=optim), mixed()).train()
    model.save_pretrained(tmp_path / "trained")
    stated = MemslotsModel.from_pretrained(tmp_path / "trained").fingerprint
    model._fingerprint = None
    assert before != stated == model.fingerprint


def test_the_loss_depends_on_the_context(compressor, tmp_path):
    trainer = CompressorTrainer(compressor, settings(tmp_path), mixed())
    batch = next(iter(trainer.get_train_dataloader()))
    changed = {**batch, "segment_input_ids": batch["segment_input_ids"].flip(0)}
    trainer.model.eval()
    with torch.no_grad():
        plain = trainer.compute_loss(trainer.model, batch)
        other = trainer.compute_loss(trainer.model, changed)
    assert abs(plain - other) > 1e-4


def test_a_loss_that_is_no_number_stops_before_it_is_learned(compressor, tmp_path):
    class Spoil(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, **kwargs):
            if state.global_step == 2:
                model.memory_tokens.data[0] = float("nan")

    args = settings(tmp_path, max_steps=4, save_strategy="steps", save_steps=1)
    trainer = CompressorTrainer(compressor, args, mixed(), callbacks=[Spoil()])
    with pytest.raises(FloatingPointError, match=r"not finite at step 2 .*segments begin \["):
        trainer.train()
    kept = MemslotsModel.from_pretrained(tmp_path / "checkpoint-2")
    assert torch.isfinite(kept.compress(words(10)).slots).all()


def test_columns_reach_the_collator(compressor, tmp_path):
    trainer = CompressorTrainer(compressor, settings(tmp_path), mixed())
    assert set(trainer.train_dataset.column_names) == {"text", "context", "question", "answer"}
    batch = next(iter(trainer.get_train_dataloader()))
    assert {row.task for row in batch["batch"].rows} == {RECONSTRUCTION, COMPLETION, ANSWER}


def test_forward_is_the_models_own(compressor, tmp_path):
    trainer = CompressorTrainer(compressor, settings(tmp_path), mixed())
    assert "forward" not in trainer.model.__dict__


@pytest.mark.parametrize("completion_weight", [0.0, 0.25, 1.0])
def test_accumulation_changes_nothing(zoo, tmp_path, completion_weight):
    """Two tasks with unlike target counts in each batch: both counts are the step's."""
    rows = [row for pair in zip(text_rows(4), qa_rows(4), strict=True) for row in pair]
    given = {"completion_weight": completion_weight, "training_rates": [4]}
    whole, _ = first_gradients(zoo, tmp_path, rows, per_device_train_batch_size=8, **given)
    for size in (4, 1):
        parts, _ = first_gradients(
            zoo,
            tmp_path,
            rows,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=8 // size,
            **given,
        )
        assert whole.keys() == parts.keys()
        for name, gradient in whole.items():
            torch.testing.assert_close(parts[name], gradient, atol=2e-6, rtol=1e-3)


@pytest.mark.parametrize("completion_weight", [0.0, 0.25, 1.0])
def test_loss_is_equation_5(compressor, tmp_path, completion_weight):
    args = settings(tmp_path, completion_weight=completion_weight, training_rates=[4])
    trainer = CompressorTrainer(compressor, args, Dataset.from_list(text_rows(4)))
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.model.eval()
    with torch.no_grad():
        loss, outputs = trainer.compute_loss(trainer.model, batch, return_outputs=True)
    reconstruction, completion, _ = outputs.task_losses
    expected = completion_weight * completion + (1 - completion_weight) * reconstruction
    torch.testing.assert_close(loss, expected)
    assert bool(outputs.task_counts[0]) is (completion_weight < 1)
    assert bool(outputs.task_counts[1]) is (completion_weight > 0)


def test_the_rate_is_a_function_of_seed_and_step(compressor, tmp_path):
    trainer = CompressorTrainer(compressor, settings(tmp_path, seed=3), mixed())
    again = CompressorTrainer(compressor, settings(tmp_path, seed=3), mixed())
    drawn = [trainer.rate_of_step(i) for i in range(50)]
    assert drawn == [again.rate_of_step(i) for i in range(50)]
    assert set(drawn) == {4, 8}


def test_reconstruction_share_of_questions(compressor, tmp_path):
    processor = compressor.processor
    for share, low, high in ((0.0, 0, 0), (1.0, 200, 200), (0.3, 40, 80)):
        args = settings(tmp_path, reconstruction_share=share)
        batch = CompressorCollator(processor, args)(qa_rows(200))["batch"]
        contexts = {tuple(r.segments) for r in batch.rows if r.task == ANSWER}
        first = {s[0] for s in contexts}
        shared = sum(r.segments[0] in first for r in batch.rows if r.task == RECONSTRUCTION)
        assert low <= shared <= high, (share, shared)


def test_targets_are_the_decoders_own_tokens(compressor, tmp_path):
    processor = compressor.processor
    args = settings(tmp_path, training_segments=2)
    text = text_rows(1)[0]["text"]
    batch = CompressorCollator(processor, args)([{"text": text}])["batch"]
    spans = processor.segment(text)
    rebuilt = [r for r in batch.rows if r.task == RECONSTRUCTION]
    for row, span in zip(rebuilt, spans[:2], strict=True):
        ids = processor.decoder_text.encode(text[span.start : span.end])
        assert row.target == ids + processor.eos_ids
    (completion,) = [r for r in batch.rows if r.task == COMPLETION]
    following = processor.decoder_text.encode(text[spans[1].end :])
    assert completion.target == following[: args.completion_length]
    assert completion.input_only == 1
    assert completion.segments == [0, 1]


def test_losses_fall_and_are_logged_by_task(compressor, tmp_path):
    args = settings(tmp_path, max_steps=30, learning_rate=3e-3, training_rates=[4])
    trainer = CompressorTrainer(compressor, args, mixed())
    trainer.train()
    logged = [e for e in trainer.state.log_history if "reconstruction_loss" in e]
    assert {"completion_loss", "answer_loss", "reconstruction_loss"} <= set(logged[0])
    assert logged[-1]["answer_loss"] < logged[0]["answer_loss"]


def test_evaluation_gives_a_loss(compressor, tmp_path):
    trainer = CompressorTrainer(compressor, settings(tmp_path), mixed(), eval_dataset=mixed())
    assert trainer.evaluate()["eval_loss"] > 0


def test_a_checkpoint_of_training_loads(compressor, tmp_path):
    args = settings(tmp_path, save_strategy="steps", save_steps=2)
    cards = []
    CompressorTrainer(
        compressor, args, mixed(), card_writer=lambda model, folder: cards.append(folder)
    ).train()
    loaded = MemslotsModel.from_pretrained(tmp_path / "checkpoint-2")
    text = words(20, 5)
    assert torch.equal(loaded.compress(text).slots, compressor.compress(text).slots)
    assert cards
    assert set(cards) == {tmp_path}


SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
from datasets import Dataset
import test_trainer
from memslots import MemslotsModel
from memslots.trainer.compressor_trainer import CompressorTrainer
model = MemslotsModel.from_pretrained({start!r})
args = test_trainer.settings({out!r}, max_steps=6, save_strategy="steps", save_steps=2, seed=1)
trainer = CompressorTrainer(model, args, test_trainer.mixed())
if {slow}:
    from transformers import TrainerCallback
    import time
    class Slow(TrainerCallback):
        def on_step_begin(self, *a, **k):
            time.sleep(0.4)
    trainer.add_callback(Slow())
trainer.train(resume_from_checkpoint={resume!r})
model.save_pretrained({out!r} + "/final")
"""


def test_killed_and_resumed_equals_unbroken(zoo, tmp_path):
    """SIGKILL between two checkpoints; the resumed run ends with the same weights."""
    fresh(zoo, tmp_path)

    def start(out, slow=False, resume=None):
        code = SCRIPT.format(
            tests=str(Path(__file__).parent),
            start=str(tmp_path / "start"),
            out=str(tmp_path / out),
            slow=slow,
            resume=resume,
        )
        return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL)

    unbroken, killed = start("unbroken"), start("killed", slow=True)
    deadline = time.monotonic() + 200
    while (first := last_checkpoint(tmp_path / "killed")) is None and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    assert not (tmp_path / "killed" / "final").exists()
    assert unbroken.wait(240) == 0
    assert start("killed", resume=first).wait(240) == 0
    whole = MemslotsModel.from_pretrained(tmp_path / "unbroken" / "final").state_dict()
    resumed = MemslotsModel.from_pretrained(tmp_path / "killed" / "final").state_dict()
    for name, tensor in whole.items():
        torch.testing.assert_close(resumed[name], tensor, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"question": "a", "answer": "b"}], "'context', 'question' and 'answer'"),
        ([], "empty"),
    ],
)
def test_datasets_that_cannot_be_trained_on(compressor, tmp_path, rows, message):
    with pytest.raises(ValueError, match=message):
        CompressorTrainer(compressor, settings(tmp_path), Dataset.from_list(rows))


def test_settings_that_cannot_be(compressor, tmp_path):
    with pytest.raises(ValueError, match="completion_weight"):
        settings(tmp_path, completion_weight=1.5)
    with pytest.raises(ValueError, match="remove_unused_columns"):
        settings(tmp_path, remove_unused_columns=True)
    with pytest.raises(ValueError, match="label_smoothing_factor"):
        settings(tmp_path, label_smoothing_factor=0.1)
    with pytest.raises(ValueError, match="rate 5"):
        CompressorTrainer(compressor, settings(tmp_path, training_rates=[5]), mixed())
    with pytest.raises(TypeError, match="CompressorConfig"):
        CompressorTrainer(compressor, None, mixed())


def test_no_decoder_is_said_before_training(zoo, tmp_path):
    fresh(zoo, tmp_path)
    bare = MemslotsModel.from_pretrained(tmp_path / "start", load_decoder=False)
    with pytest.raises(ValueError, match="attach_decoder"):
        CompressorTrainer(bare, settings(tmp_path), mixed())


def test_packed_questions_are_the_same_targets_in_one_row(compressor, tmp_path):
    processor = compressor.processor
    rows = qa_rows(3)
    apart = CompressorCollator(processor, settings(tmp_path))(rows)["batch"]
    packed = CompressorCollator(processor, settings(tmp_path, pack_questions=True))(rows)["batch"]
    assert torch.equal(apart.target_counts(), packed.target_counts())
    answers = [row for row in packed.rows if row.task == ANSWER]
    assert len(answers) == len(rows)
    wanted = [i for answer in rows[0]["answer"] for i in processor.answer_ids(answer)]
    assert [label for label in answers[0].target_labels() if label >= 0] == wanted


def test_the_first_packed_question_is_answered_as_alone(compressor, tmp_path):
    """Nothing that follows an answer can change its loss."""
    losses = []
    for packed in (False, True):
        args = settings(tmp_path, pack_questions=packed, reconstruction_share=0.0)
        row = qa_rows(1)[0]
        collated = CompressorCollator(compressor.processor, args)([row])
        batch = collated["batch"]
        first = batch.rows[0]
        if packed:
            kept = len(compressor.processor.answer_ids(row["answer"][0]))
            first.predicted = [i < kept for i in range(len(first.target))]
        slots = batch.slots(4)
        laid_out = compressor.processor.lay_out([first], slots)
        with torch.no_grad():
            output = compressor.eval()(
                segment_input_ids=collated["segment_input_ids"],
                segment_attention_mask=collated["segment_attention_mask"],
                segment_rates=torch.full((len(slots),), 4),
                **laid_out,
            )
        losses.append(output.loss)
    torch.testing.assert_close(losses[0], losses[1])
