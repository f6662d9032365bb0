"""Score batches with every member of a family, and keep the scores on the disk until all are there.

    <resume folder>/<name>.jsonl    {"batches": digest of what is scored}, then one line of scores for every batch

A task that is started again continues after the last whole line, together with whichever others it is now computed
with: a score depends on the member and on the batch alone.

Shapes: B rows, T positions, D hidden size.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

from torch import Tensor

from boomspec.core.layers import LayerPlan
from runners.evaluation.members import Members
from runners.modeling.hidden_states import LMHead
from runners.modeling.shared_forward import Inputs

Score = Callable[[int, LMHead, Tensor], list[Any]]  # (number of a batch, head, hidden_BTD) -> what JSON holds exactly
_EVERY_SECONDS = 20.0  # between two writes


def scores(
    members: Members,
    batches: Sequence[Inputs],
    score: Score,
    *,
    kept: Mapping[LayerPlan, Path] | None = None,
    done: Callable[[float], None] = lambda share: None,
) -> dict[LayerPlan, list[Any]]:
    """What `score` gives for each member, all batches in a row. `kept`: the file of each member."""
    digest = "" if kept is None else _digest(members, batches)
    files = {plan: _Kept(None if kept is None else kept[plan], digest, len(batches)) for plan in members.plans}
    first = sorted({len(file.lines) for file in files.values()})
    for start, end in pairwise([*first, len(batches)]):  # members that were started together are at the same batch
        behind = [plan for plan, file in files.items() if len(file.lines) <= start]

        def visit(number: int, plan: LayerPlan, hidden_BTD: Tensor, start: int = start) -> None:
            files[plan].add(score(start + number, members.head(plan), hidden_BTD))

        def advance(share: float, start: int = start, end: int = end) -> None:
            done((start + share * (end - start)) / len(batches))

        if start < end:
            members.run(behind, batches[start:end], visit, advance)
    for file in files.values():
        file.write()
    return {plan: [value for line in file.lines for value in line] for plan, file in files.items()}


class _Kept:
    """The scores of one member, one line for each batch."""

    def __init__(self, file: Path | None, digest: str, batches: int) -> None:
        self.lines: list[list[Any]] = []
        self._file, self._written, self._time = file, 0, time.monotonic()
        if file is None:
            return
        header = {"batches": digest}
        with suppress(OSError, ValueError):
            rows = [json.loads(line) for line in _whole_lines(file.read_bytes())]
            if rows and rows[0] == header:
                self.lines = [_read(row) for row in rows[1 : batches + 1]]
        # Written anew: what was cut off in the middle of a line is not to be continued.
        file.parent.mkdir(parents=True, exist_ok=True)
        first = json.dumps(header, allow_nan=False) + "\n"
        file.write_text(first + "".join(map(_line, self.lines)), encoding="utf-8")
        self._written = len(self.lines)

    def add(self, values: list[Any]) -> None:
        self.lines.append(values)
        if time.monotonic() - self._time > _EVERY_SECONDS:
            self.write()

    def write(self) -> None:
        if self._file is not None:
            with self._file.open("a", encoding="utf-8") as file:
                file.writelines(map(_line, self.lines[self._written :]))
        self._written, self._time = len(self.lines), time.monotonic()


def _digest(members: Members, batches: Sequence[Inputs]) -> str:
    """What the scores depend on, beside the member: every tensor of every batch, the device and the dtype."""
    found = hashlib.sha256(f"{members.device.type} {members.models[0].dtype}".encode())
    for batch in batches:
        for name, value in vars(batch).items():
            if isinstance(value, Tensor):
                found.update(f"{name} {tuple(value.shape)}".encode() + value.cpu().numpy().tobytes())
    return found.hexdigest()


def _line(values: list[Any]) -> str:
    """Numbers that are not finite are no JSON, and become texts."""

    def plain(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return [plain(inner) for inner in value]
        return str(value) if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(plain(values), allow_nan=False) + "\n"


def _read(value: Any) -> Any:
    """The inverse of `_line`, after the JSON is read."""
    if isinstance(value, list):
        return [_read(inner) for inner in value]
    return float(value) if isinstance(value, str) else value


def _whole_lines(data: bytes) -> list[bytes]:
    return data[: data.rfind(b"\n") + 1].splitlines()
