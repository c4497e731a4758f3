"""The frozen LM that texts are crammed against, and what is asked of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from memslots.embedding_map import embedding_scale
from memslots.modeling import MemslotsModel
from memslots.modeling.configuration_memslots import MemslotsConfig
from memslots.modeling.layout_memslots import max_positions
from memslots.modeling.texts_memslots import PlainText


class FrozenDecoder:
    """A causal LM whose weights are not changed, with its tokenizer.

    Args:
        model: a causal LM of transformers; it is frozen and put into evaluation mode.
        tokenizer: its tokenizer, with a `tokenizers` backend.
        name: how tables call it.

    Raises:
        ValueError: a decoder that cannot read embeddings alone, or a slow tokenizer.
    """

    def __init__(self, model: Any, tokenizer: Any, name: str):
        config = model.config.get_text_config()
        if getattr(config, "hidden_size_per_layer_input", 0):
            raise ValueError(
                f"{name} ({config.model_type}) has per-layer embeddings, which a memory vector "
                "does not have; cram against a decoder that reads input embeddings alone."
            )
        self.model = model.requires_grad_(False).eval()
        self.tokenizer = tokenizer
        self.name = name
        self.text = PlainText(tokenizer)
        self.positions = max_positions(model.config)
        self.scale = embedding_scale(model)
        start = tokenizer.bos_token_id
        self.start_id = tokenizer.eos_token_id if start is None else start

    @property
    def width(self) -> int:
        """d_decoder."""
        return self.model.get_input_embeddings().weight.shape[1]

    @property
    def vocabulary(self) -> int:
        """|V|, the rows of the embedding matrix."""
        return self.model.get_input_embeddings().weight.shape[0]

    @property
    def device(self) -> torch.device:
        """Where the decoder's embeddings are."""
        return self.model.get_input_embeddings().weight.device

    @property
    def bits(self) -> int:
        """Bits of one number of the decoder's dtype, b of the theoretical capacity."""
        return torch.finfo(self.model.dtype).bits

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, never a control token."""
        return self.text.encode(text)

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Input embeddings `(..., d_decoder)` of ids, scaled where the model scales them."""
        return self.model.get_input_embeddings()(ids)

    def check_length(self, tokens: int, before: int) -> None:
        """Raises `ValueError` unless `before` vectors and `tokens` tokens fit it."""
        if tokens < 1:
            raise ValueError(f"a text of {tokens} tokens cannot be crammed; give at least 1.")
        if self.positions is not None and tokens + before > self.positions:
            raise ValueError(
                f"{tokens} tokens behind {before} memory vectors make {tokens + before} tokens, "
                f"and {self.name} reads {self.positions}; use a length of at most "
                f"{max(0, self.positions - before)}."
            )

    @torch.no_grad()
    def losses(self, ids: Sequence[int]) -> tuple[list[float], list[bool]]:
        """Cross-entropy (nats) and correctness of each token without a memory.

        The first token is predicted from BOS (EOS where the tokenizer has none); with neither, it
        costs ln |V| and is not guessed.

        Args:
            ids: the text.
        """
        start = [] if self.start_id is None else [self.start_id]
        inputs = torch.tensor([[*start, *ids]], device=self.device)
        logits = self.model(input_ids=inputs, use_cache=False).logits[0, :-1].float()
        target = inputs[0, 1:]
        losses = torch.nn.functional.cross_entropy(logits, target, reduction="none").tolist()
        right = (logits.argmax(-1) == target).tolist()
        if not start:
            return [math.log(self.vocabulary), *losses], [False, *right]
        return losses, right


def load_frozen_decoder(
    name: str | Path, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> FrozenDecoder:
    """Loads a causal LM, or the decoder of a memslots checkpoint.

    Args:
        name: folder or Hub repository.
        dtype: the precision of weights and vectors.
        device: where it runs.

    Raises:
        ValueError: no causal LM, or one that cannot be crammed against.
        OSError: no such folder or repository.
    """
    name = str(name)
    stated, _ = MemslotsConfig.get_config_dict(name)
    if stated.get("model_type") == MemslotsConfig.model_type:
        checkpoint = MemslotsModel.from_pretrained(name, dtype=dtype)
        return FrozenDecoder(
            checkpoint.decoder.to(device), checkpoint.processor.tokenizer, Path(name).name
        )
    config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    if type(config) not in AutoModelForCausalLM._model_mapping:
        raise ValueError(
            f"{name} is a {config.model_type} model, and no causal LM; name a decoder that "
            "generates text."
        )
    model = AutoModelForCausalLM.from_pretrained(name, dtype=dtype).to(device)
    return FrozenDecoder(model, AutoTokenizer.from_pretrained(name), Path(name).name)
