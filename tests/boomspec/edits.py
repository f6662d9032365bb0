"""Edits of a spec, and what each of them changes: the table that test_edits.py holds the compiler and `diff` to."""

import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import yaml

from boomspec.compile.compiler import Compiled, compile_experiments
from boomspec.core.losses import LOSSES
from boomspec.plan.origins import Side, side
from boomspec.spec.experiments import load_spec

SPEC = """\
boomspec: 1
name: tiny
seed: 0
teacher:
  pretrain:
    layers: 6
    hidden_size: 16
    intermediate_size: 32
    attention_heads: 2
    tokenizer: {vocabulary: 300, train_on: 10KB}
    tokens: 4096
    batch_tokens: 256
    optimizer: {lr: 3e-3}
student:
  keep: [0, 2, 4]
data:
  files: texts/*.txt
  sequence_length: 32
  held_out: {every: 4}
distill:
  tokens: 2048
  batch_tokens: 256
  losses:
    cross_entropy: {weight: 1.0}
    kl: {weight: 0.1}
    hidden_cosine: {weight: 2.0}
evaluate:
  tasks: [first, {task: second, limit: 5}]
  tasks_folder: tasks
  held_out: {}
baselines: [naive_pruning, random_init, standard_distillation, laco]
execution:
  store: store
"""
TASK = (
    "task: NAME\noutput_type: multiple_choice\ntest_split: test\ntraining_split: train\nmetric_list: [{metric: acc}]\n"
)
MEASURES = ("held_out", "first", "second")
SERIES = {
    "teacher": ["teacher"],
    "student": ["student"],
    "interpolated": ["interpolated 4 layers", "interpolated 5 layers"],
    "naive_pruning": [f"naive_pruning {n} layers" for n in (3, 4, 5)],
    "random_init": ["random_init student", "random_init 4 layers", "random_init 5 layers"],
    "standard_distillation": [f"standard_distillation {n} layers" for n in (4, 5)],
    "laco": [f"laco {n} layers" for n in (3, 4, 5)],
}
STUDENTS = ["distill student", "distill random_init"]
STANDARD = ["distill standard_distillation 4 layers", "distill standard_distillation 5 layers"]
DISTILLED = STUDENTS + STANDARD
SIZES = [f"interpolate {n} layers{series}" for series in ("", " random_init") for n in (4, 5)]
PRUNED = [f"prune to {n} layers" for n in (3, 4, 5)]
LACO = [f"laco to {n} layers" for n in (3, 4, 5)]


def evaluations(*series: str, measures: tuple[str, ...] = MEASURES) -> list[str]:
    """Names of the evaluations of these series; of all without any."""
    models = [model for name in series or SERIES for model in SERIES[name]]
    return [f"evaluate {model}: {measure}" for model in models for measure in measures]


def of_size(layers: int) -> list[str]:
    """All tasks of the models that have so many layers, those of the evaluations included."""
    made = [name for name in (*SIZES, *PRUNED, *LACO, *STANDARD) if f" {layers} layers" in name]
    return made + [name for name in evaluations() if f" {layers} layers" in name]


class Folder:
    """A folder with the spec, its texts and its lm-eval tasks."""

    def __init__(self, path: Path) -> None:
        self.path = path
        for name in ("texts", "tasks"):
            (path / name).mkdir()
        for i in range(8):
            (path / "texts" / f"{i}.txt").write_text(f"document {i}\n" * 40)
        for name in ("first", "second", "third"):
            (path / "tasks" / f"{name}.yaml").write_text(TASK.replace("NAME", name))

    def compiled(self, text: str = SPEC) -> Compiled:
        path = self.path / "spec.yaml"
        path.write_text(textwrap.dedent(text))
        return compile_experiments([load_spec(path)])

    def edited(self, *edits: "Edit") -> Compiled:
        """The spec with all of these edits made."""
        text = SPEC
        data = yaml.safe_load(SPEC)
        for edit in edits:
            for path, value in edit.fields.items():
                put(data, path, value)
            if edit.files is not None:
                edit.files(self.path)
            text = edit.text or text
        return self.compiled(text if text != SPEC else yaml.safe_dump(data, sort_keys=False))

    def side(self, compiled: Compiled) -> Side:
        return side(compiled, compiled.graph.experiments[0])


def put(data: dict, path: str, value: object) -> None:
    """Set a field of a spec; None removes it."""
    *parents, last = path.split(".")
    for part in parents:
        data = data.setdefault(part, {})
    if value is None:
        del data[last]
    else:
        data[last] = value


@dataclass(frozen=True)
class Edit:
    """`fields` are set in SPEC; or its `text` is another; `files` are changed beside it.

    says: the fields that a comparison names, each with its class. own: the tasks that these change themselves; all that
    need them are changed, too. added, removed: the tasks that only one side has.
    """

    fields: dict[str, object]
    says: dict[str, str]
    own: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    text: str = ""
    files: Callable[[Path], None] | None = None


def none(**fields: object) -> Edit:
    """No difference at all."""
    return Edit({name.replace("__", "."): value for name, value in fields.items()}, {})


def cosmetic(field: str, value: object, *, says: str = "", own: tuple[str, ...] = ()) -> Edit:
    return Edit({field: value}, {says or field: "cosmetic"}, own)


def execution(field: str, value: object, says: str = "") -> Edit:
    return Edit({field: value}, {says or field: "execution"})


def results(field: str, value: object, *own: str, says: str = "") -> Edit:
    return Edit({field: value}, {says or field: "results"}, own)


OTHER_TEXT = """\
    # Other order, other notation, defaults written out, the mapping as a rule, an alias.
    execution: {store: store, retries: 2}
    name: tiny
    boomspec: 1
    data: {held_out: {every: 4, offset: 0}, sequence_length: 32.0, skip: 0, files: ["texts/*.txt"]}
    baselines: [{laco: {merge: 4}}, {random_init: {tokens: 2.048k}}, {standard_distillation: {}}, naive_pruning]
    student: {keep: {every: 2, last: 0}, train_embedding: true}
    distill:
      batch_tokens: &batch 256.0
      tokens: 2_048
      optimizer: {lr: 0.0003, betas: [0.9, 0.95], eps: 1e-8, weight_decay: 10%, clip: 1}
      schedule: {kind: cosine, warmup: 1%, final: 0}
      precision: bf16
      faithful: {padding: false}
    evaluate: {held_out: {}, precision: bf16, tasks_folder: tasks, tasks: [{task: first}, {limit: 5, task: second}]}
    determinism: {tf32: false}
    interpolate: {order: [2, 1, 0], sizes: [4 layers, 5 layers], singletons: student}
    teacher:
      pretrain:
        {layers: 6, hidden_size: 16, intermediate_size: 32, attention_heads: 2, key_value_heads: 2, tokens: 4.096k,
         batch_tokens: *batch, optimizer: {lr: .003}, tokenizer: {train_on: 10000, vocabulary: 300}}
    seed: 0
    """


def moved_texts(path: Path) -> None:
    (path / "texts").rename(path / "moved")


def moved_tasks(path: Path) -> None:
    (path / "tasks").rename(path / "elsewhere")


def another_byte(path: Path) -> None:
    (path / "texts" / "5.txt").write_text("document 5!\n" * 40)


def one_more_text(path: Path) -> None:
    (path / "texts" / "8.txt").write_text("document 8\n" * 40)


def own_held_out(path: Path) -> None:
    (path / "own.txt").write_text("held out\n" * 40)


def another_task(path: Path) -> None:
    (path / "tasks" / "first.yaml").write_text(TASK.replace("NAME", "first") + "num_fewshot: 1\n")


_ALL_LOSSES = {"cross_entropy": {"weight": 1.0}, "kl": {"weight": 0.1}, "hidden_cosine": {"weight": 2.0}}
_BASELINES = ["naive_pruning", "random_init", "standard_distillation", "laco"]

NONE = {
    "comments, order, notation, defaults, a rule, an alias": Edit({}, {}, text=OTHER_TEXT),
    "comments alone": Edit({}, {}, text="# why\n" + SPEC),
    "the default seed left out": none(seed=None),
    "a quantity with a unit": none(teacher__pretrain__tokens="4.096k"),
    "the same quantity in bytes": none(teacher__pretrain__tokenizer={"vocabulary": 300, "train_on": "10000B"}),
    "a list as a rule": none(student__keep={"every": 2, "first": 1, "last": 0}),
    "a list as a count": none(student__keep=3),
    "the order written out": none(interpolate={"order": [2, 1, 0]}),
    "all sizes by name": none(interpolate={"sizes": ["4 layers", "5 layers"]}),
    "a way to choose that comes to the same": none(
        interpolate={"sizes": ["4 layers", "5 layers"], "choose": "nearest"}
    ),
    "the published rule where there are no singletons": none(interpolate={"singletons": "reference"}),
    "a pattern as a list of one": none(data__files=["texts/*.txt"]),
    "the format of the files": none(data__format="text"),
    "baselines in another order": none(baselines=list(reversed(_BASELINES))),
    "a baseline's default tokens": none(
        baselines=["naive_pruning", {"random_init": {"tokens": 2048}}, *_BASELINES[2:]]
    ),
    "every quirk switched off": none(distill__faithful={"padding": False, "summed_micro_batches": 1}),
    "heads by default": none(teacher__pretrain__key_value_heads=2),
    "positions by default": none(teacher__pretrain__positions=32),
    "rows without text, and how documents begin, by default": none(data__on_bad_row="error", data__bos="auto"),
    "kernels by default": none(determinism={"algorithms": "deterministic"}),
}
COSMETIC = {
    "another name": cosmetic("name", "renamed"),
    "the same files by other patterns": cosmetic("data.files", ["texts/[0-3].txt", "texts/*.txt"]),
    "moved files": Edit({"data.files": "moved/*.txt"}, {"data.files": "cosmetic"}, files=moved_texts),
    "moved tasks": Edit(
        {"evaluate.tasks_folder": "elsewhere"}, {"evaluate.tasks_folder": "cosmetic"}, files=moved_tasks
    ),
    "resamples where no standard error is bootstrapped": cosmetic("evaluate.bootstrap_iters", 200),
    "tokens that make as many steps": Edit({"distill.tokens": 2050}, {"distill.tokens": "cosmetic"}),
    "a batch of as many sequences": cosmetic("distill.batch_tokens", 260),
    "a warm-up of as many steps": cosmetic("distill.schedule", {"warmup": 0}, says="distill.schedule.warmup"),
    "how exactly a repetition has to agree": cosmetic("determinism", {"tolerance": 0.01}, says="determinism.tolerance"),
    "the columns of the report in another order": cosmetic(
        "evaluate.tasks", [{"task": "second", "limit": 5}, "first"], says="evaluate.tasks.order", own=("report",)
    ),
}
EXECUTION = {
    "another store": execution("execution.store", "elsewhere"),
    "cores of a local run": execution("execution.cpus", 7),
    "retries": execution("execution.retries", 0),
    "the kind of GPU": execution("execution.device", "h100"),
    "a GPU for the distillation": execution("execution.distill", {"gpus": 1}, "execution.distill.gpus"),
    "a smaller micro batch": execution("execution.distill", {"micro_batch": 1}, "execution.distill.micro_batch"),
    "rarer checkpoints": execution(
        "execution.pretrain", {"checkpoint_seconds": 600}, "execution.pretrain.checkpoint_seconds"
    ),
    "larger batches of evaluation": execution(
        "execution.evaluate", {"batch_size": 64}, "execution.evaluate.batch_size"
    ),
    "cores for building": execution("execution.interpolate", {"cpus": 2}, "execution.interpolate.cpus"),
    "a baseline's own cores": execution("execution.baseline", {"cpus": 2}, "execution.baseline.cpus"),
    "a search's own cores": execution("execution.search", {"cpus": 2}, "execution.search.cpus"),
    "smaller batches of a search": execution("execution.search", {"batch_size": 2}, "execution.search.batch_size"),
    "memory for the evaluations": execution("execution.evaluate", {"memory": "8GiB"}, "execution.evaluate.memory"),
    "memory for the distillation": execution("execution.distill", {"memory": "8GiB"}, "execution.distill.memory"),
    "a resource of the cluster": execution(
        "execution.evaluate", {"resources": {"fast_disk": 1}}, "execution.evaluate.resources.fast_disk"
    ),
    "no files for TensorBoard": execution(
        "execution.tracking", {"tensorboard": False}, "execution.tracking.tensorboard"
    ),
    "Weights & Biases": execution("execution.tracking", {"wandb": {"project": "x"}}, "execution.tracking.wandb"),
    "MLflow": execution("execution.tracking", {"mlflow": {"uri": "http://mlflow:5000"}}, "execution.tracking.mlflow"),
    "cores for the tokens": execution("execution.tokenize", {"cpus": 2}, "execution.tokenize.cpus"),
}
RESULTS = {
    "patch-aware training": results("distill.patch_aware", {"share": 0.25}, *STUDENTS),
    "weights fitted at the seams": Edit(
        {"interpolate.seam": {"fit": "refit"}},
        {"interpolate.seam": "results"},
        tuple(SIZES),
        added=tuple(f"fit seams: {name}" for name in SIZES),
    ),
    # The lm-eval tasks draw nothing at random.
    "the seed": results("seed", 1, "pretrain teacher", *DISTILLED, *LACO),
    "a deeper teacher": Edit(
        {"teacher.pretrain.layers": 8},
        {"teacher.pretrain.layers": "results"},
        ("pretrain teacher", "laco to 3 layers", "report"),
        added=tuple(name.replace(" 4 ", " 6 ").replace(" 5 ", " 7 ") for size in (4, 5) for name in of_size(size)),
        removed=(*of_size(4), *of_size(5)),
    ),
    "the teacher's width": results("teacher.pretrain.hidden_size", 32, "pretrain teacher", "report"),
    "the teacher's MLP": results("teacher.pretrain.intermediate_size", 64, "pretrain teacher", "report"),
    "the teacher's initial weights": results("teacher.pretrain.initializer_range", 0.08, "pretrain teacher"),
    "an untied teacher": results("teacher.pretrain.tied_embeddings", False, "pretrain teacher", "report"),
    "the teacher's learning rate": results("teacher.pretrain.optimizer.lr", "1e-3", "pretrain teacher"),
    "the teacher's tokens": results("teacher.pretrain.tokens", 8192, "pretrain teacher"),
    "the vocabulary": results("teacher.pretrain.tokenizer.vocabulary", 310, "tokenize", "pretrain teacher", "report"),
    "the text that the tokenizer sees": results("teacher.pretrain.tokenizer.train_on", "5KB", "tokenize"),
    "another byte in a file": Edit({}, {"sources.data": "results"}, ("tokenize",), files=another_byte),
    "one more file": Edit({}, {"sources.data": "results"}, ("tokenize",), files=one_more_text),
    "fewer files by name": Edit(
        {"data.files": "texts/[0-6].txt"}, {"data.files": "results", "sources.data": "results"}, ("tokenize",)
    ),
    "other documents held out": results("data.held_out.every", 3, "tokenize"),
    "documents passed over": results("data.skip", 1, "tokenize"),
    "held-out text in files of its own": Edit(
        {"data.held_out": {"files": "own.txt"}},
        {
            **dict.fromkeys(["data.held_out.every", "data.held_out.offset", "data.held_out.files"], "results"),
            "sources.held_out_text": "results",
        },
        ("tokenize",),
        files=own_held_out,
    ),
    "documents without a token of their own": results("data.bos", False, "tokenize"),
    "rows without text left out": results("data.on_bad_row", "skip", "tokenize"),
    "more positions": results("teacher.pretrain.positions", 64, "pretrain teacher"),
    "fewer tokens of the text": results("data.max_tokens", 900, "tokenize"),
    "shorter sequences": results(
        "data.sequence_length", 16, "pretrain teacher", *DISTILLED, *LACO, *evaluations(measures=("held_out",))
    ),
    "documents that do not see each other": results(
        "data.isolate_documents", True, "pretrain teacher", *DISTILLED, *LACO, *evaluations(measures=("held_out",))
    ),
    "the weight of a loss": results("distill.losses.kl.weight", 0.2, *DISTILLED),
    "a loss left out": results("distill.losses.kl", None, *DISTILLED),
    "the temperature": results(
        "distill.losses.kl", {"weight": 0.1, "temperature": 2}, *DISTILLED, says="distill.losses.kl.temperature"
    ),
    "the last pair of the cosine": results("distill.losses.hidden_cosine.final_norm", False, *DISTILLED),
    **{
        f"the loss {kind}": results(f"distill.losses.{kind}", {}, *DISTILLED)
        for kind, loss in LOSSES.items()
        if "logits" in loss.reads and not loss.usual
    },
    "standardised logits": results("distill.losses.kl.standardise", True, *DISTILLED),
    "a weight that changes": results(
        "distill.losses.hidden_cosine.weight", {"start": 2.0, "end": 0.1, "over": "50%"}, *DISTILLED
    ),
    "balanced terms": results("distill.balance", "start", *DISTILLED),
    "blocks that are trained alone, and a polish": Edit(
        {"distill.losses": {"hidden_nmse": {}}, "distill.blockwise": {"polish": {"tokens": 1024}}},
        {"distill.blockwise": "results", **{f"distill.losses.{k}": "results" for k in (*_ALL_LOSSES, "hidden_nmse")}},
        own=(*DISTILLED, "report"),
        added=(
            *(f"states before layer {i}" for i in (0, 2, 4)),
            "states after layer 5",
            *(f"distill layers {i} to {i + 1}{of}" for of in ("", " of random_init") for i in (0, 2, 4)),
            *(f"join {name.removeprefix('distill ')}" for name in DISTILLED),
        ),
    ),
    "the batch": results("distill.batch_tokens", 512, *DISTILLED),
    "the tokens": results("distill.tokens", 4096, *DISTILLED),
    "two phases": Edit(
        {
            "distill.tokens": None,
            "distill.phases": [{"tokens": 1024}, {"tokens": 1024, "losses": {"cross_entropy": {}}}],
        },
        {"distill.tokens": "results", "distill.phases": "results"},
        (*DISTILLED, "report"),
        added=(
            *(f"{name}, phase 1" for name in DISTILLED),
            *(f"evaluate student after phase 1: {measure}" for measure in MEASURES),
        ),
    ),
    "the optimiser": results(
        "distill.optimizer", {"weight_decay": 0}, *DISTILLED, says="distill.optimizer.weight_decay"
    ),
    "the warm-up": results("distill.schedule", {"warmup": "50%"}, *DISTILLED, says="distill.schedule.warmup"),
    "the kind of schedule": results("distill.schedule", {"kind": "linear"}, *DISTILLED, says="distill.schedule.kind"),
    "the precision of the training": results("distill.precision", "fp32", *DISTILLED),
    "a quirk of the published code": results(
        "distill.faithful", {"padding": True}, *DISTILLED, says="distill.faithful.padding"
    ),
    "a frozen embedding": results("student.train_embedding", False, *DISTILLED, *SIZES, "report"),
    "another mapping": Edit(
        {"student.keep": [0, 2, 3]},
        {"student.keep": "results"},
        # Block 1 is one layer now, so there is no model of four. Naive pruning to five layers keeps the same ones.
        (*STUDENTS, "interpolate 5 layers", "interpolate 5 layers random_init", "prune to 3 layers", "report"),
        removed=tuple(of_size(4)),
    ),
    "the other order": results(
        "interpolate",
        {"order": "first_to_last"},
        *SIZES,
        *STANDARD,
        "prune to 4 layers",
        "prune to 5 layers",
        says="interpolate.order",
    ),
    "fewer sizes": Edit(
        {"interpolate": {"sizes": ["5 layers"]}},
        {"interpolate.sizes": "results"},
        ("report",),
        removed=tuple(of_size(4)),
    ),
    "the precision of the measurements": results("evaluate.precision", "fp32", *evaluations(), *LACO),
    "less held-out text": results(
        "evaluate.held_out",
        {"max_tokens": 100},
        *evaluations(measures=("held_out",)),
        says="evaluate.held_out.max_tokens",
    ),
    "another limit of one task": results(
        "evaluate.tasks",
        ["first", {"task": "second", "limit": 9}],
        *evaluations(measures=("second",)),
        says="evaluate.tasks.second.limit",
    ),
    "examples for one task": results(
        "evaluate.tasks",
        [{"task": "first", "num_fewshot": 2}, {"task": "second", "limit": 5}],
        *evaluations(measures=("first",)),
        says="evaluate.tasks.first.num_fewshot",
    ),
    "texts that every size writes": Edit(
        {"evaluate.texts": {"prompts": ["document"], "chat": False, "temperature": 0.5}},
        {"evaluate.texts": "results"},
        ("report",),
        added=tuple(f"texts of {model}" for models in SERIES.values() for model in models),
    ),
    "the speed of every size": Edit(
        {"evaluate.speed": {"prompt_tokens": 8, "new_tokens": 4}},
        {"evaluate.speed": "results"},
        ("report",),
        added=tuple(f"speed of {model}" for models in SERIES.values() for model in models),
    ),
    "the student measured while it is trained": results("evaluate.every", "50%", "distill student"),
    "its size measured while it is trained": Edit(
        {"evaluate.every": 4, "evaluate.during": {"sizes": ["4 layers"]}},
        {"evaluate.every": "results", "evaluate.during": "results"},
        ("distill student",),
    ),
    "one task asked in a second way": Edit(
        {"evaluate.tasks": ["first", {"task": "second", "limit": 5}, {"task": "first", "num_fewshot": 5}]},
        {"evaluate.tasks.first (5-shot)": "results"},
        ("report",),
        added=tuple(evaluations(measures=("first (5-shot)",))),
    ),
    "one task less": Edit(
        {"evaluate.tasks": ["first"]},
        {"evaluate.tasks.second": "results"},
        ("report",),
        removed=tuple(evaluations(measures=("second",))),
    ),
    "one task more": Edit(
        {"evaluate.tasks": ["first", {"task": "second", "limit": 5}, "third"]},
        {"evaluate.tasks.third": "results"},
        ("report",),
        added=tuple(evaluations(measures=("third",))),
    ),
    "the held-out text not measured": Edit(
        {"evaluate.held_out": None},
        {"evaluate.held_out": "results"},
        ("report",),
        removed=tuple(evaluations(measures=("held_out",))),
    ),
    "a task's own file": Edit(
        {}, {"sources.lm_eval_tasks": "results"}, tuple(evaluations(measures=("first", "second"))), files=another_task
    ),
    "one baseline less": Edit(
        {"baselines": ["random_init", "standard_distillation", "laco"]},
        {"baselines.naive_pruning": "results"},
        ("report",),
        removed=(*PRUNED, *evaluations("naive_pruning")),
    ),
    "a trained baseline less": Edit(
        {"baselines": ["naive_pruning", "standard_distillation", "laco"]},
        {"baselines.random_init": "results"},
        ("report",),
        removed=("distill random_init", *(n for n in SIZES if "random_init" in n), *evaluations("random_init")),
    ),
    "a longer control": results(
        "baselines",
        ["naive_pruning", {"random_init": {"tokens": 4096}}, "standard_distillation", "laco"],
        "distill random_init",
        says="baselines.random_init.tokens",
    ),
    "when a merge is kept": results(
        "baselines", [*_BASELINES[:3], {"laco": {"threshold": 0.6}}], *LACO, says="baselines.laco.threshold"
    ),
    "what a baseline is calibrated on": results(
        "baselines",
        [*_BASELINES[:3], {"laco": {"calibration": {"sequences": 8}}}],
        *LACO,
        says="baselines.laco.calibration.sequences",
    ),
    "TF32": results(
        "determinism", {"tf32": True}, "pretrain teacher", *DISTILLED, *LACO, *evaluations(), says="determinism.tf32"
    ),
}
TABLE = {**NONE, **COSMETIC, **EXECUTION, **RESULTS}
