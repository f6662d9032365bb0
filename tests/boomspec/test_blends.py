"""Named sources and their blends: which tasks they become, what a change of them changes, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from boomspec.compile.builder import Builder
from boomspec.compile.compiler import Compiled, _compile, compile_experiments
from boomspec.core.errors import SpecError
from boomspec.plan.changes import compare
from boomspec.plan.origins import side
from boomspec.spec.experiments import load_spec
from boomspec.spec.sections.shares import parse_part, proportions
from tests.boomspec.edits import SPEC, put
from tests.messages import wording

SOURCES = {"web": {"files": "web/*.txt"}, "code": {"files": "code.jsonl", "text_field": "body"}}
DATA = {"sequence_length": 32, "held_out": {"every": 4}, "sources": SOURCES, "blend": {"web": 0.7, "code": "30%"}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "web").mkdir()
    for i in range(8):
        (tmp_path / "web" / f"{i}.txt").write_text(f"document {i}\n" * 40)
    (tmp_path / "code.jsonl").write_text('{"body": "x = 1"}\n' * 40)
    for name in ("first", "second"):
        (tmp_path / f"{name}.yaml").write_text("")
    return tmp_path


def spec(data: dict[str, Any], **more: object) -> dict[str, Any]:
    found = yaml.safe_load(SPEC) | {"data": data, "evaluate": {"held_out": {}}, "baselines": ["naive_pruning"]}
    for path, value in more.items():
        put(found, path.replace("__", "."), value)
    return found


def compiled(folder: Path, data: dict[str, Any], **more: object) -> Compiled:
    path = folder / "spec.yaml"
    path.write_text(yaml.safe_dump(spec(data, **more), sort_keys=False))
    return compile_experiments([load_spec(path)])


def built(folder: Path, data: dict[str, Any], **more: object) -> Builder:
    compiled(folder, data, **more)
    return _compile(load_spec(folder / "spec.yaml"), lambda search: None)


def tasks(found: Compiled) -> dict[str, str]:
    return found.graph.experiments[0].tasks


def problems(folder: Path, data: dict[str, Any], **more: object) -> str:
    with pytest.raises(SpecError) as error:
        compiled(folder, data, **more)
    return str(error.value)


def test_every_source_is_a_task_and_the_blend_is_what_everything_reads(folder) -> None:
    found = compiled(folder, DATA)
    nodes, names = found.graph.nodes, tasks(found)
    assert [name for name in names if name.startswith(("tokenize", "blend"))] == [
        "tokenize web",
        "tokenize code",
        "blend",
    ]
    mixed = nodes[names["blend"]].task
    assert sorted(mixed.inputs.values()) == sorted(names[f"tokenize {name}"] for name in SOURCES)
    weights = {task: mixed.record.weights[int(role[-1])] for role, task in mixed.inputs.items()}
    assert weights == {names["tokenize web"]: 7, names["tokenize code"]: 3}
    reading = [node.task.inputs["tokens"] for node in nodes.values() if "tokens" in node.task.inputs]
    assert set(reading) == {names["blend"]}
    # The teacher's tokenizer is trained on the first source.
    web, code = (nodes[names[f"tokenize {name}"]].task for name in SOURCES)
    assert web.record.train_tokenizer is not None
    assert code.record.train_tokenizer is None
    assert code.inputs["tokenizer"] == web.id
    assert web.record.held_out_every == code.record.held_out_every == 4


def test_a_source_is_the_same_task_whatever_it_is_called_and_beside_whatever(folder) -> None:
    flat = compiled(folder, {"sequence_length": 32, "held_out": {"every": 4}, "files": "web/*.txt"})
    alone = compiled(folder, {"sequence_length": 32, "held_out": {"every": 4}, "sources": {"x": SOURCES["web"]}})
    assert tasks(alone)["tokenize x"] == tasks(flat)["tokenize"] == tasks(compiled(folder, DATA))["tokenize web"]
    assert tasks(alone)["report"] == tasks(flat)["report"]
    renamed = {"text": SOURCES["web"], "rows": SOURCES["code"]}
    mixed = tasks(compiled(folder, DATA | {"sources": renamed, "blend": {"rows": 3, "text": 7}}))
    assert mixed["blend"] == tasks(compiled(folder, DATA))["blend"]


def test_what_changes_of_a_blend_is_named_for_the_tasks_that_it_changes(folder) -> None:
    old = compiled(folder, DATA)

    def changed(data: dict[str, Any]) -> dict[str, set[str]]:
        new = compiled(folder, data)
        found = compare(side(old, old.graph.experiments[0]), side(new, new.graph.experiments[0]))
        return {field.name: set(field.tasks) for field in found.fields}

    assert changed(DATA | {"blend": {"web": 7, "code": 3}}) == {
        "data.blend.web": set(),
        "data.blend.code": set(),
    }
    found = changed(DATA | {"blend": {"web": 0.5, "code": 0.5}})
    assert "blend" in found["data.blend.web"]
    assert not any("tokenize" in task for tasks in found.values() for task in tasks)
    found = changed(DATA | {"sources": SOURCES | {"code": SOURCES["code"] | {"skip": 1}}})
    assert "tokenize code" in found["data.sources.code.skip"]
    assert "tokenize web" not in found["data.sources.code.skip"]


def test_the_compiler_gives_the_task_of_a_source_and_of_any_blend(folder) -> None:
    build = built(folder, DATA)
    assert (
        build.tokens == build.tokens_of() == build.tokens_of({name: parse_part(w) for name, w in DATA["blend"].items()})
    )
    assert build.nodes[build.tokens_of("code")].name == "tokenize code"
    other = build.nodes[build.tokens_of({"web": parse_part("1k"), "code": parse_part("0.5k")})]
    assert other.name == "blend web 1k, code 0.5k"
    assert sorted(other.task.record.budgets) == [500, 1000]
    assert build.tokens_of({"web": parse_part(2)}) == build.tokens_of("web")


@pytest.mark.parametrize(
    ("data", "place", "message"),
    [
        ({"files": "web/*.txt"}, "data.files", wording("blends.belongs_to_source")),
        ({"blend": {"web": 1, "books": 1}}, "data.blend.books", wording("blends.no_source")),
        ({"blend": {"web": 0, "code": 1}}, "data.blend.web", wording("blends.weight_positive")),
        ({"blend": {"web": -0.5, "code": 1}}, "data.blend.web", wording("blends.weight_positive")),
        ({"blend": {"web": "0k", "code": "1k"}}, "data.blend.web", wording("blends.budget_positive")),
        ({"blend": {"web": 500000000, "code": 500000000}}, "data.blend.web", wording("blends.weight_most")),
        ({"blend": {"web": "1k", "code": 0.5}}, "data.blend.code", wording("blends.weight_among_budgets")),
        ({"blend": {"web": 1}}, "data.sources.code", wording("blends.nothing_reads")),
        ({"blend": None}, "data", wording("blends.missing_blend")),
        ({"sources": None}, "data.blend", wording("blends.blend_goes_with")),
        ({"held_out": {"files": "web/0.txt"}}, "data.held_out.files", wording("blends.held_out_files")),
        # A name that no folder and no line of a report would take.
        ({"sources": SOURCES | {"a b": SOURCES["web"]}}, "data.sources", wording("blends.plain_name")),
        (
            {"sources": SOURCES | {"web": SOURCES["web"] | {"max_tokens": 900}}, "blend": {"web": "1k", "code": "1k"}},
            "data.blend.web",
            wording("blends.more_than_source"),
        ),
        ({"sources": SOURCES | {"web": {"files": "none/*.txt"}}}, "web.files", wording("blends.no_file_matches")),
        ({"sources": SOURCES | {"web": {"skip": 1}}}, "data.sources.web", wording("blends.exactly_one")),
    ],
)  # fmt: skip
def test_a_wrong_blend_is_an_error_at_its_place(folder, data: dict[str, Any], place: str, message: str) -> None:
    found = {name: value for name, value in (DATA | data).items() if value is not None}
    text = problems(folder, found)
    assert message in text
    assert place in text


def test_a_data_set_needs_its_tokens_and_one_source_may_lack_held_out_text(folder) -> None:
    hub = {"sources": SOURCES | {"web": {"dataset": "owner/name"}}}
    assert wording("blends.missing_max_tokens") in problems(folder, DATA | hub)
    own = {name: source | ({"held_out": {"every": 4}} if name == "web" else {}) for name, source in SOURCES.items()}
    data = {name: value for name, value in DATA.items() if name != "held_out"} | {"sources": own}
    assert "evaluate student: held_out" in tasks(compiled(folder, data))
    assert wording("blends.no_held_out") in problems(folder, data | {"sources": SOURCES})


@pytest.mark.parametrize(
    ("weights", "whole"), [((0.7, 0.3), (7, 3)), ((70, 30), (7, 3)), ((1, 1, 2), (1, 1, 2)), ((1e-3, 1), (1, 1000))]
)
def test_weights_are_whole_numbers(weights: tuple[float, ...], whole: tuple[int, ...]) -> None:
    assert proportions(weights) == whole


@pytest.mark.parametrize("text", ["500M", "0.5B", "1.234k", "2.1B", "17k", "0.001k"])
def test_a_budget_is_written_as_it_is_read(text: str) -> None:
    part = parse_part(text)
    assert part.unit == "tokens"
    assert parse_part(part.written()) == part
