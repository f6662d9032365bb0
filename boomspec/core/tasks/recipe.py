"""Training hyperparameters and determinism settings that several task records share."""

from typing import Literal

from boomspec.core.types import Strict

Precision = Literal["fp32", "bf16"]
Algorithms = Literal["deterministic", "strict", "any"]


class Determinism(Strict):
    """Which kernels a task computes with (`runners.runtime.device`). Records leave it out for the defaults."""

    algorithms: Algorithms
    tf32: bool


class Optimizer(Strict):
    """AdamW; weight decay acts on matrices only (biases and norms have none)."""

    lr: float
    betas: tuple[float, float]
    eps: float
    weight_decay: float
    clip: float  # largest global gradient norm; 0 means no clipping


class Schedule(Strict):
    """Linear warm-up to the peak, then `kind` down to `final` times the peak at the last step."""

    kind: Literal["cosine", "linear", "constant"]
    warmup_steps: int
    final: float


class Recipe(Strict):
    """How a model is trained. `sequences` x `sequence_length` tokens make one optimiser step."""

    seed: int
    steps: int
    sequences: int
    sequence_length: int
    optimizer: Optimizer
    schedule: Schedule
    precision: Precision

    @property
    def tokens(self) -> int:
        return self.steps * self.sequences * self.sequence_length
