"""New compressors: two pretrained models, a converter between them, and what they are measured for.

A sentence-transformers model is read here, once: the checkpoint then holds what it consists of
(backbone, pooling, dense layers) and is loaded with transformers alone.
"""

import copy
import json
import logging
import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from memslots.embedding_map import embedding_scale, fit_embedding_map, shared_tokens
from memslots.modeling import MemslotsConfig, MemslotsModel, MemslotsProcessor
from memslots.modeling.checkpoint_memslots import (
    HUB_KWARGS,
    PROCESSOR_FIELDS,
    mark_initialized,
    pick_dtype,
)
from memslots.modeling.decoders_memslots import weights_sample
from memslots.modeling.encoders_memslots import (
    ACTIVATIONS,
    SHARED_ENCODER,
    Converter,
    GroupPool,
    LinearConverter,
    ResidualConverter,
    SentenceHead,
    add_lora,
    first_layers,
    first_layers_config,
    fold_adapter,
    is_quantized,
    load_encoder,
    merge_lora,
)
from memslots.modeling.texts_memslots import PlainText

logger = logging.getLogger(__name__)

_PLACE_KWARGS = ("revision", "code_revision", "subfolder", "gguf_file", "trust_remote_code")
"""Loading arguments that say which model a name means; configuration and tokenizer take them."""

NEEDS_SENTENCE_TRANSFORMERS = (
    "reading a sentence encoder needs sentence-transformers: pip install sentence-transformers."
)

POOLINGS = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
"""Ways of sentence-transformers that `SentenceHead` knows."""

_HUB_NAME = re.compile(r"\w[\w.-]*(/[\w.-]+)?")

MARKER_WORDS = ("\n\n", "\n\n", "Repeat the text:\n\n")
"""What `<MEM>`, `</MEM>` and `<AE>` start as where slots start among the decoder's embeddings."""


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
    shares = encoder == SHARED_ENCODER
    if not shares:
        encoder = absolute(encoder, "encoder")
    if "quantization_config" in config_kwargs:
        how = config_kwargs.pop("quantization_config")
        decoder_kwargs = {"quantization_config": how, **(decoder_kwargs or {})}
    shared = {"dtype": pick_dtype(dtype), "device_map": device_map}
    encoder_kwargs = _with_revision(encoder_kwargs, config_kwargs, "encoder_revision")
    decoder_kwargs = _with_revision(decoder_kwargs, config_kwargs, "decoder_revision")
    with model_named("decoder", decoder):
        llm_config = decoder_config(decoder, decoder_kwargs)
        tokenizer = decoder_tokenizer(decoder, decoder_kwargs)
    head = None
    if shares:
        layers = llm_config.get_text_config(decoder=True).num_hidden_layers
        count = config_kwargs.setdefault("encoder_layers", layers)
        _check_layers(count, layers, decoder)
        encoder_config = first_layers_config(llm_config, count)
        encoder_tokenizer = copy.deepcopy(tokenizer)
    else:
        if config_kwargs.get("encoder_layers") is not None:
            raise ValueError(
                f"encoder_layers={config_kwargs['encoder_layers']} cuts the decoder's own "
                f"layers, and the encoder is {encoder!r}; give encoder='decoder', or for that "
                "encoder encoder_kwargs={'num_hidden_layers': ...}."
            )
        place = only_place(encoder_kwargs)
        with model_named("encoder", encoder):
            encoder_tokenizer = AutoTokenizer.from_pretrained(encoder, **place)
        if config_kwargs.get("pooling") != "sentence":
            encoder_config = AutoConfig.from_pretrained(encoder, **place)
            _check_one_stack(encoder_config, encoder)
        else:
            base, head, described = read_sentence_encoder(encoder, encoder_tokenizer, **place)
            base.to(dtype=shared["dtype"] if isinstance(shared["dtype"], torch.dtype) else None)
            # A copy: what is made of a configuration writes its attention kernel into it.
            encoder_config = type(base.config).from_dict(base.config.to_dict())
            config_kwargs = {
                "segment_length": described["window"],
                "sentence_encoder": described,
                **config_kwargs,
            }
    config = MemslotsConfig(
        encoder_config=encoder_config,
        decoder_config=llm_config,
        encoder_name_or_path=decoder if shares else encoder,
        decoder_name_or_path=decoder,
        decoder_loading=kept_place(decoder_kwargs),
        encoder_loading=None if shares else kept_place(encoder_kwargs),
        **config_kwargs,
    )
    processor = processor_for(config, tokenizer, encoder_tokenizer)
    llm = AutoModelForCausalLM.from_pretrained(decoder, **{**shared, **decoder_kwargs})
    _check_embedding_width(llm, decoder)
    if shares:
        fold_adapter(llm)
        base = first_layers(llm, config.encoder_layers)
        if "target_modules" not in (config_kwargs.get("encoder_lora") or {}):
            names = {"target_modules": linear_layers(base)}
            config.encoder_lora = {**(config.encoder_lora or {}), **names}
    elif head is None:
        base = load_encoder(encoder, config.encoder_config, **{**shared, **encoder_kwargs})
        # Arguments such as num_hidden_layers have changed what the repository says.
        base_fields = base.config.to_dict()
        if is_quantized(base):
            raise ValueError(
                f"the encoder {encoder!r} is quantized, so its memories could not be told from "
                "those of the full encoder; name an unquantized one (quantization_config goes to "
                "the decoder)."
            )
        if "gguf_file" in encoder_kwargs:  # whose weights are dequantised
            base_fields.pop("quantization_config", None)
        config.encoder_config = type(base.config).from_dict(base_fields)
    else:
        mark_initialized(head)
    base.eval()
    config.encoder_is_causal = head is None and is_causal(base)
    if config.encoder_lora is not None:
        llm.requires_grad_(False)
        check_lora_layers(base, config.encoder_lora)
        add_lora(base, config.encoder_lora)
    mark_initialized(base)
    model = MemslotsModel(config, encoder=base, load_decoder=False, sentence_head=head)
    model.to(device=base.device, dtype=None if shares else base.dtype)
    model.processor = processor
    config.decoder_fingerprint = weights_sample(llm)
    model.attach_decoder(llm)
    match_scales(model)
    return model.eval()


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


@torch.no_grad()
def match_scales(model: MemslotsModel) -> None:
    """Draw memory tokens, markers and converter anew, at the scale of what they join.

    A slot that is ten times as large as a token embedding, or a tenth of it, is where training
    starts slowest.
    """
    if model.memory_tokens is not None:
        nn.init.normal_(model.memory_tokens, std=embedding_scale(model.encoder))
    scale = embedding_scale(model.decoder)
    nn.init.normal_(model.markers, std=scale)
    if isinstance(model.converter, ResidualConverter):  # blank lines, and a plea to repeat
        embed = model.decoder.get_input_embeddings()
        for marker, words in zip(model.markers, MARKER_WORDS, strict=True):
            ids = model.processor.decoder_text.encode(words)
            if ids:
                tokens = embed(torch.tensor(ids, device=embed.weight.device))
                marker.copy_(tokens.float().mean(dim=0))
    draw_converter(model.converter, scale)
    if isinstance(model.group_pool, GroupPool):
        draw_group_pool(model.group_pool)
        if model.config.encoder_layers is None:
            _start_among_embeddings(model)


@torch.no_grad()
def draw_converter(converter: nn.Module, scale: float) -> None:
    """New weights of a converter, such that what it gives has the standard deviation `scale`.

    A `ResidualConverter` gives slots as they are instead: of those that lie among the decoder's
    embeddings, the decoder reads what it knows from the first step.
    """
    if hasattr(converter, "draw"):  # one that was added to `CONVERTERS`
        converter.draw(scale)  # type: ignore[operator]
        return
    nn.init.ones_(converter.norm.weight)  # type: ignore[union-attr, arg-type]
    if isinstance(converter, LinearConverter):
        draw_linear(converter.map, scale)
    elif isinstance(converter, Converter):
        draw_linear(converter.up, 1.0)
        # The second moment of GELU of a unit normal variable is 0.425.
        draw_linear(converter.down, scale / math.sqrt(0.425))
        if isinstance(converter, ResidualConverter):
            nn.init.eye_(converter.skip.weight)
            nn.init.zeros_(converter.down.weight)


def draw_linear(layer: nn.Linear, gain: float) -> None:
    """New weights, such that unit normal inputs give outputs of the standard deviation `gain`."""
    nn.init.normal_(layer.weight, std=gain / math.sqrt(layer.in_features))
    nn.init.zeros_(layer.bias)


@torch.no_grad()
def draw_group_pool(pool: GroupPool) -> None:
    """Untrained weights: slots are sums of embeddings, the last token's the largest.

    So they lie in the geometry that the decoder reads.
    """
    places, _, width = pool.skip.shape
    for place in range(places):
        nn.init.eye_(pool.skip[place])
        pool.skip[place] *= 1 / (1 + 0.9 * place)
    nn.init.ones_(pool.norm.weight)
    nn.init.normal_(pool.up, std=1 / math.sqrt(4 * width))
    for tensor in (pool.bias, pool.down.weight, pool.down.bias):
        nn.init.zeros_(tensor)


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


def _start_among_embeddings(model: MemslotsModel) -> None:
    """Let slots that are sums of the encoder's embeddings be read as sums of the decoder's."""
    if not isinstance(model.converter, ResidualConverter):
        return
    tokenizers = model.processor.encoder_tokenizer, model.processor.tokenizer
    shared = len(shared_tokens(*tokenizers)[0])
    if shared < 2 * model.slot_size:
        logger.warning(
            "encoder and decoder share %d tokens, and starting from the decoder's embeddings "
            "needs at least %d: the converter starts from random weights, and learns more slowly",
            shared,
            2 * model.slot_size,
        )
        return
    mapping, explained = fit_embedding_map(
        model.encoder, tokenizers[0], model.decoder, tokenizers[1]
    )
    logger.info("the encoder's embeddings explain %.0f%% of the decoder's", 100 * explained)
    model.converter.skip.weight.copy_(mapping.T)


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


def _check_layers(count: int, layers: int, decoder: str) -> None:
    if not 1 <= count <= layers:
        raise ValueError(
            f"encoder_layers={count}, but the decoder {decoder!r} has {layers} layers; use 1 to "
            f"{layers} (about a third of them makes a light encoder)."
        )


def _check_one_stack(config, encoder: str) -> None:
    if config.is_encoder_decoder:
        raise ValueError(
            f"the encoder {encoder!r} is a {config.model_type} model, an encoder and a decoder in "
            "one; name a causal LM or a BERT-like encoder."
        )


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


def read_sentence_encoder(
    name: str, tokenizer, **kwargs
) -> tuple[PreTrainedModel, SentenceHead, dict[str, Any]]:
    """The parts of a sentence-transformers model.

    Args:
        name: repository or folder.
        tokenizer: its tokenizer.
        kwargs: for its loading: `revision`, `token`, `cache_folder`, `local_files_only`, ...

    Returns:
        The backbone, the head, and the description that `MemslotsConfig.sentence_encoder` keeps:
        `head` (the layers), `slot_size`, `window` (most tokens of a text, special ones left out),
        `prefix_ids` and `suffix_ids` (special tokens and prompt around it), `lead` (white space
        that a prompt puts before it) and `lower_case`.

    Raises:
        ImportError: sentence-transformers is not installed.
        ValueError: a model with parts other than a transformer, pooling, dense and norm layers.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise ImportError(NEEDS_SENTENCE_TRANSFORMERS) from error
    whole = SentenceTransformer(name, **kwargs)
    first, *others = whole
    backbone = first.model if hasattr(first, "model") else first.auto_model
    if getattr(backbone, "pooler", None) is not None:  # token states are all that is read
        backbone.pooler = None
    layers, states = [], []
    for module in others:
        kind, fields = type(module).__name__, module.get_config_dict()
        if kind == "Pooling":
            layers.append({"kind": "pooling", "modes": _pooling_modes(name, fields)})
        elif kind == "Dense":
            layers.append(_dense(name, fields))
            states.append({"0." + k.partition(".")[2]: v for k, v in module.state_dict().items()})
        elif kind == "LayerNorm":
            layers.append({"kind": "layer_norm", "outputs": fields["dimension"]})
            states.append({k.partition(".")[2]: v for k, v in module.state_dict().items()})
        elif kind == "Normalize":
            layers.append({"kind": "normalize"})
        else:
            raise ValueError(
                f"{name!r} has a {kind} module, which memslots cannot keep; use a sentence encoder "
                "of a transformer with Pooling, Dense, LayerNorm and Normalize."
            )
    if [layer["kind"] for layer in layers].count("pooling") != 1:
        raise ValueError(f"{name!r} does not pool token states, so it makes no sentence vector.")
    head = SentenceHead(layers).to(backbone.dtype)
    loaded = [layer for layer in head.layers if any(True for _ in layer.parameters())]
    for module, state in zip(loaded, states, strict=True):
        module.load_state_dict(state)
    prompts = whole.prompts or {}
    prompt = prompts.get("document") or prompts.get(whole.default_prompt_name) or ""
    plain = PlainText(tokenizer)
    prefix, suffix = _around(tokenizer, plain)
    prefix += plain.encode(prompt.rstrip()) if prompt.strip() else []
    window = min(whole.max_seq_length or 512, tokenizer.model_max_length)
    width = backbone.config.get_text_config().hidden_size
    for layer in layers:
        width = layer.get("outputs", width * len(layer.get("modes", [0])))
    description = {
        "head": layers,
        "slot_size": width,
        "window": window - len(prefix) - len(suffix),
        "prefix_ids": prefix,
        "suffix_ids": suffix,
        "lead": prompt[len(prompt.rstrip()) :],
        "lower_case": bool(getattr(first, "do_lower_case", False)),
    }
    return backbone, head, description


def _pooling_modes(name: str, fields: dict[str, Any]) -> list[str]:
    modes = fields["pooling_mode"]
    modes = [modes] if isinstance(modes, str) else list(modes)
    unknown = sorted(set(modes) - set(POOLINGS))
    if unknown or not fields.get("include_prompt", True):
        raise ValueError(
            f"{name!r} pools by {unknown or 'its text without the prompt'}, which memslots cannot "
            f"do; it supports {list(POOLINGS)} over all tokens."
        )
    return modes


def _dense(name: str, fields: dict[str, Any]) -> dict[str, Any]:
    activation = str(fields["activation_function"]).rpartition(".")[2]
    if activation not in ACTIVATIONS or fields.get("use_residual"):
        raise ValueError(
            f"{name!r} has a dense layer that memslots cannot keep: {fields}; it supports the "
            f"activations {sorted(ACTIVATIONS)}, without a residual."
        )
    return {
        "kind": "dense",
        "inputs": fields["in_features"],
        "outputs": fields["out_features"],
        "bias": fields["bias"],
        "activation": activation,
    }


def _around(tokenizer, plain: PlainText) -> tuple[list[int], list[int]]:
    """Special tokens before and after a text."""
    probe = "a"
    whole, alone = tokenizer(probe)["input_ids"], plain.encode(probe)
    for start in range(len(whole) - len(alone) + 1):
        if whole[start : start + len(alone)] == alone:
            return list(whole[:start]), list(whole[start + len(alone) :])
    raise ValueError(
        f"the sentence encoder's {type(tokenizer).__name__} reads {probe!r} as {whole}, in which "
        f"the text's tokens {alone} are not adjacent; memslots cannot tell text from special "
        "tokens."
    )
