"""Write training checkpoints in a thread beside the training; `checkpoint.py` says what they consist of.

    begin     at the end of a step: copies the tensors into the host's memory, pinned where they are on a GPU, and
              starts the thread, which writes and checksums the files. The next step changes the tensors, not the copies
    poll      at the end of each later step: raises the error of the thread, and publishes what it has written
    finish    waits for the thread, and then does what `poll` does

One checkpoint is on its way at most. It appears by one rename, after every byte of it is on the disk: who is killed at
any instant leaves the one before it whole.

Of sharded parameters each rank writes its rows. NCCL and gloo want the collectives of all ranks in one order, which
those of a thread would disturb. So threads call none: the ranks exchange the checksums of what they have written in
`poll` and `finish`, which are collectives then, and the leader publishes once it has all of them.
"""

import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from boomspec.core.files import flush, replace_folder
from boomspec.core.machine import available_bytes
from boomspec.core.work_sizes import KEPT_CHECKPOINTS
from boomspec.models.checkpoint import encode_header
from runners.runtime.context import SharedCheckpoints
from runners.runtime.task_errors import detect_full_disk
from runners.training.checkpoint import ROWS
from runners.training.process_group import ALONE, ProcessGroup
from runners.training.remote_checkpoint import PART, STATE, step_of

_DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float64: "F64"}
_PIECE = 16 << 20  # bytes that are written and checksummed at a time, while they are in the processor's cache
_DIGEST = 32  # bytes of a checksum

Tensors = Mapping[str, Mapping[str, Tensor]]  # by kind ("weights", "moments") and name


class CheckpointWriter:
    """Writes the checkpoints of one training into `folder`; uploads them to `remote`, where there is one."""

    def __init__(self, folder: Path, group: ProcessGroup = ALONE, remote: SharedCheckpoints | None = None) -> None:
        self._folder, self._group, self._remote = folder, group, remote
        self._write: _Write | None = None
        self.steps = -1  # of the newest one that this writer has published

    @property
    def idle(self) -> bool:
        return self._write is None

    def begin(
        self,
        metrics: list[dict[str, Any]],  # one row a step
        tensors: Tensors,
        rows: Mapping[str, tuple[int, int, int]],  # of sharded ones: the first, the one after the last, how many in all
        *,
        beside: bool = True,
    ) -> None:
        """Start to write a checkpoint; a collective where `rows` are given. The one before must be done.

        Where the memory has no room for the copies, or the training does not go on `beside` it, it is written at once.
        """
        assert self._write is None, "another checkpoint is being written"
        if not rows and not self._group.is_leader:
            return
        group = self._group if rows else ALONE  # else every rank writes its rows
        write = _Write(self._folder, group, self._remote, metrics, rows)
        self._write = write
        needed = sum(tensor.nbytes for of_kind in tensors.values() for tensor in of_kind.values())
        if beside and needed <= available_bytes():
            write.tensors, write.copied = _copies(tensors)
            write.thread.start()
        else:
            write.tensors = tensors
            write.run()

    def poll(self) -> float | None:
        """Publish what is written; the seconds that it took, None where nothing was. Raises the thread's error."""
        if (write := self._write) is None or not write.is_published(wait=False):
            return None
        return self._done(write)

    def finish(self) -> None:
        """Wait until the checkpoint that is being written is there. Raises the thread's error."""
        if (write := self._write) is not None:
            if write.is_published(wait=True):
                self._done(write)
            else:  # an interrupt came before the thread began
                self.close()

    def close(self) -> None:
        """Wait for the thread, after whatever has ended the training. What cannot be published is dropped."""
        if (write := self._write) is not None:
            write.wait()
            write.drop()
            self._write = None

    def _done(self, write: "_Write") -> float:
        self._write, self.steps = None, write.steps
        return write.seconds


class _Write:
    """One checkpoint on its way. What a thread does and what the training does never overlap."""

    def __init__(
        self,
        folder: Path,
        group: ProcessGroup,
        remote: SharedCheckpoints | None,
        metrics: list[dict[str, Any]],
        rows: Mapping[str, tuple[int, int, int]],
    ) -> None:
        self.folder, self.group, self.remote, self.rows = folder, group, remote, rows
        self.metrics, self.steps = list(metrics), len(metrics)
        self.tensors: Tensors = {}
        self.copied: torch.cuda.Event | None = None  # when a GPU has made the copies
        self.thread = threading.Thread(target=self.run, name="checkpoint", daemon=True)
        self.started, self.seconds = time.monotonic(), 0.0
        self.digests: dict[str, str] = {}  # of this rank's files, by name
        self.error: BaseException | None = None
        self.ended = False
        part = ""
        if group.is_leader:
            with detect_full_disk(folder):
                folder.mkdir(parents=True, exist_ok=True)
                part = Path(tempfile.mkdtemp(prefix=PART, dir=folder)).name
        self.part = folder / group.all_gather(part.encode())[0].decode()

    def run(self) -> None:
        """Write this rank's files; where there is one rank, publish them. Errors are kept for the training."""
        try:
            with detect_full_disk(self.folder):  # before the part is deleted
                if self.remote is not None:
                    self.remote.wait()
                if self.copied is not None:
                    self.copied.synchronize()
                self.part.mkdir(parents=True, exist_ok=True)  # on another machine than the leader's
                for kind, tensors in self.tensors.items():
                    file = self.part / self.names(kind)[self.group.rank]
                    sharded = {name: self.rows[name] for name in tensors if name in self.rows}
                    header = {ROWS: json.dumps(sharded, allow_nan=False)} if sharded else {}
                    self.digests[file.name] = write_tensors(file, tensors, header)
                if self.group.size == 1:
                    self.publish(self.digests)
        except BaseException as error:
            self.error = error
            self.drop()
        finally:
            self.tensors = {}
            self.seconds = time.monotonic() - self.started
            self.ended = True

    def names(self, kind: str) -> list[str]:
        """The files of a kind of tensors, by rank."""
        size = self.group.size
        return (
            [f"{kind}-{i:05}-of-{size:05}.safetensors" for i in range(1, size + 1)]
            if size > 1
            else [f"{kind}.safetensors"]
        )

    def wait(self) -> None:
        if self.thread.ident is not None:
            self.thread.join()

    def is_published(self, *, wait: bool) -> bool:
        """Whether it is there, or here: then it is published by this. Raises the error of the thread."""
        if wait:
            self.wait()
        if self.ended and self.error is not None:
            raise self.error
        if self.group.size == 1:
            return self.ended
        own = b"".join(map(bytes.fromhex, self.digests.values())) if self.ended else b""  # as long as it may be
        every = self.group.all_gather(own)
        if not all(every):
            return False
        started, digests = time.monotonic(), {}
        kinds = [name.partition("-")[0] for name in self.digests]
        for rank, joined in enumerate(every):
            joined = joined.ljust(_DIGEST * len(kinds), b"\0")
            for place, kind in enumerate(kinds):
                digests[self.names(kind)[rank]] = joined[_DIGEST * place :][:_DIGEST].hex()
        with detect_full_disk(self.folder):
            self.publish(digests)
        self.seconds += time.monotonic() - started
        return True

    def publish(self, digests: Mapping[str, str]) -> None:
        """Make it appear, delete all but the newest two, begin to upload it. `digests`: of the files of all ranks."""
        group, remote, part = self.group, self.remote, self.part
        called = f"step-{self.steps:08d}.{part.name.removeprefix(PART)}"
        if group.is_leader:
            state = {"steps": self.steps, "sha256": digests, "metrics": self.metrics}
            (part / STATE).write_text(json.dumps(state, allow_nan=False), encoding="utf-8")
            flush(part / STATE)
            final = self.folder / step_of(called)
            replace_folder(part, final)  # a broken one that was passed over, or another worker's equal one
            for old in sorted(self.folder.glob("step-*"), reverse=True)[KEPT_CHECKPOINTS:]:
                shutil.rmtree(old, ignore_errors=True)
            if remote is not None:
                files = [final / name for name in (digests if group.local_leader is None else self.digests)]
                remote.publish(called, files, ((final / STATE).read_bytes(), list(digests)))
        elif remote is not None and group.local_leader is not None:
            remote.publish(called, [part / name for name in self.digests], delete=True)

    def drop(self) -> None:
        if self.group.is_leader:
            shutil.rmtree(self.part, ignore_errors=True)


def write_tensors(file: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Write tensors in their order as safetensors, down to the disk. Returns the sha256 of the file.

    safetensors' own `save_file` makes a copy of all tensors and keeps Python's lock while it writes: the training would
    stand still. Here the lock is held for the header alone, and what is written is not read again for its checksum.
    """
    header, end = {}, 0
    for name, tensor in tensors.items():
        header[name] = (_DTYPES[tensor.dtype], tuple(tensor.shape), end, end + tensor.nbytes)
        end += tensor.nbytes
    digest = sha256()
    with file.open("wb") as output:
        for data in chain([memoryview(encode_header(header, metadata=metadata))], _pieces(tensors)):
            digest.update(data)
            output.write(data)
        output.flush()
        os.fsync(output.fileno())
    return digest.hexdigest()


def _pieces(tensors: Mapping[str, Tensor]) -> Iterator[memoryview]:
    """The bytes of the tensors, one after the other."""
    for tensor in tensors.values():
        if tensor.numel():
            flat = tensor.detach().contiguous().reshape(-1).to("cpu").view(torch.uint8)
            data = memoryview(flat.numpy().data)
            yield from (data[start : start + _PIECE] for start in range(0, len(data), _PIECE))


def _copies(tensors: Tensors) -> tuple[Tensors, "torch.cuda.Event | None"]:
    """Copies of the tensors in the host's memory, and the event after which those of a GPU are there.

    What a GPU is given to do later on the same stream, such as the next update, begins after its copies are made.
    """
    event, copies = None, dict[str, dict[str, Tensor]]()
    for kind, of_kind in tensors.items():
        copies[kind] = {}
        for name, tensor in of_kind.items():
            on_gpu = tensor.device.type == "cuda"
            copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=on_gpu)
            copies[kind][name] = copy.copy_(tensor.detach(), non_blocking=on_gpu)
            if on_gpu and event is None:
                event = torch.cuda.Event()  # type: ignore[no-untyped-call]  # of torch
    if event is not None:
        event.record()
    return copies, event
