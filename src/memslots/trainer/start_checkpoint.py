"""What a recipe takes from a trained checkpoint: its decoder and tokenizers, or its compressor."""

from importlib.resources import files
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, PreTrainedModel

from memslots.modeling import MemslotsConfig, MemslotsModel


def donor_config(checkpoint: str) -> MemslotsConfig:
    """The configuration of a checkpoint that carries its decoder, for `take_decoder`.

    Args:
        checkpoint: as there.

    Raises:
        ValueError: the checkpoint carries no decoder.
    """
    config = checkpoint_config(checkpoint)
    if not config.bundle_decoder:
        raise ValueError(
            f"checkpoint {checkpoint!r} carries no decoder of its own (bundle_decoder); name its "
            "decoder and encoder in the recipe's compressor section instead."
        )
    return config


def take_decoder(checkpoint: str, output: Path) -> None:
    """Write a checkpoint's bundled decoder and both its tokenizers where training looks for them.

    Args:
        checkpoint: a folder or repository, or "embedded", the one that the package carries.
        output: folder of the run.

    Raises:
        ValueError: the checkpoint carries no decoder.
    """
    take_tokenizers(checkpoint, output).save_pretrained(output / "decoder")


def take_tokenizers(checkpoint: str, output: Path) -> PreTrainedModel:
    """Write a checkpoint's two tokenizers where training looks for them.

    Args:
        checkpoint: as for `take_decoder`.
        output: folder of the run.

    Returns:
        The checkpoint's decoder.

    Raises:
        ValueError: the checkpoint carries no decoder.
    """
    donor_config(checkpoint)
    model = MemslotsModel.from_pretrained(_place(checkpoint))
    processor = model.processor
    processor.encoder_tokenizer.save_pretrained(output / "encoder_tokenizer")
    processor.tokenizer.save_pretrained(output / "decoder")
    return model.decoder


def checkpoint_config(checkpoint: str) -> MemslotsConfig:
    """The configuration of a checkpoint: a folder, a repository, or "embedded"."""
    return MemslotsConfig.from_pretrained(_place(checkpoint))


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
        return MemslotsModel.from_pretrained(_place(checkpoint), decoder_kwargs=decoder_kwargs)
    model = MemslotsModel.from_pretrained(_place(checkpoint), load_decoder=False)
    model.attach_decoder(AutoModelForCausalLM.from_pretrained(decoder, dtype=model.dtype))
    return model


def _place(checkpoint: str) -> str:
    """Where the package's own checkpoint lies, or what was given."""
    embedded = files("memslots").joinpath("assets", "tiny")
    return str(embedded) if checkpoint == "embedded" else checkpoint
