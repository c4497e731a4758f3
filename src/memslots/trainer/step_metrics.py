"""What a training step logs beside its loss: the tasks' losses, slots read, tokens a second."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from memslots.modeling.layout_memslots import TASKS

SumOverProcesses = Callable[[torch.Tensor], torch.Tensor]


class StepMetrics:
    """Sums over the batches since the last log, and what they come to.

    Logged are:
        - `{task}_loss`: mean loss a target token, over all accumulated batches and processes; with
          several rates also `{task}_loss_rate_{rate}`.
        - `distillation_loss`: mean divergence from the full text a target token, before its weight;
          in training alone.
        - `slots_read`: memory slots that decoder rows read, a step's mean since the last log, over
          all processes. A memory that four questions read counts four times. A mean and no running
          total, so that a resumed run logs what an unbroken one does.
        - `tokens_per_second`: encoder tokens compressed and decoder tokens read (slots, markers,
          prompts and targets), padding left out, over all processes, in the seconds since the last
          log that neither evaluation nor saving took.
        - `text_tokens_per_second`: likewise, of the encoder tokens alone: text that is compressed.

    Args:
        rates: that are trained or evaluated.
        clock: gives seconds.
    """

    def __init__(self, rates: Sequence[int], clock: Callable[[], float] = time.perf_counter):
        self.rates = sorted(set(rates))
        self.clock = clock
        self.reset()

    def reset(self) -> None:
        """Forget everything, as when training begins."""
        self._losses = {mode: self._no_losses() for mode in ("train", "eval")}
        self._distillation = torch.zeros(2, dtype=torch.float64)  # nats; target tokens
        self._work = torch.zeros(3, dtype=torch.float64)  # slots read; tokens; positions
        self._since: tuple[float, int] | None = None
        self._paused = 0.0

    def begin(self, step: int) -> None:
        """A training batch begins; the first one starts the clock.

        Args:
            step: optimizer steps done.
        """
        if self._since is None:
            self._since = (self.clock(), step)

    def add_losses(self, mode: str, rate: int, sums: torch.Tensor, counts: torch.Tensor) -> None:
        """Adds a batch's summed losses and target tokens, `(3,)` each."""
        both = torch.stack([sums.double(), counts.double()], dim=1)
        self._losses[mode][self.rates.index(rate)] += both.cpu()

    def add_distillation(self, nats: float, targets: int) -> None:
        """Adds the summed divergence of a training batch's targets from the full text."""
        self._distillation += torch.tensor([nats, targets])

    def add_work(self, slots_read: int, encoder_tokens: int, decoder_positions: int) -> None:
        """Adds what a training batch read."""
        self._work += torch.tensor([slots_read, encoder_tokens, decoder_positions])

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time spent inside is not training's."""
        start = self.clock()
        try:
            yield
        finally:
            self._paused += self.clock() - start

    def flush(self, mode: str, step: int, total: SumOverProcesses) -> dict[str, float]:
        """Values to log since the last flush; called by all processes alike.

        Args:
            mode: "train" or "eval".
            step: optimizer steps done.
            total: sums a tensor over all processes.
        """
        values = self._task_losses(total(self._losses[mode]))
        self._losses[mode] = self._no_losses()
        if mode == "train":
            nats, taught = total(self._distillation).tolist()
            values |= {"distillation_loss": nats / taught} if taught else {}
            self._distillation.zero_()
        if mode == "train" and self._since is not None and step > self._since[1]:
            now = self.clock()
            started, first = self._since
            slots, tokens, positions = total(self._work).tolist()
            seconds = max(now - started - self._paused, 1e-9)
            values["slots_read"] = slots / (step - first)
            values["tokens_per_second"] = (tokens + positions) / seconds
            values["text_tokens_per_second"] = tokens / seconds
            self._work.zero_()
            self._since, self._paused = (now, step), 0.0
        return values

    def _no_losses(self) -> torch.Tensor:
        return torch.zeros(len(self.rates), len(TASKS), 2, dtype=torch.float64)

    def _task_losses(self, losses: torch.Tensor) -> dict[str, float]:
        """Means of `(rates, 3, 2)` sums and counts, where something was counted."""
        values: dict[str, float] = {}
        for task, name in enumerate(TASKS):
            named = {f"{name}_loss": losses[:, task].sum(dim=0)}
            if len(self.rates) > 1:
                each = {f"{name}_loss_rate_{r}": losses[i, task] for i, r in enumerate(self.rates)}
                named |= each
            values |= {key: (s / n).item() for key, (s, n) in named.items() if n > 0}
        return values
