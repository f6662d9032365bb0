"""List third-party code that a graph will execute: model code (auto_map) and lm-eval tasks."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from boomspec.core.graph import CODE, OUTSIDE, Source, TaskGraph

_SHOWN = 4  # files that a warning names


def trusted_code(sources: Iterable[Source]) -> frozenset[str]:
    """sha256 of every file of code that may run."""
    return frozenset(digest for source in sources for digest in source.identity.get(CODE, {}).values())


def foreign_code(graph: TaskGraph) -> list[str]:
    """A line for each model whose code this graph runs: where it is from, its files with their digests."""
    found: dict[str, dict[str, str]] = {}
    for source in graph.sources.values():
        if code := source.identity.get(CODE):
            origin = str(source.location.get("name", Path(source.location.get("folder", "")).name))
            if "hub" in source.identity:
                origin = f"{source.identity['hub']} at commit {source.identity['revision'][:12]}"
            found.setdefault(origin, {}).update(code)
    return [f"{origin}: {_files(code)}" for origin, code in found.items()]


def warnings(graph: TaskGraph) -> list[str]:
    """Warnings about the code that runs with this graph."""
    models = [f"trust_remote_code: tasks run the code of {line}" for line in foreign_code(graph)]
    locations = [source.location for source in graph.sources.values() if "folder" in source.identity]
    outside = {where.get("name", where["folder"]) for where in locations if where.get(OUTSIDE, True)}
    tasks = "lm-eval tasks of {}, outside of the spec's own folder, are code, and it is run"
    return models + [tasks.format(folder) for folder in sorted(outside)]


def asked_for(meaning: Mapping[str, Any]) -> list[str]:
    """The same of one experiment's meaning, which may not know which files that are."""
    found = []
    for role in ("teacher", "student"):
        if meaning.get(role, {}).get("trust_remote_code"):
            files = _files(meaning.get("sources", {}).get(role, {}).get(CODE, {}))
            line = f"trust_remote_code: tasks run the code of {meaning[role]['model']}"
            found.append(f"{line}: {files}" if files else line)
    return found


def _files(code: Mapping[str, str]) -> str:
    listed = [f"{name} (sha256 {digest[:12]})" for name, digest in sorted(code.items())]
    more = f", and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
    return ", ".join(listed[:_SHOWN]) + more
