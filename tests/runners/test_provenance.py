"""Which commit an artifact says it was made by."""

import subprocess
from pathlib import Path

import pytest

from runners.runtime.provenance import git_commit


def git(folder: Path, *arguments: str) -> str:
    said = ["-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "init.defaultBranch=main"]
    done = subprocess.run(["git", "-C", str(folder), *said, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def package(folder: Path) -> Path:
    (folder / "tasks").mkdir(parents=True)
    (folder / "__init__.py").write_text("VERSION = 1\n")
    (folder / "tasks" / "one.py").write_text("RESULT = 1\n")
    return folder


@pytest.fixture
def repository(tmp_path) -> Path:
    """Somebody's repository, with a commit."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    git(folder, "init", "--quiet")
    (folder / ".gitignore").write_text(".venv\n")
    (folder / "analysis.py").write_text("print()\n")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "--message", "theirs")
    return folder


@pytest.mark.parametrize("ignored", [True, False])
def test_a_package_that_is_installed_inside_of_anothers_repository_has_no_commit(repository, ignored):
    if not ignored:  # nor where git lists it as untracked
        (repository / ".gitignore").write_text("")
    site = repository / ".venv" / "lib" / "site-packages"
    assert git_commit(package(site / "boomspec"), package(site / "runners")) is None


def test_a_checkout_has_its_commit_and_says_what_differs(repository):
    ours, theirs = package(repository / "boomspec"), package(repository / "runners")
    git(repository, "add", ".")
    git(repository, "commit", "--quiet", "--message", "ours")
    commit = git(repository, "rev-parse", "HEAD")
    assert git_commit(ours, theirs) == commit
    (theirs / "tasks" / "two.py").write_text("RESULT = 2\n")  # a module that git does not know
    assert git_commit(ours) == commit
    assert git_commit(theirs) == f"{commit}-dirty"
    (theirs / "tasks" / "two.py").unlink()
    (ours / "tasks" / "one.py").write_text("RESULT = 2\n")
    assert git_commit(ours, theirs) == f"{commit}-dirty"


def test_only_one_of_the_packages_in_a_repository_is_no_commit_of_both(repository, tmp_path):
    ours = package(repository / "boomspec")
    git(repository, "add", ".")
    git(repository, "commit", "--quiet", "--message", "ours")
    assert git_commit(ours, package(tmp_path / "elsewhere" / "runners")) is None


def test_outside_of_git_and_without_git_there_is_none(tmp_path, monkeypatch):
    folder = package(tmp_path / "boomspec")
    assert git_commit(folder) is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_commit(folder) is None


def test_a_hook_of_git_does_not_name_the_repository(repository, tmp_path, monkeypatch):
    """Git sets these for what it starts, and they win over the folder that it is asked about."""
    monkeypatch.setenv("GIT_DIR", str(repository / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(repository))
    assert git_commit(package(tmp_path / "site-packages" / "boomspec")) is None
