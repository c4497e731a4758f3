"""A client of vLLM's OpenAI-compatible server that sends prompts as embeddings.

The server is started with `vllm serve DECODER --enable-prompt-embeds`. It unpickles what it is sent
(weights only), and its documentation says to open that to trusted users alone: keep it behind the
gateway (`memslots serve`), which builds every prompt itself.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch

from .prompt_embeds import encode_embeds

try:
    import httpx
except ImportError as error:  # pragma: no cover - an environment without the extra
    raise ImportError(
        "talking to a vLLM server needs httpx: pip install 'memslots[serve]'."
    ) from error

if TYPE_CHECKING:
    from collections.abc import Mapping

_AGAIN = {429, 502, 503}
"""Answers that say nothing was done, and that asking later may help."""


class EngineError(RuntimeError):
    """The engine failed; `status` is what a gateway in front of it should answer.

    Args:
        message: What happened and what to do.
        status: 502 a wrong answer, 503 not there or overloaded, 504 too slow.
    """

    def __init__(self, message: str, status: int = 502):
        super().__init__(message)
        self.status = status


class PromptRefused(ValueError):
    """The engine will not answer this prompt, whoever sends it how often."""


@dataclass(frozen=True)
class Piece:
    """Part of an answer.

    Args:
        text: What it adds.
        tokens: Decoder tokens that it took; 0 where the engine has not said yet.
        finish: "stop" or "length" in the last part, else None.
    """

    text: str
    tokens: int = 0
    finish: str | None = None


class VllmClient:
    """Completions of prompt embeddings.

    Args:
        url: The server's, with or without `/v1`.
        model: The name that it serves the decoder under; by default the only one it has.
        api_key: Of the server.
        timeout: Seconds without a byte after which a request has failed.
        retries: How often a request is repeated that was not begun: no connection, 429, 502, 503.
        batch_size: Prompts of one request.
        backoff: Seconds before the first repetition; doubled for each further one.
        transport: Of httpx, for tests.
    """

    def __init__(
        self,
        url: str,
        model: str | None = None,
        api_key: str | None = None,
        timeout: float = 120.0,
        retries: int = 4,
        batch_size: int = 32,
        backoff: float = 0.5,
        transport: httpx.AsyncBaseTransport | None = None,
    ):
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"a vLLM server's URL begins with http:// or https://, got {url!r}.")
        if retries < 0 or batch_size < 1 or timeout <= 0:
            raise ValueError(
                "retries must be 0 or more, batch_size 1 or more and timeout above 0, got "
                f"{retries}, {batch_size} and {timeout}."
            )
        self.url = url.rstrip("/").removesuffix("/v1")
        self.retries, self.batch_size, self.backoff = retries, batch_size, backoff
        self._model = model
        self._http = httpx.AsyncClient(
            base_url=self.url,
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=httpx.Timeout(timeout, connect=min(timeout, 10.0)),
            limits=httpx.Limits(max_connections=None),  # the gateway bounds them
            transport=transport,
        )

    async def __aenter__(self) -> VllmClient:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def model(self) -> str:
        """The name to ask for.

        Raises:
            ValueError: The server has several, or not the one that was named.
        """
        if self._model is None:
            served = [str(one.get("id")) for one in await self.models()]
            if len(served) != 1:
                raise ValueError(
                    f"the vLLM server serves {served or 'no model'}; say which one is the decoder."
                )
            self._model = served[0]
        return self._model

    async def models(self) -> list[dict[str, Any]]:
        """What `/v1/models` lists."""
        response = await self._send("GET", "/v1/models")
        found = _json(response).get("data")
        if not isinstance(found, list):
            raise EngineError(f"{self.url}/v1/models does not answer as OpenAI's API does.")
        return found

    async def complete(
        self, embeds: Sequence[torch.Tensor], sampling: Mapping[str, Any]
    ) -> list[Piece]:
        """Answers to prompts, in order.

        Args:
            embeds: Each `(positions, d_decoder)`.
            sampling: Of `Sampling.for_vllm`.

        Raises:
            PromptRefused: A prompt that the server does not take.
            EngineError: No answer.
        """
        starts = range(0, len(embeds), self.batch_size)
        batches = [embeds[start : start + self.batch_size] for start in starts]
        answers = await asyncio.gather(*(self._batch(batch, sampling) for batch in batches))
        return [piece for batch in answers for piece in batch]

    async def _batch(self, embeds: Sequence[torch.Tensor], sampling) -> list[Piece]:
        body = await self._body(embeds, sampling)
        return _answers(_json(await self._send("POST", "/v1/completions", body)), len(embeds))

    async def complete_ids(
        self, ids: Sequence[list[int]], sampling: Mapping[str, Any]
    ) -> list[Piece]:
        """Answers to prompts of token ids, in order and in one request; raises as `complete`.

        Args:
            ids: Of each prompt.
            sampling: Of `Sampling.for_vllm`.
        """
        body = {"model": await self.model(), "prompt": list(ids), **sampling}
        return _answers(_json(await self._send("POST", "/v1/completions", body)), len(ids))

    async def stream(
        self, embeds: torch.Tensor, sampling: Mapping[str, Any]
    ) -> AsyncIterator[Piece]:
        """The answer to one prompt, in parts; leaving the iterator aborts it on the server.

        Args:
            embeds: `(positions, d_decoder)`.
            sampling: Of `Sampling.for_vllm`.

        Raises:
            PromptRefused: A prompt that the server does not take.
            EngineError: No answer, or one that broke off.
        """
        body = await self._body([embeds], sampling)
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        response = await self._send("POST", "/v1/completions", body, stream=True)
        finish, tokens = None, 0
        try:
            async for event in _events(response):
                if "error" in event:
                    raise EngineError(f"vLLM: {_message(event)}")
                tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
                for choice in event.get("choices", ()):
                    finish = choice.get("finish_reason") or finish
                    if choice.get("text"):
                        yield Piece(choice["text"])
        except httpx.TimeoutException as error:
            raise EngineError("the vLLM server stopped answering midway.", 504) from error
        except httpx.HTTPError as error:
            raise EngineError(f"the vLLM server's answer broke off ({error!r}).") from error
        finally:
            await response.aclose()
        if finish is None:
            raise EngineError("the vLLM server's answer broke off before its end.")
        yield Piece("", tokens, finish)

    async def _body(self, embeds: Sequence[torch.Tensor], sampling) -> dict[str, Any]:
        # Base64 of a long prompt takes milliseconds in which nothing else would be answered.
        encoded = await asyncio.to_thread(lambda: [encode_embeds(one) for one in embeds])
        # vLLM wants a prompt field beside the embeddings in some versions, and no text in it.
        return {"model": await self.model(), "prompt_embeds": encoded, **sampling}

    async def _send(
        self, method: str, path: str, body: dict[str, Any] | None = None, stream: bool = False
    ) -> httpx.Response:
        """One request, repeated while it was not begun; a response with status 200."""
        for attempt in range(self.retries + 1):
            last = attempt == self.retries
            request = self._http.build_request(method, path, json=body)
            try:
                response = await self._http.send(request, stream=stream)
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                if last:
                    raise EngineError(
                        f"there is no vLLM server at {self.url} ({error}); start one with `vllm "
                        "serve DECODER --enable-prompt-embeds`.",
                        503,
                    ) from error
            except httpx.TimeoutException as error:
                raise EngineError("the vLLM server did not answer in time.", 504) from error
            except httpx.HTTPError as error:
                raise EngineError(f"the vLLM server's answer broke off ({error!r}).") from error
            else:
                if response.status_code == 200:
                    return response
                try:
                    await response.aread()
                finally:
                    await response.aclose()
                if last or response.status_code not in _AGAIN:
                    raise self._refusal(response)
            # With a random part, so that clients refused together do not come back together.
            await asyncio.sleep(self.backoff * 2**attempt * random.uniform(0.5, 1.5))
        raise AssertionError("unreachable: the last round returns or raises")

    def _refusal(self, response: httpx.Response) -> Exception:
        try:
            said = _message(response.json())
        except ValueError:
            said = response.text[:200]
        status = response.status_code
        if status in (400, 413, 422):
            return PromptRefused(f"vLLM refused the prompt: {said}")
        if status in (401, 403):
            return EngineError(f"the vLLM server does not accept our API key: {said}")
        busy = status in _AGAIN
        return EngineError(f"the vLLM server answered {status}: {said}", 503 if busy else 502)


def _answers(found: dict[str, Any], asked: int) -> list[Piece]:
    choices = sorted(found.get("choices", ()), key=lambda choice: choice["index"])
    if len(choices) != asked:
        raise EngineError(f"asked for {asked} answers, vLLM gave {len(choices)}.")
    counted = found.get("usage", {}).get("completion_tokens", 0) if asked == 1 else 0
    return [Piece(choice["text"], counted, choice["finish_reason"] or "stop") for choice in choices]


def _json(response: httpx.Response) -> dict[str, Any]:
    try:
        found = response.json()
    except ValueError as error:
        raise EngineError(f"the vLLM server sent no JSON: {response.text[:200]!r}.") from error
    if not isinstance(found, dict):
        raise EngineError(f"the vLLM server sent {type(found).__name__}, not an object.")
    return found


def _message(found: Any) -> str:
    """What an OpenAI-style error says, wherever a version of vLLM puts it."""
    error = found.get("error", found) if isinstance(found, dict) else found
    return str(error.get("message", error) if isinstance(error, dict) else error)[:500]


async def _events(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    async for line in response.aiter_lines():
        data = line.removeprefix("data:").strip()
        if not line.startswith("data:") or data == "[DONE]":
            continue
        try:
            yield json.loads(data)
        except json.JSONDecodeError as error:
            raise EngineError(f"the vLLM server sent no JSON: {data[:200]!r}.") from error
