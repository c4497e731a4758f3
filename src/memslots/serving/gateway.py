"""An OpenAI-compatible gateway that answers from memories (`memslots serve`).

    app = Gateway(model, VllmEngine(model, VllmClient(url)), ProcessShelf()).app()

`/v1/chat/completions` takes `documents` (texts, compressed on the spot) and `memory_ids` (memories
that `/v1/memories` made, or that are in the store), in that order one context. Everything that a
client sends is read here; the engine behind gets embeddings that were made here.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TypeVar

from jinja2 import TemplateError
from pydantic import BaseModel, ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from memslots import verified
from memslots.modeling import Memory, MemslotsModel
from memslots.modeling.decoders_memslots import DEFAULT_NEW_TOKENS
from memslots.modeling.layout_memslots import max_positions

from .admission import Admission
from .engines import Asked, Engine, expanded_with
from .gateway_http import Endpoint, Reply
from .gateway_metrics import Metrics
from .gateway_requests import ApiError, ChatRequest, MemoryRequest, question_or_messages
from .gateway_settings import GatewaySettings
from .memory_upload import read_memory_file, write_memory_file
from .sampling import Sampling, default_sampling
from .shelf import Shelf, described, memory_id
from .vllm_client import Piece

Form = TypeVar("Form", bound=BaseModel)
Found = TypeVar("Found")


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
        self._settings = settings or GatewaySettings()
        self.admission = Admission(self._settings.running, self._settings.waiting)
        self.metrics = Metrics(
            lambda: self.admission.inside,
            lambda: self.admission.waiting,
            lambda: len(shelf),
            engine.prefixes,
        )
        self._pool = ThreadPoolExecutor(1, "memslots-compress")
        self._created = int(time.time())

    def app(self) -> Starlette:
        """The ASGI application."""
        routes = [
            ("GET", "/health", "health", self._health, True),
            ("GET", "/metrics", "metrics", self._metrics_page, True),
            ("GET", "/v1/models", "models", self._models, False),
            ("POST", "/v1/chat/completions", "chat", self._chat, False),
            ("POST", "/v1/memories", "memories", self._create_memory, False),
            ("GET", "/v1/memories/{one:path}", "memory", self._get_memory, False),
            ("DELETE", "/v1/memories/{one:path}", "memory", self._delete_memory, False),
        ]
        return Starlette(
            routes=[
                Route(
                    path, Endpoint(name, work, self._settings, self.metrics, free), methods=[method]
                )
                for method, path, name, work, free in routes
            ],
            exception_handlers={HTTPException: _no_such_route},
            lifespan=self._lifespan,
        )

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await self._engine.close()
            await asyncio.to_thread(self._pool.shutdown, cancel_futures=True)

    # -- small routes ------------------------------------------------------------------------------

    async def _health(self, request: Request, body: bytes, reply: Reply) -> None:
        await self._engine.check()
        await reply.json({"status": "ok", "engine": self._engine.name})

    async def _metrics_page(self, request: Request, body: bytes, reply: Reply) -> None:
        await reply.bytes(*await asyncio.to_thread(self.metrics.page))

    async def _models(self, request: Request, body: bytes, reply: Reply) -> None:
        config = self._model.config
        one = {
            "id": self._settings.model_name,
            "object": "model",
            "created": self._created,
            "owned_by": "memslots",
            "decoder": config.decoder_name_or_path,
            "compression_rates": list(config.compression_rates),
            "fingerprint": self._model.fingerprint,
        }
        await reply.json({"object": "list", "data": [one]})

    # -- memories ----------------------------------------------------------------------------------

    async def _create_memory(self, request: Request, body: bytes, reply: Reply) -> None:
        wanted = parse(MemoryRequest, body)
        if (wanted.text is None) == (wanted.memory is None):
            raise ApiError(400, "give exactly one of text and memory.", param="text")
        self._check_characters(len(wanted.text or ""))
        async with self.admission.place():
            work = self._with_decoder if wanted.verification else self._in_pool
            memory = await work(self._make_memory, wanted)
            one = wanted.id or memory_id(memory)
            metadata = {"created": int(time.time()), **wanted.metadata}
            with _users_mistake("id"):
                await asyncio.to_thread(self._shelf.put, one, memory, metadata)
            await self._describe(one, reply)

    def _make_memory(self, wanted: MemoryRequest) -> Memory:
        with _users_mistake("text" if wanted.memory is None else "memory"):
            if wanted.text is not None:
                verification = wanted.verification
                if any(value or value == [] for value in verification.values()):
                    verification["slot_dtype"] = self._shelf.slot_dtype
                return verified.compress(
                    self._model,
                    wanted.text,
                    wanted.rate,
                    progress=False,
                    literals=self._literals(wanted.literals),
                    **verification,
                )
            for_texts = [*wanted.verification, *(["literals"] * (wanted.literals is not None))]
            if for_texts:
                raise ValueError(
                    f"{', '.join(for_texts)} is for a text; a memory file is what it was "
                    "compressed to."
                )
            most = self._settings.max_characters
            memory = read_memory_file(self._model, wanted.memory or "", most)
            if len(memory) != 1:
                raise ValueError(
                    f"this file holds {len(memory)} documents; an id is for one, so send them one "
                    "by one (memory[i]), or as one context (memory.join())."
                )
            return memory if wanted.rate is None else memory.at_rate(wanted.rate)

    async def _get_memory(self, request: Request, body: bytes, reply: Reply) -> None:
        one, form = request.path_params["one"], request.query_params.get("format", "json")
        if form == "json":
            await self._describe(one, reply)
        elif form == "report":
            (memory,) = await asyncio.to_thread(self._shelf.get, [one])
            await reply.json({"id": one, **verified.report(memory).to_dict()})
        elif form == "safetensors":
            (memory,) = await asyncio.to_thread(self._shelf.get, [one])
            content = await asyncio.to_thread(write_memory_file, memory)
            await reply.bytes(content, "application/octet-stream")
        else:
            raise ApiError(400, f"format is json, report or safetensors, got {form[:40]!r}.")

    async def _describe(self, one: str, reply: Reply) -> None:
        (memory,) = await asyncio.to_thread(self._shelf.get, [one])
        metadata = await asyncio.to_thread(self._shelf.metadata, one)
        await reply.json(described(one, memory, metadata))

    async def _delete_memory(self, request: Request, body: bytes, reply: Reply) -> None:
        one = request.path_params["one"]
        await asyncio.to_thread(self._shelf.delete, one)
        if self._engine.prefixes is not None:
            self._engine.prefixes.forget(one)
        await reply.json({"id": one, "object": "memory", "deleted": True})

    # -- answers -----------------------------------------------------------------------------------

    async def _chat(self, request: Request, body: bytes, reply: Reply) -> None:
        wanted = parse(ChatRequest, body)
        self._check_chat(wanted)
        async with self.admission.place():
            asked = await self._asked(wanted)
            sampling = self._sampling(wanted, asked)
            started = time.perf_counter()
            answer = _Answer(self._settings.model_name, asked, self._positions(asked))
            async with contextlib.aclosing(self._engine.answer(asked, sampling)) as pieces:  # type: ignore[type-var]
                async for piece in pieces:
                    if piece.text and not answer.text:
                        self.metrics.first_token.observe(time.perf_counter() - started)
                    answer.add(piece)
                    if wanted.stream and (piece.text or piece.finish):
                        for chunk in answer.chunks(piece):
                            await reply.event(chunk)
            self._count(answer)
            if not wanted.stream:
                await reply.json(answer.whole())
                return
            if wanted.stream_options and wanted.stream_options.include_usage:
                await reply.event(answer.usage_chunk())
            await reply.event("[DONE]")
            await reply.end()

    def _check_chat(self, wanted: ChatRequest) -> None:
        limits, name = self._settings, self._settings.model_name
        if wanted.model not in (None, name):
            message = f"there is no model {wanted.model!r} here; this gateway serves {name!r}."
            raise ApiError(404, message, code="model_not_found", param="model")
        given = len(wanted.documents) + len(wanted.memory_ids)
        if not 1 <= given <= limits.max_memories:
            raise ApiError(
                400,
                f"give 1 to {limits.max_memories} documents and memory_ids together, got {given}.",
                param="documents",
            )
        if len(wanted.expand) > limits.max_expand:
            message = f"{len(wanted.expand)} segments are too many; {limits.max_expand} at most."
            raise ApiError(400, message, param="expand")
        self._check_characters(wanted.characters())
        for field in ("max_tokens", "max_completion_tokens"):
            tokens = getattr(wanted, field)
            if tokens is not None and tokens > limits.max_tokens:
                message = f"{field} may be {limits.max_tokens} at most here, got {tokens}."
                raise ApiError(400, message, param=field)

    def _check_characters(self, given: int) -> None:
        most = self._settings.max_characters
        if given > most:
            raise ApiError(
                413,
                f"the texts have {given} characters, and this gateway takes {most} a request; "
                "split them, and store their memories one by one.",
                code="payload_too_large",
            )

    async def _asked(self, wanted: ChatRequest) -> Asked:
        memories: list[Memory] = []
        if wanted.documents:
            memories.append(await self._in_pool(self._compress, wanted))
        if wanted.memory_ids:
            memories += await asyncio.to_thread(self._shelf.get, wanted.memory_ids)
        work = self._with_decoder if wanted.expand else self._in_pool
        return await work(self._check_asked, wanted, memories)

    def _compress(self, wanted: ChatRequest) -> Memory:
        with _users_mistake("documents"):
            return self._model.compress(
                wanted.texts,
                rate=wanted.rate,
                progress=False,
                literals=self._literals(wanted.literals),
            )

    def _literals(self, asked: list[str] | None) -> list[str] | None:
        own = self._settings.literals
        return asked if asked is not None or own is None else list(own)

    def _check_asked(self, wanted: ChatRequest, memories: list[Memory]) -> Asked:
        with _users_mistake("messages"):
            if wanted.rate is not None:
                memories = [memory.at_rate(wanted.rate) for memory in memories]
            rates = sorted({memory.rate for memory in memories})
            if len(rates) > 1 and not any(memory.checks for memory in memories):
                raise ValueError(
                    f"these memories have the rates {rates}; say rate={rates[-1]}, or store them "
                    "at one rate."
                )
            context = Memory.cat(memories).join()
        with _users_mistake("expand"):
            if wanted.expand:
                context = expanded_with(self._model, context, wanted.texts, wanted.expand)
        with _users_mistake("messages"):
            question, messages = question_or_messages(wanted.messages)
            most = wanted.max_completion_tokens or wanted.max_tokens or 1
            ids = () if wanted.documents else tuple(wanted.memory_ids)
            return Asked.about(
                self._model, context, question, messages, most, wanted.chat_template_kwargs, ids
            )

    def _sampling(self, wanted: ChatRequest, asked: Asked) -> Sampling:
        most = wanted.max_completion_tokens or wanted.max_tokens
        if most is None:
            most = min(DEFAULT_NEW_TOKENS, self._settings.max_tokens)
            room = max_positions(self._model.decoder.config)
            if room is not None:
                most = max(1, min(most, room - self._positions(asked)))
        sampling = replace(default_sampling(self._model, most), seed=wanted.seed, stop=wanted.stops)
        for field in ("temperature", "top_p", "top_k"):
            if (value := getattr(wanted, field)) is not None:
                sampling = replace(sampling, **{field: value})
        return sampling

    def _positions(self, asked: Asked) -> int:
        slots = [segment.slots for segment in asked.memory.segments]
        return self._model.processor.row_length(asked.row, slots)

    def _count(self, answer: _Answer) -> None:
        self.metrics.tokens.labels("prompt").inc(answer.positions)
        self.metrics.tokens.labels("answer").inc(answer.tokens)
        self.metrics.tokens.labels("compressed").inc(sum(answer.asked.memory.n_tokens))

    async def _in_pool(self, work: Callable[..., Found], *args: Any) -> Found:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work, *args)

    async def _with_decoder(self, work: Callable[..., Found], *args: Any) -> Found:
        """As `_in_pool`, for what asks the decoder: never while that answers."""
        pool = self._engine.decoder_pool or self._pool
        return await asyncio.get_running_loop().run_in_executor(pool, work, *args)


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
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        unknown = first["type"] == "extra_forbidden"
        said = "this gateway does not know this field" if unknown else first["msg"]
        raise ApiError(400, f"{where or 'body'}: {said}", param=where or None) from None


@contextlib.contextmanager
def _users_mistake(param: str):
    """What the library refuses within is the client's to mend."""
    try:
        yield
    except (ValueError, TypeError, TemplateError) as error:
        if type(error) not in (ValueError, TypeError) and not isinstance(error, TemplateError):
            raise  # it has a meaning of its own
        raise ApiError(400, str(error), param=param) from error


async def _no_such_route(request: Request, error: Exception) -> JSONResponse:
    status = error.status_code if isinstance(error, HTTPException) else 404
    said = f"{request.method} {request.url.path} is not served here."
    return JSONResponse(ApiError(status, said, code="unknown_url").body(), status)
