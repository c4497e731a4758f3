"""What a recipe would train, read and cost, before any weight is loaded or downloaded.

Parameters are counted on the meta device, and steps gone through on fake tensors (`step_cost`), so
a 70B encoder takes no memory. How long rows are is read from those that are on this machine, and
taken to be usual if they are not.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import psutil
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
)

from memslots.data import ADAPTERS
from memslots.data.schema import DataNotFound
from memslots.making import (
    check_lora_layers,
    decoder_config,
    decoder_tokenizer,
    linear_layers,
    only_place,
    processor_for,
)
from memslots.modeling import MemslotsConfig, MemslotsModel, MemslotsProcessor
from memslots.modeling.encoders_memslots import SHARED_ENCODER, first_layers_config
from memslots.modeling.layout_memslots import ANSWER, COMPLETION, RECONSTRUCTION, Prompt, Row
from memslots.trainer.adapt import choose_trained
from memslots.trainer.collator import CompressorBatch, CompressorCollator
from memslots.trainer.compressor_config import CompressorConfig
from memslots.trainer.pool_units import pooled_plan
from memslots.trainer.recipe_checks import check_recipe
from memslots.trainer.row_sources import Sources
from memslots.trainer.run import (
    adaptation,
    previous_stage,
    stages_to_run,
    trained_part,
    training_arguments,
)
from memslots.trainer.source_checks import check_sources
from memslots.trainer.stage_data import stage_dataset
from memslots.trainer.start_checkpoint import checkpoint_config, checkpoint_folder
from memslots.trainer.step_cost import Cost, Machine, measured_machine, shape_of, step_cost

_SENTENCE_TOKENS = 24
_QUESTION_TOKENS = (180, 24, 6)  # of a context, a question's prompt and an answer
_QUESTIONS = 4  # of a context, where nothing says how many
_SAMPLED_ROWS = 256
_FILLED = 0.8  # of the free memory: the longest batch of a run may be none of those sampled
_LEAST_STEPS = 10


@dataclass(frozen=True)
class StagePlan:
    """What one stage would do.

    Args:
        name: of the stage.
        after: the stage or the checkpoint that it starts from, or None.
        trained: parameters that are trained.
        frozen: parameters that are not, decoder included.
        rows_per_step: rows of one optimizer step, over all processes.
        steps: optimizer steps; None if the data set's size is not known beforehand.
        tokens: encoder tokens in all; None likewise, or where rows are of no one length.
        memory: most bytes that the process holds, of this machine's memory or of each GPU's.
        seconds: of training in all; None likewise.
        step_seconds: of one optimizer step.
    """

    name: str
    after: str | None
    trained: int
    frozen: int
    rows_per_step: int
    steps: int | None
    tokens: int | None
    memory: float
    seconds: float | None
    step_seconds: float


def plan_recipe(
    recipe: dict[str, Any],
    world_size: int = 1,
    machine: Machine | None = None,
    stage: str | None = None,
    books: str | None = None,
    data_dir: str | None = None,
    progress: Callable[[str], None] = lambda stage: None,
) -> list[StagePlan]:
    """Plans the stages of a recipe's compressor that `run_recipe` would run, and no others.

    Args:
        recipe: what `load_recipe` gave.
        world_size: devices that train together.
        machine: how fast each device is; measured on this machine without it.
        stage: the name of one stage; see `stages_to_run`.
        books: where books are; see `run_recipe`.
        data_dir: folder with local copies of the data sets.
        progress: called with the name of each stage once it is planned.

    Raises:
        ValueError: settings that do not go together.
        OSError: an encoder or decoder whose configuration cannot be had.
    """
    if "decoder" in recipe:
        raise ValueError("this recipe makes its own decoder; `python -m lab train` runs it.")
    check_recipe(recipe)
    section = recipe["compressor"]
    chosen = stages_to_run(section, stage)
    if "checkpoint" in section:
        section = {**section, "config": _config_of(section["checkpoint"])}
    origin = Sources(section["seed"], books, data_dir)
    for settings in chosen:
        training = section.get("training", {}) | settings.get("training", {})
        check_sources(settings, training, origin, complete=False)
    models = _Models(section)
    plans = []
    for settings in chosen:
        decoder = models.decoder(settings["name"])
        if machine is None:
            machine = measured_machine(decoder.get_text_config(decoder=True).hidden_size)
        plans.append(_plan_stage(section, settings, models, origin, world_size, machine))
        progress(settings["name"])
    return plans


def plan_that_fits(
    recipes: Iterable[dict[str, Any]],
    free: float | None = None,
    progress: Callable[[str], None] = lambda stage: None,
) -> tuple[dict[str, Any], list[StagePlan]]:
    """The first of some recipes that fits into the memory there is, with its plan.

    Args:
        recipes: the same one with smaller and smaller batches.
        free: bytes; see `free_memory`.
        progress: as in `plan_recipe`, for each recipe that is tried.

    Raises:
        ValueError: the last one is too large too, or its time too short for `_LEAST_STEPS` steps.
    """
    free = free_memory() if free is None else free
    machine = None
    for recipe in recipes:
        machine = machine or _machine_for(recipe["compressor"])
        plans = plan_recipe(recipe, machine=machine, progress=progress)
        largest = max(plans, key=lambda plan: plan.memory)
        if largest.memory <= _FILLED * free:
            break
    else:
        raise ValueError(
            f"stage {largest.name!r} takes {largest.memory / 2**30:.1f} GiB with the smallest "
            f"batch, and {free / 2**30:.1f} GiB are free; free some, or take a smaller decoder or "
            "fewer encoder_layers."
        )
    # The stage whose time is shortest for its steps says how long all of them must be.
    timed = [(p.seconds, p) for p in plans if p.steps is not None and p.seconds]
    if timed:
        seconds, shortest = min(timed, key=lambda each: each[0] / each[1].step_seconds)
        fits = seconds / shortest.step_seconds
        if fits < _LEAST_STEPS:
            minutes = _LEAST_STEPS / fits * sum(each for each, _ in timed) / 60
            raise ValueError(
                f"the budget is too small: a step of stage {shortest.name!r} takes about "
                f"{shortest.step_seconds:.1f} s on this machine, so that {int(fits)} fit into its "
                f"{seconds / 60:.1f} minutes, and it needs {_LEAST_STEPS}; give "
                f"--budget {-(-minutes // 5) * 5:.0f}m or more."
            )
    return recipe, plans


def free_memory() -> float:
    """Bytes that this process may hold, in all, of the GPU's memory or of this machine's."""
    if torch.cuda.is_available():
        return float(torch.cuda.mem_get_info()[0])
    free = psutil.virtual_memory().available + _resident()
    limit = Path("/sys/fs/cgroup/memory.max")  # a container's
    if limit.is_file() and limit.read_text().strip().isdigit():
        used = int(limit.with_name("memory.current").read_text())
        free = min(free, int(limit.read_text()) - used + _resident())
    return float(free)


def _resident() -> int:
    """Bytes that this process holds, which has what training imports."""
    return psutil.Process().memory_info().rss


class _Models:
    """Configurations and tokenizers of a recipe's models, got when they are first asked for."""

    def __init__(self, section: dict[str, Any]):
        self.section = section
        self.adapted: dict[str, PreTrainedConfig] = {}

    def decoder(self, stage: str) -> PreTrainedConfig:
        """Of the decoder that a stage trains for."""
        name, options = self._named(stage)
        if name is None:
            return checkpoint_config(self.section["checkpoint"]).decoder_config
        if name not in self.adapted:
            self.adapted[name] = decoder_config(name, options)
        return self.adapted[name]

    def encoder(self, stage: str) -> PreTrainedConfig:
        """Of the encoder."""
        if "checkpoint" in self.section:
            return checkpoint_config(self.section["checkpoint"]).encoder_config
        if self.section["encoder"] != SHARED_ENCODER:
            place = only_place(self.section.get("encoder_kwargs") or {})
            config = AutoConfig.from_pretrained(self.section["encoder"], **place)
            layers = (self.section.get("encoder_kwargs") or {}).get("num_hidden_layers")
            return config if layers is None else first_layers_config(config, layers)
        decoder = self.decoder(stage)
        layers = self.section["config"].get("encoder_layers")
        return first_layers_config(decoder, layers or decoder.num_hidden_layers)

    def processor(self, config: MemslotsConfig, stage: str) -> MemslotsProcessor:
        """Cuts and counts, as the compressor's will.

        Raises:
            OSError: a tokenizer is not here.
        """
        if "checkpoint" in self.section:
            return MemslotsProcessor.from_pretrained(checkpoint_folder(self.section["checkpoint"]))
        name, options = self._named(stage)
        tokenizer = decoder_tokenizer(str(name), options)
        place = only_place(self.section.get("encoder_kwargs") or {})
        encoder = self.section["encoder"]
        encoder_tokenizer = None
        if encoder != SHARED_ENCODER:
            encoder_tokenizer = AutoTokenizer.from_pretrained(encoder, **place)
        return processor_for(config, tokenizer, encoder_tokenizer or tokenizer)

    def _named(self, stage: str) -> tuple[str | None, dict[str, Any]]:
        adapt = adaptation(self.section, stage)
        source = self.section if adapt is None else adapt
        if adapt is None and "checkpoint" in self.section:
            return None, {}
        return source["decoder"], source.get("decoder_kwargs") or {}


def _machine_for(section: dict[str, Any]) -> Machine:
    name = section["stages"][0]["name"]
    return measured_machine(
        _Models(section).decoder(name).get_text_config(decoder=True).hidden_size
    )


def _config_of(checkpoint: str) -> dict[str, Any]:
    """What a checkpoint's configuration says beside its encoder's and decoder's."""
    stated = checkpoint_config(checkpoint).to_diff_dict()
    return {k: v for k, v in stated.items() if k not in ("encoder_config", "decoder_config")}


def _planned_config(
    section: dict[str, Any], settings: dict[str, Any], models: _Models
) -> MemslotsConfig:
    """The configuration that the stage's compressor would have."""
    encoder, decoder = models.encoder(settings["name"]), models.decoder(settings["name"])
    fields = {**section["config"], **settings.get("config", {}), "bundle_decoder": False}
    if fields.get("pooling") == "sentence":
        window = fields.setdefault("segment_length", encoder.max_position_embeddings)
        width = encoder.get_text_config().hidden_size
        fields["sentence_encoder"] = pooled_plan(width, window)
    lora = fields.get("encoder_lora") or {}
    shares = fields.get("encoder_layers") or section.get("encoder") == SHARED_ENCODER
    if shares or "target_modules" in lora:
        with torch.device("meta"):
            shallow = AutoModel.from_config(first_layers_config(decoder if shares else encoder, 1))
        if shares:
            fields.setdefault("encoder_layers", encoder.num_hidden_layers)
            lora = {"target_modules": linear_layers(shallow), **lora}
            fields["encoder_lora"] = lora
        check_lora_layers(shallow, lora)
    return MemslotsConfig(encoder_config=encoder, decoder_config=decoder, **fields)


def _plan_stage(
    section: dict[str, Any],
    settings: dict[str, Any],
    models: _Models,
    origin: Sources,
    world_size: int,
    machine: Machine,
) -> StagePlan:
    config = _planned_config(section, settings, models)
    part = trained_part(section, settings["name"])
    with torch.device("meta"):
        model = MemslotsModel(config)
        reader = AutoModelForCausalLM.from_config(config.decoder_config)
    choose_trained(model, part)
    model.freeze_sentence_encoder()
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    compressor = sum(p.numel() for p in model.parameters())
    if config.encoder_layers is not None:  # its base is the decoder's, counted there
        compressor = trained
    reads = sum(p.numel() for p in reader.parameters())

    arguments = training_arguments(section, settings, world_size)
    each = arguments.get("per_device_train_batch_size", 8)
    accumulated = arguments.get("gradient_accumulation_steps", 1)
    rows = each * world_size * accumulated
    known = [_rows_of(source) for source in settings["data"]]
    epochs = arguments.get("num_train_epochs", 3)
    steps = arguments.get("max_steps")
    if steps is None and None not in known:
        steps = int(-(-sum(known) // rows) * epochs)  # type: ignore[arg-type]

    batches = _sampled(config, settings, arguments, models, origin) or [
        _usual(config, settings, arguments)
    ]
    rates = arguments.get("training_rates") or config.compression_rates
    largest = max((shape_of(b, min(rates)) for b in batches), key=lambda shape: shape.positions)
    cost = step_cost(
        config,
        largest,
        machine,
        part,
        bool(arguments.get("gradient_checkpointing")),
        arguments.get("distillation_top_k", 64),
    )
    mean = fmean(shape_of(batch, rate).positions for batch in batches for rate in rates)
    # Weights; of what is trained AdamW's two moments, and gradients that wait for more batches.
    size = 2 if torch.cuda.is_available() else 4
    memory = cost.bytes + size * (compressor + reads + trained * (3 if accumulated > 1 else 2))
    memory += 0 if torch.cuda.is_available() else _resident()
    step_seconds = accumulated * _mean_seconds(cost, mean / largest.positions, epochs)
    seconds = None if steps is None else steps * step_seconds
    if "minutes" in settings:
        seconds = 60.0 * settings["minutes"]
        steps = int(seconds // step_seconds)
    length = max((s.get("tokens") or 0 for s in settings["data"]), default=0)
    return StagePlan(
        name=settings["name"],
        after=previous_stage(section["stages"], settings["name"]) or section.get("checkpoint"),
        trained=trained,
        frozen=compressor - trained + reads,
        rows_per_step=rows,
        steps=steps,
        tokens=steps * rows * length if steps is not None and "tokens" in settings else None,
        memory=memory,
        seconds=seconds,
        step_seconds=step_seconds,
    )


def _mean_seconds(cost: Cost, share: float, epochs: float) -> float:
    """Of a batch of usual length: a frozen sentence encoder reads each text in one epoch only."""
    return share * (cost.seconds + cost.once / max(1.0, epochs))


def _sampled(
    config: MemslotsConfig,
    settings: dict[str, Any],
    arguments: dict[str, Any],
    models: _Models,
    origin: Sources,
) -> list[CompressorBatch]:
    """Some batches of the stage's own rows, where those and the tokenizers are on this machine."""
    local = [
        source.get("file") or origin.data_dir or ADAPTERS.get(source["kind"]) is None
        for source in settings["data"]
    ]
    if not all(local) or config.pooling == "sentence":
        return []
    limited = [
        {**source, "rows": min(source.get("rows") or _SAMPLED_ROWS, _SAMPLED_ROWS)}
        for source in settings["data"]
    ]
    try:
        processor = models.processor(config, settings["name"])
        rows = stage_dataset(limited, origin, processor)
        sample = list(itertools.islice(rows, _SAMPLED_ROWS))
    except (OSError, DataNotFound):
        sample = []
    if not sample:
        return []
    collate = CompressorCollator(processor, CompressorConfig(output_dir="unused", **arguments))
    each = min(arguments.get("per_device_train_batch_size", 8), len(sample))
    starts = range(0, len(sample) - each + 1, each)
    return [collate(sample[start : start + each])["batch"] for start in starts]


def _usual(
    config: MemslotsConfig, settings: dict[str, Any], arguments: dict[str, Any]
) -> CompressorBatch:
    """A batch of rows as long as the stage's sources say, or as is usual."""
    batch = CompressorBatch([], [])
    most = max(settings["data"], key=lambda source: source.get("tokens") or 0)
    prompt = Prompt([0])
    for _ in range(arguments.get("per_device_train_batch_size", 8)):
        first = len(batch.tokens)
        adapter = ADAPTERS.get(most["kind"])
        has_texts = "tokens" in most or (
            adapter is not None and any("text" in layout.columns for layout in adapter.layouts)
        )
        if has_texts:
            length = most.get("tokens") or config.segment_length
            batch.tokens.append(length)
            segments = [first]
            if arguments.get("completion_weight", 0.5) < 1:
                batch.rows.append(Row(segments, prompt, [0] * (length + 1), task=RECONSTRUCTION))
            if arguments.get("completion_weight", 0.5) > 0 and most.get("completion", True):
                target = [0] * min(arguments.get("completion_length", 256), length)
                batch.rows.append(Row(segments, prompt, target, input_only=1, task=COMPLETION))
            context = length
        else:
            context, asked, answer = _QUESTION_TOKENS
            context = most.get("demonstrations") or context
            piece = config.segment_length
            if config.pooling == "sentence":
                piece = _SENTENCE_TOKENS
                context = piece * most.get("sentences", 5) * most.get("people", 1)
            lengths = [min(piece, context - start) for start in range(0, context, piece)]
            batch.tokens += lengths
            segments = list(range(first, first + len(lengths)))
            for _ in range(most.get("questions") or _QUESTIONS):
                asks = Prompt([0] * asked)
                batch.rows.append(Row(segments, asks, [0] * answer, task=ANSWER))
            if arguments.get("reconstruction_share", 0.1) > 0:
                for segment, tokens in zip(segments, lengths, strict=True):
                    batch.rows.append(Row([segment], prompt, [0] * tokens, task=RECONSTRUCTION))
        if arguments.get("distillation_weight"):
            reads = Prompt([0] * context)
            rows = [row for row in batch.rows if row.segments[0] >= first]
            batch.teacher_rows += [
                Row([], reads, row.target, task=row.task)
                for row in rows
                if row.task != RECONSTRUCTION
            ]
    return batch


def _rows_of(source: dict[str, Any]) -> int | None:
    if source.get("rows") is not None:
        return source["rows"]
    adapter = ADAPTERS.get(source["kind"])
    split = adapter.paper.get(source.get("split", "train")) if adapter is not None else None
    return split.count if split is not None else None
