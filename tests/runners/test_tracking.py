"""Numbers that can be watched elsewhere: TensorBoard's files read with TensorBoard itself, real W&B and MLflow."""

import json
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from boomspec.core.errors import BoomspecError
from boomspec.core.graph import TaskGraph
from boomspec.spec.sections.execution import TrackingSpec
from boomspec.store import FolderStore, Store, open_store
from runners.executor.tracking import Mlflow, Point, TensorBoard, Tracking, check, tracked
from runners.runtime.journal import Journal
from tests.messages import wording
from tests.runners import small, tiny
from tests.runners.s3 import s3_server
from tests.runners.test_training import batch, interrupted_at, run

pytestmark = pytest.mark.usefixtures("no_figures")

SPEC = {"mlflow": {"experiment": "boom"}, "wandb": {"project": "boom"}}


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    """What TensorBoard shows of one of its runs; a step that is there twice is an error."""
    events = EventAccumulator(str(folder))
    events.Reload()
    found: dict[str, dict[int, float]] = {}
    for tag in events.Tags()["scalars"]:
        points = events.Scalars(tag)
        found[tag] = {point.step: point.value for point in points}
        assert len(found[tag]) == len(points), (tag, [point.step for point in points])
    return found


class Told:
    """One real run that has told all three."""

    def __init__(self, finished: Path, folder: Path) -> None:
        self.mlflow = f"file://{folder / 'mlflow'}"
        asked = {**SPEC, "mlflow": {**SPEC["mlflow"], "uri": self.mlflow}}
        to_make = ("distill", "interpolate", "evaluate", "report")
        spec, self.store = small.copied(finished, folder, without=to_make, execution={"tracking": asked})
        self.graph = small.compiled(spec, self.store).graph
        self.code = small.run(self.graph, self.store)
        self.folder = self.store.run_folder(self.graph.name, self.graph.id)
        distill = next(node for node in self.graph.nodes.values() if node.name == "distill student")
        self.artifact = self.store.path("distill", distill.id)
        lines = (self.artifact / "metrics.jsonl").read_text().splitlines()
        self.rows: list[dict[str, Any]] = [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def told(connected: None, finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Told:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("WANDB_MODE", "offline")
        environment.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        return Told(finished, tmp_path_factory.mktemp("told"))


def test_tensorboard_shows_every_step_of_a_training_as_its_artifact_has_it(told: Told) -> None:
    assert told.code == 0
    found = scalars(told.folder / "tensorboard" / "distill student")
    assert found.keys() == told.rows[0].keys() - {"step", "tokens"}
    assert {"loss", "lr", "grad_norm", "kl"} <= found.keys()
    for name, steps in found.items():
        assert steps == pytest.approx({row["step"]: row[name] for row in told.rows})


def test_tensorboard_shows_results_by_size(told: Told) -> None:
    folder = told.folder / "tensorboard" / "sizes"
    assert {path.name for path in folder.iterdir()} == {"teacher", "student", "interpolated"}
    shown = {size: value for path in folder.iterdir() for size, value in scalars(path)["held_out/loss"].items()}
    results = json.loads((told.folder / "report" / "results.json").read_text())["results"]
    assert shown == pytest.approx({r["parameters"]: r["value"] for r in results if r["metric"] == "loss"})


def test_mlflow_has_the_same_numbers_and_the_run_has_ended_well(told: Told) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=told.mlflow)
    experiment = client.get_experiment_by_name("boom")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == (told.folder.name, "FINISHED")
    assert run.data.tags["boomspec.graph"] == told.graph.id
    history = client.get_metric_history(run.info.run_id, "distill student/loss")
    assert [(point.step, point.value) for point in history] == [(row["step"], row["loss"]) for row in told.rows]
    assert "sizes/interpolated/held_out/loss" in run.data.metrics


def test_weights_and_biases_has_a_run_in_the_runs_folder_with_its_numbers(told: Told) -> None:
    (file,) = (told.folder / "wandb").glob("offline-run-*/run-*.wandb")
    content = file.read_bytes()
    for text in (b"distill student/loss", b"sizes/interpolated/held_out/loss", told.folder.name.encode()):
        assert text in content


def test_nothing_of_it_is_in_an_artifact_and_no_tracker_has_failed(told: Told) -> None:
    names = {path.name for path in told.artifact.rglob("*")}
    assert not [name for name in names if "tfevents" in name or "wandb" in name]
    notes = [e["message"] for e in small.events(told.graph, told.store) if e["event"] == "note"]
    assert not [note for note in notes if "gets nothing more" in note]


def test_a_training_that_goes_on_tells_its_whole_curve(tmp_path: Path) -> None:
    first = tiny.context(tmp_path / "first", resume=tmp_path / "resume")
    with pytest.raises(KeyboardInterrupt):
        run(first, batches=interrupted_at(4))
    second = tiny.context(tmp_path / "second", resume=tmp_path / "resume")
    run(second, batches=lambda _step: batch(0))
    lines = [json.loads(line) for line in (tmp_path / "second" / "progress.jsonl").read_text().splitlines()]
    assert [row["step"] for line in lines for row in line.get("rows", ())] == [0, 1, 2, 3, 4, 5]


def points(*steps: int, value: float = 1.0) -> list[Point]:
    return [Point(step, 1000.0 + step, {"loss": value}) for step in steps]


def test_a_curve_that_starts_anew_has_no_point_twice_also_for_a_reader_that_has_seen_the_old_one(
    tmp_path: Path,
) -> None:
    board = TensorBoard(tmp_path, {})
    board.begin("distill")
    board.points("distill", points(0, 1, 2))
    watching = EventAccumulator(str(tmp_path / "tensorboard" / "distill"))
    watching.Reload()
    assert [point.step for point in watching.Scalars("loss")] == [0, 1, 2]
    board.begin("distill")  # its worker was lost
    board.points("distill", points(0, 1, value=2.0))
    board.end("failed")
    watching.Reload()
    assert [(point.step, point.value) for point in watching.Scalars("loss")] == [(0, 2.0), (1, 2.0)]
    again = TensorBoard(tmp_path, {})  # the next run of the same graph
    again.begin("distill")
    again.points("distill", points(0, 1, 2, 3))
    again.end("finished")
    assert scalars(tmp_path / "tensorboard" / "distill") == {"loss": {0: 1.0, 1: 1.0, 2: 1.0, 3: 1.0}}


def test_a_curve_has_a_folder_of_its_own_whatever_its_name(tmp_path: Path) -> None:
    board = TensorBoard(tmp_path, {})
    for curve in ("../../no-kl: distill", "sizes/no-kl/x: teacher"):
        board.begin(curve)
        board.points(curve, points(0))
    board.end("finished")
    found = {str(path.parent.relative_to(tmp_path)) for path in tmp_path.rglob("events.out.*")}
    assert found == {"tensorboard/_.._no-kl: distill", "tensorboard/sizes/no-kl_x: teacher"}


def test_points_that_were_said_are_not_said_again_where_none_can_be_taken_back() -> None:
    said = Mlflow(Path(), {}, uri="file:///nowhere")
    assert [p.step for p in said.new("a", points(0, 1))] == [0, 1]
    assert [p.step for p in said.new("a", points(0, 1, 2))] == [2]
    assert [p.step for p in said.new("b", points(1))] == [1]


def graph_with(folder: Path) -> tuple[TaskGraph, Store, Journal, list[dict[str, Any]]]:
    store, heard = FolderStore(folder / "store"), list[dict[str, Any]]()
    graph = small.compiled(small.write_spec(folder), store).graph
    return graph, store, Journal(folder / "run", graph, heard.append), heard


def test_a_tracker_that_fails_is_noted_once_and_the_run_goes_on(tmp_path: Path) -> None:
    graph, store, journal, heard = graph_with(tmp_path)
    (journal.folder / "tensorboard").write_text("a file stands where the folder should be")
    distill = next(i for i, node in graph.nodes.items() if node.task.kind == "distill")
    with tracked(graph, store, journal) as tracking:
        for step in range(3):
            tracking.rows(distill, [{"step": step, "tokens": 1, "loss": 0.5}])
    assert len(heard) == 1
    assert heard[0]["message"].startswith(wording("tracking.tensorboard_gets_nothing_more"))


def test_one_tracker_that_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    graph, store, _, _ = graph_with(tmp_path)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "tensorboard").write_text("")
    used = [TensorBoard(tmp_path / "bad", {}), TensorBoard(tmp_path / "good", {})]
    tracking = Tracking(graph, store, used)
    distill = next(i for i, node in graph.nodes.items() if node.task.kind == "distill")
    tracking.rows(distill, [{"step": 0, "tokens": 1, "loss": 0.5}])
    tracking.end()
    assert tracking.failures.qsize() == 1
    assert scalars(tmp_path / "good" / "tensorboard" / "distill student") == {"loss": {0: 0.5}}


def test_what_the_store_does_not_give_is_noted_and_the_trackers_are_told_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, _, _, _ = graph_with(tmp_path)
    distill, other = (
        next(i for i, n in graph.nodes.items() if n.task.kind == kind) for kind in ("distill", "pretrain")
    )
    with s3_server() as server:
        for name, value in (server.environment | {"BOOMSPEC_CACHE": str(tmp_path / "cache")}).items():
            monkeypatch.setenv(name, value)
        store = open_store(server.make_bucket("tracking"))
        with store.workspace("distill", distill) as workspace:
            (workspace.path / "metrics.jsonl").write_text('{"step": 0, "tokens": 1, "loss": 0.5}\n')
            store.publish(workspace, "distill", distill, graph.nodes[distill].task.identity(), {})
        (payload,) = (name for name in store.bucket.entries("distill") if name.endswith("metrics.jsonl"))
        store.bucket.write(payload, b"damaged")
        board = Ends(tmp_path)
        tracking = Tracking(graph, store, [board])
        tracking.ended([distill])
        tracking.rows(other, [{"step": 0, "tokens": 1, "loss": "no number"}])
        tracking.rows(other, [{"step": 0, "tokens": 1, "loss": 0.25}])
        tracking.state = "finished"
        tracking.end()
    unread, missed = (tracking.failures.get(timeout=1) for _ in range(2))
    assert tracking.failures.empty()
    assert unread.startswith(wording("tracking.trackers_do_not_get"))
    assert "is damaged" in unread
    assert missed.startswith(wording("tracking.trackers_have_missed_something"))
    assert board.ended == ["finished"]
    assert scalars(tmp_path / "tensorboard" / "pretrain teacher") == {"loss": {0: 0.25}}


class Ends(TensorBoard):
    """TensorBoard's files, and how often it was told of the end."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, {})
        self.ended: list[str] = []

    def end(self, state: str) -> None:
        super().end(state)
        self.ended.append(state)


def test_what_is_asked_for_and_not_installed_or_has_no_key_is_said_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    check({"tensorboard": True})
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    with pytest.raises(BoomspecError, match=wording("tracking.there_no_key")):
        check({"wandb": {"project": "x"}})
    monkeypatch.setenv("WANDB_MODE", "offline")
    check({"wandb": {"project": "x"}})
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for name in ("tensorboard", "wandb", "mlflow"):
        with pytest.raises(BoomspecError, match=wording("tracking.not_installed_here")) as caught:
            check({name: {"x": 1}})
        assert "pip install -c" in str(caught.value)  # from this clone


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("runs", "has no scheme"),
        ("http://me:secret@host", wording("tracking.no_user_name_password")),
        ("http://host/?api_key=0123", wording("tracking.must_hold_no", name="api_key")),
        ("https://host/?a=b&Access-Token=0123", wording("tracking.must_hold_no", name="Access-Token")),
        ("postgresql:///runs?host=db&user=me&password=0123", wording("tracking.must_hold_no", name="user")),
        ("mssql+pyodbc:///?odbc_connect=Server%3Ddb%3BPWD%3D0123", wording("tracking.must_hold_no", name="PWD")),
    ],
)
def test_a_uri_with_credentials_or_without_a_scheme_is_refused(uri: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrackingSpec.model_validate({"mlflow": {"uri": uri}})


def test_a_uri_may_have_options_of_a_database() -> None:
    uri = "postgresql://db/runs?sslmode=verify-full&sslrootcert=/etc/ca.pem"
    assert TrackingSpec.model_validate({"mlflow": {"uri": uri}})
