"""Whether an engine runs the decoder that a compressor writes for.

An engine tells the name of what it runs and no width, and a name proves nothing. So it is asked to
go on from a few texts in two ways: from token ids, which it looks up in its own table, and from
the embeddings that we have of them. The decoder that we know answers both alike. A fine-tune that
left the table of embeddings as it was passes: only its answers would tell.
"""

from __future__ import annotations

from pathlib import PurePath

import torch

from memslots.modeling import MemslotsModel

from .sampling import Sampling, end_tokens
from .vllm_client import EngineError, PromptRefused, VllmClient

_TEXTS = (
    "The treaty was signed in 1851 by the two",
    "Question: What is the capital of Nigeria?\n\nAnswer:",
    "def area(width, height):\n    return",
)
_NEW_TOKENS = 8
_ALIKE = 2
"""Least answers alike; in another batch, a tie of two tokens may be broken otherwise."""


class DecoderMismatch(EngineError):
    """The engine runs another decoder."""


async def check_decoder(model: MemslotsModel, client: VllmClient) -> None:
    """Ask the engine both ways.

    Args:
        model: The compressor; of its decoder the input embeddings are used.
        client: Of the server.

    Raises:
        DecoderMismatch: The server takes one of both and not the other, or answers otherwise.
        EngineError: No answer at all.
    """
    processor = model.processor
    ids = [[*processor.bos_ids, *processor.decoder_text.encode(text)] for text in _TEXTS]
    decoder = model.decoder
    table = decoder.get_input_embeddings()
    with torch.no_grad():
        embeds = [table(torch.tensor(prompt, device=decoder.device)) for prompt in ids]
    fields = Sampling(_NEW_TOKENS).for_vllm(end_tokens(model))
    try:
        by_ids = await client.complete_ids(ids, fields)
    except PromptRefused as error:
        raise _mismatch(model, client, f"it refuses our token ids ({error})") from error
    try:
        by_embeds = await client.complete(embeds, fields)
    except PromptRefused as error:
        why = f"it refuses embeddings of width {embeds[0].shape[1]} ({error})"
        raise _mismatch(model, client, why) from error
    except EngineError as error:
        if error.status != 502:
            raise
        why = f"it fails on embeddings of width {embeds[0].shape[1]} ({error})"
        raise _mismatch(model, client, why) from error
    alike = sum(piece.text == other.text for piece, other in zip(by_ids, by_embeds, strict=True))
    if alike < _ALIKE:
        why = "it goes on otherwise from our embeddings of a text than from the text's token ids"
        raise _mismatch(model, client, why)


def decoder_name(model: MemslotsModel) -> str | None:
    """What clients may be told: a name on the Hub, of a folder of this machine the last part."""
    name = model.config.decoder_name_or_path
    path = PurePath(name) if name else None
    return path.name if path is not None and (path.is_absolute() or len(path.parts) > 2) else name


def _mismatch(model: MemslotsModel, client: VllmClient, why: str) -> DecoderMismatch:
    decoder = decoder_name(model) or "the one that the checkpoint holds"
    return DecoderMismatch(
        f"the vLLM server at {client.url} does not run the decoder that this compressor writes for "
        f"({decoder}), or runs it without --enable-prompt-embeds: {why}."
    )
