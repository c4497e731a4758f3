"""The decoder of a gateway in front of an engine: its input embeddings, and nothing else.

    model = MemslotsModel.from_pretrained(name, load_decoder=False)
    attach_decoder_embeddings(model, name)
    embeds = prompt_embeds(model, memory, question="Who signed?")

The engine holds the decoder, so a second copy beside the compressor would be wasted: 16 GB for a
decoder of 8 billion parameters. A prompt needs the rows of its own tokens alone, and those are read
from the weights' file as they are asked for; the operating system keeps the pages that are read.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HFValidationError, RepositoryNotFoundError
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedConfig, PreTrainedModel

from memslots.modeling import MemslotsModel

from .prompt_embeds import check_engine_can_read

_WHOLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_BUNDLED = "decoder."
"""What the decoder's weights are called by in a checkpoint that holds it."""


class RowsOnly(nn.Module):
    """The embedding layer of a decoder, whose weight stays in its file.

    Args:
        layer: Of the decoder's own class, which may scale; without its weight.
        table: That weight, `(vocabulary, d_decoder)`, mapped from its file.
        dtype: Of the rows; by default the table's.
    """

    def __init__(self, layer: nn.Embedding, table: torch.Tensor, dtype: torch.dtype | None):
        super().__init__()
        # In a list, so that nothing takes it for a part of this module.
        self._layer, self._table, self._dtype = [layer], table, dtype or table.dtype

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """`(rows, length)` to `(rows, length, d_decoder)`, as the decoder's own layer gives it."""
        used, places = input_ids.unique(return_inverse=True)
        rows = self._table[used.cpu()].to(input_ids.device, self._dtype)
        layer = copy.copy(self._layer[0])  # of each call, since several threads may ask
        layer._parameters = {"weight": nn.Parameter(rows, requires_grad=False)}
        buffers = layer._buffers.items()
        layer._buffers = {
            name: None if buffer is None else buffer.to(rows.device) for name, buffer in buffers
        }
        return layer(places)


class EmbeddingsOnlyDecoder(PreTrainedModel):
    """Stands where the decoder stands, and refuses to run.

    Args:
        config: The decoder's.
        embeddings: Its input embeddings.
        generation_config: The decoder's.
    """

    # It attends to nothing, so whatever kernel the configuration names will do.
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = True

    def __init__(
        self, config: PreTrainedConfig, embeddings: RowsOnly, generation_config: GenerationConfig
    ):
        super().__init__(copy.deepcopy(config))  # a model writes into its configuration
        self._embeddings = embeddings
        self.generation_config = generation_config

    @property
    def device(self) -> torch.device:
        """Where the rows are read to."""
        return torch.device("cpu")

    def get_input_embeddings(self) -> nn.Module:
        """The layer that reads rows."""
        return self._embeddings

    def forward(self, *args: Any, **kwargs: Any):
        """Refuse.

        Raises:
            ValueError: Always.
        """
        raise ValueError(
            "fidelity, max_slots, exact and expand ask the decoder what the slots hold, and this "
            "gateway has only its input embeddings (vLLM holds the decoder). Start the gateway "
            "with --with-decoder, or compress elsewhere and send the memory's file."
        )

    def generate(self, *args: Any, **kwargs: Any):
        """Refuse; see `forward`."""
        self.forward()


def attach_decoder_embeddings(
    model: MemslotsModel,
    checkpoint: str | Path,
    revision: str | None = None,
    dtype: torch.dtype | None = None,
) -> MemslotsModel:
    """Give a compressor that was loaded with `load_decoder=False` what prompts are made of.

    Args:
        model: The compressor; it names its decoder, or its checkpoint holds it.
        checkpoint: Where it was loaded from.
        revision: Of `checkpoint`.
        dtype: Of the embeddings; by default as the decoder's configuration or file has them.

    Raises:
        ValueError: A decoder that prompt embeddings do not serve (see `check_engine_can_read`), no
            name of it, no safetensors weights, or no table of embeddings among them.
        OSError: No such decoder.
    """
    check_engine_can_read(model)
    config = model.config
    decoder_config: Any = config.decoder_config
    prefix = _BUNDLED if config.bundle_decoder else ""
    name = str(checkpoint) if config.bundle_decoder else config.decoder_name_or_path
    if not name:
        raise ValueError(
            "this compressor neither holds its decoder nor names it (decoder_name_or_path), so "
            "its embeddings cannot be read."
        )
    within = ""
    if not config.bundle_decoder:
        revision = config.decoder_revision
        within = (config.decoder_loading or {}).get("subfolder", "")
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(decoder_config)
    layer = skeleton.get_input_embeddings()
    if not isinstance(layer, nn.Embedding):
        raise ValueError(
            f"{type(skeleton).__name__} embeds its tokens by a {type(layer).__name__}, not by a "
            "table that can be read row by row; start the gateway with --with-decoder."
        )
    (layer_name,) = (key for key, module in skeleton.named_modules() if module is layer)
    shape = tuple(layer.weight.shape)
    tied = bool(decoder_config.get_text_config().tie_word_embeddings)
    names = _possible_names(f"{layer_name}.weight", skeleton.base_model_prefix, tied)
    table = _table(*_find_table(name, revision, prefix, names, within), shape)
    dtype = dtype or (None if prefix else decoder_config.dtype)
    rows = RowsOnly(_without_weight(skeleton, layer), table, dtype)
    generation = _generation_config(name, revision, model, within)
    # Not by attach_decoder: it would look there for the layers that a shared encoder has already.
    model.decoder = EmbeddingsOnlyDecoder(decoder_config, rows, generation).eval()
    return model


def _without_weight(skeleton: PreTrainedModel, layer: nn.Embedding) -> nn.Embedding:
    """The layer off the meta device, with a scale if it has one, and one row of weight."""
    layer.weight = nn.Parameter(torch.empty(1, layer.weight.shape[1]), requires_grad=False)
    layer.padding_idx = None  # matters for gradients alone, and is not a row of those that are read
    layer.to_empty(device="cpu")
    skeleton._init_weights(layer)  # how transformers fills buffers that no checkpoint holds
    layer._parameters = {}
    return layer


def _possible_names(full_name: str, base: str, tied: bool) -> list[str]:
    """What checkpoints may call the table, the likeliest first; a last one is an ending."""
    bare = full_name.removeprefix(f"{base}.")
    names = [full_name, bare, f"{base}.{bare}"]
    names += ["lm_head.weight"] if tied else []
    return [*names, "." + ".".join(full_name.split(".")[-2:])]


def _find_table(
    name: str, revision: str | None, prefix: str, names: Sequence[str], within: str = ""
) -> tuple[Path, str]:
    """The file that holds the table of embeddings, and what it is called there."""
    file = _file_of(name, _WHOLE, revision, within)
    if file is not None:
        with _opened(file) as weights:
            where = dict.fromkeys(weights.keys(), _WHOLE)
    else:
        index = _file_of(name, _INDEX, revision, within)
        if index is None:
            raise ValueError(
                f"the decoder {name!r} has no {_WHOLE} (nor {_INDEX}), from which its embeddings "
                "could be read; save it with save_pretrained, or start the gateway with "
                "--with-decoder."
            )
        where = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    keys = {key.removeprefix(prefix): key for key in where if key.startswith(prefix)}
    *exact, ending = names
    matches = [keys[candidate] for candidate in exact if candidate in keys]
    matches = matches or [key for short, key in keys.items() if f".{short}".endswith(ending)]
    if not matches:
        raise ValueError(
            f"the weights of {name!r} have no table of embeddings (looked for {list(names)}); "
            "start the gateway with --with-decoder."
        )
    part = _file_of(name, where[matches[0]], revision, within)
    if part is None:
        raise ValueError(
            f"the weights of {name!r} lack {where[matches[0]]}, which its index names."
        )
    return part, matches[0]


def _file_of(name: str, file: str, revision: str | None, within: str = "") -> Path | None:
    """A file of a folder or of a repository on the Hub; None if it has none."""
    file = "/".join(part for part in (within, file) if part)
    if Path(name).is_dir():
        path = Path(name) / file
        return path if path.is_file() else None
    try:
        return Path(hf_hub_download(name, file, revision=revision))
    except (HFValidationError, RepositoryNotFoundError) as error:
        raise OSError(f"there is no decoder {name!r}: {error}") from error
    except EntryNotFoundError:
        return None


def _opened(file: Path):
    try:
        return safe_open(file, framework="pt")
    except SafetensorError as error:
        raise ValueError(f"{str(file)!r} cannot be read as safetensors: {error}.") from error


def _table(file: Path, key: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The table, which safetensors maps from its file: what is not asked for is not read."""
    table = _opened(file).get_tensor(key)
    if tuple(table.shape) != shape:
        raise ValueError(
            f"the table {key!r} of {str(file)!r} is {tuple(table.shape)}, and the decoder of this "
            f"compressor has {shape}; name that decoder."
        )
    if not table.is_floating_point():
        raise ValueError(
            f"the table {key!r} of {str(file)!r} is quantized ({table.dtype}); name the decoder as "
            "it was before, or start the gateway with --with-decoder."
        )
    return table


def _generation_config(
    name: str, revision: str | None, model: MemslotsModel, within: str
) -> GenerationConfig:
    """How the decoder says that answers are drawn and ended."""
    folder = "decoder" if model.config.bundle_decoder else within
    try:
        return GenerationConfig.from_pretrained(name, revision=revision or "main", subfolder=folder)
    except OSError:  # saved without one
        return GenerationConfig.from_model_config(model.config.decoder_config)
