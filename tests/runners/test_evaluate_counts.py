"""What lm-eval does silently is counted, what it stops at names the document, and what is no number is missing."""

import math
from pathlib import Path

import pytest
from lm_eval.api.metrics import bootstrap_stderr

from boomspec.core.errors import BoomspecError
from runners.evaluation.lm_eval_runner import bootstrapping
from runners.runtime.context import Progress
from tests.messages import wording
from tests.runners.lm_eval_tasks import (
    CHOICE,
    POSITIONS,
    WRITTEN,
    lines,
    measured,
    model,
    numbers,
    row,
    source,
    strict,
    table,
    task,
)


@pytest.fixture(scope="module")
def student(tmp_path_factory) -> Path:
    return model(tmp_path_factory.mktemp("student"))


@pytest.fixture(scope="module")
def broken(tmp_path_factory) -> Path:
    return model(tmp_path_factory.mktemp("broken"), broken=True)


def notes(folder: Path) -> list[str]:
    return [line["note"] for line in lines(folder) if "note" in line]


# --- cut, and dropped ------------------------------------------------------------------------------


def test_contexts_that_are_cut_are_counted_by_document(student, tmp_path):
    """16 positions: 16 tokens of context and one of answer still go in, for the last is only predicted."""
    rows = [row(4), row(POSITIONS, choices=("7", "8")), row(POSITIONS, choices=("7", "8 9")), row(40)]
    counts = measured(tmp_path / "out", student, task(tmp_path / "tasks", rows))["counts"]["own"]
    assert (counts["documents"], counts["contexts_cut"]) == (4, 2)
    assert wording("evaluate_counts.contexts_cut") in table(tmp_path / "out")[0]["note"]
    assert any(wording("evaluate_counts.contexts_cut") in note for note in notes(tmp_path / "out"))


def test_nothing_is_noted_where_nothing_was_cut(student, tmp_path):
    measured(tmp_path / "out", student, task(tmp_path / "tasks", [row(4), row(6, label=1)]))
    assert [line["note"] for line in table(tmp_path / "out")] == [""]
    assert notes(tmp_path / "out") == []


def test_prompts_of_texts_to_be_written_are_cut_to_leave_room_for_them(student, tmp_path):
    """Of a batch, only those prompts that are too long themselves count."""
    rows = [row(12), row(13), row(3), row(30)]
    counts = measured(tmp_path / "out", student, task(tmp_path / "tasks", rows, WRITTEN))["counts"]["own"]
    assert (counts["documents"], counts["contexts_cut"]) == (4, 2)


def test_texts_that_end_at_their_budget_are_counted(student, tmp_path):
    """Against what the texts say themselves: without a stop they have as many tokens as the budget."""
    rows = [row(4, answer="5") | {"context": numbers(4, start)} for start in range(1, 13)]
    counts = measured(tmp_path / "out", student, task(tmp_path / "tasks", rows, WRITTEN))["counts"]["own"]
    samples = [strict(line) for line in (tmp_path / "out/samples.jsonl").read_text().splitlines()]
    full = sum(len(sample["resps"][0][0].split()) == 4 for sample in samples)
    assert counts["generations"] == 12
    assert 0 < counts["generations_cut"] == full
    assert wording("evaluate_counts.generations_cut", full=full) in table(tmp_path / "out")[0]["note"]


def test_texts_that_a_stop_ends_are_not_counted(student, tmp_path):
    every = [str(i) for i in range(1, 64)]
    config = {**WRITTEN, "generation_kwargs": {"until": every, "max_gen_toks": 4}}
    found = measured(tmp_path / "out", student, task(tmp_path / "tasks", [row(4), row(9)], config))
    assert found["counts"]["own"]["generations_cut"] == 0


def test_documents_without_a_value_are_counted_for_the_metric_that_lacks_them(student, tmp_path):
    code = (
        "def results(doc, results):\n    one = {'acc': 1.0}\n    return one | ({'rare': 1.0} if doc['label'] else {})\n"
    )
    metrics = [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "rare")]
    config = {**CHOICE, "process_results": "!function code.results", "metric_list": metrics}
    found = measured(tmp_path / "out", student, task(tmp_path / "tasks", [row(), row(label=1), row()], config, code))
    assert found["counts"]["own"]["unscored"] == {"rare,none": 2}
    told = {line["metric"]: line["note"] for line in table(tmp_path / "out")}
    assert told == {"acc": "", "rare": wording("evaluate_counts.documents_dropped_they_have")}


@pytest.mark.parametrize("label", [2, -1])
def test_answers_that_are_no_choice_are_counted(student, tmp_path, label):
    rows = [row(), row(label=label), row(label=1)]
    found = measured(tmp_path / "out", student, task(tmp_path / "tasks", rows))
    assert found["counts"]["own"]["answers_that_are_no_choice"] == 1
    assert wording("evaluate_counts.documents_count_wrong_their") in table(tmp_path / "out")[0]["note"]


def test_a_task_none_of_whose_answers_is_a_choice_fails(student, tmp_path):
    with pytest.raises(BoomspecError, match=wording("evaluate_counts.own_no_document_answer")):
        measured(tmp_path / "out", student, task(tmp_path / "tasks", [row(label=-1), row(label=5)]))


def test_what_happened_to_its_tasks_is_noted_at_a_group(student, tmp_path):
    task(tmp_path / "tasks", [row(4), row(40)])
    other = (tmp_path / "tasks/own.yaml").read_text().replace("task: own", "task: other")
    (tmp_path / "tasks/other.yaml").write_text(other)
    (tmp_path / "tasks/both.yaml").write_text(
        "group: both\ntask: [own, other]\naggregate_metric_list: [{metric: acc}]\n"
    )
    measured(tmp_path / "out", student, source(tmp_path / "tasks", "both"), task="both")
    told = {line["measure"]: line["note"] for line in table(tmp_path / "out")}
    assert told["both"] == wording("evaluate_counts.contexts_cut_model_positions")
    assert told["own"] == wording("evaluate_counts.contexts_cut_model_positions_2")


# --- not finite ------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [CHOICE, WRITTEN], ids=["scored", "written"])
def test_numbers_of_a_model_that_gives_none_are_missing_and_not_wrong(broken, tmp_path, config):
    """lm-eval takes the first of equal maxima, so that accuracies of NaN look like any others."""
    found = measured(tmp_path / "out", broken, task(tmp_path / "tasks", [row(), row(label=1)], config))
    [line] = table(tmp_path / "out")
    assert (line["value"], line["stderr"]) == ("", "")
    assert wording("evaluate_counts.model_own_numbers_documents") in line["note"]
    metric = config["metric_list"][0]["metric"]
    assert found["results"]["own"][f"{metric},none"] is None
    assert found["missing"]["own"].keys() == {f"{metric},none"}
    for text in (tmp_path / "out/samples.jsonl").read_text().splitlines():
        strict(text)
    assert (tmp_path / "out/items.csv").read_text().count("\n") == 1  # the header


def test_a_metric_that_is_not_finite_is_missing_with_its_reason(student, tmp_path):
    code = "def results(doc, results):\n    return {'acc': 0.5, 'odd': float('inf'), 'none': float('nan')}\n"
    metrics = [{"metric": n, "aggregation": "mean", "higher_is_better": True} for n in ("acc", "odd", "none")]
    config = {**CHOICE, "process_results": "!function code.results", "metric_list": metrics}
    found = measured(tmp_path / "out", student, task(tmp_path / "tasks", [row(), row()], config, code))
    told = {line["metric"]: (line["value"], line["note"]) for line in table(tmp_path / "out")}
    assert told["acc"] == ("0.5", "")
    assert told["odd"] == ("", wording("evaluate_counts.no_value_not_finite"))
    assert told["none"] == ("", wording("evaluate_counts.no_value_not_finite_nan"))
    assert found["results"]["own"]["odd,none"] is None


# --- resamples -------------------------------------------------------------------------------------


def half(values: list[float]) -> float:
    return sum(values) / len(values) / 2


@pytest.mark.parametrize("rounds", [50, 1000, 2000])
def test_resampled_standard_errors_are_lm_eval_s_own(monkeypatch, rounds):
    from lm_eval.api import metrics

    monkeypatch.setenv("DISABLE_MULTIPROC", "1")
    values = [0.0, 1.0, 0.3, 0.9]
    theirs = bootstrap_stderr(half, values, rounds)
    with bootstrapping(Progress(None)):
        assert metrics.bootstrap_stderr(half, values, rounds) == theirs
    assert metrics.bootstrap_stderr is bootstrap_stderr


def test_the_number_of_resamples_is_the_record_s_and_each_phase_shows_progress(student, tmp_path):
    config = {**CHOICE, "metric_list": [{"metric": "acc", "aggregation": "median"}]}
    tasks = task(tmp_path / "tasks", [row(label=i % 2) for i in range(5)], config)
    some = measured(tmp_path / "some", student, tasks, bootstrap_iters=30)
    most = {}
    for line in lines(tmp_path / "some"):
        most[line.get("unit")] = max(most.get(line.get("unit"), 0), line.get("done", 0))
    assert most == {"requests": 10, "documents scored": 5, "resamples": 30}
    none = measured(tmp_path / "none", student, tasks, bootstrap_iters=0)
    assert isinstance(some["results"]["own"]["acc_stderr,none"], float)
    assert none["results"]["own"]["acc_stderr,none"] == "N/A"
    assert math.isfinite(some["results"]["own"]["acc,none"])


# --- lm-eval's assertions --------------------------------------------------------------------------


FAILING = {
    "an empty choice": ([row(), row(choices=("", "8"))], {**CHOICE, "target_delimiter": ""}, "document 1: an answer"),
    "an answer longer than the model": (
        [row(), row(choices=("7", numbers(20)))],
        CHOICE,
        "document 1: an answer has 20 tokens, and the model has 16 positions",
    ),
    "a context of spaces": ([row() | {"context": "  "}], CHOICE, "document 0: its context has no tokens"),
    "a budget beyond the positions": (
        [row()],
        {**WRITTEN, "generation_kwargs": {"until": ["63"], "max_gen_toks": 16}},
        "document 0: 16 tokens are to be generated, and the model has 16 positions",
    ),
    "an empty prompt": ([row(), row() | {"context": ""}], WRITTEN, "document 1: its prompt is empty"),
    "a split that is not there": ([row()], {**CHOICE, "test_split": "exam"}, "has no split 'exam'"),
    "a column that is not there": ([row()], {**CHOICE, "doc_to_text": "{{question}}"}, "'question' is undefined"),
    "more examples than there are": (
        [row(), row()],
        {**CHOICE, "num_fewshot": 5, "fewshot_split": "test"},
        "is asked with 5 examples, and has 2 to take them from",
    ),
    "a choice that is not there": (
        [row(), row(label=7)],
        {**WRITTEN, "doc_to_choice": "choices", "doc_to_target": "label"},
        "document 1: it cannot be scored: IndexError",
    ),
    "a template that fails at one document": (
        [row(), row() | {"context": "1", "label": None}],
        {**CHOICE, "doc_to_text": "{{context}} {{ label + 1 }}"},
        "document 1: its prompt cannot be made",
    ),
    "a first document that cannot be used": ([row(label=5)], CHOICE, "its first document cannot be used: IndexError"),
    "an unknown kind of output": ([row()], {**CHOICE, "output_type": "guess"}, "invalid output_type 'guess'"),
}


@pytest.mark.parametrize("name", FAILING)
def test_what_lm_eval_stops_at_names_the_task_and_the_document(student, tmp_path, name):
    rows, config, message = FAILING[name]
    with pytest.raises(BoomspecError) as caught:
        measured(tmp_path / "out", student, task(tmp_path / "tasks", rows, config))
    assert message in caught.value.message
    assert "lm-eval task 'own'" in caught.value.message


def test_spaces_at_the_end_of_a_context_are_an_answer(student, tmp_path):
    """lm-eval scores them together with it."""
    rows = [row() | {"context": "1 2 "}]
    config = {**CHOICE, "target_delimiter": "", "doc_to_choice": ["7", "8"]}
    found = measured(tmp_path / "out", student, task(tmp_path / "tasks", rows, config))
    assert found["counts"]["own"]["documents"] == 1


# --- data ------------------------------------------------------------------------------------------


def test_data_is_read_where_the_compiler_found_it_and_not_where_the_process_runs(student, tmp_path, monkeypatch):
    tasks = task(tmp_path / "tasks", [row(), row()])
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "rows.jsonl").write_text("{}\n")
    monkeypatch.chdir(elsewhere)
    found = measured(tmp_path / "out", student, tasks)
    assert found["counts"]["own"]["documents"] == 2
    assert found["configs"]["own"]["dataset_kwargs"] == {"data_files": {"test": "rows.jsonl"}}
    assert str(tmp_path) not in (tmp_path / "out/results.json").read_text()


def test_data_outside_of_the_folder_is_read_and_an_edit_after_the_plan_is_refused(student, tmp_path):
    config = {**CHOICE, "dataset_kwargs": {"data_files": {"test": "../exp[1]/rows.jsonl"}}}
    (tmp_path / "exp[1]").mkdir()
    (tmp_path / "exp1").mkdir()
    task(tmp_path / "tasks", [row()], CHOICE)
    (tmp_path / "exp[1]/rows.jsonl").write_text((tmp_path / "tasks/rows.jsonl").read_text() * 3)
    (tmp_path / "exp1/rows.jsonl").write_text((tmp_path / "tasks/rows.jsonl").read_text() * 5)
    tasks = task(tmp_path / "tasks", [row()], config)
    assert measured(tmp_path / "one", student, tasks)["counts"]["own"]["documents"] == 3
    changed = (tmp_path / "exp[1]/rows.jsonl").read_text().replace('"label": 0', '"label": 1')
    (tmp_path / "exp[1]/rows.jsonl").write_text(changed)
    with pytest.raises(BoomspecError, match=wording("evaluate_counts.changed_since_spec_compiled")):
        measured(tmp_path / "two", student, tasks)


def test_edited_data_with_its_old_time_is_read_anew(student, tmp_path):
    """The datasets library's cache knows a file by its name and time."""
    import os

    tasks = task(tmp_path / "tasks", [row(), row()])
    rows = tmp_path / "tasks/rows.jsonl"
    first = measured(tmp_path / "one", student, tasks)
    before = rows.stat()
    rows.write_text(rows.read_text().replace('"label": 0', '"label": 1'))
    os.utime(rows, ns=(before.st_atime_ns, before.st_mtime_ns))
    second = measured(tmp_path / "two", student, source(tmp_path / "tasks"))
    scores = [found["results"]["own"]["acc,none"] for found in (first, second)]
    assert sorted(scores) == [0.0, 1.0]


def test_a_folder_of_data_is_read(student, tmp_path):
    (tmp_path / "data").mkdir()
    task(tmp_path / "tasks", [row()])
    (tmp_path / "data/test.jsonl").write_text((tmp_path / "tasks/rows.jsonl").read_text() * 4)
    plain = {key: value for key, value in CHOICE.items() if key != "dataset_path"}
    for i, config in enumerate([{"dataset_path": "../data"}, {"dataset_path": "json", "data_dir": "../data"}]):
        options = {"data_dir": config.pop("data_dir")} if "data_dir" in config else None
        tasks = task(tmp_path / "tasks", [row()], {**plain, **config, "dataset_kwargs": options})
        assert measured(tmp_path / f"out{i}", student, tasks)["counts"]["own"]["documents"] == 4
