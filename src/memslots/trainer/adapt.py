"""A trained compressor for another decoder (PCC, section 3.4: "Connecting Various LLMs")."""

import logging
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from memslots.embedding_map import carry_over, embedding_scale, fit_embedding_map
from memslots.making import absolute, decoder_tokenizer, kept_place, processor_for
from memslots.modeling import MemslotsModel
from memslots.modeling.decoders_memslots import DecoderLora, weights_sample
from memslots.modeling.encoders_memslots import CONVERTERS
from memslots.start_weights import draw_converter

logger = logging.getLogger(__name__)

TRAIN = ("all", "converter")
STARTS = ("random", "embeddings")


def adapt_to_decoder(
    model: MemslotsModel,
    decoder: str,
    train: str = "all",
    decoder_kwargs: dict[str, Any] | None = None,
    start: str = "random",
) -> None:
    """Give a compressor another decoder, with a new converter and new markers, in place.

    Args:
        model: a trained compressor; its decoder, if it has one, is let go.
        decoder: repository or folder of the new decoder.
        train: "all" weights of the compressor, as the paper does, or the "converter" and the
            markers alone: then the encoder writes what it wrote before, and a memory that was made
            for the old decoder serves the new one too.
        decoder_kwargs: arguments of the decoder's `from_pretrained`.
        start: "random" draws the new converter and markers, as the paper does; "embeddings" takes
            the old ones over, followed by the linear map from the old decoder's embeddings to the
            new one's (`embedding_map`): the model must then still have its old decoder.

    Raises:
        ValueError: an encoder that shares the old decoder's weights; another `train` or `start`;
            "embeddings" without the old decoder, or with too few tokens that both decoders have.
    """
    check_trained(train)
    check_start(start)
    if model.config.encoder_layers is not None:
        raise ValueError(
            "this compressor's encoder is its decoder's own layers, so it cannot be adapted to "
            "another decoder: train one for that decoder (memslots train own --decoder ...), or "
            "give the encoder its own weights first, with memslots.making.merge_encoder(model)."
        )
    old = model.decoder if model.has_decoder else None
    if start == "embeddings" and old is None:
        raise ValueError(
            "start 'embeddings' reads the embeddings of the old decoder, which this model was "
            "loaded without; load it with load_decoder=True, or use start 'random'."
        )
    options = decoder_kwargs or {}
    decoder = absolute(decoder, "decoder")
    device = model.encoder.device
    tokenizer = decoder_tokenizer(decoder, options)
    processor = processor_for(model.config, tokenizer, model.processor.encoder_tokenizer)
    settings = {"dtype": model.dtype, "trust_remote_code": False, **options}
    llm = AutoModelForCausalLM.from_pretrained(decoder, **settings)
    config = model.config
    lora = None  # its weights are for the decoder before
    if config.decoder_lora is not None:
        lora = DecoderLora(llm.config, config.decoder_lora)
        lora.to(device=device, dtype=model.encoder.dtype)
    mapping = None
    if start == "embeddings":
        old_tokenizer = model.processor.tokenizer
        mapping, explained = fit_embedding_map(old, old_tokenizer, llm, tokenizer)
        logger.info("the old decoder's embeddings explain %.0f%% of the new one's", 100 * explained)
        # A hidden layer that is as wide as the decoder by default stays as wide as it was.
        if config.converter_hidden_size is None:
            config.converter_hidden_size = config.get_text_config(decoder=True).hidden_size
    config.decoder_config = llm.config
    config.decoder_name_or_path = decoder
    config.decoder_revision = options.get("revision")
    config.decoder_loading = kept_place(options)
    config.decoder_fingerprint = weights_sample(llm)
    config.bundle_decoder = False
    width = config.get_text_config(decoder=True).hidden_size
    scale = embedding_scale(llm)
    converter = CONVERTERS[config.converter_type](config)
    markers = torch.randn(3, width) * scale
    draw_converter(converter, scale)
    if mapping is not None:
        carry_over(model.converter, converter, mapping)
        markers = model.markers.detach().float().cpu() @ mapping
    model.converter = converter
    model.markers = nn.Parameter(markers)
    model.converter.to(device=device, dtype=model.encoder.dtype)
    if lora is not None:
        model.decoder_lora = lora
    model.markers.data = model.markers.data.to(device=device, dtype=model.encoder.dtype)
    model.processor = processor
    model.attach_decoder(llm)
    choose_trained(model, train)


def check_start(start: str) -> None:
    """Refuse an unknown start of an adaptation, before anything is loaded."""
    if start not in STARTS:
        raise ValueError(f"start must be one of {STARTS}, got {start!r}.")


def check_trained(train: str) -> None:
    """Refuse an unknown choice of what an adaptation trains, before anything is loaded."""
    if train not in TRAIN:
        raise ValueError(f"train must be one of {TRAIN}, got {train!r}.")


def choose_trained(model: MemslotsModel, train: str) -> None:
    """Freeze what an adaptation with `train` leaves as it is."""
    check_trained(train)
    if train == "converter":
        model.encoder.requires_grad_(False)
        if model.memory_tokens is not None:
            model.memory_tokens.requires_grad_(False)
