"""Converters: slots from the encoder's space to the decoder's.

PCC's MLP, the sentence-pools article's linear adapter, and converters with a latent, plain or
variational, after "LLM context compression" (Yanke, Pevnaya and Muravetsky, AIRI Summer School
2025, sections 3.3 and 4.1). All take `(slots, d_encoder)` and give `(slots, d_decoder)`.
"""

import torch
from torch import nn
from torch.nn import functional


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


class VariationalConverter(AutoencoderConverter):
    """The same with a latent drawn from a normal distribution in training, its mean otherwise."""

    def __init__(self, d_encoder: int, latent: int, *args, **kwargs):
        super().__init__(d_encoder, latent, *args, **kwargs)
        self.to_log_variance = nn.Linear(d_encoder, latent)

    def forward(self, slots: torch.Tensor) -> torch.Tensor:
        """`(slots, d_encoder)` to `(slots, d_decoder)`."""
        return self.with_divergence(slots)[0]

    def with_divergence(self, slots: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """As `forward`, and KL(q(z|slot) || N(0, 1)) in nats, a scalar: summed over the latent and
        over slots (Kingma and Welling 2014, appendix B); 0 in evaluation.
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


AnyConverter = Converter | LinearConverter | ResidualConverter | AutoencoderConverter


def build_converter(config) -> AnyConverter:
    """The converter of a `MemslotsConfig` with new weights."""
    d_decoder = config.get_text_config(decoder=True).hidden_size
    if config.converter_type == "linear":
        return LinearConverter(config.slot_size, d_decoder)
    hidden = config.converter_hidden_size or d_decoder
    if config.converter_type in ("mlp", "residual"):
        direct = Converter if config.converter_type == "mlp" else ResidualConverter
        return direct(config.slot_size, hidden, d_decoder)
    kind = VariationalConverter if config.converter_type == "vae" else AutoencoderConverter
    return kind(
        config.slot_size,
        config.latent_size or config.slot_size,
        hidden,
        d_decoder,
        layers=config.converter_layers,
        dropout=config.converter_dropout if config.converter_regularization else None,
    )


def convert(
    converter: AnyConverter, slots: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What the decoder reads in place of slots, and the summed divergence of a vae's."""
    slots = slots.to(next(converter.parameters()).dtype)
    if isinstance(converter, VariationalConverter):
        return converter.with_divergence(slots)
    return converter(slots), None
