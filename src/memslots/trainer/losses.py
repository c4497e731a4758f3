"""What a training step learns from: PCC's weighted losses, and a teacher that reads the text."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from memslots.modeling.decoders_memslots import TaskTargets
from memslots.modeling.layout_memslots import RECONSTRUCTION, TASKS
from memslots.modeling.modeling_memslots import MemslotsOutput
from memslots.trainer.distillation import Teacher


@dataclass
class TrainingOutput(MemslotsOutput):
    """What `MemslotsModel.forward` returns with `TaskLosses`.

    Args:
        task_losses: `(3,)`, mean loss per target token of reconstruction, completion and answers.
        task_counts: `(3,)`, target tokens of each task in this batch.
        distillation_loss: scalar, mean divergence from the full text; None without a teacher.
    """

    task_losses: torch.Tensor | None = None
    task_counts: torch.Tensor | None = None
    distillation_loss: torch.Tensor | None = None


@dataclass(frozen=True)
class TaskLosses:
    """Each task's loss averaged over its own target tokens (PCC, eqs. 3, 4), then weighted (eq. 5).

    Args:
        weights: of reconstruction, completion and answers; eq. 5 is `(1 - lambda, lambda, 0)`.
        totals: `(3,)` target tokens of each task in the whole step, where a batch is one of
            several.
        teacher: of the targets of completion and then of answers, row after row; its mean
            divergence is added to the loss.
        distillation_weight: of that divergence.

    Examples:
        >>> inputs = processor(context="Ann is here.", question="Who?", answer="Ann")
        >>> model(**inputs, criterion=TaskLosses((0.5, 0.5, 1.0))).task_losses.shape
        torch.Size([3])
    """

    weights: tuple[float, ...] = (1.0, 1.0, 1.0)
    totals: torch.Tensor | None = None
    teacher: Teacher | None = None
    distillation_weight: float = 1.0

    def __call__(self, targets: Iterable[TaskTargets]) -> TrainingOutput:
        """The losses of one batch.

        Raises:
            ValueError: a teacher of other rows.
        """
        sums: dict[int, torch.Tensor] = {}
        counts, taught, divergences = [0] * len(TASKS), 0, []
        for part in targets:
            sums[part.task], counts[part.task] = part.loss(), len(part.token_ids)
            if self.teacher is not None and part.task != RECONSTRUCTION:
                seen = self.teacher.part(taught, taught + len(part.token_ids))
                divergences.append(seen.divergence(part.logits))
                taught += len(part.token_ids)
        device = next(iter(sums.values())).device
        task_counts, zero = torch.tensor(counts, device=device), torch.zeros((), device=device)
        totals = task_counts if self.totals is None else self.totals.to(device)
        task_sums = torch.stack([sums.get(task, zero) for task in range(len(TASKS))])
        task_losses = task_sums / totals.clamp(min=1)
        loss = (task_losses * torch.tensor(self.weights, device=device)).sum()
        distillation_loss = None
        if self.teacher is not None:
            if taught != len(self.teacher.token_ids):
                raise ValueError(
                    f"teacher has {len(self.teacher.token_ids)} targets, and the rows of "
                    f"completion and answers have {taught}; give it those of the same rows."
                )
            targets_taught = totals[RECONSTRUCTION + 1 :].sum().clamp(min=1)
            distillation_loss = torch.stack([zero, *divergences]).sum() / targets_taught
            loss = loss + self.distillation_weight * distillation_loss
        return TrainingOutput(
            loss=loss,
            task_losses=task_losses.detach(),
            task_counts=task_counts,
            distillation_loss=None if distillation_loss is None else distillation_loss.detach(),
        )
