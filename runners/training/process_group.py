"""The process group of one training: its collectives, and whether an error says that another worker is gone.

A group of one is the ordinary case: it imports nothing and costs nothing. In a larger one every method is a collective:
all workers must call it, in the same order. They exchange numbers and short byte strings; nothing is pickled. Tensors
live on the device of torch's process group: gloo on the CPU, NCCL on CUDA.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from runners.runtime.device import device

WORKERS = ".workers"  # folder inside of a resume folder: what the workers and their coordinator share
STOP = "stop"
_BYTES = 64  # of a gathered string: a digest, a host's name


@dataclass(frozen=True)
class ProcessGroup:
    rank: int = 0
    size: int = 1
    stop: Path | None = None  # a file; when it appears, the training saves itself and stops
    local_leader: bool | None = None  # where machines share no folder: whether it writes what those of its own read

    @property
    def is_leader(self) -> bool:
        """Whether this worker writes what is written once."""
        return self.rank == 0

    @property
    def writes(self) -> bool:
        """Whether this worker writes the files that all workers of its machine read."""
        return self.is_leader if self.local_leader is None else self.local_leader

    def micro_batches(self, tokens: Tensor, micro_batch: int) -> list[tuple[Tensor, int, bool]]:
        """This worker's micro batches of one batch [B, T + 1], the number of each one's first row, whether it counts.

        The blocks of rows differ in size by one at most, and every worker gets as many micro batches: forward and
        backward are collectives where a model is sharded. One that has too few gets one that does not count.
        """
        first, block = self.own_rows(tokens)
        own = [rows for rows in block.split(micro_batch) if len(rows)]  # type: ignore[no-untyped-call]
        largest = -(-len(tokens) // self.size)
        most = -(-largest // micro_batch)
        numbers = accumulate(map(len, own), initial=first)
        found = [(rows, number, True) for rows, number in zip(own, numbers, strict=False)]
        return found + [(tokens[:1], 0, False)] * (most - len(own))

    def own_rows(self, rows: Tensor) -> tuple[int, Tensor]:
        """This worker's block of the rows of one batch, as `micro_batches` cuts it, and the number of its first row."""
        blocks = rows.tensor_split(self.size)
        return sum(map(len, blocks[: self.rank])), blocks[self.rank]

    def all_rows(self, own: Tensor, first: int, count: int) -> Tensor:
        """All `count` rows of whole numbers, on the CPU, of which this worker has those from `first` on."""
        if self.size == 1:
            return own
        every = torch.zeros((count, *own.shape[1:]), dtype=own.dtype, device=device())
        every[first : first + len(own)] = own.to(device())
        torch.distributed.all_reduce(every)
        return every.cpu()

    def all_reduce(self, values: Mapping[str, Tensor]) -> dict[str, float]:
        if self.size == 1:
            return {name: float(value) for name, value in values.items()}
        sums = torch.stack([value.detach().to(device(), torch.float32) for value in values.values()]).double()
        torch.distributed.all_reduce(sums)
        return dict(zip(values, sums.tolist(), strict=True))

    def broadcast(self, value: int) -> int:
        """The leader's value."""
        if self.size == 1:
            return value
        sent = torch.tensor([value], dtype=torch.int64, device=device())
        torch.distributed.broadcast(sent, src=0)
        return int(sent)

    def all_gather(self, value: bytes) -> list[bytes]:
        """The strings of all workers, by rank, without zeros at their ends. Longer ones are cut."""
        if self.size == 1:
            return [value]
        own = torch.tensor(list(value[:_BYTES].ljust(_BYTES, b"\0")), dtype=torch.uint8, device=device())
        every = [torch.empty_like(own) for _ in range(self.size)]
        torch.distributed.all_gather(every, own)
        return [bytes(one.tolist()).rstrip(b"\0") for one in every]

    def barrier(self) -> None:
        self.all_gather(b"")

    def stopped(self) -> bool:
        """Whether the training is to stop, as the leader sees it."""
        return self.stop is not None and bool(self.broadcast(int(self.is_leader and self.stop.exists())))


ALONE = ProcessGroup()


def process_group(resume: Path, *, local_leader: bool | None = None) -> ProcessGroup:
    """The group that this process belongs to: that of torch, else it is alone."""
    group: Any = torch.distributed
    if not (group.is_available() and group.is_initialized()):
        return ALONE
    return ProcessGroup(group.get_rank(), group.get_world_size(), resume / WORKERS / STOP, local_leader)


# How system, gloo and NCCL report that a connection has ended, or that they waited in vain for another worker. Messages
# of NCCL: https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/troubleshooting.html and torch's NCCLUtils.cpp.
_LOST = re.compile(
    r"connection (was )?(closed|reset|refused|aborted|timed out)|(closed|reset) by (remote )?peer"
    r"|broken pipe|no route to host|network is unreachable|remote peer closed the connection"
    r"|application timeout caused pair closure|timed out waiting \d+ ?ms for (recv|send|unbound)"
    r"|timed out in monitoredbarrier|rank \d+ (failed to pass|successfully reached) monitoredbarrier"
    r"|watchdog caught collective operation timeout|operation timed out|ran for \d+ milliseconds before timing out"
    r"|connectfullmesh failed|remote process exited or there was a network error|communicator was aborted"
    r"|ncclremoteerror"  # also without a message of NCCL itself
    r"|got completion from peer .* (with error|with status)"  # InfiniBand: nobody answers any more
    r"|(socket|heartbeat|wait) timeout|timeout waiting for key"
)
# Wrong arguments, or this worker's own GPU, whatever else the message has.
_OWN = re.compile("invalid ?usage|invalid ?argument|unhandled ?cuda ?error|cuda error|mismatch between collectives")
# What torch adds to every system error, without knowing: it may be either.
_EITHER = re.compile(r"it can be also caused by unexpected exit of a remote peer[^\n]*")


def is_peer_failure(error: BaseException) -> bool:
    """Whether a worker failed because another one is gone; then the group starts again."""
    if not isinstance(error, RuntimeError):  # those of torch.distributed are
        return False
    # What counts is the kind of error, or what was seen on the connection: NCCL and gloo report wrong settings, too.
    message = str(error).lower()
    if isinstance(error, torch.distributed.DistNetworkError | torch.distributed.DistStoreError):
        return "address already in use" not in message  # else the rendezvous is gone, or a worker did not come there
    code, _, last = message.partition("exception raised from")[0].partition("last error:")
    if _OWN.search(code):
        return False
    if last.strip():  # what the library itself has seen
        return "ncclremoteerror" in code or bool(_LOST.search(last))
    return bool(_LOST.search(code) or _EITHER.search(code))
