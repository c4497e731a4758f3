"""What a recipe takes from a trained checkpoint: its configuration, or its compressor."""

from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM

from memslots.checkpoints import embedded
from memslots.modeling import MemslotsConfig, MemslotsModel
from memslots.modeling.decoders_memslots import weights_sample


def checkpoint_config(checkpoint: str) -> MemslotsConfig:
    """The configuration of a checkpoint: a folder, a repository, or "embedded"."""
    return MemslotsConfig.from_pretrained(checkpoint_folder(checkpoint))


def take_compressor(
    checkpoint: str, decoder: Path | None, decoder_kwargs: dict[str, Any] | None = None
) -> MemslotsModel:
    """A trained compressor to go on with, before its own decoder or one that went on training.

    Args:
        checkpoint: a folder or repository, or "embedded".
        decoder: folder of a decoder of the same width and vocabulary; None for the checkpoint's.
        decoder_kwargs: how the checkpoint's is loaded, for its `from_pretrained`.

    Raises:
        ValueError: a decoder of another width or vocabulary, which needs an `adapt` stage.
    """
    if decoder is None:
        return MemslotsModel.from_pretrained(
            checkpoint_folder(checkpoint), decoder_kwargs=decoder_kwargs
        )
    model = MemslotsModel.from_pretrained(checkpoint_folder(checkpoint), load_decoder=False)
    llm = AutoModelForCausalLM.from_pretrained(decoder, dtype=model.dtype)
    model.config.decoder_fingerprint = weights_sample(llm)
    model.attach_decoder(llm)
    return model


def checkpoint_folder(checkpoint: str) -> str:
    """Where the package's own checkpoint lies, or what was given."""
    return embedded() if checkpoint == "embedded" else checkpoint
