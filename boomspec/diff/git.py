"""Reads spec files at git revisions, and the configuration of the repository.

A path is relative to the top of the repository, as for git; to the current folder, "./x", or where the top has none.
"""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from boomspec.core.errors import BoomspecError, did_you_mean
from boomspec.spec.document import Document, parse_document, read_document

_SPECS = (".yaml", ".yml")


@dataclass(frozen=True)
class Revision:
    """The files of one commit."""

    name: str  # as the person wrote it
    commit: str
    root: Path  # of the repository

    def document(self, path: Path) -> Document:
        """A spec file at this revision; a file outside of the repository as it is now."""
        place = Path(os.path.normpath(path.absolute()))
        if not place.is_relative_to(self.root):
            return read_document(path)
        inner = place.relative_to(self.root).as_posix()
        found = _git(self.root, "cat-file", "blob", f"{self.commit}:{inner}")
        if found is None:
            raise self.missing(inner)
        try:
            return parse_document(found.decode("utf-8"), path)
        except UnicodeDecodeError as error:
            raise BoomspecError(f"{self.name}:{inner} is no UTF-8 text") from error

    def find(self, path: str) -> Path:
        """The absolute place of a path as git would find it at this revision, else BoomspecError."""
        here = Path(os.path.normpath(Path.cwd() / path))
        top = Path(os.path.normpath(self.root / path))
        for place in (here,) if path.startswith("./") else (top, here):
            if place.is_relative_to(self.root):
                inner = place.relative_to(self.root).as_posix()
                if _git(self.root, "cat-file", "-t", f"{self.commit}:{inner}") == b"blob\n":
                    return place
        raise self.missing(path)

    def missing(self, path: str) -> BoomspecError:
        listed = _git(self.root, "ls-tree", "-r", "-z", "--name-only", self.commit) or b""
        names = [name for name in listed.decode("utf-8", "replace").split("\0") if name.endswith(_SPECS)]
        near = did_you_mean(path, names) or (f"specs there: {', '.join(names[:5])}" if names else None)
        return BoomspecError(f"there is no '{path}' at revision {self.name}", hint=near)


def revision(name: str) -> Revision:
    """A revision of the repository that we are in. Raises BoomspecError where there is none of the two."""
    root = repository()
    commit = None if name.startswith("-") else _git(root, "rev-parse", "--verify", "--quiet", f"{name}^{{commit}}")
    if commit is None:
        names = (_git(root, "for-each-ref", "--format=%(refname:short)") or b"").decode("utf-8", "replace").split()
        hint = did_you_mean(name, names) or "see: git log --oneline"
        raise BoomspecError(f"'{name}' is no revision of the repository {root}", hint=hint)
    return Revision(name, commit.decode().strip(), root)


def repository() -> Path:
    """The top of the git repository that we are in. Raises BoomspecError where there is none."""
    top = _git(Path.cwd(), "rev-parse", "--show-toplevel")
    if top is None:
        hint = "REVISION:PATH needs one; else give a path"
        raise BoomspecError(f"{Path.cwd()} is not in a git repository", hint=hint)
    return Path(top.decode("utf-8", "surrogateescape").removesuffix("\n"))


def config(root: Path, *arguments: str) -> str | None:
    """What `git config` prints for the repository's own configuration; None where it fails."""
    found = _git(root, "config", "--local", *arguments)
    return None if found is None else found.decode("utf-8", "replace").removesuffix("\n")


def _git(folder: Path, *arguments: str) -> bytes | None:
    """What git prints; None where it fails. Raises BoomspecError where there is no git."""
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"})
    except FileNotFoundError as error:
        raise BoomspecError("git is not installed here", hint="give files instead of revisions") from error
    return done.stdout if done.returncode == 0 else None
