"""Run the check before a run, in a subprocess with a cached answer; failures are spec errors.

A check needs transformers, so it runs in its own process. Its answer is cached in the user's cache folder, by the id of
the task and the digest of the code. Families that are always right, and those that cannot be checked here, are left to
the run, whose tasks come after its own check.
"""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from boomspec.compile.compiler import Compiled
from boomspec.core.files import write_atomically
from boomspec.core.graph import Node
from boomspec.core.identity import digest, folder_digest
from boomspec.core.machine import user_cache
from boomspec.core.tasks import Check
from boomspec.models.config_rules import set_same_keys
from boomspec.models.outline import config_of, is_plain, tensors_of
from boomspec.store import Store

_NEEDED = ("torch", "transformers", "safetensors", "accelerate")
_MOST = 4  # of one spec: a sweep over layers has as many families as values
_LATER = "it is checked when the run begins"


@dataclass(frozen=True)
class CheckResult:
    """What a check found."""

    refused: str = ""  # why the family is not built; empty where it is right
    hint: str | None = None
    notes: Sequence[str] = ()


def check_models(compiled: Compiled, store: Store) -> list[str]:
    """What could not be checked beforehand. Raises SpecError where a model's family would not come out right."""
    graph = compiled.graph
    checks = [node for node in graph.nodes.values() if isinstance(node.task.record, Check)]
    there = store.records((node.task.kind, node.id) for node in checks)
    open_checks = [n for n in checks if (n.task.kind, n.id) not in there and not _is_plain(n.task.record)]
    answers: dict[str, CheckResult | None] = {node.id: _remembered(node.id) for node in open_checks}
    unknown = [node for node in open_checks if answers[node.id] is None and not node.task.inputs]
    notes: list[str] = []
    if unknown:
        found, obstacle = _asked(unknown[:_MOST])
        answers |= found
        if obstacle:
            notes.append(f"the teacher's family could not be tried: {obstacle}; {_LATER}")
    if later := len(unknown[_MOST:]):
        notes.append(f"of {_MOST + later} families only {_MOST} were tried; the others are checked when the run begins")
    if any(node.task.inputs for node in open_checks if answers[node.id] is None):
        notes.append(f"a model that brings its own code is not tried by a plan; {_LATER}")
    for node in open_checks:
        answer = answers[node.id]
        if answer is not None and answer.refused:
            labels = [one.label for one in graph.experiments if node.id in one.tasks.values()]
            file = next((file for file in compiled.files if file.label in labels), compiled.files[0])
            raise file.error(file.problem(("teacher", "model"), answer.refused, answer.hint))
        notes += answer.notes if answer is not None else ()
    return list(dict.fromkeys(notes))


def _is_plain(record: Any) -> bool:
    if record.apart:
        return False
    models = [model for model in (record.teacher, record.student) if model is not None]
    configs = [config_of(model.config) for model in models]
    plain = all(is_plain(c, tensors_of(m.tensors).values()) for c, m in zip(configs, models, strict=True))
    return plain and set_same_keys(configs[0], configs[-1])  # else the defaults of transformers decide


def _asked(checks: Sequence[Node]) -> tuple[dict[str, CheckResult], str]:
    """Answers by task id, and what was in the way of asking."""
    if missing := [name for name in _NEEDED if importlib.util.find_spec(name) is None]:
        return {}, f"{missing[0]} is not installed here"
    asked = {node.id: node.task.record.model_dump(mode="json") for node in checks}
    # Not in the spec's folder: Python would import what lies there.
    command = [sys.executable, "-P", "-m", "runners.cli.check"]
    done = subprocess.run(command, input=json.dumps(asked, allow_nan=False), capture_output=True, text=True)
    if done.returncode != 0:
        return {}, (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    answers = {task_id: CheckResult(**answer) for task_id, answer in json.loads(done.stdout).items()}
    for task_id, answer in answers.items():
        _remember(task_id, answer)
    return answers, ""


def _place(task_id: str) -> Path:
    return user_cache() / "checks" / f"{digest([task_id, *_code()])}.json"


@cache
def _code() -> list[str]:
    """What answers: another version of boomspec may build what this one refuses."""
    packages = [importlib.util.find_spec(name) for name in ("boomspec", "runners")]
    return [folder_digest(Path(package.origin).parent) for package in packages if package and package.origin]


def _remembered(task_id: str) -> CheckResult | None:
    try:
        return CheckResult(**json.loads(_place(task_id).read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError):
        return None  # not there, or not whole


def _remember(task_id: str, answer: CheckResult) -> None:
    with suppress(OSError):  # a cache folder that cannot be written: it is asked again
        _place(task_id).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(_place(task_id), json.dumps(asdict(answer), allow_nan=False))
