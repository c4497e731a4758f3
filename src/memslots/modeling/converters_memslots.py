"""Converters: slots from the encoder's space to the decoder's.

All take `(slots, d_encoder)` and give `(slots, d_decoder)`.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


class Converter(nn.Module):
    """RMSNorm, Linear to `hidden`, GELU, Linear (PCC, 2.2)."""

    def __init__(self, d_encoder: int, hidden: int, d_decoder: int):
        super().__init__()
        self.norm = nn.RMSNorm(d_encoder, eps=1e-6)
        self.up = nn.Linear(d_encoder, hidden)
        self.activation = nn.GELU()
        self.down = nn.Linear(hidden, d_decoder)

    def forward(self, slots: torch.Tensor) -> torch.Tensor:
        """`(slots, d_encoder)` to `(slots, d_decoder)`."""
        return self.down(self.activation(self.up(self.norm(slots))))


class ResidualConverter(Converter):
    """PCC's converter beside a linear map: `skip(slot) + down(GELU(up(RMSNorm(slot))))`."""

    def __init__(self, d_encoder: int, hidden: int, d_decoder: int):
        super().__init__(d_encoder, hidden, d_decoder)
        self.skip = nn.Linear(d_encoder, d_decoder, bias=False)

    def forward(self, slots: torch.Tensor) -> torch.Tensor:
        """`(slots, d_encoder)` to `(slots, d_decoder)`."""
        return self.skip(slots) + super().forward(slots)


class LinearConverter(nn.Module):
    """RMSNorm and one Linear: the adapter of the sentence-pools article."""

    def __init__(self, d_encoder: int, d_decoder: int):
        super().__init__()
        self.norm = nn.RMSNorm(d_encoder, eps=1e-6)
        self.map = nn.Linear(d_encoder, d_decoder)

    def forward(self, slots: torch.Tensor) -> torch.Tensor:
        """`(slots, d_encoder)` to `(slots, d_decoder)`."""
        return self.map(self.norm(slots))


CONVERTERS: dict[str, Callable[[Any], nn.Module]] = {
    "mlp": lambda config: Converter(*_widths(config)),
    "linear": lambda config: LinearConverter(config.slot_size, _widths(config)[-1]),
    "residual": lambda config: ResidualConverter(*_widths(config)),
}
"""From a `MemslotsConfig` to its converter with new weights, by `converter_type`; add your own by a
new name (`lab/capacity/latent_converters.py` adds autoencoders)."""


def _widths(config) -> tuple[int, int, int]:
    d_decoder = config.get_text_config(decoder=True).hidden_size
    return config.slot_size, config.converter_hidden_size or d_decoder, d_decoder


def convert(converter: nn.Module, slots: torch.Tensor) -> torch.Tensor:
    """What the decoder reads in place of slots, `(slots, d_decoder)`."""
    return converter(slots.to(next(converter.parameters()).dtype))
