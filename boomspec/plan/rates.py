"""Estimate what tasks cost and take, from the text in the store, earlier tasks, a calibration, or a table of GPUs.

    measured      finished tasks of the same kind in this store: a line through their seconds and their work, of CPUs of
                  the same model (each core alike) or GPUs of the same kind
    calibration   a matrix product and a training step that `boomspec plan --calibrate` timed on one core
    table         `boomspec.core.devices`, for tasks that ask for a GPU, where a device is named
    usual         a common rate, for tasks of which only small ones were measured

The work of a task is its operations; where it has none, the bytes that it reads and writes. lm-eval tasks are
compared with the same lm-eval task on another model, by the operations of one token.

The line is seconds = fixed + work x per_work. A small task takes what it takes to start, and how fast a large one goes
shows in large ones only. So the rate is read off the measured tasks where it makes up a good part of their time; else
the known rate is taken, and the measured tasks give the fixed part and a lower bound of the rate.

Costs that depend on tokenized text are filled in first, where the store has that text: the tokens of held-out text are
in the token artifact's meta.json, and the real tokens of padded sequences follow from the documents in its train.bin.
"""

import json
import math
import socket
from array import array
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from itertools import accumulate
from statistics import median
from typing import Any, Literal, NamedTuple

from boomspec.core.devices import MEASURING_SHARE, TRAINING_SHARE, Device, device_seen_as
from boomspec.core.files import write_atomically
from boomspec.core.graph import Cost, Node
from boomspec.core.json_text import json_text
from boomspec.core.machine import cpu_model
from boomspec.core.tasks import KINDS, Blend, Record, Tokenize
from boomspec.core.tasks.record import TextCounts
from boomspec.store import Store

CALIBRATION = "cache/calibration.json"
CALIBRATION_SCHEMA = 1
Origin = Literal["measured", "calibration", "table", "usual"]
_USED = 30  # artifacts of one kind
_SPREAD = 2.0  # the largest work over the smallest, from which a line can be laid through
_VISIBLE_SECONDS = 2.0  # of the largest task, which its work must take for the rate to show
_VISIBLE_SHARE = 0.5  # of the fixed part, likewise
_NEAR = 4.0  # times the largest work: so far an estimate is called measured, whatever its rate
_MOST_FIXED = 20.0  # seconds that a task of no work takes, where that was not calibrated
_MOST_OF_STARTUP = 2.0  # times what was calibrated: more processes start at the same time
_SCANNED = 1 << 25  # bytes of a stream of tokens at most; longer ones are judged by their beginning


def refined(
    cost: Cost | None, record: Record, inputs: Mapping[str, str], store: Store, unread: set[str] | None = None
) -> Cost | None:
    """A task's cost with what its token artifact says; as it is where there is none, or a damaged one.

    unread: gets the artifacts that say nothing, and says which were asked already.
    """
    unread = set() if unread is None else unread
    if cost is None or not cost.flops_per_real_token or (text := inputs.get("tokens")) is None or text in unread:
        return cost
    try:
        counts = TextCounts(
            partial(_held_out, store, text), partial(_mean_labels, store, text), partial(_windows, store, text)
        )
        return record.counted(cost, counts)
    except (OSError, ValueError, KeyError, TypeError):
        unread.add(text)
        return cost


def _held_out(store: Store, tokens: str) -> int:
    return int(_meta(store, tokens)["held_out"]["tokens"])


@lru_cache(1 << 10)
def _kind(store: Store, tokens: str) -> str:
    """The kind of the task whose tokens these are."""
    return next((kind for kind in (Blend.kind, Tokenize.kind) if store.has(kind, tokens)), Tokenize.kind)


@lru_cache(1 << 10)
def _meta(store: Store, tokens: str) -> Any:
    return json.loads(store.read(_kind(store, tokens), tokens, "meta.json"))


def _windows(store: Store, tokens: str, length: int) -> int:
    """Whole windows of the training text: see `runners/data/tokens.py`."""
    meta = _meta(store, tokens)
    prefix = max(1, len(meta.get("prefix") or []))
    return max(0, (int(meta["train"]["tokens"]) - prefix) // (length + 1 - prefix))


@lru_cache(1 << 6)
def _mean_labels(store: Store, tokens: str, length: int) -> float:
    """Labels of the mean padded row: its document's tokens but the first, `length` at most."""
    meta = _meta(store, tokens)
    if meta.get("ends"):
        return _mean_of_documents(store, tokens, meta, length)
    stream = array("H" if meta["dtype"] == "uint16" else "I")
    stream.frombytes(store.read(_kind(store, tokens), tokens, "train.bin", most=_SCANNED))
    labels = documents = 0
    prefix, at = meta.get("prefix") or [], -1
    before = 1 if prefix == [meta["eos"]] else 0  # of a document's row in front of it: see `runners/data/tokens.py`
    unlabelled = max(0, len(prefix) - 1)
    try:
        if prefix in ([], [meta["eos"]]):
            at = stream.index(meta["eos"])  # the stream begins with one
        while True:
            end = stream.index(meta["eos"], at + 1)
            # of `end - at` tokens, its end-of-text among them
            labels += min(end - at - 1 + before, length) - unlabelled
            documents += 1
            at = end
    except ValueError:
        return labels / documents if documents else 0.0


def _mean_of_documents(store: Store, tokens: str, meta: Any, length: int) -> float:
    """The same where the ends of the documents, and perhaps a mask of labels, lie beside the stream."""
    ends = array("Q")
    ends.frombytes(store.read(_kind(store, tokens), tokens, "train.ends", most=_SCANNED))
    masked, prefix = "labelled" in meta["train"], meta.get("prefix") or []
    mask = store.read(_kind(store, tokens), tokens, "train.labels", most=_SCANNED) if masked else b""
    own = bool(prefix) and prefix != [meta["eos"]]  # documents begin with tokens of their own, or behind an end-of-text
    before = 1 if prefix == [meta["eos"]] else 0
    start, labels, documents = 0 if own else 1, 0, 0
    for end in ends:
        last = min(end, start - before + length + 1)
        if not masked:
            labels += last - start - 1 + before
        elif end > 8 * len(mask):
            break
        else:
            bits = int.from_bytes(mask[start // 8 : -(-last // 8)], "little") >> start % 8
            labels += (bits & ((1 << (last - start)) - 1)).bit_count() - (0 if before else bits & 1)
        documents, start = documents + 1, end
    return labels / documents if documents else 0.0


@dataclass(frozen=True)
class Calibration:
    """Operations a second of one core here, seconds until a task's libraries are loaded, bytes a second of copying."""

    training: float
    measuring: float
    startup: float
    copying: float


# Of a machine that nothing is known of: right within a factor of a few.
_USUAL = Calibration(training=1e10, measuring=2e10, startup=5.0, copying=4e8)


@dataclass(frozen=True)
class Duration:
    """Seconds of one task, and where they come from."""

    seconds: float
    source: Origin


class Seen(NamedTuple):
    """A task that has ended: its work for one of its cores or workers, and its seconds."""

    work: float
    seconds: float


@dataclass(frozen=True)
class LinearFit:
    fixed: float
    per_work: float
    of_data: bool  # the rate comes from measured tasks
    seen: float  # the largest work that was measured

    def seconds(self, work: float) -> float:
        return self.fixed + self.per_work * work

    def is_measured(self, work: float) -> bool:
        """Whether an estimate for so much work follows from measured tasks, not from another rate."""
        return self.of_data or work <= _NEAR * self.seen


class Rates:
    """The speeds of this machine. Reads the store's records once for each kind."""

    def __init__(self, store: Store) -> None:
        self.calibration = read_calibration(store)
        self._measured = cache(partial(_measured, store))

    def duration(self, node: Node, cost: Cost | None, device: Device | None) -> Duration | None:
        """How long a task takes on `device` where it asks for a GPU, else on this machine; None where unknown."""
        record, on_gpu = node.task.record, node.execution.gpus > 0
        if cost is None or (on_gpu and device is None) or (work := record.work(cost)) is None:
            return None
        place = device.name if on_gpu and device is not None else cpu_model()
        share = node.execution.workers * (1.0 if on_gpu else max(1.0, node.execution.cpus))
        rate, source = self._known_rate(record, cost, device if on_gpu else None)
        startup = (self.calibration or _USUAL).startup
        if seen := self._measured(record.kind).get((*record.pace(), place)):
            # Copying needs none of the libraries that a task loads which computes.
            computes = bool(cost.flops or cost.flops_per_real_token)
            fixed = startup if computes else 0.0
            if rate is not None:
                fixed = _MOST_OF_STARTUP * startup if self.calibration and computes else _MOST_FIXED
            line = line_of(seen, usual=rate, most_fixed=fixed)
            return Duration(line.seconds(work / share), "measured" if line.is_measured(work / share) else source)
        if cost.unknown and not cost.flops:
            return None
        if on_gpu:
            return Duration(cost.flops * (rate or 0.0) / node.execution.workers, "table")
        if rate is None or source != "calibration":
            return None
        seconds = startup + cost.flops * rate / share if cost.flops else (cost.read + cost.disk) * rate
        return Duration(seconds, source)

    def _known_rate(self, record: Record, cost: Cost, device: Device | None) -> tuple[float | None, Origin]:
        """Seconds for a unit of a task's work as known without such tasks, and where from; None where unknown."""
        uncounted = cost.unknown and record.bytes_a_second is None  # how many tokens there are is not known
        if not cost.flops and (uncounted or not cost.read + cost.disk):
            return None, "usual"
        if cost.flops and device is not None:
            precision, kernels = record.computes_in()
            peak = device.peak(bf16=precision == "bf16", tf32=kernels is not None and kernels.tf32)
            return 1 / ((TRAINING_SHARE if record.trains else MEASURING_SHARE) * peak), "table"
        if not cost.flops and record.bytes_a_second is not None:
            return 1 / record.bytes_a_second, "usual"
        known = self.calibration or _USUAL
        rate = known.copying if not cost.flops else known.training if record.trains else known.measuring
        return 1 / rate, "calibration" if self.calibration else "usual"


def read_calibration(store: Store) -> Calibration | None:
    """What was calibrated here; None where nothing was, or on another machine."""
    try:
        data = json.loads((store.root / CALIBRATION).read_text(encoding="utf-8"))
        if data["schema"] != CALIBRATION_SCHEMA or (data["host"], data["cpu"]) != (socket.gethostname(), cpu_model()):
            return None
        return Calibration(**{name: float(data["measured"][name]) for name in Calibration.__dataclass_fields__})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def save_calibration(store: Store, measured: Mapping[str, float]) -> None:
    """Remember what `python -m runners.cli.calibrate` measured, and where."""
    data = {"schema": CALIBRATION_SCHEMA, "host": socket.gethostname(), "cpu": cpu_model(), "measured": measured}
    file = store.root / CALIBRATION
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, json_text(data, indent=1) + "\n")


def _measured(store: Store, kind: str) -> dict[tuple[str, ...], list[Seen]]:
    """Finished tasks of a kind by what tells them apart, and by the device: of the table, or the CPU's model."""
    found: dict[tuple[str, ...], list[Seen]] = {}
    for data in store.newest(kind, _USED):
        try:
            task, provenance = data["task"], data["provenance"]
            record = KINDS[task["kind"]].model_validate(task["params"])
            cost = refined(Cost(**provenance["cost"]), record, task["inputs"], store)
            gpus, execution = provenance["hardware"]["gpus"], provenance["execution"]
            share = float(execution["options"].get("workers", 1))
            if execution["gpus"] and gpus:
                known = device_seen_as(gpus[0])
                device = known.name if known else None
            else:
                device, share = provenance["hardware"]["cpu"], share * max(1.0, float(execution["cpus"]))
            work = None if cost is None else record.work(cost)
            seconds = float(provenance["seconds"])
        except (OSError, ValueError, KeyError, TypeError):
            continue  # a record that does not say enough, such as one of an older version
        # A clock may have been set back meanwhile.
        if work is not None and device is not None and 0 < seconds < math.inf:
            found.setdefault((*record.pace(), device), []).append(Seen(work / share, seconds))
    return found


def line_of(seen: Sequence[Seen], *, usual: float | None, most_fixed: float) -> LinearFit:
    """The line through measured tasks.

    usual: seconds for a unit of work, as known otherwise. most_fixed: the most that such a task takes without any work.
    """
    largest = max(one.work for one in seen)
    fixed, per_work = _least_squares(seen)
    spread = largest >= _SPREAD * min(one.work for one in seen)
    if spread and per_work * largest >= max(_VISIBLE_SECONDS, _VISIBLE_SHARE * fixed):
        return LinearFit(fixed, per_work, True, largest)
    if usual is None:
        fixed = min(most_fixed, *(0.9 * one.seconds for one in seen))
        return LinearFit(fixed, _rate(seen, fixed), True, largest)
    fastest = min(one.seconds / one.work for one in seen if one.work >= largest / _SPREAD)
    per_work = min(usual, fastest)  # what was done faster than that shows that it can be
    fixed = max(0.0, median(one.seconds - per_work * one.work for one in seen))
    if fixed <= most_fixed:
        return LinearFit(fixed, per_work, per_work < usual, largest)
    # More than any start takes: it is the work that is slower here.
    return LinearFit(most_fixed, _rate(seen, most_fixed), True, largest)


def _rate(seen: Sequence[Seen], fixed: float) -> float:
    """The median of the rates, each counted by its work: one task that was held up says nothing of the others."""
    rates = sorted((max(one.seconds - fixed, 0.0) / one.work, one.work) for one in seen)
    passed = list(accumulate(work for _, work in rates))
    i = bisect_left(passed, passed[-1] / 2)
    as_many = passed[i] == passed[-1] / 2  # lie on both sides
    return (rates[i][0] + rates[i + 1][0]) / 2 if as_many else rates[i][0]


def _least_squares(seen: Sequence[Seen]) -> tuple[float, float]:
    """Fixed part and rate, neither negative, with the smallest sum of squares of relative errors."""
    weights = [1.0 / max(one.seconds, 1e-3) ** 2 for one in seen]
    one, w, t, ww, wt = sum(weights), 0.0, 0.0, 0.0, 0.0
    for weight, (work, seconds) in zip(weights, seen, strict=True):
        w, t = w + weight * work, t + weight * seconds
        ww, wt = ww + weight * work * work, wt + weight * work * seconds
    determinant = one * ww - w * w
    all_of_one_size = determinant <= 1e-12 * one * ww
    if all_of_one_size or (per_work := (one * wt - w * t) / determinant) < 0:
        return t / one, 0.0
    fixed = (t - per_work * w) / one
    return (fixed, per_work) if fixed >= 0 else (0.0, wt / ww)
