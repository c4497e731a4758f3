"""Runs a recipe: its models, stage by stage, each stage's checkpoint in a folder of its own."""

import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from datasets import IterableDataset
from transformers import PrinterCallback, ProgressCallback, TrainerCallback

from memslots.making import new_compressor
from memslots.modeling import MemslotsConfig, MemslotsModel
from memslots.trainer.adapt import adapt_to_decoder, choose_trained
from memslots.trainer.compressor_config import CompressorConfig
from memslots.trainer.compressor_trainer import CompressorTrainer
from memslots.trainer.log_line import LogLine
from memslots.trainer.recipe_checks import check_recipe
from memslots.trainer.row_sources import Sources, contrast_of, source_rows
from memslots.trainer.saving import (
    check_room,
    is_saved,
    last_checkpoint,
    save_whole,
    whole_or_removed,
)
from memslots.trainer.shortcut_check import ShortcutCheck
from memslots.trainer.source_checks import check_sources
from memslots.trainer.stage_changes import change_stage, first_section, start_adapter
from memslots.trainer.stage_data import stage_dataset
from memslots.trainer.start_checkpoint import take_compressor
from memslots.trainer.time_budget import NO_STEP_LIMIT, TimeBudget

LOSSES = "losses.json"
"""Beside a stage's checkpoint: what the trainer logged."""

SLOT_CACHE = "slot_cache.safetensors"
"""In a run's folder: slots of a frozen sentence encoder, which all its stages share."""

CardWriter = Callable[[MemslotsModel, Path], None]
FirstModel = Callable[[dict[str, Any], str], MemslotsModel]


def run_recipe(
    recipe: dict[str, Any],
    output: Path,
    stage: str | None = None,
    books: str | None = None,
    card_writer: CardWriter | None = None,
    data_dir: str | None = None,
    first_model: FirstModel | None = None,
) -> Path:
    """Run the stages of a recipe, or one; a stage that is complete is not run again.

    Args:
        recipe: what `load_recipe` gave.
        output: folder of everything that is made; a killed run resumes from it. The recipe is
            written there, and beside every stage's checkpoint, as it was run.
        stage: the name of one of the compressor's stages; see `stages_to_run`.
        books: where the books of sources that read them are; PG-19 from the Hub without it.
        card_writer: handed to the trainer; writes the card of every stage's checkpoint too.
        data_dir: folder with local copies of the data sets; the Hub without it.
        first_model: makes what a stage without a predecessor starts from, of the recipe and the
            stage's name; without it the recipe's `checkpoint`, or a compressor of its `encoder`
            and `decoder`.

    Returns:
        The folder of the last stage's checkpoint.

    Raises:
        ValueError: a key that is missing, unknown or of another kind (`check_recipe`); an unknown
            stage, or one whose predecessor has not been run.
    """
    if "decoder" in recipe and first_model is None:
        raise ValueError(
            "this recipe makes its own decoder, which the installed package cannot do: run it in "
            "a checkout of memslots with `python -m lab train`."
        )
    check_recipe(recipe, makes_models=first_model is None)
    chosen = stages_to_run(recipe["compressor"], stage)
    sources = Sources(recipe["compressor"]["seed"], books, data_dir)
    for settings in chosen:
        if not is_saved(output / "compressor" / settings["name"]):
            training = recipe["compressor"].get("training", {}) | settings.get("training", {})
            check_sources(settings, training, sources)
    output.mkdir(parents=True, exist_ok=True)
    _write_recipe(recipe, output)
    result = output
    for settings in chosen:
        result = output / "compressor" / settings["name"]
        if is_saved(result):
            print(_complete(recipe, settings, result), flush=True)
        else:
            maker = first_model or _first_model
            _run_stage(recipe, settings["name"], output, sources, card_writer, maker)
    return result


def _complete(recipe: dict[str, Any], settings: dict[str, Any], folder: Path) -> str:
    """A line about a stage that is not run again; it names what the recipe has changed since."""
    line, changed = f"{settings['name']}: complete already", _changed(recipe, settings, folder)
    return (
        f"{line}, with another {changed}; to train it again, remove {folder}" if changed else line
    )


def _changed(recipe: dict[str, Any], settings: dict[str, Any], folder: Path) -> str:
    """What a stage's recipe says otherwise than the one in `folder`, from which it was run."""
    if not (folder / "recipe.yaml").is_file():
        return ""
    name = settings["name"]
    before = yaml.safe_load((folder / "recipe.yaml").read_text("utf-8"))["compressor"]
    then: dict[str, Any] = next((stage for stage in before["stages"] if stage["name"] == name), {})
    return ", ".join(
        f"{prefix}.{key}"
        for prefix, old, new in (
            ("compressor", before, recipe["compressor"]),
            (name, then, settings),
        )
        for key in sorted({*old, *new} - {"stages"})
        if old.get(key) != new.get(key)
    )


def stages_to_run(section: dict[str, Any], stage: str | None = None) -> list[dict[str, Any]]:
    """The stages of a recipe's `compressor` section that a run goes through, in their order.

    Args:
        section: the section.
        stage: the name of one; without it all but those that say `by_name_only: true`, such as the
            adaptations to another decoder of the paper's recipes.

    Raises:
        ValueError: an unknown stage.
    """
    stages = {settings["name"]: settings for settings in section["stages"]}
    if stage is None:
        return [settings for settings in stages.values() if not settings.get("by_name_only")]
    if stage not in stages:
        raise ValueError(f"stage {stage!r} is not in this recipe; its stages are {list(stages)}.")
    return [stages[stage]]


def previous_stage(stages: list[dict[str, Any]], name: str) -> str | None:
    """The stage that stage `name` starts from: its `after`, else the one before it, if any.

    `after: null` starts from a new compressor, with the stage's own `config`.

    Raises:
        ValueError: `after` names no earlier stage.
    """
    names = [settings["name"] for settings in stages]
    at = names.index(name)
    earlier = stages[at].get("after")
    if earlier is None and "after" in stages[at]:  # said to be nothing: a new compressor
        return None
    if earlier is not None and earlier not in names[:at]:
        raise ValueError(
            f"stage {name!r} comes after {earlier!r}, which is not an earlier stage; the stages "
            f"are {names}."
        )
    return earlier or (names[at - 1] if at else None)


_KEPT = ("README.md", "results.json")
"""What stays of a folder that a checkpoint is installed to."""


def check_install(target: Path) -> None:
    """Refuse a folder that `install_checkpoint` would replace though it holds something else.

    Raises:
        ValueError: a file, or a folder that is neither empty nor a compressor's.
    """
    named = target / "config.json"
    is_checkpoint = named.is_file() and f'"{MemslotsConfig.model_type}"' in named.read_text("utf-8")
    held = {path.name for path in target.iterdir()} if target.is_dir() else set()
    if target.is_file() or (held - set(_KEPT) and not is_checkpoint):
        raise ValueError(
            f"--install {target} is there and is no compressor's folder, so that what it holds "
            "would be lost; name a new folder, an empty one, or that of an earlier compressor."
        )


def install_checkpoint(source: Path, target: Path) -> None:
    """Replace `target` by the checkpoint in `source`, without training state.

    Raises:
        ValueError: see `check_install`.
    """
    check_install(target)
    target = target.resolve()  # `.` has no name to put another beside
    model = MemslotsModel.from_pretrained(source)
    kept = {name: (target / name).read_bytes() for name in _KEPT if (target / name).is_file()}
    fresh = target.with_name(target.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    with whole_or_removed(fresh, kept=str(source)):
        model.save_pretrained(fresh)
        for name, content in kept.items():
            (fresh / name).write_bytes(content)
        if (source / "recipe.yaml").is_file():
            shutil.copyfile(source / "recipe.yaml", fresh / "recipe.yaml")
    shutil.rmtree(target, ignore_errors=True)
    fresh.rename(target)


def training_arguments(
    recipe: dict[str, Any], settings: dict[str, Any], world_size: int = 1
) -> dict[str, Any]:
    """Arguments of `CompressorConfig` for one stage.

    Args:
        recipe: the recipe's `compressor` section.
        settings: the stage. `batch_size` rows per step, over all processes and accumulated batches,
            becomes `gradient_accumulation_steps`; `tokens` of compressed text become `max_steps`;
            `minutes` limit the stage by time (`TimeBudget`).
        world_size: processes that train together.

    Raises:
        ValueError: a batch size that the processes cannot make, or tokens of rows of no one length.
    """
    arguments = {"seed": recipe["seed"], **recipe["training"], **settings.get("training", {})}
    if any("contrast" in source for source in settings["data"]):
        arguments["contrast_rows"] = contrast_of(settings["data"])
    each = arguments.get("per_device_train_batch_size", 8) * world_size
    batch = settings.get("batch_size")
    if batch is not None:
        if batch % each:
            raise ValueError(
                f"stage {settings['name']!r} has batch_size {batch}, which is not a multiple of "
                f"{each} ({each // world_size} rows on each of {world_size} processes); set "
                "compressor.training.per_device_train_batch_size to a divisor."
            )
        arguments["gradient_accumulation_steps"] = batch // each
    if "minutes" in settings:
        arguments["max_steps"] = NO_STEP_LIMIT
    if "tokens" in settings:
        lengths = {source.get("tokens") for source in settings["data"]}
        if len(lengths) != 1 or None in lengths:
            raise ValueError(
                f"stage {settings['name']!r} counts tokens, so each of its data sources must say "
                f"how many a row has, and all the same; they say {sorted(map(str, lengths))}."
            )
        rows = batch or each * arguments.get("gradient_accumulation_steps", 1)
        arguments["max_steps"] = max(1, settings["tokens"] // (rows * lengths.pop()))
    return arguments


def _run_stage(
    recipe: dict[str, Any],
    name: str,
    output: Path,
    sources: Sources,
    card_writer: CardWriter | None,
    first_model: FirstModel,
) -> None:
    section = recipe["compressor"]
    settings = next(stage for stage in section["stages"] if stage["name"] == name)
    if "threads" in section:
        torch.set_num_threads(section["threads"])
    folder = output / "compressor" / name
    checkpoints = folder / "checkpoints"
    model = _stage_model(recipe, settings, output, first_model)
    is_first = previous_stage(section["stages"], name) is None
    change_stage(model, settings, is_new=is_first and "checkpoint" not in section)
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    args = CompressorConfig(
        **{
            "output_dir": str(checkpoints),
            "save_total_limit": 1,
            "dataloader_pin_memory": torch.cuda.is_available(),
            "slot_cache": str(output / SLOT_CACHE),
            **training_arguments(section, settings, world_size),
        }
    )
    rows = stage_dataset(settings["data"], sources, model.processor, endless=True)
    if "start" in settings and last_checkpoint(checkpoints) is None:
        start_adapter(model, settings["start"], rows, args)
    check_room(checkpoints, model)
    trainer = CompressorTrainer(model, args, rows, card_writer=card_writer)
    budget = TimeBudget(settings["minutes"], checkpoints) if "minutes" in settings else None
    if budget is not None:
        trainer.add_callback(budget)
    for other in (PrinterCallback, ProgressCallback):  # a bar of a billion steps says nothing
        trainer.remove_callback(other)
    trainer.add_callback(LogLine(name, budget))
    if trainer.args.shortcut_check_steps is not None:
        trainer.add_callback(_shortcut_check(trainer, settings["data"]))
    checkpoint = last_checkpoint(checkpoints)
    if checkpoint is not None:
        _skip_stream(trainer, Path(checkpoint))
        if changed := _changed(recipe, settings, checkpoints):
            print(
                f"{name}: goes on with another {changed}; to begin it again, remove {checkpoints}",
                flush=True,
            )
    if trainer.is_world_process_zero():
        checkpoints.mkdir(parents=True, exist_ok=True)
        _write_recipe(recipe, checkpoints)
    trainer.train(resume_from_checkpoint=checkpoint)
    weights = trainer.gathered_weights()
    if trainer.is_world_process_zero():

        def save(unfinished: Path) -> None:
            model.save_pretrained(unfinished, state_dict=weights)
            _write_recipe(recipe, unfinished)
            _write_losses(trainer.state.log_history, unfinished)

        save_whole(save, folder, kept=last_checkpoint(checkpoints))
        if card_writer is not None:
            card_writer(model, folder)
        shutil.rmtree(checkpoints, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()


def _shortcut_check(trainer: CompressorTrainer, sources: list[dict[str, Any]]) -> ShortcutCheck:
    """A check on held-out people of the stage's first source."""
    args = trainer.args
    rows = list(source_rows(sources[0], "validation", args.shortcut_check_rows, args.seed))
    return ShortcutCheck(trainer, rows, args.shortcut_check_steps)


def _skip_stream(trainer: CompressorTrainer, checkpoint: Path) -> None:
    """Lets an endless stream begin at the row that follows the checkpoint's last.

    The Trainer would make a batch of all that it skips, which takes several times as long as
    reading and cutting the texts again. A stream that ends must be left to it: this would leave the
    rows out of every pass.
    """
    if not isinstance(trainer.train_dataset, IterableDataset):
        return
    state = json.loads((checkpoint / "trainer_state.json").read_text("utf-8"))
    args = trainer.args
    step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    trainer.train_dataset = trainer.train_dataset.skip(state["global_step"] * step)
    args.ignore_data_skip = True
    trainer.add_callback(_RestoreRandomState(trainer, str(checkpoint)))


class _RestoreRandomState(TrainerCallback):
    """Restores the random state once the first batch is there.

    The Trainer does so before it opens the stream, which draws from that state; a run that was not
    broken opened it long before.
    """

    def __init__(self, trainer: CompressorTrainer, checkpoint: str):
        self.restore: Callable[[], None] | None = partial(trainer._load_rng_state, checkpoint)

    def on_step_begin(self, args, state, control, **kwargs):
        """Once."""
        if self.restore is not None:
            self.restore()
            self.restore = None


def _stage_model(
    recipe: dict[str, Any], settings: dict[str, Any], output: Path, first_model: FirstModel
) -> MemslotsModel:
    section = recipe["compressor"]
    before = previous_stage(section["stages"], settings["name"])
    if before is None:
        return first_model(recipe, settings["name"])
    folder = output / "compressor" / before
    if not is_saved(folder):
        raise ValueError(missing_stage(settings["name"], output))
    if "adapt" in settings:
        reads_old = settings["adapt"].get("start") == "embeddings"
        old = decoder_kwargs(section, before) if reads_old else None
        model = MemslotsModel.from_pretrained(folder, load_decoder=reads_old, decoder_kwargs=old)
        adapt_to_decoder(model, **settings["adapt"])
        return model
    model = MemslotsModel.from_pretrained(
        folder, decoder_kwargs=decoder_kwargs(section, settings["name"])
    )
    # What an adaptation leaves as it is stays so in the stages after it.
    choose_trained(model, trained_part(section, settings["name"]))
    return model


def decoder_kwargs(section: dict[str, Any], name: str) -> dict[str, Any] | None:
    """How stage `name` loads its decoder: as the recipe says, or the adaptation that gave it one.

    Args:
        section: the recipe's `compressor` section.
        name: the stage's name.
    """
    adapt = adaptation(section, name)
    return section.get("decoder_kwargs") if adapt is None else adapt.get("decoder_kwargs")


def adaptation(section: dict[str, Any], name: str) -> dict[str, Any] | None:
    """The `adapt` that holds in stage `name`: its own, else that of the stages it comes from.

    Args:
        section: the recipe's `compressor` section.
        name: the stage's name.
    """
    stage = next(settings for settings in section["stages"] if settings["name"] == name)
    if "adapt" in stage:
        return stage["adapt"]
    before = previous_stage(section["stages"], name)
    return None if before is None else adaptation(section, before)


def trained_part(section: dict[str, Any], name: str) -> str:
    """What of the compressor stage `name` trains: "all", or what its adaptation says.

    Args:
        section: the recipe's `compressor` section.
        name: the stage's name.
    """
    return (adaptation(section, name) or {}).get("train", "all")


def _first_model(recipe: dict[str, Any], name: str) -> MemslotsModel:
    """A trained compressor, or a new one of two models."""
    if "checkpoint" in recipe["compressor"]:
        options = decoder_kwargs(recipe["compressor"], name)
        return take_compressor(recipe["compressor"]["checkpoint"], None, options)
    section = first_section(recipe["compressor"], name)
    torch.manual_seed(section["seed"])
    return new_compressor(
        section["encoder"],
        section["decoder"],
        encoder_kwargs=section.get("encoder_kwargs"),
        decoder_kwargs=section.get("decoder_kwargs"),
        **section["config"],
    )


def missing_stage(name: str, output: Path) -> str:
    """What to say where a stage's predecessor has not been run."""
    return (
        f"stage {name!r} starts from the one before it, which is not in {str(output)!r}; run that "
        "first, or the whole recipe without --stage."
    )


def _write_losses(history: list[dict[str, Any]], folder: Path) -> None:
    """The loss curves of a stage: what was logged, step by step."""
    (folder / LOSSES).write_text(json.dumps(history, indent=1), encoding="utf-8")


def _write_recipe(recipe: dict[str, Any], folder: Path) -> None:
    with (folder / "recipe.yaml").open("w", encoding="utf-8") as file:
        yaml.safe_dump(recipe, file, sort_keys=False, allow_unicode=True)
