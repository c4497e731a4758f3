"""What the new parts of a compressor start as: at the scale of what they join.

A slot that is ten times as large as a token embedding, or a tenth of it, is where training starts
slowest.
"""

import logging
import math

import torch
from torch import nn

from memslots.embedding_map import embedding_scale, fit_embedding_map, shared_tokens
from memslots.modeling import MemslotsModel
from memslots.modeling.encoders_memslots import (
    Converter,
    GroupPool,
    LinearConverter,
    ResidualConverter,
)

logger = logging.getLogger(__name__)

MARKER_WORDS = ("\n\n", "\n\n", "Repeat the text:\n\n")
"""What `<MEM>`, `</MEM>` and `<AE>` start as where slots start among the decoder's embeddings."""


@torch.no_grad()
def match_scales(model: MemslotsModel) -> None:
    """Draw memory tokens, markers, pool and converter anew."""
    if model.memory_tokens is not None:
        nn.init.normal_(model.memory_tokens, std=embedding_scale(model.encoder))
    scale = embedding_scale(model.decoder)
    nn.init.normal_(model.markers, std=scale)
    if isinstance(model.converter, ResidualConverter):  # blank lines, and a plea to repeat
        embed = model.decoder.get_input_embeddings()
        for marker, words in zip(model.markers, MARKER_WORDS, strict=True):
            ids = model.processor.decoder_text.encode(words)
            if ids:
                tokens = embed(torch.tensor(ids, device=embed.weight.device))
                marker.copy_(tokens.float().mean(dim=0))
    draw_converter(model.converter, scale)
    if isinstance(model.group_pool, GroupPool):
        draw_group_pool(model.group_pool)
        if model.config.encoder_layers is None:
            _start_among_embeddings(model)


@torch.no_grad()
def draw_converter(converter: nn.Module, scale: float) -> None:
    """New weights of a converter, such that what it gives has the standard deviation `scale`.

    A `ResidualConverter` gives slots as they are instead: of those that lie among the decoder's
    embeddings, the decoder reads what it knows from the first step.
    """
    if hasattr(converter, "draw"):  # one that was added to `CONVERTERS`
        converter.draw(scale)  # type: ignore[operator]
        return
    nn.init.ones_(converter.norm.weight)  # type: ignore[union-attr, arg-type]
    if isinstance(converter, LinearConverter):
        draw_linear(converter.map, scale)
    elif isinstance(converter, Converter):
        draw_linear(converter.up, 1.0)
        # The second moment of GELU of a unit normal variable is 0.425.
        draw_linear(converter.down, scale / math.sqrt(0.425))
        if isinstance(converter, ResidualConverter):
            nn.init.eye_(converter.skip.weight)
            nn.init.zeros_(converter.down.weight)


def draw_linear(layer: nn.Linear, gain: float) -> None:
    """New weights, such that unit normal inputs give outputs of the standard deviation `gain`."""
    nn.init.normal_(layer.weight, std=gain / math.sqrt(layer.in_features))
    nn.init.zeros_(layer.bias)


@torch.no_grad()
def draw_group_pool(pool: GroupPool) -> None:
    """Untrained weights: slots are sums of embeddings, the last token's the largest.

    So they lie in the geometry that the decoder reads.
    """
    places, _, width = pool.skip.shape
    for place in range(places):
        nn.init.eye_(pool.skip[place])
        pool.skip[place] *= 1 / (1 + 0.9 * place)
    nn.init.ones_(pool.norm.weight)
    nn.init.normal_(pool.up, std=1 / math.sqrt(4 * width))
    for tensor in (pool.bias, pool.down.weight, pool.down.bias):
        nn.init.zeros_(tensor)


def _start_among_embeddings(model: MemslotsModel) -> None:
    """Let slots that are sums of the encoder's embeddings be read as sums of the decoder's."""
    if not isinstance(model.converter, ResidualConverter):
        return
    tokenizers = model.processor.encoder_tokenizer, model.processor.tokenizer
    shared = len(shared_tokens(*tokenizers)[0])
    if shared < 2 * model.slot_size:
        logger.warning(
            "encoder and decoder share %d tokens, and starting from the decoder's embeddings "
            "needs at least %d: the converter starts from random weights, and learns more slowly",
            shared,
            2 * model.slot_size,
        )
        return
    mapping, explained = fit_embedding_map(
        model.encoder, tokenizers[0], model.decoder, tokenizers[1]
    )
    logger.info("the encoder's embeddings explain %.0f%% of the decoder's", 100 * explained)
    model.converter.skip.weight.copy_(mapping.T)
