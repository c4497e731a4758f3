"""The checkpoints that the package carries, laid out as `from_pretrained` reads them."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

ASSETS = Path(__file__).parent / "assets"
MODELING = Path(__file__).parent / "modeling"


def embedded(name: str = "tiny") -> str:
    """Folder of a checkpoint that comes with the package: weights, tokenizers and code.

    A wheel holds the code beside the weights. A checkout keeps it once, in `modeling/`; there this
    function copies it beside the weights, where git ignores it, whenever it has changed.

    Args:
        name: "tiny" is the demonstration of 22 MB: short English biographies, any CPU.

    Raises:
        ValueError: no such checkpoint.
        OSError: the code has changed and the folder cannot be written.

    Examples:
        >>> from transformers import AutoModel
        >>> from memslots import embedded
        >>> model = AutoModel.from_pretrained(embedded("tiny"), trust_remote_code=True)
        >>> model.config.compression_rates
        [4, 8, 16]
    """
    known = sorted(path.parent.name for path in ASSETS.glob("*/config.json"))
    if name not in known:
        raise ValueError(
            f"there is no embedded checkpoint {name!r}; there is "
            f"{', '.join(known) or 'none, until `make tiny` has trained it'}."
        )
    folder = ASSETS / name
    _lay_out_code(folder)
    return str(folder)


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
