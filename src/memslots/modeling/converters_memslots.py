"""Converters with a latent between slot and decoder, plain or variational, or learned queries.

Latents are after "LLM context compression" (Yanke, Pevnaya and Muravetsky, AIRI Summer School 2025,
sections 3.3 and 4.1) and its published code, where one vector of a trained encoder stands for a
whole chunk: linear layers lead from the latent to the frozen decoder, one or four of them, with
BatchNorm and Dropout or without.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn import functional


class SlotNorm(nn.BatchNorm1d):
    """BatchNorm over slots, which takes a single one too: then by its running statistics."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """`(slots, width)` to the same shape."""
        if self.training and len(input) < 2:  # one slot has no variance
            return functional.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        return super().forward(input)


class AutoencoderConverter(nn.Module):
    """RMSNorm, Linear to a latent, then linear layers to the decoder with ReLU between them.

    The norm is ours; the report's encoders end in one.

    Args:
        d_encoder: width of a slot before.
        latent: width of the latent.
        hidden: width between the layers.
        d_decoder: width of a slot after.
        layers: linear layers between latent and decoder.
        dropout: of every layer's input, which BatchNorm has scaled before; None for neither.
    """

    def __init__(
        self,
        d_encoder: int,
        latent: int,
        hidden: int,
        d_decoder: int,
        layers: int = 1,
        dropout: float | None = None,
    ):
        super().__init__()
        self.norm = nn.RMSNorm(d_encoder, eps=1e-6)
        self.to_latent = nn.Linear(d_encoder, latent)
        width, parts = latent, list[nn.Module]()
        if dropout is not None and layers == 1:
            parts += [SlotNorm(latent), nn.Dropout(dropout)]
        for _ in range(layers - 1):
            regularised = [] if dropout is None else [SlotNorm(hidden), nn.Dropout(dropout)]
            parts += [nn.Linear(width, hidden), *regularised[:1], nn.ReLU(), *regularised[1:]]
            width = hidden
        self.hidden = nn.Sequential(*parts)
        self.down = nn.Linear(width, d_decoder)

    def forward(self, slots: torch.Tensor) -> torch.Tensor:
        """`(slots, d_encoder)` to `(slots, d_decoder)`."""
        return self.down(self.hidden(self.to_latent(self.norm(slots))))

    @torch.no_grad()
    def init_weights(self, scale: float) -> None:
        """Draw new weights such that outputs have the standard deviation `scale`."""
        nn.init.ones_(self.norm.weight)
        _draw(self.to_latent, 1.0)
        gain = 1.0
        for part in self.hidden:
            if isinstance(part, SlotNorm):
                part.reset_parameters()
            elif isinstance(part, nn.Linear):
                _draw(part, gain)
            elif isinstance(part, nn.ReLU):  # which halves the second moment
                gain = math.sqrt(2)
        _draw(self.down, gain * scale)


class VariationalConverter(AutoencoderConverter):
    """The same with a latent that is drawn while training: mean and log-variance of a normal one.

    In evaluation the latent is the mean. Arguments are `AutoencoderConverter`'s.
    """

    def __init__(self, d_encoder: int, latent: int, *args, **kwargs):
        super().__init__(d_encoder, latent, *args, **kwargs)
        self.to_log_variance = nn.Linear(d_encoder, latent)

    def forward(self, slots: torch.Tensor) -> torch.Tensor:
        """`(slots, d_encoder)` to `(slots, d_decoder)`."""
        return self.with_divergence(slots)[0]

    def with_divergence(self, slots: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """As `forward`, and the divergence that training weighs against the decoder's loss.

        Args:
            slots: `(slots, d_encoder)`.

        Returns:
            `(slots, d_decoder)`, and a scalar: KL(q(z|slot) || N(0, 1)) in nats, summed over the
            latent and over slots (Kingma and Welling 2014, appendix B); 0 in evaluation.
        """
        normed = self.norm(slots)
        mean = self.to_latent(normed)
        if not self.training:
            return self.down(self.hidden(mean)), mean.new_zeros((), dtype=torch.float32)
        # As in diffusers' AutoencoderKL: beyond these bounds exp() is no help.
        log_variance = self.to_log_variance(normed).clamp(-30.0, 20.0)
        latent = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
        wide_mean, wide = mean.float(), log_variance.float()
        divergence = 0.5 * (wide_mean.square() + wide.exp() - 1 - wide).sum()
        return self.down(self.hidden(latent)), divergence

    @torch.no_grad()
    def init_weights(self, scale: float) -> None:
        """As `AutoencoderConverter.init_weights`."""
        super().init_weights(scale)
        _draw(self.to_log_variance, 0.1)


class ResidualConverter(nn.Module):
    """`skip(slot) + down(GELU(up(RMSNorm(slot))))`: PCC's converter beside a linear map.

    `down` starts at zero and `skip` as the identity (or, between two models, as the map of their
    embeddings, see `from_encoder_decoder_pretrained`), so that slots which lie among the decoder's
    embeddings are read as they are from the first step.

    Args:
        d_encoder: width of a slot before.
        hidden: width between the two linear layers.
        d_decoder: width of a slot after.
    """

    def __init__(self, d_encoder: int, hidden: int, d_decoder: int):
        super().__init__()
        self.skip = nn.Linear(d_encoder, d_decoder, bias=False)
        self.norm = nn.RMSNorm(d_encoder, eps=1e-6)
        self.up = nn.Linear(d_encoder, hidden)
        self.down = nn.Linear(hidden, d_decoder)

    def forward(self, slots: torch.Tensor) -> torch.Tensor:
        """`(slots, d_encoder)` to `(slots, d_decoder)`."""
        return self.skip(slots) + self.down(functional.gelu(self.up(self.norm(slots))))

    @torch.no_grad()
    def init_weights(self, scale: float) -> None:
        """New weights; `scale` is that of the slots themselves, which pass unchanged."""
        nn.init.eye_(self.skip.weight)
        nn.init.ones_(self.norm.weight)
        _draw(self.up, 1.0)
        nn.init.zeros_(self.down.weight)
        nn.init.zeros_(self.down.bias)


class QueryConverter(nn.Module):
    """Several decoder vectors of one slot, read out of it by learned queries.

    The sentence-pools article tried "learned queries, and Q-former attention" against the dilution
    of a vector that stands for too much text, without success. A slot is cut into as many parts as
    there are queries; each query attends to the parts, and what it read goes through an MLP.

    Args:
        d_encoder: width of a slot before.
        hidden: width of parts and queries.
        d_decoder: width of each vector after.
        count: queries, and vectors a slot.
    """

    def __init__(self, d_encoder: int, hidden: int, d_decoder: int, count: int):
        super().__init__()
        self.norm = nn.RMSNorm(d_encoder, eps=1e-6)
        self.parts = nn.Linear(d_encoder, count * hidden)
        self.queries = nn.Parameter(torch.empty(count, hidden))
        self.read_norm = nn.RMSNorm(hidden, eps=1e-6)
        self.up = nn.Linear(hidden, hidden)
        self.activation = nn.GELU()
        self.down = nn.Linear(hidden, d_decoder)

    def forward(self, slots: torch.Tensor) -> torch.Tensor:
        """`(slots, d_encoder)` to `(slots * count, d_decoder)`, slot after slot."""
        parts = self.parts(self.norm(slots)).unflatten(1, self.queries.shape)
        queries = self.queries.expand_as(parts)
        read = functional.scaled_dot_product_attention(queries, parts, parts)
        states = self.activation(self.up(self.read_norm(queries + read)))
        return self.down(states).flatten(0, 1)

    @torch.no_grad()
    def init_weights(self, scale: float) -> None:
        """Draw new weights such that outputs have the standard deviation `scale`."""
        nn.init.ones_(self.norm.weight)
        nn.init.ones_(self.read_norm.weight)
        nn.init.normal_(self.queries)
        _draw(self.parts, 1.0)
        _draw(self.up, 1.0)
        _draw(self.down, scale / math.sqrt(0.425))  # GELU's second moment, see `Converter`


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """While open, `module` draws, drops and counts nothing, whatever mode it is in."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)


def _draw(layer: nn.Linear, gain: float) -> None:
    nn.init.normal_(layer.weight, std=gain / math.sqrt(layer.in_features))
    nn.init.zeros_(layer.bias)
