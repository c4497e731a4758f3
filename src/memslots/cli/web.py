"""`memslots demo --web`: the Space's page on this machine, with the installed package."""

from __future__ import annotations

import logging
from dataclasses import replace

from rich.text import Text

from memslots.checkpoints import embedded
from memslots.extras import install_extra

from .options import check_port, err, load_model, out, resolve_model

TINY_NOTE = (
    "This is the checkpoint tiny, a demonstration: it answers questions on short English "
    "biographies like the first example, and knows nothing else."
)

TINY_TOKENS = 16
"""Its answers are short; without a context it would go on to any limit."""


def serve_page(
    model: str | None,
    revision: str | None,
    device: str | None,
    dtype: str | None,
    host: str,
    port: int | None,
) -> None:
    """Serves the page until it is interrupted.

    Args:
        model: folder or repository; `smol` where SmolLM2 is available, else `tiny`.
        revision: of a repository.
        device: as for every command.
        dtype: as for every command.
        host: address to listen on.
        port: of it; by default the first free one from 7860 on.

    Raises:
        ImportError: Gradio is missing.
        ValueError: the port is taken.
    """
    try:
        import gradio
    except ImportError as error:
        raise ImportError(f"memslots demo --web needs Gradio: {install_extra('demo')}") from error
    from memslots.hub_cards.checkpoint_facts import trained_on
    from memslots.hub_cards.space.memslots_space.page import Page
    from memslots.hub_cards.space.memslots_space.settings import Settings

    if port is not None:
        check_port(host, port)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    name = resolve_model(model)
    out.print(f"loading {name}, Gradio {gradio.__version__}", style="dim", soft_wrap=True)
    compressor = load_model(name, revision, device, dtype).eval()
    settings = Settings(model=name, revision=revision, trained_on=trained_on(name, revision))
    if name == embedded("tiny"):
        settings = replace(settings, note=TINY_NOTE, max_new_tokens=TINY_TOKENS)
    page = Page(compressor, settings)
    _, url, _ = page.serve(server_name=host, server_port=port, quiet=True, prevent_thread_lock=True)
    out.print(Text(f"Open {url} in a browser; Ctrl-C ends it."), soft_wrap=True)
    if host not in ("127.0.0.1", "localhost", "::1"):
        err.print(f"{host}: whoever reaches this machine can use the page; it asks for no password")
    page.blocks.block_thread()
