"""Every command that the README and docs/ show with its output is called here, in their order, and prints that output.

The folder is that of a clone, the quickstart in it a short one: its models have the quickstart's shapes, but are hardly
trained, and measured on little text. So numbers, dates and ids are masked; words and the order of lines are not.
"""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.boomspec.test_readme import ROOT, blocks
from tests.runners.here import boomspec

SHORTER = {
    "tokens: 1.5M": "tokens: 8192",
    "tokens: 60k": "tokens: 4096",
    "{tokens: 250k}": "{tokens: 8192}",
    "train_on: 2MB": "train_on: 100KB",
    "held_out: {}": "held_out: {max_tokens: 512}",
    "tasks: [stdlib_continuation]": "tasks: [{task: stdlib_continuation, limit: 8}]",
}
_MASKS = (
    (r"\b[0-9a-f]{12}\b|(?<=-)[0-9a-f]{8}\b", "ID"),
    (r"\S*/boomspec-store", ".../boomspec-store"),
    (r"\d{4}-\d\d-\d\d \d\d:\d\d", "WHEN"),
    (r"[-+±<>]?\d[\d,.]*(e-\d+)?( ?([KMGT]i?B|min|s|h|[MGTPE]?FLOP)\b|[kMBTG%](?!\w))?", "N"),
    (r"\s+", " "),
)


def masked(line: str) -> str:
    for pattern, sign in _MASKS:
        line = re.sub(pattern, sign, line)
    return line.strip()


def shown() -> list[list[tuple[str, list[str]]]]:
    """The blocks that call boomspec and show what it prints: commands with the lines below them."""
    found = []
    for block in blocks("console"):
        parts = [part.splitlines() for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]]
        calls = [(lines[0].split("  #")[0].strip(), [line for line in lines[1:] if line.strip()]) for lines in parts]
        if (
            any(lines for _, lines in calls)
            and calls[0][0].startswith(("boomspec", "sed"))
            and "broken.yaml" not in block
        ):
            found.append(calls)
    return found


@pytest.fixture(scope="module")
def clone(connected: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clone")
    shutil.copytree(ROOT / "specs", folder / "specs", ignore=shutil.ignore_patterns("*.lock.json"))
    spec = folder / "specs" / "quickstart.yaml"
    text = spec.read_text()
    for long, short in SHORTER.items():
        assert long in text
        text = text.replace(long, short)
    spec.write_text(text)
    return folder


def call(folder: Path, command: str) -> list[str]:
    words = shlex.split(command)
    if words[0] == "boomspec":
        return boomspec(*words[1:], folder=folder, together=True, COLUMNS="110").stdout.splitlines()
    subprocess.run(command, shell=True, cwd=folder, check=True)
    return []


def missing(promised: list[str], printed: list[str]) -> list[str]:
    """The promised lines that do not come in this order; "..." stands for any."""
    there, absent = iter([masked(line) for line in printed]), []
    for line in promised:
        if line.strip() == "...":
            continue
        wanted, rest = masked(line), list(there)
        if wanted in rest:
            there = iter(rest[rest.index(wanted) + 1 :])
        else:
            absent.append(line)
            there = iter(rest)
    return absent


def test_the_commands_print_what_the_readme_shows(clone):
    wrong = []
    for calls in shown():
        for command, promised in calls:
            printed = call(clone, command)
            if absent := missing(promised, printed):
                wrong.append("\n".join([f"$ {command}", *absent, "--- printed:", *printed]))
    assert not wrong, "\n\n".join(wrong)


def test_every_command_is_shown():
    commands = {shlex.split(command)[1] for calls in shown() for command, _ in calls if command.startswith("boomspec")}
    # What they print is for programs, or they need a cluster.
    silent = {"schema", "completion", "graph", "submit", "status", "logs", "stop"}
    named = set(re.findall(r"^\| `boomspec (\w+)", (ROOT / "README.md").read_text(), re.MULTILINE))
    assert named - silent <= commands
