"""A stage that ends when its minutes are over, whatever the machine: `minutes:` in a recipe."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

from accelerate.utils import broadcast_object_list
from transformers import TrainerCallback

from memslots.writing import whole_file

NO_STEP_LIMIT = 10**9
"""`max_steps` of a stage that is limited by time."""

TIME_FILE = "time_spent.json"
"""Beside a stage's checkpoints: seconds that its earlier runs trained."""


class TimeBudget(TrainerCallback):
    """Stops training when the time is up, counting what earlier runs of the stage took.

    The learning rate falls linearly over the last part of the time, where a schedule by steps
    would need to know how many there will be.

    Args:
        minutes: of training, over all runs.
        folder: of the checkpoints, where the time spent is kept: who removes them begins anew.
        cooldown: share of the time in which the learning rate falls to zero.
        clock: gives seconds.
    """

    def __init__(
        self,
        minutes: float,
        folder: Path,
        cooldown: float = 0.2,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.seconds = 60 * minutes
        self.file = folder / TIME_FILE
        self.cooldown = cooldown
        self.clock = clock
        self.before = 0.0
        if self.file.is_file():
            self.before = float(json.loads(self.file.read_text("utf-8"))["seconds"])
        self.started: float | None = None

    @property
    def spent(self) -> float:
        """Seconds of training, this run's and earlier ones'."""
        return self.before + (0.0 if self.started is None else self.clock() - self.started)

    def factor(self) -> float:
        """Of the learning rate: 1, and from the cool-down on what is left of it."""
        left = max(0.0, 1 - self.spent / self.seconds)
        return min(1.0, left / self.cooldown) if self.cooldown else 1.0

    def on_train_begin(self, args, state, control, **kwargs):
        """The clock starts."""
        self.started = self.clock()

    def on_step_begin(self, args, state, control, optimizer=None, **kwargs):
        """Scales what the schedule by steps says."""
        if optimizer is not None:
            factor = _of_main_process(self.factor())
            for group in optimizer.param_groups:
                group["lr"] *= factor

    def on_step_end(self, args, state, control, **kwargs):
        """Stops and saves when the time is up."""
        if _of_main_process(self.spent) >= self.seconds:
            control.should_training_stop = True
        return control

    def on_save(self, args, state, control, **kwargs):
        """Keeps the time beside the checkpoint, so that a resumed run has only the rest."""
        if state.is_world_process_zero:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(self.file) as draft:
                draft.write_text(json.dumps({"seconds": self.spent}), encoding="utf-8")

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Adds `minutes_left` to every line, as it is shown and as it is kept."""
        left = {"minutes_left": round(max(0.0, self.seconds - self.spent) / 60, 1)}
        for line in (logs, state.log_history[-1] if state.log_history else None):
            if line is not None:
                line.update(left)


def _of_main_process(value: float) -> float:
    """What all processes go by: one that stopped a step earlier would leave the others waiting."""
    return broadcast_object_list([value])[0]
