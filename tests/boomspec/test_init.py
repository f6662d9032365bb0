"""`boomspec init`: specs that are valid as they are written, and nothing that is lost."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from boomspec.commands import completion
from boomspec.commands.cli import main
from boomspec.commands.presets import PRESETS, SHORT
from boomspec.commands.spec import TEMPLATES
from boomspec.compile.check import check_experiments
from boomspec.compile.compiler import compile_experiments
from boomspec.compile.resolved import resolve
from boomspec.spec.experiments import load_spec
from boomspec.spec.json_schema import json_schema
from boomspec.spec.sections.asking import ChatSpec
from tests.boomspec.model_folders import model
from tests.messages import wording

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "boomspec" / "templates"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def call(*arguments: object):
    return CliRunner().invoke(main, ["init", *(str(a) for a in arguments)], catch_exceptions=False)


def test_every_template_is_offered():
    assert sorted(TEMPLATES) == sorted(path.stem for path in FOLDER.glob("*.yaml"))


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_is_a_valid_spec_with_a_question_and_a_comment_on_most_lines(name):
    result = call("--template", name)
    assert result.exit_code == 0
    path = Path(f"{name}.yaml")
    assert path.read_text() == (FOLDER / f"{name}.yaml").read_text()
    assert f"boomspec run {path}" in result.output
    check_experiments([load_spec(path)])
    text = path.read_text()
    assert "?" in text.splitlines()[0]
    assert load_spec(path).spec.name == name
    assert sum("  # " in line for line in text.splitlines()) >= 9


def test_the_quickstart_is_that_of_the_specs_folder_without_its_lm_eval_task():
    call()
    ours = load_spec(Path("quickstart.yaml"))
    family = compile_experiments([ours]).family
    theirs = load_spec(ROOT / "specs" / "quickstart.yaml")
    expected = resolve(theirs.spec, family).to_json()
    del expected["evaluate"]["tasks_folder"], expected["evaluate"]["bootstrap_iters"]
    expected["evaluate"]["tasks"] = {}
    assert resolve(ours.spec, family).to_json() == expected


SAME = {  # presets that shipped specs are the same experiments as, and the sections that these choose for themselves
    "boomerang-qwen3-4b": ("qwen3-4b", {"interpolate", "evaluate"}),
    "boomerang-qwen3-8b": ("qwen3-8b", set()),
    "boomerang-llama-3b": ("llama-3.2-3b", set()),
    "boomerang-pythia-2.8b": ("pythia-2.8b", set()),
    "boomerang-pythia-6.9b": ("pythia-6.9b", set()),
    "adapt-qwen3-4b": ("adapt-qwen3-4b", {"evaluate"}),
    "quickstart": ("quickstart", {"evaluate"}),
}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_a_valid_spec_with_its_question_and_comments_and_means_the_shipped_one(name):
    result = call("--preset", name)
    assert result.exit_code == 0, result.output
    path = Path(f"{name}.yaml")
    assert f"boomspec plan {path}" in result.output
    spec, text = load_spec(path).spec, path.read_text()
    check_experiments([load_spec(path)])
    assert spec.name == name
    assert "?" in text.splitlines()[0]
    assert sum("  # " in line for line in text.splitlines()) >= 9
    assert max(map(len, text.splitlines())) <= 120
    if spec.teacher.model is not None:
        assert spec.teacher.model in PRESETS[name].about
    if name not in SAME:
        return
    shipped, own = SAME[name]
    theirs = load_spec(ROOT / "specs" / f"{shipped}.yaml").spec
    for section in type(spec).model_fields.keys() - own - {"name"}:
        assert getattr(spec, section) == getattr(theirs, section), section


@pytest.mark.parametrize(
    ("name", "tokens", "chat"),
    [
        ("adapt-qwen3", "0.5B", {"enable_thinking": False}),
        ("adapt-qwen3-8b", "1B", {"enable_thinking": False}),
        ("adapt-qwen3-14b", "2B", {"enable_thinking": False}),
        ("adapt-llama", "0.5B", None),
        ("adapt-llama-8b", "1B", None),
    ],
)
def test_the_texts_of_adapt_are_as_long_as_its_teachers_are_large(name, tokens, chat):
    """The numbers of arXiv 2608.22854."""
    call("a.yaml", "--preset", name)
    spec, count = load_spec(Path("a.yaml")).spec, round(float(tokens.removesuffix("B")) * 1e9)
    assert all(count < source.max_tokens < 1.05 * count for source in spec.data.sources.values())
    assert [(phase.data, phase.tokens) for phase in spec.distill.phases] == [("pile", count), ("sft", count)]
    assert {part.value for part in spec.data.blend.values()} == {count}
    assert spec.data.sources["sft"].loss_on == "responses"
    weights = {kind: term.weight for kind, term in spec.distill.losses.terms().items()}
    assert weights == {"cross_entropy": 1.0, "kl": 0.1, "hidden_cosine": 10.0}
    assert (spec.distill.optimizer.lr, spec.distill.schedule.warmup.value) == (3e-4, 0.01)
    asked = spec.evaluate.generation
    assert (asked.temperature, asked.top_p, asked.top_k, asked.presence_penalty) == (0.7, 0.8, 20, 0.5)
    assert spec.evaluate.chat == (True if chat is None else ChatSpec(template=chat))
    assert spec.student.keep.kept(36)[-3:] == (32, 34, 35)


def test_presets_are_listed_and_found_by_short_names_and_take_a_teacher():
    listed = call("--preset", "list").output.splitlines()
    assert [line.split()[0] for line in listed] == list(PRESETS)
    assert set(json.loads(call("--preset", "list", "--json").output)) == set(PRESETS)
    answer = json.loads(call("a.yaml", "--preset", "boomerang-llama", "--teacher", "a/b", "--json").output)
    assert answer == {"spec": "a.yaml", "preset": "boomerang-llama-3b", "schema": None}
    spec = load_spec(Path("a.yaml")).spec
    assert (spec.name, spec.teacher.model, spec.interpolate.order) == ("a", "a/b", "first_to_last")
    assert [item.value for item in completion.presets("boomerang-p")] == [
        "boomerang-pythia", "boomerang-pythia-2.8b", "boomerang-pythia-6.9b",
    ]  # fmt: skip
    assert SHORT.keys().isdisjoint(PRESETS)


def test_names_and_models_are_filled_in_and_choose_the_template():
    call("mine.yaml", "--teacher", "meta-llama/Llama-3.2-3B")
    spec = load_spec(Path("mine.yaml")).spec
    assert (spec.name, spec.teacher.model, spec.student.model) == ("mine", "meta-llama/Llama-3.2-3B", None)
    call("new/folder", "--teacher", "a/big", "--student", "a/Small-1B")
    spec = load_spec(Path("new/folder/small-1b.yaml")).spec
    assert (spec.name, spec.teacher.model, spec.student.model) == ("small-1b", "a/big", "a/Small-1B")
    call("--name", "other")
    assert load_spec(Path("other.yaml")).spec.name == "other"


def test_a_model_folder_is_found_from_the_spec():
    model(Path("models/big"))
    result = call("specs/x.yaml", "--student", "models/big")
    assert result.exit_code == 0, result.output
    assert "model: ../models/big" in Path("specs/x.yaml").read_text()


def test_a_strange_model_name_is_written_so_that_yaml_reads_it():
    model(Path("on: off #1"))
    result = call("x.yaml", "--student", "on: off #1")
    assert result.exit_code == 0, result.output
    assert load_spec(Path("x.yaml")).spec.student.model == "./on: off #1"


def test_with_schema_an_editor_finds_it_beside_the_spec():
    answer = json.loads(call("e/x.yaml", "--schema", "--json").output)
    assert answer == {"spec": "e/x.yaml", "template": "quickstart", "schema": "e/boomspec.schema.json"}
    assert Path("e/x.yaml").read_text().splitlines()[0] == "# yaml-language-server: $schema=boomspec.schema.json"
    assert json.loads(Path("e/boomspec.schema.json").read_text()) == json_schema()
    assert call("e/y.yaml", "--schema").exit_code == 0  # the same schema again is no loss
    Path("e/boomspec.schema.json").write_text("{}")
    assert call("e/z.yaml", "--schema").exit_code == 2
    assert not Path("e/z.yaml").exists()


def test_nothing_is_replaced_unless_that_is_asked_for():
    Path("quickstart.yaml").write_text("mine")
    result = call()
    assert result.exit_code == 2
    assert "quickstart.yaml exists already" in result.output
    assert Path("quickstart.yaml").read_text() == "mine"
    Path("dangling.yaml").symlink_to("nowhere")
    assert call("dangling.yaml").exit_code == 2
    assert call("--force").exit_code == 0
    assert load_spec(Path("quickstart.yaml")).spec.name == "quickstart"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--template", "hubb"], wording("init.there_no_template_hint", name="hubb", name2="hub")),
        (["--template", "zzz"], wording("init.hint_there_quickstart_hub")),
        (["--template", "../../setup"], wording("init.there_no_template")),
        (["--template", "quickstart", "--teacher", "a/b"], wording("init.names_no_teacher_hint")),
        (["--template", "hub", "--student", "a/b"], wording("init.names_no_student_hint")),
        (["--preset", "boomerang-quen3"], wording("init.there_no_preset")),
        (["--preset", "boomerang-qwen3", "--template", "hub"], wording("init.preset_and_template")),
        (["--preset", "boomerang-qwen3", "--student", "a/b"], wording("init.preset_names_no_student")),
        (["--preset", "quickstart", "--teacher", "a/b"], "names no teacher"),
        (["--name", "a b"], wording("init.not_plain_name")),
        (["--name", ""], wording("init.not_plain_name_2")),
        (["--teacher", "a/b/c"], wording("init.neither_folder_nor_hub")),
        (["--student", "./none"], "does not exist"),
        (["taken/x.yaml"], "taken"),
    ],
)
def test_what_cannot_be_written_is_an_error_and_writes_nothing(arguments, message):
    Path("taken").write_text("a file")
    result = call(*arguments)
    assert result.exit_code == 2
    assert message in result.output
    assert sorted(path.name for path in Path().iterdir()) == ["taken"]
