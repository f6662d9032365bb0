"""Reading a spec's text: what scalars mean, where everything stands, and what is refused."""

from pathlib import Path

import pytest
import yaml

from boomspec.core.errors import BoomspecError, Problem, SpecError
from boomspec.spec.document import MAX_BYTES, Document, parse_document, read_document
from boomspec.spec.yaml_reader import MAX_DEPTH, MAX_NODES, Location, dotted
from tests.messages import wording


def value_of(scalar: str) -> object:
    document = parse_document(f"key: {scalar}\n")
    assert not document.problems
    return document.data["key"]


def problems_of(text: str) -> list[Problem]:
    """Every problem of a text, whether it stopped the reader or not."""
    try:
        return list(parse_document(text).problems)
    except SpecError as error:
        return error.problems


def place_in(document: Document, location: Location, *, key: bool = False) -> tuple[int, int]:
    problem = document.problem(location, "", key=key)
    return problem.line, problem.column


def only_problem(text: str) -> tuple[int, int, str]:
    (problem,) = problems_of(text)
    return problem.line, problem.column, problem.message


@pytest.mark.parametrize(
    ("scalar", "value"),
    [
        ("", None),
        ("~", None),
        ("null", None),
        ("NULL", None),
        ("true", True),
        ("True", True),
        ("FALSE", False),
        ("0", 0),
        ("-7", -7),
        ("+7", 7),
        ("1_000_000", 1_000_000),
        ("0x1F", 31),
        ("0o17", 15),
        ("3e-4", 3e-4),
        ("1e6", 1e6),
        (".5", 0.5),
        ("1.", 1.0),
        ("-1.5E+3", -1500.0),
        ("1_000.5", 1000.5),
    ],
)
def test_unquoted_scalars_follow_yaml_1_2(scalar: str, value: object) -> None:
    read = value_of(scalar)
    assert (read, type(read)) == (value, type(value))


TEXTS = """no off yes on y N tRUE nan inf 1:30 2024-01-31 12:30:45.5 4.2M 1% 1_ _1 1__0 0b101 -0x10 1.2.3 1e . =
nULL ./folder a-b 1,000"""


@pytest.mark.parametrize("scalar", TEXTS.split())
def test_everything_else_unquoted_is_text(scalar: str) -> None:
    assert value_of(scalar) == scalar


@pytest.mark.parametrize("quoted", ['"1"', "'true'", '"null"', "'010'", '".nan"', '"<<"', "|-\n  3e-4\n", ">-\n  no\n"])
def test_quoted_and_block_scalars_are_always_text(quoted: str) -> None:
    assert isinstance(value_of(quoted), str)


def test_lists_are_tuples_and_mappings_are_dicts_in_the_order_of_the_file() -> None:
    data = parse_document("b: [1, [2, x]]\na: {d: 1, c: {}}\n").data
    assert data == {"b": (1, (2, "x")), "a": {"d": 1, "c": {}}}
    assert list(data) == ["b", "a"]
    assert list(data["a"]) == ["d", "c"]


@pytest.mark.parametrize("number", ["010", "-01", "00", "0_1"])
def test_a_number_with_a_leading_zero_is_refused_because_readers_disagree_about_it(number: str) -> None:
    line, column, message = only_problem(f"revision: {number}\n")
    assert (line, column) == (1, 11)
    assert "cannot start with 0" in message


@pytest.mark.parametrize("number", [".nan", ".inf", "-.INF", "1e999", "-1e999", "9" * 20, "9" * 5000, "0x" + "f" * 40])
def test_a_number_that_is_not_finite_or_not_of_64_bits_is_refused(number: str) -> None:
    line, column, message = only_problem(f"a: 1\nlr: {number}\n")
    assert (line, column) == (2, 5)
    assert "not a finite number" in message or "too large a number" in message


DOCUMENT = parse_document(
    """\
# a comment
name: tiny
distill:
  losses: {kl: {weight: 1}}
  sizes:
    - 1B
    - &half 50%
    - [1, 2]
again: *half
empty:
"""
)


@pytest.mark.parametrize(
    ("location", "place", "key_place"),
    [
        ((), (2, 1), (2, 1)),
        (("name",), (2, 7), (2, 1)),
        (("distill",), (4, 3), (3, 1)),
        (("distill", "losses", "kl", "weight"), (4, 25), (4, 17)),
        (("distill", "sizes"), (6, 5), (5, 3)),
        (("distill", "sizes", 0), (6, 7), (6, 7)),
        (("distill", "sizes", 2, 1), (8, 11), (8, 11)),
        (("again",), (9, 8), (9, 1)),
        (("empty",), (10, 7), (10, 1)),
    ],
)
def test_every_value_and_key_knows_its_line_and_column(
    location: tuple[str | int, ...], place: tuple[int, int], key_place: tuple[int, int]
) -> None:
    assert place_in(DOCUMENT, location) == place
    assert place_in(DOCUMENT, location, key=True) == key_place


def test_what_is_absent_has_the_place_of_its_nearest_ancestor() -> None:
    assert place_in(DOCUMENT, ("distill", "losses", "cosine", "weight")) == place_in(DOCUMENT, ("distill", "losses"))
    assert place_in(DOCUMENT, ("distill", "sizes", 7)) == place_in(DOCUMENT, ("distill", "sizes"))
    assert place_in(DOCUMENT, ("nothing", "here"), key=True) == place_in(DOCUMENT, ())
    assert place_in(DOCUMENT, ("distill", "losses", "cosine"), key=True) == (4, 3)


def test_columns_count_characters_also_after_wide_ones_and_windows_line_ends() -> None:
    document = parse_document('a: {"\U0001f600é": 1, b: 2}\r\nc: 3\r\n')
    assert place_in(document, ("a", "b"), key=True) == (1, 14)
    assert place_in(document, ("c",)) == (2, 4)


def test_a_value_inside_of_an_alias_has_the_place_of_its_anchor() -> None:
    document = parse_document("a: &x {b: 1}\nc: *x\n")
    assert document.data == {"a": {"b": 1}, "c": {"b": 1}}
    assert place_in(document, ("c",)) == (2, 4)
    assert place_in(document, ("c", "b")) == (1, 11)


def test_an_alias_gives_a_copy_of_its_value() -> None:
    data = parse_document("a: &x {b: 1}\nc: *x\n").data
    data["a"]["b"] = 2
    assert data["c"] == {"b": 1}


def test_a_duplicate_key_is_a_problem_that_names_the_first_place() -> None:
    assert only_problem("a:\n  x: 1\n  y: 2\n  x: 3\n") == (
        4,
        3,
        wording("document.duplicate_key_first_given", name="x"),
    )


def test_a_key_spelt_in_two_ways_is_still_a_duplicate() -> None:
    assert only_problem("x: 1\n'x': 2\n")[:2] == (2, 1)


@pytest.mark.parametrize(
    ("key", "shown"),
    [("1", "1"), ("null", "null"), ("true", "true"), ("1.5", "1.5"), ("[a, b]", "a list"), ("{a: b}", "a mapping")],
)
def test_a_key_that_is_not_text_is_a_problem(key: str, shown: str) -> None:
    assert only_problem(f"a: 1\n? {key}\n: 2\n") == (2, 3, wording("document.key_must_text_not", shown=shown))


def test_the_words_that_yaml_1_1_took_for_booleans_are_keys() -> None:
    assert parse_document("on: 1\ny: 2\nno: 3\n").data == {"on": 1, "y": 2, "no": 3}


@pytest.mark.parametrize(
    "value",
    ["!!python/object:os.system x", "!foo bar", "!!binary aGk=", "!!set {a, b}", "!!str 1", "! x", "!!omap [a: 1]"],
)
def test_tags_are_refused_and_construct_nothing(value: str) -> None:
    assert only_problem(f"a: 1\nb: {value}\n") == (2, 4, wording("document.tags_not_allowed"))


def test_a_merge_key_brings_what_is_not_written_out_beside_it() -> None:
    text = "x-a: &a {b: 1, c: {d: 2}}\nx-b: &b\n  c: 3\n  e: 4\nq:\n  e: 5\n  <<: [*a, *b]\nr: {<<: *b, c: null}\n"
    document = parse_document(text)
    assert document.data["q"] == {"e": 5, "b": 1, "c": {"d": 2}}
    assert document.data["r"] == {"c": None, "e": 4}
    assert yaml.safe_load(text) == document.data
    assert place_in(document, ("q", "c", "d")) == (1, 23)  # of the value that is meant, not of the merge
    assert place_in(document, ("q", "e")) == (6, 6)
    document.data["q"]["c"]["d"] = 7
    assert document.data["x-a"]["c"]["d"] == 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: 1\nb: {<<: 3}\n", (2, 5, wording("document.merge_key_takes_mapping"))),
        ("a: &a [1]\nb: {<<: *a}\n", (2, 5, wording("document.merge_key_takes_mapping_not"))),
        ("b: {<<: *a}\n", (1, 9, wording("document.alias_no_anchor_above", name="*a"))),
        ("a: &a {x: 1}\nb: {<<: *a, <<: *a}\n", (2, 13, "a second merge key (<<)")),
        ("a: &a\n  b: {<<: *a}\n", (2, 11, wording("document.alias_inside_own_anchor", name="*a"))),
        (
            "a: &a {x: 010}\nb: {<<: *a}\nc: *a\n",
            (1, 11, wording("document.number_cannot_start_some", name="010")),
        ),
        ("a: &a {x: 1}\nb: {<<: *a, y: 1, y: 2}\n", (2, 19, wording("document.duplicate_key_first_given", name="y"))),
    ],
)
def test_a_merge_that_cannot_be_is_one_problem(text: str, expected: tuple[int, int, str]) -> None:
    assert only_problem(text) == expected


def test_what_could_not_be_read_is_damaged_wherever_it_is_repeated() -> None:
    document = parse_document("a: &a {x: 010}\nb: {<<: *a}\nc: *a\nd: {<<: [*a]}\n")
    assert all(document.is_damaged((name, "x")) for name in "abcd")


def test_an_unknown_alias_is_a_problem_with_a_suggestion() -> None:
    (problem,) = problems_of("a: &weights 1\nb: *wieghts\n")
    assert (problem.line, problem.column, problem.where) == (2, 4, "b")
    assert problem.hint == wording("cli.did_you_mean", name="weights")


def test_a_value_that_holds_itself_is_a_problem() -> None:
    assert only_problem("a: &x\n  b: [1, *x]\n") == (2, 10, wording("document.alias_inside_own_anchor", name="*x"))


def test_an_anchor_that_is_defined_twice_is_a_problem() -> None:
    assert only_problem("a: &x 1\nb: &x 2\nc: *x\n") == (2, 4, wording("document.anchor_defined_twice"))


def test_aliases_that_would_explode_are_stopped_before_they_do() -> None:
    levels = [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 40)]
    line, _, message = only_problem("\n".join(["a0: &a0 [x, x, x, x, x, x, x, x, x]", *levels]))
    assert line <= 6
    assert message == wording("document.more_than_values_one", max_nodes=MAX_NODES)


def test_too_many_values_are_a_problem_without_aliases_too() -> None:
    assert only_problem("a:\n" + "- 1\n" * MAX_NODES)[0] == MAX_NODES - 1
    assert not problems_of("a:\n" + "- 1\n" * (MAX_NODES - 3))


@pytest.mark.parametrize("opening", ["[", "{a: ", "- ", "? "])
def test_deep_nesting_is_a_problem_and_no_recursion_error(opening: str) -> None:
    assert only_problem("a:\n  " + opening * 100_000)[2] == wording(
        "document.nested_more_than_levels", max_depth=MAX_DEPTH
    )


def test_nesting_by_aliases_counts_as_deep_as_what_they_stand_for() -> None:
    nest = "[" * 40 + "{}" + "]" * 40
    levels = [f"a{i}: &a{i} {nest.format(f'*a{i - 1}')}" for i in range(1, 30)]
    text = "\n".join([f"a0: &a0 {nest.format('1')}", *levels])
    assert only_problem(text)[::2] == (2, wording("document.nested_more_than_levels", max_depth=MAX_DEPTH))


def test_fifty_levels_are_still_read() -> None:
    assert not problems_of("a: " + "[" * (MAX_DEPTH - 1) + "]" * (MAX_DEPTH - 1))


@pytest.mark.parametrize(
    ("text", "line", "column", "message"),
    [
        ("a:\n\tb: 1\n", 2, 1, wording("document.tab_not_allowed_here")),
        ("a: @x\n", 1, 4, wording("document.unquoted_text_cannot_start")),
        ("a: 1\n  b: 2\n", 2, 4, wording("document.not_allowed_here")),
        ("a: 1\ndistill\nb: 2\n", 2, 1, "expected 'key: value'"),
        ("a:\n  b: 1\n c: 2\n", 3, 2, wording("document.does_not_fit_lines")),
        ("a: 1\nb: [1,\n", 2, 7, wording("document.value_missing_here")),
        ("a: [1\nb: 2\n", 2, 2, "expected ',' or ']'"),
        ("a: {b: 1\nc: 2\n", 2, 2, "expected ',' or '}'"),
        ("a: 1\nb: 'x\nc: 2\n", 2, 4, wording("document.these_quotes_not_closed")),
        ("a: |x\n  b\n", 1, 5, wording("document.not_valid_yaml_expected", name="x")),
        ('a: "\\UFFFFFFFF"\n', 1, 2, wording("document.not_valid_yaml_number")),
        ("%YAML 1." + "9" * 5000 + "\n---\na: 1\n", 1, 1, wording("document.not_valid_yaml_number")),
        ("%YAML 1.1\n---\na: 1\n", 1, 1, wording("document.directives_not_allowed")),
        ("---\na: 1\n---\nb: 2\n", 3, 1, wording("document.second_document_starts_here")),
        ("", 1, 1, wording("document.file_holds_no_data")),
        ("\n# only a comment\n", 1, 1, wording("document.file_holds_no_data")),
        ("- 1\n", 1, 1, wording("document.expected_mapping_top_file")),
        ("just text\n", 1, 1, wording("document.expected_mapping_top_file_not")),
        ("---\n", 1, 4, wording("document.expected_mapping_top_file_not_null")),
        ("a: x\x07\n", 1, 5, wording("document.character_not_allowed")),
        ("a: 1\nb: x\u2028y\n", 2, 5, wording("document.character_not_allowed_2")),
        ("\ufeffa: 1\n", 1, 1, wording("document.file_starts_byte_order")),
        ('a: "\\ud800"\n', 1, 4, wording("document.text_cannot_hold_character")),
        ('a: "\\0"\n', 1, 4, wording("document.text_cannot_hold_character_2")),
    ],
)
def test_what_is_no_yaml_is_one_problem_at_its_place(text: str, line: int, column: int, message: str) -> None:
    assert only_problem(text) == (line, column, message)


def test_a_start_mark_and_an_end_mark_of_the_document_are_fine() -> None:
    assert parse_document("---\na: 1\n...\n").data == {"a": 1}


def test_all_problems_come_at_once_and_those_before_a_syntax_error_too() -> None:
    text = "a: 1\na: 2\nb: !x y\n7: 1\nc: 010\nd: [\n"
    assert [problem.line for problem in problems_of(text)] == [2, 3, 4, 5, 6]


def read(tmp_path: Path, data: bytes) -> Document:
    file = tmp_path / "spec.yaml"
    file.write_bytes(data)
    return read_document(file)


def test_a_file_is_read_with_its_name_and_text(tmp_path: Path) -> None:
    document = read(tmp_path, "a: é\n".encode())
    assert (document.file, document.text, document.data) == (tmp_path / "spec.yaml", "a: é\n", {"a": "é"})


def test_bytes_that_are_not_utf8_are_a_problem_at_their_place(tmp_path: Path) -> None:
    with pytest.raises(SpecError) as caught:
        read(tmp_path, "a: 1\nb: é".encode() + b"\xe9\n")
    (problem,) = caught.value.problems
    assert (problem.line, problem.column, problem.message) == (2, 5, wording("document.not_utf_text_byte"))
    assert "2 | b: é\ufffd" in str(caught.value)


def test_utf16_is_recognised(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="UTF-16"):
        read(tmp_path, "a: 1\n".encode("utf-16"))


def test_a_file_that_is_too_large_is_not_parsed(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="larger than 1,000,000 bytes"):
        read(tmp_path, b"#" * (MAX_BYTES + 1))


def test_a_missing_file_names_the_one_that_was_meant(tmp_path: Path) -> None:
    (tmp_path / "quickstart.yaml").write_text("a: 1\n")
    with pytest.raises(BoomspecError) as caught:
        read_document(tmp_path / "quikstart.yaml")
    assert caught.value.hint == wording("cli.did_you_mean", name="quickstart.yaml")


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(BoomspecError) as caught:
        read_document(tmp_path / "absent" / "spec.yaml")
    assert caught.value.hint == wording("document.there_no_yaml_file", value=tmp_path / "absent")


def test_a_folder_in_place_of_a_file_names_the_specs_in_it(tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text("a: 1\n")
    with pytest.raises(BoomspecError, match="is a folder") as caught:
        read_document(tmp_path)
    assert caught.value.hint == wording("document.give_file_one_yaml")


@pytest.mark.parametrize("name", ["a\0b.yaml", "x" * 5000])
def test_a_path_that_cannot_exist_is_an_error_for_people(name: str) -> None:
    with pytest.raises(BoomspecError, match="cannot be read"):
        read_document(Path(name))


def test_locations_are_written_as_people_write_them() -> None:
    assert dotted(("distill", "losses", "kl")) == "distill.losses.kl"
    assert dotted(("sizes", 2, "a")) == "sizes[2].a"
    assert dotted(("variants", "no-cosine", "a b")) == "variants.no-cosine.'a b'"
