"""Execution options of a task (CPUs, GPUs, workers, retries); never hashed into its task id."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from boomspec.core.work_sizes import MICRO_BATCH

CHECKPOINT_SECONDS = 60  # between two checkpoints of a training

Parallel = Literal["ddp", "fsdp"]


@dataclass(frozen=True)
class TrainingOptions:
    """How one training uses its machines. `teacher` and `cohort` are None where there is no teacher."""

    micro_batch: int = MICRO_BATCH
    checkpoint_seconds: float = CHECKPOINT_SECONDS
    workers: int = 1
    min_workers: int | None = None
    parallel: Parallel = "ddp"
    activation_checkpointing: bool = False
    compile: bool = False
    teacher: Literal["replicated", "sharded"] | None = None
    cohort: int | None = None  # students that may share one teacher's forward pass; None where there is no teacher

    @property
    def least_workers(self) -> int:
        """How many workers it needs at least. Each holds more of a sharded model when some are missing."""
        sharded = self.parallel == "fsdp" or self.teacher == "sharded"
        return self.min_workers or (self.workers if sharded else 1)


@dataclass(frozen=True)
class Execution:
    """Where and how fast one task runs."""

    cpus: float = 1
    gpus: float = 0
    retries: int = 2  # for lost workers; an error of the task itself is not retried
    training: TrainingOptions | None = None  # None for kinds that do not train
    batch_size: int | None = None  # None for kinds that run no model
    code: tuple[str, ...] = ()  # sha256 of the files of foreign code that the spec trusts and the task may run
    rows: dict[str, Any] | None = None  # what a lock says of the rows that it must read
    memory: int = 0  # bytes of main memory that it claims
    resources: dict[str, float] = field(default_factory=dict)  # custom ones of the cluster

    @property
    def workers(self) -> int:
        """How many workers train together, each of which gets all that this says."""
        return 1 if self.training is None else self.training.workers

    @property
    def claims(self) -> dict[str, float]:
        """What one worker takes of its machine, by Ray's names; what it takes nothing of is left out."""
        every = {"CPU": self.cpus, "GPU": self.gpus, "memory": self.memory, **self.resources}
        return {name: amount for name, amount in every.items() if amount}

    def options(self) -> dict[str, Any]:
        """The fields that JSON keeps in one object, "options"; what is None or empty is left out of it."""
        training = {} if self.training is None else asdict(self.training)
        for name in ("teacher", "cohort"):
            if training.get(name, "") is None:
                del training[name]
        others = {"batch_size": self.batch_size, "code": list(self.code), "rows": self.rows}
        return training | {name: value for name, value in others.items() if value}

    def to_json(self) -> dict[str, Any]:
        claims = {"memory": self.memory, "resources": self.resources}
        return {"cpus": self.cpus, "gpus": self.gpus, "retries": self.retries, "options": self.options(), **claims}


def read_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of an `Execution` in its JSON's "options". Raises TypeError for an option that does not exist."""
    training = dict(options)
    size, code, rows = (training.pop(name, None) for name in ("batch_size", "code", "rows"))
    trains = TrainingOptions(**training) if training else None
    return {"training": trains, "batch_size": size, "code": tuple(code or ()), "rows": rows}
