"""How the benchmarks measure: medians after a warm-up, runs taken in turn, peaks, machine facts.

Times that are compared come from one call of `measure`, which takes the runs in turn: a machine
that slows down for a while slows all of them.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import StoppingCriteria

import memslots

Run = Callable[[], Mapping[str, float] | None]
"""What is timed; it may return seconds of its parts."""

Results = dict[str, Any]

DTYPES = {"cpu": torch.float32, "cuda": torch.bfloat16}
"""What models run in: bfloat16 without native support is far slower than float32."""


def options_of(parser: argparse.ArgumentParser, arguments: list[str] | None = None):
    """The options that all benchmarks share, beside those that `parser` has.

    Args:
        parser: with the script's own options.
        arguments: in place of the command line's.
    """
    parser.add_argument("--device", default="cpu", choices=list(DTYPES))
    parser.add_argument("--preset", help="shapes, by default small on a CPU; see shapes.py")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs after one warm-up")
    parser.add_argument("--output", type=Path, default=Path("runs/bench"), help="for the JSON")
    options = parser.parse_args(arguments)
    options.started = time.monotonic()
    if options.repeats < 1:
        parser.error(f"--repeats must be at least 1, got {options.repeats}.")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU here; leave it out to measure the CPU.")
    if options.preset is None:
        options.preset = "small" if options.device == "cpu" else "gpt2-large-llama3"
    transformers.utils.logging.set_verbosity_error()
    return options


def synchronize(device: str) -> None:
    """Waits for what a GPU has been given to do."""
    if device == "cuda":
        torch.cuda.synchronize()


def measure(
    runs: Mapping[str, Run], repeats: int, device: str, warm_up: int = 1
) -> dict[str, dict[str, Any]]:
    """Median seconds of runs that are taken in turn.

    Args:
        runs: by name.
        repeats: timed runs of each.
        device: where they run.
        warm_up: runs of each before.

    Returns:
        By name the medians, in seconds: "total", and each part that a run returned; and "all", the
        totals in the order they were taken.
    """
    found: dict[str, list[dict[str, float]]] = {name: [] for name in runs}
    for turn in range(warm_up + repeats):
        gc.collect()
        for name, run in runs.items():
            synchronize(device)
            start = time.perf_counter()
            parts = run()
            synchronize(device)
            total = time.perf_counter() - start
            if turn >= warm_up:
                found[name].append({"total": total, **(parts or {})})
    return {
        name: {
            **{part: statistics.median(one[part] for one in taken) for part in taken[0]},
            "all": [one["total"] for one in taken],
        }
        for name, taken in found.items()
    }


class TokenClock(StoppingCriteria):
    """Tells the time to the first token from the time of the others; it stops nothing.

    Made where the time begins, and given to `generate` as `stopping_criteria`.

    Args:
        device: where the decoder runs.
    """

    def __init__(self, device: str):
        self.device = device
        self.started = time.perf_counter()
        self.first: float | None = None
        self.last = 0.0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs) -> torch.Tensor:
        """Called by `generate` after each token."""
        synchronize(self.device)
        self.last = time.perf_counter() - self.started
        self.first = self.last if self.first is None else self.first
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)

    def elapsed(self) -> float:
        """Seconds since it was made."""
        synchronize(self.device)
        return time.perf_counter() - self.started

    def parts(self) -> dict[str, float]:
        """Seconds of "prefill", up to the first token, and of "decode", all tokens after it."""
        if self.first is None:
            raise RuntimeError("generate made no token, so there is nothing to time.")
        return {"prefill": self.first, "decode": self.last - self.first}


def peak_bytes(run: Callable[[], Any], device: str) -> int | None:
    """Most memory that `run` takes beyond what is taken before it; None where that is not known.

    On a GPU it is what tensors take; on a CPU the process's resident set, which Linux alone lets a
    process reset (`/proc/self/clear_refs`, see proc(5)).

    Args:
        run: what to run, once.
        device: where it runs.
    """
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    if not sys.platform.startswith("linux"):
        return None
    # Memory that was freed but is still held would hide what is taken next.
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", "ascii")
    before = _resident("VmRSS")
    run()
    return max(0, _resident("VmHWM") - before)


def peak_that_fits(run: Callable[[], Any], device: str) -> tuple[int | None, bool]:
    """As `peak_bytes`, and whether it was too much for a GPU; a CPU is never tried that far."""
    try:
        return peak_bytes(run, device), False
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return None, True


def _resident(name: str) -> int:
    """Bytes of a line of /proc/self/status."""
    for line in Path("/proc/self/status").read_text("ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no line {name}.")


@torch.no_grad()
def matrix_rate(device: str, dtype: torch.dtype, repeats: int, size: int | None = None) -> float:
    """Operations a second of the product of two square matrices: the floor under every model.

    Args:
        device: where it is taken.
        dtype: of the matrices.
        repeats: timed products.
        size: rows; by default large enough that nothing but the product counts.
    """
    size = size or (2048 if device == "cpu" else 8192)
    left = torch.randn(size, size, device=device, dtype=dtype)
    right = torch.randn(size, size, device=device, dtype=dtype)
    out = torch.empty_like(left)

    def product() -> None:
        torch.mm(left, right, out=out)

    seconds = measure({"product": product}, repeats, device, warm_up=2)["product"]["total"]
    return 2 * size**3 / seconds


def machine_facts(device: str) -> Results:
    """Hardware and versions."""
    facts: Results = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "memslots": memslots.__version__,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }
    if hasattr(os, "sysconf"):
        pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        facts["memory_gib"] = round(pages / 2**30, 1)
    if device == "cuda":
        facts["gpu_gib"] = round(torch.cuda.get_device_properties(0).total_memory / 2**30, 1)
    return facts


def _processor() -> str:
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text("utf-8").splitlines() if listing.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def write_results(name: str, results: Results, options: argparse.Namespace) -> Path:
    """Writes a benchmark's results, with the machine's facts, and returns the file.

    Args:
        name: of the benchmark.
        results: what it found.
        options: what it was run with.
    """
    options.output.mkdir(parents=True, exist_ok=True)
    setup = {
        "device": options.device,
        "preset": options.preset,
        "dtype": str(DTYPES[options.device]).removeprefix("torch."),
        "repeats": options.repeats,
        "took_seconds": round(time.monotonic() - options.started, 1),
        **machine_facts(options.device),
    }
    file = options.output / f"{name}.json"
    file.write_text(json.dumps({**results, "setup": setup}, indent=1) + "\n", "utf-8")
    return file
