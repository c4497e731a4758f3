"""How a text is crammed: the method, its size, and the original code's optimiser."""

from __future__ import annotations

from dataclasses import dataclass

METHODS = ("mem", "dense", "lora", "dense+lora")
TARGETS = ("qkv", "qk", "vo", "qkvo")
LR_SCHEDULER_TYPES = ("constant", "linear", "cosine")


@dataclass(frozen=True)
class CrammingSettings:
    """Defaults are those of the published cramming code (Kuratov et al. 2025, arXiv:2502.13063).

    Args:
        method: `mem` optimises the vectors themselves; `dense` gives them through a linear layer,
            p = Linear(m), which is dropped afterwards (AIRI report, section 3.1); `lora` puts the
            text into low-rank changes of the attention's weights and uses no vector (section 3.2);
            `dense+lora` does both (the report's future work).
        vectors: memory vectors of a text, `mem` and `dense`.
        rank: r of the low-rank changes W0 + B A.
        alpha: the changes are scaled by alpha / rank.
        targets: attention projections that are changed: `qkv`, `qk`, `vo` or `qkvo`.
        learning_rate: the learning rate of AdamW.
        lr_scheduler_type: `constant` keeps that rate; `linear` and `cosine` let it fall to 0 over
            `max_steps`, as in `transformers.get_scheduler`. A rate that falls settles texts that a
            high constant one keeps moving; `patience` should then be no less than `max_steps`.
        betas: the two decay rates of AdamW.
        weight_decay: the weight decay of AdamW, on everything that is trained.
        max_steps: most optimizer steps of a text.
        patience: steps without a higher accuracy after which a text is given up.
        first_token: train the first token too. The published code never does: it drops the logits
            at the memory's own positions, so what it counts are tokens 2 to N.
        start_token: BOS before the vectors, as a decoder expects that was trained with one in front
            of everything. The published code has none there.
        side_by_side: texts that are optimised in one batch.
    """

    method: str = "mem"
    vectors: int = 1
    rank: int = 1
    alpha: float = 32.0
    targets: str = "qkv"
    learning_rate: float = 0.01
    lr_scheduler_type: str = "constant"
    betas: tuple[float, float] = (0.9, 0.9)
    weight_decay: float = 0.01
    max_steps: int = 5000
    patience: int = 2000
    first_token: bool = True
    start_token: bool = False
    side_by_side: int = 16

    def __post_init__(self):
        for name, allowed in (
            ("method", METHODS),
            ("targets", TARGETS),
            ("lr_scheduler_type", LR_SCHEDULER_TYPES),
        ):
            if (value := getattr(self, name)) not in allowed:
                raise ValueError(f"{name}={value!r} must be one of {', '.join(allowed)}.")
        for name in ("vectors", "rank", "max_steps", "patience", "side_by_side"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}={value!r} must be an integer of at least 1.")
        for name in ("learning_rate", "alpha"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}={getattr(self, name)!r} must be greater than 0.")
        if self.weight_decay < 0:
            raise ValueError(f"weight_decay={self.weight_decay!r} must be 0 or greater.")

    @property
    def uses_vectors(self) -> bool:
        """Whether the text gets memory vectors."""
        return self.method != "lora"

    @property
    def uses_dense(self) -> bool:
        """Whether the vectors come out of a linear layer."""
        return self.method.startswith("dense")

    @property
    def uses_low_rank(self) -> bool:
        """Whether the attention's weights are changed."""
        return self.method.endswith("lora")
