"""Compressors and decoders with random weights, where only the shapes matter, and texts for them.

A word is a token, for the encoder and the decoder alike, so lengths are exact and a ratio of
positions is a ratio of tokens.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    XLMRobertaConfig,
    XLMRobertaForTokenClassification,
)

from memslots import MemslotsConfig, MemslotsModel
from memslots.making import processor_for
from memslots.start_weights import match_scales

WORDS = 800
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
QUESTION = "".join(f" w{i}" for i in range(12)).strip()


@dataclass(frozen=True)
class Preset:
    """Shapes of a compressor and its decoder.

    Args:
        encoder: makes the encoder's configuration, a causal LM's.
        decoder: makes the decoder's configuration.
        segment_length: encoder tokens of a full segment.
        rates: encoder tokens a slot.
        classifier: width and layers of a token classifier as LLMLingua-2's.
    """

    encoder: Callable[[], PreTrainedConfig]
    decoder: Callable[[], PreTrainedConfig]
    segment_length: int = 256
    rates: tuple[int, ...] = (4, 16, 128)
    classifier: tuple[int, int] = (1024, 24)


_TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def _gpt2(width: int, layers: int, heads: int, vocabulary: int) -> Callable[[], PreTrainedConfig]:
    return lambda: GPT2Config(
        n_embd=width,
        n_layer=layers,
        n_head=heads,
        n_positions=1024,
        vocab_size=vocabulary,
        **_TOKENS,
    )


def _llama(
    width: int, layers: int, heads: int, key_value_heads: int, inner: int, vocabulary: int
) -> Callable[[], PreTrainedConfig]:
    return lambda: LlamaConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        intermediate_size=inner,
        vocab_size=vocabulary,
        max_position_embeddings=1 << 20,
        **_TOKENS,
    )


PRESETS = {
    # In proportion to the last: the encoder a ninth of the decoder, the heads of both vocabularies
    # 9% and 7% of their bodies, so that leaving a head out saves no more than it would there; the
    # classifier a 25th of the decoder, as XLM-RoBERTa-large is of Llama-3-8B.
    "small": Preset(_gpt2(256, 3, 4, 832), _llama(512, 6, 8, 2, 1792, 3008), classifier=(128, 4)),
    # For lengths up to a million tokens on a CPU, in a minute and a half.
    "thin": Preset(_gpt2(32, 1, 2, 832), _llama(64, 2, 2, 1, 224, 832)),
    # For tests of the accounting.
    "tiny": Preset(_gpt2(32, 2, 2, 832), _llama(32, 2, 2, 1, 64, 832), 32, (4, 16), (64, 1)),
    # PCC's: GPT2-large before Llama-3-8B.
    "gpt2-large-llama3": Preset(_gpt2(1280, 36, 20, 50257), _llama(4096, 32, 32, 8, 14336, 128256)),
}


def preset_of(name: str) -> Preset:
    """The preset of this name.

    Raises:
        ValueError: no such preset.
    """
    if name not in PRESETS:
        raise ValueError(f"there is no preset {name!r}; choose one of {', '.join(PRESETS)}.")
    return PRESETS[name]


def tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens are words with the space before them."""
    words = [f" w{i}" for i in range(WORDS)]
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *words])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_next")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
    )


def context(tokens: int, seed: int = 0) -> str:
    """A text of exactly so many tokens, the same for the same seed."""
    draw = random.Random(seed)
    return "".join(f" w{draw.randrange(WORDS)}" for _ in range(tokens))


def build(name: str, device: str, dtype: torch.dtype, seed: int = 0) -> MemslotsModel:
    """A compressor of a preset with its decoder, both of random weights.

    Args:
        name: of the preset.
        device: where it is made.
        dtype: of all weights.
        seed: of the weights.
    """
    preset = preset_of(name)
    config = MemslotsConfig(
        encoder_config=preset.encoder(),
        decoder_config=preset.decoder(),
        segment_length=preset.segment_length,
        compression_rates=list(preset.rates),
    )
    torch.manual_seed(seed)
    with torch.device(device):
        encoder = AutoModel.from_config(config.encoder_config, dtype=dtype)
        decoder = AutoModelForCausalLM.from_config(config.decoder_config, dtype=dtype)
        model = MemslotsModel(config, encoder=encoder, load_decoder=False)
    model.to(device=device, dtype=dtype)
    own = tokenizer()
    model.processor = processor_for(config, own, own)
    model.attach_decoder(decoder)
    match_scales(model)
    return model.eval()


def token_classifier(
    name: str, device: str, dtype: torch.dtype
) -> XLMRobertaForTokenClassification:
    """What LLMLingua-2 reads a text with, of random weights, for the tokens of `tokenizer`.

    Args:
        name: of the preset.
        device: where it is made.
        dtype: of all weights.
    """
    width, layers = preset_of(name).classifier
    config = XLMRobertaConfig(
        vocab_size=WORDS + len(SPECIAL),
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        intermediate_size=4 * width,
        max_position_embeddings=514,
        **_TOKENS,
    )
    with torch.device(device):
        return XLMRobertaForTokenClassification(config).to(dtype).eval()


def described(name: str) -> dict[str, object]:
    """A preset's sizes, for the results: parameters of the bodies, without their vocabularies."""
    preset = preset_of(name)
    sizes: dict[str, object] = {"segment_length": preset.segment_length}
    for role, config in (("encoder", preset.encoder()), ("decoder", preset.decoder())):
        with torch.device("meta"):
            body = AutoModel.from_config(config)
        tables = {id(m.weight) for m in body.modules() if isinstance(m, torch.nn.Embedding)}
        sizes[role] = {
            "type": config.model_type,
            "width": config.hidden_size,
            "layers": config.num_hidden_layers,
            "vocabulary": config.vocab_size,
            "parameters": sum(p.numel() for p in body.parameters() if id(p) not in tables),
        }
    return sizes
