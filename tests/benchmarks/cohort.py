"""Four variants of the weights of the losses as a cohort, beside one student alone.

    python -m tests.benchmarks.cohort [TEACHER]

TEACHER: the folder of a Llama-like model; without it, random weights in the shape of SmolLM2-135M (30 layers). Students
have 16 of its layers. A step of a cohort is one of all four students. Both are run in turns; medians of the steps after
the first. What is possible at best follows from the operations: a teacher's forward pass and four students, over a
teacher's forward pass and one.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "2")  # before torch reads it

import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from boomspec.core.layers import TEACHER, teacher_layers
from boomspec.core.losses import KL, CrossEntropy, HiddenCosine, Losses
from runners.assembly.assemble import assemble
from runners.modeling.hidden_states import LMHead
from runners.modeling.models import load, load_frozen
from runners.runtime.device import MASTER_DTYPE, frozen_dtype
from runners.tasks.distill import distillation_loss
from runners.training.cohort import SharedTargets, taking_turns
from runners.training.distillation import alignment, teacher_targets
from runners.training.loop import micro_batches
from runners.training.losses import weights
from tests.benchmarks.family import LAYERS, make_teacher
from tests.runners import tiny

KEPT = tuple(dict.fromkeys([*range(0, LAYERS, 2), LAYERS - 1]))
STEPS, SEQUENCES, LENGTH = 4, 4, 512
VARIANTS = [
    Losses(cross_entropy=CrossEntropy(), kl=KL(weight=kl), hidden_cosine=HiddenCosine(weight=cosine))
    for kl in (0.1, 1.0)
    for cosine in (1.0, 2.0)
]


def steps(teacher: Any, student_folder: Path, variants: list[Losses], precision: Any) -> list[float]:
    """Seconds of each step of all these variants."""
    ends: list[float] = []

    def batch(step: int) -> np.ndarray:
        ends.append(time.perf_counter())
        return np.random.default_rng(step).integers(1, 2000, (SEQUENCES, LENGTH + 1))

    aligned = [alignment(losses, KEPT, LAYERS) for losses in variants]
    shared = SharedTargets(teacher_targets([teacher], aligned))

    def training(losses: Losses) -> Iterator[Any]:
        student = load(student_folder, dtype=MASTER_DTYPE)
        with tempfile.TemporaryDirectory() as folder:
            yield from micro_batches(
                student,
                recipe=tiny.recipe(steps=STEPS, sequences=SEQUENCES, sequence_length=LENGTH, precision=precision),
                batch=batch,
                loss=distillation_loss(student, [teacher], losses, KEPT, shared=shared),
                weights=weights(losses),
                context=tiny.context(Path(folder)),
            )

    assert all(error is None for _, error in taking_turns([training(losses) for losses in variants], shared))
    firsts = ends[:: len(variants)]  # a cohort draws the batch of each student
    return [after - before for before, after in pairwise(firsts[1:])]


def operations(teacher: Any, student: Any) -> float:
    """The least ratio: 2 for a weight of the teacher, 6 for one of a student, which each has to itself."""

    def used(model: Any) -> int:
        layers = sum(p.numel() for name, p in model.named_parameters() if ".layers." in name)
        return layers + int(LMHead(model)._output.weight.numel())

    one, four = 2 * used(teacher) + 6 * used(student), 2 * used(teacher) + len(VARIANTS) * 6 * used(student)
    return four / one


def main(given: Path | None) -> None:
    transformers.utils.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as place:
        folder = given or Path(place, "teacher")
        if given is None:
            make_teacher(folder)
        student = Path(place, "student")
        assemble({TEACHER: folder}, teacher_layers(KEPT), student, tied=True)
        for precision in ("fp32", "bf16"):
            teacher = load_frozen(folder, dtype=frozen_dtype(precision))
            seconds: dict[int, list[float]] = {1: [], len(VARIANTS): []}
            for _ in range(2):
                for count in seconds:
                    seconds[count] += steps(teacher, student, VARIANTS[:count], precision)
            one, all_of_them = (statistics.median(values) for values in seconds.values())
            least = operations(teacher, load(student, dtype=torch.float32))
            print(
                f"{precision}: a step of one student {one:.2f} s, of a cohort of {len(VARIANTS)} {all_of_them:.2f} s:"
                f" {all_of_them / one:.2f}x; by operations {least:.2f}x at least",
                flush=True,
            )


if __name__ == "__main__":
    main(Path(sys.argv[1]) if sys.argv[1:] else None)
