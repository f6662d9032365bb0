"""The workers of one training, and the few words that they exchange.

A team of one is the ordinary case: it says nothing, imports nothing and costs nothing. In a larger one
every method is a collective: all its workers must call it, in the same order. What they exchange are
numbers and short byte strings; nothing is pickled.

Tensors live on the device of the process group: gloo on the CPU, NCCL on CUDA.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from runners.runtime.device import device

WORKERS = ".workers"  # folder inside of a resume folder: what the workers of a team and their coordinator share
STOP = "stop"
_WORD = 64  # bytes of a word: a digest, a host's name


@dataclass(frozen=True)
class Team:
    rank: int = 0
    size: int = 1
    stop: Path | None = None  # when this file appears, the training saves itself and stops
    # On machines that share no folder: whether this worker writes what those of its machine read. None: they share one.
    first_here: bool | None = None

    @property
    def leads(self) -> bool:
        """Whether this worker writes what is written once."""
        return self.rank == 0

    @property
    def apart(self) -> bool:
        """Whether its workers are on machines that share no folder."""
        return self.first_here is not None

    @property
    def lays_out(self) -> bool:
        """Whether this worker writes what others of its machine read, too."""
        return self.leads if self.first_here is None else self.first_here

    def rounds(self, tokens: Tensor, micro_batch: int) -> list[tuple[Tensor, bool]]:
        """This worker's micro batches of one batch [B, T + 1], and whether each counts.

        The rows are dealt out in blocks whose sizes differ by one at most, and every worker gets as many micro
        batches: forward and backward are collectives where a model is sharded. One that has too few gets one that
        does not count.
        """
        if self.size == 1:
            return [(rows, True) for rows in tokens.split(micro_batch)]  # type: ignore[no-untyped-call]
        own = tokens.tensor_split(self.size)[self.rank]
        rounds = [(rows, True) for rows in own.split(micro_batch) if len(rows)]  # type: ignore[no-untyped-call]
        most = -(-len(tokens.tensor_split(self.size)[0]) // micro_batch)  # the first blocks are the larger ones
        return rounds + [(tokens[:1], False)] * (most - len(rounds))

    def summed(self, values: Mapping[str, Tensor]) -> dict[str, float]:
        """Each value, added up over the team."""
        if self.size == 1:
            return {name: float(value) for name, value in values.items()}
        sums = torch.stack([value.detach().to(device(), torch.float32) for value in values.values()]).double()
        torch.distributed.all_reduce(sums)
        return dict(zip(values, sums.tolist(), strict=True))

    def number(self, value: int) -> int:
        """What the leader says; the value of the others is not looked at."""
        if self.size == 1:
            return value
        said = torch.tensor([value], dtype=torch.int64, device=device())
        torch.distributed.broadcast(said, src=0)
        return int(said)

    def words(self, word: bytes) -> list[bytes]:
        """The words of all workers, by rank. Longer ones are cut."""
        if self.size == 1:
            return [word]
        own = torch.tensor(list(word[:_WORD].ljust(_WORD, b"\0")), dtype=torch.uint8, device=device())
        every = [torch.empty_like(own) for _ in range(self.size)]
        torch.distributed.all_gather(every, own)
        return [bytes(one.tolist()).rstrip(b"\0") for one in every]

    def wait(self) -> None:
        """Wait until every worker has come here."""
        self.words(b"")

    def stopped(self) -> bool:
        """Whether the team is to stop, which the leader has seen."""
        if self.stop is None:
            return False
        return bool(self.number(int(self.leads and self.stop.exists())))


ALONE = Team()


def team(resume: Path, *, first_here: bool | None = None) -> Team:
    """The team that this process belongs to: that of torch's process group, else it is alone."""
    group: Any = torch.distributed
    if not (group.is_available() and group.is_initialized()):
        return ALONE
    return Team(group.get_rank(), group.get_world_size(), resume / WORKERS / STOP, first_here)
