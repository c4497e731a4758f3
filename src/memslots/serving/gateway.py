"""An OpenAI-compatible gateway that answers from memories (`memslots serve`).

    app = Gateway(model, VllmEngine(model, VllmClient(url)), ProcessShelf()).app()

`/v1/chat/completions` takes `documents` (texts, compressed on the spot) and `memory_ids` (memories
that `/v1/memories` made, or that are in the store), in that order one context. Without either it is
a plain chat with the decoder. Everything that a client sends is read here; the engine behind gets
embeddings that were made here.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from memslots import verified
from memslots.interruption import looking
from memslots.modeling import Memory, MemslotsModel
from memslots.modeling.decoders_memslots import DEFAULT_NEW_TOKENS
from memslots.modeling.layout_memslots import max_positions
from memslots.modeling.texts_memslots import Detector, check_detectors

from .admission import Admission
from .decoder_probe import decoder_name
from .engines import Asked, Engine, expanded_with
from .gateway_http import Endpoint, Reply
from .gateway_metrics import Metrics
from .gateway_requests import ApiError, ChatRequest, MemoryRequest, mistake, question_or_messages
from .gateway_settings import GatewaySettings
from .memory_upload import read_memory_file, write_memory_file
from .sampling import Sampling, default_sampling
from .shelf import CREATED, Shelf, derived_id, described
from .stopping import Worker, watch
from .store_format import check_ids, encode_metadata
from .uncompressed import LaidOut, joined, no_context, without_slots
from .vllm_client import Piece

Form = TypeVar("Form", bound=BaseModel)


class Gateway:
    """Answers requests from memories.

    Args:
        model: The compressor. With a vLLM engine, of its decoder only the input embeddings and the
            configuration are used.
        engine: What generates.
        shelf: Where memories are kept.
        settings: Limits and keys.
    """

    def __init__(
        self,
        model: MemslotsModel,
        engine: Engine,
        shelf: Shelf,
        settings: GatewaySettings | None = None,
    ):
        self._model, self._engine, self._shelf = model, engine, shelf
        self.settings = self._settings = settings or GatewaySettings()
        limits = self._settings
        self.admission = Admission(
            limits.running, limits.waiting, limits.max_body_bytes, 4 * limits.max_body_bytes
        )
        self.metrics = Metrics(
            lambda: self.admission.inside,
            lambda: self.admission.waiting,
            lambda: len(shelf),
            engine.prefixes,
        )
        watch(model)
        self._compressing = Worker("memslots-compress")
        self._files = Worker("memslots-files", 8)
        self._created = int(time.time())

    def app(self) -> Starlette:
        """The ASGI application."""
        inside = self.admission
        routes = [
            ("GET", "/health", "health", self._health, None, True),
            ("GET", "/metrics", "metrics", self._metrics_page, None, True),
            ("GET", "/v1/models", "models", self._models, None, False),
            ("GET", "/v1/models/{id:path}", "model", self._get_model, None, False),
            ("POST", "/v1/chat/completions", "chat", self._chat, inside, False),
            ("POST", "/v1/memories", "memories", self._create_memory, inside, False),
            ("GET", "/v1/memories/{id:path}", "memory", self._get_memory, None, False),
            ("DELETE", "/v1/memories/{id:path}", "memory", self._delete_memory, None, False),
        ]
        app = Starlette(
            routes=[
                Route(
                    path,
                    Endpoint(name, work, self._settings, self.metrics, admission, open_to_all),
                    methods=[method],
                )
                for method, path, name, work, admission, open_to_all in routes
            ],
            exception_handlers={HTTPException: _no_such_route},
            lifespan=self._lifespan,
        )
        app.router.redirect_slashes = False  # a redirect would name any host that a client named
        return app

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        try:
            yield
        finally:
            seconds = self._settings.shutdown
            workers = (self._compressing.close(seconds), self._files.close(seconds))
            await asyncio.gather(self._engine.close(seconds), *workers)

    # -- small routes ------------------------------------------------------------------------------

    async def _health(self, request: Request, body: bytes, reply: Reply) -> None:
        await self._engine.check()
        await reply.json({"status": "ok", "engine": self._engine.name})

    async def _metrics_page(self, request: Request, body: bytes, reply: Reply) -> None:
        await reply.bytes(*await asyncio.to_thread(self.metrics.page))

    async def _models(self, request: Request, body: bytes, reply: Reply) -> None:
        await reply.json({"object": "list", "data": [self._served()]})

    async def _get_model(self, request: Request, body: bytes, reply: Reply) -> None:
        self._check_name(request.path_params["id"])
        await reply.json(self._served())

    def _served(self) -> dict[str, Any]:
        config = self._model.config
        return {
            "id": self._settings.model_name,
            "object": "model",
            "created": self._created,
            "owned_by": "memslots",
            "decoder": decoder_name(self._model),
            "compression_rates": list(config.compression_rates),
            "fingerprint": self._model.fingerprint,
        }

    # -- memories ----------------------------------------------------------------------------------

    async def _create_memory(self, request: Request, body: bytes, reply: Reply) -> None:
        asked = parse(MemoryRequest, body)
        if (asked.text is None) == (asked.memory is None):
            raise ApiError(400, "give exactly one of text and memory.", param="text")
        self._check_characters(len(asked.text or ""))
        with _users_mistake("id"):  # before anything is compressed
            check_ids(asked.id or [], new=True)
        with _users_mistake("metadata"):
            encode_metadata(asked.metadata)
        async with self.admission.turn:
            worker = self._decoding if asked.verification else self._compressing
            memory = await worker.run(self._make_memory, asked)
            key = asked.id or derived_id(memory)
            metadata = {**asked.metadata, CREATED: int(time.time())}
            with _users_mistake("id"):
                await self._files.run(self._shelf.put, key, memory, metadata)
            await self._describe(key, reply)

    def _make_memory(self, asked: MemoryRequest) -> Memory:
        with _users_mistake("text" if asked.memory is None else "memory"):
            if asked.text is not None:
                verification = asked.verification
                if any(value or value == [] for value in verification.values()):
                    verification["slot_dtype"] = self._shelf.slot_dtype
                return verified.compress(
                    self._model,
                    asked.text,
                    asked.rate,
                    progress=False,
                    literals=self._literals(asked.literals),
                    **verification,
                )
            for_texts = [*asked.verification, *(["literals"] * (asked.literals is not None))]
            if for_texts:
                raise ValueError(
                    f"{', '.join(for_texts)} is for a text; a memory file is compressed already."
                )
            most = self._settings.max_characters
            memory = read_memory_file(self._model, asked.memory or "", most)
            if len(memory) != 1:
                raise ValueError(
                    f"this file holds {len(memory)} documents, and an id names one; send them one "
                    "by one (memory[i]), or as one context (memory.join())."
                )
            return memory if asked.rate is None else memory.at_rate(asked.rate)

    async def _get_memory(self, request: Request, body: bytes, reply: Reply) -> None:
        key, form = request.path_params["id"], request.query_params.get("format", "json")
        if form == "json":
            await self._describe(key, reply)
        elif form == "report":
            (memory,) = await self._files.run(self._shelf.get, [key])
            await reply.json({"id": key, **verified.report(memory).to_dict()})
        elif form == "safetensors":
            (memory,) = await self._files.run(self._shelf.get, [key])
            content = await self._files.run(write_memory_file, memory)
            await reply.bytes(content, "application/octet-stream")
        else:
            raise ApiError(400, f"format is json, report or safetensors, got {form[:40]!r}.")

    async def _describe(self, key: str, reply: Reply) -> None:
        (memory,) = await self._files.run(self._shelf.get, [key])
        metadata = await self._files.run(self._shelf.metadata, key)
        await reply.json(described(key, memory, metadata))

    async def _delete_memory(self, request: Request, body: bytes, reply: Reply) -> None:
        key = request.path_params["id"]
        await self._files.run(self._shelf.delete, key)
        if self._engine.prefixes is not None:
            self._engine.prefixes.forget(key)
        await reply.json({"id": key, "object": "memory", "deleted": True})

    # -- answers -----------------------------------------------------------------------------------

    async def _chat(self, request: Request, body: bytes, reply: Reply) -> None:
        chat = parse(ChatRequest, body)
        self._check_chat(chat)
        async with self.admission.turn:
            asked = await self._asked(chat)
            sampling = self._sampling(chat, asked)
            started = time.perf_counter()
            answer = _Answer(self._settings.model_name, asked, self._positions(asked))
            async with contextlib.aclosing(self._engine.answer(asked, sampling)) as pieces:  # type: ignore[type-var]
                async for piece in pieces:
                    if piece.text and not answer.text:
                        self.metrics.first_token.observe(time.perf_counter() - started)
                    answer.add(piece)
                    if chat.stream and (piece.text or piece.finish):
                        for chunk in answer.chunks(piece):
                            await reply.event(chunk)
            self._count(answer)
            if not chat.stream:
                await reply.json(answer.whole())
                return
            if chat.stream_options and chat.stream_options.include_usage:
                await reply.event(answer.usage_chunk())
            await reply.event("[DONE]")
            await reply.end()

    def _check_name(self, model: str) -> None:
        name = self._settings.model_name
        if model != name:
            message = f"there is no model {model[:80]!r} here; this gateway serves {name!r}."
            raise ApiError(404, message, code="model_not_found", param="model")

    def _check_chat(self, chat: ChatRequest) -> None:
        limits = self._settings
        if chat.model is not None:
            self._check_name(chat.model)
        asked = len(chat.documents) + len(chat.memory_ids)
        if asked > limits.max_memories:
            raise ApiError(
                400,
                f"give at most {limits.max_memories} documents and memory_ids together, got "
                f"{asked}.",
                param="documents",
            )
        about_context = [name for name in ("rate", "literals", "expand") if getattr(chat, name)]
        if about_context and not asked:
            message = f"{about_context[0]} is about a context; give documents or memory_ids too."
            raise ApiError(400, message, param=about_context[0])
        if len(chat.expand) > limits.max_expand:
            message = f"{len(chat.expand)} segments are too many; {limits.max_expand} at most."
            raise ApiError(400, message, param="expand")
        self._check_characters(chat.characters())
        for field in ("max_tokens", "max_completion_tokens"):
            tokens = getattr(chat, field)
            if tokens is not None and tokens > limits.max_tokens:
                message = f"{field} may be {limits.max_tokens} at most here, got {tokens}."
                raise ApiError(400, message, param=field)

    def _check_characters(self, characters: int) -> None:
        most = self._settings.max_characters
        if characters > most:
            raise ApiError(
                413,
                f"the texts have {characters} characters, and this gateway takes {most} a request; "
                "split them, and store their memories one by one.",
                code="payload_too_large",
            )

    async def _asked(self, chat: ChatRequest) -> Asked:
        """The checked question, about a context whose room is known before it is compressed."""
        stored: list[Memory] = []
        if chat.memory_ids:
            stored = await self._files.run(self._shelf.get, chat.memory_ids)
        texts = None
        if chat.documents:
            texts = await self._compressing.run(self._lay_out, chat)
            await self._compressing.run(self._check_room, chat, texts, stored)
            stored = [await self._compressing.run(texts.compress), *stored]
        worker = self._decoding if chat.expand else self._compressing
        return await worker.run(self._check_asked, chat, stored)

    def _lay_out(self, chat: ChatRequest) -> LaidOut:
        with _users_mistake("documents"):
            return LaidOut(self._model, chat.texts, chat.rate, self._literals(chat.literals))

    def _literals(self, asked: list[str] | None) -> list[Detector] | None:
        names = next(
            (stated for stated in (asked, self._settings.literals) if stated is not None),
            self._model.processor.literals,
        )
        return looking(check_detectors(names, names_only=True))

    def _check_room(self, chat: ChatRequest, texts: LaidOut, stored: list[Memory]) -> None:
        context = self._context(chat, [texts.memory, *map(without_slots, stored)])
        with _users_mistake("expand"):
            context = expanded_with(context, chat.texts, chat.expand)
        self._about(chat, context)

    def _check_asked(self, chat: ChatRequest, memories: list[Memory]) -> Asked:
        context = self._context(chat, memories)
        with _users_mistake("expand"):
            context = expanded_with(context, chat.texts, chat.expand, self._model)
        return self._about(chat, context)

    def _context(self, chat: ChatRequest, memories: list[Memory]) -> Memory:
        if not memories:
            return no_context(self._model)
        with _users_mistake("messages"):
            return joined(memories, chat.rate).join()

    def _about(self, chat: ChatRequest, context: Memory) -> Asked:
        with _users_mistake("messages"):
            question, messages = question_or_messages(chat.messages)
            if not self._model.processor.tokenizer.chat_template:
                if messages is not None:
                    raise ValueError(
                        "the decoder here has no chat template, so it takes one message, of the "
                        "role user and of text alone; say in it all that it is to know."
                    )
            elif not context.segments:
                question, messages = None, chat.messages  # the decoder's own prompt, not ours
            most = chat.max_completion_tokens or chat.max_tokens or 1
            ids = () if chat.documents else tuple(chat.memory_ids)
            return Asked.about(
                self._model, context, question, messages, most, chat.chat_template_kwargs, ids
            )

    def _sampling(self, chat: ChatRequest, asked: Asked) -> Sampling:
        most = chat.max_completion_tokens or chat.max_tokens
        if most is None:
            most = min(DEFAULT_NEW_TOKENS, self._settings.max_tokens)
            room = max_positions(self._model.decoder.config)
            if room is not None:
                most = max(1, min(most, room - self._positions(asked)))
        sampling = default_sampling(self._model, most, asked.question is not None)
        sampling = replace(sampling, seed=chat.seed, stop=(*chat.stops, *sampling.stop))
        for field in ("temperature", "top_p", "top_k"):
            if (value := getattr(chat, field)) is not None:
                sampling = replace(sampling, **{field: value})
        return sampling

    def _positions(self, asked: Asked) -> int:
        slots = [segment.slots for segment in asked.memory.segments]
        return self._model.processor.row_length(asked.row, slots)

    def _count(self, answer: _Answer) -> None:
        self.metrics.tokens.labels("prompt").inc(answer.positions)
        self.metrics.tokens.labels("answer").inc(answer.tokens)
        self.metrics.tokens.labels("compressed").inc(sum(answer.asked.memory.n_tokens))

    @property
    def _decoding(self) -> Worker:
        """For what asks the compressor's own decoder: never while that answers."""
        return self._engine.decoder_worker or self._compressing


class _Answer:
    """One answer in OpenAI's shapes.

    Args:
        model_name: Of the settings.
        asked: The question.
        positions: Of the prompt.
    """

    def __init__(self, model_name: str, asked: Asked, positions: int):
        self.asked, self.positions = asked, positions
        self.text, self.tokens = "", 0
        self._finish: str | None = None
        self._begun = False
        self._head = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": model_name,
        }

    def add(self, piece: Piece) -> None:
        """Take the next part."""
        self.text += piece.text
        self.tokens += piece.tokens
        self._finish = piece.finish or self._finish

    def whole(self) -> dict[str, Any]:
        """A `chat.completion`."""
        message = {"role": "assistant", "content": self.text}
        choice = {"index": 0, "message": message, "finish_reason": self._finish, "logprobs": None}
        return {
            **self._head,
            "object": "chat.completion",
            "choices": [choice],
            "usage": self._usage(),
        }

    def chunks(self, piece: Piece) -> list[dict[str, Any]]:
        """The `chat.completion.chunk`s of a part."""
        parts: list[tuple[dict[str, str], str | None]] = []
        if not self._begun:
            self._begun = True
            parts.append(({"role": "assistant", "content": ""}, None))
        if piece.text:
            parts.append(({"content": piece.text}, None))
        if piece.finish:
            parts.append(({}, piece.finish))
        return [
            self._chunk([{"index": 0, "delta": delta, "finish_reason": end, "logprobs": None}])
            for delta, end in parts
        ]

    def usage_chunk(self) -> dict[str, Any]:
        """The last chunk where `include_usage` was asked for."""
        return {**self._chunk([]), "usage": self._usage()}

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {**self._head, "object": "chat.completion.chunk", "choices": choices}

    def _usage(self) -> dict[str, Any]:
        memory = self.asked.memory
        return {
            "prompt_tokens": self.positions,
            "completion_tokens": self.tokens,
            "total_tokens": self.positions + self.tokens,
            "memslots": {
                "rate": memory.rate,
                "slots": sum(memory.n_slots),
                "compressed_tokens": sum(memory.n_tokens),
                "unknown_tokens": sum(memory.unknown_tokens),
            },
        }


def parse(form: type[Form], body: bytes) -> Form:
    """A request's body.

    Raises:
        ApiError: 400, no JSON or another shape.
    """
    try:
        return form.model_validate_json(body)
    except ValidationError as error:
        raise mistake(error) from None


@contextlib.contextmanager
def _users_mistake(param: str):
    """What the library refuses within is the client's to mend."""
    try:
        yield
    except (ValueError, TypeError) as error:
        if type(error) not in (ValueError, TypeError):
            raise  # it has a meaning of its own
        raise ApiError(400, str(error), param=param) from error


async def _no_such_route(request: Request, error: Exception) -> JSONResponse:
    status = error.status_code if isinstance(error, HTTPException) else 404
    headers = getattr(error, "headers", None)  # a 405's say what is allowed
    said = f"{request.method} {request.url.path} is not served here."
    return JSONResponse(ApiError(status, said, code="unknown_url").body(), status, headers)
