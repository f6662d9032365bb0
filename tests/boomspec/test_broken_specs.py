"""What a newcomer sees: broken specs and, word for word, what each prints.

To accept a changed message: BOOMSPEC_ACCEPT=1 pytest tests/boomspec/test_broken_specs.py, then read the diff.
"""

import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from boomspec.commands.cli import main

BROKEN = Path(__file__).parent.parent / "golden" / "broken"
NEEDS_COMPILING = {"unknown-task"}  # lm-eval's names are looked up when a plan is made


@pytest.mark.parametrize("spec", sorted(BROKEN.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_broken_spec_prints_where_and_what_is_allowed(spec, monkeypatch):
    monkeypatch.chdir(BROKEN)
    command = "plan" if spec.stem in NEEDS_COMPILING else "validate"
    result = CliRunner().invoke(main, [command, spec.name], catch_exceptions=False)
    printed = result.output.replace(str(BROKEN), "<folder>")
    expected = spec.with_suffix(".txt")
    if os.environ.get("BOOMSPEC_ACCEPT"):
        expected.write_text(printed)
    assert result.exit_code == 2
    assert printed == expected.read_text()
