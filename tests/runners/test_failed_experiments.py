"""What fails in one experiment does not keep the others from their comparison, whatever comes first: a real run."""

import json
from pathlib import Path

import pytest

from tests.messages import wording
from tests.runners import small
from tests.runners.here import boomspec

pytestmark = pytest.mark.usefixtures("no_figures")

# The rate lets the student's loss run away in its first steps, and its search is never reached.
DIVERGES = {"optimizer": {"lr": 1e30, "clip": 0}}
SEARCHED = {"interpolate": {"order": {"search": "klpatch", "calibration": {"sequences": 2}}}}


@pytest.fixture(scope="module")
def ran(connected: None, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("failed")
    variants = {
        "searched": SEARCHED,
        "diverges": {"distill": DIVERGES},
        "both": {"distill": DIVERGES, **SEARCHED},
    }
    spec = small.write_spec(folder, variants=variants)
    done = boomspec("run", spec, "--store", folder / "store", "--plain")
    return folder, spec, done


def results(folder: Path) -> dict:
    pages = list(folder.glob("store/runs/*/report/results.json"))
    assert len(pages) == 1  # searches alone have none
    return json.loads(pages[0].read_text())


def test_the_others_are_compared_and_the_run_has_failed(ran) -> None:
    folder, _, done = ran
    assert done.returncode == 1, done.stdout + done.stderr
    found = results(folder)
    have = {row["experiment"] for row in found["results"] if row["series"] == "interpolated"}
    assert have == {"base", "searched"}
    assert found["outcome"] != wording("failed_experiments.there_no_results")


def test_what_is_missing_is_named(ran) -> None:
    folder, _, done = ran
    missing = results(folder)["missing"]
    assert {entry["experiment"] for entry in missing} == {"diverges"}
    assert all("distill student" in entry["reason"] for entry in missing if entry["series"] != "student")
    assert all("the loss is" in entry["reason"] or "gradient" in entry["reason"] for entry in missing)
    assert wording("failed_experiments.left_out_what_search") in done.stderr


def test_what_has_failed_is_not_tried_twice_in_one_run(ran) -> None:
    _, _, done = ran
    failures = [line for line in done.stdout.splitlines() if " FAILED " in line]
    assert len(failures) == 1, failures


def test_the_report_of_the_others_can_be_asked_for(ran) -> None:
    folder, spec, _ = ran
    before = results(folder)
    done = boomspec("report", spec, "--store", folder / "store")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "left out" in done.stderr
    assert results(folder)["results"] == before["results"]
    assert len(results(folder)["missing"]) == len(before["missing"])
