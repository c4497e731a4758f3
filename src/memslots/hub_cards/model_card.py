"""The one model card of the project, built from a checkpoint's files."""

from __future__ import annotations

import json
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard, ModelCardData

from memslots import __version__
from memslots.evaluation.demo import demo_paragraphs
from memslots.hub_cards import card_results
from memslots.hub_cards.checkpoint_facts import CARD, CheckpointFacts, gather_facts
from memslots.modeling import MemslotsConfig, MemslotsModel
from memslots.modeling.memory_files_memslots import FORMAT, FORMAT_VERSION

PLACEHOLDER = "path-or-repo-of-this-checkpoint"
"""Stands in the snippets where nobody has said what the repository is called."""

TAGS = ["memslots", "context-compression", "custom_code"]

_EXAMPLE_CONTEXT = (
    "The Treaty of Tordesillas was signed on 7 June 1494 in the Castilian town of Tordesillas. "
    "It divided the lands newly found outside Europe between Portugal and the Crown of Castile. "
    "The line of division ran 370 leagues west of the Cape Verde islands."
)
_EXAMPLE_QUESTIONS = ["Where was the treaty signed?", "When was the treaty signed?"]


def build_card(
    config: MemslotsConfig,
    folder: str | Path,
    repo_id: str | None = None,
    **stated: Any,
) -> ModelCard:
    """The card of a checkpoint.

    Args:
        config: the checkpoint's configuration.
        folder: where `results.json`, `recipe.yaml` and an earlier card may be.
        repo_id: where it is or will be on the Hub.
        stated: metadata that no file tells (`license`, `language`, ...); see
            `checkpoint_facts.STATED`. An earlier card's is kept without it.

    Raises:
        ValueError: files that cannot be read.
        ImportError: jinja2 is missing.
    """
    facts = gather_facts(config, folder)
    facts_stated = {
        **facts.stated,
        **{key: value for key, value in stated.items() if value is not None},
    }
    context, questions = _example(facts)
    template = files("memslots.hub_cards").joinpath("model_card.md.jinja").read_text("utf-8")
    return ModelCard.from_template(
        _metadata(facts, facts_stated, repo_id, context, questions),
        template_str=template,
        **_body(facts, repo_id or PLACEHOLDER, context, questions[0]),
    )


def write_card(
    model: MemslotsModel, folder: str | Path, repo_id: str | None = None, **stated: Any
) -> None:
    """Write a model's card into a folder; the trainer is handed this as its `card_writer`.

    Args:
        model: the compressor.
        folder: its checkpoint's, made if missing.
        repo_id: see `build_card`, as are the others.
        stated: metadata that no file tells.
    """
    save_card(build_card(model.config, folder, repo_id, **stated), folder)


def save_card(card: ModelCard, folder: str | Path) -> Path:
    """Write a card as `README.md` into a folder, which is made if missing; returns the file."""
    path = Path(folder) / CARD
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{card}\n", encoding="utf-8")
    return path


# -- metadata --------------------------------------------------------------------------------------


def _metadata(
    facts: CheckpointFacts,
    stated: dict[str, Any],
    repo_id: str | None,
    context: str,
    questions: list[str],
) -> ModelCardData:
    results = facts.results
    entries = card_results.eval_results(results) if results else []
    known: dict[str, Any] = {
        "license": stated.get("license"),
        "license_name": stated.get("license_name"),
        "license_link": stated.get("license_link"),
        "language": stated.get("language") or facts.language,
        "datasets": facts.datasets or stated.get("datasets"),
    }
    base = facts.base_models or stated.get("base_model")
    if base:
        known["base_model"] = base[0] if isinstance(base, list) and len(base) == 1 else base
        # It stands before an unchanged decoder and is no use without it, as an adapter is.
        known["base_model_relation"] = "adapter"
    return ModelCardData(
        library_name="transformers",
        pipeline_tag="question-answering",
        tags=[*TAGS, *(stated.get("tags") or [])],
        metrics=list(dict.fromkeys(entry.metric_type for entry in entries)) or None,
        model_name=(repo_id or "memslots").rpartition("/")[2] if entries else None,
        eval_results=entries or None,
        widget=[{"text": question, "context": context} for question in questions],
        **known,
    )


def _example(facts: CheckpointFacts) -> tuple[str, list[str]]:
    """A text like those it was trained on, where they are known, and questions about it."""
    if not facts.is_of_personas:
        return _EXAMPLE_CONTEXT, _EXAMPLE_QUESTIONS
    questions = ["Where does the person work?", "In which city does the person live?"]
    return demo_paragraphs()[0], questions


# -- body ------------------------------------------------------------------------------------------


def _body(facts: CheckpointFacts, repo: str, context: str, question: str) -> dict[str, Any]:
    config, results = facts.config, facts.results
    rows = [_rate_row(facts, rate) for rate in config.compression_rates]
    evaluated = card_results.measured_command(results, repo) if results else None
    encoder: Any = config.encoder_config
    return {
        "title": _title(facts),
        "curve": _curve(facts),
        "repo": repo,
        "stands_for": _stands_for(config),
        "finest": config.compression_rates[0],
        "encoder": _named(facts.encoder, encoder.model_type, "encoder", _adapted(config)),
        "decoder": _named(facts.decoder, config.get_text_config().model_type, "model", ""),
        "decoder_id": facts.decoder,
        "bundled": config.bundle_decoder,
        "adapter": config.encoder_lora is not None,
        "context_lines": _literal_lines(context),
        "short_context": json.dumps(context.partition(". ")[0] + ".", ensure_ascii=False),
        "question": json.dumps(question, ensure_ascii=False),
        "segment_length": config.segment_length,
        "one_rate": len(config.compression_rates) == 1,
        "nested": config.pooling == "mean"
        or (config.encoder_is_causal and config.pooling == "memory_tokens"),
        "decoder_lora": config.decoder_lora,
        "literals": _literal_kinds(config),
        "rate_rows": rows,
        **{
            f"any_{column}": any(row[column] for row in rows)
            for column in ("prompt_tokens", "seconds", "fidelity")
        },
        "trained": f"{facts.parameters['trained']:,}",
        "trained_parts": _trained_parts(config),
        "frozen": f"{facts.parameters['frozen']:,}",
        "frozen_parts": _frozen_parts(config),
        "stages": facts.stages,
        "training": facts.training,
        "results": card_results.results_markdown(results) if results else None,
        "personas_measured": results is not None and card_results.is_tiny(results),
        "limits": card_results.measured_limits(results) if results else [],
        "memory_format": FORMAT,
        "memory_version": FORMAT_VERSION,
        "dtype": str(_dtype(config)).removeprefix("torch."),
        "width": config.slot_size,
        "fingerprint": config.fingerprint,
        "has_recipe": facts.has_recipe,
        "trains_decoder": facts.trains_decoder,
        "has_handler": facts.has_handler,
        "eval_command": evaluated,
        "version": __version__,
        "is_pcc": config.pooling == "memory_tokens",
    }


def _title(facts: CheckpointFacts) -> str:
    """What the checkpoint is: slots, and whose."""
    if facts.decoder:
        return f"Memory slots for {facts.decoder.rpartition('/')[2]}"
    decoder = facts.config.get_text_config().model_type
    of = "that reads short biographies" if facts.is_of_personas else "that comes with it"
    return (
        f"Memory slots for a small {decoder} decoder {of}"
        if (facts.config.bundle_decoder)
        else f"Memory slots for a {decoder} decoder"
    )


def _curve(facts: CheckpointFacts) -> dict[str, str] | None:
    """How long it was trained, and the share of unseen tokens that it repeats by rate, in words."""
    if facts.curve is None:
        return None
    shares = {
        name.partition("/")[0].removeprefix("r"): right
        for name, (_, right) in facts.curve["held out"].items()
        if re.fullmatch(r"r\d+/\d+", name)
    }
    return {
        "steps": f"{facts.curve['step']:,}",
        "tokens": f"{facts.curve['seen']:,}",
        "repeats": _listed([f"{right:.0%} at rate {rate}" for rate, right in shares.items()]),
    }


def _rate_row(facts: CheckpointFacts, rate: int) -> dict[str, Any]:
    config, results = facts.config, facts.results
    read = card_results.prompt_tokens(results, rate) if results else None
    seconds = card_results.seconds_a_question(results, rate) if results else None
    return {
        "rate": rate,
        "slots": -(-config.segment_length // rate),
        "bytes": f"{-(-1000 // rate) * config.slot_size * _dtype(config).itemsize:,}",
        "prompt_tokens": "" if read is None else f"{read:g}",
        "seconds": "" if seconds is None else f"{seconds:.4f}",
        "fidelity": card_results.fidelity(results, rate) if results else "",
    }


def _dtype(config: MemslotsConfig) -> torch.dtype:
    """Of the slots that a memory keeps: the checkpoint's."""
    dtype = config.dtype
    if isinstance(dtype, str):
        dtype = getattr(torch, dtype.removeprefix("torch."))
    return dtype or torch.float32


def _named(name: str | None, kind: str, role: str, how: str) -> str:
    """A part by its repository, else by its architecture alone."""
    article = "an" if role[0] in "aeiou" else "a"
    return f"`{name}`{how}" if name else f"{article} {role} of type {kind}{how}"


def _adapted(config: MemslotsConfig) -> str:
    layers = f", its first {config.encoder_layers} layers," if config.encoder_layers else ""
    return layers + (" with a LoRA adapter" if config.encoder_lora is not None else "")


def _trained_parts(config: MemslotsConfig) -> str:
    encoder = "the encoder's LoRA adapter" if config.encoder_lora is not None else "the encoder"
    parts = [] if _freezes_encoder(config) else [encoder]
    parts += ["memory tokens"] if config.pooling == "memory_tokens" else []
    parts += ["the converter", "the markers"]
    parts += ["a LoRA adapter of the decoder"] if config.decoder_lora is not None else []
    return _listed(parts)


def _frozen_parts(config: MemslotsConfig) -> str:
    if config.encoder_layers is not None:
        return "the decoder, whose first layers are the encoder's base"
    parts = ["the decoder"]
    parts += ["the encoder's base"] if config.encoder_lora is not None else []
    parts += ["the sentence encoder"] if _freezes_encoder(config) else []
    return _listed(parts)


def _freezes_encoder(config: MemslotsConfig) -> bool:
    return config.pooling == "sentence" and not config.train_encoder


def _stands_for(config: MemslotsConfig) -> str:
    """What a slot stands for, in words."""
    if config.pooling == "sentence":
        whole = {"text": "for the whole of it"}
        return whole.get(config.pool_unit, f"for every {config.pool_unit} of it")
    return f"for every {_listed(list(config.compression_rates))} of its tokens"


def _literal_kinds(config: MemslotsConfig) -> str | None:
    literals = config.literals
    return (
        _listed([literals] if isinstance(literals, str) else list(literals)) if literals else None
    )


def _listed(values: list[Any]) -> str:
    words = [str(value) for value in values]
    joiner = " and " if not words[0].isdigit() else " or "
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + joiner + words[-1]


def _literal_lines(text: str) -> str:
    """`text` as lines of Python that make it again, a sentence each."""
    sentences = text.split(". ")
    lines = [sentence + ". " for sentence in sentences[:-1]] + sentences[-1:]
    return "\n".join(f"    {json.dumps(line, ensure_ascii=False)}" for line in lines)
