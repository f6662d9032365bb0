"""`boomspec completion`: the completion script of a shell, and the completions: commands, specs, runs, experiments.

A function below completes one kind of argument. A person who types is shown no errors, so they complete nothing then.
"""

from pathlib import Path

import click
from click.shell_completion import CompletionItem, get_completion_class

from boomspec.core.errors import BoomspecError

_ENDINGS = (".yaml", ".yml", ".json")
_INSTALL = {
    "bash": 'eval "$(boomspec completion bash)"   in ~/.bashrc',
    "zsh": 'eval "$(boomspec completion zsh)"   in ~/.zshrc, after compinit',
    "fish": "boomspec completion fish > ~/.config/fish/completions/boomspec.fish",
}
# click's own script for bash leaves it to the shell to list files as soon as folders are among the answers.
_BASH = """\
_boomspec_completion() {
    local IFS=$'\\n' type value folder
    COMPREPLY=()
    while IFS=',' read -r type value; do
        if [[ $type == dir ]]; then
            compopt -o filenames
            while read -r folder; do COMPREPLY+=("$folder"); done < <(compgen -d -- "${COMP_WORDS[COMP_CWORD]}")
        elif [[ $type == plain ]]; then
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


def specs(incomplete: str) -> list[CompletionItem]:
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


def folders(incomplete: str) -> list[CompletionItem]:
    """Completions of a folder, which the shell itself lists."""
    return [CompletionItem(incomplete, type="dir")]


def runs(incomplete: str) -> list[CompletionItem]:
    """Completions of a run of the default store."""
    from boomspec.store import FolderStore, is_url, usual_store

    if is_url(place := usual_store()):
        return []  # asking takes longer than a person waits
    try:
        names = [folder.name for folder in FolderStore(Path(place)).run_folders()]
    except OSError:
        return []
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


def presets(incomplete: str) -> list[CompletionItem]:
    """Completions of a preset of `boomspec init`."""
    from boomspec.commands.presets import LIST, PRESETS, SHORT

    names = [*SHORT, *PRESETS, LIST]
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


def runs_and_specs(incomplete: str) -> list[CompletionItem]:
    """Completions of what names a run: itself, its folder, its spec, its graph."""
    return [*runs(incomplete), *specs(incomplete)]
