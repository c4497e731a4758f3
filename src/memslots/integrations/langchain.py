"""LangChain: a retriever over a `MemoryStore`, and a chat model that reads memories.

    retriever = MemoryRetriever(store=store, search=index.search)
    chat = MemoryChat(model=model, store=store)
    chat.about(retriever.invoke("Who signed?")).invoke("Who signed?")

Needs `pip install -e ".[langchain]"` in a checkout (langchain-core 1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from memslots.extras import install_extra

try:
    from langchain_core.callbacks import CallbackManagerForLLMRun, CallbackManagerForRetrieverRun
    from langchain_core.documents import Document
    from langchain_core.language_models import BaseChatModel
    from langchain_core.messages import (
        AIMessage,
        AIMessageChunk,
        BaseMessage,
        convert_to_openai_messages,
    )
    from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
    from langchain_core.retrievers import BaseRetriever
    from pydantic import Field
except ImportError as error:  # pragma: no cover - an environment without the extra
    raise ImportError(
        f"memslots.integrations.langchain needs langchain-core ({error}): "
        f"{install_extra('langchain')}."
    ) from error

from memslots.modeling import Memory, MemslotsModel
from memslots.serving.prefix_cache import prefix_key
from memslots.serving.store import MemoryStore

from .answers import MEMORY_ID, memory_to_read, stored_documents, stream_answer


class MemoryRetriever(BaseRetriever):
    """Documents of a store whose ids a search finds.

    A document's metadata hold `memory_id`, which `MemoryChat` reads by, `tokens`, `slots`, `rate`
    and what the store keeps with it. Its `page_content` is the text where the store has it
    (`compress(keep_text=True)`), else it is empty: the chat model reads the slots.

    Args:
        store: where the memories are.
        search: from a query to ids of the store, the best first; any index will do.
    """

    store: MemoryStore
    search: Callable[[str], Sequence[str]]

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun
    ) -> list[Document]:
        return [
            Document(id=key, page_content=text, metadata=metadata)
            for key, text, metadata in stored_documents(self.store, self.search(query))
        ]


class MemoryChat(BaseChatModel):
    """A chat model that reads memories in place of the documents' texts.

    What it reads is named per call (`invoke(messages, memory_ids=[...])`), by `about`, or once for
    all by `memory_ids` or `memory`. Several documents are one context, in order. One user message
    alone is asked as `model.generate(question=...)` asks it; longer chats need a decoder with a
    chat template. Everything else is LangChain's: `stream`, `ainvoke`, `astream`, `batch`, `stop`.

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

    model: MemslotsModel
    store: MemoryStore | None = None
    memory_ids: Sequence[str] = ()
    memory: Memory | None = None
    rate: int | None = None
    max_tokens: int = 256
    generate_kwargs: dict[str, Any] = Field(default_factory=dict)

    def about(self, documents: Sequence[Document]) -> MemoryChat:
        """The same chat model, reading the memories of documents of `MemoryRetriever`."""
        return self.model_copy(
            update={"memory_ids": [document.metadata[MEMORY_ID] for document in documents]}
        )

    @property
    def _llm_type(self) -> str:
        return "memslots"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        """What an answer depends on beside the messages: LangChain's cache asks."""
        return {
            "fingerprint": self.model.fingerprint,
            "decoder": self.model.config.decoder_name_or_path,
            "memory_ids": list(self.memory_ids),
            "store": None if self.store is None else str(self.store.path.resolve()),
            "memory": None if self.memory is None else prefix_key(self.memory, ())[0],
            "rate": self.rate,
            "max_tokens": self.max_tokens,
            "generate_kwargs": self.generate_kwargs,
        }

    def _pieces(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None,
        memory_ids: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> Iterator[str]:
        ids = self.memory_ids if memory_ids is None else memory_ids
        memory = memory_to_read(self.memory, self.store, ids, self.rate)
        chat = [{key: m[key] for key in ("role", "content")} for m in _as_dicts(messages)]
        settings = {"max_new_tokens": self.max_tokens, **self.generate_kwargs, **kwargs}
        return stream_answer(self.model, memory, chat, stop, **settings)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        text = "".join(self._pieces(messages, stop, **kwargs))
        return ChatResult(generations=[ChatGeneration(message=AIMessage(text))])

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        for delta in self._pieces(messages, stop, **kwargs):
            chunk = ChatGenerationChunk(message=AIMessageChunk(content=delta))
            if run_manager is not None:
                run_manager.on_llm_new_token(delta, chunk=chunk)
            yield chunk


def _as_dicts(messages: list[BaseMessage]) -> list[dict[str, Any]]:
    converted = convert_to_openai_messages(messages)
    return converted if isinstance(converted, list) else [converted]
