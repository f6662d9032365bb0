"""What means the same has the same ids, and graph files. What an edit changes is in test_edits.py."""

import json
import os
from pathlib import Path

import pytest

from boomspec.compile.compiler import compile_experiments
from boomspec.core.errors import BoomspecError
from boomspec.core.graph_file import read_graph
from boomspec.spec.experiments import load_spec
from tests.messages import wording

GOLDEN = Path(__file__).parent.parent / "golden" / "tiny.json"


def ids(compiled) -> dict[str, str]:
    return {node.name: node.id for node in compiled.graph.nodes.values()}


def test_ids_are_golden(specs):
    """A changed id orphans every stored artifact of its kind: BOOMSPEC_ACCEPT=1 writes the file anew for review."""
    found = ids(specs.compiled())
    if os.environ.get("BOOMSPEC_ACCEPT"):
        GOLDEN.write_text(json.dumps(found, indent=1) + "\n")
    assert found == json.loads(GOLDEN.read_text())


def test_specs_that_mean_the_same_have_the_same_ids(specs):
    other = """\
        # Other order, other notation, defaults written out, the mapping as a list, the losses by default.
        execution: {store: elsewhere}
        name: another-name
        boomspec: 1
        data: {held_out: {every: 4, offset: 0}, sequence_length: 32, files: ["[0-3].txt", "*.txt"]}
        baselines: [{random_init: {tokens: 2k}}, {naive_pruning: {}}]
        student: {keep: {every: 2, last: 0}, train_embedding: true}
        distill:
          batch_tokens: 256.0
          tokens: 2_048
          optimizer: {lr: 0.0003, betas: [0.9, 0.95], eps: 1e-8, weight_decay: 10%, clip: 1}
          schedule: {kind: cosine, warmup: 1%, final: 0}
        evaluate: {held_out: {}, precision: bf16}
        interpolate: {order: [2, 1, 0], sizes: [4 layers, 5 layers]}
        teacher:
          pretrain:
            {layers: 6, hidden_size: 16, intermediate_size: 32, attention_heads: 2, key_value_heads: 2, tokens: 4.096k,
             batch_tokens: 256, optimizer: {lr: .003}, tokenizer: {train_on: 10000, vocabulary: 300}}
        """
    assert set(specs.compiled(other).graph.nodes) == set(specs.compiled().graph.nodes)


def test_parameter_counts_and_tying_follow_from_the_plan(specs):
    family = specs.compiled().family
    layer = 4 * 16 * 16 + 3 * 16 * 32 + 2 * 16
    outside, head = 300 * 16 + 16, 300 * 16
    assert [m.parameters for m in family.members] == [
        outside + 3 * layer,
        outside + 4 * layer + head,  # embedding of the student, head of the teacher: untied
        outside + 5 * layer + head,
        outside + 6 * layer,
    ]
    assert [m.tied for m in family.members] == [True, False, False, True]
    frozen = specs.edited(("student.train_embedding", False)).family
    assert all(m.tied for m in frozen.members)


def test_a_graph_file_comes_back_as_it_was_and_an_altered_one_is_refused(specs, tmp_path):
    graph = specs.compiled().graph
    path = tmp_path / "graph.json"
    graph.write(path)
    assert read_graph(path) == graph
    path.write_text(
        path.read_text().replace('"every": 4', '"every": 5').replace('"held_out_every": 4', '"held_out_every": 5')
    )
    with pytest.raises(BoomspecError, match="altered"):
        read_graph(path)
    path.write_text(json.dumps({"boomspec_graph": 99}))
    with pytest.raises(BoomspecError, match="graph version 99"):
        read_graph(path)
    path.write_text("[" * 100_000)
    with pytest.raises(BoomspecError, match=wording("compile.cannot_read_compiled_graph")):
        read_graph(path)
    with pytest.raises(BoomspecError, match=wording("compile.absent_json_cannot_read")):
        read_graph(tmp_path / "absent.json")


def test_nothing_of_the_machine_is_in_an_identity(specs, tmp_path):
    graph = specs.compiled().graph
    assert str(tmp_path) not in json.dumps([node.task.identity() for node in graph.nodes.values()])


def test_a_changed_file_is_seen_at_the_next_compilation(specs, tmp_path):
    path = specs.text(specs.SPEC)
    before = compile_experiments([load_spec(path)])
    (tmp_path / "8.txt").write_text("one more")
    assert before.graph.id != compile_experiments([load_spec(path)]).graph.id
