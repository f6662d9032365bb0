"""Two rooms and one door: who may import what, read from the imports themselves."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
HEAVY = {"torch", "ray", "transformers", "datasets", "numpy", "matplotlib", "lm_eval", "safetensors", "tokenizers"}
# Plain values and what describes models; nothing that knows the spec language.
DOOR = {
    "checks", "clusters.demand", "costs.machine", "errors", "graph", "graph_file", "identity", "in_use", "inputs",
    "json_text", "layers", "locks.locking", "locks.packages", "losses", "made_of", "measures", "models.checkpoint",
    "models.code", "models.contents", "models.facts", "models.families", "models.files", "models.fit",
    "models.layer_rules", "models.nested", "models.outline", "models.plan_config", "models.published",
    "models.quantized", "plan", "planning.order", "planning.saved", "sizes", "store", "store.twins", "task_data",
    "models.whole", "tasks", "trust",
}  # fmt: skip
LAZILY = {"__init__.py"}  # boomspec.load and boomspec.family import the runners when they are called


def imports(path: Path) -> Iterator[str]:
    """The dotted names that a module imports anywhere, those for type checkers left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    checked = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)]
    skipped = {id(inner) for node in checked for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def test_the_compiler_imports_nothing_heavy_and_no_runner():
    for path in sorted((ROOT / "boomspec").rglob("*.py")):
        found = {name.split(".")[0] for name in imports(path)} & (HEAVY | {"runners"})
        assert found <= ({"runners"} if path.name in LAZILY else set()), path.name


def test_the_runners_know_the_compiler_by_its_graph_and_plain_values_only():
    for path in sorted((ROOT / "runners").rglob("*.py")):
        modules = {name.removeprefix("boomspec.") for name in imports(path) if name.startswith("boomspec.")}
        assert modules <= DOOR, (path.name, modules - DOOR)


def test_modules_stay_small():
    long = {
        path.name: lines
        for room in ("boomspec", "runners")
        for path in (ROOT / room).rglob("*.py")
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > 320
    }
    assert long == {}
