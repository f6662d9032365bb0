"""Where the parameters of tasks come from: the one table between the records and the fields of the spec.

With it a changed task names the field that forces it, and a changed field the tasks that it changes. Fields are paths
in what a spec means (`boomspec.compile.resolved`): a row stands for the field and for all below it. "*" in a
parameter stands for the rest of its path, and in a field for the same rest; "{measure}" is what an evaluation measures.
"""

from __future__ import annotations

from functools import cache

from boomspec.core.tasks import KINDS

Path = tuple[str, ...]
_Rows = dict[str, tuple[str, ...]]

_TEXT = ("data.dataset", "data.config", "data.split", "data.revision", "data.files", "data.format", "data.corpus")
_TEACHER_MODEL = ("teacher.model", "teacher.revision", "teacher.trust_remote_code", "sources.teacher")
_STUDENT_MODEL = ("student.model", "student.revision", "student.trust_remote_code", "sources.student")
_TEACHER = (*_TEACHER_MODEL, "teacher.pretrain")
_STUDENT = (*_STUDENT_MODEL, "student.keep", "distill")
_DEPTH = (*_TEACHER_MODEL, "teacher.pretrain.layers")
_LAYERS = ("student.keep", "student.model", "sources.student", "interpolate", *_DEPTH)
_CONTROLS = ("baselines",)


def _recipe(section: str, tokens: str) -> _Rows:
    """The rows of a `Recipe` that is made from a section of the spec about training."""
    return {
        "recipe.seed": ("seed",),
        "recipe.steps": (tokens, f"{section}.batch_tokens", "data.sequence_length"),
        "recipe.sequences": (f"{section}.batch_tokens", "data.sequence_length"),
        "recipe.sequence_length": ("data.sequence_length",),
        "recipe.optimizer.*": (f"{section}.optimizer.*",),
        "recipe.schedule.kind": (f"{section}.schedule.kind",),
        "recipe.schedule.warmup_steps": (
            f"{section}.schedule.warmup",
            tokens,
            f"{section}.batch_tokens",
            "data.sequence_length",
        ),
        "recipe.schedule.final": (f"{section}.schedule.final",),
        "recipe.precision": (f"{section}.precision",),
    }


def _calibration(prefix: str, section: str) -> _Rows:
    return {
        f"{prefix}sequences": (f"{section}.calibration",),
        f"{prefix}sequence_length": ("data.sequence_length",),
        f"{prefix}seed": ("seed",),
    }


_KERNELS: _Rows = {
    "determinism.algorithms": ("determinism.algorithms",),
    "determinism.tf32": ("determinism.tf32",),
}
_SEARCH_PRECISION = ("evaluate.precision", "distill.precision")
_DISTILL: _Rows = {
    "kept": ("student.keep", *_DEPTH),
    "initial": _CONTROLS,
    "train_embedding": ("student.train_embedding",),
    "losses.hidden_cosine.embedding": ("distill.losses.hidden_cosine.embedding", "student.train_embedding"),
    "losses.*": ("distill.losses.*",),
    **_recipe("distill", "distill.tokens"),
    "faithful": ("distill.faithful",),
    **_KERNELS,
    "inputs.teacher": _TEACHER,
}
_SEARCH: _Rows = {
    "choice.type": ("student.keep", "interpolate.order", "baselines"),
    "choice.method": ("student.keep", "interpolate.order", "baselines"),
    "precision": _SEARCH_PRECISION,
    **_KERNELS,
    "inputs.teacher": _TEACHER,
    "inputs.student": _STUDENT,
}

# By the start of a task's name (in its experiment), the longest one that fits, behind it by its kind.
_NAMED: dict[str, _Rows] = {
    "dequantize teacher": {"dtype": _TEACHER, "inputs.model": _TEACHER},
    "dequantize student": {"dtype": _STUDENT, "inputs.model": _STUDENT},
    "distill random_init": {**_DISTILL, **_recipe("distill", "baselines.random_init.tokens")},
    "distill standard_distillation": {**_DISTILL, "kept": _LAYERS},
    "search layers": {
        **_SEARCH,
        "choice.count": ("student.keep",),
        **_calibration("calibration.", "student.keep"),
    },
    "search patch order": {
        **_SEARCH,
        "choice.kept": ("student.keep", "student.model", "sources.student", *_DEPTH),
        "choice.width": ("interpolate.order.width", "interpolate.order.search"),
        "choice.direction": ("interpolate.order.direction",),
        "choice.positions": ("interpolate.order.positions",),
        "choice.reduction": ("interpolate.order.reduction",),
        **_calibration("calibration.", "interpolate.order"),
    },
    "score layers for shortgpt": {
        **_SEARCH,
        "choice.count": ("student.keep", *_DEPTH),
        **_calibration("calibration.", "baselines.shortgpt"),
    },
}
_KINDS: dict[str, _Rows] = {
    "dequantize": {"dtype": (*_TEACHER, *_STUDENT), "inputs.model": (*_TEACHER, *_STUDENT)},
    "tokenize": {
        "text_field": ("data.text_field",),
        "train_tokenizer.vocabulary": ("teacher.pretrain.tokenizer.vocabulary",),
        "train_tokenizer.bytes": ("teacher.pretrain.tokenizer.train_on",),
        "skip": ("data.skip",),
        "max_tokens": ("data.max_tokens",),
        "held_out_every": ("data.held_out",),
        "held_out_offset": ("data.held_out",),
        "bos": ("data.bos",),
        "on_bad_row": ("data.on_bad_row",),
        "inputs.text": (*_TEXT, "sources.data"),
        "inputs.held_out": ("data.held_out", "data.format", "sources.held_out_text"),
        "inputs.tokenizer": (*_TEACHER, "sources.tokenizer"),
    },
    "pretrain": {
        "architecture.vocabulary": ("teacher.pretrain.tokenizer.vocabulary",),
        "architecture.context": ("data.sequence_length", "teacher.pretrain.positions"),
        "architecture.tied": ("teacher.pretrain.tied_embeddings",),
        "architecture.*": ("teacher.pretrain.*",),
        **_recipe("teacher.pretrain", "teacher.pretrain.tokens"),
        **_KERNELS,
    },
    "check": {
        "teacher": _TEACHER_MODEL,
        "student": _STUDENT_MODEL,
        "kept": _LAYERS,
        "sizes": (*_LAYERS, *_CONTROLS),
        "merged": _CONTROLS,
        "transformers": ("sources.teacher",),  # which version reads it
        "inputs": (*_TEACHER_MODEL, *_STUDENT_MODEL),
    },
    "distill": _DISTILL,
    "search": {
        **_SEARCH,
        "choice.*": ("student.keep", "interpolate.order", "baselines"),
        "calibration.*": ("student.keep", "interpolate.order", "baselines", "data.sequence_length", "seed"),
    },
    "interpolate": {
        "plan": _LAYERS,
        "tied": ("student.train_embedding", *_LAYERS),
        "rest": ("teacher.rest",),
        "inputs.teacher": _TEACHER,
        "inputs.student": _STUDENT,
    },
    "baseline": {
        "build.type": _CONTROLS,
        "build.plan": (*_LAYERS, "baselines.shortgpt"),  # a ranking of layers by a search
        "build.rest": ("teacher.rest",),
        "build.layers": _LAYERS,
        "build.lowest": _DEPTH,
        "build.highest": _DEPTH,
        "build.merge": ("baselines.laco.merge",),
        "build.interval": ("baselines.laco.interval",),
        "build.threshold": ("baselines.laco.threshold",),
        **_calibration("build.calibration.", "baselines.laco"),
        "build.precision": _SEARCH_PRECISION,
        "build.determinism.algorithms": ("determinism.algorithms",),
        "build.determinism.tf32": ("determinism.tf32",),
        "inputs.teacher": _TEACHER,
    },
    "evaluate": {
        "measure.type": ("evaluate",),
        "measure.sequence_length": ("data.sequence_length",),
        "measure.max_tokens": ("evaluate.held_out",),
        "measure.task": ("evaluate.tasks", "evaluate.tasks.{measure}.task"),
        "measure.num_fewshot": ("evaluate.tasks.{measure}.num_fewshot",),
        "measure.limit": ("evaluate.tasks.{measure}.limit",),
        # Whether a seed, or resamples, can change the numbers follows from how the task is asked.
        "measure.seed": ("seed", "evaluate.tasks.{measure}.num_fewshot"),
        "measure.bootstrap_iters": ("evaluate.bootstrap_iters",),
        "precision": ("evaluate.precision",),
        **_KERNELS,
        "inputs.model": (*_TEACHER, *_STUDENT),
        "inputs.tasks": ("evaluate.tasks", "evaluate.tasks_folder", "sources.lm_eval_tasks"),
    },
    "report": {
        "cells": (*_LAYERS, *_TEACHER, "evaluate.tasks", "evaluate.held_out", "student.train_embedding", *_CONTROLS),
        "trainings": (*_TEACHER, "student.model", *_CONTROLS),
        "searches": ("student.keep", "interpolate.order", *_CONTROLS),
        "inputs": (*_LAYERS, "evaluate.tasks", "evaluate.held_out", *_CONTROLS),
    },
    "comparison": {
        "experiments": (
            *_LAYERS,
            *_TEACHER,
            "evaluate.tasks",
            "evaluate.held_out",
            "student.train_embedding",
            *_CONTROLS,
        ),
        "inputs": (*_LAYERS, "evaluate.tasks", "evaluate.held_out", *_CONTROLS),
    },
}
# Why a task is there at all: by its kind, and by the baseline that its name names.
_PRESENCE: dict[str, tuple[str, ...]] = {
    "dequantize": ("teacher.model", "student.model"),
    "tokenize": ("data", "teacher.model", "teacher.pretrain"),
    "pretrain": ("teacher.pretrain",),
    "check": ("teacher.model",),
    "distill": ("distill", "student.model"),
    "search": (),
    "interpolate": _LAYERS,
    "baseline": _LAYERS,
    "evaluate": ("evaluate.tasks", "evaluate.held_out"),
    "report": (),
    "comparison": (),
}
_BASELINES = {
    "prune to": "naive_pruning",
    "naive_pruning": "naive_pruning",
    "random_init": "random_init",
    "standard_distillation": "standard_distillation",
    "shortgpt": "shortgpt",
    "laco": "laco",
}
_SEARCHES = {"search layers": "student.keep", "search patch order": "interpolate.order"}
assert _KINDS.keys() == _PRESENCE.keys() <= KINDS.keys()


@cache
def origins(kind: str, name: str, parameter: Path) -> set[Path]:
    """The fields that a parameter of the task `name` comes from; those of all below it where it has parts.

    Parameters are paths in the record; an input is ("inputs", role). Empty where nothing in a spec can change it.
    """
    starts = [start for start in _NAMED if name.startswith(start)]
    rows = _NAMED[max(starts, key=len)] if starts else _KINDS.get(kind, {})
    wanted, measure = ".".join(parameter), name.rpartition(": ")[2]
    if wanted in rows:
        return {_path(field, measure=measure) for field in rows[wanted]}
    found: set[Path] = set()
    for row, fields in rows.items():
        start = row.removesuffix(".*")
        if row != start and wanted.startswith(f"{start}."):
            found.update(_path(field, rest=wanted[len(start) + 1 :], measure=measure) for field in fields)
        elif wanted.startswith(f"{row}.") or f"{start}.".startswith(f"{wanted}."):
            found.update(_path(field, measure=measure) for field in fields)
    return found


@cache
def presence(kind: str, name: str) -> set[Path]:
    """The fields that decide whether a spec has the task `name` of this kind."""
    model = name.rpartition(": ")[0] if kind == "evaluate" else name
    fields = list(_PRESENCE.get(kind, ()))
    fields += [f"baselines.{baseline}" for word, baseline in _BASELINES.items() if word in model]
    fields += [field for start, field in _SEARCHES.items() if name.startswith(start)]
    fields += _LAYERS if "layers" in model and kind in ("distill", "evaluate") else ()
    return set(map(_path, fields))


def touches(field: Path, origin: Path) -> bool:
    """Whether a change of `field` reaches what comes from `origin`: one is the other, or a part of it."""
    length = min(len(field), len(origin))
    return field[:length] == origin[:length]


def known_fields() -> set[Path]:
    """Every field that some parameter comes from."""
    tables = [*_NAMED.values(), *_KINDS.values()]
    return {_path(field) for rows in tables for fields in rows.values() for field in fields}


def _path(field: str, *, rest: str = "", measure: str = "") -> Path:
    """A field of the table as a path. Names of lm-eval tasks may hold dots."""
    parts = (part for part in field.replace("*", rest).split(".") if part)
    return tuple(measure if part == "{measure}" else part for part in parts if measure or part != "{measure}")
