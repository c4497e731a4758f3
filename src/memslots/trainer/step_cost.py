"""What a training step costs, in bytes and seconds, before any weight is loaded.

The step is gone through on fake tensors, which have shapes and no contents: what it allocates,
keeps for the backward pass and multiplies is what the real one does, whatever the architecture. It
is done with one layer of encoder and decoder, and with two, and what the second one adds is counted
for all others, so that a plan of 80 layers takes no longer than one of three.
"""

from __future__ import annotations

import copy
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any, NamedTuple

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from transformers import AutoModelForCausalLM

from memslots.modeling import MemslotsConfig, MemslotsModel
from memslots.modeling.decoders_memslots import per_layer_inputs, reading
from memslots.modeling.encoders_memslots import StatesRead, convert, first_layers_config
from memslots.modeling.layout_memslots import TASKS
from memslots.trainer.adapt import choose_trained
from memslots.trainer.collator import CompressorBatch
from memslots.trainer.decoder_checkpointing import decoder_checkpointing
from memslots.trainer.distillation import Teacher, teach
from memslots.trainer.slot_cache import is_cacheable

_CALL_SECONDS = 1e-5  # of an operation, however small


class Machine(NamedTuple):
    """How fast this machine's best device is.

    Args:
        operations: a second, of a matrix product.
        bytes: a second, read and written by an elementwise operation, its output newly allocated.
    """

    operations: float
    bytes: float


class Cost(NamedTuple):
    """Of one step.

    Args:
        bytes: most that are held beside the weights.
        seconds: of the step without what is encoded once and kept.
        once: seconds of what a frozen sentence encoder does, whose slots are kept.
    """

    bytes: float
    seconds: float
    once: float


class Read(NamedTuple):
    """Rows that the decoder reads together, padded to `positions`, with so many `targets` each."""

    rows: int
    positions: int
    targets: int


@dataclass(frozen=True)
class StepShape:
    """Sizes of a batch.

    Args:
        segments: that are encoded.
        tokens: of each, padded.
        slots: of each.
        reads: what the decoder reads of each of `TASKS`.
        taught: what it reads of the full text, of each task that is distilled.
    """

    segments: int
    tokens: int
    slots: int
    reads: tuple[Read | None, ...]
    taught: tuple[Read | None, ...]

    @property
    def positions(self) -> int:
        """Encoder tokens and decoder positions, padding included."""
        read = [r for r in (*self.reads, *self.taught) if r is not None]
        return self.segments * self.tokens + sum(r.rows * r.positions for r in read)


def shape_of(batch: CompressorBatch, rate: int) -> StepShape:
    """The sizes of a batch whose segments are compressed at `rate`."""
    slots = batch.slots(rate)

    def read(rows: Sequence[Any], task: int) -> Read | None:
        rows = [row for row in rows if row.task == task]
        if not rows:
            return None
        lengths = [
            sum(slots[segment] + 2 for segment in row.segments)
            + len(row.prompt.before) + len(row.prompt.after) + len(row.target) + 1
            for row in rows
        ]  # fmt: skip
        return Read(len(rows), max(lengths), max(len(row.target) for row in rows))

    tasks = range(len(TASKS))
    return StepShape(
        segments=len(slots),
        tokens=max(batch.tokens),
        slots=max(slots),
        reads=tuple(read(batch.rows, task) for task in tasks),
        taught=tuple(read(batch.teacher_rows, task) for task in tasks),
    )


def measured_machine(width: int = 1024) -> Machine:
    """Measures this machine, in half a second.

    Args:
        width: of the matrices, as the decoder's is.
    """
    on_gpu = torch.cuda.is_available()
    device, dtype = ("cuda", torch.bfloat16) if on_gpu else ("cpu", torch.float32)
    rows, numbers = (8192, 2**28) if on_gpu else (512, 2**22)
    a = torch.randn(rows, width, device=device, dtype=dtype)
    b = torch.randn(width, 4 * width, device=device, dtype=dtype)
    x = torch.randn(numbers, device=device, dtype=dtype)
    product = _usual_seconds(lambda: a @ b)
    elementwise = _usual_seconds(lambda: x * 2)
    return Machine(
        2 * rows * width * 4 * width / product, 2 * numbers * x.element_size() / elementwise
    )


def _usual_seconds(do, least: float = 0.25) -> float:
    """The median of calls, once warm: their mean differed by a quarter from run to run."""
    do().flatten()[0].item()  # waits for the device
    times = [time.perf_counter()]
    while times[-1] - times[0] < least or len(times) < 4:
        do().flatten()[0].item()
        times.append(time.perf_counter())
    return median(after - before for before, after in pairwise(times))


def step_cost(
    config: MemslotsConfig,
    shape: StepShape,
    machine: Machine,
    trained_part: str = "all",
    checkpointing: bool = False,
    top_k: int = 64,
) -> Cost:
    """What a step of a compressor's training costs on one device.

    Args:
        config: of the compressor, with its decoder's.
        shape: of the batch.
        machine: how fast it is.
        trained_part: "all" or "converter", see `choose_trained`.
        checkpointing: whether activations are computed again in the backward pass.
        top_k: tokens of a teacher's distribution that are kept.
    """
    encoder_layers = config.get_text_config(encoder=True).num_hidden_layers
    decoder_layers = config.get_text_config(decoder=True).num_hidden_layers

    def of(encoder: int, decoder: int) -> Cost:
        shorter = _shorter(config, encoder, decoder)
        return _fake_step(shorter, shape, machine, trained_part, checkpointing, top_k)

    base = of(1, 1)
    deeper = of(min(2, encoder_layers), 1), of(1, min(2, decoder_layers))
    further = encoder_layers - 1, decoder_layers - 1
    totals = [
        first + sum(n * (cost[i] - first) for n, cost in zip(further, deeper, strict=True))
        for i, first in enumerate(base)
    ]
    return Cost(*totals)


def _shorter(config: MemslotsConfig, encoder: int, decoder: int) -> MemslotsConfig:
    shorter = copy.deepcopy(config)
    shorter.encoder_config = first_layers_config(shorter.encoder_config, encoder)
    shorter.decoder_config = first_layers_config(shorter.decoder_config, decoder)
    if shorter.encoder_layers is not None:
        shorter.encoder_layers = encoder
    return shorter


def _fake_step(
    config: MemslotsConfig,
    shape: StepShape,
    machine: Machine,
    trained_part: str,
    checkpointing: bool,
    top_k: int,
) -> Cost:
    on_gpu = torch.cuda.is_available()
    device, dtype = ("cuda", torch.bfloat16) if on_gpu else ("cpu", torch.float32)
    with torch.device("meta"), _default_dtype(dtype):
        for part in (config.encoder_config, config.decoder_config):
            part.dtype = dtype  # type: ignore[union-attr]
        model = MemslotsModel(config)
        reader = AutoModelForCausalLM.from_config(config.decoder_config)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device(device), _default_dtype(dtype):
        model.to_empty(device=device)
        reader.to_empty(device=device).requires_grad_(False).eval()
        choose_trained(model, trained_part)
        model.freeze_sentence_encoder()
        model.train()
        kept = is_cacheable(model)
        checkpointed: AbstractContextManager[None] = nullcontext()
        if checkpointing:
            checkpointed = decoder_checkpointing(reader)
            if any(p.requires_grad for p in model.encoder.parameters()):
                model.encoder.gradient_checkpointing_enable()
        meter, once = _Meter(machine), _Meter(machine)
        with checkpointed:
            with once if kept else meter, torch.set_grad_enabled(not kept):
                slots = _fake_slots(model, shape)
            with meter:
                _fake_loss(model, reader, shape, slots, top_k).backward()
        return Cost(max(meter.most, once.most), meter.seconds, once.seconds)


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _fake_slots(model: MemslotsModel, shape: StepShape) -> torch.Tensor:
    """Slots of segments of one length, by the encoder's own code; nothing of it reads a value."""
    pooled = model.memory_tokens is None
    width = shape.tokens + (0 if pooled else shape.slots)
    count = shape.segments * shape.slots
    places = torch.zeros(shape.segments * shape.tokens if pooled else count, dtype=torch.long)
    rate = -(-shape.tokens // shape.slots)
    ids = torch.zeros(shape.segments, shape.tokens, dtype=torch.long)
    rates = torch.full((shape.segments,), rate)
    return model.encode(ids, torch.ones_like(ids), rates, StatesRead(width, places, count, rate))


def _fake_loss(
    model: MemslotsModel, reader: Any, shape: StepShape, slots: torch.Tensor, top_k: int
) -> torch.Tensor:
    """What `CompressorTrainer.compute_loss` does after that."""
    vectors = torch.cat([model.markers, convert(model.converter, slots)])
    total = vectors.new_zeros(())
    taught: list[Teacher | None] = []
    for read in shape.taught:
        if read is None:
            taught.append(None)
            continue
        with torch.no_grad():
            ids = torch.zeros(read.rows, read.positions, dtype=torch.long)
            logits = reader(input_ids=ids, use_cache=False, logits_to_keep=read.targets + 1).logits[
                :, :-1
            ]
            taught.append(teach(_picked(logits), top_k))
    for read, teacher in zip(shape.reads, taught, strict=True):
        if read is None:
            continue
        ids = torch.zeros(read.rows, read.positions, dtype=torch.long)
        embeds = torch.where(
            (ids > 0).unsqueeze(-1), vectors[ids], reader.get_input_embeddings()(ids)
        )
        options: dict[str, Any] = {"use_cache": False, "logits_to_keep": read.targets + 1}
        per_layer = per_layer_inputs(reader, ids)
        if per_layer is not None:
            options["per_layer_inputs"] = per_layer
        with reading(reader, model.decoder_lora):
            logits = reader(inputs_embeds=embeds, **options).logits
        logits = _picked(logits[:, :-1])
        targets = torch.zeros(len(logits), dtype=torch.long)
        total = total + functional.cross_entropy(logits.float(), targets, reduction="sum")
        if teacher is not None:
            total = total + teacher.divergence(logits)
    return total


def _picked(logits: torch.Tensor) -> torch.Tensor:
    """As `logits[labels != -100]`, which copies."""
    flat = logits.flatten(0, 1)
    return flat[torch.arange(len(flat))]


class _Meter(TorchDispatchMode):
    """Counts what operations allocate, and how long they would take."""

    def __init__(self, machine: Machine):
        super().__init__()
        self.machine = machine
        self.seconds = 0.0
        self.held = self.most = 0
        self.storages: dict[int, int] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        read = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        written = [t for t in tree_leaves(out) if isinstance(t, torch.Tensor)]
        before = {t.untyped_storage()._cdata for t in read}
        is_view = not func._schema.is_mutable
        for tensor in written:
            storage = tensor.untyped_storage()
            if storage._cdata not in before:
                is_view = False
                if storage._cdata not in self.storages:
                    self._allocate(storage)
        if not is_view:
            count = flop_registry.get(func._overloadpacket)
            operations = count(*args, **kwargs, out_val=out) if count is not None else 0
            moved = sum(t.numel() * t.element_size() for t in (*read, *written))
            busy = max(operations / self.machine.operations, moved / self.machine.bytes)
            self.seconds += max(busy, _CALL_SECONDS)
        return out

    def _allocate(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        self.storages[key] = size
        self.held += size
        self.most = max(self.most, self.held)
        weakref.finalize(storage, self._free, key)

    def _free(self, key: int) -> None:
        self.held -= self.storages.pop(key, 0)
