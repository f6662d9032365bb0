"""`boomspec completion`: the script that makes a shell complete commands, options, specs and experiments."""

from __future__ import annotations

import click

_VARIABLE = "_BOOMSPEC_COMPLETE"
_INSTALL = {
    "bash": 'eval "$(boomspec completion bash)"   in ~/.bashrc',
    "zsh": 'eval "$(boomspec completion zsh)"   in ~/.zshrc, behind compinit',
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
    from click.shell_completion import get_completion_class

    from boomspec.commands.cli import main

    completion = get_completion_class(shell)
    assert completion is not None
    click.echo(_BASH if shell == "bash" else completion(main, {}, "boomspec", _VARIABLE).source(), nl=False)
    click.echo(f"# to install: {_INSTALL[shell]}")  # at the end: in zsh's script the first line has a meaning
