"""Students that exist: their own tying, dtype and shapes count, and what does not fit is refused when compiling."""

import json

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from boomspec.compile.compiler import compile_experiments
from boomspec.core.errors import SpecError
from boomspec.models.facts import read_facts, size_of
from boomspec.spec.experiments import load_spec
from runners.assembly.assemble import assemble
from runners.modeling.family import Family, InMemory
from tests.messages import wording
from tests.runners import tiny

KEPT = [0, 2, 4]


def spec(folder, **student):
    data = {
        "boomspec": 1,
        "name": "found",
        "teacher": {"model": "./teacher"},
        "student": {"model": "./student", **student},
    }
    (folder / "spec.yaml").write_text(yaml.safe_dump(data))
    return load_spec(folder / "spec.yaml")


def pair(folder, *, teacher_tied: bool, student_tied: bool, **changes):
    tiny.model(layers=6, seed=1, tie_word_embeddings=teacher_tied).save_pretrained(folder / "teacher")
    tiny.model(layers=3, seed=2, tie_word_embeddings=student_tied, **changes).save_pretrained(folder / "student")


@pytest.mark.parametrize("teacher_tied", [True, False])
@pytest.mark.parametrize("student_tied", [True, False])
def test_every_planned_size_is_that_of_the_files_whoever_is_tied(tmp_path, teacher_tied, student_tied):
    pair(tmp_path, teacher_tied=teacher_tied, student_tied=student_tied)
    family = compile_experiments([spec(tmp_path, keep=KEPT)]).family
    own = read_facts(tmp_path / "student")
    assert (family.student.parameters, family.student.bytes) == size_of(own.tensors(range(3), tied=student_tied))
    sources = {"t": tmp_path / "teacher", "s": tmp_path / "student"}
    for member in family.members[1:]:
        target = tmp_path / f"{member.layers}"
        assemble(sources, member.plan, target, tied=member.tied)
        model = AutoModelForCausalLM.from_pretrained(target)
        assert sum(p.numel() for p in model.parameters()) == member.parameters
    inputs_BT = torch.arange(12)[None]
    loaded = {owner: AutoModelForCausalLM.from_pretrained(folder).eval() for owner, folder in sources.items()}
    with torch.no_grad():
        facts = {owner: read_facts(folder) for owner, folder in sources.items()}
        lineage = compile_experiments([spec(tmp_path, keep=KEPT)]).graph.family
        held = Family(lineage, InMemory(loaded, facts))
        assert torch.equal(held.model("student")(inputs_BT).logits, loaded["s"](inputs_BT).logits)


def test_the_bytes_of_a_student_in_another_dtype_are_its_own_until_it_is_built_into_a_size(tmp_path):
    pair(tmp_path, teacher_tied=False, student_tied=False)
    AutoModelForCausalLM.from_pretrained(tmp_path / "student").to(torch.bfloat16).save_pretrained(tmp_path / "student")
    family = compile_experiments([spec(tmp_path, keep=KEPT)]).family
    assert family.student.bytes == 2 * family.student.parameters
    assert [member.bytes for member in family.members[1:]] == [4 * m.parameters for m in family.members[1:]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 32, "head_dim": 16}, wording("existing_students.embeddings_differ_shape")),
        ({"vocab_size": 80}, wording("existing_students.embeddings_differ_shape")),
        ({"intermediate_size": 40}, wording("existing_students.layer_like_no_layer")),
    ],
)
def test_a_student_that_does_not_fit_is_refused_before_anything_runs(tmp_path, change, message):
    pair(tmp_path, teacher_tied=False, student_tied=False, **change)
    with pytest.raises(SpecError, match=message):
        compile_experiments([spec(tmp_path, keep=KEPT)])


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        (
            {"copied_teacher_layers": [0, 2, 4], "pruned_teacher_layers": [1, 3]},
            wording("existing_students.teacher_layers_one"),
        ),
        (
            {"copied_teacher_layers": [], "pruned_teacher_layers": [0, 1, 2, 3, 4, 5]},
            wording("existing_students.no_layer_copied"),
        ),
    ],
)
def test_a_mapping_that_is_not_of_this_teacher_is_refused(tmp_path, mapping, message):
    pair(tmp_path, teacher_tied=False, student_tied=False)
    (tmp_path / "student" / "student_config.json").write_text(json.dumps(mapping))
    with pytest.raises(Exception, match=message):
        compile_experiments([spec(tmp_path)])
