"""Converters with a latent, plain or variational, for table 2 of the capacity report.

After "LLM context compression" (Yanke, Pevnaya and Muravetsky, AIRI Summer School 2025, sections
3.3 and 4.1). They gave back less than PCC's converter in every column
(docs/capacity_compressors.md), so the package does not carry them: importing this module adds them
to it, and a checkpoint of theirs is read where it was imported. Their settings
are extra fields of the configuration:

- `converter_layers` (1): linear layers from the latent to the decoder;
- `converter_regularization` (False): whether these layers have BatchNorm and Dropout;
- `latent_size`: width of the latent, by default that of a slot;
- `kl_weight` (0.1, as in the report's code): what the divergence of the variational latents from
  N(0, 1), in nats a slot, counts beside the loss.
"""

import math

import torch
from torch import nn
from torch.nn import functional

from memslots.modeling.encoders_memslots import CONVERTERS
from memslots.start_weights import draw_linear

DROPOUT = 0.2


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

    Args:
        config: a `MemslotsConfig`, with the extra fields above.
    """

    def __init__(self, config):
        super().__init__()
        d_decoder = config.get_text_config(decoder=True).hidden_size
        hidden = config.converter_hidden_size or d_decoder
        width = getattr(config, "latent_size", None) or config.slot_size
        layers = getattr(config, "converter_layers", 1)
        regularised = getattr(config, "converter_regularization", False)
        self.norm = nn.RMSNorm(config.slot_size, eps=1e-6)
        self.to_latent = nn.Linear(config.slot_size, width)
        parts = list[nn.Module]()
        if regularised and layers == 1:
            parts += [SlotNorm(width), nn.Dropout(DROPOUT)]
        for _ in range(layers - 1):
            around = [SlotNorm(hidden), nn.Dropout(DROPOUT)] if regularised else []
            parts += [nn.Linear(width, hidden), *around[:1], nn.ReLU(), *around[1:]]
            width = hidden
        self.hidden = nn.Sequential(*parts)
        self.down = nn.Linear(width, d_decoder)

    def forward(self, slots: torch.Tensor) -> torch.Tensor:
        """`(slots, d_encoder)` to `(slots, d_decoder)`."""
        return self.down(self.hidden(self.latent(self.norm(slots))))

    def latent(self, normed: torch.Tensor) -> torch.Tensor:
        """`(slots, d_encoder)` to `(slots, latent)`."""
        return self.to_latent(normed)

    def draw(self, scale: float) -> None:
        """New weights, such that what it gives has the standard deviation `scale`."""
        nn.init.ones_(self.norm.weight)
        draw_linear(self.to_latent, 1.0)
        gain = 1.0
        for part in self.hidden:
            if isinstance(part, SlotNorm):
                part.reset_parameters()
            elif isinstance(part, nn.Linear):
                draw_linear(part, gain)
            elif isinstance(part, nn.ReLU):  # which halves the second moment
                gain = math.sqrt(2)
        draw_linear(self.down, gain * scale)


class VariationalConverter(AutoencoderConverter):
    """The same with a latent drawn from a normal distribution in training, its mean otherwise.

    Args:
        config: as for `AutoencoderConverter`.
    """

    def __init__(self, config):
        super().__init__(config)
        self.kl_weight = getattr(config, "kl_weight", 0.1)
        self.to_log_variance = nn.Linear(config.slot_size, self.to_latent.out_features)

    def latent(self, normed: torch.Tensor) -> torch.Tensor:
        """As there; a latent that is drawn brings the gradient of its divergence along."""
        mean = self.to_latent(normed)
        if not self.training:
            return mean
        # As in diffusers' AutoencoderKL: beyond these bounds exp() is no help.
        log_variance = self.to_log_variance(normed).clamp(-30.0, 20.0)
        drawn = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
        nats = divergence(mean.float(), log_variance.float()) / max(len(mean), 1)
        return _WithLoss.apply(drawn, self.kl_weight * nats)

    def draw(self, scale: float) -> None:
        """As there."""
        super().draw(scale)
        draw_linear(self.to_log_variance, 0.1)


def divergence(mean: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
    """KL(N(mean, variance) || N(0, 1)) in nats, summed (Kingma and Welling 2014, appendix B)."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum()


class _WithLoss(torch.autograd.Function):
    """A tensor as it is, which gives a loss beside it the gradient 1 (as DeepSeek-MoE does)."""

    @staticmethod
    def forward(ctx, values: torch.Tensor, loss: torch.Tensor) -> torch.Tensor:
        ctx.shape, ctx.dtype = loss.shape, loss.dtype
        return values.view_as(values)

    @staticmethod
    def backward(ctx, *gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        (gradient,) = gradients
        return gradient, torch.ones(ctx.shape, dtype=ctx.dtype, device=gradient.device)


CONVERTERS.update(autoencoder=AutoencoderConverter, vae=VariationalConverter)
