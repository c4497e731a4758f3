"""The encoder's activations in one kernel each.

transformers spells GPT-2's tanh-GELU out ("gelu_new"): eight passes over a tensor that is four
times as wide as the model, and as many kept for the backward pass. torch has the same function as
one kernel. It has no weights, so the checkpoint and its configuration stay as they are.
"""

from torch import nn
from transformers.activations import ACT2FN

_SPELLED_OUT = {"NewGELUActivation", "FastGELUActivation"}
"""Classes of transformers that compute the tanh-GELU step by step."""


def fuse_activations(module: nn.Module) -> int:
    """Put torch's tanh-GELU in the place of spelled-out ones, in place; how many there were.

    Args:
        module: an encoder of the compressor's own. A decoder is its user's and is left alone.
    """
    found = [
        (parent, name)
        for parent in module.modules()
        for name, child in parent.named_children()
        if type(child).__name__ in _SPELLED_OUT
    ]
    for parent, name in found:
        setattr(parent, name, ACT2FN["gelu_pytorch_tanh"])
    return len(found)
