"""The untrained compressor of the embedded checkpoint, made for the tiny decoder."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from lab.training.local_init import initialize_local
from memslots.making import new_compressor
from memslots.modeling import MemslotsModel


def new_tiny_compressor(recipe: dict[str, Any], output: Path) -> MemslotsModel:
    """An untrained compressor for the tiny decoder, with an encoder of another width and tokenizer.

    The encoder starts from the decoder's embeddings (see `local_init`): a token that both
    vocabularies hold from the decoder's embedding of it, any other from the mean of the decoder's
    tokens that spell it.
    """
    torch.manual_seed(recipe["seed"])
    decoder_dir, encoder_dir = output / "decoder", output / "encoder"
    tokenizer = AutoTokenizer.from_pretrained(output / "encoder_tokenizer")
    encoder = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=None,
            pad_token_id=tokenizer.pad_token_id,
            **recipe["encoder"],
        )
    )
    encoder.save_pretrained(encoder_dir)
    tokenizer.save_pretrained(encoder_dir)
    model = new_compressor(str(encoder_dir), str(decoder_dir), **recipe["config"])
    initialize_local(model, _shared_embeddings(decoder_dir, tokenizer))
    # Both are inside the checkpoint, so it names no folder of this machine.
    model.config.encoder_name_or_path = model.config.decoder_name_or_path = None
    parts: list[Any] = [model.config.encoder_config, model.config.decoder_config]
    for part in parts:
        part._name_or_path = ""
    return model


def _shared_embeddings(decoder_dir: Path, tokenizer) -> torch.Tensor:
    """`(encoder vocabulary, d_decoder)`: the decoder's embeddings of the encoder's tokens."""
    decoder_tokenizer = AutoTokenizer.from_pretrained(decoder_dir)
    decoder = AutoModelForCausalLM.from_pretrained(decoder_dir, dtype=torch.float32)
    known = decoder_tokenizer.get_vocab()
    embeddings = decoder.get_input_embeddings().weight.detach()
    rows = torch.zeros(len(tokenizer), embeddings.shape[1])
    for token, index in tokenizer.get_vocab().items():
        ids = [known[token]] if token in known else []
        if not ids:
            text = tokenizer.convert_tokens_to_string([token])
            ids = decoder_tokenizer(text, add_special_tokens=False)["input_ids"]
        if ids:
            rows[index] = embeddings[ids].mean(dim=0)
    return rows
