"""Who may import what, read from the imports themselves: floors of rooms, and the doors between the two packages."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# A module imports from its own room and from floors below its own.
FLOORS = [
    {"boomspec.core"},
    {"boomspec.models", "boomspec.store"},
    {"boomspec.spec", "runners.runtime"},
    {"boomspec.compile", "runners.modeling", "runners.cluster", "runners.verify"},
    {"boomspec.plan", "runners.data", "runners.assembly", "runners.training", "runners.report"},
    {
        "boomspec.diff",
        "runners.evaluation",
        "runners.search",
        "runners.checking",
        "runners.executor",
        "runners.blockwise",
    },
    {"boomspec.commands", "runners.tasks", "runners.api"},
    {"runners.cli"},
]
# The runners know the compiler by its graph, its store, what it knows of models, and what a plan decided.
DOORS = {"boomspec.core", "boomspec.models", "boomspec.store", "boomspec.plan"}
FORMULAS = ROOT / "boomspec/core/losses"  # their formulas import torch when they are called
LAZILY = ROOT / "boomspec/__init__.py"  # boomspec.load and boomspec.family import the runners when they are called
HEAVY = {"torch", "ray", "transformers", "datasets", "numpy", "vl_convert", "lm_eval", "safetensors", "tokenizers"}
MODULES = sorted(path for package in ("boomspec", "runners") for path in (ROOT / package).rglob("*.py"))
IN_ROOMS = [path for path in MODULES if len(path.relative_to(ROOT).parts) > 2]  # the others are where programs enter
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def imports(path: Path, *, for_types: bool = False) -> Iterator[str]:
    """The dotted names that a module imports anywhere, with those for type checkers alone or without."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    checked = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)]
    skipped = {id(inner) for node in checked for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in skipped and not for_types:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room_of(name: str) -> str:
    """The room of a dotted name: the folder below the package, or the package itself."""
    package, *rest = name.split(".")
    return f"{package}.{rest[0]}" if rest and (ROOT / package / rest[0]).is_dir() else package


def rooms_read(path: Path) -> set[str]:
    """The rooms that a module imports from. `import boomspec` alone, for its version or place, reads none."""
    named = [name for name in imports(path, for_types=True) if name.startswith(("boomspec.", "runners."))]
    return {room_of(name) for name in named}


@pytest.mark.parametrize("path", IN_ROOMS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_module_imports_from_its_own_room_and_from_floors_below(path: Path):
    room = room_of(path.relative_to(ROOT).with_suffix("").as_posix().replace("/", "."))
    wrong = {other for other in rooms_read(path) - {room} if FLOOR_OF[other] >= FLOOR_OF[room]}
    assert wrong == set(), f"{room} is on floor {FLOOR_OF[room] + 1}"


def test_the_compiler_imports_nothing_heavy_and_no_runner():
    for path in (path for path in MODULES if path.is_relative_to(ROOT / "boomspec")):
        found = {name.split(".")[0] for name in imports(path)} & (HEAVY | {"runners"})
        lazily = {"runners"} if path == LAZILY else {"torch"} if path.parent == FORMULAS else set()
        assert found <= lazily, path


@pytest.mark.parametrize("path", sorted(FORMULAS.glob("*.py")), ids=lambda path: path.stem)
def test_a_loss_imports_torch_in_its_formula_alone(path: Path):
    """Reading a spec must not take the seconds that torch takes."""
    top = ast.Module(
        [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)]
    )
    assert "torch" not in ast.dump(top)


def test_the_command_line_starts_without_torch():
    done = subprocess.run(
        [sys.executable, "-c", "import sys, boomspec.commands.cli; sys.exit('torch' in sys.modules)"], cwd=ROOT
    )
    assert done.returncode == 0


def test_the_runners_enter_the_compiler_by_its_doors():
    for path in (path for path in MODULES if path.is_relative_to(ROOT / "runners")):
        read = {room for room in rooms_read(path) if room.startswith("boomspec")}
        assert read <= DOORS, path


def test_modules_stay_small():
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES}
    assert {path.name: count for path, count in lines.items() if count > 400} == {}
