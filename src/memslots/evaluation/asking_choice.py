"""Which words a decoder reads best, tried on built-in passages and on nothing that is measured."""

from __future__ import annotations

from collections.abc import Sequence

from memslots.evaluation.answering import processor_of
from memslots.evaluation.asking import Asking
from memslots.evaluation.likelihood import target_losses
from memslots.evaluation.worked_examples import other_examples, worked_examples
from memslots.modeling import MemslotsModel
from memslots.modeling.layout_memslots import max_positions

EXAMPLES = 3
"""Worked examples where a decoder reads better with them."""


def choose_asking(
    model: MemslotsModel, format: str | None = None, seed: int = 0
) -> tuple[Asking, dict[int, float]]:
    """The checkpoint's words with worked examples or without, whichever costs fewer nats.

    The questions are those of the built-in passages that no prompt shows, each with its passage as
    text, so that what is measured later has no part in the choice.

    Args:
        model: the compressor with its decoder; its memory is not asked.
        format: "plain" or "chat", by default the checkpoint's own.
        seed: draws the examples.

    Returns:
        The words, and by number of examples the nats that a token of the answers costs.

    Raises:
        ValueError: no decoder, or an unknown format.
    """
    processor = processor_of(model)
    candidates = [Asking.of(processor, count, format, seed=seed) for count in (0, EXAMPLES)]
    cost = [_nats(model, asking, seed) for asking in candidates]
    best = min(range(len(candidates)), key=cost.__getitem__)
    return candidates[best], {
        len(asking.examples): round(nats, 3)
        for asking, nats in zip(candidates, cost, strict=True)
        if nats != float("inf")
    }


def _nats(model: MemslotsModel, asking: Asking, seed: int) -> float:
    processor = processor_of(model)
    asked = other_examples(worked_examples(EXAMPLES, seed))
    prompts = asking.prompts(
        processor, [each.question for each in asked], [each.passage for each in asked]
    )
    targets = [asking.answer_ids(processor, each.answer) for each in asked]
    lengths = [
        len(prompt.before) + len(target) for prompt, target in zip(prompts, targets, strict=True)
    ]
    decoder = model.decoder
    limit = None if decoder is None else max_positions(decoder.config)
    if limit is not None and max(lengths) > limit:
        return float("inf")
    losses = target_losses(model, prompts, targets)
    return sum(loss.nll for loss in losses) / sum(loss.tokens for loss in losses)


def asking_of(
    model: MemslotsModel, examples: int | None, format: str | None, seed: int = 0
) -> tuple[Asking, str]:
    """The words to ask with, and a sentence that says which they are.

    Args:
        model: the compressor with its decoder.
        examples: how many worked examples; None chooses (see `choose_asking`).
        format: "plain" or "chat", by default the checkpoint's own.
        seed: draws the examples.

    Raises:
        ValueError: more examples than there are, or an unknown format.
    """
    tried: Sequence[str] = ()
    if examples is None:
        asking, cost = choose_asking(model, format, seed)
        tried = [f"{count} examples {nats} nats a token" for count, nats in cost.items()]
    else:
        asking = Asking.of(processor_of(model), examples, format, seed=seed)
    said = f"asked in {asking.format} words, {len(asking.examples)} worked examples"
    return asking, said + (f" (tried on built-in passages: {', '.join(tried)})" if tried else "")
