"""What `submit --pip` has Ray install: everything that tasks import, in the versions of here."""

import ast
import re
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from runners.cluster.bundle import requirements

ROOT = Path(__file__).parents[2]


def names(listed: list[str]) -> set[str]:
    return {entry.partition("==")[0] for entry in listed}


def brought_along(distributions: set[str]) -> set[str]:
    """These and all that they need themselves."""
    found: set[str] = set()
    waiting = sorted(distributions)
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        try:
            needs = metadata.requires(name) or ()
        except metadata.PackageNotFoundError:
            continue  # for another system
        of_rays = name == "ray"  # whose extra `default` a cluster has
        for text in needs:
            if "extra ==" not in text or (of_rays and "'default'" in text.replace('"', "'")):
                waiting.append(re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", text)[0]).lower())
    return found


def imported() -> Iterator[tuple[str, str]]:
    """Modules of other packages that the two packages import, each with a file that does."""
    for room in ("boomspec", "runners"):
        for path in (ROOT / room).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                modules += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
                yield from ((module.split(".")[0], path.name) for module in modules)


def test_everything_that_tasks_import_is_installed_for_a_job() -> None:
    there = brought_along({*names(requirements("s3://bucket/x", trackers=["wandb", "mlflow"])), "ray"})
    distributions = metadata.packages_distributions()
    for module, file in sorted(set(imported())):
        if module in sys.stdlib_module_names or module in ("boomspec", "runners", "__future__"):
            continue
        if module == "gguf":  # `boomspec export`, which is no task
            continue
        candidates = {re.sub(r"[-_.]+", "-", name).lower() for name in distributions.get(module, ())}
        assert candidates & there, (module, file)


def test_versions_are_those_of_here_without_what_names_a_build() -> None:
    listed = requirements("/store")
    assert listed == sorted(listed)
    assert {"torch", "transformers", "lm-eval", "vl-convert-python", "jinja2", "pydantic"} <= names(listed)
    assert not {"ray", "boomspec", "s3fs", "wandb", "pytest", "ruff"} & names(listed)
    for entry in listed:
        name, _, version = entry.partition("==")
        assert metadata.version(name).partition("+")[0] == version
        assert "+" not in entry
    assert "s3fs" in names(requirements("s3://bucket/x"))
    assert "wandb" in names(requirements("/store", trackers=["wandb"]))
