"""boomspec as git's diff driver, in a real repository. Whatever a spec holds, git goes on."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from boomspec.diff.git_driver import command
from tests.boomspec.conftest import Writer
from tests.boomspec.test_cli import call
from tests.boomspec.test_diff import commit, git
from tests.messages import wording

ROOT = Path(__file__).parents[2]


@pytest.fixture
def repository(specs: Writer, monkeypatch: pytest.MonkeyPatch) -> Writer:
    """A repository with a spec in specs/ and the driver set up; we are in it."""
    monkeypatch.chdir(specs.folder)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("COLUMNS", "120")
    git(specs.folder, "init", "-q", "-b", "main")
    for key, value in (("user.email", "a@example.org"), ("user.name", "a"), ("core.pager", "cat")):
        git(specs.folder, "config", key, value)
    (specs.folder / "specs").mkdir()
    write(specs, specs.SPEC)
    assert call("diff", "--git-setup").exit_code == 0
    commit(specs.folder, "first")
    return specs


def write(specs: Writer, text: str) -> None:
    (specs.folder / "specs" / "a.yaml").write_text(text.replace('"*.txt"', '"../*.txt"'))


def test_git_diff_says_what_a_change_means(repository: Writer) -> None:
    write(repository, repository.SPEC.replace("weight: 0.1", "weight: 0.3"))
    shown = git(repository.folder, "diff")
    assert shown.startswith("boomspec diff a/specs/a.yaml b/specs/a.yaml\n1 field that changes results.\n")
    assert "distill.losses.kl.weight  0.1  ->  0.3  13 tasks" in shown
    commit(repository.folder, "second")
    assert "distill.losses.kl.weight  0.1  ->  0.3  13 tasks" in git(repository.folder, "log", "-p", "--ext-diff", "-1")
    assert "+    kl: {weight: 0.3}" in git(repository.folder, "log", "-p", "-1")  # without --ext-diff: text, as ever


def test_a_change_of_text_alone_is_said_to_be_one(repository: Writer) -> None:
    write(repository, "# a comment\n" + repository.SPEC)
    assert git(repository.folder, "diff").splitlines()[1:] == [
        wording("diff.they_mean_same"),
        wording("git_driver.only_text_differs_git"),
    ]


def test_added_and_deleted_specs_are_shown_as_text(repository: Writer) -> None:
    (repository.folder / "specs" / "b.yaml").write_text(repository.SPEC)
    (repository.folder / "specs" / "a.yaml").unlink()
    git(repository.folder, "add", "-A")
    shown = git(repository.folder, "diff", "--cached", "--no-renames")
    assert wording("git_driver.deleted_spec_specs_yaml") in shown
    assert wording("git_driver.new_spec_dev_null") in shown
    assert "+boomspec: 1" in shown


def test_a_renamed_spec_is_compared_with_what_it_was(repository: Writer) -> None:
    git(repository.folder, "mv", "specs/a.yaml", "specs/b.yaml")
    text = (repository.folder / "specs" / "b.yaml").read_text()
    (repository.folder / "specs" / "b.yaml").write_text(text.replace("weight: 0.1", "weight: 0.3"))
    git(repository.folder, "add", "-A")
    shown = git(repository.folder, "diff", "--cached", "-M")
    assert "boomspec diff a/specs/a.yaml b/specs/b.yaml" in shown
    assert "rename to specs/b.yaml" in shown
    assert "distill.losses.kl.weight  0.1  ->  0.3" in shown


@pytest.mark.parametrize("text", ["boomspec: [\n", "boomspec: 1\nstudnt: {}\n", "\udcff", ""])
def test_what_is_no_spec_is_shown_as_text_with_what_is_wrong(repository: Writer, text: str) -> None:
    (repository.folder / "specs" / "a.yaml").write_bytes(text.encode("utf-8", "surrogateescape"))
    done = subprocess.run(["git", "diff"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "-boomspec: 1" in done.stdout or "-name: tiny" in done.stdout
    assert done.stdout.rstrip().splitlines()[-1].startswith("(as text: ")


def test_a_spec_whose_files_are_gone_is_compared_by_what_it_says(repository: Writer) -> None:
    for file in repository.folder.glob("*.txt"):
        file.unlink()
    write(repository, repository.SPEC.replace("weight: 0.1", "weight: 0.3"))
    shown = git(repository.folder, "diff", "--", "specs")
    assert wording("diff.cannot_compiled_here_so") in shown
    assert "distill.losses.kl.weight  0.1  ->  0.3  by its section" in shown


def test_a_merge_conflict_does_not_stop_git(repository: Writer) -> None:
    for branch, weight in (("one", "0.3"), ("two", "0.4")):
        git(repository.folder, "checkout", "-q", "-b", branch, "main")
        write(repository, repository.SPEC.replace("weight: 0.1", f"weight: {weight}"))
        commit(repository.folder, branch)
    git(repository.folder, "merge", "one", check=False)
    done = subprocess.run(["git", "diff"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "specs/a.yaml" in done.stdout


def test_where_python_is_gone_git_shows_the_text(repository: Writer) -> None:
    gone = command().replace(shlex.quote(sys.executable), "/nowhere/python")
    git(repository.folder, "config", "diff.boomspec.command", gone)
    write(repository, repository.SPEC.replace("weight: 0.1", "weight: 0.3"))
    done = subprocess.run(["git", "diff"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "+    kl: {weight: 0.3}" in done.stdout


def test_setting_up_twice_changes_nothing_and_taking_it_back_leaves_nothing(repository: Writer) -> None:
    attributes, config = repository.folder / ".gitattributes", repository.folder / ".git" / "config"
    before = attributes.read_text(), config.read_text()
    assert wording("git_driver.everything_set_up_already") in call("diff", "--git-setup").output
    assert (attributes.read_text(), config.read_text()) == before
    assert "specs/*.yaml diff=boomspec" in before[0]
    assert "removed" in call("diff", "--git-setup", "--unset").output
    assert not attributes.exists()
    assert "boomspec" not in config.read_text()
    assert wording("git_driver.nothing_set_up") in call("diff", "--git-setup", "--unset").output


def test_setting_up_keeps_what_is_in_gitattributes(repository: Writer) -> None:
    call("diff", "--git-setup", "--unset")
    (repository.folder / ".gitattributes").write_text("*.png binary")
    assert call("diff", "--git-setup", "experiments/*.yaml").exit_code == 0
    lines = ["*.png binary", "experiments/*.yaml diff=boomspec"]
    assert (repository.folder / ".gitattributes").read_text().splitlines() == lines
    call("diff", "--git-setup", "--unset", "experiments/*.yaml")
    assert (repository.folder / ".gitattributes").read_text() == "*.png binary\n"


def test_outside_of_a_repository_there_is_nothing_to_set_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    result = call("diff", "--git-setup")
    assert (result.exit_code, wording("diff.not_git_repository") in result.output) == (2, True)
    assert not (tmp_path / ".gitattributes").exists()
    assert call("diff", "--unset").exit_code == 2


def test_the_driver_is_for_git(repository: Writer) -> None:
    result = call("diff", "--git-driver", "--", "a", "b")
    assert (result.exit_code, "what git calls" in result.output) == (2, True)
