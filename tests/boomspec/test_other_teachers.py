"""Teachers beside the family's own: which tasks there are, and what is refused before anything runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from boomspec.core.errors import SpecError
from boomspec.core.tasks import OtherTeachers
from boomspec.store import FolderStore
from tests.boomspec import model_folders
from tests.boomspec.conftest import Writer
from tests.messages import wording
from tests.runners import quantized, small

SEED = {"seed": 1, "weight": 0.5}
KL = {"losses": {"kl": {}}}
LOCAL = {"teacher": {"pretrain": None, "model": "teacher"}, "student": {"keep": [0, 2]}}


def others(*given: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"distill": {"teachers": {"others": list(given), **more}, **KL}}


def compiled(folder: Path, **sections: Any) -> Any:
    return small.compiled(small.write_spec(folder, **sections), FolderStore(folder / "store"))


def test_a_seed_pretrains_the_teacher_once_more_for_every_student(tmp_path: Path) -> None:
    variants = {"small": {"distill": {"optimizer": {"lr": 1e-3}}}, "mixture": others(SEED, combine="mixture")}
    graph = compiled(tmp_path, **others(SEED), variants=variants, baselines=["random_init"]).graph
    named = {node.name: node for node in graph.nodes.values()}
    [other] = [node for node in graph.nodes.values() if node.name.endswith("pretrain teacher 2")]
    assert named["pretrain teacher"].task.record.architecture == other.task.record.architecture
    assert other.task.record.recipe.seed == 1
    trained = [node for node in graph.nodes.values() if node.task.kind == "distill"]
    assert len(trained) == 6
    assert {node.task.inputs["teacher 2"] for node in trained} == {other.id}
    assert {node.task.record.others for node in trained} == {
        OtherTeachers(weights=(0.5,), combine=how) for how in ("losses", "mixture")
    }
    report = compiled(tmp_path, **others(SEED)).graph
    [page] = [node for node in report.nodes.values() if node.task.kind == "report"]
    assert set(page.task.record.trainings) == {"teacher", "teacher 2", "student"}


def test_another_model_is_read_and_dequantised_as_the_own_is(tmp_path: Path) -> None:
    for seed, name in enumerate(("teacher", "other", "third")):
        quantized.fp8(tmp_path / name, seed=seed)
    found = compiled(tmp_path, **LOCAL, **others({"model": "other", "weight": 0.3}, {"model": "third", "weight": 0.2}))
    names = {node.name: node for node in found.graph.nodes.values()}
    read = found.graph.experiments[0].meaning["sources"]
    for role, folder in (("teacher", "teacher"), ("teacher 2", "other"), ("teacher 3", "third")):
        whole = names[f"dequantize {role}"]
        assert names["distill student"].task.inputs[role] == whole.id
        source = found.graph.sources[whole.task.inputs["model"]]
        assert source.location["folder"] == str(tmp_path / folder)
        assert read[role]["sha256"] == source.identity["sha256"]


def small_llama(folder: Path, seed: int) -> Path:
    from tests.runners import tiny

    tiny.model(seed=seed).save_pretrained(folder)
    tiny.token_artifact(folder.with_name(f"{folder.name}-tokens"))
    for file in (folder.with_name(f"{folder.name}-tokens") / "tokenizer").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def other_tokenizer(folder: Path) -> None:
    file = folder / "tokenizer.json"
    whole = json.loads(file.read_text())
    ids = whole["model"]["vocab"]
    ids["7"], ids["8"] = ids["8"], ids["7"]
    file.write_text(json.dumps(whole))


WRONG = {
    "another tokenizer": (other_tokenizer, wording("other_teachers.another_tokenizer")),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), wording("other_teachers.no_tokenizer")),
}


@pytest.mark.parametrize(("change", "message"), WRONG.values(), ids=WRONG)
def test_the_vocabulary_is_the_same_or_it_is_said_where_not(tmp_path: Path, change: Any, message: str) -> None:
    for seed, name in enumerate(("teacher", "other")):
        small_llama(tmp_path / name, seed)
    change(tmp_path / "other")
    with pytest.raises(SpecError, match=message) as caught:
        compiled(tmp_path, **LOCAL, **others({"model": "other", "weight": 0.3}))
    assert "model: other" in str(caught.value)


def test_logits_and_positions_are_checked(tmp_path: Path) -> None:
    from tests.runners import tiny

    small_llama(tmp_path / "teacher", 0)
    for fields, message in (
        ({"vocab_size": 72}, wording("other_teachers.logits")),
        ({"max_position_embeddings": 8}, wording("other_teachers.positions")),
    ):
        small_llama(tmp_path / "other", 1)
        tiny.model(seed=1, **fields).save_pretrained(tmp_path / "other")
        with pytest.raises(SpecError, match=message):
            compiled(tmp_path, **LOCAL, **others({"model": "other", "weight": 0.3}))
        for name in ("other", "other-tokens"):
            for file in sorted((tmp_path / name).rglob("*"), reverse=True):
                file.rmdir() if file.is_dir() else file.unlink()
            (tmp_path / name).rmdir()


def test_a_model_teaches_once(tmp_path: Path) -> None:
    small_llama(tmp_path / "teacher", 0)
    with pytest.raises(SpecError, match=wording("other_teachers.already")):
        compiled(tmp_path, **LOCAL, **others({"model": "teacher", "weight": 0.3}))


def test_a_folder_that_is_none_is_said_at_its_place(tmp_path: Path) -> None:
    small_llama(tmp_path / "teacher", 0)
    with pytest.raises(SpecError, match=wording("other_teachers.no_folder")) as caught:
        compiled(tmp_path, **LOCAL, **others({"model": "./nowhere", "weight": 0.3}))
    assert "./nowhere" in str(caught.value)


REFUSED = {
    "a seed twice": (others({**SEED, "weight": 0.3}, {**SEED, "weight": 0.2}), wording("other_teachers.already_there")),
    "weights": (others({**SEED, "weight": 0.6}, {"seed": 2, "weight": 0.4}), wording("other_teachers.weights")),
    "none": (others(), wording("other_teachers.none")),
    "its own seed": (others({"seed": 0, "weight": 0.5}), wording("other_teachers.own_seed")),
    "another model's tokenizer": (others({"model": "gpt2", "weight": 0.5}), wording("other_teachers.learned")),
    "no logits": (
        {"distill": {**others(SEED)["distill"], "losses": {"hidden_cosine": {}}}},
        wording("other_teachers.no_reader"),
    ),
    "stored": (
        {"distill": {**others(SEED)["distill"], "teacher_outputs": {"top_k": 4}}},
        wording("other_teachers.stored"),
    ),
    "both": (others({"seed": 1, "model": "gpt2", "weight": 0.5}), wording("other_teachers.one_of")),
}


@pytest.mark.parametrize(("sections", "message"), REFUSED.values(), ids=REFUSED)
def test_what_means_nothing_is_refused(tmp_path: Path, sections: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        compiled(tmp_path, **sections)


def test_a_seed_needs_a_teacher_that_is_pretrained(tmp_path: Path) -> None:
    model_folders.llama(tmp_path / "teacher", layers=4)
    with pytest.raises(SpecError, match=wording("other_teachers.needs_pretrain")):
        compiled(tmp_path, **LOCAL, **others(SEED))


def test_ids_of_a_spec_without_them_are_those_of_one_that_never_had_the_field(specs: Writer) -> None:
    record = next(node.task.record for node in specs.compiled().graph.nodes.values() if node.task.kind == "distill")
    assert not {"others", "teacher_outputs"} & record.to_json().keys()
