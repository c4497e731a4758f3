"""Per-text optimisation against a frozen decoder: several texts side by side in one batch.

Every parameter has one row per text. AdamW works element by element and the loss is the sum of the
texts' own mean losses, so a row is trained exactly as it would be alone; a text that is done leaves
the batch with its rows of parameters and of AdamW's moments.

Of a text the parameters are kept that gave its best accuracy. (The published code keeps those of
one step later: it copies them after the optimizer's step. Its `dense` also keeps m and loses the
layer; here the vectors p = Linear(m) that the decoder reads are kept.)
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from transformers import get_scheduler

from memslots.cramming.frozen_decoder import FrozenDecoder
from memslots.cramming.low_rank import LowRankChanges, Params
from memslots.cramming.settings import CrammingSettings

Progress = Callable[[int, int, float], None]
"""Called with the step, the texts still in the batch, and the mean of all best accuracies."""

_IGNORED = -100
_PROGRESS_EVERY = 25


@dataclass(frozen=True)
class CrammedText:
    """A text after optimisation.

    Args:
        ids: its tokens.
        kept: what stands for it: `vectors` `(vectors, d_decoder)` and, for LoRA, A and B of each
            projection, in 32 bit.
        settings: how it was made.
        seed: the seed of its start.
        steps: forward passes until it was done.
        best_step: the one that `kept` is from, counted from 1.
        accuracy: teacher-forced share of right tokens there, of those that were trained.
        loss: mean cross-entropy there, in nats a token, of those that were trained.
        stopped: `exact` (also when read alone, as `read_back` reads), `no progress` or `max steps`.
        trained_parameters: numbers optimised for this text, a dropped linear layer included.
    """

    ids: tuple[int, ...]
    kept: Params
    settings: CrammingSettings
    seed: int
    steps: int
    best_step: int
    accuracy: float
    loss: float
    stopped: str
    trained_parameters: int

    @property
    def kept_parameters(self) -> int:
        """Numbers that stand for the text."""
        return sum(part.numel() for part in self.kept.values())


class MemoryReader:
    """Runs a frozen decoder on texts behind what was crammed.

    Args:
        decoder: the frozen decoder.
        settings: the method.

    Raises:
        ValueError: the decoder has no projection of the settings' names, or needs a start token
            and has none.
    """

    def __init__(self, decoder: FrozenDecoder, settings: CrammingSettings):
        self.decoder = decoder
        self.settings = settings
        self.changes: LowRankChanges | None = None
        if settings.uses_low_rank:
            self.changes = LowRankChanges(
                decoder.model, settings.targets, settings.rank, settings.alpha
            )
        self.starts = settings.start_token if settings.uses_vectors else settings.first_token
        if self.starts and decoder.start_id is None:
            raise ValueError(
                f"{decoder.name}'s tokenizer has neither BOS nor EOS to begin with; use a method "
                "with vectors and no start_token (--bos), or first_token=False (--from-token-2)."
            )

    @property
    def prefix(self) -> int:
        """Positions before the text: a start token or none, and the vectors or none."""
        return int(self.starts) + (self.settings.vectors if self.settings.uses_vectors else 0)

    def prefix_embeddings(self, kept: Params, texts: int) -> torch.Tensor:
        """What stands before the texts: `(texts, prefix, d_decoder)`.

        Args:
            kept: the kept vectors, one row for each text.
            texts: rows.
        """
        device = self.decoder.device
        ids = torch.full((texts, int(self.starts)), self.decoder.start_id or 0, device=device)
        start = self.decoder.embed(ids)
        if not self.settings.uses_vectors:
            return start
        return torch.cat([start, kept["vectors"].to(start)], 1)

    def applied(self, kept: Params) -> contextlib.AbstractContextManager[None]:
        """While inside, row i of a batch is read with text i's changes of the weights, if any."""
        return contextlib.nullcontext() if self.changes is None else self.changes.applied(kept)

    def logits(self, kept: Params, ids: torch.Tensor) -> torch.Tensor:
        """Teacher-forced predictions of every token `(texts, length, vocabulary)`, in 32 bit.

        Without a prefix nothing predicts the first token: its row is zero.

        Args:
            kept: the kept vectors, one row for each text.
            ids: `(texts, length)`; what pads the right end is never seen by what stands before it.
        """
        prefix = self.prefix_embeddings(kept, len(ids))
        embeds = torch.cat([prefix, self.decoder.embed(ids[:, :-1])], 1)
        with self.applied(kept):
            logits = self.decoder.model(
                inputs_embeds=embeds, use_cache=False, logits_to_keep=ids.shape[1]
            ).logits.float()
        if self.prefix == 0:
            logits = torch.cat([torch.zeros_like(logits[:, :1]), logits], 1)
        return logits


def cram(
    decoder: FrozenDecoder,
    texts: Sequence[Sequence[int]],
    settings: CrammingSettings | None = None,
    seeds: int | Sequence[int] = 0,
    progress: Progress | None = None,
) -> list[CrammedText]:
    """Finds vectors, or changes of weights, from which the decoder gives each text back.

    Args:
        decoder: the frozen decoder; it does not change.
        texts: token ids of each; they may be of several lengths.
        settings: the original code's by default.
        seeds: the seeds of the starts, one for all or one each. A text's start depends on its
            seed alone, so it is the same in every batch.
        progress: called every 25 steps.

    Raises:
        ValueError: no text, a text too long for the decoder, fewer seeds than texts, or a decoder
            without the layers to change.
    """
    settings = settings or CrammingSettings()
    starts = [seeds] * len(texts) if isinstance(seeds, int) else list(seeds)
    if not texts:
        raise ValueError("there is no text to cram; give at least one.")
    if len(starts) != len(texts):
        raise ValueError(
            f"{len(starts)} seeds for {len(texts)} texts; give one seed, or one for each text."
        )
    reader = MemoryReader(decoder, settings)
    shortest = 1 if reader.prefix else 2
    for ids in texts:
        decoder.check_length(len(ids), reader.prefix)
        if len(ids) < shortest:
            raise ValueError("a text of one token has nothing to train on from token 2.")
    crammed: list[CrammedText] = []
    for first in range(0, len(texts), settings.side_by_side):
        last = first + settings.side_by_side
        batch = _Batch(reader, texts[first:last], starts[first:last])
        crammed += batch.run(progress, crammed, len(texts))
    return crammed


class _Batch:
    """Texts that are optimised together.

    Args:
        reader: the decoder and the method.
        texts: token ids of each.
        seeds: the seeds of their starts.
    """

    def __init__(self, reader: MemoryReader, texts: Sequence[Sequence[int]], seeds: list[int]):
        self.reader, self.settings = reader, reader.settings
        self.texts, self.seeds = texts, seeds
        longest = max(map(len, texts))
        ids = torch.zeros(len(texts), longest, dtype=torch.long)
        labels = torch.full((len(texts), longest), _IGNORED)
        for row, text in enumerate(texts):
            ids[row, : len(text)] = torch.tensor(text)
            labels[row, : len(text)] = torch.tensor(text)
        if not self.settings.first_token:
            labels[:, 0] = _IGNORED
        device = reader.decoder.device
        self.ids, self.labels = ids.to(device), labels.to(device)
        starts = [self._start(seed) for seed in seeds]
        self.params = {
            name: torch.cat([start[name] for start in starts]).to(device).requires_grad_()
            for name in starts[0]
        }
        self.optimizer = torch.optim.AdamW(
            self.params.values(),
            lr=self.settings.learning_rate,
            betas=self.settings.betas,
            weight_decay=self.settings.weight_decay,
        )
        self.scheduler = get_scheduler(
            self.settings.lr_scheduler_type,
            self.optimizer,
            num_warmup_steps=0,
            num_training_steps=self.settings.max_steps,
        )
        self.rows = list(range(len(texts)))  # text of each row of the batch
        self.best_accuracy = [-1.0] * len(texts)
        self.best_loss = [math.inf] * len(texts)
        self.best_step = [0] * len(texts)
        self.best_kept: list[Params] = [{} for _ in texts]

    def _start(self, seed: int) -> Params:
        """Parameters of one text, with a row of 1 in front."""
        generator = torch.Generator().manual_seed(seed)
        decoder, params = self.reader.decoder, {}
        if self.settings.uses_vectors:
            shape = (1, self.settings.vectors, decoder.width)
            params["vectors"] = torch.randn(shape, generator=generator) * decoder.scale
        if self.settings.uses_dense:  # as torch.nn.Linear begins
            bound = 1 / math.sqrt(decoder.width)
            for name, rows in (("weight", decoder.width), ("bias", 1)):
                drawn = torch.rand((1, rows, decoder.width), generator=generator)
                params[name] = drawn * 2 * bound - bound
        if self.reader.changes is not None:
            params.update(self.reader.changes.new(1, generator))
        return params

    def _kept(self) -> Params:
        """What the decoder reads, of all rows: the linear layer is taken out of the way."""
        kept = {name: p for name, p in self.params.items() if name not in ("weight", "bias")}
        if self.settings.uses_dense:
            kept["vectors"] = self.params["vectors"] @ self.params["weight"].mT
            kept["vectors"] = kept["vectors"] + self.params["bias"]
        return kept

    def run(
        self, progress: Progress | None, before: Sequence[CrammedText], total: int
    ) -> list[CrammedText]:
        """Optimises until every text is done.

        Args:
            progress: see `cram`.
            before: texts of earlier batches, for the mean that progress shows.
            total: texts of all batches.
        """
        each = sum(p[0].numel() for p in self.params.values())
        crammed: list[CrammedText | None] = [None] * len(self.texts)
        step = 0
        while self.rows:
            step += 1
            kept = self._kept()
            logits = self.reader.logits(kept, self.ids)
            losses, accuracies = _judge(logits, self.labels)
            self._note(step, kept, losses.tolist(), accuracies.tolist())
            done = {row: why for row in range(len(self.rows)) if (why := self._why(row, step))}
            for row, why in done.items():
                text = self.rows[row]
                crammed[text] = CrammedText(
                    ids=tuple(self.texts[text]),
                    kept=self.best_kept[text],
                    settings=self.settings,
                    seed=self.seeds[text],
                    steps=step,
                    best_step=self.best_step[text],
                    accuracy=self.best_accuracy[text],
                    loss=self.best_loss[text],
                    stopped=why,
                    trained_parameters=each,
                )
            if progress is not None and (step % _PROGRESS_EVERY == 0 or done):
                share = sum(text.accuracy for text in before) + sum(self.best_accuracy)
                waiting = total - len(before) - len(self.texts)
                progress(step, len(self.rows) - len(done) + waiting, share / total)
            if len(done) == len(self.rows):
                break
            losses.sum().backward()
            self.optimizer.step()
            self.scheduler.step()
            self.optimizer.zero_grad()
            if done:
                self._leave([row for row in range(len(self.rows)) if row not in done])
        return [text for text in crammed if text is not None]

    def _note(
        self, step: int, kept: Params, losses: Iterable[float], accuracies: Iterable[float]
    ) -> None:
        for row, (loss, accuracy) in enumerate(zip(losses, accuracies, strict=True)):
            text = self.rows[row]
            if not math.isfinite(loss):
                raise ValueError(
                    f"the loss of text {text + 1} is {loss} at step {step}; use a smaller learning "
                    f"rate than {self.settings.learning_rate:g}, or float32."
                )
            if accuracy == 1.0:
                loss, accuracy = self._judge_alone(row, kept)
            best = self.best_accuracy[text]
            if accuracy < best or (accuracy == best and loss >= self.best_loss[text]):
                continue
            if accuracy > best:  # a lower loss alone is not progress: the published code's rule
                self.best_accuracy[text] = accuracy
                self.best_step[text] = step
            self.best_loss[text] = loss
            self.best_kept[text] = {
                name: part[row].detach().float().cpu().clone() for name, part in kept.items()
            }

    @torch.no_grad()
    def _judge_alone(self, row: int, kept: Params) -> tuple[float, float]:
        """Loss and accuracy of a row that is read alone: sums round by the shape of the batch.

        In bfloat16 three of nine texts were right beside others and not alone, by one token.
        """
        length = len(self.texts[self.rows[row]])
        alone = {name: part[row : row + 1] for name, part in kept.items()}
        logits = self.reader.logits(alone, self.ids[row : row + 1, :length])
        loss, accuracy = _judge(logits, self.labels[row : row + 1, :length])
        return loss.item(), accuracy.item()

    def _why(self, row: int, step: int) -> str:
        """Why the text of a row is done; empty while it is not."""
        text = self.rows[row]
        if self.best_accuracy[text] == 1.0:
            return "exact"
        if step >= self.settings.max_steps:
            return "max steps"
        if step - self.best_step[text] >= self.settings.patience:
            return "no progress"
        return ""

    def _leave(self, staying: list[int]) -> None:
        """Takes the other rows out of the batch, with their moments of AdamW."""
        index = torch.tensor(staying, device=self.ids.device)
        self.rows = [self.rows[row] for row in staying]
        self.ids, self.labels = self.ids[index], self.labels[index]
        longest = int((self.labels != _IGNORED).any(0).nonzero().max()) + 1
        self.ids, self.labels = self.ids[:, :longest], self.labels[:, :longest]
        state, group = self.optimizer.state, self.optimizer.param_groups[0]
        group["params"] = []
        for name, old in list(self.params.items()):
            new = old.detach()[index].requires_grad_()
            moments = state.pop(old)
            state[new] = {
                key: value[index] if value.ndim else value for key, value in moments.items()
            }
            self.params[name] = new
            group["params"].append(new)


def _judge(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean loss (nats) and accuracy of each text, over its trained tokens: `(texts,)` both."""
    used = labels != _IGNORED
    losses = torch.nn.functional.cross_entropy(  # in rows: half the time of logits.mT on a CPU
        logits.flatten(0, 1), labels.flatten(), ignore_index=_IGNORED, reduction="none"
    ).view_as(labels)
    count = used.sum(1)
    right = (logits.detach().argmax(-1) == labels) & used
    return losses.sum(1) / count, right.sum(1).double() / count


def stack(texts: Sequence[CrammedText]) -> Params:
    """What was kept of several texts of one method, a row each."""
    return {name: torch.stack([text.kept[name] for text in texts]) for name in texts[0].kept}
