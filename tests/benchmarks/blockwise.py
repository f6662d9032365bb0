"""Blockwise distillation beside a joint one at equal tokens: loss of the student, and area of the curve to the teacher.

    python -m tests.benchmarks.blockwise STORE [TEACHER [TOKENS]]

Without a TEACHER it is the shipped spec (specs/quickstart-blockwise.yaml), whose teacher is trained first. TEACHER:
the folder of a model, which is cut to every second layer and the last two; TOKENS: of each training, 32k by default.
Text is the source code of Python's library. One core; run it again to see the table of a run that has finished.

The area is the mean over the steps between neighbouring sizes of what the loss lies above the teacher's (trapezoids),
in nats per token. Ratios are of what is above the teacher.
"""

import csv
import subprocess
import sys
from collections import defaultdict
from itertools import pairwise
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
BLOCKS = {"cross_entropy": None, "kl": None, "hidden_cosine": None, "hidden_nmse": {}}
POLISHED = 0.25  # of the tokens


def spec_of(teacher: Path, tokens: int) -> dict[str, object]:
    """Joint, blockwise, and blockwise with a polish, for so many tokens each."""
    last = round(tokens * POLISHED)
    polish = {"tokens": last, "optimizer": {"lr": 1e-4}}
    losses = {"cross_entropy": {"weight": 1.0}, "kl": {"weight": 0.1}, "hidden_cosine": {"weight": 2.0}}
    return {
        "boomspec": 1,
        "name": "blockwise",
        "teacher": {"model": str(teacher.resolve())},
        "student": {"keep": {"every": 2, "first": 1, "last": 2}, "train_embedding": False},
        "data": {"corpus": "python_stdlib", "sequence_length": 256, "held_out": {"every": 40}, "max_tokens": 400_000},
        "distill": {
            "tokens": tokens,
            "batch_tokens": 1024,
            "optimizer": {"lr": 3e-4},
            "schedule": {"kind": "cosine", "warmup": "5%"},
            "losses": losses,
            "precision": "fp32",
        },
        "evaluate": {"held_out": {"max_tokens": 8192}, "precision": "fp32"},
        "execution": {"cpus": 1, "distill": {"micro_batch": 4}},
        "variants": {
            "blocks": {"distill": {"blockwise": {}, "losses": BLOCKS}},
            "polished": {"distill": {"tokens": tokens - last, "blockwise": {"polish": polish}, "losses": BLOCKS}},
        },
    }


def main() -> None:
    store, *rest = sys.argv[1:]
    spec = ROOT / "specs/quickstart-blockwise.yaml"
    if rest:
        spec = Path(store).absolute().with_suffix(".yaml")
        spec.parent.mkdir(parents=True, exist_ok=True)
        tokens = int(float(rest[1]) if len(rest) > 1 else 32 * 1024)
        spec.write_text(yaml.safe_dump(spec_of(Path(rest[0]), tokens), sort_keys=False))
    command = [sys.executable, "-m", "boomspec", "run", str(spec), "--store", store, "--plain"]
    subprocess.run(command, cwd=ROOT, check=True)
    newest = max(Path(store).glob("comparison/*/results.csv"), key=lambda file: file.stat().st_mtime)
    curves: dict[str, dict[int, float]] = defaultdict(dict)
    with newest.open(newline="") as file:
        for row in csv.DictReader(file):
            if row["metric"] == "loss" and row["series"] in ("teacher", "student", "interpolated"):
                curves[row["experiment"]][int(row["layers"])] = float(row["value"])
    show(curves)


def show(curves: dict[str, dict[int, float]]) -> None:
    above = {}
    for label, losses in curves.items():
        teacher = losses[max(losses)]
        values = [losses[size] - teacher for size in sorted(losses)]
        above[label] = values[0], sum((a + b) / 2 for a, b in pairwise(values)) / (len(values) - 1)
    student, area = above["base"]
    for label, losses in curves.items():
        shown = " ".join(f"{losses[size]:.3f}" for size in sorted(losses))
        own_student, own_area = above[label]
        print(f"{label:9} {shown}")
        print(f"{'':9} student {losses[min(losses)]:.3f}: {own_student / student:.3f} of base's above the teacher")
        print(f"{'':9} area {own_area:.4f}: {own_area / area:.3f} of base's")


if __name__ == "__main__":
    main()
