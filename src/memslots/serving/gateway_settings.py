"""What the gateway is told when it starts."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class GatewaySettings:
    """Limits and keys of a gateway.

    Args:
        model_name: What `/v1/models` and answers call the compressor and its decoder.
        api_keys: Any of them opens `/v1`; none, and it is open to all who reach it.
        running: Requests that are worked on at once.
        waiting: Requests that wait; the next one gets 429.
        max_body_bytes: Of a request; of all bodies together, four times as many.
        max_characters: Of all texts of a request.
        max_memories: Documents and memory ids of a request.
        max_tokens: Longest answer that may be asked for, in decoder tokens.
        max_expand: Segments of a request that are read as text (`expand`): each may have to be
            read back from its slots first.
        timeout: Seconds that a request may take, its body's way here and waiting included.
        shutdown: Seconds after which a gateway that was told to stop has stopped, whatever it does.
        literals: Names of what rides beside the slots of texts that are compressed here, where a
            request does not say; None leaves it to the checkpoint.
    """

    model_name: str = "memslots"
    api_keys: tuple[str, ...] = ()
    running: int = 32
    waiting: int = 64
    max_body_bytes: int = 32 * 2**20
    max_characters: int = 4_000_000
    max_memories: int = 64
    max_tokens: int = 1024
    max_expand: int = 16
    timeout: float = 300.0
    shutdown: float = 30.0
    literals: tuple[str, ...] | None = None

    def __post_init__(self):
        for name in ("running", *(field for field in vars(self) if field.startswith("max_"))):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}.")
        if self.waiting < 0 or not self.timeout > 0 or not 0 < self.shutdown < math.inf:
            raise ValueError(
                "waiting must be 0 or more, timeout and shutdown above 0 and shutdown finite, got "
                f"{self.waiting}, {self.timeout} and {self.shutdown}."
            )
        if not all(self.api_keys):
            raise ValueError("an API key is empty; give a text, or leave it out.")
