"""The checkpoints that the package carries, laid out as `from_pretrained` reads them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path

ASSETS = Path(__file__).parent / "assets"
MODELING = Path(__file__).parent / "modeling"


def embedded(name: str = "tiny") -> str:
    """Folder of a checkpoint that comes with the package: weights, tokenizers and code.

    A wheel holds the code beside the weights of `tiny`. A checkout keeps it once, in `modeling/`;
    there this function copies it beside the weights, where git ignores it, whenever it has changed.
    `smol` is laid out in the user's cache (`memslots.smollm2.cache_folder`), since its
    configuration names the folder where SmolLM2 is.

    Args:
        name: "smol", 23 MB that SmolLM2-135M-Instruct reads, any English text; or "tiny", the
            demonstration of 22 MB with a decoder of its own, which knows short English notes on
            people and nothing else.

    Raises:
        ValueError: no such checkpoint.
        FileNotFoundError: `smol` without SmolLM2; the message says how to get it.
        ImportError: SmolLM2's file is there and the package `gguf`, which reads it, is not.
        OSError: the code has changed and the folder cannot be written.

    Examples:
        >>> from transformers import AutoModel
        >>> from memslots import embedded
        >>> model = AutoModel.from_pretrained(embedded("tiny"), trust_remote_code=True)
        >>> model.config.compression_rates
        [4, 8, 16]
    """
    known = embedded_names()
    if name not in known:
        raise ValueError(
            f"there is no embedded checkpoint {name!r}; choose from "
            f"{', '.join(known) or 'none, until `make tiny` has trained it'}."
        )
    folder = ASSETS / name
    if name == "smol":
        from memslots.smollm2 import smollm2

        folder = _beside_decoder(folder, smollm2())
    _lay_out_code(folder)
    return str(folder)


def embedded_names() -> list[str]:
    """What `embedded` takes."""
    return sorted(path.parent.name for path in ASSETS.glob("*/config.json"))


def default_checkpoint() -> tuple[str, str | None]:
    """Name of the embedded checkpoint to use if none is named, and why it is not `smol`.

    Returns:
        "smol" and None, or "tiny" and a sentence.
    """
    if "smol" not in embedded_names():
        return "tiny", None
    try:
        embedded("smol")
    except (OSError, ImportError) as error:
        return "tiny", str(error)
    return "smol", None


def _beside_decoder(source: Path, decoder: str) -> Path:
    """A copy of a checkpoint in the cache whose configuration names `decoder`, made once."""
    from memslots.smollm2 import cache_folder, make_cache_folder

    config = json.loads((source / "config.json").read_text("utf-8"))
    config |= {"decoder_name_or_path": decoder, "encoder_name_or_path": decoder}
    written = json.dumps(config, indent=2, sort_keys=True)
    files = [path for path in sorted(source.iterdir()) if path.suffix in (".json", ".safetensors")]
    digest = hashlib.sha256(written.encode("utf-8"))
    for path in files:
        digest.update(path.read_bytes())
    folder = cache_folder() / f"{source.name}-{digest.hexdigest()[:16]}"
    if (folder / "config.json").is_file():
        return folder
    make_cache_folder()
    # Whole or not at all, as above: the configuration makes it a checkpoint.
    draft = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        for path in (path for path in source.iterdir() if path.suffix != ".py"):
            shutil.copyfile(path, draft / path.name)
        # The encoder is the decoder's first layers, so it reads the decoder's tokens.
        (draft / "encoder_tokenizer").mkdir()
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(source / name, draft / "encoder_tokenizer" / name)
        (draft / "config.json").write_text(written + "\n", encoding="utf-8")
        try:
            draft.rename(folder)
        except OSError:
            if not (folder / "config.json").is_file():
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def _lay_out_code(folder: Path) -> None:
    """Make the folder's .py files those of `modeling/`; writes nothing where they are."""
    code = {path.name: path.read_bytes() for path in MODELING.glob("*_memslots.py")}
    for path in folder.glob("*.py"):
        if path.name not in code:
            path.unlink(missing_ok=True)
    for file_name, source in code.items():
        target = folder / file_name
        if target.is_file() and target.read_bytes() == source:
            continue
        # Whole or not at all: processes side by side may read the folder.
        handle, draft = tempfile.mkstemp(dir=folder, prefix=f".{file_name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(source)
        os.chmod(draft, 0o644)
        os.replace(draft, target)
