"""Processes that train together over gloo, without Ray: started once, given one piece of work after another."""

from __future__ import annotations

import multiprocessing
import tempfile
import traceback
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

_SECONDS = 300
_PRELOADED = [
    "torch._dynamo",
    "torch.distributed.fsdp",
    "transformers.models.llama.modeling_llama",
    "runners.tasks.distill",
    "runners.tasks.pretrain",
]


class Crew:
    """`size` processes. Leave it with `close`."""

    def __init__(self, size: int) -> None:
        forking = multiprocessing.get_context("forkserver")  # what takes seconds to import is imported once
        forking.set_forkserver_preload(_PRELOADED)
        self._pipes: list[Connection] = []
        self._processes = []
        for _ in range(size):
            ours, theirs = forking.Pipe()
            process = forking.Process(target=_serve, args=(theirs,), daemon=True)
            process.start()
            self._pipes.append(ours)
            self._processes.append(process)

    def run(self, size: int, work: Callable[..., Any], *arguments: Any) -> list[Any]:
        """`work(*arguments)` in each of the first `size` processes, as one process group. Returns what they return."""
        with tempfile.TemporaryDirectory() as folder:
            for rank, pipe in enumerate(self._pipes[:size]):
                pipe.send((str(Path(folder) / "meeting"), rank, size, work, arguments))
            answers = [pipe.recv() for pipe in self._pipes[:size]]
        failures = [text for good, text in answers if not good]
        assert not failures, "\n".join(failures)
        return [result for _, result in answers]

    def close(self) -> None:
        for pipe in self._pipes:
            with suppress(OSError):
                pipe.send(None)
        for process in self._processes:
            process.join()


def _serve(pipe: Connection) -> None:
    import torch

    torch.set_num_threads(1)
    while (given := pipe.recv()) is not None:
        meeting, rank, size, work, arguments = given
        try:
            torch.distributed.init_process_group(
                "gloo",
                init_method=f"file://{meeting}",
                rank=rank,
                world_size=size,
                timeout=timedelta(seconds=_SECONDS),
            )
            try:
                answer = True, work(*arguments)
            finally:
                torch.distributed.destroy_process_group()
        except BaseException:
            answer = False, f"worker {rank}: {traceback.format_exc()}"
        pipe.send(answer)
