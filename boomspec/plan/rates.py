"""How long a task takes: from what was measured here, else from the calibration, else from the table of devices.

    measured      tasks of the same kind that this store has: a fixed part and a rate through the seconds in their
                  records and their work (`boomspec.plan.fit`). On CPUs of the same model, each core alike; on GPUs of
                  the same kind
    calibration   a matrix product and a training step that `boomspec plan --calibrate` timed on one core here
    table         `boomspec.core.devices`, for tasks that ask for a GPU, where a device is named
    usual         a rate that is common, for tasks of which only small ones were measured

The work of a task is its operations; where it has none, the bytes that it reads and writes. lm-eval tasks are
compared with the same lm-eval task on another model, by the operations of one token.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ValidationError

from boomspec.core.devices import MEASURING_SHARE, TRAINING_SHARE, Device, device_seen_as
from boomspec.core.files import write_atomically
from boomspec.core.graph import Cost, Node
from boomspec.core.json_text import json_text
from boomspec.core.machine import cpu_model, host
from boomspec.core.tasks import KINDS, Record
from boomspec.plan.fit import Seen, line_of
from boomspec.plan.known_costs import refined
from boomspec.store import Store

CALIBRATION = "cache/calibration.json"
CALIBRATION_SCHEMA = 1
Origin = Literal["measured", "calibration", "table", "usual"]
_USED = 30  # artifacts of one kind
# Of one core of a machine that nothing is known of, operations or bytes a second: right within a factor of a few.
_USUAL_TRAINING, _USUAL_MEASURING, _USUAL_COPYING = 1e10, 2e10, 4e8
_MOST_FIXED = 20.0  # seconds that a task of no work takes, where that was not calibrated
_MOST_OF_STARTUP = 2.0  # times what was calibrated: more processes start at the same time
_USUAL_STARTUP = 5.0


@dataclass(frozen=True)
class Calibration:
    """Operations a second of one core here, seconds until a task's libraries are loaded, bytes a second of copying."""

    training: float
    measuring: float
    startup: float
    copying: float


@dataclass(frozen=True)
class Duration:
    """Seconds of one task, and where they come from."""

    seconds: float
    source: Origin


@dataclass(frozen=True)
class _Sample:
    seen: Seen
    device: str  # of the table, or the CPU's model


class Rates:
    """What is known of speeds here. Reads the store's records once for each kind."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.calibration = read_calibration(store)
        self._samples: dict[tuple[str, ...], list[_Sample]] = {}
        self._kinds: set[str] = set()

    def duration(self, node: Node, cost: Cost | None, device: Device | None) -> Duration | None:
        """How long a task takes on `device` where it asks for a GPU, else on this machine; None where unknown."""
        if cost is None:
            return None
        on_gpu = node.execution.gpus > 0
        if on_gpu and device is None:
            return None
        work, kind = node.task.record.work(cost), _kind(node.task.record)
        if work is None:
            return None
        place = device.name if on_gpu and device is not None else cpu_model()
        share = node.execution.workers * (1.0 if on_gpu else max(1.0, node.execution.cpus))
        if seen := [sample.seen for sample in self._of(kind) if sample.device == place]:
            usual, source = self._usual(node, cost, device if on_gpu else None)
            line = line_of(seen, usual=usual, most_fixed=self._most_fixed(cost, known_rate=usual is not None))
            return Duration(line.seconds(work / share), "measured" if line.is_measured(work / share) else source)
        if cost.unknown and not cost.flops:
            return None
        if on_gpu and device is not None:
            return _by_table(node.task.record, cost, device, node.execution.workers)
        return self._by_calibration(node, cost, share)

    def _by_calibration(self, node: Node, cost: Cost, share: float) -> Duration | None:
        known = self.calibration
        if known is None or node.task.record.bytes_a_second is not None:
            return None
        if cost.flops:
            rate = known.training if node.task.record.trains else known.measuring
            return Duration(self._startup(cost) + cost.flops / (rate * share), "calibration")
        if moved := cost.read + cost.disk:
            return Duration(moved / known.copying, "calibration")
        return None

    def _usual(self, node: Node, cost: Cost, device: Device | None) -> tuple[float | None, Origin]:
        """Seconds for a unit of a task's work as known without such tasks, and where from; None where unknown."""
        record, known = node.task.record, self.calibration
        if cost.unknown and not cost.flops and record.bytes_a_second is None:
            return None, "usual"  # how many tokens there are is not known
        if cost.flops and device is not None:
            return _by_table(record, cost, device, 1).seconds / cost.flops, "table"
        if cost.flops and record.trains:
            return (1 / known.training, "calibration") if known else (1 / _USUAL_TRAINING, "usual")
        if cost.flops:
            return (1 / known.measuring, "calibration") if known else (1 / _USUAL_MEASURING, "usual")
        if not cost.read + cost.disk:
            return None, "usual"
        if record.bytes_a_second is not None:
            return 1 / record.bytes_a_second, "usual"
        return (1 / known.copying, "calibration") if known else (1 / _USUAL_COPYING, "usual")

    def _most_fixed(self, cost: Cost, *, known_rate: bool) -> float:
        """Seconds that a task without any work takes, at most; where no rate is known, those that it usually takes."""
        computes = bool(cost.flops or cost.flops_per_real_token)
        startup = self.calibration.startup if self.calibration and computes else _USUAL_STARTUP * computes
        if not known_rate:
            return startup
        return _MOST_OF_STARTUP * startup if self.calibration and computes else _MOST_FIXED

    def _startup(self, cost: Cost) -> float:
        """Seconds until the libraries are loaded that a task needs which computes; copying needs none of them."""
        computes = cost.flops or cost.flops_per_real_token
        return self.calibration.startup if self.calibration and computes else 0.0

    def _of(self, kind: tuple[str, ...]) -> list[_Sample]:
        if kind[0] not in self._kinds:
            self._kinds.add(kind[0])
            for of, sample in _samples(self._store, kind[0]):
                self._samples.setdefault(of, []).append(sample)
        return self._samples.get(kind, [])


def read_calibration(store: Store) -> Calibration | None:
    """What was calibrated here; None where nothing was, or on another machine."""
    try:
        data = json.loads((store.root / CALIBRATION).read_text(encoding="utf-8"))
        if data["schema"] != CALIBRATION_SCHEMA or (data["host"], data["cpu"]) != (host(), cpu_model()):
            return None
        return Calibration(**{name: float(data["measured"][name]) for name in Calibration.__dataclass_fields__})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def save_calibration(store: Store, measured: Mapping[str, float]) -> None:
    """Remember what `python -m runners.cli.calibrate` measured, and where."""
    data = {"schema": CALIBRATION_SCHEMA, "host": host(), "cpu": cpu_model(), "measured": measured}
    file = store.root / CALIBRATION
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, json_text(data, indent=1) + "\n")


def _by_table(record: Record, cost: Cost, device: Device, workers: int) -> Duration:
    precision, kernels = record.computes_in()
    share = TRAINING_SHARE if record.trains else MEASURING_SHARE
    peak = device.peak(bf16=precision == "bf16", tf32=kernels is not None and kernels.tf32)
    return Duration(cost.flops / (share * peak * workers), "table")


def _kind(record: Record) -> tuple[str, ...]:
    """Tasks of one kind are compared with each other."""
    return record.kind, *record.pace()


def _samples(store: Store, kind: str) -> list[tuple[tuple[str, ...], _Sample]]:
    found = (_sample(store, record) for record in store.newest(kind, _USED))
    return [pair for pair in found if pair is not None]


def _sample(store: Store, data: Mapping[str, Any]) -> tuple[tuple[str, ...], _Sample] | None:
    """One finished task; None for a record that does not say enough, such as one of an older version."""
    try:
        task, made = data["task"], data["provenance"]
        record = KINDS[task["kind"]].model_validate(task["params"])
        cost = refined(Cost(**made["cost"]), record, task["inputs"], store)
        device, share = _place(made)
        work = None if cost is None else record.work(cost)
        seconds = float(made["seconds"])
        if work is None or device is None or not 0 < seconds < math.inf:  # a clock may have been set back meanwhile
            return None
        return _kind(record), _Sample(Seen(work / share, seconds), device)
    except (OSError, ValueError, KeyError, TypeError, ValidationError):
        return None


def _place(made: Mapping[str, Any]) -> tuple[str | None, float]:
    """The device that a task ran on, and among how many cores or workers its work was shared."""
    gpus, execution = made["hardware"]["gpus"], made["execution"]
    workers = int(execution["options"].get("workers", 1))
    if execution["gpus"] and gpus:
        device = device_seen_as(gpus[0])
        return (device.name if device else None), workers
    return made["hardware"]["cpu"], workers * max(1.0, float(execution["cpus"]))
