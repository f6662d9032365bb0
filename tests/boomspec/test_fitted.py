"""`boomspec init --teacher FOLDER --data FILES`: the numbers fit the teacher, the text and the machine."""

import gzip
import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import CliRunner, Result

from boomspec.commands import fitted as fitting
from boomspec.commands.cli import main
from boomspec.compile.check import check_experiments
from boomspec.compile.text_files import parquet_columns
from boomspec.core.devices import DEVICES
from boomspec.spec.experiments import load_spec
from boomspec.spec.spec_file import SpecFile
from tests.boomspec.model_folders import llama, model
from tests.messages import wording

WORDS = "the quick brown fox jumps over the lazy dog and runs away "
ROWS = [{"id": i, "text": f"{i} {WORDS * 8}"} for i in range(60)]
CHATS = [
    {"messages": [{"role": "user", "content": WORDS}, {"role": "assistant", "content": f"{i} {WORDS}"}], "source": "x"}
    for i in range(80)
]
PAIRS = [{"question": WORDS, "answer": f"{i} {WORDS}"} for i in range(80)]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fitting, "here", lambda: fitting.Here(cpus=2, memory=8 << 30))
    folder = llama(Path("models/big"), layers=6)
    config = json.loads((folder / "config.json").read_text())
    config |= {"max_position_embeddings": 100, "tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(config))


def init(*arguments: object, exit_code: int = 0) -> Result:
    words = ["init", "mine.yaml", "--teacher", "models/big", "--force", *map(str, arguments)]
    result = CliRunner().invoke(main, words, catch_exceptions=False)
    assert result.exit_code == exit_code, result.output
    return result


def spec_of() -> SpecFile:
    return load_spec(Path("mine.yaml"))


def lines(rows: list[dict[str, object]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def chatty() -> None:
    Path("models/big/chat_template.jinja").write_text("{{ messages }}")


def test_every_number_fits_teacher_text_and_machine() -> None:
    Path("texts").mkdir()
    Path("texts/a.jsonl").write_text(lines(ROWS))
    output = init("--data", "texts").output
    spec = spec_of().spec
    [member, *_, teacher] = check_experiments([spec_of()])[0].members
    assert (spec.name, spec.teacher.model, spec.data.files) == ("mine", "./models/big", ("texts",))
    size = sum(len(row["text"]) for row in ROWS)  # without the JSON around it
    tokens = size / (4 * 5 / 15) * 19 / 20  # a vocabulary of 32
    assert 0.9 * tokens < spec.distill.tokens <= tokens
    assert spec.data.sequence_length == 64  # a power of two within 100 positions
    assert spec.distill.batch_tokens == 64
    assert spec.distill.tokens / 64 > 200
    assert spec.data.held_out.every == 20
    assert (spec.distill.precision, spec.evaluate.precision) == ("fp32", "fp32")
    assert (spec.execution.distill.cpus, spec.execution.distill.gpus) == (2, 0)
    assert spec.student.keep.kept(6)[-1] == 5
    assert member.layers < teacher.layers
    assert all(size.tied for size in check_experiments([spec_of()])[0].members)
    text = Path("mine.yaml").read_text()
    assert max(map(len, text.splitlines())) <= 120
    numbers = [line for line in text.splitlines() if re.search(r"(every|tokens|length|cpus): \{?\d", line)]
    assert len(numbers) >= 5
    assert all("  # " in line for line in numbers)
    assert f"{len(ROWS)} documents" in output
    planned = CliRunner().invoke(main, ["plan", "mine.yaml", "--json"])
    assert planned.exit_code == 0, planned.output
    assert "warning" not in planned.stderr
    assert json.loads(planned.stdout)["warnings"] == []
    answer = json.loads(init("--data", "texts", "--json").output)
    assert answer["data"]["tokens"] == pytest.approx(tokens, rel=0.05)


def written(form: str) -> tuple[str, ...]:
    """Files of a form; what to give for --data."""
    match form:
        case "text":
            Path("t").mkdir()
            for i in range(5):
                Path(f"t/{i}.txt").write_text(WORDS * 40)
            return ("t",)
        case "gz":
            Path("a.jsonl.gz").write_bytes(gzip.compress(lines(ROWS).encode()))
            return ("*.gz",)
        case "two":
            Path("a.jsonl").write_text(lines(ROWS))
            Path("b.jsonl").write_text(lines([{**row, "more": "x" * 2000} for row in ROWS]))
            return ("a.jsonl", "b.jsonl")
        case "content":
            Path("a.json").write_text(json.dumps([{"url": "http://x", "content": row["text"]} for row in ROWS]))
            return ("a.json",)
        case "no ending":
            Path("corpus").write_text(lines(ROWS))
            return ("corpus",)
        case "parquet":
            pq.write_table(pa.table({"text": [f"{i} {WORDS * 8}" for i in range(60)], "n": range(60)}), "a.parquet")
            return ("a.parquet",)
        case "chat parquet":
            pq.write_table(pa.Table.from_pylist(CHATS), "a.parquet")
            return ("a.parquet",)
    rows = {"messages": CHATS, "pairs": PAIRS, "messages and text": [{**row, "text": WORDS} for row in CHATS]}[form]
    Path("a.jsonl").write_text(lines(rows))
    return ("a.jsonl",)


@pytest.mark.parametrize(
    ("form", "template", "fields"),
    [
        ("text", False, {}),
        ("gz", False, {}),
        ("two", True, {}),
        ("content", False, {"text_field": "content"}),
        ("no ending", False, {"format": "jsonl"}),
        ("parquet", True, {}),
        ("messages", True, {"messages": "messages", "loss_on": "responses"}),
        ("chat parquet", True, {"messages": "messages", "loss_on": "responses"}),
        ("pairs", True, {"prompt": "question", "response": "answer", "loss_on": "responses"}),
        ("messages and text", True, {"messages": "messages", "loss_on": "responses"}),
        ("messages and text", False, {}),
    ],
)
def test_what_the_rows_hold_is_found_by_looking_at_them(form: str, template: bool, fields: dict[str, str]) -> None:
    if template:
        chatty()
    init(*(word for entry in written(form) for word in ("--data", entry)))
    check_experiments([spec_of()])
    data = yaml.safe_load(Path("mine.yaml").read_text())["data"]
    assert {key: data[key] for key in data.keys() - {"files", "sequence_length", "held_out"}} == fields


def test_words_that_a_shell_made_of_a_pattern_are_files_and_paths_start_at_the_spec() -> None:
    for name in ("a.jsonl", "b.jsonl"):
        Path(name).write_text(lines(ROWS))
    words = ["init", "--teacher", "models/big", "--data", "a.jsonl", "b.jsonl", "specs/own.yaml"]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output
    data = load_spec(Path("specs/own.yaml")).spec.data
    assert data.files == ("../a.jsonl", "../b.jsonl")
    check_experiments([load_spec(Path("specs/own.yaml"))])
    assert CliRunner().invoke(main, [*words, "another"]).exit_code == 2


@pytest.mark.parametrize(("gpu", "precision"), [("h100", "bf16"), ("t4", "fp32"), (None, "bf16")])
def test_a_gpu_gets_longer_sequences_and_its_precision(
    gpu: str | None, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = DEVICES[gpu] if gpu else None
    monkeypatch.setattr(fitting, "here", lambda: fitting.Here(16, 64 << 30, "some GPU", device))
    config = json.loads(Path("models/big/config.json").read_text())
    Path("models/big/config.json").write_text(json.dumps({**config, "max_position_embeddings": 4096}))
    Path("a.jsonl").write_text(lines(ROWS * 300))
    init("--data", "a.jsonl")
    spec = spec_of().spec
    check_experiments([spec_of()])
    assert spec.data.sequence_length == 2048
    assert spec.distill.tokens // spec.distill.batch_tokens >= 300
    assert (spec.distill.precision, spec.execution.distill.gpus, spec.execution.device) == (precision, 1, gpu)


def test_a_text_that_is_too_long_for_cpus_is_cut_and_the_spec_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "_NIGHT", 1e-4)
    Path("a.jsonl").write_text(lines(ROWS * 20))
    init("--data", "a.jsonl")
    data, distill = spec_of().spec.data, spec_of().spec.distill
    assert distill.tokens < data.max_tokens < 1.1 * distill.tokens < 100_000
    assert "a night" in Path("mine.yaml").read_text()


def test_small_teachers_have_students() -> None:
    Path("a.jsonl").write_text(lines(ROWS))
    for layers in (2, 3, 4):
        llama(Path(f"models/{layers}"), layers=layers)
        words = ["init", f"{layers}.yaml", "--teacher", f"models/{layers}", "--data", "a.jsonl"]
        assert CliRunner().invoke(main, words).exit_code == 0
        [family] = check_experiments([load_spec(Path(f"{layers}.yaml"))])
        assert family.members[0].layers < layers


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        ({}, ["--data", "none/*.jsonl"], wording("fitted.no_file")),
        ({"a.jsonl": '{"n": 1}\n{"n": 2}\n'}, ["--data", "a.jsonl"], wording("fitted.no_text")),
        ({"a.jsonl": lines(CHATS)}, ["--data", "a.jsonl"], wording("fitted.no_chat_template")),
        ({"a.jsonl": '{"text": 1\n'}, ["--data", "a.jsonl"], wording("fitted.not_json")),
        ({"a.jsonl": "[1]\n"}, ["--data", "a.jsonl"], wording("fitted.no_object")),
        ({"a.json": "{}"}, ["--data", "a.json"], wording("fitted.no_array")),
        ({"a.jsonl": ""}, ["--data", "a.jsonl"], wording("fitted.empty")),
        ({"a.jsonl": '{"text": "a"}\n' * 9}, ["--data", "a.jsonl"], wording("fitted.too_little")),
        ({"a.txt": WORDS * 99}, ["--data", "a.txt"], wording("fitted.split_it")),
        ({"a.txt": "a", "b.jsonl": "{}"}, ["--data", "a.txt", "--data", "b.jsonl"], wording("fitted.several_formats")),
        ({"a.parquet": "PAR1"}, ["--data", "a.parquet"], wording("fitted.no_parquet")),
        ({"a.bin": "a\0b"}, ["--data", "a.bin"], wording("fitted.no_text_at_all")),
        ({"a.jsonl": lines(ROWS)}, ["--data", "a.jsonl", "--template", "hub"], wording("fitted.one_of_them")),
        ({"a.jsonl": lines(ROWS)}, ["--data", "a.jsonl", "--teacher", "models/none"], wording("fitted.no_folder")),
        ({"a.jsonl": lines(ROWS)}, ["--data", "a.jsonl", "--teacher", "own/model"], wording("fitted.of_the_hub")),
        ({"a.jsonl": lines(ROWS), "m/x": ""}, ["--data", "a.jsonl", "--teacher", "m"], wording("fitted.no_config")),
    ],
)
def test_what_cannot_be_fitted_is_an_error_that_says_what_to_do(
    content: dict[str, str], arguments: list[str], message: str
) -> None:
    for name, text in content.items():
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(text)
    output = init(*arguments, exit_code=2).output
    assert message in output
    assert "hint: " in output or message == wording("fitted.empty")
    assert not Path("mine.yaml").exists()


def test_a_teacher_without_a_tokenizer_and_data_without_a_teacher() -> None:
    Path("a.jsonl").write_text(lines(ROWS))
    (model(Path("models/plain")) / "tokenizer.json").unlink()
    (Path("models/plain") / "tokenizer_config.json").write_text("{}")
    assert wording("fitted.no_tokenizer") in init("--data", "a.jsonl", "--teacher", "models/plain", exit_code=2).output
    result = CliRunner().invoke(main, ["init", "--data", "a.jsonl"])
    assert result.exit_code == 2
    assert wording("fitted.needs_teacher") in result.output


def test_columns_of_parquet_are_known_from_the_footer(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(CHATS), "a.parquet")
    columns = parquet_columns(Path("a.parquet"))
    assert list(columns) == ["messages", "source"]
    assert (columns["messages"].is_text, columns["source"].is_text, columns["source"].parts) == (False, True, None)
    assert columns["messages"].bytes > columns["source"].bytes > 0
    Path("b.parquet").write_bytes(Path("a.parquet").read_bytes()[:-1])
    assert parquet_columns(Path("b.parquet")) is None
