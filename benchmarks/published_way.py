"""The way of the published PCC code, written afresh: what the speed of ours is measured against.

Segments go through the encoder one by one, through the causal-LM class with its head over the
vocabulary and with the hidden states of all layers; a training batch has one task, and the
decoder's logits are computed at all positions. What is not taken over are its defects (attention to
padding, shared markers), since the comparison is of the same result: both give the same slots and
the same losses, which `tests/test_benchmarks.py` holds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM, PreTrainedModel

from memslots import MemslotsModel
from memslots.modeling.encoders_memslots import convert
from memslots.modeling.layout_memslots import IGNORE, Row
from memslots.modeling.memory_memslots import slots_for

if TYPE_CHECKING:  # training needs trl, which compressing does without
    from memslots.trainer.collator import CompressorBatch


def with_head(model: MemslotsModel) -> PreTrainedModel:
    """The encoder as a causal LM, as transformers has it, with a head over its vocabulary.

    Its modules are its own, with the library's activations; the weights are the encoder's.
    """
    with torch.device(model.device):
        language_model = AutoModelForCausalLM.from_config(
            model.config.encoder_config, dtype=model.dtype
        )
    body = getattr(language_model, language_model.base_model_prefix)
    for name, weight in model.encoder.named_parameters():
        place, _, own = name.rpartition(".")
        setattr(body.get_submodule(place), own, weight)
    language_model.tie_weights()
    return language_model.eval()


def encode_segment(
    language_model: PreTrainedModel, model: MemslotsModel, ids: torch.Tensor, slots: int
) -> torch.Tensor:
    """Slots of segments of one length, `(segments, slots, d_encoder)`.

    Args:
        language_model: of `with_head`.
        model: the compressor, for its memory tokens.
        ids: `(segments, tokens)`.
        slots: of each segment.
    """
    if model.memory_tokens is None:
        raise ValueError("the published code has memory tokens; use pooling='memory_tokens'.")
    tokens = model.encoder.get_input_embeddings()(ids)
    memory = model.memory_tokens[:slots].to(tokens.dtype).expand(ids.shape[0], -1, -1)
    inputs = torch.cat([tokens, memory], dim=1)
    mask = torch.ones(inputs.shape[:2], dtype=torch.long, device=ids.device)
    output = language_model(inputs_embeds=inputs, attention_mask=mask, output_hidden_states=True)
    return output.hidden_states[-1][:, -slots:]


@torch.no_grad()
def compress(
    language_model: PreTrainedModel, model: MemslotsModel, text: str, rate: int
) -> torch.Tensor:
    """Slots of a text, `(slots, d_encoder)`, a segment at a time."""
    found = []
    for span in model.segment([text])[0]:
        ids = torch.tensor([span.ids], device=model.device)
        found.append(encode_segment(language_model, model, ids, slots_for(len(span.ids), rate))[0])
    return torch.cat(found)


def task_loss(
    language_model: PreTrainedModel,
    model: MemslotsModel,
    inputs: dict,
    task: int,
    rate: int,
) -> torch.Tensor:
    """Mean loss per target token of one task of a batch, by an encoder pass of its own.

    Args:
        language_model: of `with_head`.
        model: the compressor.
        inputs: a batch of `CompressorCollator`, on the model's device.
        task: of the rows that are read; the others are left out.
        rate: encoder tokens a slot.
    """
    batch: CompressorBatch = inputs["batch"]
    rows: list[Row] = [row for row in batch.rows if row.task == task]
    found = []
    for i, tokens in enumerate(batch.tokens):
        ids = inputs["segment_input_ids"][i : i + 1, :tokens]
        found.append(encode_segment(language_model, model, ids, slots_for(tokens, rate))[0])
    if not model.has_decoder:
        raise ValueError("training needs a decoder and a processor; see attach_decoder.")
    laid_out = model.processor.lay_out(rows, batch.slots(rate), "right")
    laid_out = {name: tensor.to(model.device) for name, tensor in laid_out.items()}
    converted = convert(model.converter, torch.cat(found))
    embeds = model.embed_rows(laid_out["input_ids"], laid_out["memory_ids"], converted)
    logits = model.decoder(
        inputs_embeds=embeds, attention_mask=laid_out["attention_mask"], use_cache=False
    ).logits
    return functional.cross_entropy(
        logits[:, :-1].reshape(-1, logits.shape[-1]).float(),
        laid_out["labels"][:, 1:].reshape(-1),
        ignore_index=IGNORE,
    )
