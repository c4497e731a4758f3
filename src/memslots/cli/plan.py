"""`memslots plan`: what serving costs with and without slots, from a decoder's configuration."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Annotated

import typer
from rich.table import Table

from .options import err, out, quiet


def plan(
    tokens: Annotated[int, typer.Option(min=1, help="Context tokens of each user.")],
    decoder: Annotated[
        str,
        typer.Option("--decoder", help="Folder or repository of an LLM. Only its config is read."),
    ],
    rate: Annotated[float, typer.Option(help="Context tokens for each slot.")] = 16,
    users: Annotated[int, typer.Option(min=1, help="Users at once.")] = 1000,
    gpu_memory: Annotated[
        str,
        typer.Option(help="Memory of one GPU: 80GB (10^9 bytes, also without a unit) or 80GiB."),
    ] = "80GB",
    gpu_price: Annotated[float, typer.Option(help="Price of one GPU in dollars an hour.")] = 2.7,
    gpu_teraflops: Annotated[
        float, typer.Option(help="Peak TFLOP/s of one GPU. Default: an H100's.")
    ] = 989,
    weight_bits: Annotated[float, typer.Option(help="Bits of each weight of the decoder.")] = 16,
    cache_bits: Annotated[float, typer.Option(help="Bits of each number in the KV cache.")] = 16,
    question_tokens: Annotated[
        int, typer.Option(min=1, help="Tokens read after the context.")
    ] = 64,
    slot_width: Annotated[
        int | None,
        typer.Option(
            min=1, help="Width of a stored slot (d_encoder). Default: the decoder's width."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Estimate KV cache, GPUs, cost and waiting time for contexts as text and as slots."""
    from transformers import AutoConfig

    from memslots.serving.serving_cost import Demand, plan_serving

    quiet()
    demand = Demand(
        tokens=tokens,
        rate=rate,
        users=users,
        gpu_gigabytes=gigabytes(gpu_memory),
        gpu_dollars_an_hour=gpu_price,
        gpu_teraflops=gpu_teraflops,
        weight_bits=weight_bits,
        cache_bits=cache_bits,
        question_tokens=question_tokens,
        slot_width=slot_width,
    )
    config = AutoConfig.from_pretrained(decoder)
    if config.model_type == "memslots":
        config = config.decoder_config
    found = plan_serving(config, demand)
    if as_json:
        values = {"demand": dataclasses.asdict(demand), **dataclasses.asdict(found)}
        typer.echo(json.dumps(values))
        return
    table = Table(title=f"{decoder}: {tokens:,} tokens for each of {users:,} users; estimates")
    table.add_column("")
    table.add_column("as text", justify="right")
    table.add_column(f"as slots, rate {rate:g}", justify="right")
    plain, short = found.plain, found.compressed
    for name, shown in (
        ("positions of the context", [f"{f.positions:,}" for f in (plain, short)]),
        ("cache per user", [_bytes(f.bytes_per_user) for f in (plain, short)]),
        ("users per GPU", [_users(f.users_per_gpu) for f in (plain, short)]),
        ("GPUs", [f"{f.gpus:,}" for f in (plain, short)]),
        ("dollars a month", [f"{f.dollars_a_month:,.0f}" for f in (plain, short)]),
        ("first token", [f"{f.first_token_seconds * 1000:,.0f} ms" for f in (plain, short)]),
    ):
        table.add_row(name, *shown)
    out.print(table)
    copies = f"{plain.gpus_per_copy} GPU{'s' * (plain.gpus_per_copy > 1)} a copy"
    out.print(
        f"{found.model_type}, {found.parameters / 1e9:.2f}B parameters, "
        f"{_bytes(found.weights_bytes)} of weights, {copies}. Cache per token "
        f"{_bytes(found.cache_bytes_per_token)}, once every window is full "
        f"{_bytes(found.cache_bytes_per_late_token)}. The slots of one context take "
        f"{_bytes(found.slot_bytes)} as they are kept."
    )
    if not found.fits_as_text:
        err.print("The decoder has fewer positions than the context as text needs.", style="dim")


def gigabytes(size: str) -> float:
    """A size in 10^9 bytes: `80`, `80GB`, `80 GiB`, `81920MiB`.

    Raises:
        ValueError: no number, or another unit.
    """
    match = re.fullmatch(r"\s*(-?[0-9.]+)\s*([kMGT]i?B)?\s*", size)
    try:
        number = float(match[1]) if match else None
    except ValueError:
        number = None
    if match is None or number is None:
        raise ValueError(
            f"--gpu-memory {size!r} is no size; give a number of GB, or one with its unit, such as "
            "80GB or 80GiB."
        )
    unit = match[2] or "GB"
    base = 1024 if "i" in unit else 1000
    return number * base ** (1 + "kMGT".index(unit[0])) / 1e9


def _bytes(size: float) -> str:
    for unit, step in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= step:
            return f"{size / step:,.2f} {unit}"
    return f"{size:,.0f} B"


def _users(users: float) -> str:
    return f"{users:,.0f}" if users >= 10 or users == int(users) else f"{users:.2f}"
