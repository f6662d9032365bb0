"""Which files an entry means, what variables in a path mean, and what a plan can know of the text before it is read."""

import itertools
import json
import os
import shutil
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from boomspec.commands.cli import main
from boomspec.compile.check import check_experiments
from boomspec.compile.compiler import compile_experiments
from boomspec.compile.text_files import format_of, matching
from boomspec.compile.text_sources import data_files
from boomspec.core.errors import SpecError
from boomspec.spec.experiments import load_experiments, load_spec
from boomspec.spec.variables import VariableError, expanded
from tests.boomspec.conftest import SPEC, Writer, write_texts
from tests.messages import wording


def tree(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


def found(folder: Path, entry: str, **more: str) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in matching(folder, entry, **more)]


def test_the_folder_of_the_spec_is_taken_as_it_is(tmp_path: Path) -> None:
    """A folder whose name is a pattern: its neighbour's text is not its own."""
    for name in ("exp[1]", "exp1", "a*b", "axb", "what?", "whats"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name.encode().hex()}.txt").write_text(name)
        for i in range(4):
            (tmp_path / name / f"{i}.txt").write_text(f"{name} {i}")
        (tmp_path / name / "spec.yaml").write_text(SPEC)
    for name in ("exp[1]", "exp1", "a*b", "axb", "what?", "whats"):
        files = data_files(load_spec(tmp_path / name / "spec.yaml"))
        assert {path.parent.name for path in files} == {name}
        assert len(files) == 5


def test_a_name_that_exists_wins_over_what_it_would_match(tmp_path: Path) -> None:
    tree(tmp_path, "a[1].txt", "a1.txt", "d[x]/1.txt", "dx/2.txt", "*.txt")
    assert found(tmp_path, "a[1].txt") == ["a[1].txt"]
    assert found(tmp_path, "d[x]/*.txt") == ["d[x]/1.txt"]
    assert found(tmp_path, "*.txt") == ["*.txt"]
    (tmp_path / "*.txt").unlink()
    (tmp_path / "a[1].txt").unlink()
    shutil.rmtree(tmp_path / "d[x]")
    assert found(tmp_path, "a[1].txt") == ["a1.txt"]
    assert found(tmp_path, "d[x]/*.txt") == ["dx/2.txt"]


HIDDEN = (".git/a.txt", ".ipynb_checkpoints/b.txt", "sub/._c.txt", "sub/.hidden/d.txt", ".e.txt")


def test_what_one_match_of_a_pattern_does_not_hold_another_may(tmp_path: Path) -> None:
    tree(tmp_path, "a/texts/1.txt", "b/other.txt", "c/texts/2.txt", "file.txt")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "around").symlink_to(tmp_path)
    assert found(tmp_path, "*/texts/*.txt") == ["a/texts/1.txt", "c/texts/2.txt"]
    assert found(tmp_path, "**/texts/*") == ["a/texts/1.txt", "c/texts/2.txt"]
    assert found(tmp_path, "[!a]/texts/*.txt") == ["c/texts/2.txt"]


def test_a_file_counts_once_however_it_is_named(folder: Path) -> None:
    (folder / "linked").symlink_to(folder)
    entries = ["*.txt", "./1.txt", f"../{folder.name}/2.txt", "linked/3.txt", str(folder / "4.txt")]
    files = data_files(load_spec(Writer(folder).text(SPEC.replace('"*.txt"', json.dumps(entries)))))
    assert [file.name for file in files] == [f"{i}.txt" for i in range(8)]


def test_a_tilde_is_a_home_at_the_start_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = folder / "home"
    for name in ("home", "~", "~nobody-of-that-name"):
        (folder / name).mkdir()
        write_texts(folder / name)
    monkeypatch.setenv("HOME", str(home))
    for entry, place in (("~/*.txt", "home"), ("./~/*.txt", "~"), ("./~nobody-of-that-name/*.txt", None)):
        graph = compile_experiments([load_spec(Writer(folder).text(SPEC.replace("*.txt", entry)))]).graph
        (source,) = graph.sources.values()
        assert {Path(file).parent.name for file in source.location["files"]} == {place or "~nobody-of-that-name"}


def test_hidden_files_and_folders_are_not_matched_unless_their_dot_is_written(tmp_path: Path) -> None:
    tree(tmp_path, "1.txt", "sub/2.txt", "sub/deep/3.txt", *HIDDEN)
    assert found(tmp_path, "*.txt") == ["1.txt"]
    assert found(tmp_path, "**/*.txt") == ["1.txt", "sub/2.txt", "sub/deep/3.txt"]
    assert found(tmp_path, "*/*.txt") == ["sub/2.txt"]
    assert found(tmp_path, ".") == ["1.txt", "sub/2.txt", "sub/deep/3.txt"]
    assert found(tmp_path, "**") == ["1.txt", "sub/2.txt", "sub/deep/3.txt"]
    for hidden in HIDDEN:
        assert found(tmp_path, hidden) == [hidden]
    assert found(tmp_path, ".git/*.txt") == [".git/a.txt"]
    assert found(tmp_path, "sub/.*.txt") == ["sub/._c.txt"]
    assert found(tmp_path, ".*/*.txt") == [".git/a.txt", ".ipynb_checkpoints/b.txt"]


def test_a_folder_gives_its_files_with_known_endings(tmp_path: Path) -> None:
    tree(
        tmp_path, "d/a.jsonl", "d/b.jsonl.gz", "d/deep/c.ndjson.zst", "d/_SUCCESS", "d/x.bin", "d/.crc.jsonl", "e/a.txt"
    )
    expected = ["d/a.jsonl", "d/b.jsonl.gz", "d/deep/c.ndjson.zst"]
    assert found(tmp_path, "d") == found(tmp_path, "d/") == expected
    assert found(tmp_path, str(tmp_path / "d")) == expected
    tree(tmp_path, "d/README.md")
    assert found(tmp_path, "d", format="jsonl") == expected
    (tmp_path / "d" / "link").symlink_to("../e")  # links to folders are not followed
    assert found(tmp_path, "d", format="jsonl") == expected


@pytest.mark.parametrize(
    ("name", "format"),
    [
        ("a.txt", "text"),
        ("a.TXT.GZ", "text"),
        ("a.jsonl.zst", "jsonl"),
        ("a.json", "json"),
        ("a.json.gz", "json"),
        ("a.parquet", "parquet"),
        ("a.parquet.gz", None),
        ("a.gz", None),
        ("a", None),
        ("a.tar.gz", None),
    ],
)
def test_an_ending_says_the_format(name: str, format: str | None) -> None:
    assert format_of(Path(name)) == format


@settings(max_examples=60, deadline=None)
@given(
    names=st.lists(st.text("ab[1]*?.-!", min_size=1, max_size=5).filter(lambda n: n not in (".", "..")), max_size=6),
    entry=st.text("ab[1]*?.-!", min_size=1, max_size=5),
)
def test_any_name_can_be_written_as_it_is(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], entry: str
) -> None:
    folder = tmp_path_factory.mktemp("n[a]mes")
    tree(folder, *names)
    for name in names:
        assert found(folder, name) == [name]
    if entry not in names and entry not in (".", ".."):
        assert set(found(folder, entry)) <= set(names)


# --- what is refused, and what a plan shows --------------------------------------------------------


def refusal(folder: Path, text: str) -> str:
    (folder / "spec.yaml").write_text(text)
    with pytest.raises(SpecError) as caught:
        check_experiments(load_experiments(folder / "spec.yaml"))
    return str(caught.value)


def test_held_out_files_are_checked_as_the_others_are(folder: Path) -> None:
    tree(folder, "own/a.jsonl", "own/b.txt")
    with_files = SPEC.replace("held_out: {every: 4}", "held_out: {files: [%s]}")
    assert wording("text_files.data_held_out_files", name="none.txt") in refusal(folder, with_files % "none.txt")
    assert wording("text_files.trained_too", name="0.txt") in refusal(folder, with_files % '"[0-2].txt"')
    assert wording("text_files.files_several_formats_jsonl") in refusal(folder, with_files % "own")
    assert wording("text_files.exactly_one_every_files") in refusal(
        folder, SPEC.replace("{every: 4}", "{every: 4, files: [a]}")
    )
    assert wording("text_files.offset_goes_every") in refusal(
        folder, SPEC.replace("{every: 4}", "{files: [a], offset: 1}")
    )
    assert wording("text_files.no_token_beginning") in refusal(folder, SPEC.replace("data:\n", "data:\n  bos: true\n"))


def test_a_copy_of_a_training_file_is_not_held_out(folder: Path) -> None:
    tree(folder, "own/b.text")
    shutil.copyfile(folder / "3.txt", folder / "own" / "a.text")
    path = folder / "spec.yaml"
    path.write_text(SPEC.replace("held_out: {every: 4}", "held_out: {files: [own]}"))
    with pytest.raises(SpecError, match=wording("text_files.text_trained_too_file")):
        compile_experiments([load_spec(path)])
    (folder / "own" / "a.text").unlink()
    graph = compile_experiments([load_spec(path)]).graph
    record = next(node.task for node in graph.nodes.values() if node.task.kind == "tokenize")
    assert set(record.inputs) == {"text", "held_out"}
    assert record.record.held_out_every == 0
    before = graph.id
    (folder / "own" / "b.text").write_text("another")
    assert compile_experiments([load_spec(path)]).graph.id != before


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be"])
def test_text_in_utf_16_is_refused_before_anything_runs(folder: Path, encoding: str) -> None:
    mark = b"\xfe\xff" if encoding == "utf-16-be" else b""
    (folder / "5.txt").write_bytes(mark + "text".encode(encoding))
    (folder / "spec.yaml").write_text(SPEC)
    with pytest.raises(SpecError) as caught:
        compile_experiments([load_spec(folder / "spec.yaml")])
    assert wording("text_files.data_files_txt_utf", folder=folder) in str(caught.value)
    assert wording("text_files.iconv_utf_utf_txt") in str(caught.value)


# --- environment variables -------------------------------------------------------------------------

ENVIRONMENT = {"DATA": "/data", "EMPTY": "", "HF_TOKEN": "hf_secret"}


@pytest.mark.parametrize(
    ("text", "means"),
    [
        ("${DATA}/a", "/data/a"),
        ("x/${DATA}${DATA}", "x//data/data"),
        ("${NONE:-b}/a", "b/a"),
        ("${EMPTY:-b}/a", "b/a"),
        ("${DATA:-b}/a", "/data/a"),
        ("$DATA/a", "$DATA/a"),
        ("plain", "plain"),
    ],
)
def test_variables_mean_what_they_mean_in_a_shell(text: str, means: str) -> None:
    assert expanded(text, ENVIRONMENT) == means


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("${NONE}/a", wording("text_files.environment_variable_none_not")),
        ("${EMPTY}/a", wording("text_files.environment_variable_empty_empty")),
        ("${NONE:-}", "is not set"),
        ("${HF_TOKEN}", wording("text_files.hf_token_looks_like")),
        ("${HF_TOKEN:-x}", wording("text_files.hf_token_looks_like")),
        ("${a b}", "'${a b}' is no variable"),
        ("${}", "'${}' is no variable"),
        ("${DATA", wording("text_files.data_no_variable")),
    ],
)
def test_a_variable_without_a_value_is_an_error(text: str, message: str) -> None:
    with pytest.raises(VariableError) as caught:
        expanded(text, ENVIRONMENT)
    assert message in caught.value.message


PLACES = {
    "data.files[0]": ("data.files", ["${NONE}/*.txt"]),
    "teacher.model": ("teacher", {"model": "${NONE}/model"}),
    "evaluate.tasks_folder": ("evaluate", {"tasks": ["x"], "tasks_folder": "${NONE}"}),
    "execution.store": ("execution.store", "s3://${NONE}/store"),
    "execution.tracking.mlflow.uri": ("execution.tracking", {"mlflow": {"uri": "http://${NONE}:5000"}}),
    "execution.tracking.wandb.project": ("execution.tracking", {"wandb": {"project": "${NONE}"}}),
    "data.held_out.files[0]": ("data.held_out", {"files": ["${NONE}/a"]}),
}


@pytest.mark.parametrize("place", PLACES)
def test_an_unset_variable_is_an_error_at_its_place(folder: Path, place: str) -> None:
    data = yaml.safe_load(SPEC)
    path, value = PLACES[place]
    *parents, last = path.split(".")
    section = data
    for part in parents:
        section = section[part]
    section[last] = value
    said = refusal(folder, yaml.safe_dump(data, sort_keys=False))
    assert wording("text_files.environment_variable_none_not_set", place=place) in said
    assert "spec.yaml:" in said
    assert CliRunner().invoke(main, ["validate", str(folder / "spec.yaml")]).exit_code == 2
    assert CliRunner().invoke(main, ["plan", str(folder / "spec.yaml")]).exit_code == 2


@pytest.mark.parametrize("place", ["files", "store"])
def test_a_variable_without_braces_is_no_name_of_a_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.setenv("PLACE", str(folder))
    old, new = {"files": ('"*.txt"', '"$PLACE/*.txt"'), "store": ("store: store", "store: $PLACE/store")}[place]
    assert "write ${PLACE}" in refusal(folder, SPEC.replace(old, new))
    monkeypatch.delenv("PLACE")
    (folder / "$PLACE").mkdir()
    write_texts(folder / "$PLACE")
    compile_experiments([load_spec(Writer(folder).text(SPEC.replace(old, new)))])


def test_ids_do_not_depend_on_variables_and_locations_do(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two"):
        (folder / name).mkdir()
        write_texts(folder / name)
    plain = compile_experiments([load_spec(Writer(folder).text(SPEC))]).graph
    path = folder / "spec.yaml"
    path.write_text(
        SPEC.replace('"*.txt"', '"${PLACE}/*.txt"').replace(
            "store: store", "store: ${STORE}\n  tracking: {mlflow: {uri: '${URI:-http://a:1}'}}"
        )
    )
    found = []
    for name in ("one", "two"):
        monkeypatch.setenv("PLACE", str(folder / name))
        monkeypatch.setenv("STORE", str(folder / f"store-{name}"))
        graph = compile_experiments([load_spec(path)]).graph
        assert set(graph.nodes) == set(plain.nodes)
        assert graph.tracking["mlflow"]["uri"] == "http://a:1"
        (source,) = graph.sources.values()
        assert all(file.startswith(f"{folder}/{name}/") for file in source.location["files"])
        assert source.location["names"] == [f"{i}.txt" for i in range(8)]
        assert graph.experiments[0].meaning["data"]["files"] == ["${PLACE}/*.txt"]
        assert CliRunner().invoke(main, ["plan", str(path)]).output.count(f"store-{name}")
        found.append(source.id)
    assert found[0] == found[1]
    monkeypatch.setenv("URI", "http://user:password@host")
    with pytest.raises(SpecError, match=wording("text_files.must_hold_no_user")):
        compile_experiments([load_spec(path)])
    monkeypatch.setenv("STORE", "ftp://x/y")
    result = CliRunner().invoke(main, ["plan", str(path)])
    assert result.exit_code == 2
    assert "execution.store" in result.output


def test_a_base_may_be_named_by_a_variable(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "base.yaml").write_text(SPEC)
    (folder / "spec.yaml").write_text("extends: ${BASES}/base.yaml\nname: other\n")
    with pytest.raises(SpecError, match=wording("text_files.bases_not_set")):
        load_spec(folder / "spec.yaml")
    monkeypatch.setenv("BASES", str(folder))
    assert load_spec(folder / "spec.yaml").spec.name == "other"


# --- anchors ---------------------------------------------------------------------------------------


def test_sections_for_anchors_alone_are_no_part_of_a_spec(folder: Path) -> None:
    specs = Writer(folder)
    plain = specs.compiled().graph
    shared = SPEC.replace("boomspec: 1\n", "x-training: &training {tokens: 2048, batch_tokens: 256}\nboomspec: 1\n")
    shared = shared.replace("distill:\n  tokens: 2048\n  batch_tokens: 256\n", "distill:\n  <<: *training\n")
    shared = shared.replace("    tokens: 4096\n    batch_tokens: 256\n", "    <<: *training\n    tokens: 4096\n")
    assert shared.count("<<") == 2
    assert set(specs.compiled(shared).graph.nodes) == set(plain.nodes)
    with_variants = (
        shared + "variants:\n  a: {distill: {<<: *training, tokens: 4096}}\n  b: {distill: {tokens: 4096}}\n"
    )
    specs.text(with_variants)
    a, b = (load_spec(f"{folder / 'spec.yaml'}#{name}").spec for name in "ab")
    assert a.distill == b.distill
    for command in (
        ["diff", f"{folder / 'spec.yaml'}#a", f"{folder / 'spec.yaml'}#b"],
        ["validate", str(folder / "spec.yaml")],
    ):
        assert CliRunner().invoke(main, command).exit_code == 0
    (folder / "more.yaml").write_text("extends: spec.yaml\nx-more: &m {lr: 1e-3}\ndistill: {optimizer: {<<: *m}}\n")
    assert load_spec(folder / "more.yaml").spec.distill.optimizer.lr == 1e-3


def test_what_is_wrong_in_an_anchor_is_said_at_its_line(folder: Path) -> None:
    text = "x-training: &training {tokens: 2048, batch_token: 256}\n" + SPEC.replace(
        "distill:\n  tokens: 2048\n", "distill:\n  <<: *training\n"
    )
    said = refusal(folder, text)
    assert wording("text_files.spec_yaml_distill_unknown", name="batch_token") in said
    assert "y-training" in refusal(folder, text.replace("x-training", "y-training"))
    assert len(list(itertools.takewhile(lambda line: line, said.splitlines()))) >= 3


def test_no_secret_comes_into_a_graph_by_a_path(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_KEY", "abcdefghijk")
    said = refusal(folder, SPEC.replace("store: store", "store: s3://bucket/${MY_API_KEY}"))
    assert wording("text_files.my_api_key_looks") in said
    assert "abcdefghijk" not in said
    assert os.environ["MY_API_KEY"] not in json.dumps(said)
