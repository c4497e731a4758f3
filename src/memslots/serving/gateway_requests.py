"""What may be asked of the gateway, and how it says no: the shapes are OpenAI's."""

from __future__ import annotations

import inspect
from difflib import get_close_matches
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    ValidationError,
    field_validator,
    model_validator,
)
from transformers import PreTrainedTokenizerBase

from memslots.modeling import MemslotsProcessor

ROLES = ("system", "developer", "user", "assistant", "tool")

Text = Annotated[str, Field(min_length=1)]
Few = Field(max_length=1000, fail_fast=True)
"""For lists: pydantic would keep an error for each wrong item, a kilobyte each."""

MOST_FIELDS = 256
"""Of an object in a request, for the same reason."""


_NOT_FOR_TEMPLATES = {
    name
    for function in (PreTrainedTokenizerBase.apply_chat_template, MemslotsProcessor.prompt)
    for name in inspect.signature(function).parameters
}
"""Arguments beside a template's own: another template, for instance, or a text as the context."""

_CONTEXT_FIELDS = ("documents", "memory_ids", "rate", "literals", "expand", "chat_template_kwargs")

_TEXT_NAMES = ("context", "contexts", "text", "texts")
"""What `documents` are called elsewhere; ignored, the answer would come from no text at all."""

_CHANGE_THE_ANSWER = {
    *("functions", "function_call", "logit_bias", "top_logprobs", "prompt_logprobs", "modalities"),
    *("min_p", "repetition_penalty", "min_tokens", "ignore_eos", "stop_token_ids", "bad_words"),
    *("structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar"),
}
"""Fields of OpenAI's and vLLM's interfaces that this gateway cannot honour."""


class ApiError(Exception):
    """An answer that is an error object.

    Args:
        status: Of HTTP.
        message: What was wrong and what to do.
        kind: OpenAI's `type`.
        code: OpenAI's `code`, for programs.
        param: The field that is at fault.
        headers: Beside the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.headers = status, headers or {}
        self.kind, self.code, self.param = kind, code, param

    def body(self) -> dict[str, Any]:
        """The error object."""
        return {
            "error": {
                "message": str(self),
                "type": self.kind,
                "param": self.param,
                "code": self.code,
            }
        }


_TAKEN = {
    "messages": 'messages are a list of at least one {"role": ..., "content": ...}',
    "documents": 'documents are a list of texts, each a string or {"text": ...}, and none is empty',
    "memory_ids": "memory_ids are a list of ids, each a string that is not empty",
    "literals": "literals are a list of kinds, each a string",
    "exact": "exact is true, false or a list of kinds, each a string",
    "chat_template_kwargs": "each of chat_template_kwargs is a string, a number, true or false",
    "stop": "stop is a string or a list of strings, and none is empty",
    "n": "a request has one answer here; leave n out, or say 1",
    "tools": "the decoder is given no tools here; leave tools out",
    "tool_choice": 'the decoder is given no tools here; leave tool_choice out, or say "none"',
    "response_format": 'an answer is text here; leave response_format out, or say {"type": "text"}',
    "logprobs": "answers come without logprobs here; leave logprobs out, or say false",
    "store": "answers are not kept here; leave store out, or say false",
    "presence_penalty": "there are no penalties here; leave presence_penalty out, or say 0",
    "frequency_penalty": "there are no penalties here; leave frequency_penalty out, or say 0",
}
"""What a field takes, where pydantic would say it in words of its own."""


def mistake(error: ValidationError) -> ApiError:
    """What a client is told of the first thing that is wrong in its request."""
    first = error.errors(include_url=False, include_context=False)[0]
    # Beside fields and indices, pydantic names the types of ours that it tried.
    labels = ("constrained", "list[", "bool")
    names = [str(name) for name in first["loc"][:2] if not str(name).startswith(labels)]
    where, value = ".".join(names), first["input"]
    match first["type"]:
        case "extra_forbidden":
            said = "this gateway does not know this field"
        case "missing":
            said = "this field is missing"
        case "value_error":
            said = first["msg"].removeprefix("Value error, ")
        case _:
            said = first["msg"].partition(", unable to")[0].replace("Input should", "it must")
            said = said.replace("array", "list")
            said = _TAKEN.get(names[0], said) if names else said
            if isinstance(value, str | int | float):
                said += f", got {value[:40]!r}" if isinstance(value, str) else f", got {value}"
    return ApiError(400, f"{where or 'body'}: {said}"[:300], param=where or None)


def few_fields(value: Any) -> Any:
    """Refuse an object of more than `MOST_FIELDS`."""
    if isinstance(value, dict) and len(value) > MOST_FIELDS:
        raise ValueError(f"{len(value):,} fields; an object here has at most {MOST_FIELDS}")
    return value


class RequestObject(BaseModel):
    """An object in a request. A field that is null is one that was left out."""

    @model_validator(mode="before")
    @classmethod
    def _few_fields(cls, value: Any) -> Any:
        few_fields(value)
        if not isinstance(value, dict):
            return value
        return {name: field for name, field in value.items() if field is not None}


class Document(RequestObject):
    """A text to read."""

    model_config = ConfigDict(extra="forbid")

    text: Text


class StreamOptions(RequestObject):
    """OpenAI's `stream_options`."""

    model_config = ConfigDict(extra="ignore")

    include_usage: bool = False


class ChatRequest(RequestObject):
    """`POST /v1/chat/completions`: OpenAI's, with `documents`, `memory_ids` and how they are read.

    Fields that would change the answer and cannot be honoured are refused by name, and so are
    misspelt names of our own fields. Whatever else a client sends (chat interfaces add ids and
    settings of their own) is ignored.
    """

    model_config = ConfigDict(extra="allow")

    messages: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=1000, fail_fast=True)]
    model: str | None = None
    documents: Annotated[list[Text | Document], Few] = []
    memory_ids: Annotated[list[Text], Few] = []
    rate: Annotated[int, Field(ge=1)] | None = None
    literals: Annotated[list[Text], Few] | None = None
    expand: Annotated[list[Annotated[int, Field(strict=True)]], Few] = []
    chat_template_kwargs: dict[str, bool | int | float | str | None] = {}

    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    stop: Annotated[list[Text], Few] | Text | None = None

    # Sent by many clients as they are, and harmless so.
    n: Literal[1] | None = None
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: Literal[False] | None = None
    logprobs: Literal[False] | None = None
    presence_penalty: Literal[0] | None = None
    frequency_penalty: Literal[0] | None = None
    parallel_tool_calls: bool | None = None
    tool_choice: Literal["none", "auto"] | None = None
    tools: Annotated[list[Any], Field(max_length=0, fail_fast=True)] | None = None
    response_format: dict[Literal["type"], Literal["text"]] | None = None

    @field_validator("chat_template_kwargs", "response_format", mode="before")
    @classmethod
    def _few_settings(cls, value: Any) -> Any:
        return few_fields(value)

    @model_validator(mode="after")
    def _others_fields(self) -> ChatRequest:
        for name, value in (self.model_extra or {}).items():
            if name in _CHANGE_THE_ANSWER and value not in (None, [], {}):
                raise ValueError(f"this gateway cannot honour {name!r}; leave it out")
            close = get_close_matches(name, _CONTEXT_FIELDS, 1, cutoff=0.75)
            if meant := "documents" if name in _TEXT_NAMES else "".join(close):
                raise ValueError(f"this gateway does not know {name!r}; did you mean {meant!r}?")
        return self

    @field_validator("stop")
    @classmethod
    def _few_stops(cls, value: list[str] | str | None) -> list[str] | str | None:
        if isinstance(value, list) and len(value) > 16:
            raise ValueError(f"at most 16 stop strings, got {len(value)}")
        return value

    @field_validator("messages")
    @classmethod
    def _roles(cls, value: list[dict[str, Any]]) -> list[dict[str, Any]]:
        for message in value:
            if message.get("role") not in ROLES:
                raise ValueError(f"a message's role is one of {', '.join(ROLES)}")
        return value

    @field_validator("chat_template_kwargs")
    @classmethod
    def _template_alone(cls, value: dict[str, Any]) -> dict[str, Any]:
        if refused := sorted(_NOT_FOR_TEMPLATES & set(value)):
            raise ValueError(f"{', '.join(refused)} cannot be set by a request")
        return value

    @property
    def texts(self) -> list[str]:
        """Of `documents`."""
        return [
            document if isinstance(document, str) else document.text for document in self.documents
        ]

    @property
    def stops(self) -> tuple[str, ...]:
        """Of `stop`."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    def characters(self) -> int:
        """Of all texts in the request."""
        return sum(map(len, self.texts)) + _characters(self.messages)


class MemoryRequest(RequestObject):
    """`POST /v1/memories`: a text to compress, or a memory file to keep.

    What says how a text is compressed is as in `verified.compress`, of what JSON can hold.
    """

    model_config = ConfigDict(extra="forbid")

    text: Text | None = None
    memory: Annotated[Text, Field(description="`memory.save`'s file in base64")] | None = None
    id: Annotated[str, Field(min_length=1, max_length=512)] | None = None
    rate: Annotated[int, Field(ge=1)] | None = None
    literals: Annotated[list[Text], Few] | None = None
    rates: Annotated[list[Annotated[int, Field(ge=1)]], Few] | None = None
    fidelity: Annotated[float, Field(gt=0, le=1)] | None = None
    max_slots: Annotated[int, Field(ge=1)] | None = None
    exact: StrictBool | Annotated[list[Text], Few] | None = None
    keep_text: StrictBool | None = None
    metadata: dict[str, Any] = {}

    @field_validator("metadata")
    @classmethod
    def _users_names(cls, value: dict[str, Any]) -> dict[str, Any]:
        if reserved := sorted(name for name in value if name.startswith("memslots_")):
            raise ValueError(f"{', '.join(reserved)} cannot be set by a request")
        return value

    @property
    def verification(self) -> dict[str, Any]:
        """What is asked for beside slots, by the names of `compress`."""
        names = ("rates", "fidelity", "max_slots", "exact", "keep_text")
        return {name: value for name in names if (value := getattr(self, name)) is not None}


def question_or_messages(
    messages: list[dict[str, Any]],
) -> tuple[str | None, list[dict[str, Any]] | None]:
    """A chat of one user message is a question, which compressors without a chat template take.

    Returns:
        The question, or the messages; the other is None.
    """
    content = messages[0].get("content")
    if isinstance(content, list) and all(
        isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
        for part in content
    ):
        content = "".join(part["text"] for part in content)
    if len(messages) == 1 and messages[0].get("role") == "user" and isinstance(content, str):
        return content, None
    # What goes with a message beside these (names, ids of tools) no chat template expects.
    return None, messages


def _characters(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_characters, value.values()))
    if isinstance(value, list):
        return sum(map(_characters, value))
    return 0
