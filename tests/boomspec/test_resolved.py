"""A resolved spec is complete, and tasks have the defaults that it shows."""

import pytest

from boomspec.compile.resolved import complete, resolve
from boomspec.core.tasks import Distill, Pretrain, Search, Tokenize
from boomspec.spec.experiments import load_spec
from boomspec.spec.spec_file import Spec
from tests.boomspec.conftest import Writer

BEAM = ("interpolate", {"order": {"search": "beam"}})


def records(compiled, kind: type) -> list:
    found = (node.task.record for node in compiled.graph.nodes.values())
    return [record for record in found if isinstance(record, kind)]


@pytest.fixture
def spec(specs: Writer) -> Spec:
    specs.edited(BEAM)
    return load_spec(specs.folder / "spec.yaml").spec


def test_a_complete_spec_stays_as_it_is(spec):
    assert complete(spec) != spec
    assert complete(complete(spec)) == complete(spec)
    assert resolve(complete(spec)).to_json() == resolve(spec).to_json()


def test_a_default_that_is_written_out_resolves_to_the_same(specs):
    plain = specs.edited(BEAM).graph
    written = specs.edited(
        ("interpolate", {"order": {"search": "beam", "width": 4}}),
        ("teacher.pretrain.key_value_heads", 2),
        ("teacher.pretrain.positions", 32),
        ("distill.faithful", {"padding": False}),
        ("baselines", ["naive_pruning", {"random_init": {"tokens": 2048}}]),
    ).graph
    assert written.experiments[0].meaning == plain.experiments[0].meaning
    assert written.nodes.keys() == plain.nodes.keys()


def test_tasks_have_the_defaults_that_are_shown(specs):
    compiled = specs.edited(BEAM)
    shown = compiled.graph.experiments[0].meaning
    [search], [pretrain], [tokenize] = (records(compiled, kind) for kind in (Search, Pretrain, Tokenize))
    assert search.choice.width == shown["interpolate"]["order"]["width"] == 4
    architecture, section = pretrain.architecture, shown["teacher"]["pretrain"]
    assert architecture.key_value_heads == section["key_value_heads"] == section["attention_heads"]
    assert architecture.context == section["positions"] == shown["data"]["sequence_length"]
    assert tokenize.text_field == "text"
    assert "text_field" not in shown["data"]  # text files have no fields


def test_a_frozen_embedding_is_not_aligned_and_shown_so(specs):
    compiled = specs.edited(("student.train_embedding", False))
    assert compiled.graph.experiments[0].meaning["distill"]["losses"]["hidden_cosine"]["embedding"] is False
    assert all(not record.losses.hidden_cosine.embedding for record in records(compiled, Distill))
