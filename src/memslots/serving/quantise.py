"""How slots become bytes: bfloat16, or int8 with one scale a slot.

Slots come before the converter, whose first layer normalises each slot (RMSNorm). So one scale a
slot costs the decoder no range, and four bytes beside `d_encoder` of them.
"""

from __future__ import annotations

import torch

SLOT_DTYPES = ("bfloat16", "int8")
"""What a store can keep slots in; the first is the default."""

_LARGEST = 127
_SCALE_BYTES = 4


def check_slot_dtype(slot_dtype: str) -> str:
    """Returns `slot_dtype`.

    Raises:
        ValueError: One that a store cannot keep.
    """
    if slot_dtype not in SLOT_DTYPES:
        raise ValueError(
            f"slot_dtype={slot_dtype!r} is not known; choose one of {', '.join(SLOT_DTYPES)}."
        )
    return slot_dtype


def to_bytes(slots: torch.Tensor, slot_dtype: str) -> tuple[bytes, bytes | None]:
    """The slots, row after row and little-endian, and their scales where they need some.

    Args:
        slots: `(slots, d_encoder)`, floating and finite, on any device.
        slot_dtype: One of `SLOT_DTYPES`.

    Returns:
        `slots * d_encoder` numbers of `slot_dtype`; None, or `slots` float32 scales.

    Raises:
        ValueError: Slots of another kind of dtype or shape, or NaN or infinity among them.
    """
    check_slot_dtype(slot_dtype)
    if slots.dim() != 2 or not slots.is_floating_point():
        raise ValueError(
            f"slots must be floating, of shape (slots, d_encoder), got {slots.dtype} of shape "
            f"{tuple(slots.shape)}; store what `compress` returned."
        )
    slots = slots.detach().to("cpu")
    if not torch.isfinite(slots).all():
        raise ValueError(
            f"{int((~torch.isfinite(slots)).sum())} numbers of the slots are NaN or infinite; "
            "compress the text again, in float32 if float16 overflows."
        )
    kept = slots.to(torch.bfloat16 if slot_dtype == "bfloat16" else torch.float32)
    if not torch.isfinite(kept).all():
        raise ValueError(
            f"the slots hold numbers up to {float(slots.abs().max()):.3g}, too large for "
            f"{str(kept.dtype).removeprefix('torch.')}, in which they are stored; no compressor "
            "writes such numbers. Compress the text again."
        )
    if slot_dtype == "bfloat16":
        return _raw(kept), None
    scales = kept.abs().amax(dim=1) / _LARGEST if kept.shape[1] else kept.new_zeros(len(kept))
    # A slot of zeros, or of numbers too small for a normal scale, is kept as zeros.
    normal = scales >= torch.finfo(torch.float32).tiny
    steps = (kept / scales.where(normal, 1.0).unsqueeze(1)).round().clamp(-_LARGEST, _LARGEST)
    return _raw((steps * normal.unsqueeze(1)).to(torch.int8)), _raw(scales * normal)


def from_bytes(
    slots: bytes, scales: bytes | None, slot_dtype: str, n_slots: int, d_encoder: int
) -> torch.Tensor:
    """What `to_bytes` made, as a tensor: bfloat16, or float32 if it was int8.

    Args:
        slots: `n_slots * d_encoder` numbers of `slot_dtype`.
        scales: `n_slots` float32 numbers for int8, None for bfloat16.
        slot_dtype: One of `SLOT_DTYPES`.
        n_slots: Rows.
        d_encoder: Columns.

    Returns:
        `(n_slots, d_encoder)`.

    Raises:
        ValueError: Bytes that are too many or too few for the shape.
    """
    plain = check_slot_dtype(slot_dtype) == "bfloat16"
    expected = n_slots * (2 * d_encoder if plain else d_encoder + _SCALE_BYTES)
    size = len(slots) + len(scales or b"")
    if size != expected or (scales is None) != plain:
        raise ValueError(
            f"{n_slots} slots of {d_encoder} in {slot_dtype} take {expected} bytes, scales "
            f"included; there are {size}."
        )
    kept = _tensor(slots, torch.bfloat16 if plain else torch.int8, (n_slots, d_encoder))
    return kept if scales is None else kept * _tensor(scales, torch.float32, (n_slots, 1))


def _raw(tensor: torch.Tensor) -> bytes:
    # A byte view, since numpy has no bfloat16.
    return tensor.contiguous().view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def _tensor(data: bytes, dtype: torch.dtype, shape: tuple[int, int]) -> torch.Tensor:
    if not data:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(data), dtype=dtype).reshape(shape)
