"""Whether a compressor's decoder reads its slots or guesses the shape of answers, while it trains.

The sentence-pools article's decoder had 94.5% of first tokens right and 0% of answers: it had
learned what answers look like, and read no vector. Only the control (another text's memory) shows
that: an answer that is right with it was guessed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback

from memslots.modeling.layout_memslots import IGNORE, RECONSTRUCTION

if TYPE_CHECKING:
    from memslots.trainer.compressor_trainer import CompressorTrainer

LOGGED = ("first_token_accuracy", "exact_match", "exact_match_others_memory")


class ShortcutCheck(TrainerCallback):
    """Logs three shares of held-out questions every few steps, to wherever the Trainer reports.

    `first_token_accuracy` and `exact_match` with the question's own memory, and
    `exact_match_others_memory`. Greedy decoding gives an answer exactly where each of its tokens is
    the likeliest after the ones before it, so that one forward pass decides, without generating.

    Args:
        trainer: whose model and log are used.
        rows: held-out rows with `context`, `question`, `answer` and `other_context`; the first
            question of each is asked.
        every: optimizer steps between two checks.
        batch_size: rows of a forward pass.
    """

    def __init__(
        self,
        trainer: CompressorTrainer,
        rows: Sequence[dict[str, Any]],
        every: int,
        batch_size: int = 16,
    ):
        if not rows:
            raise ValueError("the shortcut check needs at least one held-out row.")
        if every < 1:
            raise ValueError(f"the shortcut check's steps must be at least 1, got {every}.")
        self.trainer = trainer
        self.every = every
        self.own = [_first_question(row, row["context"]) for row in rows]
        self.others = [_first_question(row, row["other_context"]) for row in rows]
        self.batch_size = batch_size

    def on_step_end(self, args, state, control, **kwargs):
        """Checks after every `every`-th step."""
        if state.global_step % self.every == 0:
            due = control.should_log
            self.check()
            control.should_log = due  # logging would leave out what the Trainer has to log now

    @torch.no_grad()
    def check(self) -> dict[str, float]:
        """Measures now and logs; returns the three shares."""
        model = self.trainer.model
        training = model.training
        model.eval()  # without dropout, so that no random number is drawn either
        try:
            with self.trainer.step_metrics.paused():
                first, exact = self._shares(self.own)
                values = dict(
                    zip(LOGGED, (first, exact, self._shares(self.others)[1]), strict=True)
                )
            self.trainer.log(dict(values))
        finally:
            model.train(training)
        return values

    def _shares(self, examples: list[dict[str, Any]]) -> tuple[float, float]:
        """Of first tokens and of whole answers."""
        model, collator = self.trainer.model, self.trainer.data_collator
        device = model.encoder.device
        rate = min(self.trainer.rates)
        first = exact = 0
        for start in range(0, len(examples), self.batch_size):
            inputs = collator(examples[start : start + self.batch_size])
            batch = inputs["batch"].without(RECONSTRUCTION)
            slots = batch.slots(rate)
            laid_out = collator.processor.lay_out(batch.rows, slots)
            labels = laid_out.pop("labels")
            laid_out.pop("task_ids", None)
            logits = model(
                segment_input_ids=inputs["segment_input_ids"].to(device),
                segment_attention_mask=inputs["segment_attention_mask"].to(device),
                segment_rates=torch.full((len(slots),), rate, device=device),
                **{name: tensor.to(device) for name, tensor in laid_out.items()},
            ).logits
            following = labels[:, 1:]
            is_target = following != IGNORE
            right = (logits[:, :-1].argmax(dim=2).cpu() == following) | ~is_target
            place = is_target.int().argmax(dim=1, keepdim=True)
            first += int(right.gather(1, place).sum())
            exact += int(right.all(dim=1).sum())
        return first / len(examples), exact / len(examples)


def _first_question(row: dict[str, Any], context: str) -> dict[str, Any]:
    question, answer = row["question"], row["answer"]
    if isinstance(question, str):
        question, answer = [question], [answer]
    return {"context": context, "question": question[:1], "answer": answer[:1]}
