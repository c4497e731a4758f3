"""Runs a lab recipe: its decoder first, trained or taken from a checkpoint, then the compressor."""

from functools import partial
from pathlib import Path
from typing import Any

from lab import sources  # noqa: F401, whose rows the recipes name
from lab.training.donor import take_decoder
from lab.training.tiny_compressor import new_tiny_compressor
from lab.training.tiny_decoder import train_tiny_decoder
from memslots.modeling import MemslotsModel
from memslots.trainer import run as package_run
from memslots.trainer.run import CardWriter, decoder_kwargs, missing_stage
from memslots.trainer.stage_changes import first_section
from memslots.trainer.start_checkpoint import take_compressor


def run_recipe(
    recipe: dict[str, Any],
    output: Path,
    stage: str | None = None,
    books: str | None = None,
    card_writer: CardWriter | None = None,
    data_dir: str | None = None,
) -> Path:
    """As `memslots.trainer.run.run_recipe`, with a stage more: "decoder", where there is one.

    Args:
        recipe: its section `decoder` holds `checkpoint` alone, whose decoder is taken, or says how
            one is trained (see `train_tiny_decoder`); a recipe without it is the package's.
        output: as there.
        stage: as there, or "decoder".
        books: as there.
        card_writer: as there.
        data_dir: as there.

    Returns:
        As there; the decoder's folder after the stage "decoder".

    Raises:
        ValueError: an unknown stage, or one whose predecessor has not been run.
    """
    rest: dict[str, Any] = {"books": books, "card_writer": card_writer, "data_dir": data_dir}
    if "decoder" not in recipe:
        return package_run.run_recipe(recipe, output, stage, **rest)
    names = ["decoder", *(settings["name"] for settings in recipe["compressor"]["stages"])]
    if stage is not None and stage not in names:
        raise ValueError(f"stage {stage!r} is not in this recipe; its stages are {names}.")
    decoder = output / "decoder"
    if stage in (None, "decoder") and not (decoder / "model.safetensors").exists():
        output.mkdir(parents=True, exist_ok=True)
        if recipe["decoder"].keys() == {"checkpoint"}:
            take_decoder(recipe["decoder"]["checkpoint"], output)
        else:
            train_tiny_decoder(recipe, output, books)
    if stage == "decoder":
        return decoder
    first_model = partial(_first_model, output=output)
    return package_run.run_recipe(recipe, output, stage, first_model=first_model, **rest)


def _first_model(recipe: dict[str, Any], name: str, output: Path) -> MemslotsModel:
    """A trained compressor before the recipe's decoder, or a new one for it."""
    decoder, section = output / "decoder", recipe["compressor"]
    if not (decoder / "model.safetensors").exists():
        raise ValueError(missing_stage(name, output))
    if "checkpoint" in section:
        return take_compressor(section["checkpoint"], decoder, decoder_kwargs(section, name))
    return new_tiny_compressor(first_section(section, name), output)
