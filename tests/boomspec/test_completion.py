"""Shell completion, in a real bash; and the help that lists the commands."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from boomspec.commands.cli import main
from boomspec.commands.completion import runs, specs
from tests.boomspec.past import past_run

ASK = """\
source completion.sh
COMP_WORDS=(boomspec "$@"); COMP_CWORD=$#
_boomspec_completion boomspec 2> /dev/null  # compopt complains that nobody pressed tab
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def shell(tmp_path_factory):
    """A folder with specs, where bash has read the completion script; ask it for the completions of some words."""
    folder = tmp_path_factory.mktemp("shell")
    program = folder / "bin" / "boomspec"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\nfrom boomspec.__main__ import main\nmain()\n")
    program.chmod(0o755)
    environment = {"PATH": f"{program.parent}:/usr/bin:/bin"}
    script = CliRunner().invoke(main, ["completion", "bash"], catch_exceptions=False).output
    (folder / "completion.sh").write_text(script)
    (folder / "specs").mkdir()
    for name in ("one.yaml", "two.yml", "graph.json", "notes.md", "specs/three.yaml"):
        (folder / name).write_text("")
    (folder / "set.yaml").write_text("boomspec: 1\nname: x\nvariants: {no-kl: {seed: 1}, other: {seed: 2}}\n" + REST)

    def ask(*words: str) -> set[str]:
        command = ["bash", "-c", ASK, "ask", *words]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
        return set(done.stdout.split())

    return ask


REST = """\
teacher: {model: a/b}
student: {keep: 2}
data: {dataset: a/c, sequence_length: 32, max_tokens: 1M}
distill: {tokens: 1M, batch_tokens: 1k}
"""


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["va"], {"validate"}),
        (["runs", "--js"], {"--json"}),
        (["validate", ""], {"bin", "specs", "one.yaml", "two.yml", "graph.json", "set.yaml"}),
        (["plan", "o"], {"one.yaml"}),
        (["show", "specs/"], {"specs/three.yaml"}),
        (["show", "set.yaml#"], {"set.yaml#base", "set.yaml#no-kl", "set.yaml#other"}),
        (["show", "set.yaml#n"], {"set.yaml#no-kl"}),
        (["show", "one.yaml#"], set()),  # it is no spec: nothing is offered and nothing complained about
        (["runs", "--store", "s"], {"specs"}),
        (["completion", ""], {"bash", "zsh", "fish"}),
        (["init", "--template", ""], {"quickstart", "hub", "student"}),
        (["init", "--preset", "boomerang-qwen3-"], {"boomerang-qwen3-4b", "boomerang-qwen3-8b"}),
        (["plan", "set.yaml", "--device", "h"], {"h100", "h200"}),
        (["run", "set.yaml", "--until", "dist"], {"distill", "distill_block"}),
        (["export", "set.yaml", "student", "model", "--gguf", "f"], {"f16", "f32"}),
        (["export", "set.yaml#base", ""], {"student", "teacher"}),  # it has never been run
        (["export", "one.yaml", "s"], set()),
        (["export", "set.yaml", "student", "s"], {"specs"}),
        (["export", "set.yaml", "--all", "s"], {"specs"}),
        (["run", "x", "--store", "https://not/a/store", "o"], set()),
    ],
)
def test_bash_completes(shell, words, expected):
    assert shell(*words) == expected


@pytest.mark.parametrize("name", ["bash", "zsh", "fish"])
def test_every_script_says_how_it_is_installed_and_asks_boomspec(name):
    lines = CliRunner().invoke(main, ["completion", name], catch_exceptions=False).output.splitlines()
    assert lines[-1].startswith("# to install: ")
    assert f"boomspec completion {name}" in lines[-1]
    assert f"_BOOMSPEC_COMPLETE={name}_complete" in "\n".join(lines)


def test_a_shell_that_is_not_known_is_an_error():
    result = CliRunner().invoke(main, ["completion", "tcsh"])
    assert result.exit_code == 2
    assert "'bash', 'zsh', 'fish'" in result.output


def test_runs_of_the_default_store_are_offered(tmp_path, monkeypatch, specs):
    from boomspec.store import FolderStore

    monkeypatch.chdir(tmp_path)
    assert runs("") == []
    folder = past_run(FolderStore("boomspec-store"), specs.compiled().graph, made=False)
    assert [item.value for item in runs("ti")] == [folder.name]


@pytest.mark.parametrize("named", ["spec", "spec of a store", "run", "start of it", "folder", "graph"])
def test_the_sizes_of_the_run_that_was_typed_are_offered(tmp_path, monkeypatch, specs, named):
    from boomspec.store import FolderStore

    monkeypatch.chdir(tmp_path)
    graph = specs.compiled().graph
    spec = specs.folder / "spec.yaml"
    folder = past_run(
        FolderStore({"spec": "store", "spec of a store": "other"}.get(named, "boomspec-store")), graph, made=False
    )
    graph.write(folder / "graph.json")
    (older := folder.with_name(f"{graph.name}-0000")).mkdir()
    (older / "graph.json").write_text("not a graph")
    os.utime(older / "graph.json", (0, 0))
    names = {"run": folder.name, "start of it": folder.name[:-3], "folder": folder, "graph": folder / "graph.json"}
    words = ["export", str(names.get(named, spec)), ""]
    words[1:1] = ["--store", "other"] if named == "spec of a store" else []
    asked = {"COMP_WORDS": shlex.join(["boomspec", *words]), "COMP_CWORD": str(len(words))}
    asked["_BOOMSPEC_COMPLETE"] = "bash_complete"
    answer = CliRunner().invoke(main, [], env=asked, prog_name="boomspec")
    assert answer.stderr == ""
    offered = [line.removeprefix("plain,") for line in answer.output.splitlines()]
    family = graph.family
    assert offered == ["student", "teacher", *(f"{member.layers} layers" for member in family.members)]
    assert {family.pick(size).layers for size in offered} == {member.layers for member in family.members}


def test_a_size_with_a_space_is_quoted_for_bash(tmp_path, specs):
    from boomspec.store import FolderStore

    graph = specs.compiled().graph
    folder = past_run(FolderStore(tmp_path / "boomspec-store"), graph, made=False)
    graph.write(folder / "graph.json")
    script = CliRunner().invoke(main, ["completion", "bash"], catch_exceptions=False).output
    (tmp_path / "completion.sh").write_text(script)
    (tmp_path / "boomspec").write_text(f"#!{sys.executable}\nfrom boomspec.__main__ import main\nmain()\n")
    (tmp_path / "boomspec").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    layers = graph.family.members[-1].layers
    for typed, expected in ((f"{layers}", rf"{layers}\ layers"), (f"'{layers}", f"{layers} layers")):
        command = ["bash", "-c", ASK, "ask", "export", folder.name, typed]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
        assert done.stdout.splitlines() == [expected]


def test_a_folder_that_is_not_there_completes_to_nothing():
    assert [item.type for item in specs("none/such/")] == ["dir"]


def test_the_help_has_every_command_in_a_group_with_a_line_and_examples_that_are_calls_of_it():
    printed = CliRunner().invoke(main, ["--help"]).output
    context = click.Context(main)
    for name in main.list_commands(context):
        assert re.search(rf"^  {name} +\w", printed, re.MULTILINE)
        help_text = CliRunner().invoke(main, [name, "--help"]).output
        assert "Example" in help_text, name
        assert re.search(rf"^ +(eval \"\$\()?boomspec {name}\b", help_text, re.MULTILINE), name


def test_listing_the_commands_imports_none_of_them():
    code = (
        "import sys, click; from boomspec.commands.cli import main; main.list_commands(click.Context(main))\n"
        "print([name for name in sys.modules if name.startswith('boomspec.commands.')])"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path("/"))
    assert printed.stdout.strip() == "['boomspec.commands.cli']"
