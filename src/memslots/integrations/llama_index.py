"""LlamaIndex: a retriever over a `MemoryStore`, and an LLM that reads memories.

    retriever = MemoryRetriever(store, index.search)
    llm = MemoryLLM(model=model, store=store)
    llm.about(retriever.retrieve("Who signed?")).complete("Who signed?")

Needs `pip install -e ".[llama-index]"` in a checkout (llama-index-core).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from memslots.extras import install_extra

try:
    from llama_index.core.bridge.pydantic import Field
    from llama_index.core.llms import (
        ChatMessage,
        ChatResponse,
        CompletionResponse,
        CustomLLM,
        LLMMetadata,
        MessageRole,
    )
    from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
    from llama_index.core.retrievers import BaseRetriever
    from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
except ImportError as error:  # pragma: no cover - an environment without the extra
    raise ImportError(
        f"memslots.integrations.llama_index needs llama-index-core ({error}): "
        f"{install_extra('llama-index')}."
    ) from error

from memslots.modeling import Memory, MemslotsModel
from memslots.modeling.layout_memslots import max_positions
from memslots.serving.store import MemoryStore

from .answers import MEMORY_ID, memory_to_read, stored_documents, stream_answer


class MemoryRetriever(BaseRetriever):
    """Nodes of a store whose ids a search finds.

    A node's metadata hold `memory_id`, which `MemoryLLM` reads by, `tokens`, `slots`, `rate` and
    what the store keeps with it. Its text is there where the store has it
    (`compress(keep_text=True)`), else it is empty: the LLM reads the slots.

    Args:
        store: where the memories are.
        search: from a query to ids of the store, the best first; any index will do.
        kwargs: of LlamaIndex's `BaseRetriever`.
    """

    def __init__(self, store: MemoryStore, search: Callable[[str], Sequence[str]], **kwargs: Any):
        super().__init__(**kwargs)
        self._store, self._search = store, search

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return [
            NodeWithScore(node=TextNode(id_=key, text=text, metadata=metadata))
            for key, text, metadata in stored_documents(
                self._store, self._search(query_bundle.query_str)
            )
        ]


class MemoryLLM(CustomLLM):
    """An LLM that reads memories in place of the documents' texts.

    What it reads is named per call (`complete(prompt, memory_ids=[...])`), by `about`, or once for
    all by `memory_ids` or `memory`. Several documents are one context, in order. A prompt is asked
    as `model.generate(question=...)` asks it, and so is a chat of one user message; longer chats
    need a decoder with a chat template.

    Args:
        model: the compressor with its decoder.
        store: where `memory_ids` are looked up.
        memory_ids: of what is read, where a call names nothing else.
        memory: what is read if nothing is named by id.
        rate: a coarser rate than the memories' own.
        max_tokens: longest answer, in decoder tokens.
        generate_kwargs: further arguments of `model.generate`, for instance `{"do_sample": True}`.

    Raises:
        ValueError: when it is asked: nothing to read, unknown ids, or what `generate` refuses.
    """

    model: MemslotsModel = Field(exclude=True)
    store: MemoryStore | None = Field(default=None, exclude=True)
    memory_ids: Sequence[str] = ()
    memory: Memory | None = Field(default=None, exclude=True)
    rate: int | None = None
    max_tokens: int = 256
    generate_kwargs: dict[str, Any] = Field(default_factory=dict)

    def about(self, nodes: Sequence[NodeWithScore]) -> MemoryLLM:
        """The same LLM, reading the memories of nodes of `MemoryRetriever`."""
        return self.model_copy(
            update={"memory_ids": [node.node.metadata[MEMORY_ID] for node in nodes]}
        )

    @property
    def metadata(self) -> LLMMetadata:
        """LlamaIndex's description of the LLM."""
        decoder = self.model.decoder.config
        room = {} if (most := max_positions(decoder)) is None else {"context_window": most}
        name = self.model.config.decoder_name_or_path or decoder.model_type
        return LLMMetadata(
            **room, num_output=self.max_tokens, model_name=f"memslots:{name}", is_chat_model=True
        )

    def _pieces(
        self,
        messages: list[dict[str, Any]],
        memory_ids: Sequence[str] | None = None,
        stop: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> Iterator[str]:
        ids = self.memory_ids if memory_ids is None else memory_ids
        memory = memory_to_read(self.memory, self.store, ids, self.rate)
        settings = {"max_new_tokens": self.max_tokens, **self.generate_kwargs, **kwargs}
        return stream_answer(self.model, memory, messages, stop, **settings)

    @llm_completion_callback()
    def stream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> Iterator[CompletionResponse]:
        """The answer in parts; each has the `text` so far and what is new as `delta`."""
        text = ""
        for delta in self._pieces([{"role": "user", "content": prompt}], **kwargs):
            text += delta
            yield CompletionResponse(text=text, delta=delta)

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """The answer to a prompt."""
        pieces = self._pieces([{"role": "user", "content": prompt}], **kwargs)
        return CompletionResponse(text="".join(pieces))

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> Iterator[ChatResponse]:
        """The next turn in parts; each has the message so far and what is new as `delta`."""
        text = ""
        for delta in self._pieces(_as_dicts(messages), **kwargs):
            text += delta
            yield ChatResponse(message=_said(text), delta=delta)

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """The next turn of a chat."""
        return ChatResponse(message=_said("".join(self._pieces(_as_dicts(messages), **kwargs))))

    async def acomplete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponse:
        """As `complete`, in a thread: `CustomLLM`'s own would hold up the event loop."""
        return await asyncio.to_thread(self.complete, prompt, formatted, **kwargs)

    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """As `chat`, in a thread."""
        return await asyncio.to_thread(self.chat, messages, **kwargs)


def _said(text: str) -> ChatMessage:
    return ChatMessage(role=MessageRole.ASSISTANT, content=text)


def _as_dicts(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    return [{"role": str(m.role.value), "content": m.content or ""} for m in messages]
