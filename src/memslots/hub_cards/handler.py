"""Answers the requests of a Hugging Face Inference Endpoint; copied into checkpoints as it is.

The endpoint imports this file from the repository's folder, beside the checkpoint's own code, so it
needs torch and transformers alone. A request is JSON::

    {"inputs": {"question": "Who signed?", "context": "..."}, "parameters": {"rate": 16}}
    {"inputs": [{"question": "...", "context": "..."}, {"question": "...", "memory": "<base64>"}]}

`question` and `context` may be lists. `memory` is the file that `memory.save(path)` wrote, in
base64. The answer is `{"answer", "n_tokens", "n_slots", "rate"}` or a list of them, and for a
request that cannot be answered `{"error": {"type", "message"}}`.
"""

from __future__ import annotations

import base64
import binascii
import logging
import os
import sys
import tempfile
from typing import Any

import torch
from transformers import pipeline

try:
    from memslots.sent_memories import load_sent_memory
except ImportError:  # where memslots is not installed, the file lies beside this one
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    from sent_memories import load_sent_memory  # type: ignore[import-not-found, no-redef]

logger = logging.getLogger(__name__)

MAX_QUESTIONS = 256
MAX_CHARACTERS = 4_000_000
"""Of all questions and contexts of a request together, and of the texts of each memory."""
MAX_MEMORY_BYTES = 64 * 2**20
"""Of all memories of a request together, decoded."""

PARAMETERS: dict[str, tuple[type | tuple[type, ...], float, float]] = {
    "rate": (int, 1, 100_000),
    "batch_size": (int, 1, 256),
    "max_new_tokens": (int, 1, 2048),
    "min_new_tokens": (int, 0, 2048),
    "num_beams": (int, 1, 16),
    "num_return_sequences": (int, 1, 16),
    "do_sample": (bool, 0, 1),
    "temperature": ((int, float), 0.01, 100.0),
    "top_k": (int, 0, 1_000_000),
    "top_p": ((int, float), 0.0, 1.0),
    "repetition_penalty": ((int, float), 0.01, 100.0),
    "no_repeat_ngram_size": (int, 0, 100),
    "length_penalty": ((int, float), -100.0, 100.0),
}
"""Type, least and most of each parameter that a request may set; all others are refused."""

_KEYS = {"question", "context", "memory"}


class BadRequest(ValueError):
    """A request that its sender can mend."""


class EndpointHandler:
    """What Inference Endpoints makes once, and calls for each request.

    Args:
        path: the repository's folder.
    """

    def __init__(self, path: str = ""):
        # Without an accelerator bfloat16 can be some hundred times slower than float32.
        dtype = "auto" if torch.accelerator.is_available() else torch.float32
        self.pipe = pipeline(
            "memory-question-answering", model=path, trust_remote_code=True, dtype=dtype
        )

    def __call__(self, data: Any) -> Any:
        """Answer one request; nothing is raised.

        Args:
            data: the request's JSON.
        """
        try:
            items, single = read_request(data)
            parameters = read_parameters(data.get("parameters"))
            answers = self.pipe(self._with_memories(items), **parameters)
            return answers[0] if single and len(answers) == 1 else answers
        except (ValueError, TypeError) as error:
            return _error("invalid_request", str(error))
        except torch.OutOfMemoryError:
            logger.exception("out of memory")
            return _error("too_large", "not enough memory; send fewer or shorter texts.")
        except Exception:
            # The traceback is for the endpoint's log, not for whoever sent the request.
            logger.exception("a request failed")
            return _error("internal_error", "this request failed; see the endpoint's log.")

    def _with_memories(self, items: list[dict[str, Any]]) -> list[dict[str, Any]]:
        left = MAX_MEMORY_BYTES
        decoded = []
        for item in items:
            if item.get("memory") is not None:
                content = _decode(item["memory"], left)
                left -= len(content)
                item = {**item, "memory": self._load(content)}
            decoded.append(item)
        return decoded

    def _load(self, content: bytes) -> Any:
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "memory.safetensors")
            with open(path, "wb") as file:
                file.write(content)
            try:
                return load_sent_memory(self.pipe.model, path, MAX_CHARACTERS)
            except ValueError as error:
                reason = str(error).replace(path, "memory")
                raise BadRequest(f"memory cannot be used: {reason}") from error


def read_request(data: Any) -> tuple[list[dict[str, Any]], bool]:
    """Checks a request's inputs.

    Returns:
        The inputs, and whether one object was sent rather than a list.

    Raises:
        BadRequest: what is missing, unknown, of a wrong type or too large.
    """
    if not isinstance(data, dict) or "inputs" not in data:
        raise BadRequest('a request is an object {"inputs": {"question": ..., "context": ...}}.')
    unknown = sorted(set(map(str, data)) - {"inputs", "parameters"})
    if unknown:
        raise BadRequest(f"a request has inputs and parameters; it does not know {unknown}.")
    single = isinstance(data["inputs"], dict)
    items = [data["inputs"]] if single else data["inputs"]
    if not isinstance(items, list) or not items:
        raise BadRequest("inputs must be an object with question and context, or a list of such.")
    if len(items) > MAX_QUESTIONS:
        raise BadRequest(f"{len(items)} inputs are too many; send at most {MAX_QUESTIONS}.")
    questions = characters = 0
    for number, item in enumerate(items):
        name = "inputs" if single else f"inputs[{number}]"
        if not isinstance(item, dict):
            raise BadRequest(f"{name} must be an object with question and context or memory.")
        unknown = sorted(set(map(str, item)) - _KEYS)
        if unknown:
            raise BadRequest(f"{name} does not know {unknown}; allowed are {sorted(_KEYS)}.")
        for key in ("question", "context"):
            texts = item.get(key)
            if texts is None and key == "context":
                continue
            texts = [texts] if isinstance(texts, str) else texts
            if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
                raise BadRequest(f"{name}.{key} must be a string or a list of strings.")
            characters += sum(map(len, texts))
            questions += len(texts) if key == "question" else 0
            if len(texts) > MAX_QUESTIONS or questions > MAX_QUESTIONS:
                raise BadRequest(f"{name}.{key}: send at most {MAX_QUESTIONS} texts.")
        if (item.get("context") is None) == (item.get("memory") is None):
            raise BadRequest(f"{name} needs either context or memory.")
    if characters > MAX_CHARACTERS:
        raise BadRequest(f"{characters:,} characters are too many; at most {MAX_CHARACTERS:,}.")
    # One object may hold many questions, and then answers with a list.
    return items, single and isinstance(items[0]["question"], str)


def read_parameters(parameters: Any) -> dict[str, Any]:
    """Checks the parameters of a request.

    Raises:
        BadRequest: one that is not in `PARAMETERS`, or out of its bounds.
    """
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise BadRequest("parameters must be an object.")
    for name, value in parameters.items():
        if name not in PARAMETERS:
            raise BadRequest(f"parameter {name!r} is not known; known are {sorted(PARAMETERS)}.")
        kind, least, most = PARAMETERS[name]
        # In Python True is an int, in JSON it is none.
        fits = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
        if name == "temperature" and fits and value == 0 and not parameters.get("do_sample"):
            continue  # what many clients send for no sampling
        if not fits or not least <= value <= most:
            words = "true or false" if kind is bool else f"a number from {least:g} to {most:g}"
            raise BadRequest(f"parameter {name} must be {words}, got {value!r}.")
    return parameters


def _decode(memory: Any, limit: int) -> bytes:
    if not isinstance(memory, str):
        raise BadRequest("memory must be the base64 of a saved memory's file, as a string.")
    if len(memory) > 4 * (limit // 3 + 1):  # before anything is decoded
        raise BadRequest(
            f"the memories are too large; send at most {MAX_MEMORY_BYTES:,} bytes per request."
        )
    try:
        return base64.b64decode(memory, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadRequest(f"memory is not base64: {error}.") from error


def _error(kind: str, message: str) -> dict[str, Any]:
    return {"error": {"type": kind, "message": " ".join(message.split())}}
