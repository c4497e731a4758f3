"""The one place where a frozen decoder is touched: run, made to write, and hooked into.

Hooks are there only while a memory is read (`reading`); a lock per decoder is held that long. Its
modules, weights and state stay as they are, be they quantized, shared or used by several threads.
That is why `DecoderLora` is not a peft adapter, which would put its own layers into the decoder.

A decoder with per-layer embeddings (Gemma 4 E2B, Gemma 3n) looks every token up a second time, for
each of its layers, and slots are not tokens. So the second look-up is done here, with the padding
token where slots and markers stand, as Gemma 4 does with images; generation goes on with tokens.
"""

import copy
import inspect
import math
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from difflib import get_close_matches
from numbers import Integral, Real
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from .encoders_memslots import is_quantized
from .layout_memslots import IGNORE, TASKS, Row, beside_slots, max_positions, reading_row
from .memory_memslots import Memory

DEFAULT_NEW_TOKENS = 256

_NEED_HUB_CODE = "penalty_alpha dola_layers constraints force_words_ids"
_NEED_IDS = (
    "assistant_model assistant_tokenizer assistant_early_exit use_mtp prompt_lookup_num_tokens "
    "guidance_scale negative_prompt_ids negative_prompt_attention_mask prefill_chunk_size "
    "encoder_repetition_penalty encoder_no_repeat_ngram_size token_healing"
)
REFUSED = {
    **dict.fromkeys(("input_ids", "inputs", "inputs_embeds"), "give context=, memory=, question="),
    **dict.fromkeys(("attention_mask", "position_ids"), "memslots makes them"),
    "past_key_values": "a memory takes its place",
    **dict.fromkeys(_NEED_IDS.split(), "it works on the prompt's token ids, and slots have none"),
    "custom_generate": "it replaces the decoder's generate; call it on model.decoder",
    **dict.fromkeys(_NEED_HUB_CODE.split(), "transformers would load code for it from the Hub"),
}
"""Arguments of `generate` that cannot work when the prompt is made of embeddings."""

_POPPED = ("tokenizer", "trust_remote_code", "debug_io")  # `generate` takes them, unsaid
_NEUTRAL = {"guidance_scale": 1.0, "encoder_repetition_penalty": 1.0, "return_dict_in_generate": 0}
"""Values that ask for nothing; of other arguments, 0 and False do."""

_AT_LEAST_1 = "max_new_tokens max_length num_beams num_return_sequences batch_size"
_AT_LEAST_0 = "min_new_tokens min_length top_k no_repeat_ngram_size"
_BOUNDS: dict[str, tuple[type, float, float]] = {
    **dict.fromkeys(_AT_LEAST_1.split(), (Integral, 1, math.inf)),
    **dict.fromkeys(_AT_LEAST_0.split(), (Integral, 0, math.inf)),
    **dict.fromkeys(("top_p", "min_p"), (Real, 0, 1)),
    "typical_p": (Real, 1e-4, 1),
    **dict.fromkeys(("temperature", "repetition_penalty", "max_time"), (Real, 1e-4, 1e9)),
    **dict.fromkeys(("do_sample", "use_cache", "return_dict_in_generate"), (bool, 0, 1)),
}
_WORDS = {Integral: "a whole number", Real: "a number", bool: "True or False,"}

_PACKED = ("Params4bit", "Int8Params")  # bitsandbytes' weights, under the names that they had
_LOCKS: "weakref.WeakKeyDictionary[nn.Module, threading.RLock]" = weakref.WeakKeyDictionary()
_LOCKS_LOCK = threading.Lock()


def weights_sample(decoder: PreTrainedModel, count: int = 64) -> str | None:
    """Bfloat16 values, in hex, from all over a decoder's weights, by which it is known again.

    Values that bitsandbytes packed are 0, which says nothing; None if they are packed by
    another, who renames weights, or not in memory.
    """
    weights = [weight for _, weight in sorted(decoder.base_model.named_parameters())]
    known = any(type(weight).__name__ in _PACKED for weight in weights) or not is_quantized(decoder)
    if not weights or not known or any(weight.is_meta for weight in weights):
        return None
    chosen = [weights[i * len(weights) // count] for i in range(count)]
    values = torch.zeros(count, dtype=torch.bfloat16)
    for i, weight in enumerate(chosen):
        if type(weight).__name__ not in _PACKED:
            values[i] = weight.detach().reshape(-1)[i * 2654435761 % weight.numel()]
    return values.view(torch.int16).numpy().tobytes().hex()


def has_other_weights(decoder: PreTrainedModel, sample: str) -> bool:
    """Whether more than a change of precision is between a decoder and a `weights_sample`."""
    now = weights_sample(decoder)
    if now is None:
        return False
    both = torch.tensor([list(bytes.fromhex(sample)), list(bytes.fromhex(now))], dtype=torch.uint8)
    bits = both.view(torch.int16)
    # float16 holds no smaller values exactly, and its rounding moves one in 16 by one step.
    comparable = bits.view(torch.bfloat16).abs().amin(dim=0) >= 2**-13
    steps = (bits[0].int() - bits[1].int()).abs()[comparable]
    return bool((steps > 1).any() or (steps > 0).sum() > len(steps) / 5)


@contextmanager
def reading(decoder: PreTrainedModel, lora: "DecoderLora | None" = None) -> Iterator[None]:
    """While this context is open, `decoder` reads for this thread alone, with `lora`."""
    with _LOCKS_LOCK:
        lock = _LOCKS.setdefault(decoder, threading.RLock())
    with lock, nullcontext() if lora is None else lora.active(decoder):
        yield


def run_decoder(
    decoder: PreTrainedModel,
    embeds: torch.Tensor,
    attention_mask: torch.Tensor,
    start: int = 0,
    per_layer: torch.Tensor | None = None,
    **kwargs,
):
    """The decoder's output for embeddings `(rows, length, d_decoder)`, positions without padding.

    Logits are those from position `start` on.
    """
    accepted = inspect.signature(decoder.forward).parameters
    if per_layer is not None:
        kwargs["per_layer_inputs"] = per_layer
    if "position_ids" in accepted:
        kwargs["position_ids"] = (attention_mask.cumsum(dim=1) - 1).clamp(min=0)
    if start and "logits_to_keep" in accepted:
        kwargs["logits_to_keep"] = embeds.shape[1] - start
    return decoder(inputs_embeds=embeds, attention_mask=attention_mask, **kwargs)


def decoder_logits(
    model,
    embeds: torch.Tensor,
    attention_mask: torch.Tensor,
    start: int = 0,
    per_layer: torch.Tensor | None = None,
) -> torch.Tensor:
    """Logits `(rows, length - start, vocabulary)` from position `start` on, with `decoder_lora`."""
    with reading(model.decoder, model.decoder_lora):
        out = run_decoder(model.decoder, embeds, attention_mask, start, per_layer, use_cache=False)
    return out.logits[:, -(embeds.shape[1] - start) :]


class TaskTargets(NamedTuple):
    """What the decoder says to the target tokens of one task of a batch.

    Args:
        task: RECONSTRUCTION, COMPLETION or ANSWER.
        logits: `(targets, vocabulary)`.
        token_ids: `(targets,)`.
    """

    task: int
    logits: torch.Tensor
    token_ids: torch.Tensor

    def loss(self) -> torch.Tensor:
        """Cross-entropy in nats, summed over the targets."""
        return functional.cross_entropy(self.logits.float(), self.token_ids, reduction="sum")


def task_targets(
    model,
    embeds: torch.Tensor,
    attention_mask: torch.Tensor,
    labels: torch.Tensor,
    task_ids: torch.Tensor,
    per_layer: torch.Tensor | None,
) -> Iterator[TaskTargets]:
    """Of each task in turn: one run of the decoder over its rows, no wider than they are."""
    for task in range(len(TASKS)):
        rows = (task_ids == task).nonzero().squeeze(1)
        if not rows.numel():
            continue
        used = attention_mask[rows].any(dim=0).nonzero()
        place = slice(int(used[0]), int(used[-1]) + 1)
        task_labels = labels[rows, place]
        targets = (task_labels != IGNORE).any(dim=0).nonzero()
        # The state before a target predicts it.
        start = max(int(targets[0]) - 1, 0) if targets.numel() else task_labels.shape[1] - 1
        logits = decoder_logits(
            model,
            embeds[rows, place],
            attention_mask[rows, place],
            start,
            None if per_layer is None else per_layer[rows, place],
        )
        task_labels = task_labels[:, start + 1 :]
        is_target = task_labels != IGNORE
        yield TaskTargets(task, logits[:, :-1][is_target], task_labels[is_target])


def check_generate_kwargs(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `generate`, those of a `generation_config` too; refuses what cannot work."""
    config = kwargs.get("generation_config")
    if not isinstance(config, GenerationConfig | None):
        raise TypeError(
            "generation_config must be a GenerationConfig of transformers, got "
            f"{type(config).__name__}; give its settings as arguments of generate."
        )
    values = {**({} if config is None else config.to_diff_dict()), **kwargs}
    check_values(values)
    stops = values.get("stop_strings") or []
    several = isinstance(stops, (list, tuple))
    if not all(isinstance(stop, str) for stop in (stops if several else [stops])):
        raise TypeError(f"stop_strings must be a string or a list of strings, got {stops!r}.")
    for name, reason in REFUSED.items():
        value = values.get(name)
        neutral = isinstance(value, (int, float)) and value == _NEUTRAL.get(name, 0)
        if value is not None and not neutral:
            raise ValueError(f"generate does not take {name} here: {reason}.")
    return values


def check_settings(decoder: PreTrainedModel, settings: Mapping[str, Any]) -> None:
    """Raise `ValueError` for what transformers would refuse, before any work is done for it."""
    config = copy.deepcopy(settings.get("generation_config") or decoder.generation_config)
    asked = {k: v for k, v in settings.items() if v is not None and k not in _POPPED}
    unused = set(config.update(**asked)) - set(inspect.signature(decoder.forward).parameters)
    unused -= set(inspect.signature(GenerationMixin.generate).parameters)
    if unused:
        close = get_close_matches(min(unused), vars(config)) or ["max_new_tokens"]
        raise ValueError(f"generate does not take {sorted(unused)}; it takes, say, {close[0]}.")


def check_values(values: Mapping[str, Any]) -> None:
    """Raise `TypeError` or `ValueError` for a known argument of a wrong type or out of bounds."""
    for name in _BOUNDS.keys() & values.keys():
        value, (kind, least, most) = values[name], _BOUNDS[name]
        if name == "temperature" and value == 0 and not values.get("do_sample"):
            least = 0  # greedy
        fits = isinstance(value, kind) and isinstance(value, bool) == (kind is bool)
        if (value is not None or name == "batch_size") and not (fits and least <= value <= most):
            raise (ValueError if fits else TypeError)(
                f"{name} must be {_WORDS[kind]} from {least:g} to {most:g}, got {value!r}."
            )


def generation_defaults(
    model, rows: Sequence[Row], memory: Memory | None, kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """`kwargs`, with what the decoder's generation configuration leaves open for these rows.

    Raises:
        ValueError: a `max_length` that leaves no new token.
    """
    processor, kwargs = model.processor, dict(kwargs)
    for name, (kind, *_) in _BOUNDS.items():
        if kind is Real and kwargs.get(name) is not None:
            kwargs[name] = float(kwargs[name])  # transformers refuses NumPy's
    counts = [] if memory is None else [segment.slots for segment in memory.segments]
    length = max((processor.row_length(row, counts) for row in rows), default=0)
    defaults = model.decoder.generation_config
    config = kwargs.get("generation_config") or defaults
    if config is not defaults:  # transformers wants arguments in the configuration, if there is one
        config = kwargs["generation_config"] = copy.deepcopy(config)
        for name in [name for name in kwargs if hasattr(config, name)]:
            setattr(config, name, kwargs.pop(name))
        settings: dict[str, Any] = vars(config)
    else:
        settings = kwargs
    if settings.get("temperature") == 0 and not settings.get("do_sample"):
        settings["do_sample"] = False  # greedy, whatever the decoder's own is
    # What a given configuration leaves open is the decoder's own if that can be, and then ours.
    for name in _NEUTRAL:
        if getattr(defaults, name, None) is not None and settings.get(name) is None:
            settings[name] = _NEUTRAL[name]
    if settings.get("eos_token_id") is None and defaults.eos_token_id is None and processor.eos_ids:
        settings["eos_token_id"] = processor.eos_ids[0]
    if settings.get("pad_token_id") is None and defaults.pad_token_id is None:
        settings["pad_token_id"] = processor.pad_id
    most, whole = settings.get("max_new_tokens"), settings.get("max_length")
    positions = max_positions(model.decoder.config)
    if most is None and whole is not None:
        if whole <= length:
            raise ValueError(
                f"max_length={whole} counts the {length} prompt tokens too; give max_length of at "
                f"least {length + 1}, or max_new_tokens, which counts the answer alone."
            )
        most, settings["max_length"] = whole - length, None
    most = most or defaults.max_new_tokens or DEFAULT_NEW_TOKENS
    settings["max_new_tokens"] = max(
        1, most if positions is None else min(most, positions - length)
    )
    if "stop_strings" in settings:
        settings["stop_strings"] = settings["stop_strings"] or None  # none, said as [] or ""
    if settings.get("stop_strings") or defaults.stop_strings:
        kwargs.setdefault("tokenizer", processor.tokenizer)
    return kwargs


# -- reading back ------------------------------------------------------------------------------


def reconstruct(
    self, memory: Memory, batch_size: int = 32, exact: bool = False, **generate_kwargs
) -> str | list[str]:
    """The text that the decoder reads back from the slots, segment by segment (`<AE>`, eq. 4).

    Args:
        self: a `MemslotsModel`.
        memory: one document or several; of several, a list is returned.
        batch_size: segments that are generated at once.
        exact: whether the text must be the one that was compressed, byte for byte; the memory was
            then made with `compress(..., keep_text=True)`, and no decoder is asked.
        generate_kwargs: as in `generate`; greedy by default.

    Raises:
        ValueError: with `exact`, segments whose text was not kept, or one that has another SHA-256
            than the text that was compressed.

    Examples:
        >>> model.reconstruct(model.compress("Ann is here.", keep_text=True), exact=True)
        'Ann is here.'
    """
    self.check_memory(memory)
    told = check_generate_kwargs({"batch_size": batch_size, **generate_kwargs})
    if exact and generate_kwargs:
        raise ValueError(f"exact=True leaves no choice; leave out {sorted(generate_kwargs)}.")
    for name, usual in (("return_dict_in_generate", 0), ("num_return_sequences", 1)):
        if (told.get(name) or usual) > usual:
            raise ValueError(f"reconstruct returns one text a segment; {name} is for generate.")
    chosen = range(len(memory.segments))
    if exact:
        kept = memory.kept_texts(chosen)
        texts = [memory.expand(i) if text is None else text for i, text in enumerate(kept)]
    else:
        texts = read_back(self, memory, chosen, batch_size, generate_kwargs)
    rest = iter(texts)
    documents = ["".join(next(rest) for _ in document) for document in memory.documents]
    return documents[0] if len(documents) == 1 else documents


def read_back(
    model, memory: Memory, chosen: Sequence[int], batch_size: int, generate_kwargs: dict[str, Any]
) -> list[str]:
    """What the decoder writes of each of the `chosen` segments."""
    processor = model.processor
    texts = dict(enumerate(memory.segment_texts))
    beside = beside_slots(memory, processor.decoder_text.encode)
    # Segments of like length end together, and none is cut short or runs far beyond its end.
    told = check_generate_kwargs(generate_kwargs)
    greedy = {} if "do_sample" in told else {"do_sample": False}
    bounded = not told.keys().isdisjoint(("max_new_tokens", "max_length"))
    order = sorted((i for i in chosen if texts[i] is None), key=lambda i: memory.segments[i].tokens)
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        rows = [reading_row(i, processor.bos_ids, [], beside[i]) for i in batch]
        bound = {} if bounded else {"max_new_tokens": 2 * memory.segments[batch[-1]].tokens + 16}
        output = model.generate_rows(rows, memory, {**greedy, **bound, **generate_kwargs})
        for i, ids in zip(batch, output, strict=True):
            texts[i] = processor.decode(ids)
    return [texts[i] or "" for i in chosen]


# -- hooks -------------------------------------------------------------------------------------


class LoraUp(nn.Linear):
    """The second matrix, which starts at 0, so that a new LoRA changes nothing."""


class LoraPair(nn.Module):
    """The two matrices beside a linear layer, `rank` wide between them."""

    def __init__(self, inputs: int, outputs: int, rank: int):
        super().__init__()
        self.down = nn.Linear(inputs, rank, bias=False)
        self.up = LoraUp(rank, outputs, bias=False)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        nn.init.zeros_(self.up.weight)


class DecoderLora(nn.Module):
    """LoRA weights (`MemslotsConfig.decoder_lora`) for a decoder, which act while it is `active`.

    Raises:
        ValueError: the decoder has no linear layer of the asked names.
    """

    def __init__(self, decoder_config, settings: dict[str, Any]):
        super().__init__()
        self.scale = settings["alpha"] / settings["r"]
        self.dropout = nn.Dropout(settings["dropout"])
        self.pairs = nn.ModuleDict()
        self._acting: set[int] = set()  # decoders, each under its own lock
        last_names = set()
        for name, (inputs, outputs) in linear_layers(decoder_config).items():
            last = name.rpartition(".")[2]
            last_names.add(last)
            if last in settings["target_modules"]:
                self.pairs[_key(name)] = LoraPair(inputs, outputs, settings["r"])
        missing = sorted(set(settings["target_modules"]) - last_names)
        if missing:
            raise ValueError(
                f"decoder_lora: the decoder has no linear layers named {missing}; it has "
                f"{sorted(last_names)}. Give some of these as target_modules."
            )

    @contextmanager
    def active(self, decoder: PreTrainedModel) -> Iterator[None]:
        """While open, `decoder` answers with these weights; its lock is held, contexts may nest.

        Raises:
            ValueError: a decoder without the layers that these weights are for.
        """
        if id(decoder) in self._acting:
            yield
            return
        layers = {_key(name): module for name, module in decoder.named_modules()}
        missing = sorted(set(self.pairs) - set(layers))
        if missing:
            raise ValueError(
                f"decoder_lora has weights for {missing[0]!r} and {len(missing) - 1} more layers "
                f"that {type(decoder).__name__} lacks; attach the decoder that it was trained on."
            )
        hooks = [
            layers[key].register_forward_hook(self._hook(pair))
            for key, pair in self.pairs.items()
            if isinstance(pair, LoraPair)
        ]
        self._acting.add(id(decoder))
        try:
            yield
        finally:
            self._acting.remove(id(decoder))
            for hook in hooks:
                hook.remove()

    def _hook(self, pair: LoraPair):
        def add(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor):
            values = inputs[0].to(pair.down.weight)
            change = pair.up(pair.down(self.dropout(values))) * self.scale
            return output + change.to(output)

        return add


def linear_layers(decoder_config) -> dict[str, tuple[int, int]]:
    """Names of a decoder's linear layers, its head left out, with their input and output widths."""
    with torch.device("meta"):
        decoder = AutoModelForCausalLM.from_config(decoder_config)
    head = decoder.get_output_embeddings()
    widths = {}
    for name, module in decoder.named_modules():
        if isinstance(module, nn.Linear) and module is not head:
            widths[name] = (module.in_features, module.out_features)
        elif isinstance(module, Conv1D):
            widths[name] = (module.weight.shape[0], module.weight.shape[1])
    return widths


def _key(name: str) -> str:
    return name.replace(".", "-")  # a ModuleDict takes no dots


def per_layer_inputs(decoder: PreTrainedModel, input_ids: torch.Tensor) -> torch.Tensor | None:
    """What each layer gets of each position's token, `(rows, length, layers, width)`.

    None if the decoder has no such thing.
    """
    if not getattr(decoder.config.get_text_config(), "hidden_size_per_layer_input", 0):
        return None
    for module in decoder.modules():
        if hasattr(module, "embed_tokens_per_layer"):
            return module.get_per_layer_inputs(input_ids).detach()  # type: ignore[operator]
    raise ValueError(
        f"{type(decoder).__name__} has per-layer embeddings that memslots does not find "
        "(embed_tokens_per_layer); it works with those of Gemma 3n and Gemma 4."
    )


@contextmanager
def prefilled_with(decoder: PreTrainedModel, per_layer: torch.Tensor | None) -> Iterator[None]:
    """While open, a forward of `decoder` from embeddings gets `per_layer`, if any, beside them.

    `generate` would pass it to every step, and the steps after the prefill have their own tokens.
    """
    if per_layer is None:
        yield
        return

    def add(module: torch.nn.Module, args: tuple, kwargs: dict[str, Any]):
        embeds = kwargs.get("inputs_embeds")
        if embeds is None:
            return None
        times, rest = divmod(len(embeds), len(per_layer))  # beams repeat each row
        if rest or embeds.shape[1] != per_layer.shape[1]:
            raise ValueError(
                f"{type(decoder).__name__} has per-layer embeddings, which are prefilled in one "
                "pass and with a cache; leave out use_cache=False."
            )
        return args, {**kwargs, "per_layer_inputs": per_layer.repeat_interleave(times, dim=0)}

    hook = decoder.register_forward_pre_hook(add, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()
