"""A trained compressor for another decoder (PCC, section 3.4: "Connecting Various LLMs")."""

from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from memslots.modeling import MemslotsModel, MemslotsProcessor
from memslots.modeling.decoder_lora_memslots import DecoderLora
from memslots.modeling.parts_memslots import build_converter, embedding_scale

TRAIN = ("all", "converter")


def adapt_to_decoder(
    model: MemslotsModel,
    decoder: str,
    train: str = "all",
    decoder_kwargs: dict[str, Any] | None = None,
) -> None:
    """Give a compressor another decoder, with a new converter and new markers, in place.

    Args:
        model: a trained compressor; its decoder, if it has one, is let go.
        decoder: repository or folder of the new decoder.
        train: "all" weights of the compressor, as the paper does, or the "converter" and the
            markers alone: then the encoder writes what it wrote before, and a memory that was made
            for the old decoder serves the new one too.
        decoder_kwargs: for the decoder's `from_pretrained`.

    Raises:
        ValueError: another `train`.
    """
    check_trained(train)
    options = decoder_kwargs or {}
    device = model.encoder.device
    llm = AutoModelForCausalLM.from_pretrained(decoder, **{"dtype": model.dtype, **options})
    config = model.config
    config.decoder_config = llm.config
    config.decoder_name_or_path = decoder
    config.decoder_revision = options.get("revision")
    config.bundle_decoder = False
    width = config.get_text_config(decoder=True).hidden_size
    scale = embedding_scale(llm)
    model.converter = build_converter(config)
    model.converter.init_weights(scale)
    model.markers = nn.Parameter(torch.randn(3, width) * scale)
    model.converter.to(device=device, dtype=model.encoder.dtype)
    if config.decoder_lora is not None:  # its weights are for the decoder before
        model.decoder_lora = DecoderLora(llm.config, config.decoder_lora)
        model.decoder_lora.to(device=device, dtype=model.encoder.dtype)
    model.markers.data = model.markers.data.to(device=device, dtype=model.encoder.dtype)
    model.processor = MemslotsProcessor.for_config(
        config,
        AutoTokenizer.from_pretrained(decoder, revision=config.decoder_revision),
        model._need_processor().encoder_tokenizer,
    )
    model.attach_decoder(llm)
    choose_trained(model, train)


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
