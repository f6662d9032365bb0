"""Sizes right above a student are worse than it: what mends that, on a teacher that exists.

    python -m tests.benchmarks.hump TEACHER FOLDER [--steps 48] [--seed 0] [--rows 2] [--length 256]

TEACHER: a model's folder with its tokenizer, such as SmolLM2-135M. FOLDER: students, numbers and the picture go there;
what is there is not made again. Text: the source code of Python's standard library. Every 20th document is held out: of
these every second one is for choosing (ridges, weights), the others for the numbers that are reported. Students keep
every second layer and the last two, and are trained as one cohort on the same batches of ROWS x LENGTH tokens.

    published         cross-entropy 1.0, KL 0.1, hidden cosine 2.0
    patch-aware       the same, half of the steps in a size of the family, first to last
    patch-aware nmse  with the normalised squared error of states, weight 5.0, in place of the cosine

Each family is measured as it is, and with `seam: {fit: refit, reach: all}`. Area: the mean over sizes from the student
to the teacher of held-out loss minus the teacher's, by the trapezoid rule over parameters.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "2")  # before torch reads it

import argparse
import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
import transformers

from boomspec.core.layers import (
    STUDENT,
    TEACHER,
    KeepRule,
    LayerPlan,
    Owner,
    ends_of,
    family_of_sets,
    patchable,
    prefixes,
)
from boomspec.core.losses import LOSSES, Losses
from boomspec.core.tasks import Calibration, Distill, Patched, Seam
from boomspec.core.tasks.record import Optimizer, Recipe, Schedule
from boomspec.corpus import python_stdlib
from boomspec.models.facts import read_facts
from boomspec.models.writes import writes_of
from runners.assembly.seam import mend
from runners.data.tokens import TokenStream
from runners.modeling.layerwise import Batch, take_apart
from runners.modeling.models import load_frozen
from runners.modeling.shared_forward import SharedForward
from runners.report.chart import (
    BLUE,
    DASHED,
    GREEN,
    ORANGE,
    SOLID,
    Entry,
    Figure,
    Looks,
    Panel,
    bottom,
    lines,
    points,
    quantity,
    reach,
    upright,
)
from runners.report.vega import write_figure
from runners.tasks import distill
from tests.runners import tiny

EVERY, ROWS = 20, 8  # documents of which one is held out; rows of a forward pass
RIDGE, CALIBRATION = 0.03, 16  # of the refit: chosen on the text for choosing; windows


def texts(teacher: Path, folder: Path) -> dict[str, Path]:
    """A token artifact for each part of held-out text, with the same training text."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(teacher)
    found = {name: folder / f"tokens-{name}" for name in ("choose", "report")}
    if all(path.exists() for path in found.values()):
        return found
    streams: dict[str, list[int]] = {name: [tokenizer.eos_token_id] for name in ("train", "choose", "report")}
    for number, file in enumerate(python_stdlib()):
        name = "train" if number % EVERY else ("choose", "report")[number // EVERY % 2]
        streams[name] += [*tokenizer(file.read_text(encoding="utf-8"))["input_ids"], tokenizer.eos_token_id]
    for name, path in found.items():
        path.mkdir(parents=True)
        meta: dict[str, Any] = {"dtype": "uint32", "eos": tokenizer.eos_token_id, "vocabulary": len(tokenizer)}
        for split, of in (("train", "train"), ("held_out", name)):
            np.array(streams[of], "<u4").tofile(path / f"{split}.bin")
            meta[split] = {
                "tokens": len(streams[of]),
                "documents": streams[of].count(tokenizer.eos_token_id),
                "bytes": 0,
            }
        (path / "meta.json").write_text(json.dumps(meta))
        tokenizer.save_pretrained(path / "tokenizer")
    return found


def records(options: argparse.Namespace, kept: tuple[int, ...], plans: Sequence[LayerPlan]) -> dict[str, Distill]:
    recipe = Recipe(
        seed=options.seed,
        steps=options.steps,
        sequences=options.rows,
        sequence_length=options.length,
        optimizer=Optimizer(lr=3e-4, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, clip=1.0),
        schedule=Schedule(kind="cosine", warmup_steps=max(1, round(0.01 * options.steps)), final=0.0),
        precision="fp32",
    )
    logits = {"cross_entropy": LOSSES["cross_entropy"](), "kl": LOSSES["kl"]()}
    cosine = Losses(**logits, hidden_cosine=LOSSES["hidden_cosine"]())
    nmse = Losses(**logits, hidden_nmse=LOSSES["hidden_nmse"](weight=5.0))
    patched = Patched(share=0.5, plans=tuple(plans))
    common = {"kept": kept, "initial": "teacher", "train_embedding": True, "recipe": recipe}
    return {
        "published": Distill(losses=cosine, **common),
        "patch-aware": Distill(losses=cosine, patched=patched, **common),
        "patch-aware nmse": Distill(losses=nmse, patched=patched, **common),
    }


def train(made: dict[str, Distill], folder: Path, teacher: Path, tokens: Path) -> dict[str, Path]:
    """The students' folders, by name; those that are missing are trained together."""
    found = {name: folder / name.replace(" ", "-") / "payload" / "model" for name in made}
    linked = folder / "teacher"
    if not linked.exists():
        linked.mkdir()
        (linked / "model").symlink_to(teacher.absolute())
    missing = [name for name, path in found.items() if not (path.parent / "similarity.json").exists()]
    contexts = []
    for name in missing:
        place = found[name].parent
        if place.exists():
            place.rename(place.with_name(f"payload-{len(list(place.parent.iterdir()))}"))  # of a run that was stopped
        contexts.append(tiny.context(place.parent, made[name], teacher=linked, tokens=tokens))
    for number, error in distill.run_together(contexts) if contexts else ():
        print(f"{missing[number]}: {error or 'trained'}", flush=True)
    return found


class Family:
    """Sizes of one student, measured on one part of the held-out text."""

    def __init__(self, teacher: Any, student: Any, tokens: Path, length: int, most: int) -> None:
        self.models: dict[Owner, Any] = {TEACHER: teacher, STUDENT: student}
        stream = TokenStream(tokens, "held_out")
        count = min(most, stream.windows(length))
        starts = np.linspace(0, stream.windows(length) - 1, count).astype(int) * length
        rows_BT = torch.from_numpy(
            np.stack([stream.tokens[start : start + length + 1] for start in starts]).astype(int)
        )
        self.inputs, self.labels = list(rows_BT[:, :-1].split(ROWS)), list(rows_BT[:, 1:].split(ROWS))
        self.count = rows_BT[:, 1:].numel()

    def plain(self, plans: Sequence[LayerPlan]) -> list[float]:
        """Loss per token of each plan, in one pass."""
        forward, sums = SharedForward(self.models, self.inputs), dict.fromkeys(plans, 0.0)

        def visit(number: int, plan: LayerPlan, hidden_BTD: torch.Tensor) -> None:
            sums[plan] += self._loss(forward.parts[ends_of(plan)[1]].head, hidden_BTD, number)

        forward.run(plans, visit)
        return [sums[plan] / self.count for plan in plans]

    @torch.no_grad()
    def fitted(self, record: Seam, calibration: Sequence[torch.Tensor]) -> float:
        """Loss per token of a size with weights of its own."""
        new, total = mend(record, self.models, calibration).tensors, 0.0
        parts = {owner: take_apart(model, self.inputs[0]) for owner, model in self.models.items()}
        for number, tokens_BT in enumerate(self.inputs):
            opened = {owner: Batch(one, tokens_BT) for owner, one in parts.items()}
            stream_BTD = opened[record.plan[0].owner].embedding_BTD
            for place, layer in enumerate(record.plan):
                module = parts[layer.owner].layers[layer.index]
                own = {name: tensor.clone() for name, tensor in module.state_dict().items()}
                module.load_state_dict(
                    own | {n.partition(".")[2]: t for n, t in new.items() if n.startswith(f"{place}.")}
                )
                stream_BTD = opened[layer.owner].layer(layer.index, stream_BTD)
                module.load_state_dict(own)
            last = ends_of(record.plan)[1]
            total += self._loss(parts[last].head, opened[last].finish(stream_BTD), number)
        return total / self.count

    @torch.no_grad()
    def _loss(self, head: Any, hidden_BTD: torch.Tensor, number: int) -> float:
        rows = zip(hidden_BTD.flatten(0, 1).split(512), self.labels[number].flatten().split(512), strict=True)
        return sum(
            float(F.cross_entropy(head(hidden_ND).float(), labels_N, reduction="sum")) for hidden_ND, labels_N in rows
        )


def area(losses: Sequence[float], sizes: Sequence[int]) -> float:
    """Mean height above the last loss, by the trapezoid rule over sizes (parameters)."""
    above = [loss - losses[-1] for loss in losses]
    steps = pairwise(zip(sizes, above, strict=True))
    return sum((b - a) * (high + low) / 2 for (a, high), (b, low) in steps) / (sizes[-1] - sizes[0])


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    colors = dict(
        zip(dict.fromkeys(row["name"].partition(",")[0] for row in rows), (BLUE, ORANGE, GREEN), strict=False)
    )
    entries, marks = [], []
    for row in rows:
        look = ("circle", SOLID) if row["fit"] is None else ("square", DASHED)
        entries.append(Entry(row["name"], colors[row["name"].partition(",")[0]], *look, size=3.5))
        found = zip(row["layers"], row["losses"], strict=True)
        marks += [{"series": row["name"], "x": layers, "y": loss} for layers, loss in found]
    x = quantity("x", *reach([mark["x"] for mark in marks], 0.03), bottom("layers", tickMinStep=1, format="d"))
    y, looks = upright(*reach([mark["y"] for mark in marks])), Looks(entries)
    panel = Panel((lines(marks, looks, x, y), points(marks, looks, x, y)))
    label = "held-out loss, nats per token   (↓ better)"
    write_figure(Figure((panel,), label, tuple(entries), height=300), path)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("teacher", type=Path)
    parser.add_argument("folder", type=Path)
    for name, default in (("steps", 48), ("seed", 0), ("rows", 2), ("length", 256), ("measured", 8)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    facts = read_facts(options.teacher)
    kept = KeepRule(every=2, first=1, last=2).kept(facts.count)
    plans = family_of_sets(kept, facts.count, prefixes(patchable(kept, facts.count)))
    options.folder.mkdir(parents=True, exist_ok=True)
    tokens = texts(options.teacher, options.folder)
    place = options.folder / f"seed-{options.seed}-steps-{options.steps}"
    place.mkdir(exist_ok=True)
    students = train(records(options, kept, plans[1:-1]), place, options.teacher, tokens["report"])
    teacher = load_frozen(options.teacher, dtype=torch.float32)
    drawn = TokenStream(tokens["report"]).batch(
        0, sequences=CALIBRATION, sequence_length=options.length, seed=options.seed
    )
    calibration = list(torch.from_numpy(drawn[:, :-1]).split(ROWS))
    settings = {
        "kept": kept,
        "writes": writes_of(facts),
        "fit": "refit",
        "ridge": RIDGE,
        "precision": "fp32",
        "calibration": Calibration(sequences=CALIBRATION, sequence_length=options.length, seed=options.seed),
    }
    sizes = [len(plan) for plan in plans]  # layers are alike, so parameters rise with them
    rows: list[dict[str, Any]] = []
    for name, folder in students.items():
        family = Family(
            teacher, load_frozen(folder, dtype=torch.float32), tokens["report"], options.length, options.measured
        )
        losses = family.plain(plans)
        inner = [family.fitted(Seam(plan=plan, **settings), calibration) for plan in plans[1:-1]]
        for fit, found in ((None, losses), ("refit", [losses[0], *inner, losses[-1]])):
            called = name if fit is None else f"{name}, {fit}"
            row = {"name": called, "fit": fit, "area": area(found, sizes), "layers": sizes, "losses": found}
            rows.append(row)
            print(f"{called:28} area {row['area']:.3f}  {' '.join(f'{loss:.3f}' for loss in found)}", flush=True)
        (place / "hump.json").write_text(json.dumps(rows, indent=1, allow_nan=False))
    draw(rows, place / "hump")


if __name__ == "__main__":
    main()
