"""A tiny random sentence encoder with all that real ones have: specials, a prompt, dense layers."""

from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import (
    Dense,
    Normalize,
    Pooling,
    Transformer,
)
from tiny_models import FAMILIES, word_piece
from tokenizers.processors import TemplateProcessing
from transformers import BertModel, BertTokenizerFast

WINDOW = 32
"""Tokens that it reads at once, [CLS], [SEP] and prompt included."""


def sentence_encoder(folder: Path, prompt: str = "", modes=("mean",)) -> str:
    """Writes one and returns its folder.

    Args:
        folder: where.
        prompt: what stands before each document.
        modes: of its pooling.
    """
    torch.manual_seed(3)
    config_class, shape = FAMILIES["bert"]
    backend = word_piece()
    ids = {name: backend.convert_tokens_to_ids(name) for name in ("[CLS]", "[SEP]")}
    backend.backend_tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=list(ids.items())
    )
    tokenizer = BertTokenizerFast(tokenizer_object=backend.backend_tokenizer)
    backbone = folder / "backbone"
    config = config_class(**shape, hidden_size=24, vocab_size=len(tokenizer))
    BertModel(config).save_pretrained(backbone)
    tokenizer.save_pretrained(backbone)
    whole = SentenceTransformer(
        modules=[
            Transformer(str(backbone), max_seq_length=WINDOW),
            Pooling(24, pooling_mode=list(modes)),
            Dense(24 * len(modes), 20, bias=False, activation_function=torch.nn.Identity()),
            Dense(20, 16),
            Normalize(),
        ],
        prompts={"document": prompt} if prompt else None,
        device="cpu",
    )
    whole.save(str(folder / "whole"), create_model_card=False)
    return str(folder / "whole")
