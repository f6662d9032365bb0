"""`boomspec explain`, and what an editor shows of the same fields."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from boomspec.commands.explain import explain
from boomspec.core.errors import BoomspecError
from boomspec.core.types import Bytes, Count, Number, ShareField
from boomspec.spec.json_schema import json_schema
from tests.boomspec.test_cli import call
from tests.messages import wording

ROOT = Path(__file__).parents[2]
SERVER = shutil.which("yaml-language-server")


def paths(above: tuple[str, ...] = (), depth: int = 4) -> Iterator[tuple[str, ...]]:
    for name in explain(above).inner if depth else ():
        yield (*above, name)
        yield from paths((*above, name), depth - 1)


def test_every_field_is_explained_in_words_with_what_it_takes() -> None:
    everything = list(paths())
    assert ("distill", "losses", "kl", "weight") in everything
    for path in everything:
        found = explain(path)
        assert len(found.says) > 4, path
        assert found.takes, path


def test_a_field_is_printed_with_its_default_and_for_programs_as_json() -> None:
    shown = call("explain", "distill.losses.kl.weight")
    assert shown.exit_code == 0
    for line in ("distill.losses.kl.weight", "takes:    a number such as", "default:  0.1", "  over "):
        assert line in shown.output
    found = json.loads(call("explain", "data.sequence_length", "--json").output)
    assert found["required"] is True
    assert "default" not in found
    assert found["description"] == "Tokens of one training sequence."


def test_what_stands_behind_a_name_of_ones_own_is_explained_too() -> None:
    assert list(explain(["data", "sources"]).inner) == ["NAME"]
    assert explain(["data", "sources", "sft", "messages"]).says == explain(["data", "messages"]).says
    assert "'messages'" in call("explain", "data.sources.sft.mesages").output


def test_lines_are_no_longer_than_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    assert max(map(len, call("explain", "evaluate.thinking").output.splitlines())) <= 60


def test_a_field_that_does_not_exist_names_those_that_do() -> None:
    for path, hint in (("distll", "'distill'"), ("distill.losses.kll", "'kl'"), ("seed.x", "boomspec explain seed")):
        failed = call("explain", path)
        assert failed.exit_code == 2
        assert hint in failed.output
    with pytest.raises(BoomspecError, match=wording("explain.no_section")):
        explain(["nothing like it"])


@pytest.mark.parametrize("kind", [Count, Bytes, Number, ShareField])
def test_the_pattern_of_a_quantity_takes_what_boomspec_takes(kind: Any) -> None:
    from pydantic import TypeAdapter, ValidationError

    adapter: TypeAdapter[Any] = TypeAdapter(kind)
    schema = adapter.json_schema()
    for text in (
        "300kB",
        "1_000",
        "4.2M",
        "3e-4",
        "6GiB",
        "1%",
        " 5 k ",
        "500MB",
        "1.5",
        "k",
        "5 q",
        "1e",
        "",
        "B",
        "12Gi",
    ):
        try:
            adapter.validate_python(text)
            taken = True
        except ValidationError as error:
            taken = "not a whole number" in str(error)  # which a pattern does not know
        assert jsonschema.Draft202012Validator(schema).is_valid(text) == taken, text


class Editor:
    """An editor's side of the language server protocol, as far as the diagnostics of one file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        assert SERVER is not None
        self.process = subprocess.Popen(
            [SERVER, "--stdio"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        self.send("initialize", {"processId": None, "rootUri": folder.as_uri(), "capabilities": {}}, number=1)
        while self.receive().get("id") != 1:
            pass
        self.send("initialized", {})

    def send(self, method: str, params: Any, *, number: int | None = None) -> None:
        message = {"jsonrpc": "2.0", "method": method, "params": params} | ({} if number is None else {"id": number})
        body = json.dumps(message, allow_nan=False).encode()
        assert self.process.stdin is not None
        self.process.stdin.write(b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
        self.process.stdin.flush()

    def receive(self) -> dict[str, Any]:
        out = self.process.stdout
        assert out is not None
        length = 0
        while line := out.readline().strip():
            if line.lower().startswith(b"content-length:"):
                length = int(line.split(b":")[1])
        found: dict[str, Any] = json.loads(out.read(length))
        return found

    def diagnostics(self, name: str, text: str) -> list[str]:
        uri = (self.folder / name).as_uri()
        self.send(
            "textDocument/didOpen", {"textDocument": {"uri": uri, "languageId": "yaml", "version": 1, "text": text}}
        )
        while True:
            message = self.receive()
            if message.get("method") == "textDocument/publishDiagnostics" and message["params"]["uri"] == uri:
                return [one["message"] for one in message["params"]["diagnostics"]]
            if "id" in message and "method" in message:  # it asks for settings
                answer = {"jsonrpc": "2.0", "id": message["id"], "result": [None] * 5}
                body = json.dumps(answer, allow_nan=False).encode()
                assert self.process.stdin is not None
                self.process.stdin.write(b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
                self.process.stdin.flush()


@pytest.mark.skipif(SERVER is None, reason="yaml-language-server is not installed: npm install -g yaml-language-server")
def test_an_editor_finds_shipped_specs_right_and_wrong_quantities_wrong(tmp_path: Path) -> None:
    (tmp_path / "boomspec.schema.json").write_text(json.dumps(json_schema(), allow_nan=False), encoding="utf-8")
    modeline = f"# yaml-language-server: $schema={(tmp_path / 'boomspec.schema.json').as_uri()}\n"
    right = (ROOT / "specs" / "quickstart.yaml").read_text(encoding="utf-8")
    tokens = yaml.safe_load(right)["distill"]["tokens"]
    editor = Editor(tmp_path)
    try:
        assert editor.diagnostics("right.yaml", modeline + right) == []
        assert editor.diagnostics("unit.yaml", modeline + right.replace(f"tokens: {tokens}", "tokens: 12 apples"))
        assert editor.diagnostics("key.yaml", modeline + right.replace("distill:", "distil:"))
    finally:
        editor.process.kill()
        editor.process.wait()
        for stream in (editor.process.stdin, editor.process.stdout):
            assert stream is not None
            stream.close()
