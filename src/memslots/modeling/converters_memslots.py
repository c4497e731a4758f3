"""Converters: slots from the encoder's space to the decoder's.

PCC's MLP, the sentence-pools article's linear adapter, and converters with a latent between slot
and decoder, plain or variational: after "LLM context compression" (Yanke, Pevnaya and Muravetsky,
AIRI Summer School 2025, sections 3.3 and 4.1) and its published code, where one vector of a trained
encoder stands for a whole chunk, and one or four linear layers lead from the latent to the frozen
decoder, with BatchNorm and Dropout or without.
"""

import math

import torch
from torch import nn
from torch.nn import functional


class Converter(nn.Module):
    """RMSNorm, Linear, GELU, Linear: slots from the encoder's space to the decoder's (PCC, 2.2).

    Args:
        d_encoder: width of a slot before.
        hidden: width between the two linear layers.
        d_decoder: width of a slot after.
    """

    def __init__(self, d_encoder: int, hidden: int, d_decoder: int):
        super().__init__()
        self.norm = nn.RMSNorm(d_encoder, eps=1e-6)
        self.up = nn.Linear(d_encoder, hidden)
        self.activation = nn.GELU()
        self.down = nn.Linear(hidden, d_decoder)

    def forward(self, slots: torch.Tensor) -> torch.Tensor:
        """`(slots, d_encoder)` to `(slots, d_decoder)`."""
        return self.down(self.activation(self.up(self.norm(slots))))

    @torch.no_grad()
    def init_weights(self, scale: float) -> None:
        """Draw new weights such that outputs have the standard deviation `scale`."""
        nn.init.ones_(self.norm.weight)
        nn.init.normal_(self.up.weight, std=1 / math.sqrt(self.up.in_features))
        nn.init.zeros_(self.up.bias)
        # The second moment of GELU of a unit normal variable is 0.425.
        nn.init.normal_(self.down.weight, std=scale / math.sqrt(0.425 * self.down.in_features))
        nn.init.zeros_(self.down.bias)


class ResidualConverter(Converter):
    """PCC's converter beside a linear map: `skip(slot) + down(GELU(up(RMSNorm(slot))))`.

    `down` starts at zero and `skip` as the identity, so that slots which lie among the decoder's
    embeddings are read as they are from the first step. Arguments are `Converter`'s.
    """

    def __init__(self, d_encoder: int, hidden: int, d_decoder: int):
        super().__init__(d_encoder, hidden, d_decoder)
        self.skip = nn.Linear(d_encoder, d_decoder, bias=False)

    def forward(self, slots: torch.Tensor) -> torch.Tensor:
        """`(slots, d_encoder)` to `(slots, d_decoder)`."""
        return self.skip(slots) + super().forward(slots)

    @torch.no_grad()
    def init_weights(self, scale: float) -> None:
        """New weights; `scale` is that of the slots themselves, which pass unchanged."""
        super().init_weights(scale)
        nn.init.eye_(self.skip.weight)
        nn.init.zeros_(self.down.weight)


class LinearConverter(nn.Module):
    """RMSNorm and one Linear: the adapter of the sentence-pools article.

    The norm undoes only a slot's length, which sentence encoders mostly set to 1.

    Args:
        d_encoder: width of a slot before.
        d_decoder: width of a slot after.
    """

    def __init__(self, d_encoder: int, d_decoder: int):
        super().__init__()
        self.norm = nn.RMSNorm(d_encoder, eps=1e-6)
        self.map = nn.Linear(d_encoder, d_decoder)

    def forward(self, slots: torch.Tensor) -> torch.Tensor:
        """`(slots, d_encoder)` to `(slots, d_decoder)`."""
        return self.map(self.norm(slots))

    @torch.no_grad()
    def init_weights(self, scale: float) -> None:
        """Draw new weights such that outputs have the standard deviation `scale`."""
        nn.init.ones_(self.norm.weight)
        nn.init.normal_(self.map.weight, std=scale / math.sqrt(self.map.in_features))
        nn.init.zeros_(self.map.bias)


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


def _draw(layer: nn.Linear, gain: float) -> None:
    nn.init.normal_(layer.weight, std=gain / math.sqrt(layer.in_features))
    nn.init.zeros_(layer.bias)
