"""How long a training is: nothing but that training depends on it, and a schedule that cannot be kept is an error."""

import itertools
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from boomspec.compile.check import check_experiments
from boomspec.compile.compiler import Compiled, compile_experiments
from boomspec.core.errors import SpecError
from boomspec.spec.experiments import load_experiments, load_spec
from boomspec.spec.spec_file import Pins
from boomspec.store import FolderStore
from tests.boomspec.conftest import SPEC, Writer
from tests.messages import wording
from tests.runners import small

ROOT = Path(__file__).parents[2]
LENGTHS = {
    "distill.tokens": [2048, 4096, 65536],
    "distill.batch_tokens": [256, 512],
    "distill.schedule": [{}, {"warmup": 2}],
    "baselines": [[], ["random_init"], [{"random_init": {"tokens": "2M"}}], ["standard_distillation"]],
    "seed": [0, 1],
    "variants": [None, {"long": {"distill": {"tokens": 131072}}}, {"other": {"seed": 7}}],
    "sweep": [None, {"distill.optimizer.eps": [1e-8, 1e-7]}],
}


PINS = Pins(datasets={"a/b": "c" * 40})  # as a lock has them: no network is asked


def compiled(folder: Path, fields: dict[str, object]) -> Compiled:
    """SPEC with fields set, which are given by their dotted paths."""
    data = yaml.safe_load(SPEC)
    for path, value in fields.items():
        *parents, last = path.split(".")
        place = data
        for part in parents:
            place = place.setdefault(part, {})
        place[last] = value
        if value is None:
            del place[last]
    spec = folder / "spec.yaml"
    spec.write_text(yaml.safe_dump(data, sort_keys=False))
    return compile_experiments([replace(file, pins=PINS) for file in load_experiments(spec)], lambda search: None)


@pytest.mark.parametrize(
    "text",
    [{}, {"data.max_tokens": 1000}, {"data.files": None, "data.dataset": "a/b", "data.max_tokens": 3000}],
    ids=["files", "the beginning of files", "a data set"],
)
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    specs=st.lists(
        st.fixed_dictionaries({name: st.sampled_from(values) for name, values in LENGTHS.items()}),
        min_size=2,
        max_size=4,
    )
)
def test_the_text_does_not_depend_on_what_is_trained_nor_a_student_on_other_trainings(
    folder: Path, text: dict[str, object], specs: list[dict[str, object]]
) -> None:
    found = []
    for fields in specs:
        graph = compiled(folder, {**text, **fields}).graph
        base = next(e for e in graph.experiments if e.axes.get("variant", "base") == "base")
        own = [str(fields[name]) for name in ("distill.tokens", "distill.batch_tokens", "distill.schedule", "seed")]
        assert len({e.tasks["tokenize"] for e in graph.experiments}) == 1
        found.append((base.tasks["tokenize"], base.tasks["distill student"], own))
    for (tokens, student, own), (other_tokens, other_student, other_own) in itertools.combinations(found, 2):
        assert tokens == other_tokens
        assert (student == other_student) == (own == other_own)


@pytest.mark.parametrize("path", sorted((ROOT / "specs").glob("qwen3-4b*.yaml")), ids=lambda path: path.stem)
def test_every_ablation_reads_the_text_of_its_base(path: Path) -> None:
    base = load_spec(ROOT / "specs" / "qwen3-4b.yaml").spec.data
    assert load_spec(path).spec.data in (base, None)  # the published student is not trained
    assert base is not None
    assert base.max_tokens == 2_110_000_000


HUB = """\
    boomspec: 1
    name: x
    teacher: {model: nobody/nothing}
    student: {keep: {every: 2}}
    data: {dataset: nobody/text, sequence_length: 2048}
    distill: {tokens: 2.1B, batch_tokens: 4.2M}
    """


def refused(folder: Path, text: str) -> str:
    path = folder / "spec.yaml"
    path.write_text(textwrap.dedent(text))
    with pytest.raises(SpecError) as caught:
        check_experiments(load_experiments(path))
    return str(caught.value)


@pytest.mark.parametrize(
    ("more", "proposed"),
    [
        ("", "2.11B"),
        ("baselines: [{random_init: {tokens: 5B}}]\n", "5B"),
        ("seed: 3\n", "2.11B"),
    ],
)
def test_of_a_data_set_it_has_to_be_said_how_much_is_read(tmp_path: Path, more: str, proposed: str) -> None:
    message = refused(tmp_path, textwrap.dedent(HUB) + more)
    assert wording("trainings.spec_yaml_data_missing", name="max_tokens") in message
    assert f"max_tokens: {proposed}\n" in message


def test_a_search_alone_needs_the_text_that_it_reads(tmp_path: Path) -> None:
    message = refused(tmp_path, HUB.replace("{every: 2}", "{block_influence: 3, calibration: {sequences: 10}}"))
    assert "max_tokens: 2.11B" in message  # the training needs more


@pytest.mark.parametrize(
    ("edits", "place", "message"),
    [
        ([("warmup: 1%", "warmup: 9")], "distill.schedule.warmup", wording("trainings.steps_longer_than_training")),
        ([("warmup: 1%", "warmup: 8")], "distill.schedule.warmup", wording("trainings.takes_all_steps_none")),
        ([("warmup: 1%", "warmup: 100%")], "distill.schedule.warmup", "takes all 8 steps"),
        ([("warmup: 1%", "warmup: 5"), ("{tokens: 1024}", "{tokens: 1k}")], "baselines[0].random_init", "of 5 steps"),
        ([("tokens: 2048", "tokens: 100")], "distill.tokens", wording("trainings.tokens_less_than_one")),
        (
            [("batch_tokens: 257", "batch_tokens: 31")],
            "distill.batch_tokens",
            wording("trainings.tokens_less_than_one_sequence"),
        ),
        (
            [("sequence_length: 32", "{sequence_length: 32, max_tokens: 32}")],
            "data.max_tokens",
            wording("trainings.less_than_one_sequen"),
        ),
    ],
)
def test_a_length_that_cannot_be_kept_is_an_error_at_its_place(
    folder: Path, edits: list[tuple[str, str]], place: str, message: str
) -> None:
    text = SPEC.replace("  batch_tokens: 256\n  losses", "  batch_tokens: 257\n  schedule: {warmup: 1%}\n  losses")
    text = text.replace("random_init]", "{random_init: {tokens: 1024}}]").replace("naive_pruning, ", "")
    for old, new in edits:
        assert old in text
        text = (
            text.replace(old, new)
            if "{sequence" not in new
            else text.replace(f"  {old}\n", f"  {old}\n  max_tokens: 32\n")
        )
    said = refused(folder, text)
    assert f": {place}" in said
    assert message in said


def test_a_variant_that_shortens_the_training_below_its_warmup_is_the_line_to_blame(folder: Path) -> None:
    text = SPEC.replace("  losses", "  schedule: {warmup: 7}\n  losses", 1).replace(", random_init]", "]")
    said = refused(folder, text + "variants:\n  short: {distill: {tokens: 512}}\n")
    assert wording("trainings.variant_warm_up_steps", name="short") in said


def test_a_teacher_that_is_trained_here_may_have_more_positions_than_its_sequences(specs: Writer) -> None:
    before = specs.compiled()
    after = specs.edited(("teacher.pretrain.positions", 128))
    record = next(node.task.record for node in after.graph.nodes.values() if node.task.kind == "pretrain")
    assert record.architecture.context == 128
    assert record.recipe.sequence_length == 32
    assert specs.edited(("teacher.pretrain.positions", 32)).graph.id == before.graph.id  # the default
    with pytest.raises(SpecError, match=wording("trainings.positions_less_than_one")):
        specs.edited(("teacher.pretrain.positions", 16))


@pytest.mark.parametrize(("order", "refused"), [("first_to_last", True), ("last_to_first", False)])
def test_no_student_balances_a_loss_on_states_that_are_its_teachers_at_the_start(
    tmp_path: Path, order: str, refused: bool
) -> None:
    """A larger student of standard distillation may have the teacher's first layers, where the family's has not."""
    losses = {"cross_entropy": {}, "kl": None, "hidden_cosine": {"pairs": [0]}}
    path = small.write_spec(
        tmp_path,
        distill={"losses": losses, "balance": "start"},
        interpolate={"order": order},
        baselines=["standard_distillation"],
    )
    if not refused:
        small.compiled(path, FolderStore(tmp_path / "store"))
        return
    with pytest.raises(SpecError, match=wording("trainings.is_0_at_step_0", kind="hidden_cosine")):
        small.compiled(path, FolderStore(tmp_path / "store"))
