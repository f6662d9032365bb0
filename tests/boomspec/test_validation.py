"""What `validate` says about a wrong document: the place, the message, what is allowed. On small models of its own."""

from datetime import date
from typing import Annotated, Any, Literal

import pytest
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from boomspec.core.errors import Problem, SpecError
from boomspec.core.types import Bytes, Count, Number, ShareField, SizesField, Strict
from boomspec.spec.document import parse_document
from boomspec.spec.validate import FieldError, validate
from tests.messages import wording


class Rule(Strict):
    every: Annotated[int, Field(ge=2, description="Keep one of so many layers.")]
    first: int = 1


def form(value: Any) -> str:
    return "list" if isinstance(value, tuple) else "rule" if isinstance(value, dict | Rule) else "count"


def by_size(value: tuple[int, ...]) -> tuple[int, ...]:
    if list(value) != sorted(value):
        raise FieldError("layers must be increasing", hint="sort them")
    return value


Indices = Annotated[tuple[Annotated[int, Field(ge=0)], ...], AfterValidator(by_size)]


class Student(Strict):
    keep: Annotated[
        Annotated[int, Tag("count")] | Annotated[Indices, Tag("list")] | Annotated[Rule, Tag("rule")],
        Discriminator(form),
    ] = 4
    drop: int | Indices | Rule | None = None


class Optimizer(Strict):
    lr: Annotated[Number, Field(gt=0)] = 3e-4
    betas: tuple[Number, Number] = (0.9, 0.95)


class Schedule(Strict):
    kind: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: ShareField | None = None


class Distill(Strict):
    tokens: Annotated[Count, Field(gt=0, description="Training tokens in all.")]
    batch_tokens: Annotated[Count, Field(gt=0)] = 1
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()


class Local(Strict):
    kind: Literal["local"]
    files: tuple[str, ...]


class Hub(Strict):
    kind: Literal["hub"]
    dataset: str


class Nothing(Strict):
    pass


class Control(Strict):
    naive_pruning: Nothing | None = None
    random_init: Nothing | None = None


class Range(Strict):
    low: int = 0
    high: int = 1

    @model_validator(mode="after")
    def _ordered(self) -> "Range":
        if self.low > self.high:
            raise FieldError(f"low {self.low} is above high {self.high}", hint="swap them", at=("low",))
        return self


def checked_by_another_model(value: Any) -> Any:
    return Rule.model_validate(value, strict=True).every


class Toy(Strict):
    """Shaped like a spec: nested models, unions, quantities, variants."""

    name: str = "toy"
    revision: Annotated[str, Field(min_length=2, max_length=8, pattern="^[a-z]+$")] = "main"
    tied: bool = True
    layers: Annotated[int, Field(gt=0, le=2**32 - 1, multiple_of=2)] = 2
    share: Annotated[float, Field(lt=1)] = 0.5
    store: Bytes = 0
    student: Student = Student()
    distill: Distill | None = None
    sizes: Literal["all"] | tuple[SizesField, ...] = "all"
    size: SizesField | Literal["all"] = "all"
    data: Annotated[Local | Hub, Field(discriminator="kind")] | None = None
    source: Local | Hub | None = None
    variants: dict[str, Distill | None] = Field(default_factory=dict)
    weights: dict[Literal["kl", "cosine"], Number] = Field(default_factory=dict)
    bounds: Range = Range()
    files: Annotated[tuple[str, ...], Field(min_length=1, max_length=2)] = ("a",)
    one_of: Literal["all"] | bool = True
    controls: tuple[Annotated[Control, BeforeValidator(lambda v: {v: {}} if isinstance(v, str) else v)], ...] = ()
    inner: Annotated[int, BeforeValidator(checked_by_another_model)] = 2
    text: Annotated[str, BeforeValidator(lambda v: v)] = Field(default="", alias="in")

    @field_validator("name")
    @classmethod
    def _plain(cls, name: str) -> str:
        if "/" in name:
            raise AssertionError(f"'{name}' has a slash")
        return name


def problems_of(text: str, model: type[BaseModel] = Toy) -> list[Problem]:
    with pytest.raises(SpecError) as caught:
        validate(model, parse_document(text, "spec.yaml"))
    return caught.value.problems


def only_problem(text: str) -> Problem:
    (problem,) = problems_of(text)
    return problem


def test_a_valid_document_becomes_the_model() -> None:
    text = """
    student: {keep: [0, 2], drop: {every: 2}}
    distill: {tokens: 2.1B, optimizer: {lr: 3e-4, betas: [0, 1]}, schedule: {warmup: 1%}}
    sizes: [24 layers, 2.5B]
    variants: {short: {tokens: 1M}, none: null}
    data: {kind: local, files: [a.txt]}
    in: x
    """
    toy = validate(Toy, parse_document(text))
    assert toy.student == Student(keep=(0, 2), drop=Rule(every=2))
    assert toy.distill is not None
    assert (toy.distill.tokens, toy.distill.optimizer.betas) == (2_100_000_000, (0.0, 1.0))
    assert [size.sizes[0].value for size in toy.sizes if not isinstance(size, str)] == [24, 2.5e9]
    assert toy.variants["none"] is None
    assert toy.data == Local(kind="local", files=("a.txt",))
    assert toy.text == "x"


CASES = """\
# keys

nam: x
^ unknown key 'nam'
  hint: did you mean 'name'? allowed here: name, revision, tied, layers, ...

distill: {tokens: 1, batch_token: 1}
                     ^ distill: unknown key 'batch_token'
  hint: did you mean 'batch_tokens'? allowed here: tokens, batch_tokens, optimizer, schedule

distill: {tokens: 1, lr: 1}
                     ^ distill: unknown key 'lr'
  hint: 'lr' is a key of 'optimizer'; allowed here: tokens, batch_tokens, optimizer, schedule

variants: {a: {tokens: 1, b: 1}}
                          ^ variants.a: unknown key 'b'
  hint: allowed here: tokens, batch_tokens, optimizer, schedule

distill: {batch_tokens: 1}
^ distill: missing 'tokens'
  hint: Training tokens in all.

variants: {a: {}}
           ^ variants.a: missing 'tokens'
  hint: Training tokens in all.

weights: {kl: 1, cosin: 2}
                 ^ weights.cosin: key 'cosin' is not allowed
  hint: did you mean 'cosine'? allowed: kl, cosine

text: x
^ unknown key 'text'
  hint: allowed here: name, revision, tied, layers, ...

# kinds of values

tied: no
      ^ tied: expected true or false, not 'no'
  hint: write false

tied: On
      ^ tied: expected true or false, not 'On'
  hint: write true

tied: 'true'
      ^ tied: expected true or false, not 'true'
  hint: write true

tied: 0
      ^ tied: expected true or false, not 0
  hint: write false

tied: maybe
      ^ tied: expected true or false, not 'maybe'
  hint: write true or false

layers: '4'
        ^ layers: expected a whole number, not '4'
  hint: remove the quotes

layers: 4.5
        ^ layers: expected a whole number, not 4.5

layers: 1e6
        ^ layers: expected a whole number, not 1000000.0
  hint: write 1000000

layers: true
        ^ layers: expected a whole number, not true

layers: four
        ^ layers: expected a whole number, not 'four'

layers:
^ layers: expected a whole number, not null

share: '0.5'
       ^ share: expected a number, not '0.5'
  hint: remove the quotes

name: 12
      ^ name: expected text, not 12
  hint: put it in quotes

name: true
      ^ name: expected text, not true
  hint: put it in quotes

name: [a]
      ^ name: expected text, not a list

files: a.txt
       ^ files: expected a list, not 'a.txt'
  hint: write ['a.txt']

files: {a: b}
^ files: expected a list, not a mapping

distill: 3
         ^ distill: expected a mapping, not 3
  hint: keys of the mapping: tokens, batch_tokens, optimizer, schedule

bounds:
^ bounds: expected a mapping, not null
  hint: keys of the mapping: low, high

variants: [a]
          ^ variants: expected a mapping, not a list

# limits

layers: -2
        ^ layers: must be greater than 0, not -2

layers: 5_000_000_000
        ^ layers: must be at most 4294967295, not 5000000000

layers: 3
        ^ layers: must be a multiple of 2, not 3

share: 1
       ^ share: must be less than 1, not 1

distill: {tokens: -4.2M}
                  ^ distill.tokens: must be greater than 0, not '-4.2M'

files: []
       ^ files: must have at least 1 item, not 0

files: [a, b, c]
       ^ files: must have at most 2 items, not 3

distill: {tokens: 1, optimizer: {betas: [1]}}
                                        ^ distill.optimizer.betas: must have 2 items, not 1

revision: a
          ^ revision: must have at least 2 characters, not 1

revision: abcdefghi
          ^ revision: must have at most 8 characters, not 9

revision: A-1
          ^ revision: 'A-1' does not have the right form
  hint: it must match the pattern ^[a-z]+$

# choices

distill: {tokens: 1, schedule: {kind: cosin}}
                                      ^ distill.schedule.kind: 'cosin' is not allowed
  hint: did you mean 'cosine'? allowed: cosine, linear, constant

data: {kind: hup}
             ^ data.kind: 'hup' is not allowed
  hint: did you mean 'hub'? allowed: local, hub

data: {files: [a]}
^ data: missing 'kind'
  hint: allowed: local, hub

data: 3
      ^ data: expected a mapping, not 3

data: {kind: hub, files: [a], dataset: x}
                  ^ data: unknown key 'files'
  hint: allowed here: kind, dataset

# quantities

distill: {tokens: 4.2Q}
                  ^ distill.tokens: expected a count such as 1000, 50k, 4.2M or 2.1B, not '4.2Q'

distill: {tokens: no}
                  ^ distill.tokens: expected a count such as 1000, 50k, 4.2M or 2.1B, not 'no'

distill: {tokens: }
          ^ distill.tokens: expected a count such as 1000, 50k, 4.2M or 2.1B, not null

store: {}
^ store: expected a size in bytes such as 500MB or 6GiB, not a mapping

# validators

student: {keep: [2, 1]}
                ^ student.keep: layers must be increasing
  hint: sort them

bounds: {high: 2, low: 3}
                       ^ bounds.low: low 3 is above high 2
  hint: swap them

name: a/b
      ^ name: 'a/b' has a slash

controls: [naive_prunin]
           ^ controls[0]: 'naive_prunin' is not allowed
  hint: did you mean 'naive_pruning'? allowed here: naive_pruning, random_init

controls: [{random_init: {a: 1}}]
                          ^ controls[0].random_init: unknown key 'a'
  hint: no keys are allowed here

inner: {every: x}
               ^ inner.every: expected a whole number, not 'x'

inner: {every: 2, a: 1}
                  ^ inner: unknown key 'a'

# unions

student: {keep: x}
                ^ student.keep: expected a whole number, a list or a mapping, not 'x'
  hint: keys of the mapping: every, first

student: {keep: }
          ^ student.keep: expected a whole number, a list or a mapping, not null
  hint: keys of the mapping: every, first

student: {keep: {evry: 2}}
                 ^ student.keep: unknown key 'evry'
  hint: did you mean 'every'? allowed here: every, first

student: {keep: [0, -1]}
                    ^ student.keep[1]: must be at least 0, not -1

student: {drop: x}
                ^ student.drop: expected a whole number, a list or a mapping, not 'x'
  hint: keys of the mapping: every, first

student: {drop: {evry: 2}}
                 ^ student.drop: unknown key 'evry'
  hint: did you mean 'every'? allowed here: every, first

student: {drop: [0, x]}
                    ^ student.drop[1]: expected a whole number, not 'x'

student: {drop: [2, 1]}
                ^ student.drop: layers must be increasing
  hint: sort them

student: {drop: true}
                ^ student.drop: expected a whole number, a list or a mapping, not true
  hint: keys of the mapping: every, first

sizes: al
       ^ sizes: expected 'all' or a list, not 'al'
  hint: did you mean 'all'?

sizes: [24 layers, 5Q]
                   ^ sizes[1]: expected a size such as 2.5B (parameters), ...

sizes: 3
       ^ sizes: expected 'all' or a list, not 3

size: al
      ^ size: expected a model size or range such as 2.5B, 80% or 2.5B..3.5B step 0.25B or 'all', not 'al'
  hint: did you mean 'all'?

size: 0
      ^ size: expected a model size or range such as 2.5B, 80% or 2.5B..3.5B step 0.25B or 'all', not 0

source: {kind: hub, file: a, dataset: x}
                    ^ source: unknown key 'file'
  hint: allowed here: kind, dataset

one_of: no
        ^ one_of: expected 'all' or true or false, not 'no'
  hint: write false

one_of: al
        ^ one_of: expected 'all' or true or false, not 'al'
  hint: did you mean 'all'? write true or false
"""


def matches(text: str, expected: str) -> bool:
    return text.startswith(expected[:-3]) if expected.endswith("...") else text == expected


@pytest.mark.parametrize("block", [block for block in CASES.split("\n\n") if not block.startswith("#")])
def test_a_wrong_line_gives_a_problem_with_place_and_hint(block: str) -> None:
    line, pointer, *hints = block.rstrip().split("\n")
    problem = only_problem(f"# first line\n{line}\n")
    where = f"{problem.where}: " if problem.where else ""
    assert problem.line == 2
    assert matches(f"{' ' * (problem.column - 1)}^ {where}{problem.message}", pointer)
    assert matches(f"  hint: {problem.hint}" if problem.hint else "", "".join(hints))


def test_all_problems_come_at_once_in_the_order_of_the_file() -> None:
    text = """\
tied: no
distill:
  optimizer:
    lr: -1
    betas: [x, 1, 2]
  schedule: {kind: cosin}
sizes: [1B, x]
nam: toy
"""
    assert [(p.line, p.column, p.where) for p in problems_of(text)] == [
        (1, 7, "tied"),
        (2, 1, "distill"),
        (4, 9, "distill.optimizer.lr"),
        (5, 12, "distill.optimizer.betas"),
        (6, 20, "distill.schedule.kind"),
        (7, 13, "sizes[1]"),
        (8, 1, ""),
    ]


def test_problems_of_the_text_and_of_the_model_come_together() -> None:
    problems = problems_of("tied: no\nname: a\nname: b\nlayers: 3\n")
    assert [(p.line, p.message) for p in problems] == [
        (1, wording("validation.expected_true_false_not", name="no")),
        (3, wording("document.duplicate_key_first_given", name="name")),
        (4, wording("validation.must_multiple_not")),
    ]


def test_a_document_that_is_valid_but_for_its_text_is_refused() -> None:
    assert only_problem("name: a\nname: b\n").message == wording("validation.duplicate_key_first_given", name="name")


def test_what_could_not_be_read_is_not_reported_twice() -> None:
    assert only_problem("layers: .nan\n").message == wording("validation.nan_not_finite_number")
    assert only_problem("distill: !foo {token: 1}\n").message == wording("document.tags_not_allowed")
    assert only_problem("layers: *x\n").message == wording("document.alias_no_anchor_above", name="*x")


def test_a_misspelt_key_is_not_also_a_missing_one() -> None:
    assert only_problem("distill: {tokns: 1}\n").message == "unknown key 'tokns'"


def test_a_misspelt_key_beside_the_right_one_is_named_too() -> None:
    hint = only_problem("distill: {tokens: 1, tokns: 1}\n").hint
    assert hint is not None
    assert hint.startswith(wording("cli.did_you_mean", name="tokens"))


def test_a_mapping_in_block_style_is_pointed_at_by_its_key() -> None:
    problem = only_problem("name:\n  first: a\n")
    assert (problem.line, problem.column) == (1, 1)


def test_a_missing_key_at_the_top_stands_at_the_start_of_the_data() -> None:
    (problem,) = problems_of("# comment\n\nbatch_tokens: 1\n", Distill)
    assert (problem.line, problem.column, problem.where, problem.message) == (3, 1, "", "missing 'tokens'")


def test_a_wrong_value_behind_an_alias_stands_at_its_anchor_once_for_each_use() -> None:
    problems = problems_of("student: {keep: &rule {every: x}, drop: *rule}\n")
    assert [(p.column, p.where) for p in problems] == [(31, "student.drop.every"), (31, "student.keep.every")]


def test_quoted_values_cannot_move_the_cursor_of_a_terminal() -> None:
    problem = only_problem('distill: {tokens: "\\e[2J\\n1"}\n')
    assert problem.message.isprintable()
    assert r"\x1b[2J\n1" in problem.message


def test_endless_values_are_cut() -> None:
    assert len(only_problem(f"layers: {'x' * 5000}\n").message) < 120
    assert len(only_problem(f"distill: {{tokens: {'x' * 5000}}}\n").message) <= 500


class Dated(Strict):
    day: date = date(2026, 1, 1)
    port: Annotated[int, BeforeValidator(lambda v: refuse("port_taken", f"port {v} is taken"))] = 0


def refuse(kind: Any, message: Any) -> None:
    raise PydanticCustomError(kind, message)


def test_kinds_of_errors_without_words_of_their_own_keep_those_of_pydantic() -> None:
    problems = problems_of("day: monday\nport: 80\n", Dated)
    assert [(p.line, p.column, p.message) for p in problems] == [
        (1, 6, wording("validation.expected_valid_date_not", name="monday")),
        (2, 7, "port 80 is taken"),
    ]
