"""What a run says of its stages: one line each time that the trainer logs."""

from __future__ import annotations

import time

from transformers import TrainerCallback

from memslots.modeling.layout_memslots import TASKS
from memslots.trainer.time_budget import TimeBudget


class LogLine(TrainerCallback):
    """Prints stage, step of steps, losses by task, tokens a second of text, and time left.

    A stage that is limited by time has as many steps as it will come to at its present pace.

    Args:
        stage: its name.
        budget: its limit by time, if it has one.
    """

    def __init__(self, stage: str, budget: TimeBudget | None = None):
        self.stage = stage
        self.budget = budget

    def on_train_begin(self, args, state, control, **kwargs):
        """Says where a stopped stage goes on."""
        self.started, self.first = time.monotonic(), state.global_step
        if state.global_step and state.is_world_process_zero:
            print(f"{self.stage}: resuming from step {state.global_step:,}", flush=True)

    def on_log(self, args, state, control, logs=None, **kwargs):
        """One line, of training's logs alone."""
        losses = [
            f"{task} {logs[key]:.3f}"
            for task in (*TASKS, "distillation")
            if (key := f"{task}_loss") in (logs or {})
        ]
        if not losses or not state.is_world_process_zero:
            return
        step = max(1, state.global_step)
        spent = time.monotonic() - self.started
        if self.budget is None:
            steps = state.max_steps
            left = spent / max(1, step - self.first) * (steps - step)
        else:
            left = max(0.0, self.budget.seconds - self.budget.spent)
            steps = round(step * self.budget.seconds / max(self.budget.spent, 1e-9))
        about = "" if self.budget is None else "about "
        parts = [f"{self.stage} step {step:,} of {about}{max(steps, step):,}", *losses]
        if "text_tokens_per_second" in logs:
            parts.append(f"{logs['text_tokens_per_second']:,.0f} tokens/s of text")
        hours, minutes = divmod(round(left / 60), 60)
        parts.append(f"{hours} h {minutes} min left" if hours else f"{minutes} min left")
        print(" | ".join(parts), flush=True)
