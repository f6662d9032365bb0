"""Loading a broken spec gives a spec or an error for people, never another exception.

Mutants of real specs, specs with values of the wrong kind in the right places, and texts made of YAML's signs.
"""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from boomspec.compile.check import check_experiments
from boomspec.core.errors import SpecError
from boomspec.spec.experiments import load_experiments

SPECS = Path(__file__).parents[2] / "specs"

RICH = """\
# Every section, and YAML's comforts.
boomspec: 1
name: rich
seed: 7
teacher:
  model: "org/model"
  revision: main
student:
  keep: {every: 2, first: 1, last: 2}
  train_embedding: false
data:
  files:
    - 'a.txt'
    - b/*.txt
  sequence_length: 2_048
  skip: 50k
  held_out: {every: 20, offset: 0}
distill: &training
  tokens: 2.1B
  batch_tokens: 4.2M
  optimizer: {lr: 3e-4, betas: [0.9, 0.95], weight_decay: .1, clip: 1.0}
  schedule:
    kind: cosine
    warmup: &share 1%
    final: 0
  losses:
    cross_entropy: {weight: 1.0}
    kl: {weight: 0.1, temperature: 1.0}
    hidden_cosine: null
interpolate:
  order: [3, 1, 2]
  sizes: [2.5B, 60%..80% step 5%, 24 layers, 6GiB, {fits: 8GiB, context: 4096, batch: 2}]
  choose: nearest
evaluate:
  tasks:
    - arc_easy
    - {task: hellaswag, num_fewshot: 5, limit: 100}
  held_out: {max_tokens: 10k}
  precision: fp32
baselines: [naive_pruning, {random_init: {tokens: 1M}}]
execution:
  retries: 3
  distill: {gpus: 1, micro_batch: 2}
  store: |-
    folder
"""
COMPOSED = """\
# A base, variants and a sweep.
extends: base.yaml
name: composed
student: {train_embedding: null}
distill:
  losses: {kl: null, hidden_cosine: &cosine {weight: 2.0}}
variants:
  no-cosine: {distill: {losses: {hidden_cosine: null}}}
  other.layers:
    student:
      keep: {every: 3, last: null}
    interpolate: {order: [1, 0], choose: null}
  again: {distill: {losses: {hidden_cosine: *cosine}, tokens: 1M}}
sweep:
  seed: [0, 1]
  distill.optimizer.lr: [1e-4, null]
  data.held_out: [null, {every: 3}]
  interpolate.sizes: [["24 layers", 80%]]
"""
EXTENDED = ("qwen3-4b.yaml", "quickstart.yaml")
BASES = {"base.yaml": RICH} | {name: (SPECS / name).read_text(encoding="utf-8") for name in EXTENDED}
TEXTS = [RICH, COMPOSED, COMPOSED, *(path.read_text(encoding="utf-8") for path in sorted(SPECS.glob("*.yaml")))]

SNIPPETS = [
    *[
        ":",
        ": ",
        "- ",
        "? ",
        "\n",
        "\r",
        "\t",
        " ",
        "  ",
        "#",
        " #",
        ",",
        "[",
        "]",
        "{",
        "}",
        "'",
        '"',
        "|",
        ">",
        "|+9\n",
    ],
    *["&a ", "*a", "*share", "*training", "<<: *training", "!!python/object:os.system ", "! ", "!<x> ", "%YAML 1.1\n"],
    *["---\n", "...\n", "--- |\n", "@", "`", "~", "null", "yes", "no", "010", "1:30", "2024-01-31", ".nan", "-.inf"],
    *[
        "1e999",
        "9" * 400,
        "9" * 5000,
        "-1",
        "0",
        "1e308T",
        "1e300GiB",
        "24 layers",
        "-0.0",
        "0x_",
        "100%",
        "3e-4",
        "1_0",
    ],
    *['"\\ud800"', '"\\0"', '"\\UFFFFFFFF"', '"\\x"', "\x00", "\x1b[2J", "\x85", "\u2028", "\ufeff", "é", "\U0001f600"],
    *["a: &b [*b]\n", "[" * 60, "{a: " * 60, "- " * 60, "? " * 60, "x" * 2000],
]

Change = tuple[str, int, int, str]
CHANGES = st.lists(
    st.tuples(
        st.sampled_from(["delete", "repeat", "swap", "indent", "insert", "replace", "flip", "cut"]),
        st.integers(0, 10**4),
        st.integers(0, 10**4),
        st.sampled_from(SNIPPETS),
    ),
    min_size=1,
    max_size=4,
)
QUIET = settings(derandomize=True, deadline=None, database=None, max_examples=200)


def mutated(text: str, changes: list[Change]) -> str:
    """Apply changes to lines and characters; the numbers say which."""
    for how, first, second, snippet in changes:
        lines = text.splitlines(keepends=True) or [""]
        i, j = first % len(lines), second % len(lines)
        at = first % (len(text) + 1)
        match how:
            case "delete":
                del lines[i]
            case "repeat":
                lines.insert(j, lines[i])
            case "swap":
                lines[i], lines[j] = lines[j], lines[i]
            case "indent":
                lines[i] = " " * (second % 9) + lines[i].lstrip(" ")
            case "insert":
                lines = [text[:at], snippet, text[at:]]
            case "replace":  # what stands behind a colon
                key, colon, _ = lines[i].partition(": ")
                lines[i] = f"{key}{colon}{snippet}\n"
            case "flip":
                lines = [text[:at], text[at : at + 1].swapcase() if second % 2 else chr(second % 256), text[at + 1 :]]
            case "cut":
                lines = [text[:at]]
        text = "".join(lines)
    return text


def check(data: bytes, file: Path) -> None:
    """Load the bytes as a spec; an error has to be one for people, with places inside of the file."""
    file.write_bytes(data)
    try:
        check_experiments(load_experiments(file))
    except SpecError as error:
        refused = error
    else:
        return
    assert refused.problems
    for problem in refused.problems:
        lines = refused.lines.get(problem.file or refused.file) or [""]
        assert 1 <= problem.line <= len(lines)
        assert 1 <= problem.column <= len(lines[problem.line - 1]) + 1
        assert problem.message
        assert f"{problem.where}{problem.message}{problem.hint}".isprintable()
    assert all(line.isprintable() for line in str(refused).split("\n"))
    json.dumps(refused.to_json(), ensure_ascii=False).encode("utf-8")


@pytest.fixture(scope="session")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz")
    for name, text in BASES.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder / "spec.yaml"


@pytest.mark.parametrize("text", TEXTS)
def test_the_specs_that_are_mutated_are_valid(text: str, file: Path) -> None:
    file.write_text(text, encoding="utf-8")
    load_experiments(file)


@QUIET
@given(text=st.sampled_from(TEXTS), changes=CHANGES)
def test_a_mutated_spec_never_gives_a_traceback(text: str, changes: list[Change], file: Path) -> None:
    check(mutated(text, changes).encode("utf-8", errors="replace"), file)


@QUIET
@given(text=st.sampled_from(TEXTS), at=st.integers(0, 2000), junk=st.binary(min_size=1, max_size=20))
def test_bytes_in_the_middle_of_a_spec_never_give_a_traceback(text: str, at: int, junk: bytes, file: Path) -> None:
    data = text.encode("utf-8")
    check(data[:at] + junk + data[at + len(junk) :], file)


@QUIET
@given(parts=st.lists(st.sampled_from([*SNIPPETS, "a", "b: ", "\n  ", "name"]), max_size=25))
@example(parts=[])
def test_texts_made_of_the_signs_of_yaml_never_give_a_traceback(parts: list[str], file: Path) -> None:
    check("".join(parts).encode("utf-8"), file)


@settings(QUIET, max_examples=50)
@given(data=st.binary(max_size=200))
def test_any_bytes_never_give_a_traceback(data: bytes, file: Path) -> None:
    check(data, file)


ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from(
        [
            "",
            "no",
            "-1",
            "1e308T",
            "1e300 layers",
            "1..2",
            "1e9..1e308B step 1e-9",
            "0 layers",
            "9" * 400,
            "1e400",
            "50%",
            "a\0b",
            "\x1b[2J",
            "x" * 999,
        ]
    ),
    st.text(max_size=8),
)
ODD_VALUE = st.one_of(ODD, st.lists(ODD, max_size=3), st.dictionaries(st.text(max_size=8), ODD, max_size=3))
PARSED = [yaml.safe_load(text) for text in TEXTS]


def paths(value: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """The way to every value below the top, the deepest first."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, inner in items for found in [*paths(inner, (*path, key)), (*path, key)]]


PATHS = [(index, path) for index, spec in enumerate(PARSED) for path in paths(spec)]


@QUIET
@given(place=st.sampled_from(PATHS), value=ODD_VALUE, key=st.none() | st.text(max_size=8))
def test_odd_values_and_keys_in_the_right_places_never_give_a_traceback(
    place: tuple[int, tuple[str | int, ...]], value: object, key: str | None, file: Path
) -> None:
    index, path = place
    spec = copy.deepcopy(PARSED[index])
    holder = spec
    for item in path[:-1]:
        holder = holder[item]
    if key is not None and isinstance(holder, dict):
        holder[key] = holder.pop(path[-1])
    else:
        holder[path[-1]] = value
    check(json.dumps(spec).encode("utf-8"), file)
