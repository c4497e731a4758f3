"""A small LoRA on the decoder that acts only while a memory is read.

peft would put its own layers in place of the decoder's, so that whoever uses the decoder beside the
compressor would meet another model. Here the weights live in the compressor, and forward hooks add
their product to the outputs of the decoder's layers while `active` is open: the decoder's modules,
weights and state stay as they are, be they quantized or shared with others.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D


class LoraUp(nn.Linear):
    """The second matrix, which starts at 0, so that a new LoRA changes nothing."""


class LoraPair(nn.Module):
    """The two matrices beside one linear layer.

    Args:
        inputs: width of the layer's input.
        outputs: width of its output.
        rank: width between the matrices.
    """

    def __init__(self, inputs: int, outputs: int, rank: int):
        super().__init__()
        self.down = nn.Linear(inputs, rank, bias=False)
        self.up = LoraUp(rank, outputs, bias=False)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        nn.init.zeros_(self.up.weight)


class DecoderLora(nn.Module):
    """LoRA weights for a decoder, and the context in which they act.

    Args:
        decoder_config: the decoder's configuration; its layers are found without weights.
        settings: `MemslotsConfig.decoder_lora`.

    Raises:
        ValueError: the decoder has no linear layer of the asked names.
    """

    def __init__(self, decoder_config, settings: dict[str, Any]):
        super().__init__()
        self.scale = settings["alpha"] / settings["r"]
        self.dropout = nn.Dropout(settings["dropout"])
        self.pairs = nn.ModuleDict()
        self._depth = 0
        found = set()
        for name, (inputs, outputs) in linear_layers(decoder_config).items():
            last = name.rpartition(".")[2]
            found.add(last)
            if last in settings["target_modules"]:
                self.pairs[_key(name)] = LoraPair(inputs, outputs, settings["r"])
        missing = sorted(set(settings["target_modules"]) - found)
        if missing:
            raise ValueError(
                f"decoder_lora: the decoder has no linear layers named {missing}; it has "
                f"{sorted(found)}. Give some of these as target_modules."
            )

    @contextmanager
    def active(self, decoder: PreTrainedModel) -> Iterator[None]:
        """While open, `decoder` answers with these weights; contexts may be nested.

        Raises:
            ValueError: a decoder without the layers that these weights are for.
        """
        if self._depth:
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1
            return
        layers = {_key(name): module for name, module in decoder.named_modules()}
        missing = sorted(set(self.pairs) - set(layers))
        if missing:
            raise ValueError(
                f"decoder_lora has weights for {missing[0]!r} and {len(missing) - 1} more layers "
                f"that {type(decoder).__name__} lacks; attach the decoder that it was trained on."
            )
        hooks = [
            layers[key].register_forward_hook(self._hook(pair))
            for key, pair in self.pairs.items()
            if isinstance(pair, LoraPair)
        ]
        self._depth = 1
        try:
            yield
        finally:
            self._depth = 0
            for hook in hooks:
                hook.remove()

    def _hook(self, pair: LoraPair):
        def add(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor):
            given = inputs[0].to(pair.down.weight)
            change = pair.up(pair.down(self.dropout(given))) * self.scale
            return output + change.to(output)

        return add


def linear_layers(decoder_config) -> dict[str, tuple[int, int]]:
    """Names of a decoder's linear layers, its head left out, with their input and output widths."""
    with torch.device("meta"):
        decoder = AutoModelForCausalLM.from_config(decoder_config)
    head = decoder.get_output_embeddings()
    found = {}
    for name, module in decoder.named_modules():
        if isinstance(module, nn.Linear) and module is not head:
            found[name] = (module.in_features, module.out_features)
        elif isinstance(module, Conv1D):
            found[name] = (module.weight.shape[0], module.weight.shape[1])
    return found


def _key(name: str) -> str:
    return name.replace(".", "-")  # a ModuleDict takes no dots
