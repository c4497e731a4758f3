"""A conversation over one compressed document, which is not compressed again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .answers import Document
from .loading import Compressor

KEEP_LAST = 8
"""Turns that are read as text; older ones are compressed too, by `ChatMemory`."""


@dataclass(frozen=True, eq=False)
class Conversation:
    """Turns about one document.

    Args:
        document: what it is about.
        chat: a `ChatMemory` that starts from the document's memory.
    """

    document: Document
    chat: Any


def converse(compressor: Compressor, document: Document) -> Conversation:
    """A new conversation: its memory is the document's."""
    chat = compressor.chat_memory(compressor.model, keep_last=KEEP_LAST, rate=document.memory.rate)
    chat.memory = document.memory
    return Conversation(document, chat)


def is_about(conversation: Conversation | None, document: Document) -> bool:
    """Whether a conversation can go on: same text, same rate."""
    return (
        conversation is not None
        and conversation.document.text == document.text
        and conversation.document.memory.rate == document.memory.rate
    )


def reply(conversation: Conversation, question: str, max_new_tokens: int) -> str:
    """The answer to one more question; both become turns.

    Raises:
        ValueError: memory and turns no longer fit the decoder.
    """
    chat = conversation.chat
    return chat.ask(question, max_new_tokens=max_new_tokens, do_sample=False, num_beams=1)
