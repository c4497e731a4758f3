"""Tools for agents that read memories: `expand`, a segment's text on demand.

`expand` is a tool definition as OpenAI's interface and transformers' chat templates take it
(`tokenizer.apply_chat_template(..., tools=[expand])`); `run_expand` answers a call of it::

    contents = segment_list(memory)            # what there is to expand, for the system message
    result = run_expand(model, memory, call["function"]["arguments"])
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from memslots import verified
from memslots.modeling import Memory, MemslotsModel

expand: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "expand",
        "description": (
            "Read segments of the compressed context as their text. Use it where exact wording, "
            "numbers, names or code matter; the other segments stay compressed. Text between "
            "⟦ and ⟧ is uncertain."
        ),
        "parameters": {
            "type": "object",
            "properties": {
                "segments": {
                    "type": "array",
                    "items": {"type": "integer", "minimum": 0},
                    "minItems": 1,
                    "description": "Numbers of the segments, from 0.",
                }
            },
            "required": ["segments"],
            "additionalProperties": False,
        },
    },
}
"""The tool's definition, JSON schema included."""


def segment_list(memory: Memory) -> str:
    """A line per segment: its number, place and how much of it the slots give back."""
    lines = []
    for line in verified.report(memory).segments:
        known = "" if line.fidelity is None else f", {line.fidelity:.0%} certain"
        lines.append(f"segment {line.index}: characters {line.start} to {line.end}{known}")
    return "\n".join(lines)


def run_expand(
    model: MemslotsModel, memory: Memory, arguments: str | Mapping[str, Any]
) -> dict[str, Any]:
    """The answer to a call of `expand`.

    Args:
        model: The compressor, with its decoder where texts are not kept whole.
        memory: What the agent reads.
        arguments: Of the call, as JSON or decoded: `{"segments": [...]}`.

    Returns:
        `{"segments": [{"segment", "text"}]}`, or `{"error": ...}` for a call that is wrong, which
        an agent can mend.
    """
    try:
        call = json.loads(arguments) if isinstance(arguments, str) else dict(arguments)
        indices = call["segments"]
        count = len(memory.segments)
        if not isinstance(indices, list) or not indices:
            raise ValueError("segments is a list of at least one number.")
        for index in indices:
            if type(index) is not int or not 0 <= index < count:
                raise ValueError(f"segments are numbers from 0 to {count - 1}, got {index!r}.")
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        return {"error": f"wrong arguments for expand ({error!s}); give {{'segments': [0]}}."}
    chosen = dict.fromkeys(indices)
    return {"segments": [{"segment": i, "text": verified.expand(model, memory, i)} for i in chosen]}
