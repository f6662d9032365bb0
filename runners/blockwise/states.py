"""A teacher's hidden states at the boundaries of blocks: compute, store and read them, one layer in memory at a time.

    states.json                 what they are: {"layer", "rows", "rows_per_file", "sequence_length", "hidden", "dtype"}
    states-00000.safetensors    "states" [rows, T, D]: of windows of the text, each there once, in the order in which a
                                training of this seed draws them first

A task that is killed goes on from the files that are whole: <resume>/<layer>-<file>.safetensors are the states that
this layer reads. Each layer is loaded once and runs over all of them, before the next one.

Shapes: B sequences, T positions, D hidden size.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from boomspec.core.errors import BoomspecError
from boomspec.core.tasks import BlockStates
from boomspec.core.work_sizes import STATES_SHARD
from boomspec.models.facts import read_facts
from runners.blockwise.layer import LoneLayer, embedding, lone_layer
from runners.data.tokens import TokenStream
from runners.modeling.models import model_folder
from runners.runtime.context import Context
from runners.runtime.device import autocast, frozen_dtype

_META, _STATES = "states.json", "states"


class StoredStates:
    """The states in the folder of an artifact: `states.rows([3, 1])` are those of two windows, [2, T, D]."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.meta: dict[str, Any] = json.loads((folder / _META).read_text(encoding="utf-8"))
        self._open: tuple[int, Any] | None = None

    def rows(self, numbers: Sequence[int]) -> Tensor:
        """On the CPU. Only these rows are read."""
        per_file = self.meta["rows_per_file"]
        parts, start = [], 0
        while start < len(numbers):  # rows that follow each other are read at once
            end, (file, first) = start + 1, divmod(numbers[start], per_file)
            while end < len(numbers) and numbers[end] == numbers[end - 1] + 1 and numbers[end] // per_file == file:
                end += 1
            parts.append(self._slice(file)[first : first + end - start])
            start = end
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def _slice(self, file: int) -> Any:
        if self._open is None or self._open[0] != file:
            self._open = file, _opened(self._folder / file_name(file)).get_slice(_STATES)
        return self._open[1]


def file_name(number: int) -> str:
    return f"states-{number:05}.safetensors"


def check_vocabulary(stream: TokenStream, rows: int) -> None:
    if stream.vocabulary > rows:
        raise BoomspecError(f"the tokens have a vocabulary of {stream.vocabulary}, but the teacher embeds {rows}")


def write_states(context: Context[BlockStates]) -> None:
    """Compute the states of the record, and write them into the payload."""
    record, model, code = context.record, model_folder(context.inputs["teacher"]), context.code
    stream, facts = TokenStream(context.inputs["tokens"].folder, apart=bool(record.isolate)), read_facts(model)
    check_vocabulary(stream, facts.token_embedding.shape[0])
    length, dtype = record.sequence_length, frozen_dtype(record.precision)
    rows = min(record.sequences, stream.windows(length))
    if rows == 0:
        raise BoomspecError(f"{stream.file}: {len(stream)} tokens are too few for one sequence of {length}")
    hidden = facts.token_embedding.shape[-1]
    per_file = max(1, STATES_SHARD // (length * hidden * dtype.itemsize))
    work = _Work(context, rows, per_file)
    before = StoredStates(context.inputs["states"].folder) if record.begin is not None else None
    first = record.begin or 0

    def tokens(numbers: Sequence[int], place: torch.device) -> Tensor:
        drawn = [stream.inputs(n, sequences=1, sequence_length=length, seed=record.seed) for n in numbers]
        return torch.cat([torch.from_numpy(row) for row in drawn]).to(place)

    with torch.no_grad(), autocast(record.precision):
        if before is None and (left := work.left(None, first)):
            with embedding(model, dtype=dtype, code=code) as embed:
                work.run(left, None, first, lambda _, numbers: embed(tokens(numbers, embed.device)))
        for index in range(first, record.layer):
            source = before if index == record.begin else None
            if left := work.left(index, index + 1, source):
                with lone_layer(model, index, dtype=dtype, code=code) as layer:

                    def step(hidden_BTD: Tensor, numbers: Sequence[int], layer: LoneLayer = layer) -> Tensor:
                        place = layer.model.device
                        return layer(hidden_BTD.to(place), tokens(numbers, place) if record.isolate else None)

                    work.run(left, index, index + 1, step, source)
    work.finish({"layer": record.layer, "sequence_length": length, "hidden": hidden, "dtype": str(dtype)[6:]})


class _Work:
    """The files on their way: which states of which layer are there."""

    def __init__(self, context: Context[BlockStates], rows: int, per_file: int) -> None:
        self._context, self._rows, self._per_file = context, rows, per_file
        self._files = range(-(-rows // per_file))
        record, stages = context.record, context.record.layer - (context.record.begin or 0)
        self._total = (stages + (record.begin is None)) * rows
        self._done = 0
        context.resume.mkdir(parents=True, exist_ok=True)
        for part in context.resume.glob("*.part"):
            part.unlink()
        if any(context.resume.glob("*.safetensors")):
            context.progress.note("continues from the states that are computed")

    def _file(self, layer: int, number: int) -> Path:
        return self._context.resume / f"{layer:05}-{number:05}.safetensors"

    def left(self, before: int | None, after: int, source: StoredStates | None = None) -> list[int]:
        """The files whose states after this step are not there, nor those of a later one."""
        last = self._context.record.layer
        left = [n for n in self._files if not any(_whole(self._file(i, n)) for i in range(after, last + 1))]
        self._done += sum(self._count(n) for n in self._files if n not in left)
        return left

    def _count(self, number: int) -> int:
        return min(self._per_file, self._rows - number * self._per_file)

    def run(
        self,
        files: Sequence[int],
        before: int | None,
        after: int,
        step: Callable[[Any, Sequence[int]], Tensor],
        source: StoredStates | None = None,
    ) -> None:
        """Compute these files of states in front of layer `after`: by `step`, of states before it and rows' numbers."""
        for number in files:
            first, parts = number * self._per_file, []
            read = None
            if before is not None and source is None:
                read = _opened(self._file(before, number)).get_slice(_STATES)
            for start, end in _batches(self._count(number), self._context.batch_size):
                numbers = list(range(first + start, first + end))
                given = None if before is None else source.rows(numbers) if source else read[start:end]  # type: ignore[index]
                parts.append(step(given, numbers).cpu())
                self._done += end - start
                self._context.progress.update(self._done, self._total, unit="sequences")
            part = self._file(after, number).with_suffix(".part")
            save_file({_STATES: torch.cat(parts).contiguous()}, part)
            part.replace(self._file(after, number))
            if before is not None and source is None:
                self._file(before, number).unlink(missing_ok=True)

    def finish(self, meta: dict[str, Any]) -> None:
        for number in self._files:
            shutil.move(self._file(self._context.record.layer, number), self._context.path / file_name(number))
        meta |= {"rows": self._rows, "rows_per_file": self._per_file}
        text = json.dumps(meta, indent=1, allow_nan=False) + "\n"
        (self._context.path / _META).write_text(text, encoding="utf-8")


def _batches(count: int, size: int) -> Iterator[tuple[int, int]]:
    return ((start, min(start + size, count)) for start in range(0, count, size))


def _opened(file: Path) -> Any:
    return safe_open(file, framework="pt")


def _whole(file: Path) -> bool:
    try:
        with safe_open(file, framework="pt") as opened:
            return _STATES in opened.keys()  # noqa: SIM118 - not a mapping
    except (OSError, SafetensorError):
        return False
