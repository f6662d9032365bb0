"""The body of a task kind does not change without its version being looked at.

An artifact is found again by its task's id, which knows a kind's `version` and not its code: changed code with the old
version would go on serving the results of the old one. golden/sources.json holds, for every kind, the version and a
digest of each module that its result comes from.
"""

import ast
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from boomspec.core.tasks import KINDS
from tests.messages import wording

ROOT = Path(__file__).parent.parent
GOLDEN = Path(__file__).parent / "golden" / "sources.json"
ACCEPT = "BOOMSPEC_ACCEPT=1 .venv/bin/pytest tests/test_sources.py"
# Modules that place, move, tell and guard. What they do changes whether a task ends, not what it makes; the records of
# tasks and the language are in the ids themselves.
APART = {
    "boomspec.core.errors", "boomspec.core.files", "boomspec.core.graph",
    "boomspec.core.identity", "boomspec.core.sizes", "boomspec.core.tasks", "boomspec.core.types",
    "boomspec.models.trust", "boomspec.spec", "boomspec.store", "boomspec.store.sources", "runners.cluster.access",
    "runners.cluster.head_watch", "runners.cluster.ray_cluster", "runners.cluster.store_check",
    "runners.runtime.context", "runners.runtime.task_errors", "runners.runtime.environment", "runners.runtime.job",
    "runners.runtime.journal", "runners.runtime.output", "runners.runtime.relay",
    "runners.training.ray_train_worker", "runners.training.remote_checkpoint",
}  # fmt: skip
_NO_RESULT = {"ctx", "type_comment", "kind", "type_params"}  # fields of a syntax tree that versions of Python differ in


def file_of(module: str, root: Path) -> Path | None:
    place = root.joinpath(*module.split("."))
    return next((path for path in (place.with_suffix(".py"), place / "__init__.py") if path.is_file()), None)


def is_apart(module: str) -> bool:
    return module in APART or any(module.startswith(f"{name}.") for name in APART)


def imported(tree: ast.Module) -> Iterator[str]:
    """The modules that a module may import, at its top or later; those for type checkers are left out."""
    checked = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)]
    skipped = {id(inner) for node in checked for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import) and id(node) not in skipped:
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and id(node) not in skipped:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def plain(node: Any) -> Any:
    """A syntax tree as lists, without what makes no difference: places, docstrings, what is empty."""
    if isinstance(node, list):
        return [plain(item) for item in node]
    if not isinstance(node, ast.AST):
        return f"{type(node).__name__} {node!r}"
    fields = dict(ast.iter_fields(node))
    if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and ast.get_docstring(node):
        fields["body"] = fields["body"][1:]
    said = [[name, plain(value)] for name, value in fields.items() if name not in _NO_RESULT]
    return [type(node).__name__, *(pair for pair in said if pair[1] != [] and pair[1] != "NoneType None")]


def digest(tree: ast.Module) -> str:
    return hashlib.sha256(json.dumps(plain(tree)).encode()).hexdigest()[:16]


def modules_of(kind: str, root: Path = ROOT) -> dict[str, str]:
    """The digests of the modules of the two packages that the result of a kind comes from, by their names."""
    found: dict[str, str] = {}
    waiting = [f"runners.tasks.{kind}"]
    while waiting:
        module = waiting.pop()
        ours = module.startswith(("boomspec.", "runners.")) and not is_apart(module)
        path = file_of(module, root) if ours and module not in found else None
        if path is not None:
            tree = ast.parse(path.read_text(encoding="utf-8"))
            found[module] = digest(tree)
            waiting += imported(tree)
    return dict(sorted(found.items()))


def sources(root: Path = ROOT) -> dict[str, Any]:
    return {kind: {"version": KINDS[kind].version, "modules": modules_of(kind, root)} for kind in KINDS}


def unseen(golden: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What has changed of each kind since `golden` was written, a line for each."""
    lines = []
    for kind in dict.fromkeys([*now, *golden]):
        none: dict[str, Any] = {"version": None, "modules": {}}
        old, new = golden.get(kind, none), now.get(kind, none)
        both = dict.fromkeys([*old["modules"], *new["modules"]])
        changed = [name for name in both if old["modules"].get(name) != new["modules"].get(name)]
        version = f"version {new['version']}"
        if old["version"] != new["version"]:
            version += f", was {old['version']}: to be recorded"
        elif changed:
            version += ", as before"
        else:
            continue
        lines.append(f"{kind} ({version}): {', '.join(changed) or 'no module'} changed")
    return lines


def test_a_body_that_changes_is_looked_at():
    """BOOMSPEC_ACCEPT=1 writes the file anew for review."""
    now = sources()
    if os.environ.get("BOOMSPEC_ACCEPT"):
        GOLDEN.write_text(json.dumps(now, indent=1) + "\n", encoding="utf-8")
    lines = unseen(json.loads(GOLDEN.read_text(encoding="utf-8")), now)
    advice = (
        "Where a result differs in a single byte, raise the `version` of its kind in boomspec/core/tasks/, or old "
        f"results go on being served. Then, or where every result is the same, record it: {ACCEPT}"
    )
    if lines:
        pytest.fail("\n".join(["what results come from has changed:", *lines, advice]), pytrace=False)


def test_what_is_apart_exists():
    assert [name for name in APART if file_of(name, ROOT) is None] == []


def test_every_module_that_a_body_uses_is_found_where_it_is_imported_late():
    evaluation = "runners.evaluation"
    assert {"runners.tasks.evaluate", f"{evaluation}.lm_eval_runner", f"{evaluation}.held_out"} <= set(
        modules_of("evaluate")
    )
    assembly = "runners.assembly"
    assert {f"{assembly}.assemble", f"{assembly}.checkpoint_writer", "boomspec.models.fit"} <= set(
        modules_of("interpolate")
    )
    assert "runners.search.patch_order" in modules_of("search")


_BODY = '''
"""Makes something."""
from boomspec.models import facts

def run(context):
    """Make it."""
    return [facts.read(context, "as it is"), 1.0]
'''


def _repository(root: Path, body: str = _BODY, facts: str = "def read(context, how):\n    return 1\n") -> Path:
    for name, text in {"runners/tasks/distill.py": body, "boomspec/models/facts.py": facts}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ('"""Makes something."""', '"""Makes something else."""', True),
        ('    """Make it."""\n', "", True),
        ("return [", "return [  # as a list\n        ", True),
        ('"as it is"', "'as it is'", True),
        ("def run(", "\n\ndef run(", True),
        ("1.0", "1", False),
        ("1.0", "True", False),
        ('"as it is"', '"otherwise"', False),
        ("return", "context.wait()\n    return", False),
        ("def run(context)", "def run(context, more=None)", False),
    ],
)
def test_only_what_is_computed_counts(tmp_path, old, new, same):
    before = modules_of("distill", _repository(tmp_path))
    assert list(before) == ["boomspec.models.facts", "runners.tasks.distill"]
    after = modules_of("distill", _repository(tmp_path, _BODY.replace(old, new)))
    assert (before == after) is same
    assert before["boomspec.models.facts"] == after["boomspec.models.facts"]


def test_what_is_said_names_the_kind_its_module_and_both_ways_out(tmp_path):
    before = {"distill": {"version": 1, "modules": modules_of("distill", _repository(tmp_path))}}
    changed = modules_of("distill", _repository(tmp_path, facts="def read(context, how):\n    return 2\n"))
    assert unseen(before, before) == []
    assert unseen(before, {"distill": {"version": 1, "modules": changed}}) == [
        wording("sources.distill_version_before_boomspec")
    ]
    assert unseen(before, {"distill": {"version": 2, "modules": changed}}) == [
        wording("sources.distill_version_recorded_boomspec")
    ]
    assert unseen(before, {}) == [wording("sources.distill_version_none_recorded")]
