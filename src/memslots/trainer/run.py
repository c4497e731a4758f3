"""Runs a recipe: the tiny decoder, its compressor stage by stage, and the embedded checkpoint."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from memslots.modeling import MemslotsModel
from memslots.trainer.compressor_config import CompressorConfig
from memslots.trainer.compressor_trainer import CompressorTrainer
from memslots.trainer.local_init import initialize_local
from memslots.trainer.stage_data import stage_dataset
from memslots.trainer.tiny_decoder import last_checkpoint, train_tiny_decoder


def run_recipe(
    recipe: dict[str, Any],
    output: Path,
    stage: str | None = None,
    books: str | None = None,
    card_writer: Callable[[MemslotsModel, Path], None] | None = None,
) -> Path:
    """Run all stages of a recipe, or one; a stage that is complete is not run again.

    Args:
        recipe: what `load_recipe` gave.
        output: folder of everything that is made; a killed run goes on from it.
        stage: "decoder" or the name of one of the compressor's stages.
        books: where the books are; PG-19 from the Hub without it.
        card_writer: handed to the trainer.

    Returns:
        The folder of the last stage's checkpoint.

    Raises:
        ValueError: an unknown stage, or one whose predecessor has not been run.
    """
    stages = recipe["compressor"]["stages"]
    names = ["decoder", *(s["name"] for s in stages)]
    if stage is not None and stage not in names:
        raise ValueError(f"stage {stage!r} is not in this recipe; its stages are {names}.")
    output.mkdir(parents=True, exist_ok=True)
    result = output / "decoder"
    if stage in (None, "decoder") and not (output / "decoder" / "model.safetensors").exists():
        result = train_tiny_decoder(recipe, output, books)
    previous: Path | None = None
    for settings in stages:
        folder = output / "compressor" / settings["name"]
        done = folder / "model.safetensors"
        if stage in (None, settings["name"]) and not done.exists():
            _run_stage(recipe["compressor"], settings, previous, output, books, card_writer)
        if done.exists():
            previous = result = folder
    return result


def install_checkpoint(source: Path, target: Path) -> None:
    """Replace `target` by the checkpoint in `source`, without training state."""
    model = MemslotsModel.from_pretrained(source)
    kept = {
        name: (target / name).read_bytes()
        for name in ("README.md", "results.json")
        if (target / name).is_file()
    }
    shutil.rmtree(target, ignore_errors=True)
    model.save_pretrained(target)
    for name, content in kept.items():
        (target / name).write_bytes(content)


def _run_stage(
    recipe: dict[str, Any],
    settings: dict[str, Any],
    previous: Path | None,
    output: Path,
    books: str | None,
    card_writer: Callable[[MemslotsModel, Path], None] | None,
) -> None:
    torch.set_num_threads(recipe["threads"])
    if previous is not None:
        model = MemslotsModel.from_pretrained(previous)
    elif settings is recipe["stages"][0] and (output / "decoder" / "model.safetensors").exists():
        model = new_tiny_compressor(recipe, output)
    else:
        raise ValueError(
            f"stage {settings['name']!r} starts from the one before it, which is not in "
            f"{str(output)!r}; run that first, or the whole recipe without --stage."
        )
    folder = output / "compressor" / settings["name"]
    checkpoints = folder / "checkpoints"
    trainer = CompressorTrainer(
        model,
        CompressorConfig(
            output_dir=str(checkpoints),
            seed=recipe["seed"],
            save_total_limit=1,
            dataloader_pin_memory=torch.cuda.is_available(),
            **{**recipe["training"], **settings["training"]},
        ),
        stage_dataset(settings["data"], recipe["seed"], books),
        card_writer=card_writer,
    )
    trainer.train(resume_from_checkpoint=last_checkpoint(checkpoints))
    model.save_pretrained(folder)
    shutil.rmtree(checkpoints, ignore_errors=True)


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
    model = MemslotsModel.from_encoder_decoder_pretrained(
        str(encoder_dir), str(decoder_dir), **recipe["config"]
    )
    initialize_local(model, _shared_embeddings(decoder_dir, tokenizer))
    # Both are inside the checkpoint, so it names no folder of this machine.
    model.config.encoder_name_or_path = model.config.decoder_name_or_path = None
    for part in (model.config.encoder_config, model.config.decoder_config):
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
