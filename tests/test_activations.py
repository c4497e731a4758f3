"""Fused activations: the same function, in fewer steps."""

import torch
from tiny_models import TEXTS
from transformers import AutoModel
from transformers.activations import ACT2FN

from memslots.modeling.encoders_memslots import fuse_activations


def test_the_fused_function_is_the_spelled_out_one_and_so_are_its_gradients():
    points = torch.linspace(-12, 12, 5001, dtype=torch.float64)
    for name in ("gelu_new", "gelu_fast"):
        module = torch.nn.Sequential(torch.nn.Identity(), ACT2FN[name])
        found = []
        for fused in (False, True):
            if fused:
                assert fuse_activations(module) == 1
            given = points.clone().requires_grad_()
            output = module(given)
            output.sum().backward()
            found.append((output.detach(), given.grad))
        # gelu_fast writes the square root of 2 / pi with ten digits.
        torch.testing.assert_close(*found, rtol=1e-9, atol=1e-9)
        assert fuse_activations(module) == 0


def test_a_gpt2_encoder_writes_the_same_slots_and_the_decoder_is_left_alone(zoo):
    model = zoo.compressor("gpt2", "gpt2")
    kinds = {type(module).__name__ for module in model.encoder.modules()}
    assert "NewGELUActivation" not in kinds
    assert "NewGELUActivation" in {type(module).__name__ for module in model.decoder.modules()}
    memory = model.compress(TEXTS)
    stock = AutoModel.from_pretrained(zoo.folder("gpt2", "encoder"))
    for theirs, ours in zip(stock.h, model.encoder.h, strict=True):
        ours.mlp.act = theirs.mlp.act
    torch.testing.assert_close(model.compress(TEXTS).slots, memory.slots, rtol=1e-4, atol=1e-5)
