"""The parts a compressor is built from: encoder, converter, LoRA, scales and fingerprint."""

import hashlib
import inspect
import math

import torch
from torch import nn
from transformers import AutoModel, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_MAPPING

from .configuration_memslots import MemslotsConfig
from .converters_memslots import (
    AutoencoderConverter,
    QueryConverter,
    ResidualConverter,
    VariationalConverter,
)

LORA_MARK = ".lora_"
"""What the names of peft's adapter weights contain."""

NEEDS_PEFT = (
    "this compressor's encoder is a LoRA adapter, which needs peft: pip install peft. "
    "(A checkpoint saved after model.merge_encoder() does not.)"
)


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


def build_converter(
    config: MemslotsConfig,
) -> Converter | LinearConverter | AutoencoderConverter | QueryConverter | ResidualConverter:
    """The converter of `config` with new weights."""
    d_decoder = config.get_text_config(decoder=True).hidden_size
    if config.converter_type == "linear":
        return LinearConverter(config.slot_size, d_decoder)
    hidden = config.converter_hidden_size or d_decoder
    if config.converter_type in ("autoencoder", "vae"):
        kind = VariationalConverter if config.converter_type == "vae" else AutoencoderConverter
        return kind(
            config.slot_size,
            config.latent_size or config.slot_size,
            hidden,
            d_decoder,
            layers=config.converter_layers,
            dropout=config.converter_dropout if config.converter_regularization else None,
        )
    if config.converter_type == "queries":
        return QueryConverter(config.slot_size, hidden, d_decoder, config.converter_queries)
    kind = ResidualConverter if config.converter_type == "residual" else Converter
    return kind(config.slot_size, hidden, d_decoder)


def build_encoder(config: MemslotsConfig) -> PreTrainedModel:
    """The encoder of `config` with new weights: the base model without any head."""
    return AutoModel.from_config(config.encoder_config, **_without_pooler(config.encoder_config))


def load_encoder(name: str, encoder_config, **kwargs) -> PreTrainedModel:
    """The pretrained base model `name`, without any head."""
    return AutoModel.from_pretrained(name, **_without_pooler(encoder_config), **kwargs)


def _without_pooler(encoder_config) -> dict[str, bool]:
    """Arguments that leave BERT's pooler out: slots are token states, so it would never train."""
    model_class = MODEL_MAPPING.get(type(encoder_config), None)
    if model_class is None or isinstance(model_class, (list, tuple)):
        return {}
    takes = "add_pooling_layer" in inspect.signature(model_class.__init__).parameters
    return {"add_pooling_layer": False} if takes else {}


def add_lora(encoder: PreTrainedModel, lora: dict) -> None:
    """Inject LoRA into `encoder` in place and freeze its base (PCC-Large).

    Args:
        encoder: the base model.
        lora: `MemslotsConfig.encoder_lora`.

    Raises:
        ImportError: peft is not installed.
        ValueError: the encoder has no layer of the asked names.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ImportError(NEEDS_PEFT) from error
    adapter = LoraConfig(
        r=lora["r"],
        lora_alpha=lora["alpha"],
        lora_dropout=lora["dropout"],
        target_modules=list(lora["target_modules"]),
    )
    encoder.requires_grad_(False)
    inject_adapter_in_model(adapter, encoder)
    for name, parameter in encoder.named_parameters():
        parameter.requires_grad_(LORA_MARK in name)


def merge_lora(encoder: PreTrainedModel) -> None:
    """Fold the LoRA weights into the base layers in place."""
    try:
        from peft.tuners.tuners_utils import BaseTunerLayer
    except ImportError as error:
        raise ImportError(NEEDS_PEFT) from error

    for name, module in list(encoder.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            parent = encoder.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], module.get_base_layer())
    encoder.requires_grad_(True)


def check_takes_positions(encoder: PreTrainedModel) -> None:
    """Refuse an encoder whose memory tokens cannot be given positions.

    Raises:
        ValueError: its forward takes no `position_ids`, or its attention kernel would misread them.
    """
    if "position_ids" not in inspect.signature(encoder.forward).parameters:
        raise ValueError(
            f"memory_positions='spread' needs an encoder that takes position_ids, and "
            f"{type(encoder).__name__} does not; use 'after'."
        )
    attention = encoder.config._attn_implementation or ""
    if "flash" in attention:  # it takes positions that do not rise for several packed texts
        raise ValueError(
            f"memory_positions='spread' does not work with attn_implementation={attention!r}; "
            "use 'sdpa' or 'eager', or memory_positions='after'."
        )


def encoder_embedding_dim(encoder: PreTrainedModel) -> int:
    """Width of the encoder's input embeddings (ALBERT's and ELECTRA's differ from its states)."""
    return encoder.get_input_embeddings().weight.shape[1]


@torch.no_grad()
def embedding_scale(model: PreTrainedModel) -> float:
    """Standard deviation of what the model's input embedding layer gives (some scale inside)."""
    layer = model.get_input_embeddings()
    rows = layer.weight.shape[0]
    ids = torch.arange(0, rows, max(1, rows // 4096), device=layer.weight.device)
    return layer(ids).float().std().item()


@torch.no_grad()
def is_causal(encoder: PreTrainedModel) -> bool:
    """Whether a change of the last input leaves the states before it as they were.

    No configuration field says it reliably, so it is tried.
    """
    layer = encoder.get_input_embeddings()
    ids = torch.arange(8, device=layer.weight.device).unsqueeze(0) % layer.weight.shape[0]
    embeds = layer(ids)
    changed = embeds.clone()
    changed[:, -1] = -changed[:, -1] + embeds.std()
    before = encoder(inputs_embeds=embeds).last_hidden_state[:, :-1]
    after = encoder(inputs_embeds=changed).last_hidden_state[:, :-1]
    # Masked positions get a weight of exactly 0, so a causal encoder differs by rounding at most;
    # one that sees the change may differ by little where its weights are small.
    return (before - after).abs().max().item() <= 1e-5 * before.abs().max().item()


def fingerprint(
    encoder: PreTrainedModel,
    memory_tokens: torch.Tensor | None,
    tokenizer: str,
    segmentation: str,
    sentence_head: nn.Module | None = None,
    pooling_query: torch.Tensor | None = None,
    group_pool: nn.Module | None = None,
    shared: bool = False,
) -> str:
    """SHA-256 of all that decides what slots a text gets; the converter is not part of it.

    Args:
        encoder: the encoder with its weights.
        memory_tokens: `(max_slots, d_embedding)`, where there are any.
        tokenizer: the encoder tokenizer's plain-text backend as JSON.
        segmentation: what decides segments and the places of their memory tokens.
        sentence_head: what makes the slots of a sentence encoder's states.
        pooling_query: `(d_encoder,)`, where attention pools.
        group_pool: what pools groups, where they are.
        shared: whether the encoder's base is the decoder's own, which the checkpoint names and
            which may be held in another precision: only the adapter counts then.
    """
    digest = hashlib.sha256(f"memslots 1 {segmentation}\n".encode())
    digest.update(tokenizer.encode())
    weights = dict(encoder.state_dict())
    if shared:
        weights = {name: tensor for name, tensor in weights.items() if LORA_MARK in name}
    if group_pool is not None:
        weights.update({f"pool {k}": v for k, v in group_pool.state_dict().items()})
    if memory_tokens is not None:
        weights["memory_tokens"] = memory_tokens
    if pooling_query is not None:
        weights["pooling_query"] = pooling_query
    if sentence_head is not None:
        weights.update({f"head {k}": v for k, v in sentence_head.state_dict().items()})
    for name in sorted(weights):
        tensor = weights[name].detach().to("cpu").contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
