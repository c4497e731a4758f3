"""Sentence pools: one vector of a retrieval encoder for a sentence, a paragraph or a text.

As in the article "I Compressed LLM Context 10x and Kept 89% of the Facts": the text is split into
sentences, a frozen sentence encoder gives one vector each, and a trained converter maps it to the
decoder. A sentence-transformers model is read once, when the compressor is made; the checkpoint
then holds what it consists of (backbone, pooling, dense layers) and is loaded with transformers
alone.
"""

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.utils import logging

from .tokenization_memslots import PlainText, Span

logger = logging.get_logger(__name__)

NEEDS_SENTENCE_TRANSFORMERS = (
    "reading a sentence encoder needs sentence-transformers: pip install sentence-transformers "
    "(or memslots[sentence])."
)
NEEDS_SENTENCEX = (
    "splitting a text into sentences needs sentencex: pip install sentencex (or "
    "memslots[sentence]); pool_unit='paragraph' and 'text' need nothing."
)
POOLINGS = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
ACTIVATIONS = {"Identity": nn.Identity, "Tanh": nn.Tanh, "GELU": nn.GELU, "ReLU": nn.ReLU}


class SentenceHead(nn.Module):
    """What stands between the token states of a sentence encoder and its one vector.

    Args:
        layers: a dict each, of the kind "pooling", "dense", "layer_norm" or "normalize", as
            `read_sentence_encoder` makes them.
    """

    def __init__(self, layers: Sequence[dict[str, Any]]):
        super().__init__()
        self.kinds = [layer["kind"] for layer in layers]
        self.poolings = [layer.get("modes", []) for layer in layers]
        made: list[nn.Module] = []
        for layer in layers:
            if layer["kind"] == "dense":
                dense = nn.Linear(layer["inputs"], layer["outputs"], bias=layer["bias"])
                made.append(nn.Sequential(dense, ACTIVATIONS[layer["activation"]]()))
            elif layer["kind"] == "layer_norm":
                made.append(nn.LayerNorm(layer["outputs"]))
            else:
                made.append(nn.Identity())
        self.layers = nn.ModuleList(made)

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
    return (states * weights).sum(dim=1) / (
        total.sqrt() if mode == "mean_sqrt_len_tokens" else total
    )


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
        kind, given = type(module).__name__, module.get_config_dict()
        if kind == "Pooling":
            layers.append({"kind": "pooling", "modes": _pooling_modes(name, given)})
        elif kind == "Dense":
            layers.append(_dense(name, given))
            states.append({"0." + k.partition(".")[2]: v for k, v in module.state_dict().items()})
        elif kind == "LayerNorm":
            layers.append({"kind": "layer_norm", "outputs": given["dimension"]})
            states.append({k.partition(".")[2]: v for k, v in module.state_dict().items()})
        elif kind == "Normalize":
            layers.append({"kind": "normalize"})
        else:
            raise ValueError(
                f"{name!r} has a {kind} module, which memslots cannot keep; use a sentence encoder "
                "of a transformer with Pooling, Dense, LayerNorm and Normalize."
            )
    if [layer["kind"] for layer in layers].count("pooling") != 1:
        raise ValueError(f"{name!r} pools no token states, so it gives no vector of a sentence.")
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


def _pooling_modes(name: str, given: dict[str, Any]) -> list[str]:
    modes = given["pooling_mode"]
    modes = [modes] if isinstance(modes, str) else list(modes)
    unknown = sorted(set(modes) - set(POOLINGS))
    if unknown or not given.get("include_prompt", True):
        raise ValueError(
            f"{name!r} pools by {unknown or 'its text without the prompt'}, which memslots cannot; "
            f"it knows {list(POOLINGS)} over all tokens."
        )
    return modes


def _dense(name: str, given: dict[str, Any]) -> dict[str, Any]:
    activation = str(given["activation_function"]).rpartition(".")[2]
    if activation not in ACTIVATIONS or given.get("use_residual"):
        raise ValueError(
            f"{name!r} has a dense layer that memslots cannot keep: {given}; it knows the "
            f"activations {sorted(ACTIVATIONS)}, and no residual."
        )
    return {
        "kind": "dense",
        "inputs": given["in_features"],
        "outputs": given["out_features"],
        "bias": given["bias"],
        "activation": activation,
    }


def _around(tokenizer, plain: PlainText) -> tuple[list[int], list[int]]:
    """Special tokens before and after a text."""
    probe = "a"
    whole, own = tokenizer(probe)["input_ids"], plain.encode(probe)
    for start in range(len(whole) - len(own) + 1):
        if whole[start : start + len(own)] == own:
            return list(whole[:start]), list(whole[start + len(own) :])
    raise ValueError(
        f"the sentence encoder's {type(tokenizer).__name__} reads {probe!r} as {whole}, in which "
        f"its plain tokens {own} do not stand together; memslots cannot tell text from specials."
    )


def split_units(text: str, unit: str, language: str = "en") -> list[tuple[int, int]]:
    """Character spans of the sentences, the paragraphs or the whole of `text`; they tile it.

    Args:
        text: any text.
        unit: "sentence", "paragraph" (between blank lines) or "text".
        language: ISO 639-1 code, for sentences.

    Raises:
        ImportError: sentences without sentencex.
    """
    if unit == "text":
        return [(0, len(text))]
    if unit == "paragraph":
        ends = [match.end() for match in re.finditer(r"\n[^\S\n]*\n\s*", text)]
    else:
        try:
            import sentencex
        except ImportError as error:
            raise ImportError(NEEDS_SENTENCEX) from error
        ends = [one["end_index"] for one in sentencex.get_sentence_boundaries(language, text)]
    ends = [*[end for end in ends if end < len(text)], len(text)]
    spans: list[tuple[int, int]] = []
    start = 0
    for end in ends:
        if end > start and (text[start:end].strip() or not spans):
            spans.append((start, end))
        elif end > start:  # white space between paragraphs ends the unit before it
            spans[-1] = (spans[-1][0], end)
        start = end
    return spans


class UnitSplitter:
    """Cuts texts into the units that get one vector each.

    Args:
        encoder_text: plain-text view of the encoder's tokenizer.
        unit: "sentence", "paragraph" or "text".
        language: ISO 639-1 code, for sentences.
        window: most encoder tokens of a unit; longer ones are cut, and a warning says so.
        lead: white space before each unit, where the encoder's prompt ends in some.
        lower_case: whether the encoder was trained on lower-cased text.
    """

    def __init__(
        self,
        encoder_text: PlainText,
        unit: str,
        language: str,
        window: int,
        lead: str = "",
        lower_case: bool = False,
    ):
        self.encoder_text = encoder_text
        self.unit = unit
        self.language = language
        self.window = window
        self.lead = lead
        self.lower_case = lower_case

    def segment(self, text: str) -> list[Span]:
        """The spans of `text`, which tile it; ids are those of a span without white space around.

        Units without a token (control characters) join the one before them.
        """
        spans: list[Span] = []
        cut = pieces = 0
        for start, end in split_units(text, self.unit, self.language):
            own = [Span(start, end, self._ids(text[start:end]))]
            if len(own[0].ids) > self.window:
                own = self._cut(text, start, end)
                cut, pieces = cut + 1, pieces + len(own)
            for span in own:
                if span.ids or not spans:
                    spans.append(span)
                else:
                    spans[-1] = spans[-1]._replace(end=span.end)
        if cut:
            logger.warning(
                f"{cut} {self.unit}{'s are' if cut > 1 else ' is'} longer than the sentence "
                f"encoder's window of {self.window} tokens; cut into {pieces} pieces, one slot "
                "each."
            )
        if len(spans) > 1 and not spans[0].ids:
            spans[1] = spans[1]._replace(start=spans[0].start)
            del spans[0]
        return spans

    def _ids(self, text: str) -> list[int]:
        text = text.strip()
        return self.encoder_text.encode(self.lead + (text.lower() if self.lower_case else text))

    def _cut(self, text: str, start: int, end: int) -> list[Span]:
        room = self.window
        while True:
            pieces = self.encoder_text.segment(text[start:end], room)
            places = [(start + piece.start, start + piece.end) for piece in pieces]
            spans = [Span(first, last, self._ids(text[first:last])) for first, last in places]
            if room == 1 or all(len(span.ids) <= self.window for span in spans):
                return spans
            room = max(1, room - 1)  # without the white space around it, a piece may take more
