"""Put a student together: its trained layers, the teacher's layers where a block has one, the teacher's other parts."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from boomspec.core.errors import BoomspecError
from boomspec.core.json_text import computed_json, transformers_floats
from boomspec.core.layers import STUDENT, TEACHER, Layer, Owner, blocks, teacher_layers
from boomspec.core.tasks import JoinBlocks
from boomspec.core.tasks.blockwise import block_role
from boomspec.models.facts import ModelFacts, read_facts
from boomspec.models.fit import check_fit, tensors_of_plan
from boomspec.models.folder import CONFIG, STUDENT_CONFIG
from runners.assembly.checkpoint_writer import write_checkpoints
from runners.modeling.foreign_code import copy_travelling, runs_code, without_code
from runners.modeling.model_config import plan_config
from runners.modeling.models import MODEL, model_folder
from runners.runtime.context import Context

METRICS = "metrics.jsonl"
_NOT_OF_ALL = ("grad_norm",)  # of a row: what is no mean of blocks


def join(context: Context[JoinBlocks]) -> None:
    """Write the student's folder; metrics.jsonl, the mean over its blocks; blocks.json, each one's first and last."""
    kept, teacher, target = context.record.kept, model_folder(context.inputs["teacher"]), context.path / MODEL
    facts = read_facts(teacher)
    trained = {i: context.inputs[role] for i in range(len(kept)) if (role := block_role(i)) in context.inputs}
    layers = [facts.layers[index] for index in kept]
    for i, found in trained.items():
        own = read_facts(found.folder / MODEL)
        check_fit(facts, replace(facts, layers=own.layers, prefix=own.prefix), ())
        layers[i] = own.layers[0]
    models: dict[Owner, ModelFacts] = {TEACHER: facts, STUDENT: replace(facts, layers=tuple(layers))}
    plan = tuple(Layer(STUDENT, i) if i in trained else Layer(TEACHER, index) for i, index in enumerate(kept))
    config = plan_config({TEACHER: facts}, teacher_layers(kept), tied=facts.tied, base=TEACHER)
    if not runs_code(teacher, "model", context.code):
        config = without_code(config)
    target.mkdir(parents=True, exist_ok=True)
    write_checkpoints({target: tensors_of_plan(models, plan, tied=facts.tied)})
    copy_travelling(teacher, target, context.code)
    pruned = sorted(set(range(facts.count)) - set(kept))
    about = {"copied_teacher_layers": kept, "pruned_teacher_layers": pruned}
    (target / STUDENT_CONFIG).write_text(json.dumps(about, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    text = json.dumps(transformers_floats(config), indent=2, sort_keys=True, allow_nan=False)
    (target / CONFIG).write_text(text + "\n", encoding="utf-8")

    rows = {i: _rows(found.folder / METRICS) for i, found in trained.items()}
    if len({len(own) for own in rows.values()}) > 1:
        raise BoomspecError("the blocks were trained for different numbers of steps")
    lines = [json.dumps(_mean(of_step), allow_nan=False) + "\n" for of_step in zip(*rows.values(), strict=True)]
    (context.path / METRICS).write_text("".join(lines), encoding="utf-8")
    spans = blocks(kept, facts.count)
    table = [
        {"block": i, "layers": [spans[i].start, spans[i].stop - 1], "before": own[0], "after": own[-1]}
        for i, own in rows.items()
    ]
    (context.path / "blocks.json").write_text(computed_json({"blocks": table}, "losses of blocks"), encoding="utf-8")


def _rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def _mean(rows: tuple[dict[str, Any], ...]) -> dict[str, Any]:
    first = rows[0]
    same = ("step", "tokens", "lr")
    return {
        name: first[name] if name in same else sum(row[name] for row in rows) / len(rows)
        for name in first
        if name not in _NOT_OF_ALL
    }
