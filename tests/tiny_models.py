"""Tiny random models of real architectures, with tokenizers trained on the spot.

Everything is made from fixed seeds and written to one temporary folder, so that tests load it as
users load models: by path, through `from_pretrained`.
"""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    BertConfig,
    Gemma3TextConfig,
    Gemma4TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from memslots import MemslotsModel
from memslots.making import new_compressor

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "<|start|>{{ m['role'] }}\n{{ m['content'] | trim }}<|end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
"""Like Llama 3's: it writes BOS itself, wraps each turn in control tokens, and trims contents."""

ALTERNATING = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user/assistant') }}{% endif %}"
    "<|start|>{{ m['role'] }}\n{{ m['content'] | trim }}<|end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
"""Refuses two turns of one role in a row, as Mistral's and Gemma's do."""

SENTENCES = [
    "The treaty was signed in Lagos on a rainy day in March.",
    "Carmen Moss is an engineer at Silver Bank and owns twenty seven maps.",
    "Where was the treaty signed, and who was there to see it?",
    "A compressor turns a long context into a few memory slots.",
    "She speaks English and Yoruba; her brother, who is 34, speaks neither.",
    "Rivers rise in the hills, cross the plain and end in the sea.",
    "Question: what is the answer? Answer: it depends on the question.",
]

TEXTS = [
    "The treaty was signed in Lagos.",
    " ".join(SENTENCES),
    "Carmen owns maps: " + "one, two, three, " * 9 + "four.",
]
"""Ragged: less than a segment, several segments, and segments of repeated words."""

LONG = " ".join(f"{i}. {SENTENCES[i % len(SENTENCES)]}" for i in range(60))

QUESTIONS = ["Where was it?", "Who owns the maps, and how many are there?", "Why?"]

SEGMENT = 24
"""Tokens of a full segment in these tests."""

RATES = [2, 4, 8]


def byte_bpe(vocab_size: int, bos: bool = True) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with control tokens and an added token that is not special."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<pad>", "<s>", "</s>", "<|start|>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(SENTENCES * 3, trainer)
    names = {"pad_token": "<pad>", "eos_token": "</s>"}
    if bos:
        names["bos_token"] = "<s>"
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **names)
    tokenizer.add_tokens(["<tool_call>", "  "])  # `  `: added white space, as Phi's and NeoX's have
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def word_piece(vocab_size: int = 400) -> PreTrainedTokenizerFast:
    """A lower-casing WordPiece tokenizer, as BERT's: it drops control characters, and has [UNK]."""
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size, special_tokens=special, show_progress=False
    )
    backend.train_from_iterator(SENTENCES * 3, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


def unigram(vocab_size: int = 300) -> PreTrainedTokenizerFast:
    """A Unigram tokenizer whose vocabulary holds `</s>` as an ordinary piece, as T5's does."""
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=vocab_size,
        special_tokens=["<pad>", "</s>", "<unk>"],
        unk_token="<unk>",
        initial_alphabet=list("</s>padunk"),
        show_progress=False,
    )
    backend.train_from_iterator(SENTENCES * 3, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


# Weights are drawn so wide that greedy answers depend on the context, not only on the last token.
_SHAPE = {
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
}
_GROUPED = {**_SHAPE, "num_key_value_heads": 2}
_GPT2 = {"n_layer": 2, "n_head": 4, "n_positions": 512, "initializer_range": 0.3}
# Per-layer embeddings, as Gemma 4 E2B has; its last layer shares the keys and values of another.
_GEMMA4 = {
    **{key: value for key, value in _GROUPED.items() if key != "num_hidden_layers"},
    "num_hidden_layers": 4,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "num_kv_shared_layers": 1,
    "head_dim": 8,
    "global_head_dim": 8,
    "sliding_window": 32,
    "hidden_size_per_layer_input": 6,
}
_GEMMA = {**_GROUPED, "head_dim": 8, "sliding_window": 32, "query_pre_attn_scalar": 8}

FAMILIES = {
    "llama": (LlamaConfig, _GROUPED),
    "qwen2": (Qwen2Config, _GROUPED),
    "qwen3": (Qwen3Config, {**_GROUPED, "head_dim": 8, "tie_word_embeddings": True}),
    "mistral": (MistralConfig, {**_GROUPED, "sliding_window": 32}),
    "gemma3": (Gemma3TextConfig, _GEMMA),
    "gemma4": (Gemma4TextConfig, _GEMMA4),
    "phi3": (Phi3Config, _GROUPED),
    "gpt2": (GPT2Config, _GPT2),
    "gpt_neox": (GPTNeoXConfig, _SHAPE),
    "bert": (BertConfig, _SHAPE),
}
DECODERS = [name for name in FAMILIES if name != "bert"]
ENCODERS = ["gpt2", "llama", "qwen3", "bert"]


class Zoo:
    """Pretrained folders and compressors under one temporary folder.

    Args:
        root: where to write.
    """

    def __init__(self, root: Path):
        self.root = root
        self._shared: dict[tuple[str, str], MemslotsModel] = {}

    def folder(self, family: str, role: str) -> str:
        """Folder of a tiny model; encoders and decoders have other widths and tokenizers."""
        path = self.root / f"{role}-{family}"
        if path.exists():
            return str(path)
        config_class, shape = FAMILIES[family]
        if family == "bert":
            tokenizer = word_piece()
        else:
            # Qwen's and GPT-NeoX's tokenizers write no BOS.
            has_bos = family not in ("qwen2", "qwen3", "gpt_neox")
            tokenizer = byte_bpe(380 if role == "decoder" else 340, bos=has_bos)
        width = 32 if role == "decoder" else 24
        config = config_class(
            **shape,
            hidden_size=width,
            vocab_size=len(tokenizer),
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            **({"vocab_size_per_layer_input": len(tokenizer)} if family == "gemma4" else {}),
        )
        torch.manual_seed(sum(map(ord, family + role)))
        kind = AutoModel if family == "bert" else AutoModelForCausalLM
        kind.from_config(config).save_pretrained(path)
        tokenizer.save_pretrained(path)
        return str(path)

    def compressor(
        self, encoder: str = "gpt2", decoder: str = "llama", seed: int = 0, **config
    ) -> MemslotsModel:
        """A new compressor of its own, for tests that change it."""
        config = {"segment_length": SEGMENT, "compression_rates": RATES, **config}
        folders = self.folder(encoder, "encoder"), self.folder(decoder, "decoder")
        torch.manual_seed(seed)
        model = new_compressor(*folders, **config)
        # Untrained slots are all alike; wide memory tokens make them depend on the text.
        if model.memory_tokens is not None:
            torch.nn.init.normal_(model.memory_tokens, std=1.0)
        torch.nn.init.normal_(model.converter.down.bias, std=0.1)
        return model

    def shared(self, encoder: str = "gpt2", decoder: str = "llama") -> MemslotsModel:
        """A compressor that several tests read and none changes."""
        if (encoder, decoder) not in self._shared:
            self._shared[encoder, decoder] = self.compressor(encoder, decoder)
        return self._shared[encoder, decoder]

    def saved(self, encoder: str = "gpt2", decoder: str = "llama") -> str:
        """Folder of the checkpoint of `shared`."""
        path = self.root / f"compressor-{encoder}-{decoder}"
        if not path.exists():
            self.shared(encoder, decoder).save_pretrained(path)
        return str(path)


def tell_apart(model: MemslotsModel) -> MemslotsModel:
    """The same model with other trained weights than those of its start."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn_like(parameter)
    return model


def words(n: int, seed: int = 0) -> str:
    """`n` words, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    vocabulary = " ".join(SENTENCES).split()
    chosen = torch.randint(len(vocabulary), (n,), generator=generator)
    return " ".join(vocabulary[i] for i in chosen)
