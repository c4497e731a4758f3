"""A real HTTP server on loopback around an ASGI application, and a stand-in for vLLM's."""

import asyncio
import base64
import contextlib
import io
import json
import threading
import time
from collections.abc import Iterator

import torch
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route


@contextlib.contextmanager
def served(app) -> Iterator[str]:
    """The URL of `app` while it runs in a thread of its own."""
    # Its own log_config closes all handlers, and absl's closes the stream that pytest captures.
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_config=None)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        assert time.monotonic() < deadline, "the server did not start"
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(20)


class StandIn:
    """Answers `/v1/completions` with prompt embeddings as vLLM does, by a decoder's `generate`.

    Args:
        model: whose decoder it holds.
        failures: statuses of the first answers, before it works.
        cut: break streams off in the middle.
    """

    def __init__(self, model, failures=(), cut=False, api_key=None, pause=0.0):
        self.model, self.failures, self.cut = model, list(failures), cut
        self.api_key, self.pause = api_key, pause
        self.requests: list[dict] = []
        self.streamed = 0

    def app(self) -> Starlette:
        async def models(request: Request):
            return JSONResponse({"object": "list", "data": [{"id": "decoder"}]})

        routes = [
            Route("/v1/models", models),
            Route("/v1/completions", self.complete, methods=["POST"]),
        ]
        return Starlette(routes=routes)

    async def complete(self, request: Request):
        if self.api_key and request.headers.get("authorization") != f"Bearer {self.api_key}":
            return JSONResponse({"error": {"message": "Unauthorized"}}, 401)
        if self.failures:
            return JSONResponse({"error": {"message": "not now"}}, self.failures.pop(0))
        wanted = await request.json()
        self.requests.append({k: v for k, v in wanted.items() if k != "prompt_embeds"})
        if wanted.get("prompt") is not None:
            table = self.model.decoder.get_input_embeddings()
            prompts = [table(torch.tensor(ids)) for ids in wanted["prompt"]]
        else:
            encoded = map(base64.b64decode, wanted["prompt_embeds"])
            prompts = [torch.load(io.BytesIO(one), weights_only=True) for one in encoded]
        if prompts[0].shape[1] != self.model.decoder.config.hidden_size:
            return JSONResponse({"error": {"message": "wrong hidden size"}}, 400)
        answers = [self.generate(one, wanted) for one in prompts]
        if not wanted.get("stream"):
            choices = [
                {"index": i, "text": text, "finish_reason": "stop"}
                for i, (text, _) in reversed(list(enumerate(answers)))
            ]
            usage = {"completion_tokens": sum(tokens for _, tokens in answers)}
            return JSONResponse({"object": "text_completion", "choices": choices, "usage": usage})
        return StreamingResponse(self.stream(*answers[0]), media_type="text/event-stream")

    async def stream(self, text: str, tokens: int):
        for i, letter in enumerate(text):
            if self.cut and i == len(text) // 2:
                return
            await asyncio.sleep(self.pause)
            self.streamed += 1
            yield self.event(choices=[{"index": 0, "text": letter, "finish_reason": None}])
        yield self.event(choices=[{"index": 0, "text": "", "finish_reason": "length"}])
        yield self.event(choices=[], usage={"completion_tokens": tokens})
        yield "data: [DONE]\n\n"

    @staticmethod
    def event(**found) -> str:
        return f"data: {json.dumps(found)}\n\n"

    def generate(self, embeds: torch.Tensor, wanted: dict) -> tuple[str, int]:
        embeds = embeds.unsqueeze(0)
        ids = self.model.decoder.generate(
            inputs_embeds=embeds,
            attention_mask=torch.ones(embeds.shape[:2], dtype=torch.long),
            max_new_tokens=wanted["max_tokens"],
            do_sample=False,
            eos_token_id=wanted["stop_token_ids"],
            pad_token_id=0,
        )[0]
        text = self.model.processor.tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text, len(ids)
