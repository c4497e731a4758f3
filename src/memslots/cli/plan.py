"""`memslots plan`: what serving costs with and without slots, from a decoder's configuration."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterator
from typing import Annotated

import typer
from rich.table import Table

from .options import Json, err, out, print_json, quiet


def plan(
    decoder: Annotated[
        str,
        typer.Option(
            metavar="LLM",
            help="Plan for this LLM, a folder or repository, of which only the configuration is "
            "read.",
        ),
    ],
    tokens: Annotated[int, typer.Option(min=1, help="Give each user a context of this length.")],
    rate: Annotated[float, typer.Option(help="Put this many tokens into each slot.")] = 16,
    users: Annotated[int, typer.Option(min=1, help="Serve this many users at once.")] = 1000,
    gpu_memory: Annotated[
        str,
        typer.Option(
            help="Use GPUs with this much memory: 80GB (10^9 bytes, also without a unit) or 80GiB."
        ),
    ] = "80GB",
    gpu_price: Annotated[
        float, typer.Option(help="Pay this many dollars an hour for each GPU.")
    ] = 2.7,
    gpu_teraflops: Annotated[
        float, typer.Option(help="Use GPUs with this peak of TFLOP/s. An H100 has 989.")
    ] = 989,
    weight_bits: Annotated[
        float, typer.Option(help="Keep each weight of the decoder in this many bits.")
    ] = 16,
    cache_bits: Annotated[
        float, typer.Option(help="Keep each number in the KV cache in this many bits.")
    ] = 16,
    question_tokens: Annotated[
        int, typer.Option(min=1, help="Read this many tokens after the context.")
    ] = 64,
    slot_width: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Store slots of this width (d_encoder). By default it is the decoder's width.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Estimate KV cache, GPUs, cost and waiting time for contexts as text and as slots."""
    size = gigabytes(gpu_memory)
    from transformers import PreTrainedConfig

    from memslots.making import decoder_config, model_named
    from memslots.modeling import MemslotsConfig
    from memslots.serving.serving_cost import Demand, plan_serving

    quiet()
    with options_named({"gpu_gigabytes": "gpu_memory", "gpu_dollars_an_hour": "gpu_price"}):
        demand = Demand(
            tokens=tokens,
            rate=rate,
            users=users,
            gpu_gigabytes=size,
            gpu_dollars_an_hour=gpu_price,
            gpu_teraflops=gpu_teraflops,
            weight_bits=weight_bits,
            cache_bits=cache_bits,
            question_tokens=question_tokens,
            slot_width=slot_width,
        )
    with model_named("decoder", decoder):
        stated, _ = PreTrainedConfig.get_config_dict(decoder)
    if stated.get("model_type") == MemslotsConfig.model_type:  # by our class: its code is not run
        config = MemslotsConfig.from_dict(stated).decoder_config
    else:
        config = decoder_config(decoder, {})
    plan = plan_serving(config, demand)
    if as_json:
        values = {"demand": dataclasses.asdict(demand), **dataclasses.asdict(plan)}
        print_json(values)
        return
    table = Table(title=f"{decoder}: {tokens:,} tokens for each of {users:,} users; estimates")
    table.add_column("")
    table.add_column("as text", justify="right")
    table.add_column(f"as slots, rate {rate:g}", justify="right")
    plain, short = plan.plain, plan.compressed
    for name, shown in (
        ("prompt tokens of the context", [f"{f.positions:,}" for f in (plain, short)]),
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
        f"{plan.model_type}, {plan.parameters / 1e9:.2f}B parameters, "
        f"{_bytes(plan.weights_bytes)} of weights, {copies}. Cache per token "
        f"{_bytes(plan.cache_bytes_per_token)}, once every window is full "
        f"{_bytes(plan.cache_bytes_per_late_token)}. The slots of one context take "
        f"{_bytes(plan.slot_bytes)} as they are kept."
    )
    if not plan.fits_as_text:
        err.print("As text, the context is longer than the decoder can read.", style="dim")


@contextlib.contextmanager
def options_named(names: dict[str, str]) -> Iterator[None]:
    """Let a message about a field speak of the command's option; `names` are those that differ."""
    try:
        yield
    except ValueError as error:
        field, rest = str(error).split("=", 1)
        option = names.get(field, field).replace("_", "-")
        raise ValueError(f"--{option} {rest}") from error


def gigabytes(size: str) -> float:
    """A size in 10^9 bytes: `80`, `80GB`, `80 GiB`, `81920MiB`.

    Raises:
        ValueError: no number, or another unit.
    """
    match = re.fullmatch(r"\s*(-?[0-9.]+)\s*([kmgt]i?)?b?\s*", size.lower())
    try:
        number = float(match[1]) if match else None
    except ValueError:
        number = None
    if match is None or number is None:
        raise ValueError(
            f"--gpu-memory {size!r} is not a size; give a number of GB, or one with its unit, such "
            "as 80GB or 80GiB."
        )
    unit = match[2] or "g"
    base = 1024 if "i" in unit else 1000
    return number * base ** (1 + "kmgt".index(unit[0])) / 1e9


def _bytes(size: float) -> str:
    for unit, step in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= step:
            return f"{size / step:,.2f} {unit}"
    return f"{size:,.0f} B"


def _users(users: float) -> str:
    return f"{users:,.0f}" if users >= 10 or users == int(users) else f"{users:.2f}"
