"""What a lab recipe takes from a trained checkpoint: its decoder and its two tokenizers."""

from pathlib import Path

from transformers import PreTrainedModel

from memslots.modeling import MemslotsConfig, MemslotsModel
from memslots.trainer.start_checkpoint import checkpoint_config, checkpoint_folder


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
    model = MemslotsModel.from_pretrained(checkpoint_folder(checkpoint))
    processor = model.processor
    processor.encoder_tokenizer.save_pretrained(output / "encoder_tokenizer")
    processor.tokenizer.save_pretrained(output / "decoder")
    return model.decoder
