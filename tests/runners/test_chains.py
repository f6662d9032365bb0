"""A student that learns from an assistant begins as layers of the teacher all the same, and goes on after a kill."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from boomspec.core.tasks import Distill
from boomspec.models.folder import STUDENT_CONFIG
from runners.modeling.hidden_states import hidden_pairs
from runners.runtime.context import Context
from runners.tasks import distill
from tests.runners import tiny
from tests.runners.test_cohort import interrupted_at, newest
from tests.runners.test_distill import load, payload, record, teacher_artifact

ASSISTANT = (0, 1, 2, 4, 5)  # layers of the teacher's six
STUDENT = (0, 2, 5)
OF_ASSISTANT = (0, 2, 4)  # the same, as layers of the assistant


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A teacher, text, and an assistant that is distilled from the teacher."""
    folder = tmp_path_factory.mktemp("inputs")
    tokens = tiny.token_artifact(folder / "tokens")
    teacher = teacher_artifact(folder / "teacher", tie_word_embeddings=True)
    context = tiny.context(folder / "assistant", record(kept=ASSISTANT), teacher=teacher, tokens=tokens)
    distill.run(context)
    return {"teacher": context.path, "tokens": tokens, "start": teacher}


def made(place: Path, folders: dict[str, Path], **fields: object) -> Context[Distill]:
    of = record(kept=OF_ASSISTANT, start=STUDENT, **fields)
    return tiny.context(place, of, resume=place.parent / "resume", **folders)


def test_the_student_begins_as_layers_of_the_teacher_and_says_so(tmp_path: Path, folders: dict[str, Path]) -> None:
    context = made(tmp_path / "student", folders)
    begun = distill.initial_student(context.record, folders["start"] / "model", tmp_path / "begun")
    teacher = load(folders["start"] / "model").state_dict()
    for student_layer, layer in enumerate(STUDENT):
        name = "model.layers.{}.mlp.up_proj.weight"
        assert torch.equal(begun.state_dict()[name.format(student_layer)], teacher[name.format(layer)])
    distill.run(context)
    said = json.loads((context.path / "model" / STUDENT_CONFIG).read_text())
    assert said == {"copied_teacher_layers": list(STUDENT), "pruned_teacher_layers": [1, 3, 4]}
    pairs = json.loads((context.path / distill.SIMILARITY).read_text())["pairs"]
    ends = [str(t) if isinstance(t, str) else f"layer {t}" for _, t in hidden_pairs(OF_ASSISTANT, len(ASSISTANT))]
    assert [pair["teacher"] for pair in pairs] == ends


def test_whom_it_learns_from_makes_a_difference(tmp_path: Path, folders: dict[str, Path]) -> None:
    from_assistant = made(tmp_path / "a" / "student", folders)
    distill.run(from_assistant)
    direct = tiny.context(tmp_path / "b", record(kept=STUDENT), teacher=folders["start"], tokens=folders["tokens"])
    distill.run(direct)
    assert payload(from_assistant).keys() == payload(direct).keys()
    one, other = (load(context.path / "model").state_dict() for context in (from_assistant, direct))
    assert all(one[name].shape == tensor.shape for name, tensor in other.items())
    assert not all(torch.equal(one[name], tensor) for name, tensor in other.items())


def test_a_student_of_a_chain_that_is_interrupted_goes_on_to_the_same_bits(
    tmp_path: Path, folders: dict[str, Path]
) -> None:
    alone = made(tmp_path / "alone" / "student", folders)
    distill.run(alone)
    with interrupted_at(3), pytest.raises(KeyboardInterrupt):
        distill.run(made(tmp_path / "cut" / "first", folders))
    assert newest(tmp_path / "cut" / "resume") == 3
    again = made(tmp_path / "cut" / "second", folders)
    distill.run(again)
    assert payload(again) == payload(alone)
