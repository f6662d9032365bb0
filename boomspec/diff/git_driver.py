"""boomspec as the diff driver of git for specs.

    .gitattributes   specs/*.yaml diff=boomspec          belongs to the repository, is committed
    .git/config      diff.boomspec.command = ...          belongs to this clone

git calls the command with: path, old file, old hash, old mode, new file, new hash, new mode (and, of a renamed file,
its new path and the similarity). `git diff` never stops at an error here: what is no valid spec is shown as text, and
where this command itself fails the shell shows the text.
"""

import difflib
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from boomspec.compile.model_sources import model_folder, roles
from boomspec.compile.text_sources import every_file
from boomspec.core.errors import BoomspecError
from boomspec.diff.compared import compared
from boomspec.diff.git import config, repository
from boomspec.diff.render import print_diff
from boomspec.diff.sides import ComparedInput, spec_given
from boomspec.spec.document import Document, parse_document, read_document
from boomspec.spec.experiments import load_experiments
from boomspec.spec.spec_file import SpecFile

PATTERNS = ("specs/*.yaml",)
_KEY = "diff.boomspec.command"
_NOTHING = "/dev/null"
_MOST_BYTES = 2**28  # `git log -p` asks for many revisions: what reads more is compared without its tasks


def command() -> str:
    """The shell command that git runs: this Python; where it is gone or fails, plain diff."""
    # `git log` must not ask the network at every commit.
    ours = f"HF_HUB_OFFLINE=1 {shlex.quote(sys.executable)} -P -m boomspec diff --git-driver --"
    plain = 'diff -u -L "a/$1" -L "b/$1" "$2" "$5"'
    return f'f() {{ {ours} "$@" || {plain} || :; }}; f'


def set_up(patterns: Sequence[str] = PATTERNS, *, undo: bool = False) -> list[str]:
    """Install the driver in the repository that we are in, or take it back; a sentence for each thing done."""
    root = repository()
    done: list[str] = []
    attributes = root / ".gitattributes"
    text = attributes.read_text(encoding="utf-8") if attributes.exists() else ""
    ours = [f"{pattern} diff=boomspec" for pattern in patterns]
    if changed := [line for line in ours if (line in text.splitlines()) == undo]:
        if undo:
            text = "".join(line for line in text.splitlines(keepends=True) if line.rstrip("\r\n") not in changed)
        else:
            text += "".join(f"{line}\n" for line in (["", *changed] if text and not text.endswith("\n") else changed))
        if text:
            attributes.write_text(text, encoding="utf-8")
        else:
            attributes.unlink()
        done.append(f"{attributes}: {'removed' if undo else 'added'} {', '.join(map(repr, changed))}")
    known = config(root, "--get", _KEY)
    if undo and known is not None and config(root, "--remove-section", "diff.boomspec") is not None:
        done.append(f"{root}: removed {_KEY}")
    if not undo and known != command():
        if config(root, _KEY, command()) is None:
            raise BoomspecError(f"git refused to set {_KEY} in {root}", hint="see: git config --local --list")
        done.append(f"{root}: set {_KEY}")
    return done or [f"{root}: {'nothing was set up' if undo else 'everything is set up already'}"]


def driven(arguments: Sequence[str]) -> None:
    """Print what git asks for. Raises nothing but for arguments that are not git's."""
    if len(arguments) == 1:
        print(f"* Unmerged path {arguments[0]}")
        return
    if len(arguments) not in (7, 9):
        raise BoomspecError("--git-driver is what git calls, with seven arguments", hint="boomspec diff --git-setup")
    path, old, _, _, new = arguments[:5]
    named, renamed = arguments[7:] or (path, "")
    print(f"boomspec diff a/{path} b/{named}")
    if renamed:
        print(renamed.removesuffix("\n"))
    if _NOTHING in (old, new):
        print("new spec" if old == _NOTHING else "deleted spec")
        _print_text(f"a/{path}", old, f"b/{named}", new)
        return
    if Path(old).read_bytes() == Path(new).read_bytes():
        return
    try:
        paged = bool(os.environ.get("GIT_PAGER_IN_USE")) and "NO_COLOR" not in os.environ
        diff = compared(_side(f"a/{path}", old, Path(path)), _side(f"b/{named}", new, Path(named)))
        print_diff(diff, Console(highlight=False, force_terminal=True if paged else None), title=False)
        if not any(pair.changes.fields for pair in diff.pairs) and not diff.differs:
            print("Only the text differs: git diff --no-ext-diff")
    except Exception as error:  # git stops where its driver fails, whatever the reason
        _print_text(f"a/{path}", old, f"b/{named}", new)
        print(f"(as text: {str(error).splitlines()[0] if str(error) else type(error).__name__})")


def _side(named: str, file: str, path: Path) -> ComparedInput:
    """A spec whose text is in `file`; what it extends and what it reads is that which lies beside `path` now."""

    def read(wanted: Path) -> Document:
        return parse_document(Path(file).read_text(encoding="utf-8"), path) if wanted == path else read_document(wanted)

    files = load_experiments(path, read=read)
    return spec_given(named, files, refused=None if _reads(files[0]) <= _MOST_BYTES else "it reads too much for that")


def _reads(file: SpecFile) -> int:
    """Bytes on this machine whose digests a compilation needs."""
    try:
        folders = [folder for role in roles(file) if (folder := model_folder(file, role))]
        models = [path for folder in folders for path in folder.iterdir()]
        read = [*every_file(file), *models]
        return sum(path.stat().st_size for path in read if path.is_file())
    except (BoomspecError, OSError):
        return 0  # the compiler reports what is wrong


def _print_text(old_name: str, old: str, new_name: str, new: str) -> None:
    def lines(file: str) -> list[str]:
        text = "" if file == _NOTHING else Path(file).read_text(encoding="utf-8", errors="replace")
        return text.splitlines(keepends=True)

    names = [_NOTHING if file == _NOTHING else name for file, name in ((old, old_name), (new, new_name))]
    for line in difflib.unified_diff(lines(old), lines(new), names[0], names[1]):
        print(line, end="" if line.endswith("\n") else "\n\\ No newline at end of file\n")
