"""Distillation from the full text: what its loss is, whom it trains, what does not change it."""

import pytest
import torch
from datasets import Dataset
from tiny_models import tell_apart, words

from memslots.making import new_compressor
from memslots.modeling.layout_memslots import RECONSTRUCTION
from memslots.trainer.collator import CompressorCollator
from memslots.trainer.compressor_config import CompressorConfig
from memslots.trainer.compressor_trainer import CompressorTrainer
from memslots.trainer.distillation import teach

ROWS = [
    {"text": words(40, 100), "context": None, "question": None, "answer": None},
    {
        "text": None,
        "context": words(12, 1),
        "question": ["Where?", "Who was it?"],
        "answer": [words(1, 50), words(2, 70)],
    },
    {"text": words(36, 7), "context": None, "question": None, "answer": None},
]


@pytest.fixture
def compressor(zoo):
    model = new_compressor(
        "decoder",
        zoo.folder("llama", "decoder"),
        encoder_layers=1,
        encoder_lora={"r": 2, "alpha": 4, "dropout": 0.0},
        pooling="groups",
        converter_type="residual",
        compression_rates=[2, 4],
        segment_length=16,
    )
    return tell_apart(model)


def trainer_of(model, folder, **options):
    options = {
        "max_steps": 1,
        "per_device_train_batch_size": 3,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "use_cpu": True,
        "completion_length": 12,
        "distillation_weight": 1.0,
        "training_rates": [2],
        **options,
    }
    args = CompressorConfig(str(folder), **options)
    return CompressorTrainer(model, args, Dataset.from_list(ROWS))


def loss_of(trainer, rows, totals=None):
    batch = trainer.data_collator(rows)
    return trainer.compute_loss(trainer.model, batch, True, totals)


@pytest.mark.parametrize("top_k", [1, 3, 11])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_equal_distributions_give_nothing_and_others_more(top_k, temperature):
    torch.manual_seed(0)
    logits = torch.randn(4, 11)
    teacher = teach(logits, top_k, temperature)
    assert teacher.divergence(logits + 3.0).abs() < 1e-5
    assert teacher.divergence(torch.randn(4, 11)) > 0.01


def test_all_tokens_kept_is_the_divergence_of_torch():
    torch.manual_seed(0)
    teacher, student = torch.randn(4, 11), torch.randn(4, 11)
    expected = torch.nn.functional.kl_div(
        student.log_softmax(-1), teacher.log_softmax(-1), reduction="sum", log_target=True
    )
    torch.testing.assert_close(teach(teacher, 99).divergence(student), expected)
    assert teach(teacher, 4).divergence(student) < expected  # told apart less finely


def test_the_teacher_reads_the_text_in_the_same_words(compressor, tmp_path):
    batch = trainer_of(compressor, tmp_path).data_collator(ROWS)["batch"]
    taught = [row for row in batch.rows if row.task != RECONSTRUCTION]
    assert [row.target for row in batch.teacher_rows] == [row.target for row in taught]
    processor = compressor.processor
    asked = batch.teacher_rows[1]
    prompt = processor.prompt(question="Where?", context=ROWS[1]["context"])
    assert not asked.segments
    assert [*asked.prompt.before, *asked.prompt.after] == [*prompt.before, *prompt.after]
    decoded = processor.tokenizer.decode(
        [*batch.teacher_rows[0].prompt.before[1:], *batch.teacher_rows[0].target]
    )
    assert ROWS[0]["text"].startswith(decoded.strip())


def test_a_memory_that_reads_as_the_text_does_has_no_divergence(compressor, tmp_path):
    """At rate 1, untrained slots are the embeddings of the text's own tokens."""
    model = new_compressor(
        "decoder",
        compressor.config.decoder_name_or_path,
        encoder_lora={"r": 2, "alpha": 4, "dropout": 0.0},
        pooling="groups",
        converter_type="residual",
        compression_rates=[1, 2],
        segment_length=16,
        markers="none",
    )
    trainer = trainer_of(model, tmp_path, training_rates=[1])
    _, outputs = loss_of(trainer, ROWS[:1])
    assert outputs.distillation_loss.abs() < 1e-4
    _, coarser = loss_of(trainer_of(model, tmp_path), ROWS[:1])
    assert coarser.distillation_loss > 1e-3


def test_gradients_reach_the_compressor_alone(compressor, tmp_path):
    trainer = trainer_of(
        compressor, tmp_path, completion_weight=1.0, answer_weight=0.0, reconstruction_share=0.0
    )
    loss, outputs = loss_of(trainer, ROWS)
    torch.autograd.backward(loss)
    assert outputs.distillation_loss > 0
    assert all(p.grad is None for p in compressor.decoder.parameters())
    assert all(p.grad is not None for p in compressor.parameters() if p.requires_grad)


def test_one_batch_or_several_give_the_same_gradient(compressor, tmp_path):
    trainer = trainer_of(compressor, tmp_path, reconstruction_share=0.0)
    batches = [trainer.data_collator([row]) for row in ROWS]
    targets = torch.stack([b["batch"].target_counts() for b in batches]).sum(dim=0)

    def gradient(losses):
        compressor.zero_grad()
        for loss in losses:
            loss.backward()
        return {n: p.grad.clone() for n, p in compressor.named_parameters() if p.grad is not None}

    whole = gradient([loss_of(trainer, ROWS)[0]])
    parts = gradient(loss_of(trainer, [row], targets)[0] for row in ROWS)
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-6)


def test_training_brings_the_divergence_down_and_logs_it(compressor, tmp_path):
    decoder = {k: v.clone() for k, v in compressor.decoder.state_dict().items()}
    trainer = trainer_of(compressor, tmp_path, max_steps=8, learning_rate=1e-2)
    trainer.train()
    logged = [x["distillation_loss"] for x in trainer.state.log_history if "distillation_loss" in x]
    assert len(logged) == 8
    assert logged[-1] < logged[0]
    torch.testing.assert_close(dict(compressor.decoder.state_dict()), decoder, rtol=0, atol=0)


def test_without_a_weight_the_text_is_not_read(compressor, tmp_path):
    trainer = trainer_of(compressor, tmp_path, distillation_weight=0.0)
    batch = CompressorCollator(compressor.processor, trainer.args)(ROWS)["batch"]
    assert not batch.teacher_rows
    assert loss_of(trainer, ROWS)[1].distillation_loss is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"distillation_weight": -1.0},
        {"distillation_temperature": 0.0},
        {"distillation_top_k": 0},
    ],
)
def test_settings_that_mean_nothing_are_refused(tmp_path, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        CompressorConfig(str(tmp_path), **wrong)
