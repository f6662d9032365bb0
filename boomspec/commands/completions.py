"""What a shell offers while a command is typed: specs, run folders and folders; behind `SPEC#` its experiments."""

from __future__ import annotations

from pathlib import Path

from click.shell_completion import CompletionItem

from boomspec.core.errors import BoomspecError

_ENDINGS = (".yaml", ".yml", ".json")
_FOLDERS = "dir"  # the shell lists folders itself


def specs(incomplete: str) -> list[CompletionItem]:
    """Completions of a SPEC: files that may be one, folders (a run's, or one on the way), labels of experiments."""
    path, hash_sign, label = incomplete.partition("#")
    if hash_sign:
        return [CompletionItem(f"{path}#{found}") for found in _labels(Path(path)) if found.startswith(label)]
    folder, _, start = incomplete.rpartition("/")
    place = Path(f"{folder}/" if "/" in incomplete else ".").expanduser()
    try:
        names = sorted(p.name for p in place.iterdir() if p.suffix in _ENDINGS and p.is_file())
    except OSError:
        names = []
    before = f"{folder}/" if "/" in incomplete else ""
    found = [CompletionItem(f"{before}{name}") for name in names if name.startswith(start)]
    return [CompletionItem(incomplete, type=_FOLDERS), *found]


def folders(incomplete: str) -> list[CompletionItem]:
    """Completions of a folder."""
    return [CompletionItem(incomplete, type=_FOLDERS)]


def runs(incomplete: str) -> list[CompletionItem]:
    """Completions of a run of the default store."""
    from boomspec.plan.run import DEFAULT_STORE
    from boomspec.store import FolderStore

    try:
        names = [folder.name for folder in FolderStore(DEFAULT_STORE).run_folders()]
    except OSError:
        return []  # a person who types is shown no errors
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


def runs_and_specs(incomplete: str) -> list[CompletionItem]:
    """Completions of what names a run: itself, its folder, its spec, its graph."""
    return [*runs(incomplete), *specs(incomplete)]


def _labels(path: Path) -> list[str]:
    from boomspec.spec.experiments import load_experiments

    try:
        return [file.label for file in load_experiments(path) if file.label]
    except BoomspecError:
        return []  # a person who types is shown no errors
