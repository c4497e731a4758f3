"""Workers that compress a corpus: in this process, in several, or on a cluster under Ray Data.

All of them are the same class, given the same batches; only what calls it differs.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

from memslots.extras import install_extra
from memslots.interruption import end_with_parent, without_interrupts

from .store_format import encode_memory, pa

if TYPE_CHECKING:
    from memslots.modeling import MemslotsModel

RAY_BATCHES = 2000
"""Batches in one Ray dataset, whose workers load the model once for all of these."""


@dataclass(frozen=True)
class CompressorSpec:
    """What a worker needs to make the compressor in its own process.

    Args:
        model: Folder or repository, there on every machine.
        slot_dtype: The store's.
        rate: Encoder tokens per slot; None if `verification` chooses.
        revision: Of the repository.
        device: "cpu", "cuda", ...; workers share out the devices of "cuda".
        dtype: The weights': "float32", "bfloat16", ..., or "auto" for the checkpoint's.
        threads: Of a worker on a CPU; None leaves torch's choice.
        literals: Names of what rides beside the slots; None leaves it to the checkpoint.
        compiled: Whether each worker compiles the encoder first.
        verification: `rates`, `fidelity`, `max_slots`, `exact` and `keep_text` of
            `verified.compress`. Each worker then holds the decoder too.
    """

    model: str
    slot_dtype: str
    rate: int | None
    revision: str | None = None
    device: str = "cpu"
    dtype: str = "float32"
    threads: int | None = None
    literals: tuple[str, ...] | None = None
    compiled: bool = False
    verification: Mapping[str, Any] = field(default_factory=dict)

    @property
    def made_with(self) -> dict[str, Any]:
        """What was asked for beside the rate, as JSON holds it; functions by their names."""
        asked = {name: value for name, value in self.verification.items() if value is not None}
        if "rates" in asked:
            asked["rates"] = sorted(asked["rates"])
        if self.literals is not None:
            asked["literals"] = sorted(self.literals)
        return json.loads(
            json.dumps(asked, default=lambda function: getattr(function, "__name__", str(function)))
        )


class CorpusCompressor:
    """A worker: texts in, rows of a store out.

    Args:
        spec: What to load.
        model: The model, where it is loaded already.
    """

    def __init__(self, spec: CompressorSpec, model: MemslotsModel | None = None):
        self.spec = spec
        if model is None:
            import torch

            from memslots.modeling import MemslotsModel

            if spec.threads is not None:
                torch.set_num_threads(spec.threads)
            kwargs: dict[str, Any] = {"revision": spec.revision} if spec.revision else {}
            kwargs["dtype"] = spec.dtype if spec.dtype == "auto" else getattr(torch, spec.dtype)
            model = MemslotsModel.from_pretrained(
                spec.model, load_decoder=bool(spec.verification), **kwargs
            )
            model.to(spec.device)
        self.model = model
        if spec.compiled:
            from memslots.compiling import compile_encoder

            compile_encoder(model)

    def __call__(self, texts: pa.Table) -> pa.Table:
        """Compresses a batch.

        Args:
            texts: Columns `id`, `text` and `metadata`.

        Returns:
            One row: `rows`, an Arrow stream of the store's rows, which Ray has no reason to look
            into, and `failed`, as JSON the ids that could not be compressed and why.
        """
        documents = texts.to_pylist()
        failed: dict[str, str] = {}
        try:
            tables = [self._compress(documents)]
        except ValueError:  # one of them; the others need not suffer
            tables = []
            for document in documents:
                try:
                    tables.append(self._compress([document]))
                except ValueError as error:
                    failed[document["id"]] = str(error)
        sink = pa.BufferOutputStream()
        if tables:
            rows = pa.concat_tables(tables).unify_dictionaries().combine_chunks()
            with pa.ipc.new_stream(sink, rows.schema) as writer:
                writer.write_table(rows)
        return pa.table(
            {
                "rows": pa.array([sink.getvalue().to_pybytes()], pa.large_binary()),
                "failed": pa.array([json.dumps(failed)], pa.string()),
            }
        )

    def _compress(self, documents: list[dict[str, str]]) -> pa.Table:
        from memslots import verified

        spec = self.spec
        verification = dict(spec.verification)
        if verification and spec.slot_dtype == "bfloat16":
            import torch

            verification["slot_dtype"] = torch.bfloat16  # what is verified is what will be read
        memory = verified.compress(
            self.model,
            [document["text"] for document in documents],
            rate=spec.rate,
            progress=False,
            literals=None if spec.literals is None else list(spec.literals),
            **verification,
        )
        return encode_memory(
            [document["id"] for document in documents],
            memory,
            [document["metadata"] for document in documents],
            self.spec.slot_dtype,
        )


def in_processes(
    batches: Iterator[pa.Table], spec: CompressorSpec, workers: int
) -> Iterator[pa.Table]:
    """Results as they get ready, of so many processes of this machine.

    Raises:
        ValueError: A process died.
    """
    context = multiprocessing.get_context("spawn")  # forks of a process with threads may hang
    numbers = context.SimpleQueue()
    for number in range(workers):
        numbers.put(number)
    spec = replace(spec, threads=spec.threads or max(1, (os.cpu_count() or 1) // workers))
    pool = ProcessPoolExecutor(workers, context, _start_process, (spec, numbers))
    others = set(multiprocessing.active_children())

    def submit(batch: pa.Table) -> Future:
        with without_interrupts():  # it may start a process
            return pool.submit(_run, batch)

    try:
        # No more on their way than keep all workers busy: the corpus may be of any size.
        running: set[Future] = {submit(batch) for batch in islice(batches, 2 * workers)}
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
                running |= {submit(batch) for batch in islice(batches, 1)}
    except BrokenProcessPool as error:
        raise ValueError(
            "a worker died, perhaps because memory ran out, or could not load the model; what was "
            "stored is kept. Use fewer workers and run it again; one worker shows its error."
        ) from error
    except BaseException:  # Ctrl-C, for instance: nobody takes what they are at
        for worker in set(multiprocessing.active_children()) - others:
            worker.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_worker: list[CorpusCompressor] = []  # of a process of the pool


def _start_process(spec: CompressorSpec, numbers) -> None:
    end_with_parent()
    number = numbers.get()
    if spec.device == "cuda":
        import torch

        spec = replace(spec, device=f"cuda:{number % torch.cuda.device_count()}")
    _worker.append(CorpusCompressor(spec))


def _run(batch: pa.Table) -> pa.Table:
    return _worker[0](batch)


def under_ray(
    batches: Iterator[pa.Table], spec: CompressorSpec, workers: int
) -> Iterator[pa.Table]:
    """Results as they get ready, of so many actors of a Ray cluster.

    It joins the cluster that `RAY_ADDRESS` names; without one, Ray runs on this machine and ends
    with this call.

    Raises:
        ImportError: Ray is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise ImportError(f"--ray needs Ray Data: {install_extra('ray')}") from error
    started_here = not ray.is_initialized()
    if started_here:
        ray.init(log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    gpu = spec.device.startswith("cuda")
    cores = 1 if gpu else max(1, int(ray.cluster_resources().get("CPU", 1)) // workers)
    spec = replace(spec, threads=None if gpu else spec.threads or cores)
    try:
        while part := list(islice(batches, RAY_BATCHES)):
            compressed = ray.data.from_arrow(part).map_batches(
                CorpusCompressor,
                fn_constructor_args=(spec,),
                batch_size=None,  # one block a table, as it was cut
                batch_format="pyarrow",
                zero_copy_batch=True,
                concurrency=min(workers, len(part)),
                num_cpus=cores,
                num_gpus=1 if gpu else 0,
            )
            yield from compressed.iter_batches(
                batch_size=None, batch_format="pyarrow", prefetch_batches=0
            )
    finally:
        if started_here:
            ray.shutdown()
