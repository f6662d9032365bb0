"""`boomspec completion`: the completion script of a shell, and the completions: commands, specs, runs, sizes, names.

A function below completes one kind of argument. A person who types is shown no errors: what fails completes nothing.
Nobody waits either, so nothing here compiles a spec or asks another machine.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem, get_completion_class

from boomspec.core.errors import BoomspecError

_ENDINGS = (".yaml", ".yml", ".json")
_INSTALL = {
    "bash": 'eval "$(boomspec completion bash)"   in ~/.bashrc',
    "zsh": 'eval "$(boomspec completion zsh)"   in ~/.zshrc, after compinit',
    "fish": "boomspec completion fish > ~/.config/fish/completions/boomspec.fish",
}
_NOTHING: Mapping[str, Any] = {}
_LARGEST_GRAPH = 1 << 24  # bytes: longer ones, of sweeps, take longer to read than a person waits
# click's own script for bash leaves it to the shell to list files as soon as folders are among the answers, and does
# not quote "24 layers".
_BASH = """\
_boomspec_completion() {
    local IFS=$'\\n' type value folder
    COMPREPLY=()
    while IFS=',' read -r type value; do
        if [[ $type == dir ]]; then
            compopt -o filenames
            while read -r folder; do COMPREPLY+=("$folder"); done < <(compgen -d -- "${COMP_WORDS[COMP_CWORD]}")
        elif [[ $type == plain ]]; then
            [[ ${COMP_WORDS[COMP_CWORD]} == [\\"\\']* ]] || value=${value// /\\\\ }
            COMPREPLY+=("$value")
        fi
    done < <(env COMP_WORDS="${COMP_WORDS[*]}" COMP_CWORD=$COMP_CWORD _BOOMSPEC_COMPLETE=bash_complete "$1")
}
complete -F _boomspec_completion boomspec
"""


@click.command("completion")
@click.argument("shell", type=click.Choice(list(_INSTALL)))
def command(shell: str) -> None:
    """Print the completion script of a SHELL: bash, zsh or fish.

    \b
    Examples:
      eval "$(boomspec completion bash)"      # in ~/.bashrc
      boomspec completion fish > ~/.config/fish/completions/boomspec.fish
    """
    from boomspec.commands.cli import main

    completion = get_completion_class(shell)
    assert completion is not None
    click.echo(_BASH if shell == "bash" else completion(main, {}, "boomspec", "_BOOMSPEC_COMPLETE").source(), nl=False)
    click.echo(f"# to install: {_INSTALL[shell]}")  # at the end: in zsh's script the first line has a meaning


def silently(what: str, incomplete: str, typed: Mapping[str, Any]) -> list[CompletionItem]:
    """The completions of one of the functions below; `typed`: the other arguments and options, as far as they go."""
    complete: Callable[[str, Mapping[str, Any]], list[CompletionItem]] = globals()[what]
    try:
        return complete(incomplete, typed)
    except Exception:  # whatever is wrong with a file, here is not where a person can be told
        return []


def specs(incomplete: str, _typed: Mapping[str, Any] = _NOTHING) -> list[CompletionItem]:
    """Completions of a SPEC: specs and graphs, folders, and after `SPEC#` the labels of its experiments."""
    path, hash_sign, label = incomplete.partition("#")
    if hash_sign:
        from boomspec.spec.experiments import load_experiments

        try:
            labels = [file.label for file in load_experiments(Path(path))]
        except BoomspecError:
            labels = []
        return [CompletionItem(f"{path}#{found}") for found in labels if found and found.startswith(label)]
    folder, slash, start = incomplete.rpartition("/")
    try:
        paths = [path for path in Path(f"{folder}{slash}").expanduser().iterdir() if path.suffix in _ENDINGS]
        names = sorted(path.name for path in paths if path.name.startswith(start) and path.is_file())
    except OSError:
        names = []
    return [*folders(incomplete), *(CompletionItem(f"{folder}{slash}{name}") for name in names)]


def folders(incomplete: str, _typed: Mapping[str, Any] = _NOTHING) -> list[CompletionItem]:
    """Completions of a folder, which the shell itself lists."""
    return [CompletionItem(incomplete, type="dir")]


def runs(incomplete: str, typed: Mapping[str, Any] = _NOTHING) -> list[CompletionItem]:
    """Completions of a run of the store that was typed, else of the default one."""
    from boomspec.store import FolderStore, is_url, usual_store

    if is_url(place := str(typed.get("store") or usual_store())):
        return []  # asking takes longer than a person waits
    try:
        names = [folder.name for folder in FolderStore(Path(place)).run_folders()]
    except OSError:
        return []
    return _beginning(incomplete, names)


def runs_and_specs(incomplete: str, typed: Mapping[str, Any] = _NOTHING) -> list[CompletionItem]:
    """Completions of what names a run: itself, its folder, its spec, its graph."""
    return [*runs(incomplete, typed), *specs(incomplete)]


def sizes_and_folders(incomplete: str, typed: Mapping[str, Any]) -> list[CompletionItem]:
    """Completions of what follows a run in `boomspec export`: a size of it, and then a folder."""
    if typed.get("every") or typed.get("family") or typed.get("places"):
        return folders(incomplete)
    found = ["student", "teacher"]
    if (family := _family(typed)) is not None:
        found += dict.fromkeys(f"{member.layers} layers" for member in family.members)
    return _beginning(incomplete, found)


def _family(typed: Mapping[str, Any]) -> Any:
    """The family of the run that was typed: of its own graph, or of the newest run of the spec. None: it has none."""
    from boomspec.core.graph_file import read_graph
    from boomspec.plan.run import GRAPH, run_folder, store_of
    from boomspec.spec.experiments import load_experiments, split_address
    from boomspec.store import FolderStore, is_url, open_store, usual_store

    path, label = split_address(typed["run"])
    asked = typed.get("store")
    if path.suffix in (".yaml", ".yml"):
        files = load_experiments(typed["run"])
        label = files[0].label or None
        store = store_of(files[0], asked)
        if len(files) > 1 or not isinstance(store, FolderStore):
            return None
        named = [run / GRAPH for run in store.run_folders(beginning=f"{files[0].spec.name}-")]
        graphs = sorted((one for one in named if one.is_file()), key=lambda one: one.stat().st_mtime, reverse=True)
    elif path.is_file():
        graphs = [path]
    elif path.is_dir() or not is_url(asked or usual_store()):
        folder = run_folder(path, None if asked is None else open_store(asked))
        graphs = [] if folder is None else [folder / GRAPH]
    else:
        graphs = []
    if not graphs or graphs[0].stat().st_size > _LARGEST_GRAPH:
        return None
    graph = read_graph(graphs[0])
    return (graph if label is None else graph.only(label)).family


def presets(incomplete: str, _typed: Mapping[str, Any] = _NOTHING) -> list[CompletionItem]:
    """Completions of a preset of `boomspec init`."""
    from boomspec.commands.presets import LIST, PRESETS, SHORT

    return _beginning(incomplete, [*SHORT, *PRESETS, LIST])


def templates(incomplete: str, _typed: Mapping[str, Any] = _NOTHING) -> list[CompletionItem]:
    """Completions of a template of `boomspec init`."""
    from boomspec.commands.spec import TEMPLATES

    return _beginning(incomplete, TEMPLATES)


def devices(incomplete: str, _typed: Mapping[str, Any] = _NOTHING) -> list[CompletionItem]:
    """Completions of a kind of GPU."""
    from boomspec.core.devices import DEVICES

    return _beginning(incomplete, DEVICES)


def kinds(incomplete: str, _typed: Mapping[str, Any] = _NOTHING) -> list[CompletionItem]:
    """Completions of a kind of task."""
    from boomspec.core.tasks import KINDS

    return _beginning(incomplete, sorted(KINDS))


def _beginning(incomplete: str, names: Iterable[str]) -> list[CompletionItem]:
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]
