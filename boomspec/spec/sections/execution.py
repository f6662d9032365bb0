"""The section `execution`: where and how fast. Nothing in it is part of the identity of a result."""

import re
from typing import Annotated, Literal
from urllib.parse import unquote, urlsplit

from pydantic import AfterValidator, Field

from boomspec.core.devices import DEVICES, others
from boomspec.core.errors import BoomspecError
from boomspec.core.execution import CHECKPOINT_SECONDS
from boomspec.core.types import Bytes, Number, Strict, about
from boomspec.core.work_sizes import BATCH_SIZE, MICRO_BATCH
from boomspec.spec.validate import FieldError
from boomspec.spec.variables import has_variables
from boomspec.store import check_spelling, check_url, is_url

_SMALLEST_AMOUNT = 0.0001  # what Ray counts in
_FIELDS_OF = {"CPU": "cpus", "GPU": "gpus", "memory": "memory"}  # what Ray calls what has a field here
_QUERIED = re.compile(r"([\w.-]+)=")  # an ODBC string in a query has names of its own
_SECRET = re.compile(r"token|secret|passw|pwd|credential|(api|access)[_-]?key|^(key|user(name)?|uid|auth|sig)$", re.I)


def _custom_resources(resources: dict[str, float]) -> dict[str, float]:
    for name, amount in resources.items():
        if name in _FIELDS_OF:
            raise FieldError(f"'{name}' has a field of its own", at=(name,), hint=f"write {_FIELDS_OF[name]}: ...")
        if not name.strip() or name == "object_store_memory" or name.startswith("bundle_group"):
            raise FieldError(f"'{name}' is not a custom resource's name", at=(name,))
        if amount < _SMALLEST_AMOUNT:
            raise FieldError(f"must be at least {_SMALLEST_AMOUNT}", at=(name,), hint="leave it out for none")
        if amount > 1 and amount != int(amount):
            raise FieldError("above 1 only whole numbers are possible", at=(name,))
    return resources


def _one_gpu(amount: float) -> float:
    if amount > 1:
        hint = "a training takes several as `workers`, each with `gpus: 1`; other tasks run side by side, one GPU each"
        raise FieldError(f"a process has at most 1 GPU, not {amount:g}", hint=hint)
    return amount


class Resources(Strict):
    """What one task gets."""

    cpus: Number = about("CPU cores, and threads of the numerical libraries.", default=1, gt=0)
    gpus: Annotated[Number, AfterValidator(_one_gpu)] = about(
        "GPUs; a share below 1 lets tasks share one.", default=0, ge=0
    )
    memory: Bytes | None = Field(None, examples=["8GiB"], gt=0)
    """Main memory that a task claims. Tasks run side by side as far as their claims fit; nothing holds a task to
    its claim. Default: none."""
    resources: Annotated[dict[str, Number], AfterValidator(_custom_resources)] = Field(
        {}, examples=[{"fast_disk": 1}, {"license": 0.5}]
    )
    """Custom resources of the Ray cluster, by name, that a task claims."""


class TrainingResources(Resources):
    """What a training gets."""

    micro_batch: int = about("Sequences of one forward pass.", default=MICRO_BATCH, ge=1)
    checkpoint_seconds: Number = Field(CHECKPOINT_SECONDS, gt=0)
    """Seconds between checkpoints. The step that runs then is ended first; and it is 20 times what the last one
    took to write, where that is more."""
    workers: int = about("Processes that train together; each gets `cpus` and `gpus`.", [4], default=1, ge=1, le=4096)
    min_workers: int | None = Field(None, examples=[2], ge=1)
    """So few may go on when workers or machines are lost; with fewer it waits for room. Default: 1; with `parallel:
    fsdp` or `teacher: sharded`, where each would hold more in its memory, all `workers`."""
    parallel: Literal["ddp", "fsdp"] = Field("ddp", examples=["fsdp"])
    """ddp: each worker holds all of the student. fsdp: its parameters, gradients and moments are cut over the
    workers."""
    activation_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, a third more time."""
    compile: bool = False
    """Compile the layers with torch.compile, which needs a compiler where it trains (g++; Triton on GPUs). It takes
    minutes the first time; what was compiled stays in the store's cache. Numbers agree within rounding."""

    def model_post_init(self, _: object) -> None:
        for name in ("parallel", "min_workers", "teacher"):
            if self.workers == 1 and name in self.model_fields_set:
                raise FieldError(f"one worker has no {name}", at=(name,), hint="set `workers`, which is 1 by default")
        if self.min_workers is not None and self.min_workers > self.workers:
            raise FieldError(f"must not be more than workers ({self.workers})", at=("min_workers",))
        if self.workers > 1 and 0 < self.gpus < 1:
            raise FieldError("workers that train together need a whole GPU each", at=("gpus",), hint="0 or 1")


class DistillResources(TrainingResources):
    """What each distillation gets."""

    teacher: Literal["replicated", "sharded"] = Field("replicated", examples=["sharded"])
    """sharded: the teacher's layers are cut over the workers; replicated: each worker has them all."""
    cohort: int = Field(1, examples=[4], ge=1)
    """So many students of one teacher that train on the same batches, as variants do, may share its forward pass: they
    train side by side in one process, which holds all of them. Each is the same as alone."""

    def model_post_init(self, context: object) -> None:
        super().model_post_init(context)
        if self.workers > 1 and self.cohort > 1:
            raise FieldError(
                "students that share a forward pass have one worker", at=("cohort",), hint="set workers: 1"
            )


class BlockResources(Resources):
    """What the training of one layer alone gets."""

    micro_batch: int = about("Sequences of one forward pass.", default=MICRO_BATCH, ge=1)
    checkpoint_seconds: Number = about("As of every training.", default=CHECKPOINT_SECONDS, gt=0)


class MeasuringResources(Resources):
    """What a task gets that runs models without training them."""

    batch_size: int = about("Sequences of one forward pass.", default=BATCH_SIZE, ge=1)


class WandbSpec(Strict):
    """Weights & Biases. The key is read from WANDB_API_KEY alone."""

    project: str = about("The project.", ["boomerang"], min_length=1)
    entity: str | None = about("The team or person. Default: the key's.", ["my-team"], default=None, min_length=1)


def _server(uri: str) -> str:
    if "://" not in uri:
        raise FieldError(f"'{uri}' has no scheme", hint="such as http://..., sqlite:////... or file:///...")
    if "@" in urlsplit(uri).netloc:
        hint = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD where the run starts"
        raise FieldError("must hold no user name or password: a spec is copied into the store", hint=hint)
    for name in _QUERIED.findall(unquote(urlsplit(uri).query)):
        if _SECRET.search(name):
            hint = "set MLFLOW_TRACKING_TOKEN, or the variables of the database's driver, where the run starts"
            raise FieldError(f"must hold no '{name}': a spec is copied into the store", hint=hint)
    return uri


class MlflowSpec(Strict):
    """MLflow. User names, passwords and tokens are read from MLflow's own variables alone."""

    uri: Annotated[str, Field(min_length=1), AfterValidator(_server)] = Field(
        examples=["http://mlflow.example:5000", "sqlite:////shared/mlflow.db"]
    )
    """The tracking server, or a database."""
    experiment: str | None = Field(None, examples=["boomerang"], min_length=1)
    """The experiment. Default: the spec's name."""


class TrackingSpec(Strict):
    """Where the numbers of a run can be watched while it runs."""

    tensorboard: bool = about("Write TensorBoard's files into the run's folder.", [False], default=True)
    wandb: WandbSpec | None = about("Log to Weights & Biases, too.", [{"project": "boomerang"}], default=None)
    mlflow: MlflowSpec | None = about("Log to MLflow, too.", [{"uri": "http://mlflow.example:5000"}], default=None)


def _device(device: str) -> str:
    if device not in DEVICES:
        raise FieldError(f"no device '{device}' is known", hint=others(device))
    return device


def _store(store: str) -> str:
    try:
        check_spelling(store)
        if is_url(store) and not has_variables(store):
            check_url(store)
    except BoomspecError as error:
        raise FieldError(error.message, hint=error.hint) from error
    return store


_AS = {"seam": "search", "blend": "tokenize"}  # kinds that get what another one does


class ExecutionSpec(Strict):
    """Where and how fast. Nothing here is part of a result's identity."""

    store: Annotated[str, Field(min_length=1), AfterValidator(_store)] | None = Field(
        None, examples=["../boomspec-store", "/shared/boomspec-store", "s3://bucket/boomspec"]
    )
    """Where the artifacts are: a folder, relative to the spec, or a URL (s3://, gs://, az://); ${NAME} is an
    environment variable. Default: ./boomspec-store where a run is started."""
    cpus: int | None = about("Cores that a local run uses; default: all.", [8], default=None, ge=1)
    retries: int = about("New attempts when a worker is lost.", default=2, ge=0, le=100)
    device: Annotated[str, AfterValidator(_device)] | None = Field(None, examples=["h100", "a100-80"])
    """Kind of GPU that `plan` reckons with, for times and for what fits: a name of its table."""
    tokenize: Resources = about(
        "For making tokens of the text, and for mixing those of several sources.", default=Resources()
    )
    pretrain: TrainingResources = about("For training a teacher.", default=TrainingResources())
    distill: DistillResources = about("For each distillation.", default=DistillResources())
    distill_block: BlockResources | None = Field(None, examples=[{"gpus": 1, "micro_batch": 16}])
    """For each block of a student that is distilled blockwise: one process. Default: what `distill` has."""
    block_states: MeasuringResources | None = Field(None, examples=[{"gpus": 1, "batch_size": 32}])
    """For the teacher's states at one boundary of blocks. Default: what `distill` has."""
    generate: MeasuringResources = about("For text that a teacher writes.", default=MeasuringResources())
    teacher_outputs: MeasuringResources = about("For storing the teacher's outputs.", default=MeasuringResources())
    search: MeasuringResources = about("For a choice or a fit that needs data.", default=MeasuringResources())
    interpolate: Resources = about("For building one size.", default=Resources())
    baseline: MeasuringResources | None = Field(None, examples=[{"gpus": 1, "batch_size": 16}])
    """For a baseline that needs no training. Default: what `interpolate` has."""
    evaluate: MeasuringResources = about("For measuring one model in one way.", default=MeasuringResources())
    texts: Resources | None = Field(None, examples=[{"gpus": 1}])
    """For the texts that one model writes. Default: what `evaluate` has."""
    speed: Resources | None = Field(None, examples=[{"gpus": 1}, {"cpus": 16}])
    """For measuring the speed of one model; the rest of the run waits meanwhile. Default: what `evaluate` has, a share
    of a GPU being a whole one."""
    tracking: TrackingSpec = TrackingSpec()
    """How a run is watched: TensorBoard, Weights & Biases, MLflow."""

    def model_post_init(self, _: object) -> None:
        if self.speed is not None and 0 < self.speed.gpus < 1:
            raise FieldError("the speed of a GPU is that of a whole one", at=("speed", "gpus"), hint="0 or 1")

    def of(self, kind: str) -> Resources:
        """What each task of a kind gets."""
        if kind == "baseline" and self.baseline is None:
            return MeasuringResources(**self.interpolate.model_dump())
        if kind in _AS:
            shared: Resources = getattr(self, _AS[kind])
            return shared
        if kind == "distill_block" and self.distill_block is None:
            return BlockResources(**self.distill.model_dump(include=set(BlockResources.model_fields)))
        if kind == "block_states" and self.block_states is None:
            return MeasuringResources(**self.distill.model_dump(include=set(Resources.model_fields)))
        if kind in ("texts", "speed") and getattr(self, kind) is None:
            given = self.evaluate.model_dump(include=set(Resources.model_fields))
            return Resources(**given | ({"gpus": float(self.evaluate.gpus > 0)} if kind == "speed" else {}))
        resources: Resources = getattr(self, kind, Resources())
        return resources
