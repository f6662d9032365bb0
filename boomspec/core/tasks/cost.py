"""The estimated cost of a task (FLOPs, memory, disk), and the inputs of that estimate.

`boomspec.compile.cost` knows the prices, which follow from the shapes of models. `boomspec.plan.rates` fills in
what is known only once the text has been tokenized.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from boomspec.core.execution import TrainingOptions
from boomspec.core.losses import Losses
from boomspec.core.tasks.recipe import Recipe

AFTER_TOKENIZE = "how many tokens the text has: known after tokenize"
MADE = "made"  # in `Prices.models`: the model that the task makes


@dataclass(frozen=True)
class Cost:
    """What one task takes, as far as it is known beforehand. Never part of an identity.

    flops: floating-point operations, a multiply-add counted as two. memory: bytes of the largest moment, by what
    holds them ("weights", "gradients", "optimizer", "activations", "head", "teacher", "cache"). disk: bytes of the
    artifact. tokens: that go through the model, and how many of them are real (None: not known before a run).
    """

    flops: int = 0
    memory: dict[str, int] = field(default_factory=dict)
    disk: int = 0
    read: int = 0  # bytes
    tokens: int = 0
    real_tokens: int | None = 0
    flops_per_real_token: int = 0  # that `flops` counts for each of `tokens`, and that padding does not take
    scratch: int = 0  # bytes of disk while it runs, beside the artifact: checkpoints
    unknown: str = ""  # what is not known, and why; then `flops` and `tokens` are what is known of them

    @property
    def peak(self) -> int:
        """Bytes of memory in the largest moment."""
        return sum(self.memory.values())

    def counted(self, real: int, **changes: Any) -> Cost:
        """The cost for `real` real tokens, where all were counted before."""
        flops = self.flops + self.flops_per_real_token * (real - self.tokens)
        return replace(self, flops=flops, real_tokens=real, flops_per_real_token=0, **changes)


class PricedModel(Protocol):
    """A model as far as costs go. `bytes` are those of its files; operations are those of one token."""

    @property
    def depth(self) -> int: ...  # layers
    @property
    def hidden(self) -> int: ...
    @property
    def vocabulary(self) -> int: ...
    @property
    def parameters(self) -> int: ...
    @property
    def bytes(self) -> int: ...
    @abstractmethod
    def forward(self, length: int) -> int:
        """Operations of all layers, in a sequence of `length` tokens."""

    @abstractmethod
    def head(self) -> int:
        """Operations from the last hidden state to the logits."""

    @abstractmethod
    def measuring(self, *, bf16: bool, tokens: int) -> dict[str, int]:
        """Memory of a forward pass over `tokens` tokens, by what holds it."""


@dataclass(frozen=True)
class Prices(ABC):
    """What a record works its cost out from, beside its own fields."""

    models: Mapping[str, PricedModel]  # by the role of the input that each is; `MADE`
    options: TrainingOptions
    batch_size: int  # of a forward pass, where nothing is trained
    on_gpu: bool
    text_bytes: int  # of the files of the input `text`
    token_bytes: int  # of one token id of the input `tokenizer`
    rest_bytes: int  # of what the teacher has beside its decoder

    def written(self, *, buffer: int, rest: bool = False) -> Cost:
        """The cost of writing a model that consists of others, `buffer` bytes at a time."""
        size = self.models[MADE].bytes + (self.rest_bytes if rest else 0)
        return Cost(memory={"buffers": buffer}, disk=size, read=size)

    @abstractmethod
    def training(
        self,
        recipe: Recipe,
        losses: Losses,
        *,
        frozen_embedding: bool = False,
        padding: bool = False,
        kl_on_padding: bool = False,
    ) -> Cost:
        """The cost of training the model, with the input `teacher` where there is one.

        `padding`: rows are padded, and how many of their tokens are real is known after tokenize. `kl_on_padding`: KL
        takes a pass of its own through the head.
        """


class TextCounts(ABC):
    """What is known of a text after tokenize."""

    @abstractmethod
    def held_out(self) -> int:
        """Its held-out tokens."""

    @abstractmethod
    def mean_labels(self, length: int) -> float:
        """Labels of the mean row, where each row is one document, padded or cut to `length` tokens."""
