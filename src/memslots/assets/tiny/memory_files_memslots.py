"""Files of memories: one safetensors file, a JSON header in its metadata, a checksum over all."""

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

FORMAT = "memslots.memory"


def write_memory_file(
    path: str | os.PathLike, header: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]
) -> None:
    """Write a file; one that is there is replaced whole.

    Args:
        path: the file.
        header: what JSON can hold, with `version`.
        tensors: `slots`, and what else there is; on the CPU and contiguous.

    Raises:
        ValueError: `path` is a folder, or its folder does not exist.
    """
    path = Path(path)
    if path.is_dir() or not path.parent.is_dir():
        raise ValueError(
            f"cannot save a memory to {str(path)!r}: give a file name in an existing folder."
        )
    text = json.dumps({"format": FORMAT, **header}, sort_keys=True)
    metadata = {"memslots": text, "sha256": _checksum(text, tensors)}
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        save_file(dict(tensors), partial, metadata=metadata)
        os.replace(partial, path)
    except BaseException:
        os.unlink(partial)
        raise


def read_memory_file(
    path: str | os.PathLike, newest: int
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Header and tensors of a file, checked.

    Args:
        path: the file.
        newest: the last version that can be read.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no memory, a newer format, or a file that was cut off or altered.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no memory file at {str(path)!r}.")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            text = metadata.get("memslots")
            if text is None:
                raise ValueError(f"{str(path)!r} is a safetensors file but no memslots memory.")
            header = json.loads(text)
            if header["format"] != FORMAT or not 1 <= header["version"] <= newest:
                raise ValueError(
                    f"{str(path)!r} has memory format {header['format']} version "
                    f"{header['version']}; this memslots reads {FORMAT} up to version "
                    f"{newest}. Update memslots."
                )
            names = ["slots", "exact"] if header["version"] > 2 else ["slots"]
            tensors = {name: file.get_tensor(name) for name in names}
    except (
        SafetensorError,
        json.JSONDecodeError,
        RecursionError,
        KeyError,
        TypeError,
        OSError,
    ) as error:
        raise ValueError(
            f"{str(path)!r} cannot be read as a memory, it may be cut off or be another kind "
            f"of file ({error}). Compress the text again."
        ) from error
    if metadata.get("sha256") != _checksum(text, tensors):
        raise ValueError(
            f"{str(path)!r} was altered after it was written: its checksum does not match. "
            "Compress the text again."
        )
    return header, tensors


def bytes_tensor(data: bytes) -> torch.Tensor:
    """Bytes as a tensor of a file."""
    return (
        torch.frombuffer(bytearray(data), dtype=torch.uint8)
        if data
        else torch.empty(0, dtype=torch.uint8)
    )


def tensor_bytes(tensor: torch.Tensor) -> bytes:
    """The bytes that `bytes_tensor` took.

    Raises:
        ValueError: a tensor of another kind.
    """
    if tensor.dtype != torch.uint8 or tensor.dim() != 1:
        raise ValueError(f"exact texts are bytes, this file has {tensor.dtype} in their place.")
    return tensor.numpy().tobytes()


def _checksum(header: str, tensors: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256(header.encode())
    for tensor in tensors.values():
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        # A byte view, since numpy has no bfloat16.
        digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
