"""A random checkpoint of two tiny real architectures, for tests that need files to load."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from memslots.data.personas import persona_rows
from memslots.modeling import MemslotsModel

TEXTS = [row["context"] for row in persona_rows("train", 60, seed=5)]


def save_tokenizer(folder: Path, vocab_size: int) -> int:
    """A byte-level BPE of biographies; returns its size."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<bos>", "<eos>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>"
    )
    fast.save_pretrained(folder)
    return len(fast)


def save_checkpoint(folder: Path, seed: int = 0) -> Path:
    """Saves `encoder/`, `decoder/` and the untrained compressor `tiny/` of both; returns the last.

    Args:
        folder: an empty folder.
        seed: of all weights; another seed is another compressor.
    """
    torch.manual_seed(seed)
    size = save_tokenizer(folder / "decoder", 600)
    shape = {"num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 2048}
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    LlamaForCausalLM(
        LlamaConfig(vocab_size=size, hidden_size=32, intermediate_size=48, **shape, **ids)
    ).save_pretrained(folder / "decoder")
    size = save_tokenizer(folder / "encoder", 700)
    GPT2LMHeadModel(
        GPT2Config(vocab_size=size, n_embd=24, n_layer=1, n_head=2, n_positions=256, **ids)
    ).save_pretrained(folder / "encoder")
    model = MemslotsModel.from_encoder_decoder_pretrained(
        str(folder / "encoder"),
        str(folder / "decoder"),
        compression_rates=[4, 8, 16],
        segment_length=96,
        bundle_decoder=True,
    )
    model.save_pretrained(folder / "tiny")
    return folder / "tiny"
