"""Configuration of a memslots compressor.

No `from __future__ import annotations` here: it would switch the strict type checks of
`PreTrainedConfig` off and turn `config_class` into a string.
"""

from copy import deepcopy
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig

from .encoders_memslots import CONVERTERS, POOLS
from .layout_memslots import max_positions
from .texts_memslots import check_detectors

PLAIN_PROMPT = "Question: {question}\n\nAnswer:"
"""The prompt of the published PCC code; its last space goes with the answer (`answer_ids`)."""

AUTO_MAP = {
    "AutoConfig": "configuration_memslots.MemslotsConfig",
    "AutoModel": "modeling_memslots.MemslotsModel",
    "AutoModelForCausalLM": "modeling_memslots.MemslotsModel",
    "AutoProcessor": "processing_memslots.MemslotsProcessor",
}

CUSTOM_PIPELINES = {
    "memory-question-answering": {
        "impl": "pipeline_memslots.MemoryQuestionAnsweringPipeline",
        "pt": ["AutoModel"],
    }
}

CHOICES: dict[str, tuple[str, ...]] = {
    "prompt_format": ("plain", "chat"),
    "markers": ("segment", "memory", "none"),
    "memory_positions": ("after", "spread"),
    "pool_unit": ("sentence", "paragraph", "text"),
}
"""Allowed values of fields that name one of a few ways."""

ONLY_WITH: dict[str, tuple[Any, tuple[str, tuple[str, ...]]]] = {
    "pool_hidden_size": (None, ("pooling", ("groups",))),
    "memory_positions": ("after", ("pooling", ("memory_tokens",))),
    "bundle_encoder": (True, ("pooling", ("sentence",))),
}
"""Fields that have no other value than this one, except where another field has one of these."""

AT_LEAST_1 = ("segment_length", "converter_hidden_size", "pool_hidden_size", "encoder_layers")

LORA_DEFAULTS: dict[str, Any] = {
    "r": 64,
    "alpha": 32,
    "dropout": 0.1,
    "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
}
"""PCC-Large (PCC, table A4 and section 3.1.2)."""

DECODER_LORA_DEFAULTS: dict[str, Any] = {
    "r": 16,
    "alpha": 32,
    "dropout": 0.05,
    "target_modules": ["q_proj", "v_proj"],
}
"""Ours: the sentence-pools article says only that its decoder's LoRA is small."""


@strict
class MemslotsConfig(PreTrainedConfig):
    """Everything that a compressor is, apart from its weights.

    Args:
        encoder_config: configuration of the encoder, the model that writes slots.
        decoder_config: configuration of the frozen decoder, the model that reads them.
        encoder_name_or_path: where the encoder's base weights come from; read at loading only when
            the checkpoint holds a LoRA adapter instead of whole weights.
        encoder_revision: commit, branch or tag of `encoder_name_or_path`.
        decoder_name_or_path: the decoder that the compressor was trained for, as a PEFT adapter
            names its base model.
        decoder_revision: commit, branch or tag of `decoder_name_or_path`.
        decoder_loading: `subfolder` and `gguf_file` of the decoder inside `decoder_name_or_path`.
        decoder_fingerprint: a hash of its weights (`weights_sample`); `attach_decoder` compares it.
        encoder_loading: likewise of the encoder, where the checkpoint holds its adapter alone.
        bundle_decoder: whether `save_pretrained` puts the decoder's weights into the checkpoint.
        compression_rates: the rates (encoder tokens per slot) that may be asked of `compress`.
        segment_length: longest segment, in encoder tokens (PCC, section 2.2: 256).
        encoder_lora: `{"r", "alpha", "dropout", "target_modules"}` for a LoRA encoder (PCC-Large),
            None for an encoder whose every weight is trained (PCC-Lite).
        encoder_layers: the encoder is the decoder's own first so many layers, weights shared, with
            `encoder_lora` on top; None for an encoder of its own.
        encoder_is_causal: probed when the compressor is made. Under a causal encoder the slots of a
            coarse rate are the first slots of a finer one.
        converter_hidden_size: width between the converter's linear layers, by default d_decoder.
        markers: where the learned `<MEM>` and `</MEM>` vectors stand: around each "segment" (PCC),
            once around the whole "memory", or "none".
        prompt_format: "plain" (`plain_prompt`) or "chat" (the decoder tokenizer's chat template).
        plain_prompt: what follows the slots; `{question}` stands for the user's question.
        answer_end: where an answer to `question=` ends beside the EOS, such as a newline, for LLMs
            that would go on with another question.
        fingerprint: SHA-256 over encoder, memory tokens, encoder tokenizer and segmentation,
            written by `save_pretrained`; a memory carries it and a model checks it.
        pooling: how slots are made: the last states of "memory_tokens" behind the segment (PCC);
            one vector of every `rate` tokens: the "mean" of their last states (LCLM, 2026), a
            learned map of embeddings and states ("groups", ours), or another name of
            `encoders_memslots.POOLS`; or one vector of a "sentence" encoder for each `pool_unit`
            (the sentence-pools article).
        pool_hidden_size: width inside `encoders_memslots.GroupPool`, by default twice a slot's.
        pool_unit: what gets one vector with pooling "sentence": a "sentence", a "paragraph" or a
            "text", of at most `segment_length` tokens, which is then the only compression rate.
        pool_language: ISO 639-1 code of the language whose rules split sentences.
        sentence_encoder: what a sentence encoder is beside its backbone, as
            `memslots.sentence_encoders.read_sentence_encoder` describes it.
        train_encoder: whether a sentence encoder is trained too; otherwise it is frozen.
        bundle_encoder: whether the checkpoint holds the encoder's weights; a frozen sentence
            encoder may be read from `encoder_name_or_path` instead.
        converter_type: "mlp" (PCC), "linear" (the sentence-pools article's adapter), "residual"
            (PCC's beside a linear map), or another name of `encoders_memslots.CONVERTERS`.
        decoder_lora: `{"r", "alpha", "dropout", "target_modules"}` of a small LoRA on the decoder,
            which is kept with the compressor and acts only while a memory is read; None for none.
        memory_positions: position ids of the memory tokens: "after" the segment's tokens (PCC), or
            "spread" over the segment, each near the text it stands for.
        literals: detectors of the exact strings that ride beside the slots as ordinary tokens
            unless `compress` is told otherwise: a name of `texts_memslots.DETECTORS`
            ("numbers"), or a list of them.
        initializer_range: standard deviation of newly made linear weights.
    """

    model_type = "memslots"
    # Made in `__post_init__`: `sub_configs_defaults` came after transformers 5.16.
    sub_configs = {"encoder_config": AutoConfig, "decoder_config": AutoConfig}

    encoder_config: dict | PreTrainedConfig | None = None
    decoder_config: dict | PreTrainedConfig | None = None
    encoder_name_or_path: str | None = None
    encoder_revision: str | None = None
    decoder_name_or_path: str | None = None
    decoder_revision: str | None = None
    decoder_loading: dict | None = None
    decoder_fingerprint: str | None = None
    encoder_loading: dict | None = None
    bundle_decoder: bool = False
    compression_rates: list[int] | tuple[int, ...] = (4,)
    segment_length: int = 256
    encoder_lora: dict | None = None
    encoder_layers: int | None = None
    encoder_is_causal: bool = True
    converter_hidden_size: int | None = None
    markers: str = "segment"
    prompt_format: str = "plain"
    plain_prompt: str = PLAIN_PROMPT
    answer_end: str | None = None
    fingerprint: str | None = None
    pooling: str = "memory_tokens"
    pool_hidden_size: int | None = None
    pool_unit: str = "sentence"
    pool_language: str = "en"
    sentence_encoder: dict | None = None
    train_encoder: bool = False
    bundle_encoder: bool = True
    converter_type: str = "mlp"
    decoder_lora: dict | None = None
    memory_positions: str = "after"
    literals: str | list[str] | tuple[str, ...] | None = None
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs):
        for name, plain in (("inject_layer", (None, 0)), ("converter_queries", (4,))):
            if kwargs.pop(name, plain[0]) not in plain:
                raise ValueError(
                    f"{name} was removed, since it gained nothing (docs/log.md); a checkpoint that "
                    "has it still loads with the code inside it."
                )
        self.encoder_config = _as_config(self.encoder_config, "gpt2")
        self.decoder_config = _plain(_as_config(self.decoder_config, "llama"))
        self.compression_rates = sorted(self.compression_rates)
        if self.encoder_layers is not None and self.encoder_lora is None:
            self.encoder_lora = {}
        self.encoder_lora = _with_defaults("encoder_lora", self.encoder_lora, LORA_DEFAULTS)
        self.decoder_lora = _with_defaults("decoder_lora", self.decoder_lora, DECODER_LORA_DEFAULTS)
        if self.pooling == "sentence" and self.compression_rates == [4]:
            self.compression_rates = [self.segment_length]  # one slot a unit
        super().__post_init__(**kwargs)
        self.auto_map = dict(AUTO_MAP)
        self.custom_pipelines = deepcopy(CUSTOM_PIPELINES)
        # `@strict` runs it once more, but wraps what it raises: users get the plain ValueError.
        self.validate_architecture()

    def validate_architecture(self):
        """Checks that need more than one field; raises `ValueError` with what to do."""
        rates, length = list(self.compression_rates), self.segment_length
        if not rates or any(rate < 1 for rate in rates) or len(set(rates)) != len(rates):
            raise ValueError(
                f"compression_rates must be distinct integers of at least 1, got {rates}; "
                "for example [4, 16]."
            )
        for name in AT_LEAST_1:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")
        if rates[-1] > length:
            raise ValueError(
                f"compression rate {rates[-1]} is coarser than one slot per segment of {length} "
                "tokens; use rates up to segment_length."
            )
        added = {"converter_type": [*CONVERTERS], "pooling": ["memory_tokens", *POOLS, "sentence"]}
        for name, choices in {**CHOICES, **added}.items():
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"{name} must be one of {list(choices)}, got {getattr(self, name)!r}; a "
                    "checkpoint that has another is read by the code inside it, with "
                    "AutoModel.from_pretrained(..., trust_remote_code=True)."
                )
        for name, (usual, (other, choices)) in ONLY_WITH.items():
            if getattr(self, name) != usual and getattr(self, other) not in choices:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} needs {other} "
                    f"{' or '.join(map(repr, choices))}, got {getattr(self, other)!r}; leave it "
                    "out."
                )
        check_detectors(self.literals, names_only=True)
        if self.plain_prompt.count("{question}") != 1:
            raise ValueError(
                f"plain_prompt must contain '{{question}}' exactly once, got {self.plain_prompt!r}."
            )
        if self.pooling == "sentence":
            self._validate_sentence_pooling()
        embedding = getattr(self.get_text_config(encoder=True), "embedding_size", None)
        if self.pooling == "groups" and embedding not in (None, self.slot_size):
            raise ValueError(
                "pooling='groups' adds token embeddings to states of the same width, and this "
                f"encoder has {embedding} and {self.slot_size}; use another pooling."
            )
        positions = max_positions(self.encoder_config)
        memory_tokens = self.max_slots if self.pooling == "memory_tokens" else 0
        if positions is not None and length + memory_tokens > positions:
            raise ValueError(
                f"a segment of {length} tokens and its {memory_tokens} memory tokens are "
                f"{length + memory_tokens} tokens, but the encoder reads {positions}; use a "
                "smaller segment_length or coarser compression_rates."
            )

    def _validate_sentence_pooling(self):
        length, window = self.segment_length, (self.sentence_encoder or {}).get("window")
        if self.compression_rates != [length]:
            raise ValueError(
                f"pooling='sentence' makes one slot of each {self.pool_unit}, so compression_rates "
                f"must be left out (or [{length}], the segment_length), got "
                f"{self.compression_rates}."
            )
        if self.encoder_lora is not None:
            raise ValueError("encoder_lora is not for pooling='sentence'; leave it out.")
        if length < 16 or (window is not None and length > window):
            raise ValueError(
                f"the sentence encoder's window is {window or 'not known'} tokens, segment_length "
                f"is {length}; use at most {window or 'the window'}, and at least 16."
            )
        if self.train_encoder and not self.bundle_encoder:
            raise ValueError("train_encoder=True changes the encoder; set bundle_encoder=True.")

    def to_dict(self) -> dict[str, Any]:
        """As `PreTrainedConfig.to_dict`; `pipeline()` puts classes into `custom_pipelines`, which
        JSON cannot hold.
        """
        return {**super().to_dict(), "custom_pipelines": deepcopy(CUSTOM_PIPELINES)}

    @property
    def max_slots(self) -> int:
        """Slots of a full segment at the finest rate."""
        return -(-self.segment_length // min(self.compression_rates))

    @property
    def slot_size(self) -> int:
        """Width of a slot before the converter."""
        if self.sentence_encoder is not None:
            return self.sentence_encoder["slot_size"]
        return self.get_text_config(encoder=True).hidden_size

    def get_text_config(self, decoder=None, encoder=None) -> PreTrainedConfig:
        """The decoder's configuration (the one whose vocabulary is generated)."""
        if encoder and not decoder:
            return self.encoder_config
        # Where it is called before the sub-configs are made, they are None or dicts.
        if isinstance(self.decoder_config, PreTrainedConfig):
            return self.decoder_config.get_text_config()
        return self


def _with_defaults(name: str, settings: dict | None, defaults: dict[str, Any]) -> dict | None:
    if settings is None:
        return None
    unknown = sorted(set(settings) - set(defaults))
    if unknown:
        raise ValueError(f"{name} has unknown keys {unknown}; allowed are {sorted(defaults)}.")
    return {**defaults, **settings}


def _as_config(config: dict | PreTrainedConfig | None, default: str) -> PreTrainedConfig:
    if isinstance(config, PreTrainedConfig):
        return config
    values = dict(config or {})
    return AutoConfig.for_model(values.pop("model_type", default), **values)


def _plain(config: PreTrainedConfig) -> PreTrainedConfig:
    """A decoder's configuration without its quantization, which is the decoder's matter alone:
    transformers would take it for that of the whole compressor, encoder included.
    """
    if hasattr(config, "quantization_config"):
        config = deepcopy(config)
        del config.quantization_config
    return config
