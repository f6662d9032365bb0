"""Secrets of the environment are in nothing that is written, and what is written stays what it is."""

import json
from pathlib import Path

import pytest

from boomspec.core.errors import redact
from boomspec.plan.lock import Lock, read_lock
from runners.runtime.journal import Journal
from tests.boomspec.conftest import Writer

ODD = 'pass"word\\of\ttwo lines\nand é'


@pytest.mark.parametrize(
    "name",
    ["TOKEN", "HF_TOKEN", "RAY_AUTH_TOKEN", "hf_token", "GITHUBTOKEN", "TOKEN_2", "AWS_SECRET_ACCESS_KEY", "API_KEY"],
)
def test_a_variable_that_is_called_a_secret_is_one(name: str) -> None:
    assert redact("it is abcdefgh1", environment={name: "abcdefgh1"}) == f"it is <{name}>"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MAX_TOKENS", "abcdefgh1"),
        ("TOKENIZERS_PARALLELISM", "abcdefgh1"),
        ("HF_TOKEN_PATH", "abcdefgh1"),
        ("HOME", "abcdefgh1"),
        ("HF_TOKEN", "abc"),
        ("TOKEN", "2100000000"),
        ("TOKEN", "-2_100.000e-10"),
    ],
)
def test_other_variables_numbers_and_short_words_are_none(name: str, value: str) -> None:
    assert redact(f"it is {value}", environment={name: value}) == f"it is {value}"


def test_of_a_secret_that_begins_like_another_one_nothing_is_left() -> None:
    environment = {"A_TOKEN": "abcdefgh", "B_TOKEN": "abcdefgh12345678"}
    assert redact("abcdefgh12345678 abcdefgh", environment=environment) == "<B_TOKEN> <A_TOKEN>"


def test_texts_and_keys_of_data_are_redacted_and_nothing_else_changes() -> None:
    environment = {"HF_TOKEN": ODD, "SECRET": "12345678", "OTHER_SECRET": "false, 1"}
    data = {"tokens": 12345678, "rows": (1, False, 1.5, None), ODD: [f"it is {ODD}"], "at": "s3://me:pass@host/x"}
    assert redact(data, environment=environment) == {
        "tokens": 12345678,
        "rows": [1, False, 1.5, None],
        "<HF_TOKEN>": ["it is <HF_TOKEN>"],
        "at": "s3://<credentials>@host/x",
    }


def test_what_a_run_writes_about_itself_has_no_secrets_and_can_be_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = Writer(folder).edited(("seed", 12345678)).graph
    monkeypatch.setenv("MAX_TOKENS", "12345678")
    monkeypatch.setenv("DB_PASSWORD", ODD)
    journal = Journal(folder / "run", graph, lambda event: None)
    journal.event("note", message=ODD, counts={ODD: [ODD]})
    journal.status({"tasks": {"x": {"error": ODD}}})
    assert json.loads((journal.folder / "graph.json").read_text()) == json.loads(json.dumps(graph.to_json()))
    (event,) = map(json.loads, (journal.folder / "events.jsonl").read_text().splitlines())
    assert (event["message"], event["counts"]) == ("<DB_PASSWORD>", {"<DB_PASSWORD>": ["<DB_PASSWORD>"]})
    assert json.loads((journal.folder / "status.json").read_text())["tasks"] == {"x": {"error": "<DB_PASSWORD>"}}


def test_a_lock_can_be_read_whatever_the_environment_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", '{},\n "texts": {}')
    lock = Lock(spec="tiny", models={}, datasets={}, texts={}, tasks={}, rows={}, packages={"torch": ODD})
    monkeypatch.setenv("DB_PASSWORD", ODD)
    lock.write(tmp_path / "x.lock.json")
    assert read_lock(tmp_path / "x.lock.json").packages == {"torch": "<DB_PASSWORD>"}
