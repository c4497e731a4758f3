"""New compressors: two pretrained models, and a converter between them."""

import copy
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.pytorch_utils import Conv1D

from memslots.modeling import MemslotsConfig, MemslotsModel, MemslotsProcessor
from memslots.modeling.checkpoint_memslots import (
    HUB_KWARGS,
    PROCESSOR_FIELDS,
    mark_initialized,
    pick_dtype,
)
from memslots.modeling.decoders_memslots import weights_sample
from memslots.modeling.encoders_memslots import (
    SHARED_ENCODER,
    SentenceHead,
    add_lora,
    first_layers,
    first_layers_config,
    fold_adapter,
    is_quantized,
    load_encoder,
    merge_lora,
)
from memslots.sentence_encoders import read_sentence_encoder
from memslots.start_weights import match_scales

_PLACE_KWARGS = ("revision", "code_revision", "subfolder", "gguf_file", "trust_remote_code")
"""Loading arguments that say which model a name means; configuration and tokenizer take them."""

_HUB_NAME = re.compile(r"\w[\w.-]*(/[\w.-]+)?")


def new_compressor(
    encoder: str,
    decoder: str,
    *,
    dtype=None,
    device_map=None,
    encoder_kwargs: dict[str, Any] | None = None,
    decoder_kwargs: dict[str, Any] | None = None,
    **config_kwargs,
) -> MemslotsModel:
    """A new compressor from two pretrained models; converter and memory tokens are untrained.

    Args:
        encoder: repository or folder of the encoder, a causal LM or a bidirectional encoder; or
            "decoder": the decoder's own first `encoder_layers` layers (all by default), weights
            shared, with a LoRA (`encoder_lora`, by default on all their linear layers).
        decoder: repository or folder of the decoder, a causal LM that stays as it is.
        dtype: the precision of both; by default float32 if there is no accelerator.
        device_map: the placement of both.
        encoder_kwargs: arguments of the encoder's `from_pretrained` alone.
        decoder_kwargs: arguments of the decoder's alone (`quantization_config`, ...).
            What says which model it is (`revision`, `subfolder`, `gguf_file`) is kept in the
            configuration, and used again by `from_pretrained`.
        config_kwargs: fields of `MemslotsConfig`, such as `compression_rates=[4, 16]`,
            `segment_length=256`, `encoder_lora={}` (PCC-Large's) or `encoder_revision=...`.

    Raises:
        ValueError: fields that do not go together; see `MemslotsConfig`.

    Examples:
        >>> model = memslots.new_compressor(
        ...     "decoder", "HuggingFaceTB/SmolLM2-135M-Instruct", encoder_layers=8,
        ...     pooling="groups", converter_type="residual", compression_rates=[2, 4, 8],
        ... )  # doctest: +SKIP
    """
    decoder = absolute(decoder, "decoder")
    if "quantization_config" in config_kwargs:
        how = config_kwargs.pop("quantization_config")
        decoder_kwargs = {"quantization_config": how, **(decoder_kwargs or {})}
    shared = {"dtype": pick_dtype(dtype), "device_map": device_map}
    encoder_kwargs = _with_revision(encoder_kwargs, config_kwargs, "encoder_revision")
    decoder_kwargs = _with_revision(decoder_kwargs, config_kwargs, "decoder_revision")
    with model_named("decoder", decoder):
        llm_config = decoder_config(decoder, decoder_kwargs)
        tokenizer = decoder_tokenizer(decoder, decoder_kwargs)
    part: _DecoderLayers | _SentenceEncoder | _Encoder
    if encoder == SHARED_ENCODER:
        part = _DecoderLayers(decoder, llm_config, tokenizer, config_kwargs)
    elif config_kwargs.get("pooling") == "sentence":
        part = _SentenceEncoder(encoder, encoder_kwargs, shared, config_kwargs)
    else:
        part = _Encoder(encoder, encoder_kwargs, shared, config_kwargs)
    config = MemslotsConfig(
        encoder_config=part.config,
        decoder_config=llm_config,
        encoder_name_or_path=part.name,
        decoder_name_or_path=decoder,
        decoder_loading=kept_place(decoder_kwargs),
        encoder_loading=part.place,
        **config_kwargs,
    )
    processor = processor_for(config, tokenizer, part.tokenizer)
    llm = AutoModelForCausalLM.from_pretrained(decoder, **{**shared, **decoder_kwargs})
    _check_embedding_width(llm, decoder)
    base = part.load(config, llm)
    base.eval()
    config.encoder_is_causal = part.head is None and is_causal(base)
    if config.encoder_lora is not None:
        llm.requires_grad_(False)
        check_lora_layers(base, config.encoder_lora)
        add_lora(base, config.encoder_lora)
    mark_initialized(base)
    model = MemslotsModel(config, encoder=base, load_decoder=False, sentence_head=part.head)
    model.to(device=base.device, dtype=None if config.encoder_layers else base.dtype)
    model.processor = processor
    config.decoder_fingerprint = weights_sample(llm)
    model.attach_decoder(llm)
    match_scales(model)
    return model.eval()


class _DecoderLayers:
    """An encoder that is the decoder's own first layers, with a LoRA.

    Args:
        decoder: name of the decoder.
        llm_config: its configuration.
        tokenizer: its tokenizer.
        config_kwargs: fields of the compressor's configuration; `encoder_layers` is set.
    """

    head, place = None, None

    def __init__(self, decoder: str, llm_config, tokenizer, config_kwargs: dict[str, Any]):
        layers = llm_config.get_text_config(decoder=True).num_hidden_layers
        count = config_kwargs.setdefault("encoder_layers", layers)
        if not 1 <= count <= layers:
            raise ValueError(
                f"encoder_layers={count}, but the decoder {decoder!r} has {layers} layers; use 1 "
                f"to {layers} (about a third of them makes a light encoder)."
            )
        self.name, self.tokenizer = decoder, copy.deepcopy(tokenizer)
        self.config = first_layers_config(llm_config, count)
        self.names_layers = "target_modules" in (config_kwargs.get("encoder_lora") or {})

    def load(self, config: MemslotsConfig, llm: PreTrainedModel) -> PreTrainedModel:
        fold_adapter(llm)
        base = first_layers(llm, config.encoder_layers)
        if not self.names_layers:
            names = {"target_modules": linear_layers(base)}
            config.encoder_lora = {**(config.encoder_lora or {}), **names}
        return base


class _Encoder:
    """A model of its own, a causal LM or a bidirectional encoder.

    Args:
        name: repository or folder.
        kwargs: arguments of its loading.
        shared: arguments of loading that the decoder gets too.
        config_kwargs: fields of the compressor's configuration.
    """

    head: SentenceHead | None = None

    def __init__(
        self,
        name: str,
        kwargs: dict[str, Any],
        shared: dict[str, Any],
        config_kwargs: dict[str, Any],
    ):
        self.name = absolute(name, "encoder")
        if config_kwargs.get("encoder_layers") is not None:
            raise ValueError(
                f"encoder_layers={config_kwargs['encoder_layers']} cuts the decoder's own "
                f"layers, and the encoder is {self.name!r}; give encoder='decoder', or for that "
                "encoder encoder_kwargs={'num_hidden_layers': ...}."
            )
        self.kwargs, self.shared, self.place = kwargs, shared, kept_place(kwargs)
        with model_named("encoder", self.name):
            self.tokenizer = AutoTokenizer.from_pretrained(self.name, **only_place(kwargs))
        self.config = self.read_config(config_kwargs)

    def read_config(self, config_kwargs: dict[str, Any]) -> PreTrainedConfig:
        with model_named("encoder", self.name):
            config = AutoConfig.from_pretrained(self.name, **only_place(self.kwargs))
        if config.is_encoder_decoder:
            raise ValueError(
                f"the encoder {self.name!r} is a {config.model_type} model, an encoder and a "
                "decoder in one; name a causal LM or a BERT-like encoder."
            )
        return config

    def load(self, config: MemslotsConfig, llm: PreTrainedModel) -> PreTrainedModel:
        base = load_encoder(self.name, config.encoder_config, **{**self.shared, **self.kwargs})
        # Arguments such as num_hidden_layers have changed what the repository says.
        fields = base.config.to_dict()
        if is_quantized(base):
            raise ValueError(
                f"the encoder {self.name!r} is quantized, so its memories could not be told from "
                "those of the full encoder; name an unquantized one (quantization_config goes to "
                "the decoder)."
            )
        if "gguf_file" in self.kwargs:  # whose weights are dequantised
            fields.pop("quantization_config", None)
        config.encoder_config = type(base.config).from_dict(fields)
        return base


class _SentenceEncoder(_Encoder):
    """A model of sentence-transformers, of which `config_kwargs` then says what it consists of."""

    def read_config(self, config_kwargs: dict[str, Any]) -> PreTrainedConfig:
        self.base, self.head, described = read_sentence_encoder(
            self.name, self.tokenizer, **only_place(self.kwargs)
        )
        mark_initialized(self.head)
        dtype = self.shared["dtype"]
        self.base.to(dtype=dtype if isinstance(dtype, torch.dtype) else None)
        config_kwargs.setdefault("segment_length", described["window"])
        config_kwargs.setdefault("sentence_encoder", described)
        # A copy: what is made of a configuration writes its attention kernel into it.
        return type(self.base.config).from_dict(self.base.config.to_dict())

    def load(self, config: MemslotsConfig, llm: PreTrainedModel) -> PreTrainedModel:
        return self.base


def usual_settings(
    encoder: str,
    decoder: str,
    encoder_kwargs: dict[str, Any] | None = None,
    decoder_kwargs: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """What `memslots init` sets where the user does not.

    Args:
        encoder: repository or folder, or "decoder": the decoder's own first layers.
        decoder: repository or folder.
        encoder_kwargs: arguments of the encoder's loading.
        decoder_kwargs: arguments of the decoder's loading.

    Returns:
        Fields of `MemslotsConfig`: the chat format where the tokenizer has a template, else answers
        that end at a newline;
        `pooling="groups"`, `converter_type="residual"` and rates of 2, 4 and 8, the start that
        learns soonest; and for a shared encoder a third of the layers.
    """
    decoder, kwargs = absolute(decoder, "decoder"), decoder_kwargs or {}
    settings: dict[str, Any] = {}
    with model_named("decoder", decoder):
        template = decoder_tokenizer(decoder, kwargs).chat_template
    if template:
        settings["prompt_format"] = "chat"
    else:  # an LLM without one goes on with a question of its own
        settings["answer_end"] = "\n"
    start = {"pooling": "groups", "converter_type": "residual", "compression_rates": [2, 4, 8]}
    if encoder == SHARED_ENCODER:
        text_config = decoder_config(decoder, kwargs).get_text_config(decoder=True)
        layers = max(1, round(text_config.num_hidden_layers / 3))
        return settings | {"encoder_layers": layers} | start
    encoder = absolute(encoder, "encoder")
    with model_named("encoder", encoder):
        config = AutoConfig.from_pretrained(encoder, **only_place(encoder_kwargs or {}))
    text_config = config.get_text_config(encoder=True)
    embedding = getattr(text_config, "embedding_size", None)  # ALBERT's differs from its states'
    return settings | (start if embedding in (None, text_config.hidden_size) else {})


def processor_for(config: MemslotsConfig, tokenizer, encoder_tokenizer) -> MemslotsProcessor:
    """A processor that segments and prompts as `config` says.

    Args:
        config: a compressor's configuration.
        tokenizer: the decoder's.
        encoder_tokenizer: the encoder's.
    """
    units, described = None, config.sentence_encoder
    if described is not None:
        units = {"unit": config.pool_unit, "language": config.pool_language}
        units.update({name: described[name] for name in ("lead", "lower_case")})
    return MemslotsProcessor(
        tokenizer,
        encoder_tokenizer,
        **{name: getattr(config, name) for name in PROCESSOR_FIELDS},
        spread=config.memory_positions == "spread",
        units=units,
    )


def linear_layers(layers: nn.Module) -> list[str]:
    """Names of the linear layers of a decoder's layers, which a LoRA may stand on."""
    kinds = (nn.Linear, Conv1D)
    names = {name.rpartition(".")[2] for name, m in layers.named_modules() if isinstance(m, kinds)}
    return sorted(names)


def check_lora_layers(encoder: nn.Module, lora: Mapping[str, Any]) -> None:
    """Raise `ValueError` where an encoder's LoRA is to stand on layers that it does not have."""
    names = [f".{name}" for name, _ in encoder.named_modules()]
    missing = [
        target
        for target in lora["target_modules"]
        if not any(name.endswith(f".{target}") for name in names)
    ]
    if missing:
        raise ValueError(
            f"encoder_lora: the encoder has no layers named {missing}; there are "
            f"{linear_layers(encoder)}. Give some of these as target_modules."
        )


def merge_encoder(model: MemslotsModel) -> MemslotsModel:
    """Fold a LoRA encoder's adapter into its base, in place, so that a checkpoint needs no peft.

    Args:
        model: Any compressor; of one without a LoRA nothing changes.

    Examples:
        >>> merge_encoder(model).config.encoder_lora is None
        True
    """
    if model.config.encoder_lora is None:
        return model
    if model.config.encoder_layers is not None:  # the decoder's weights must stay
        model.encoder = copy.deepcopy(model.encoder)
        model.config.encoder_layers = None
    merge_lora(model.encoder)
    model.config.encoder_lora = None
    return model


def absolute(name: str | os.PathLike, what: str = "model") -> str:
    """A repository's name, or the absolute path of a folder that is here.

    Raises:
        FileNotFoundError: a path, and no folder there.
        ValueError: a file.
    """
    path = os.path.expanduser(os.fspath(name))
    if os.path.isdir(path):
        return os.path.abspath(path)
    if os.path.isfile(path):
        raise ValueError(
            f"the {what} {path!r} is a file; name its folder, and a GGUF file by the loading "
            "argument gguf_file (decoder_kwargs, or memslots init --decoder-arg)."
        )
    if isinstance(name, os.PathLike) or not _HUB_NAME.fullmatch(path):
        raise FileNotFoundError(
            f"there is no folder {os.path.abspath(path)!r}, which was named as the {what}; name "
            "the folder of a model, or a repository of the Hub such as "
            "HuggingFaceTB/SmolLM2-135M-Instruct."
        )
    return path


@contextmanager
def model_named(what: str, name: str) -> Iterator[None]:
    """If a model cannot be loaded, say which one: the Hub's errors do not."""
    try:
        yield
    except OSError as error:
        raise OSError(
            f"the {what} {name!r} is not a folder here, and cannot be loaded from the Hub "
            f"({error})."
        ) from error


def _with_revision(kwargs, config_kwargs: dict[str, Any], field: str) -> dict[str, Any]:
    """Loading arguments with their revision, which `config_kwargs` then names too."""
    kwargs = dict(kwargs or {})
    said = {kwargs.get("revision"), config_kwargs.get(field)} - {None}
    if len(said) > 1:
        raise ValueError(f"{field} and the loading argument revision differ: {sorted(said)}.")
    for revision in said:
        kwargs["revision"] = config_kwargs[field] = revision
    return kwargs


def only_place(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Of arguments of `from_pretrained` those that say where a model is, which tokenizers take.

    A repository's code is run only if they say so: transformers would ask.
    """
    keys = (*HUB_KWARGS, *_PLACE_KWARGS)
    told = {key: kwargs[key] for key in keys if kwargs.get(key) is not None}
    return {"trust_remote_code": False, **told}


def kept_place(kwargs: dict[str, Any]) -> dict[str, Any] | None:
    """What a checkpoint remembers of how a model is loaded; its revision has a field."""
    keys = ("code_revision", "subfolder", "variant", "gguf_file")
    return {key: kwargs[key] for key in keys if kwargs.get(key)} or None


def decoder_config(name: str, kwargs: dict[str, Any]):
    """A decoder's configuration; of a LoRA adapter's folder, that of its base model."""
    file = os.path.join(name, "config.json")
    if os.path.isfile(file):
        with open(file, encoding="utf-8") as opened:
            if json.load(opened).get("model_type") == MemslotsConfig.model_type:
                raise ValueError(
                    f"{name!r} is a memslots checkpoint; name the LLM that is to read."
                )
    if os.path.isfile(os.path.join(name, "adapter_config.json")) and not os.path.isfile(
        os.path.join(name, "config.json")
    ):
        return AutoConfig.from_pretrained(_adapter_base(name))
    return AutoConfig.from_pretrained(name, **only_place(kwargs))


def decoder_tokenizer(name: str, kwargs: dict[str, Any]):
    """A decoder's tokenizer; of a LoRA adapter's folder without any, that of its base model."""
    if os.path.isfile(os.path.join(name, "adapter_config.json")) and not any(
        os.path.isfile(os.path.join(name, file))
        for file in ("tokenizer.json", "tokenizer_config.json")
    ):
        return AutoTokenizer.from_pretrained(_adapter_base(name))
    return AutoTokenizer.from_pretrained(name, **only_place(kwargs))


def _adapter_base(name: str) -> str:
    with open(os.path.join(name, "adapter_config.json"), encoding="utf-8") as file:
        return json.load(file)["base_model_name_or_path"]


def _check_embedding_width(llm: PreTrainedModel, decoder: str) -> None:
    width = llm.get_input_embeddings().weight.shape[1]
    states = llm.config.get_text_config(decoder=True).hidden_size
    if width != states:
        raise ValueError(
            f"the decoder {decoder!r} has token embeddings {width} wide and states {states} wide, "
            "and slots stand among embeddings of the states' width; name another size of it, or "
            "another LLM."
        )


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
