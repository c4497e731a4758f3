"""Saving and loading compressors.

A checkpoint holds encoder (or its LoRA adapter), memory tokens, converter, markers, tokenizers and
this code. The decoder is named, not held, unless `config.bundle_decoder` is set.
"""

import copy
import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from .configuration_memslots import MemslotsConfig
from .decoders_memslots import has_other_weights
from .encoders_memslots import (
    LORA_MARK,
    SentenceHead,
    add_lora,
    first_layers,
    fold_adapter,
    is_quantized,
    load_encoder,
)
from .memory_memslots import Memory
from .processing_memslots import MemslotsProcessor

if TYPE_CHECKING:  # named so that transformers copies the file with the others; run when asked for
    from .pipeline_memslots import MemoryQuestionAnsweringPipeline as _Pipeline  # noqa: F401

HUB_KWARGS = ("token", "cache_dir", "local_files_only", "force_download", "proxies")
_SHARED, _DECODER_FOLDER = ("device_map", "attn_implementation"), "decoder"
PROCESSOR_FIELDS = (
    "segment_length compression_rates prompt_format plain_prompt answer_end markers literals"
).split()
"""Fields of the configuration that the processor has too."""


class NotLoaded(ValueError, AttributeError):
    """A part of the model is asked for that it was made without."""


class SavedModel(PreTrainedModel):
    """What a compressor is on disk and by name: saving, loading, its parts and its fingerprint."""

    config: MemslotsConfig
    encoder: PreTrainedModel
    decoder: PreTrainedModel
    processor: MemslotsProcessor
    sentence_head: SentenceHead | None
    # With the versions of the weights that it is of, which count their changes.
    _fingerprint: tuple[tuple[Any, ...], str] | None
    _stated: str | None  # the checkpoint's, until weights may change
    _names: dict[str, str]  # what it stated, by the digest of the weights then

    @property
    def needs_decoder(self) -> str:
        """What to do if it is not."""
        named = self.config.decoder_name_or_path or "the checkpoint does not name it"
        place = "it is inside the checkpoint" if self.config.bundle_decoder else named
        return (
            f"this compressor was loaded without its decoder ({place}); call "
            "model.attach_decoder(llm) first, or load it with load_decoder=True."
        )

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path,
        *model_args,
        load_decoder: bool = True,
        decoder_kwargs: dict[str, Any] | None = None,
        **kwargs,
    ):
        """Load a compressor and its decoder.

        Args:
            pretrained_model_name_or_path: repository or folder.
            *model_args: as for any `PreTrainedModel`.
            load_decoder: False gives a compressor that needs no LLM (`attach_decoder` takes one).
            decoder_kwargs: for the decoder's `from_pretrained` alone, where it is not bundled.
            kwargs: as for any `PreTrainedModel`; `dtype`, `device_map` and `attn_implementation` go
                to the decoder too, and `quantization_config` to it alone.

        Raises:
            ValueError: weights are missing, or a bundled decoder is to be quantized.
            OSError: no such checkpoint, or no such decoder.

        Examples:
            >>> MemslotsModel.from_pretrained(checkpoint).fingerprint == model.fingerprint
            True
        """
        wants_info = kwargs.pop("output_loading_info", False)
        decoder_kwargs = dict(decoder_kwargs or {})
        if (quantization := kwargs.pop("quantization_config", None)) is not None:
            decoder_kwargs.setdefault("quantization_config", quantization)
        dtype = pick_dtype(kwargs.pop("dtype", kwargs.pop("torch_dtype", None)))
        model, info = super().from_pretrained(
            pretrained_model_name_or_path,
            *model_args,
            load_decoder=load_decoder,
            output_loading_info=True,
            dtype=dtype,
            **kwargs,
        )
        missing = sorted(key for key in info["missing_keys"] if model._holds(key))
        if missing:
            raise ValueError(
                f"checkpoint {str(pretrained_model_name_or_path)!r} lacks {len(missing)} weights "
                f"of the compressor, for example {missing[:3]}; save it again with save_pretrained."
            )
        hub: dict[str, Any] = {key: kwargs[key] for key in HUB_KWARGS if key in kwargs}
        shared = {"dtype": dtype, **hub, **{key: kwargs[key] for key in _SHARED if key in kwargs}}
        origin = hub | {key: kwargs[key] for key in ("revision", "subfolder") if key in kwargs}
        config = model.config
        if config.bundle_decoder and decoder_kwargs.get("quantization_config") is not None:
            raise ValueError(
                "quantization_config is for a decoder that is loaded by its name, but "
                f"{str(pretrained_model_name_or_path)!r} bundles its decoder; load with "
                "load_decoder=False and attach a quantized one with attach_decoder."
            )
        if config.encoder_lora is not None and config.encoder_layers is None:
            model._load_encoder_base(shared)
        model.processor = MemslotsProcessor.from_pretrained(pretrained_model_name_or_path, **origin)
        resegmented = model.processor.segment_length != config.segment_length
        for name in PROCESSOR_FIELDS:  # which arguments of loading may have changed
            setattr(model.processor, name, getattr(config, name))
        if not config.bundle_encoder and dtype == "auto":
            model._load_named_encoder(hub)
        elif not config.bundle_encoder:  # known by its weights as they were, and cast afterwards
            kwargs.update(load_decoder=False, dtype="auto")
            model = cls.from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)
            model.to(dtype if isinstance(dtype, torch.dtype) else getattr(torch, dtype))
            config = model.config
        model.freeze_sentence_encoder()  # loading makes every weight trainable
        if config.fingerprint is not None and not (resegmented or "pool_unit" in kwargs):
            model._trust_fingerprint(config.fingerprint)
        if model.has_decoder:
            model.attach_decoder(model.decoder)
            model.decoder.generation_config = _bundled_generation_config(
                pretrained_model_name_or_path, config, origin
            )
        elif (load_decoder or config.encoder_layers) and config.decoder_name_or_path:
            place = {"revision": config.decoder_revision, **(config.decoder_loading or {})}
            name = config.decoder_name_or_path
            try:
                options = {**place, **shared, **decoder_kwargs}
                decoder = AutoModelForCausalLM.from_pretrained(name, **options)
            except OSError as error:
                raise OSError(
                    f"the decoder {name!r} of this compressor cannot be loaded ({error}); put it "
                    "back, or write where it is into decoder_name_or_path of its config.json."
                ) from error
            model.attach_decoder(decoder)
        if not load_decoder and model.has_decoder:  # shared first layers stay in the encoder
            del model.decoder
        model.eval()
        return (model, info) if wants_info else model

    def attach_decoder(self, decoder: PreTrainedModel) -> "SavedModel":
        """Take a decoder that is already in memory; it is frozen, and its weights are shared.

        Warns where its weights are others than the compressor was trained for.

        Raises:
            TypeError: not a model of transformers.
            ValueError: a decoder of another width or vocabulary than the compressor was made for.

        Examples:
            >>> bare = MemslotsModel.from_pretrained(checkpoint, load_decoder=False)
            >>> bare.attach_decoder(model.decoder).has_decoder
            True
        """
        compressor = hasattr(decoder, "has_decoder")
        if not isinstance(decoder, PreTrainedModel) or compressor:
            kind, adapter = type(decoder).__name__, hasattr(decoder, "merge_and_unload")
            hint = "; give it llm.merge_and_unload()." if adapter else "."
            hint = "; give it compressor.decoder." if compressor else hint
            raise TypeError(f"attach_decoder takes a transformers causal LM, got {kind}{hint}")
        for field in ("hidden_size", "vocab_size"):
            expected = getattr(self.config.get_text_config(decoder=True), field)
            actual = getattr(decoder.config.get_text_config(), field)
            if expected != actual:
                raise ValueError(
                    f"this compressor writes for a decoder with {field} {expected} "
                    f"({self.config.decoder_name_or_path or 'bundled'}), the given one has "
                    f"{actual}; attach that decoder, or train the compressor for yours."
                )
        if self.config.encoder_layers is not None:
            fold_adapter(decoder)
        if (sample := self.config.decoder_fingerprint) and has_other_weights(decoder, sample):
            warnings.warn(
                f"decoder {decoder.name_or_path!r} has other weights than the one that this "
                f"compressor was trained for ({self.config.decoder_name_or_path or 'bundled'}), "
                "and may misread memories; attach that one, or train it further with this one.",
                stacklevel=2,
            )
        for layer in decoder.modules():  # bitsandbytes packs 4 bit again on CPUs, in whole blocks
            if getattr(layer, "support_avx512bf16_for_cpu", False):
                layer.support_avx512bf16_for_cpu = not (layer.in_features | layer.out_features) % 64
        decoder.requires_grad_(False)
        self.decoder = decoder.eval()
        if self.config.encoder_layers is not None:
            self._share_layers(decoder)
        return self

    def _share_layers(self, decoder: PreTrainedModel) -> None:
        """Put the decoder's own first layers under the encoder's adapter, without a copy."""
        trusted = self._fingerprint == (self._weight_versions(), self._stated)
        base = first_layers(decoder, self.config.encoder_layers)
        self._put_under_adapter(base, type(decoder).__name__)
        for name, parameter in base.named_parameters():
            if LORA_MARK in name:  # trained in the compressor's precision, not the decoder's
                parameter.data = parameter.data.to(self.markers.dtype)
        if is_quantized(decoder):  # other slots, so another fingerprint than the stated
            self._fingerprint = None
        elif trusted and self._stated is not None:  # the base is not part of what it stands for
            self._trust_fingerprint(self._stated)
        mark_initialized(base)
        base.train(self.training)

    def _put_under_adapter(self, base: PreTrainedModel, base_name: str) -> None:
        """Make the encoder of another base and the adapter that it has."""
        adapter = {k: v for k, v in self.encoder.state_dict().items() if LORA_MARK in k}
        add_lora(base, self.config.encoder_lora or {})
        outcome = base.load_state_dict(adapter, strict=False)
        if outcome.unexpected_keys:
            raise ValueError(
                f"the adapter does not fit {base_name}: it has weights for "
                f"{outcome.unexpected_keys[:3]}, which that model lacks."
            )
        base.config.use_cache = False
        self.encoder = base

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        is_main_process: bool = True,
        state_dict: dict[str, torch.Tensor] | None = None,
        push_to_hub: bool = False,
        **kwargs,
    ) -> None:
        """Write weights, configuration, processor and the code that loads them.

        Arguments are those of `PreTrainedModel.save_pretrained`.

        Raises:
            ValueError: the decoder is to be bundled and is not there; quantized weights.

        Examples:
            >>> model.save_pretrained(folder / "compressor")
        """
        folder = Path(save_directory)
        if self.config.bundle_decoder and not self.has_decoder and state_dict is None:
            raise ValueError(
                "config.bundle_decoder is set, but this model was loaded without its decoder, so "
                "the checkpoint could not be loaded again; attach_decoder(llm) first, or set "
                "config.bundle_decoder = False and name the decoder in config.decoder_name_or_path."
            )
        self._refuse_quantized()
        weights = self.state_dict() if state_dict is None else state_dict
        if is_main_process:
            folder.mkdir(parents=True, exist_ok=True)
            if "processor" in self.__dict__:
                self.config.fingerprint = self.fingerprint_of(weights)
                self.processor.save_pretrained(folder)
            if self.config.bundle_decoder and self.has_decoder:
                self.decoder.generation_config.save_pretrained(folder / _DECODER_FOLDER)
            for source in sorted(Path(__file__).parent.glob("*_memslots.py")):
                if source.parent.resolve() != folder.resolve():
                    shutil.copyfile(source, folder / source.name)
        weights = {key: value for key, value in weights.items() if self._holds(key)}
        names = ("repo_id", "commit_message", "create_pr", "private", "revision")
        repository = {name: kwargs.pop(name) for name in names if name in kwargs}
        super().save_pretrained(folder, is_main_process, state_dict=weights, **kwargs)
        if push_to_hub and is_main_process:
            # By way of a folder of its own: everything written above has to go up, not only what
            # PreTrainedModel.save_pretrained writes.
            token = {"token": kwargs["token"]} if "token" in kwargs else {}
            self.push_to_hub(repository.pop("repo_id", folder.name), **repository, **token)

    def _refuse_quantized(self) -> None:
        """Packed weights do not load into the plain layers that a checkpoint is read into."""
        if self.config.bundle_decoder and self.has_decoder and is_quantized(self.decoder):
            raise ValueError(
                "a quantized decoder cannot be bundled; set model.config.bundle_decoder = False "
                "and name it in config.decoder_name_or_path, or attach an unquantized one."
            )
        if self.config.encoder_layers is None and is_quantized(self.encoder):
            raise ValueError(
                "a quantized encoder cannot be saved; make the compressor with one that is not."
            )

    def push_to_hub(self, repo_id: str, **kwargs) -> str:
        """Upload everything that loads this model again, in one commit.

        Where the memslots package is installed, its entry point does it, which adds the card and
        the endpoint's handler. Arguments are those of `PreTrainedModel.push_to_hub`.

        Raises:
            ValueError: a model that others could not load.

        Examples:
            >>> model.push_to_hub("me/my-compressor")  # doctest: +SKIP
        """
        for publisher in entry_points(group="memslots.push_to_hub"):
            return publisher.load()(self, repo_id, **kwargs)
        return super().push_to_hub(repo_id, **kwargs)

    def freeze_sentence_encoder(self) -> None:
        """Leave a sentence encoder out of training, unless the configuration has it trained.

        Examples:
            >>> model.freeze_sentence_encoder()  # changes nothing: this encoder has memory tokens
        """
        if self.sentence_head is not None:
            self.encoder.requires_grad_(self.config.train_encoder)
            self.sentence_head.requires_grad_(self.config.train_encoder)

    def load_memory(self, path) -> Memory:
        """Read a memory from disk onto this model's device; it must be this compressor's.

        Raises:
            ValueError: another compressor's memory, or what `Memory.load` raises.

        Examples:
            >>> model.compress("Ann is here.").save(folder / "ann.safetensors")
            >>> len(model.load_memory(folder / "ann.safetensors"))
            1
        """
        memory = Memory.load(path, device=self.encoder.device)
        self.check_memory(memory)
        return memory

    def check_memory(self, memory: Memory) -> None:
        """Refuse what is no Memory (`TypeError`), is empty or another compressor's (`ValueError`).

        Examples:
            >>> model.check_memory(model.compress("Ann is here."))
        """
        # One made by a copy of this code (remote code) is another class: known by what it holds.
        if not all(hasattr(memory, name) for name in ("slots", "documents", "fingerprint")):
            kind = type(memory).__name__
            raise TypeError(f"memory must be a Memory from compress or load_memory, got {kind}.")
        if not memory.documents:
            raise ValueError("memory has no documents; give at least one text.")
        if memory.fingerprint != self.fingerprint:
            raise ValueError(
                f"this memory was written by compressor {memory.fingerprint[:12]}, and this model "
                f"is {self.fingerprint[:12]}; its slots mean nothing here. Load the checkpoint "
                "that wrote it, or compress the text again."
            )

    def _trust_fingerprint(self, value: str) -> None:
        self._fingerprint, self._stated = (self._weight_versions(), value), value

    def __getstate__(self):  # of a copy or a pickle, whose weights count their changes anew
        self._name_weights()
        return self.__dict__

    def _name_weights(self) -> None:
        """Remember which weights the checkpoint's fingerprint stands for: loading may cast them."""
        stated, self._stated = self._stated, None
        whole = all(type(weight) is torch.nn.Parameter for weight in self.parameters())
        if stated is not None and whole and self._fingerprint == (self._weight_versions(), stated):
            self._names = {self.fingerprint_of(self.state_dict()): stated}

    def fingerprint_of(self, weights: Mapping[str, torch.Tensor]) -> str:
        """The fingerprint that this model has with these weights (a `state_dict`).

        Examples:
            >>> model.fingerprint_of(model.state_dict()) == model.fingerprint
            True
        """
        config = self.config
        segmentation = f"{config.segment_length} {config.memory_positions}"
        if config.pooling != "memory_tokens":
            segmentation += f" {config.pooling}"
        if config.pooling == "sentence":
            kind = json.dumps(config.sentence_encoder, sort_keys=True)
            segmentation += f" {config.pool_unit} {config.pool_language} {kind}"
        if config.encoder_layers is not None and is_quantized(self.encoder):
            segmentation += " quantized"  # the base is not part of the digest
        tokenizer = self.processor.encoder_text.backend.to_str()
        digest = hashlib.sha256(f"memslots 1 {segmentation}\n{tokenizer}".encode())
        parts: dict[str, torch.Tensor] = {}
        for name, tensor in weights.items():
            part, _, rest = name.partition(".")
            # A shared encoder's base is the decoder's own, held in whatever precision.
            if part == "encoder" and (LORA_MARK in name or config.encoder_layers is None):
                parts[rest] = tensor
            elif part in ("sentence_head", "group_pool"):
                parts[f"{'head' if part == 'sentence_head' else 'pool'} {rest}"] = tensor
            elif name == "memory_tokens":
                parts[name] = tensor
        for name in sorted(parts):
            tensor = parts[name].detach().to("cpu").contiguous()
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def _holds(self, key: str) -> bool:
        """Whether a checkpoint of this model holds the weight `key`."""
        if key.startswith("decoder."):
            return self.config.bundle_decoder
        if key.startswith("encoder.") and not self.config.bundle_encoder:
            return False
        if key.startswith("encoder.") and self.config.encoder_lora is not None:
            return LORA_MARK in key
        return True

    def _load_named_encoder(self, hub: dict[str, Any]) -> None:
        """Read the frozen sentence encoder from where the configuration says it is."""
        config = self.config
        if config.encoder_name_or_path is None:
            raise ValueError(
                "this checkpoint does not hold its sentence encoder and names none; set "
                "encoder_name_or_path in its config."
            )
        base = load_encoder(
            config.encoder_name_or_path,
            config.encoder_config,
            revision=config.encoder_revision,
            dtype=self.markers.dtype,
            **hub,
        )
        self.encoder = base.to(self.markers.device)
        if config.fingerprint not in (None, self.fingerprint):
            raise ValueError(
                f"{config.encoder_name_or_path!r} is another sentence encoder than this "
                f"compressor was made with: it is {self.fingerprint[:12]}, and was "
                f"{config.fingerprint[:12]}."
            )

    def _load_encoder_base(self, shared: dict[str, Any]) -> None:
        """Put the pretrained base under the adapter that the checkpoint held."""
        config = self.config
        if config.encoder_name_or_path is None:
            raise ValueError(
                "this checkpoint holds a LoRA adapter but its config names no "
                "encoder_name_or_path; set it, or save the checkpoint after "
                "memslots.making.merge_encoder(model)."
            )
        base = load_encoder(
            config.encoder_name_or_path,
            config.encoder_config,
            **{"revision": config.encoder_revision, **(config.encoder_loading or {}), **shared},
            config=copy.deepcopy(config.encoder_config),  # it may have fewer layers
        )
        self._put_under_adapter(base, repr(config.encoder_name_or_path))


def pick_dtype(dtype):
    """The given dtype, else float32 if there is no accelerator: bfloat16 on a CPU without native
    support is about 300 times slower.
    """
    if dtype is None and not torch.accelerator.is_available():
        return torch.float32
    return "auto" if dtype is None else dtype


def mark_initialized(module: torch.nn.Module) -> None:
    """Keep transformers from drawing weights that are loaded anew."""
    for part in module.modules():
        part._is_hf_initialized = True  # type: ignore[assignment]


def _bundled_generation_config(name, config: MemslotsConfig, hub: dict) -> GenerationConfig:
    folder = "/".join(part for part in (hub.pop("subfolder", ""), _DECODER_FOLDER) if part)
    try:
        return GenerationConfig.from_pretrained(name, subfolder=folder, **hub)
    except OSError:  # saved without one
        return GenerationConfig.from_model_config(config.decoder_config)
