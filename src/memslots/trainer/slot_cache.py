"""Slots of a frozen sentence encoder, computed once a unit while a compressor is trained.

A frozen encoder gives the same unit the same vector at every step, and on a CPU it costs far more
than the adapter and a small decoder: all-MiniLM-L6-v2 reads some 30 sentences a second on one core.
So while it is frozen, its vectors are kept by the unit's tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from memslots.modeling import MemslotsModel
from memslots.modeling.encoders_memslots import StatesRead
from memslots.writing import whole_file


def is_cacheable(model: MemslotsModel) -> bool:
    """Whether training leaves the slots of a unit as they are."""
    return model.sentence_head is not None and not model.config.train_encoder


@contextmanager
def cached_slots(model: MemslotsModel, most: int, file: Path | None = None) -> Iterator[None]:
    """While open, `model.encode` computes the slot of each unit once.

    Args:
        model: with a frozen sentence encoder; another is left as it is.
        most: slots that are kept; others are computed again each time.
        file: where slots are kept beyond this run; one that another encoder wrote is not read.
    """
    if most < 1 or not is_cacheable(model):
        yield
        return
    kept: dict[bytes, torch.Tensor] = {}
    if file is not None and file.is_file():
        kept = _read(file, _identity(model))
    loaded = len(kept)
    compute, patched = model.encode, vars(model).get("encode")

    def encode(
        segment_input_ids: torch.Tensor,
        segment_attention_mask: torch.Tensor,
        segment_rates: torch.Tensor,
        read: StatesRead | None = None,  # a sentence encoder does without
    ) -> torch.Tensor:
        lengths = segment_attention_mask.sum(dim=1).tolist()
        rows = segment_input_ids.cpu()
        keys = [_key(row[:length]) for row, length in zip(rows, lengths, strict=True)]
        missing = [i for i, key in enumerate(keys) if key not in kept]
        first = list({keys[i]: i for i in reversed(missing)}.values())
        fresh: dict[bytes, torch.Tensor] = {}
        if first:
            chosen = torch.tensor(first, device=segment_input_ids.device)
            with torch.no_grad():
                computed = compute(
                    segment_input_ids[chosen], segment_attention_mask[chosen], segment_rates[chosen]
                )
            fresh = {keys[i]: slot for i, slot in zip(first, computed, strict=True)}
            for key, slot in fresh.items():
                if len(kept) < most:
                    kept[key] = slot.cpu()
        slots = [kept[key] if key in kept else fresh[key].cpu() for key in keys]
        return torch.stack(slots).to(segment_input_ids.device)

    model.encode = encode  # type: ignore[method-assign]
    try:
        yield
    finally:
        del model.encode
        if patched is not None:
            model.encode = patched  # type: ignore[method-assign]
        if file is not None and len(kept) > loaded:
            _write(kept, file, _identity(model))


def _key(ids: torch.Tensor) -> bytes:
    return ids.numpy().tobytes()


def _identity(model: MemslotsModel) -> str:
    """Which encoder, of which units, in which dtype; units do not count."""
    return f"{model.fingerprint} {model.dtype}"


def _read(file: Path, identity: str) -> dict[bytes, torch.Tensor]:
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        if (opened.metadata() or {}).get("encoder") != identity:
            return {}
    tensors = load_file(file)
    ends = tensors["ends"].tolist()
    ids = tensors["ids"]
    starts = [0, *ends[:-1]]
    keys = [_key(ids[start:end].clone()) for start, end in zip(starts, ends, strict=True)]
    return dict(zip(keys, tensors["slots"], strict=True))


def _write(kept: dict[bytes, torch.Tensor], file: Path, identity: str) -> None:
    ids = [torch.frombuffer(bytearray(key), dtype=torch.long) for key in kept]
    tensors = {
        "ids": torch.cat(ids),
        "ends": torch.tensor([len(token_ids) for token_ids in ids]).cumsum(dim=0),
        "slots": torch.stack(list(kept.values())),
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(file) as draft:
        save_file(tensors, draft, metadata={"encoder": identity})
