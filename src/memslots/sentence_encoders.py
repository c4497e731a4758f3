"""Reads a sentence-transformers model, once: the checkpoint then holds what it consists of.

That is a backbone, pooling and dense layers, which are loaded with transformers alone.
"""

from typing import Any

from transformers import PreTrainedModel

from memslots.modeling.encoders_memslots import ACTIVATIONS, SentenceHead
from memslots.modeling.texts_memslots import PlainText

NEEDS_SENTENCE_TRANSFORMERS = (
    "reading a sentence encoder needs sentence-transformers: pip install sentence-transformers."
)

POOLINGS = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
"""Ways of sentence-transformers that `SentenceHead` knows."""


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
