"""The page in a browser: its figures, its slider, light and dark, a phone, paper. And what it is told of every size."""

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from boomspec.core.layers import Layer, LayerPlan
from boomspec.core.sizes import LayerCache, Lineage, Member
from boomspec.store import FolderStore
from runners.report.chart import DARK, LIGHT
from runners.report.page import publish_run, render
from runners.report.sizes import sizes_of
from runners.report.study import Size, Study, Text, Written
from tests.runners import browser
from tests.runners.family import Family
from tests.runners.test_figures import deployed
from tests.runners.test_report import results_of

KEPT, LAYERS = (0, 2, 4, 6), 8
# Keys and values: 96 bytes a token; every second layer looks back 100 tokens.
CACHE = tuple(LayerCache(96, 100 if i % 2 else None) for i in range(LAYERS))


def plan_of(patched: int) -> LayerPlan:
    """The last blocks are the teacher's."""
    own = len(KEPT) - patched
    student = tuple(Layer("s", i) for i in range(own))
    return student + tuple(Layer("t", i) for i in range(KEPT[own] if patched else LAYERS, LAYERS))


def lineage() -> Lineage:
    plans = {patched: plan_of(patched) for patched in range(len(KEPT) + 1)}
    members = tuple(Member(n, plan, 1000 * len(plan), 4000 * len(plan), True) for n, plan in plans.items())
    return Lineage("teacher", "student", KEPT, members[0], members, cache=CACHE)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    family = Family(FolderStore(folder / "boomspec-store"))
    experiment = replace(family.graph.experiments[0], family=lineage())
    return publish_run(replace(family.graph, experiments=(experiment,)), family.store, folder / "family-1a2b3c4d", {})


def test_every_size_is_told_with_its_layers_its_cache_its_numbers_and_its_command(published: Path) -> None:
    found = re.search(r'<script type="application/json" id="known">(.*?)</script>', published.read_text())
    assert found is not None
    ((sizes),) = [one["sizes"] for one in json.loads(found[1])]
    assert [(one["layers"], one["kind"]) for one in sizes] == [
        (4, "student"), (5, "interpolated"), (6, "interpolated"), (7, "interpolated"), (8, "teacher")
    ]  # fmt: skip
    six = sizes[2]
    # Two layers of the student, each in place of two of the teacher's, and the teacher's last four.
    assert six["plan"] == [["s", 0, 2], ["s", 1, 2], ["t", 4, 1], ["t", 5, 1], ["t", 6, 1], ["t", 7, 1]]
    assert six["cache"] == [[96, None, 4], [96, 100, 2]]
    assert six["export"] == "boomspec export family-1a2b3c4d '6 layers' family-6-layers"
    loss = six["values"][0]
    assert (loss["name"], loss["text"], loss["ends"]) == ("held-out loss", "3.600", ["3.750", "3.300"])
    assert loss["at"] == pytest.approx((3.75 - 3.60) / (3.75 - 3.30), abs=1e-4)
    assert {one["name"] for one in six["values"]} == {"held-out loss", "held-out perplexity", "quiz acc", "quiz f1"}


def test_of_a_size_that_was_not_measured_all_else_is_told(tmp_path: Path) -> None:
    study = results_of(Family(FolderStore(tmp_path), leave_out=["interpolated 6 held_out", "interpolated 6 quiz"]))
    ((told),) = sizes_of(study, {"": lineage()}, "run", " --store s3://bucket/x")
    six = told["sizes"][2]
    assert six["values"] == []
    assert len(six["plan"]) == 6
    assert six["export"].endswith(" --store s3://bucket/x")
    ((alone),) = sizes_of(study)  # the artifact of a report knows no graph
    assert [one["layers"] for one in alone["sizes"]] == [4, 5, 6, 7, 8]
    assert "export" not in alone["sizes"][0]


def test_the_command_of_a_size_names_that_size_and_no_other(tmp_path: Path) -> None:
    """Also where two sizes have as many layers: they are named by their parameters."""
    family = lineage()
    twin = replace(family.members[2], parameters=6100, bytes=24400, patched=9)
    family = replace(family, members=(*family.members[:3], twin, *family.members[3:]))
    ((told),) = sizes_of(results_of(Family(FolderStore(tmp_path))), {"": family}, "my run-1a2b")
    assert len(told["sizes"]) == 6
    for one in told["sizes"]:
        program, command, run, asked, _ = shlex.split(one["export"])
        assert (program, command, run) == ("boomspec", "export", "my run-1a2b")
        found = family.pick(asked)
        assert (found.layers, found.parameters) == (one["layers"], one["parameters"])
    assert len({shlex.split(one["export"])[4] for one in told["sizes"]}) == 6  # folders


def test_a_size_that_is_as_large_as_the_student_has_numbers_of_its_own(tmp_path: Path) -> None:
    """By the published rule the smallest size has layers of the teacher in the place of the student's single ones."""
    family = lineage()
    smallest = replace(family.members[0], plan=(*family.trained.plan[:-1], Layer("t", LAYERS - 1)))
    family = replace(family, members=(smallest, *family.members[1:]))
    study = results_of(Family(FolderStore(tmp_path)))
    ((told),) = sizes_of(study, {"": family}, "run")
    values = {one["kind"]: one["values"] for one in told["sizes"] if one["layers"] == len(KEPT)}
    assert values["student"]
    assert values["interpolated"] == []  # it was not measured


def test_a_size_has_its_speed_and_its_texts(tmp_path: Path) -> None:
    study = deployed()
    texts = (Text("Who?", 0, "I.", 2, True), Text("Who?", 1, "We.", 2, True))
    (cell,) = [cell for cell in study.trials[0].cells if cell.input == "interpolated 6/held_out"]
    trial = replace(study.trials[0], written=(Written(cell, Size(6), False, texts),))
    ((told),) = sizes_of(Study([trial], {}), {"": lineage()})
    six = next(one for one in told["sizes"] if one["layers"] == 6)
    assert [line[:2] for line in six["speed"]] == [["decode", "900 tokens/s"], ["peak memory", "29.3 KiB"]]
    assert six["texts"] == [{"prompt": "Who?", "text": "I.", "tokens": 2, "ended": True}]
    assert "texts" not in told["sizes"][0]
    page = render(Study([trial], {}), title="t", drawings=[], files={})
    assert "900 tokens/s" in page
    assert "We." in page  # side by side there are all


# --- in a browser ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page(published: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Page]:
    if browser.PROGRAM is None:
        pytest.skip("there is no Chromium here: install the package chromium")
    with browser.page(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


def shown(page: browser.Page) -> dict[str, str]:
    """What the slider shows."""
    facts = "Object.fromEntries(Array.from(document.querySelectorAll('#size .fact, #size .measure'), (one) =>"
    facts += " [one.querySelector('.name').textContent, one.querySelector('.value').textContent]))"
    found = dict(page.run(facts))
    found["size"] = page.run("document.getElementById('pick-name').textContent")
    found["command"] = page.run("document.querySelector('.command code').textContent")
    found["layers"] = page.run(
        "Array.from(document.querySelectorAll('.blocks span'), (one) => one.className[0]).join('')"
    )
    return found


CHOSEN = "Array.from(views.get('size-held_out'), (view) => view.signal('chosen'))"
RULES = "document.querySelectorAll('#size-held_out .mark-rule line[stroke-dasharray=\"2,3\"]').length"


def test_the_slider_shows_every_size_by_keyboard_and_keeps_its_place_in_the_address(
    page: browser.Page, published: Path
) -> None:
    page.open(published.as_uri(), width=1200)
    assert page.run(CHOSEN) == [None]  # nothing is marked before somebody asks
    page.run("document.getElementById('pick').focus()")
    page.press("Home")
    assert shown(page)["size"] == "4 layers, the student"
    page.press("ArrowRight")
    found = shown(page)
    assert found["size"] == "5 layers"
    assert found["layers"] == "ssstt"
    assert found["parameters"] == "5.00K"
    assert found["weights"] == "19.5 KiB"
    # Layers 0, 2, 4 and 6 for 4,096 tokens, layer 7 for 100: 1,582,464 bytes beside 20,000 of weights.
    assert found["memory"] == "1.53 MiB"
    assert found["held-out loss ↓"].startswith("3.700")
    assert found["command"] == "boomspec export family-1a2b3c4d '5 layers' family-5-layers"
    assert page.run(CHOSEN) == [5000]
    page.wait(f"{RULES} === 1")
    assert page.run("location.hash") == "#size=5-layers"
    page.run("Object.assign(document.getElementById('pick-context'), {value: 100}).dispatchEvent(new Event('input'))")
    assert shown(page)["memory"] == "66.4 KiB"  # 5 x 96 x 100 bytes and the weights
    page.press("End")
    assert shown(page)["size"] == "8 layers, the teacher"
    address = page.run("location.href")
    page.open(address, width=1200)
    assert shown(page)["size"] == "8 layers, the teacher"
    assert page.run("document.getElementById('pick-context').value") == "100"
    assert page.errors == []


def test_a_legend_hides_series_and_a_mark_says_its_numbers(page: browser.Page, published: Path) -> None:
    page.open(published.as_uri(), width=1200)
    marks = "document.querySelectorAll('#size-held_out .mark-symbol path:not([opacity=\"0\"])').length"
    before = page.run(marks)
    page.run("document.querySelector('#size-held_out .legend button[data-series=\"naive pruning\"]').click()")
    page.wait(f"{marks} < {before}")
    page.run("document.querySelector('#size-held_out .legend button[data-series=\"naive pruning\"]').click()")
    page.wait(f"{marks} === {before}")
    page.run("document.getElementById('size-held_out').scrollIntoView()")
    place = page.run(
        "(() => { const [view] = views.get('size-held_out'), box = view.container().getBoundingClientRect(), [x, y] ="
        " view.origin(); return [box.x + x + view.scale('x')(6000), box.y + y + view.scale('y')(3.6)]; })()"
    )
    page.point(*place)
    page.wait("document.querySelector('#vg-tooltip-element.visible') !== null")
    told = page.run("document.getElementById('vg-tooltip-element').innerText")
    assert "interpolated" in told
    assert "3.600 nats per token" in told
    assert "6.00K" in told
    page.click(*place)  # chooses the size
    assert shown(page)["size"] == "6 layers"
    assert page.run(CHOSEN) == [6000]
    assert page.errors == []


@pytest.mark.parametrize("width", [390, 1200])
def test_it_fits_a_phone_follows_the_dark_and_reads_nothing_else(
    page: browser.Page, published: Path, width: int
) -> None:
    paper = "getComputedStyle(document.body).backgroundColor"
    page.open(published.as_uri(), width=width, dark=True)
    assert page.run("document.documentElement.scrollWidth") <= width
    assert page.run("document.querySelectorAll('.panel svg').length") == 4
    drawn = page.run("Array.from(document.querySelectorAll('.panel'), (one) => one.scrollWidth - one.clientWidth)")
    assert max(drawn) <= 1
    assert page.run(paper) == rgb(DARK["paper"])
    page.run("document.getElementById('theme').click()")  # light, whatever the system has
    assert page.run(paper) == rgb(LIGHT["paper"])
    page.run("document.getElementById('theme').click()")
    page.run("document.getElementById('theme').click()")
    assert page.run("performance.getEntriesByType('resource').length") == 0
    assert page.errors == []


def test_on_paper_there_are_figures_and_tables_and_no_controls(page: browser.Page, published: Path) -> None:
    page.open(published.as_uri(), width=1200, dark=True)
    page.wear(dark=True, media="print")
    hidden = "Array.from(document.querySelectorAll('#pick, #theme, .copy, .download'), (one) => one.offsetHeight)"
    assert set(page.run(hidden)) == {0}
    assert page.run("getComputedStyle(document.body).backgroundColor") == rgb(LIGHT["paper"])
    clipped = "Array.from(document.querySelectorAll('.wide'), (one) => getComputedStyle(one).overflowX)"
    assert set(page.run(clipped)) == {"visible"}
    page.wear()
    assert page.printed().startswith(b"%PDF")


def rgb(color: str) -> str:
    return f"rgb({', '.join(str(int(color[i : i + 2], 16)) for i in (1, 3, 5))})"
