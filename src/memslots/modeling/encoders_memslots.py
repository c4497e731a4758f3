"""Encoders: what an encoder is, how it makes slots of segments (`MemslotsConfig.pooling`), and the
converters of slots into the decoder's space.
"""

import copy
import inspect
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional
from tqdm.auto import tqdm
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.auto.modeling_auto import MODEL_MAPPING

from .texts_memslots import Span

SHARED_ENCODER = "decoder"
"""In place of an encoder's name: the decoder's own first layers."""

LORA_MARK = ".lora_"
"""What the names of peft's adapter weights contain."""

NEEDS_PEFT = (
    "this compressor's encoder is a LoRA adapter, which needs peft: pip install peft. "
    "(A checkpoint saved after memslots.making.merge_encoder(model) does not.)"
)
ACTIVATIONS = {"Identity": nn.Identity, "Tanh": nn.Tanh, "GELU": nn.GELU, "ReLU": nn.ReLU}

_MODES = threading.RLock()  # held while a module in training is in evaluation, for all threads

# -- the model ------------------------------------------------------------------------------------


def build_encoder(config) -> PreTrainedModel:
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


def first_layers(decoder: PreTrainedModel, count: int | None = None) -> PreTrainedModel:
    """The decoder's base model, cut after `count` layers: other modules over the same parameters.

    PCC-Large starts its encoder from the decoder's weights and trains a LoRA (PCC, section 3.1.2).
    Adapters in this other tree of modules leave the decoder as it is.

    Raises:
        ValueError: more layers than the decoder has, or a decoder whose layers are not in one list.
    """
    body, name, layers = _body_and_layers(decoder)
    count = len(layers) if count is None else count
    if not 1 <= count <= len(layers):
        raise ValueError(
            f"encoder_layers={count}, but the decoder {type(decoder).__name__} has {len(layers)} "
            f"layers; use 1 to {len(layers)} (about a third of them makes a light encoder)."
        )
    if count < len(layers) and getattr(body.config, "hidden_size_per_layer_input", False):
        raise ValueError(
            f"{type(decoder).__name__} has embeddings of its own for each layer, so its first "
            f"{count} layers cannot be run by themselves; leave encoder_layers out (all layers)."
        )
    encoder = _over_same_parameters(body)
    setattr(encoder, name, getattr(encoder, name)[:count])
    encoder.config = first_layers_config(body.config, count)
    return encoder


def first_layers_config(config: PreTrainedConfig, count: int) -> PreTrainedConfig:
    """A copy of a text model's configuration with its first `count` layers."""
    shorter = copy.deepcopy(config.get_text_config())
    total = shorter.num_hidden_layers
    shorter.num_hidden_layers = count
    for key, value in list(vars(shorter).items()):  # layer_types and its like: an entry per layer
        if isinstance(value, (list, tuple)) and len(value) == total:
            setattr(shorter, key, type(value)(value[:count]))
    sharing: Any = getattr(shorter, "num_kv_shared_layers", None)
    if sharing:  # Gemma's last layers take keys and values of earlier ones: which ones stays fixed
        shorter.num_kv_shared_layers = max(0, count - (total - sharing))
    return shorter


def _body_and_layers(decoder: PreTrainedModel) -> tuple[PreTrainedModel, str, nn.ModuleList]:
    """The model that runs the decoder's layers, and the name and list of them."""
    total = decoder.config.get_text_config(decoder=True).num_hidden_layers
    places = [
        (module, name, child)
        for module in decoder.modules()
        if isinstance(module, PreTrainedModel)
        for name, child in module.named_children()
        if isinstance(child, nn.ModuleList)
        and len(child) == total
        and all(isinstance(layer, GradientCheckpointingLayer) for layer in child)
    ]
    if len(places) != 1:
        raise ValueError(
            f"encoder {SHARED_ENCODER!r} needs a decoder whose {total} layers stand in one list, "
            f"and {type(decoder).__name__} has {len(places)} such lists; name a separate encoder "
            "instead."
        )
    return places[0]


def _over_same_parameters(module: nn.Module) -> nn.Module:
    """Another tree of modules that holds the very parameters and buffers of this one."""
    twin = copy.copy(module)
    for name in ("_parameters", "_buffers", "_non_persistent_buffers_set"):
        twin.__dict__[name] = copy.copy(module.__dict__[name])
    for name in list(twin.__dict__):
        if name.endswith("_hooks"):
            twin.__dict__[name] = type(module.__dict__[name])()
    twin.__dict__["_modules"] = {
        name: None if child is None else _over_same_parameters(child)
        for name, child in module._modules.items()
    }
    return twin


def fuse_activations(module: nn.Module) -> int:
    """Put torch's tanh-GELU in the place of spelled-out ones, in place; how many there were.

    transformers spells GPT-2's out: eight passes over a tensor four times as wide as the model. A
    decoder is its user's and is left alone.
    """
    spelled_out = [
        (parent, name)
        for parent in module.modules()
        for name, child in parent.named_children()
        if type(child).__name__ in {"NewGELUActivation", "FastGELUActivation"}
    ]
    for parent, name in spelled_out:
        setattr(parent, name, ACT2FN["gelu_pytorch_tanh"])
    return len(spelled_out)


def add_lora(encoder: PreTrainedModel, lora: dict) -> None:
    """Inject `MemslotsConfig.encoder_lora` in place and freeze the base (PCC-Large).

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


def fold_adapter(decoder: PreTrainedModel) -> None:
    """Fold a decoder's own LoRA adapter into its weights, in place, if it has one.

    An encoder that shares its layers has an adapter of its own there: the two would be one.
    """
    if getattr(decoder, "_hf_peft_config_loaded", False):
        merge_lora(decoder)
        decoder.requires_grad_(False)
        decoder._hf_peft_config_loaded = False


def check_takes_positions(encoder: PreTrainedModel) -> None:
    """Raise `ValueError` where an encoder's memory tokens cannot be given positions."""
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


def is_quantized(model: nn.Module) -> bool:
    """Whether some weights are held in 8 bit or fewer (those of a GGUF file are not, once read)."""
    if getattr(model, "is_quantized", False) and model.quantization_method != "gguf":
        return True
    return any(weight.element_size() == 1 for weight in model.parameters())


# -- slots ----------------------------------------------------------------------------------------


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """While open, `module` draws, drops and counts nothing; in training, one thread at a time."""
    with _MODES:
        if training := module.training:
            module.eval()
            try:
                yield
            finally:
                module.train(training)
    if not training:
        yield


class StatesRead(NamedTuple):
    """Which of the encoder's states become slots.

    Args:
        width: positions of the encoder's rows.
        places: `(states,)`, in the states flattened to `(segments * width, d)`: those of
            memory tokens or, where states are pooled, of tokens.
        slots: how many slots they make.
        rate: most tokens of a slot, if that is known.
    """

    width: int
    places: torch.Tensor
    slots: int
    rate: int | None = None


def states_read(
    lengths: torch.Tensor, counts: torch.Tensor, pooled: bool, rate: int | None = None
) -> StatesRead:
    """Of segments' tokens and slots, each `(segments,)`; for a GPU's tensors this waits.

    `pooled` slots are made of the tokens' states, not of memory tokens'.
    """
    first = torch.zeros_like(lengths) if pooled else lengths
    ends = lengths if pooled else lengths + counts
    width = int(ends.max())
    positions = torch.arange(width, device=lengths.device)
    read = (positions >= first.unsqueeze(1)) & (positions < ends.unsqueeze(1))
    return StatesRead(width, read.flatten().nonzero().squeeze(1), int(counts.sum()), rate)


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """`tensor` on `device`; a GPU fetches it from pinned memory while the host goes on."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def token_batches(
    lengths: Sequence[int], slots: Sequence[int], batch_tokens: int
) -> Iterator[list[int]]:
    """Indices of segments, longest first, in batches of at most `batch_tokens` padded tokens."""
    order = sorted(range(len(lengths)), key=lambda i: -(lengths[i] + slots[i]))
    batch: list[int] = []
    for i in order:
        longest = lengths[batch[0]] + slots[batch[0]] if batch else 0
        if batch and longest * (len(batch) + 1) > batch_tokens:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


@torch.no_grad()
def encode_spans(
    model,
    spans: Sequence[Span],
    rate: int,
    batch_tokens: int | None = None,
    progress: bool | None = None,
) -> torch.Tensor:
    """Slots `(total_slots, d_encoder)` of segments, one after another, encoded in batches.

    Arguments are those of `MemslotsModel.compress`. Equal segments are encoded once.
    """
    if batch_tokens is not None and (type(batch_tokens) is not int or batch_tokens < 1):
        raise ValueError(f"batch_tokens must be at least 1, got {batch_tokens!r}.")
    index: dict[tuple[int, ...], int] = {}  # of each distinct segment
    places_of = [index.setdefault(tuple(span.ids), len(index)) for span in spans]
    spans = list({tuple(span.ids): span for span in spans}.values())
    counts = [-(-len(span.ids) // rate) for span in spans]
    offsets = [0, *accumulate(counts)]
    device = model.encoder.device
    slots = torch.empty(offsets[-1], model.slot_size, device=device, dtype=model.dtype)
    pooled = model.config.pooling != "memory_tokens"
    appended = [0] * len(spans) if pooled else counts
    most = batch_tokens or (4096 if device.type == "cpu" else 16384)
    batches = list(token_batches([len(span.ids) for span in spans], appended, most))
    with evaluating(model.encoder), torch.inference_mode():
        show = len(batches) > 20 if progress is None else progress
        # `slots` was made outside, so that what is returned may be trained on. Nothing of ours
        # waits for a GPU: the next pass is put together and sent while it works. (transformers
        # waits once a pass, as it looks for packed texts, when that is done.)
        for batch in tqdm(batches, desc="compressing", unit="batch", disable=not show):
            inputs = model.processor.collate_segments([spans[i] for i in batch])
            lengths = inputs["segment_attention_mask"].sum(dim=1)
            numbers = torch.tensor([counts[i] for i in batch])
            read = states_read(lengths, numbers, pooled, rate)
            encoded = model.encode(
                **{name: to_device(tensor, device) for name, tensor in inputs.items()},
                segment_rates=torch.full((len(batch),), rate, device=device),
                read=read._replace(places=to_device(read.places, device)),
            )
            places = torch.cat([torch.arange(offsets[i], offsets[i + 1]) for i in batch])
            slots[to_device(places, device)] = encoded.to(slots.dtype)
    if len(places_of) == len(spans):
        return slots
    parts = slots.split(counts)
    return torch.cat([parts[i] for i in places_of])


def spread_places(count: int) -> list[float]:
    """Places of spread memory tokens in their segment, above 0 and up to 1, its end.

    The van der Corput sequence, counted from the end: any first k places lie evenly, so no rate is
    favoured, and each ends a stretch of text that no other slot is nearer to.
    """
    return [1 - int(f"{i:032b}"[::-1], 2) / 2**32 for i in range(count)]


def memory_token_slots(
    model,
    segment_input_ids: torch.Tensor,
    lengths: torch.Tensor,
    rates: torch.Tensor,
    read: StatesRead,
) -> torch.Tensor:
    """Last states of memory tokens, `(slots, d_encoder)`.

    They follow each segment's last token, and padding follows them, so that a short segment sees
    neither padding nor a gap in its positions.

    Args:
        model: a `MemslotsModel`.
        segment_input_ids: `(segments, tokens)`, right-padded.
        lengths: `(segments,)`, tokens of each.
        rates: `(segments,)`, tokens per slot of each.
        read: what `states_read` gave.
    """
    encoder, memory_tokens = model.encoder, model.memory_tokens
    embeds = encoder.get_input_embeddings()(segment_input_ids)
    counts, lengths = -(-lengths // rates), lengths.unsqueeze(1)
    ends = lengths + counts.unsqueeze(1)
    positions = torch.arange(read.width, device=embeds.device).unsqueeze(0)
    is_slot = (positions >= lengths) & (positions < ends)
    slot_index = (positions - lengths).clamp(0, memory_tokens.shape[0] - 1)
    token_index = positions.clamp(max=embeds.shape[1] - 1).expand(embeds.shape[0], -1)
    tokens = embeds.gather(1, token_index.unsqueeze(-1).expand(-1, -1, embeds.shape[2]))
    # Some encoders scale inside their embedding layer; memory tokens are made at that scale.
    memory = memory_tokens.to(embeds.dtype)[slot_index]
    inputs = torch.where(is_slot.unsqueeze(-1), memory, tokens)
    # Under a causal encoder what follows cannot be seen, so no mask (and no slower kernel).
    mask = None if model.config.encoder_is_causal else (positions < ends).long()
    placed = {}
    if model.config.memory_positions == "spread":
        places = to_device(torch.tensor(spread_places(len(memory_tokens))), embeds.device)
        spread_positions = (places[slot_index] * lengths).ceil().long() - 1
        placed["position_ids"] = torch.where(is_slot, spread_positions, positions)
        if mask is None:  # without one, transformers takes falling positions for packed texts
            mask = torch.ones_like(placed["position_ids"])
    states = encoder(inputs_embeds=inputs, attention_mask=mask, **placed).last_hidden_state
    return states.flatten(0, 1)[read.places]


def pooled_slots(
    model,
    segment_input_ids: torch.Tensor,
    lengths: torch.Tensor,
    rates: torch.Tensor,
    read: StatesRead,
) -> torch.Tensor:
    """One vector of the last states of `rate` tokens each; a last group may be short."""
    positions = torch.arange(read.width, device=segment_input_ids.device).unsqueeze(0)
    # Under a causal encoder padding, which follows, cannot be seen.
    mask = None
    if not model.config.encoder_is_causal:
        mask = (positions < lengths.unsqueeze(1)).long()
    input_ids = segment_input_ids[:, : read.width]
    states = model.encoder(input_ids=input_ids, attention_mask=mask).last_hidden_state
    counts = -(-lengths // rates)
    first = counts.cumsum(dim=0) - counts
    groups = first.unsqueeze(1) + positions // rates.unsqueeze(1)
    groups, states = groups.flatten()[read.places], states.flatten(0, 1)[read.places]
    embeds = model.get_input_embeddings()(input_ids).flatten(0, 1)[read.places]
    return model.group_pool(embeds, states, groups, read.slots, read.rate)


def sentence_slots(model, segment_input_ids: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """One vector per segment, as its sentence encoder makes it: with its special tokens."""
    described = model.config.sentence_encoder
    prefix, suffix = (
        to_device(torch.tensor(described[name], dtype=torch.long), segment_input_ids.device)
        for name in ("prefix_ids", "suffix_ids")
    )
    rows = segment_input_ids.shape[0]
    ends = (lengths + len(prefix)).unsqueeze(1)
    ids = torch.cat([prefix.expand(rows, -1), segment_input_ids], dim=1)
    ids = functional.pad(ids, (0, len(suffix)))
    for i, token in enumerate(suffix):
        ids = ids.scatter(1, ends + i, token.expand(rows, 1))
    positions = torch.arange(ids.shape[1], device=ids.device).unsqueeze(0)
    mask = (positions < ends + len(suffix)).long()
    states = model.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
    return model.sentence_head(states, mask)


# -- pooling -----------------------------------------------------------------------------------


def merged(slots: torch.Tensor, tokens: int, rate: int, coarser: int) -> torch.Tensor:
    """The mean slots of a segment of so many tokens at a multiple of their rate."""
    times, count = coarser // rate, -(-tokens // coarser)
    missing = (0, 0, 0, count * times - len(slots))
    # Each counts as many times as the tokens it stands for.
    tokens_of = (tokens - torch.arange(len(slots), device=slots.device) * rate).clamp(max=rate)
    weights = functional.pad(tokens_of.float().unsqueeze(1), missing).view(count, times, 1)
    padded = functional.pad(slots.float(), missing).view(count, times, -1)
    return ((padded * weights).sum(dim=1) / weights.sum(dim=1)).to(slots.dtype)


def group_sizes(groups: torch.Tensor, n_groups: int) -> torch.Tensor:
    """Tokens of each group; not `bincount`, which waits for a GPU to tell its largest group."""
    return groups.new_zeros(n_groups).index_add(0, groups, torch.ones_like(groups))


class MeanPool(nn.Module):
    """A slot is the mean of its group's states (LCLM, 2026); arguments as for `GroupPool`."""

    def forward(self, embeds, states, groups, n_groups, places=None) -> torch.Tensor:
        """Slots `(groups, width)`."""
        totals = states.new_zeros(n_groups, states.shape[1], dtype=torch.float32)
        totals = totals.index_add(0, groups, states.float())
        return (totals / group_sizes(groups, n_groups).unsqueeze(1)).to(states.dtype)


class GroupPool(nn.Module):
    """A slot from the embeddings and states of its group of tokens, told apart by their places.

    `slot = sum_j skip_j e_j + down(GELU(sum_j up_j norm(h_j) + bias))`, where token j counts back
    from the group's last one, e is its input embedding and h its state. Rates share their weights:
    a coarser one has more places.

    Args:
        width: the width of embeddings, states and slots.
        hidden: width inside.
        places: tokens of the largest group.
    """

    def __init__(self, width: int, hidden: int, places: int):
        super().__init__()
        self.skip = nn.Parameter(torch.empty(places, width, width))
        self.norm = nn.RMSNorm(width, eps=1e-6)
        self.up = nn.Parameter(torch.empty(places, hidden, width))
        self.bias = nn.Parameter(torch.empty(hidden))
        self.down = nn.Linear(hidden, width)

    def forward(
        self,
        embeds: torch.Tensor,
        states: torch.Tensor,
        groups: torch.Tensor,
        n_groups: int,
        places: int | None = None,
    ) -> torch.Tensor:
        """Slots `(groups, width)`, no group empty.

        Args:
            embeds: `(tokens, width)`, group after group.
            states: `(tokens, width)`.
            groups: `(tokens,)`, the group of each, rising from 0.
            n_groups: groups.
            places: most tokens of a group here, if that is known.
        """
        places = places or len(self.skip)
        ends = group_sizes(groups, n_groups).cumsum(dim=0)
        back = ends[groups] - 1 - torch.arange(len(groups), device=groups.device)
        index = groups * places + back
        width = embeds.shape[1]

        def grouped(tokens: torch.Tensor) -> torch.Tensor:  # a short group ends in zeros
            rows = tokens.new_zeros(n_groups * places, width).index_copy(0, index, tokens)
            return rows.view(n_groups, places * width)

        embeds = embeds.to(self.down.weight.dtype)
        skip = self.skip[:places].transpose(0, 1).flatten(1)
        up = self.up[:places].transpose(0, 1).flatten(1)
        normed = self.norm(states.to(embeds.dtype))
        inner = functional.linear(grouped(normed), up, self.bias)
        return functional.linear(grouped(embeds), skip) + self.down(functional.gelu(inner))


POOLS: dict[str, Callable[[Any], nn.Module]] = {
    "mean": lambda config: MeanPool(),
    "groups": lambda config: GroupPool(
        config.slot_size,
        config.pool_hidden_size or 2 * config.slot_size,
        max(config.compression_rates),
    ),
}
"""From a `MemslotsConfig` to what pools token states, by `pooling`; add your own by a new name
(`lab/capacity/pools.py` adds three)."""


# -- sentence encoders ----------------------------------------------------------------------------


class SentenceHead(nn.Module):
    """What stands between the token states of a sentence encoder and its one vector.

    `layers` are those of `memslots.sentence_encoders.read_sentence_encoder`.
    """

    def __init__(self, layers: Sequence[dict[str, Any]]):
        super().__init__()
        self.kinds = [layer["kind"] for layer in layers]
        self.poolings = [layer.get("modes", []) for layer in layers]
        modules: list[nn.Module] = []
        for layer in layers:
            if layer["kind"] == "dense":
                dense = nn.Linear(layer["inputs"], layer["outputs"], bias=layer["bias"])
                modules.append(nn.Sequential(dense, ACTIVATIONS[layer["activation"]]()))
            elif layer["kind"] == "layer_norm":
                modules.append(nn.LayerNorm(layer["outputs"]))
            else:
                modules.append(nn.Identity())
        self.layers = nn.ModuleList(modules)

    def forward(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """`(sentences, tokens, d)` and `(sentences, tokens)` to `(sentences, slot_size)`."""
        vectors = states
        for kind, modes, layer in zip(self.kinds, self.poolings, self.layers, strict=True):
            if kind == "pooling":
                vectors = torch.cat([_pool(vectors, mask, mode) for mode in modes], dim=1)
            elif kind == "normalize":
                vectors = functional.normalize(vectors, dim=1)
            else:
                vectors = layer(vectors)
        return vectors


def _pool(states: torch.Tensor, mask: torch.Tensor, mode: str) -> torch.Tensor:
    weights = mask.unsqueeze(-1).to(states.dtype)
    if mode == "cls":
        return states[:, 0]
    if mode == "max":
        return states.masked_fill(weights == 0, float("-inf")).amax(dim=1)
    if mode == "lasttoken":
        last = mask.sum(dim=1) - 1
        return states[torch.arange(len(states), device=states.device), last]
    if mode == "weightedmean":
        positions = torch.arange(1, states.shape[1] + 1, device=states.device)
        weights = weights * positions.to(states.dtype)[None, :, None]
    total = weights.sum(dim=1).clamp(min=1e-9)
    divisor = total.sqrt() if mode == "mean_sqrt_len_tokens" else total
    return (states * weights).sum(dim=1) / divisor


# -- converters: `(slots, d_encoder)` to `(slots, d_decoder)` --------------------------------------


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
