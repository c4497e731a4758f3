"""Activation checkpointing of the frozen decoder, through which gradients pass all the same."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import torch
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer


@contextmanager
def decoder_checkpointing(
    decoder: PreTrainedModel, reading: Callable[[], AbstractContextManager[None]] = nullcontext
) -> Iterator[None]:
    """Keeps only each layer's input for the backward pass, and computes the rest again there.

    transformers checkpoints layers in training mode alone, and the frozen decoder is in evaluation
    mode, so that nothing is dropped out in it: without this its activations would all be kept, and
    it is the larger of the two models.

    Args:
        decoder: a causal LM; one without checkpointing layers is left as it is.
        reading: makes the context that the forward pass ran in, for the backward pass to compute
            the same in (`MemslotsModel.reading`).
    """
    layers = [m for m in decoder.modules() if isinstance(m, GradientCheckpointingLayer)]
    for layer in layers:
        layer.forward = partial(_run, layer.forward, reading)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward  # the class's own is beneath


def _run(forward, reading, *args, **kwargs):
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(
        forward,
        *args,
        use_reentrant=False,
        context_fn=lambda: (nullcontext(), reading()),
        **kwargs,
    )
