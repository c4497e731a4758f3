"""`memslots serve`: an OpenAI-compatible gateway that answers from memories."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from memslots.extras import install_extra

from .options import (
    Device,
    Dtype,
    Literals,
    Model,
    Revision,
    check_port,
    literal_names,
    load_model,
    out,
    resolve_model,
)

if TYPE_CHECKING:
    from memslots.modeling import MemslotsModel
    from memslots.serving.engines import Engine
    from memslots.serving.shelf import Shelf

KEY, VLLM_KEY = "MEMSLOTS_API_KEY", "VLLM_API_KEY"


def serve(
    vllm: Annotated[
        str | None,
        typer.Option(
            "--vllm",
            metavar="URL",
            help="Let the vLLM server at this address answer, which was started with `vllm serve "
            "DECODER --enable-prompt-embeds`. Without it, transformers answers in this process.",
        ),
    ] = None,
    vllm_model: Annotated[
        str | None,
        typer.Option(help="Ask for this model of the vLLM server, if it serves several."),
    ] = None,
    with_decoder: Annotated[
        bool,
        typer.Option(
            "--with-decoder",
            help="Load the decoder here too, with --vllm, for requests with fidelity, max_slots "
            "exact or expand.",
        ),
    ] = False,
    store: Annotated[
        Path | None,
        typer.Option(
            "--store",
            metavar="FOLDER",
            help="Store memories in this folder. Without it they are lost on exit.",
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Listen on this address.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Listen on this port; 0 takes a free one.")
    ] = 8080,
    name: Annotated[
        str, typer.Option("--name", help="Answer requests for a model of this name.")
    ] = "memslots",
    concurrency: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Answer at most this many requests at once. By default it is 32 with --vllm, "
            "else 4.",
        ),
    ] = None,
    queue: Annotated[
        int, typer.Option(min=0, help="Let this many requests wait; the next one gets 429.")
    ] = 64,
    max_new_tokens: Annotated[
        int,
        typer.Option(min=1, help="Refuse requests for longer answers than this many tokens."),
    ] = 1024,
    max_body_mb: Annotated[
        int, typer.Option(min=1, help="Refuse requests of more than this many MiB.")
    ] = 32,
    prefix_cache_mb: Annotated[
        int,
        typer.Option(
            min=0,
            help="Keep up to this many MiB of the KV cache of stored memories, so that further "
            "questions about them are answered sooner; 0 keeps nothing. vLLM has its own "
            "cache.",
        ),
    ] = 1024,
    timeout: Annotated[
        float, typer.Option(min=0.1, help="Give up a request after this many seconds.")
    ] = 300.0,
    shutdown: Annotated[
        float, typer.Option(min=1, help="Stop within this many seconds after SIGTERM.")
    ] = 30.0,
    literals: Literals = None,
    model: Model = None,
    revision: Revision = None,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Answer OpenAI-style requests over HTTP from texts and stored memories.

    Set MEMSLOTS_API_KEY to the keys that clients may send, comma-separated, and VLLM_API_KEY to
    the key of the vLLM server. Prometheus reads /metrics.
    """
    try:
        from memslots.serving.gateway import Gateway
        from memslots.serving.gateway_settings import GatewaySettings
        from memslots.serving.server import gateway_server
    except ImportError as error:
        raise ImportError(
            f"serving needs what the extra brings ({error}): {install_extra('serve')}."
        ) from error

    told = os.environ.get(KEY, "")
    keys = tuple(key.strip() for key in told.split(",") if key.strip())
    if told and not keys:
        raise ValueError(f"{KEY} is set and holds no key; set keys divided by commas, or unset it.")
    if not keys and host not in ("127.0.0.1", "localhost", "::1"):
        raise ValueError(
            f"--host {host} lets others connect, and there is no key: set {KEY}, or listen on "
            "127.0.0.1."
        )
    settings = GatewaySettings(
        model_name=name,
        api_keys=keys,
        running=concurrency or (32 if vllm else 4),
        waiting=queue,
        max_body_bytes=max_body_mb * 2**20,
        max_tokens=max_new_tokens,
        timeout=timeout,
        shutdown=shutdown,
        literals=None if literals is None else tuple(literal_names(literals) or ()),
    )
    check_port(host, port)
    compressor = _compressor(model, revision, device, dtype, vllm is None or with_decoder)
    shelf = _shelf(store, compressor)
    engine = _engine(compressor, vllm, vllm_model, timeout, prefix_cache_mb * 2**20)
    out.print(
        Text(
            f"{name}: compressor {compressor.fingerprint[:12]}, answers by {engine.name}, "
            f"{len(shelf)} memories, {'with' if keys else 'without'} a key"
        ),
        soft_wrap=True,
    )
    gateway_server(Gateway(compressor, engine, shelf, settings), host, port).run()


def _compressor(
    model: str | None,
    revision: str | None,
    device: str | None,
    dtype: str | None,
    with_decoder: bool,
) -> MemslotsModel:
    compressor = load_model(model, revision, device, dtype, load_decoder=with_decoder)
    if with_decoder:
        return compressor
    from memslots.serving.decoder_embeddings import attach_decoder_embeddings

    as_saved = dtype == "auto" or (dtype is None and compressor.device.type != "cpu")
    return attach_decoder_embeddings(
        compressor, resolve_model(model), revision, None if as_saved else compressor.dtype
    )


def _shelf(store: Path | None, compressor: MemslotsModel) -> Shelf:
    from memslots.serving.shelf import ProcessShelf, StoreShelf

    if store is None:
        return ProcessShelf()
    from memslots.serving.store import MemoryStore

    kept = MemoryStore(store)
    if kept.fingerprint not in (None, compressor.fingerprint):
        raise ValueError(
            f"the store {str(store)!r} holds memories of compressor {str(kept.fingerprint)[:12]}, "
            f"and this model is {compressor.fingerprint[:12]}; name another store, or that "
            "checkpoint."
        )
    return StoreShelf(kept)


def _engine(
    compressor: MemslotsModel,
    vllm: str | None,
    vllm_model: str | None,
    timeout: float,
    prefix_bytes: int,
) -> Engine:
    from memslots.serving.engines import TransformersEngine, VllmEngine

    if vllm is None:
        if vllm_model is not None:
            raise ValueError("--vllm-model needs --vllm URL; give both.")
        return TransformersEngine(compressor, prefix_bytes)
    from memslots.serving.vllm_client import VllmClient

    client = VllmClient(vllm, vllm_model, os.environ.get(VLLM_KEY), timeout=min(timeout, 120.0))
    return VllmEngine(compressor, client)
