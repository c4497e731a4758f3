"""A client of vLLM's OpenAI-compatible server that sends prompts as embeddings.

The server is started with `vllm serve DECODER --enable-prompt-embeds`. It unpickles what it is sent
(weights only), and its documentation says to open that to trusted users alone: keep it behind the
gateway (`memslots serve`), which builds every prompt itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .prompt_embeds import encode_embeds

try:
    import openai
except ImportError as error:  # pragma: no cover - an environment without the extra
    raise ImportError(
        "talking to a vLLM server needs the openai client: pip install openai."
    ) from error

_BUSY = {429, 502, 503}
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
        tokens: Decoder tokens that it took; 0 if the engine has not said yet.
        finish: "stop" or "length" in the last part, else None.
    """

    text: str
    tokens: int = 0
    finish: str | None = None


class _Client(openai.AsyncOpenAI):
    """Repeats what was not begun; the original also repeats what failed, which would fail again."""

    def _should_retry(self, response: Any) -> bool:
        return response.status_code in _BUSY


class VllmClient:
    """Completions of prompt embeddings.

        async with VllmClient("http://localhost:8000") as client:
            pieces = await client.complete(embeds, Sampling().for_vllm(end_tokens(model)))

    Args:
        url: The server's, with or without `/v1`.
        model: The name that it serves the decoder under; by default the only one it has.
        api_key: Of the server.
        timeout: Seconds without a byte after which a request has failed.
        retries: How often a request is repeated that got no connection, no answer in time, 429, 502
            or 503, each time after a longer while.
        batch_size: Prompts of one request.
    """

    def __init__(
        self,
        url: str,
        model: str | None = None,
        api_key: str | None = None,
        timeout: float = 120.0,
        retries: int = 4,
        batch_size: int = 32,
    ):
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"a vLLM server's URL begins with http:// or https://, got {url!r}.")
        if retries < 0 or batch_size < 1 or timeout <= 0:
            raise ValueError(
                "retries must be 0 or more, batch_size 1 or more and timeout above 0, got "
                f"{retries}, {batch_size} and {timeout}."
            )
        self.url = url.rstrip("/").removesuffix("/v1")
        self.batch_size = batch_size
        self._model = model
        self._openai = _Client(
            base_url=f"{self.url}/v1",
            api_key=api_key or "EMPTY",  # what vLLM's documentation gives a server without a key
            timeout=openai.Timeout(timeout, connect=min(timeout, 10.0)),
            max_retries=retries,
        )

    async def __aenter__(self) -> VllmClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._openai.close()

    async def model(self) -> str:
        """The name to ask for.

        Raises:
            ValueError: The server has several, or not the one that was named.
        """
        if self._model is None:
            served = await self.models()
            if len(served) != 1:
                raise ValueError(
                    f"the vLLM server serves {served or 'no model'}; say which one is the decoder."
                )
            self._model = served[0]
        return self._model

    async def models(self) -> list[str]:
        """Names of what the server serves."""
        with self._errors():
            page = await self._openai.models.list()
            return [model.id for model in page.data]

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
        return await self._complete(None, len(embeds), await _fields(embeds, sampling))

    async def complete_ids(
        self, ids: Sequence[list[int]], sampling: Mapping[str, Any]
    ) -> list[Piece]:
        """Answers to prompts of token ids, in order and in one request; raises as `complete`."""
        return await self._complete(list(ids), len(ids), dict(sampling))

    async def _complete(self, prompt: Any, n_prompts: int, fields: dict[str, Any]) -> list[Piece]:
        with self._errors():
            completion = await self._openai.completions.create(
                model=await self.model(), prompt=prompt, extra_body=fields
            )
            choices = sorted(completion.choices, key=lambda choice: choice.index)
            if len(choices) != n_prompts:
                raise EngineError(f"asked for {n_prompts} answers, vLLM gave {len(choices)}.")
            usage = completion.usage
            tokens = usage.completion_tokens if usage is not None and n_prompts == 1 else 0
            return [
                Piece(choice.text, tokens, choice.finish_reason or "stop") for choice in choices
            ]

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
        fields = await _fields([embeds], sampling)
        finish, tokens = None, 0
        with self._errors():
            stream = await self._openai.completions.create(
                model=await self.model(),
                prompt=None,
                extra_body=fields,
                stream=True,
                stream_options={"include_usage": True},
            )
            async with stream:
                async for event in stream:
                    tokens = event.usage.completion_tokens if event.usage else tokens
                    for choice in event.choices or ():
                        finish = choice.finish_reason or finish
                        if choice.text:
                            yield Piece(choice.text)
        if finish is None:
            raise EngineError("the vLLM server's answer broke off before its end.")
        yield Piece("", tokens, finish)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """The client's errors as ours, which say what a gateway should answer."""
        try:
            yield
        except openai.APITimeoutError as error:
            raise EngineError("the vLLM server did not answer in time.", 504) from error
        except openai.APIConnectionError as error:
            raise EngineError(
                f"there is no vLLM server at {self.url}, or its answer broke off "
                f"({error.__cause__!r}); start one with `vllm serve DECODER "
                "--enable-prompt-embeds`.",
                503,
            ) from error
        except openai.APIStatusError as error:
            raise _refusal(error.status_code, _message(error)) from error
        except openai.APIError as error:
            raise EngineError(f"vLLM: {_message(error)}") from error
        except (AttributeError, TypeError, UnicodeError, json.JSONDecodeError) as error:
            raise EngineError(f"{self.url} does not answer as OpenAI's API does.") from error


async def _fields(embeds: Sequence[torch.Tensor], sampling: Mapping[str, Any]) -> dict[str, Any]:
    # Base64 of a long prompt takes milliseconds in which nothing else would be answered.
    encoded = await asyncio.to_thread(lambda: [encode_embeds(prompt) for prompt in embeds])
    return {"prompt_embeds": encoded, **sampling}


def _refusal(status: int, message: str) -> Exception:
    if status in (400, 413, 422):
        return PromptRefused(f"vLLM refused the prompt: {message}")
    if status in (401, 403):
        return EngineError(f"the vLLM server does not accept our API key: {message}")
    return EngineError(
        f"the vLLM server answered {status}: {message}", 503 if status in _BUSY else 502
    )


def _message(error: openai.APIError) -> str:
    """What the server says, wherever a version of vLLM puts it."""
    body = error.body
    return str(body.get("message", body) if isinstance(body, dict) else body or error)[:500]
