"""What the README and the pages in docs/ say is true: specs, the tree, commands, plans, errors, links."""

import re
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from boomspec.commands.cli import main
from boomspec.compile.check import check_experiments
from boomspec.spec.experiments import load_spec

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
# In this order: what a command shows may depend on those before it.
PAGES = [ROOT / "README.md", ROOT / "docs/commands.md", ROOT / "docs/comparing.md"]
PAGES += [path for path in sorted((ROOT / "docs").glob("*.md")) if path not in PAGES] + [ROOT / "CONTRIBUTING.md"]
LINKS = [
    (path, link) for path in PAGES for link in re.findall(r"\]\((?!https?:)([^)]+)\)", path.read_text(encoding="utf-8"))
]


def blocks(language: str) -> list[str]:
    """The code blocks of one language on all pages; "" for those that name none."""
    found, current = [], None
    for line in "".join(path.read_text(encoding="utf-8") for path in PAGES).splitlines(keepends=True):
        if not line.startswith("```"):
            if current is not None:
                current[1].append(line)
        elif current is None:
            current = (line[3:].strip(), [])
        else:
            found.append((current[0], "".join(current[1])))
            current = None
    return [text for name, text in found if name == language]


def test_the_spec_is_valid(tmp_path):
    spec = next(block for block in blocks("yaml") if block.startswith("boomspec: 1"))
    path = tmp_path / "spec.yaml"
    path.write_text(spec)
    check_experiments([load_spec(path)])


def test_the_tree_names_every_room():
    tree = next(block for block in blocks("") if block.startswith("specs/"))
    named = {line.split()[0].rstrip("/") for line in tree.splitlines() if line.startswith("  ")}
    rooms = {path.name for package in ("boomspec", "runners") for path in (ROOT / package).iterdir() if path.is_dir()}
    assert rooms - {"__pycache__", "templates"} == named


def test_the_table_has_every_command():
    assert set(re.findall(r"^\| `boomspec (\w+)", README, re.MULTILINE)) == set(main.list_commands(click.Context(main)))


def test_the_plan_is_that_of_the_quickstart(tmp_path):
    """Word for word and number for number; only ids follow the library of the running Python."""
    shown = next(block for block in blocks("console") if block.startswith("$ boomspec plan specs/quickstart.yaml"))
    arguments = ["plan", str(ROOT / "specs" / "quickstart.yaml"), "--store", str(tmp_path)]
    printed = CliRunner(env={"COLUMNS": "110"}).invoke(main, arguments, catch_exceptions=False).output
    lines = {plain(line) for line in printed.splitlines()}
    promised = [plain(line) for line in shown.splitlines()[1:] if line.strip() and not line.startswith("Tasks (store")]
    assert [line for line in promised if line not in lines | {"..."}] == []


def plain(line: str) -> str:
    return " ".join(re.sub(r"\b[0-9a-f]{12}\b", "ID", line).split())


def test_the_error_is_what_validate_prints():
    golden = (ROOT / "tests" / "golden" / "broken" / "unknown-keys.txt").read_text()
    shown = next(block for block in blocks("console") if block.startswith("$ boomspec validate"))
    for line in shown.splitlines()[1:-2]:
        assert line.replace("broken.yaml", "unknown-keys.yaml") in golden


@pytest.mark.parametrize(("page", "link"), LINKS)
def test_links_lead_to_files_and_headings(page, link):
    file, _, heading = link.partition("#")
    target = page.parent / file if file else page
    assert target.exists()
    headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE) if heading else []
    assert not heading or heading in {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in headings}


def test_the_readme_is_short_enough_to_be_read():
    assert len(README.splitlines()) <= 250


def test_nothing_is_left_to_be_filled_in():
    assert not [path.name for path in PAGES if "@@" in path.read_text(encoding="utf-8")]
