"""What a plan says of the text: what each entry gives, how documents begin, how often a training goes through it."""

import gzip
import json
from pathlib import Path

import jsonschema
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from boomspec.compile.compiler import compile_experiments
from boomspec.compile.text_files import parquet_rows
from boomspec.core.tasks import Tokenize
from boomspec.plan.plan_json import plan_schema
from boomspec.plan.text_plan import TextPlan, text_plans
from boomspec.spec.experiments import load_spec
from boomspec.store import FolderStore, Store
from runners.report.run_notes import notes_of
from tests.boomspec.conftest import SPEC, Writer
from tests.boomspec.test_cli import call
from tests.messages import wording


def planned(folder: Path, text: str) -> TextPlan:
    (folder / "spec.yaml").write_text(text)
    [found] = text_plans(compile_experiments([load_spec(folder / "spec.yaml")]).graph, FolderStore(folder / "store"))
    return found


def test_every_entry_says_what_it_gives(folder: Path) -> None:
    rows = "".join(json.dumps({"text": f"row {i}"}) + "\n\n" for i in range(5))
    (folder / "texts" / "more").mkdir(parents=True)
    (folder / "texts" / "a.jsonl").write_text(rows)
    (folder / "texts" / "more" / "b.jsonl").write_text(rows)
    (folder / "texts" / "._a.jsonl").write_text("no rows")
    (folder / "c.jsonl.gz").write_bytes(gzip.compress(rows.encode()))
    (folder / "own.txt").write_text("held out")
    entries = '[texts/a.jsonl, texts, "*.jsonl.gz"]'
    text = SPEC.replace('"*.txt"', f"{entries}\n  format: jsonl").replace("{every: 4}", "{files: own.jsonl}")
    (folder / "own.jsonl").write_text(json.dumps({"text": "held out"}))
    given = planned(folder, text).given
    assert [(g.entry, g.held_out, g.files, g.documents) for g in given] == [
        ("texts/a.jsonl", False, 1, 5),
        ("texts", False, 1, 5),  # the other one was given before
        ("*.jsonl.gz", False, 1, None),  # counting them is not cheap
        ("own.jsonl", True, 1, 1),
    ]
    assert given[0].bytes == len(rows)
    output = call("plan", folder / "spec.yaml").output
    shown = [line.split() for line in output[output.index("Text\n") :].splitlines()[2:6]]
    assert shown[0] == ["texts/a.jsonl", "1", "5", "95.0", "B"]
    assert shown[3][:5] == ["own.jsonl", "held", "out", "1", "1"]
    found = json.loads(call("plan", folder / "spec.yaml", "--json").output)
    jsonschema.validate(found, plan_schema())
    assert [g["entry"] for g in found["texts"][0]["given"]] == ["texts/a.jsonl", "texts", "*.jsonl.gz", "own.jsonl"]


@pytest.mark.parametrize(
    ("fields", "times"),
    [
        ("", {"pretrain teacher": 3.4}),
        ("  max_tokens: 1024\n", {"pretrain teacher": 4.0, "distill student": 2.0, "distill random_init": 2.0}),
    ],
)
def test_a_training_that_is_longer_than_the_text_says_how_often_it_goes_through_it(
    folder: Path, fields: str, times: dict[str, float]
) -> None:
    text = SPEC.replace("  held_out: {every: 4}\n", f"  held_out: {{every: 4}}\n{fields}", 1)
    found = planned(
        folder, text.replace("random_init]", "random_init: {tokens: 2k}}]").replace(", random", ", {random")
    )
    assert found.passes == pytest.approx(
        {k: v * (2000 / 2048 if "init" in k else 1) for k, v in times.items()}, abs=0.2
    )
    known, about = wording("text_plan.tokens_read_times_pretrain"), wording("text_plan.tokens_read_about_pretrain")
    output = " ".join(call("plan", folder / "spec.yaml").output.split())
    assert (known if fields else about) in output
    assert "warning:" not in output  # below ten times
    assert (found.expected_tokens is None) is bool(fields)


def test_a_training_that_goes_often_through_its_text_is_a_warning_before_and_after_it_is_read(folder: Path) -> None:
    def warnings() -> tuple[str, ...]:
        found = json.loads(call("plan", folder / "spec.yaml", "--json").output)
        jsonschema.validate(found, plan_schema())
        return tuple(found["warnings"])

    often = SPEC.replace("  tokens: 2048", "  tokens: 120k").replace(", random_init", "")
    assert planned(folder, often).passes["distill student"] == pytest.approx(100, rel=0.1)
    [before] = warnings()
    assert wording("text_plan.goes_about") in before
    assert "distill.tokens" in before
    output = " ".join(call("plan", folder / "spec.yaml").output.split())
    assert wording("text_plan.goes_about") in output
    (folder / "spec.yaml").write_text(often.replace("120k", "11k"))
    assert warnings() == ()  # nine times
    sizes = {"tokens": 512, "documents": 3, "bytes": 900}
    made(folder, often, {"eos": 0, "dtype": "uint16", "train": sizes, "held_out": sizes})
    [after] = warnings()
    assert wording("text_plan.goes_exactly") in after
    both = often.replace("[naive_pruning]", "[naive_pruning, standard_distillation]").replace(
        "tokens: 4096", "tokens: 9k"
    )
    (folder / "spec.yaml").write_text(both)
    [more] = warnings()
    assert wording("text_plan.more_trainings") in more


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.integers(0, 300),
    columns=st.sets(st.sampled_from(["text", "list", "struct", "map", "number", "flag"]), min_size=1),
    group=st.integers(1, 400),
    data=st.sampled_from(["1.0", "2.6"]),
)
def test_the_rows_of_a_parquet_file_are_known_from_its_footer(
    folder: Path, rows: int, columns: set[str], group: int, data: str
) -> None:
    values = {
        "text": ["x" * (i % 7) for i in range(rows)],
        "list": [[1.5] * (i % 3) for i in range(rows)],
        "struct": [{"a": {"b": i}, "c": None} for i in range(rows)],
        "map": [[("k", i)] for i in range(rows)],
        "number": [i if i % 2 else None for i in range(rows)],
        "flag": [i % 2 == 0 for i in range(rows)],
    }
    kinds = {"map": pa.map_(pa.string(), pa.int64()), "list": pa.list_(pa.float64())}
    kinds["struct"] = pa.struct([("a", pa.struct([("b", pa.int16())])), ("c", pa.timestamp("ms"))])
    arrays = {name: pa.array(values[name], kinds.get(name)) for name in sorted(columns)}
    pq.write_table(pa.table(arrays), folder / "a.parquet", row_group_size=group, version=data)
    assert parquet_rows(folder / "a.parquet") == rows
    whole = (folder / "a.parquet").read_bytes()
    for cut in (whole[:-1], whole[-6:], b"", whole[:4]):
        (folder / "b.parquet").write_bytes(cut)
        assert parquet_rows(folder / "b.parquet") is None


def made(folder: Path, text: str, meta: dict[str, object]) -> tuple[object, Store]:
    """The graph of a spec, and a store that has its tokens."""
    (folder / "spec.yaml").write_text(text)
    graph, store = compile_experiments([load_spec(folder / "spec.yaml")]).graph, FolderStore(folder / "store")
    node = next(node for node in graph.nodes.values() if node.task.kind == "tokenize")
    with store.workspace("tokenize", node.id) as workspace:
        (workspace.path / "meta.json").write_text(json.dumps(meta))
        (workspace.path / "train.bin").write_bytes(b"")
        store.publish(workspace, "tokenize", node.id, node.task.identity(), {})
    return graph, store


def test_rows_that_were_left_out_are_said_by_plan_and_report(folder: Path) -> None:
    text = SPEC.replace("data:\n", "data:\n  on_bad_row: skip\n")
    assert planned(folder, text).skipped is None
    assert wording("text_plan.rows_without_text_will") in call("plan", folder / "spec.yaml").output
    sizes = {"tokens": 512, "documents": 3, "bytes": 900}
    meta = {"eos": 0, "dtype": "uint16", "train": sizes, "held_out": sizes, "skipped": {"null": 1200, "not JSON": 2}}
    graph, store = made(folder, text, meta)
    output = " ".join(call("plan", folder / "spec.yaml").output.split())
    assert wording("text_plan.rows_without_text_skipped") in output
    assert wording("text_plan.tokens_read_times_pretrain_teacher") in output
    facts = dict(notes_of(graph, store, {}, several=False).facts)  # type: ignore[arg-type]
    assert facts["rows without text, left out"] == "1,200 null, 2 not JSON"
    none_bad = {key: value for key, value in meta.items() if key != "skipped"}
    clean = text.replace("seed: 0", "seed: 1").replace("held_out: {every: 4}", "held_out: {every: 3}")
    graph, store = made(folder, clean, none_bad)
    assert planned(folder, clean).skipped == {}
    assert "without text" not in call("plan", folder / "spec.yaml").output
    assert dict(notes_of(graph, store, {}, several=False).facts)["rows without text, left out"] == "none"  # type: ignore[arg-type]
    graph, store = made(folder, SPEC, none_bad)
    assert wording("text_plan.rows_without_text_left") not in dict(notes_of(graph, store, {}, several=False).facts)  # type: ignore[arg-type]


def test_a_bad_row_is_an_error_by_default_and_what_is_default_is_in_no_record(specs: Writer) -> None:
    compiled = specs.edited(("data.bos", "auto"), ("data.on_bad_row", "error"))
    assert compiled.graph.id == specs.compiled().graph.id
    record = next(node.task.record for node in compiled.graph.nodes.values() if isinstance(node.task.record, Tokenize))
    assert (record.bos, record.on_bad_row) == (None, None)
    for field, value in (("data.bos", False), ("data.on_bad_row", "skip")):
        assert specs.edited((field, value)).graph.id != compiled.graph.id


@pytest.mark.parametrize(
    ("template", "said", "tokens"),
    [
        ("<s> $A", wording("text_plan.teacher_tokenizer_begins_text"), ("<s>",)),
        (None, wording("text_plan.after_end_text_token"), ()),
    ],
)
def test_a_plan_says_how_documents_begin(
    folder: Path, template: str | None, said: str, tokens: tuple[str, ...]
) -> None:
    from tests.runners.test_bos import write_tokenizer
    from tests.runners.tiny import model

    model(vocab_size=320).save_pretrained(folder / "teacher")
    tokenizer = write_tokenizer(folder / "tokenizer", template)
    for file in tokenizer.iterdir():
        file.rename(folder / "teacher" / file.name)
    head, _, rest = SPEC.partition("teacher:\n")
    text = head + "teacher: {model: ./teacher}\nstudent:" + rest.partition("student:")[2].replace("[0, 2, 4]", "[0, 2]")
    found = planned(folder, text)
    assert (found.begins, found.bos) == (said, tokens)
    assert f"Documents begin {said}." in " ".join(call("plan", folder / "spec.yaml").output.split())
    assert planned(folder, text.replace("data:\n", "data:\n  bos: false\n")).bos == ()
    asked = planned(folder, text.replace("data:\n", "data:\n  bos: true\n"))
    assert "data.bos: true" in asked.begins
