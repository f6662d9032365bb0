"""Students that are trained in the sizes that they will be part of: what a step trains, and what it leaves alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from boomspec.core.errors import SpecError
from boomspec.core.layers import STUDENT, TEACHER, family_of_sets, layers_text, prefixes, read_layers
from boomspec.core.losses import KL, CrossEntropy, HiddenCosine, Losses
from boomspec.core.tasks import Patched
from boomspec.store import FolderStore
from runners.assembly.assemble import assemble
from runners.modeling.models import load, load_frozen
from runners.tasks import distill
from runners.training.moment import Moment
from runners.training.patched import PatchedModels
from tests.messages import wording
from tests.runners import small, tiny
from tests.runners.test_cohort import contexts, interrupted_at
from tests.runners.test_costs import WIDE, cost, flops_of, made, student
from tests.runners.test_distill import KEPT, payload, record, teacher_artifact

LAYERS = 6  # blocks 0 1 | 2 3 | 4 | 5
PLANS = tuple(family_of_sets(KEPT, LAYERS, prefixes((1, 0)))[1:-1])
ALL = Losses(cross_entropy=CrossEntropy(), kl=KL(), hidden_cosine=HiddenCosine(weight=3.0))
RECORDS = [
    record(losses=ALL),
    record(losses=ALL, patched=Patched(share=0.7)),
    record(losses=ALL, patched=Patched(share=1.0, plans=PLANS)),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("inputs")
    tokens = tiny.token_artifact(folder / "tokens")
    return {"teacher": teacher_artifact(folder / "teacher", tie_word_embeddings=True), "tokens": tokens}


@pytest.fixture(scope="module")
def alone(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, bytes]]:
    """The files of each student, trained alone."""
    found = contexts(tmp_path_factory.mktemp("alone") / "contexts", folders, RECORDS)
    for context in found:
        distill.run(context)
    return [payload(context) for context in found]


def test_a_step_draws_its_model_from_the_seed_and_its_number() -> None:
    kept, count = (0, 2, 4, 6, 8), 10
    free = Patched(share=0.5)
    drawn = [free.drawn(7, step, kept, count) for step in range(2000)]
    assert drawn == [free.drawn(7, step, kept, count) for step in range(2000)]
    assert drawn != [free.drawn(8, step, kept, count) for step in range(2000)]
    assert drawn[0] is None  # what the terms are at the start is the student's
    plans = [plan for plan in drawn if plan is not None]
    assert len(plans) / len(drawn) == pytest.approx(0.5, abs=0.05)
    assert all({layer.owner for layer in plan} == {STUDENT, TEACHER} for plan in plans)
    sizes = [len(plan) - len(kept) for plan in plans]
    assert all(sizes.count(size) / len(sizes) == pytest.approx(0.25, abs=0.05) for size in (1, 2, 3, 4))
    family = Patched(share=1.0, plans=PLANS)
    assert {family.drawn(7, step, KEPT, LAYERS) for step in range(1, 50)} == set(PLANS)
    assert family.drawn(7, 0, KEPT, LAYERS) is None


@pytest.mark.parametrize("plan", ["t0 t1 s1 s2 s3", "s0 s1 t4 t5", "s0 t2 t3 s2 s3", "t0 t1 s1 t4 t5"])
def test_a_step_trains_the_assembled_model_of_its_plan(folders: dict[str, Path], tmp_path: Path, plan: str) -> None:
    """Loss, its terms and gradients against a model that is loaded from the folder of the plan."""
    wanted = read_layers(plan)
    teacher_folder, student_folder = folders["teacher"] / "model", tmp_path / "student"
    distill.initial_student(record(), teacher_folder, student_folder)
    moved = AutoModelForCausalLM.from_pretrained(student_folder)
    torch.manual_seed(0)
    for parameter in moved.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    moved.save_pretrained(student_folder)
    teacher, own = load_frozen(teacher_folder, dtype=torch.float32), load(student_folder, dtype=torch.float32)
    sources: dict[Any, Path] = {TEACHER: teacher_folder, STUDENT: student_folder}
    models = PatchedModels(Patched(share=1.0, plans=(wanted,)), KEPT, {TEACHER: teacher, STUDENT: own}, sources, seed=0)
    loss = distill.distillation_loss(own, [teacher], ALL, KEPT, patched=models)
    rows_BT = torch.randint(1, tiny.VOCABULARY, (3, 13), generator=torch.Generator().manual_seed(1))
    inputs_BT, labels_BT = rows_BT[:, :-1], rows_BT[:, 1:]
    total, terms = loss(inputs_BT, labels_BT, labels_BT.numel(), Moment(step=3))
    total.backward()

    assemble(sources, wanted, tmp_path / "assembled", tied=False)
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "assembled")
    expected = whole(inputs_BT, output_hidden_states=True)
    with torch.no_grad():
        of_teacher = teacher(inputs_BT, output_hidden_states=True)
    log_q, log_p = expected.logits.log_softmax(-1), of_teacher.logits.log_softmax(-1)
    values = {
        "cross_entropy": F.cross_entropy(expected.logits.flatten(0, 1), labels_BT.flatten()),
        "kl": (log_p.exp() * (log_p - log_q)).sum(-1).mean(),
    }
    ends = [1, 3, 4, 5]  # of the blocks
    pairs = [(place, ends[layer.index]) for place, layer in enumerate(wanted) if layer.owner == STUDENT]
    states = [(expected.hidden_states[place + 1], of_teacher.hidden_states[end + 1]) for place, end in pairs]
    if wanted[0].owner == STUDENT:
        states.append((expected.hidden_states[0], of_teacher.hidden_states[0]))
    values["hidden_cosine"] = torch.stack([(1 - F.cosine_similarity(s, t, dim=-1)).mean() for s, t in states]).mean()
    for name, value in values.items():
        assert float(terms[name]) == pytest.approx(value.item(), rel=1e-4), name
    (values["cross_entropy"] + 0.1 * values["kl"] + 3.0 * values["hidden_cosine"]).backward()
    gradients = {name: parameter.grad for name, parameter in own.named_parameters()}
    for layer in range(len(KEPT)):
        place = next((p for p, one in enumerate(wanted) if (one.owner, one.index) == (STUDENT, layer)), None)
        for name, parameter in whole.model.layers[place if place is not None else 0].named_parameters():
            found = gradients[f"model.layers.{layer}.{name}"]
            if place is None:
                assert found is None
            else:
                assert found is not None
                assert torch.allclose(found, parameter.grad, rtol=1e-3, atol=1e-5)
    assert all(parameter.grad is None for parameter in teacher.parameters())
    plain, _ = distill.distillation_loss(own, [teacher], ALL, KEPT)(
        inputs_BT, labels_BT, labels_BT.numel(), Moment(step=3)
    )
    assert abs((plain - total).item()) > 1e-3


def test_students_of_a_cohort_are_what_they_are_alone(
    tmp_path: Path, folders: dict[str, Path], alone: list[dict[str, bytes]]
) -> None:
    together = contexts(tmp_path / "together", folders, RECORDS)
    assert all(error is None for _, error in distill.run_together(together))
    assert [payload(context) for context in together] == alone
    assert len({files["model/model.safetensors"] for files in alone}) == 3


def test_an_interrupted_training_goes_on_to_the_same_bits(
    tmp_path: Path, folders: dict[str, Path], alone: list[dict[str, bytes]]
) -> None:
    for step in (2, 4):
        with interrupted_at(step), pytest.raises(KeyboardInterrupt):
            list(distill.run_together(contexts(tmp_path / f"at-{step}", folders, RECORDS)))
    last = contexts(tmp_path / "last", folders, RECORDS)
    assert all(error is None for _, error in distill.run_together(last))
    assert [payload(context) for context in last] == alone


@pytest.mark.parametrize("rows", [1, 8])
def test_how_a_batch_is_cut_changes_nothing(
    tmp_path: Path, folders: dict[str, Path], alone: list[dict[str, bytes]], rows: int
) -> None:
    context = tiny.context(tmp_path, RECORDS[2], **folders)
    tiny.set_training(context, micro_batch=rows, activation_checkpointing=rows == 1)
    distill.run(context)
    (tmp_path / "alone.safetensors").write_bytes(alone[2]["model/model.safetensors"])
    expected = load_file(tmp_path / "alone.safetensors")
    for name, tensor in load_file(context.path / "model" / "model.safetensors").items():
        assert torch.allclose(tensor, expected[name], atol=1e-4), name


def test_what_a_step_does_not_train_is_decayed_all_the_same(tmp_path: Path, folders: dict[str, Path]) -> None:
    """Without momentum a layer that a step does not reach shrinks, and nothing else."""
    plan, rate, decay = read_layers("t0 t1 s1 s2 s3"), 0.01, 10.0
    optimizer, schedule = (
        {"lr": rate, "betas": (0.0, 0.0), "weight_decay": decay},
        {"kind": "constant", "warmup_steps": 0},
    )

    def trained(steps: int) -> dict[str, torch.Tensor]:
        recipe = {"optimizer": optimizer, "schedule": schedule, "steps": steps}
        one = record(losses=ALL, recipe=recipe, patched=Patched(share=1.0, plans=(plan,)))
        context = tiny.context(tmp_path / str(steps), one, **folders)
        distill.run(context)
        return load_file(context.path / "model" / "model.safetensors")

    before, after = trained(1), trained(2)
    name = "model.layers.{}.mlp.down_proj.weight".format
    assert torch.allclose(after[name(0)], before[name(0)] * (1 - rate * decay), rtol=1e-4, atol=1e-7)
    assert not torch.allclose(after[name(1)], before[name(1)] * (1 - rate * decay), rtol=1e-2, atol=1e-3)


def test_the_metrics_say_which_losses_are_of_a_larger_model(tmp_path: Path, folders: dict[str, Path]) -> None:
    """And have no value of a loss none of whose pairs that model has."""
    plan, losses = (
        read_layers("t0 t1 s1 s2 s3"),
        Losses(kl=KL(), hidden_cosine=HiddenCosine(pairs=(0,), embedding=False, final_norm=False)),
    )
    one = record(losses=losses, recipe={"steps": 6}, patched=Patched(share=0.5, plans=(plan,)))
    context = tiny.context(tmp_path / "student", one, **folders)
    distill.run(context)
    rows = [json.loads(line) for line in (context.path / "metrics.jsonl").read_text().splitlines()]
    drawn = [int(one.patched.drawn(one.recipe.seed, step, KEPT, LAYERS) is not None) for step in range(6)]
    assert [row["patched"] for row in rows] == drawn
    assert set(drawn) == {0, 1}
    assert all(("hidden_cosine" in row) == (not row["patched"]) for row in rows)


def test_operations_are_those_that_torch_counts(tmp_path: Path) -> None:
    folder = made(tmp_path, "llama", **WIDE, tie_word_embeddings=True)
    plan = read_layers("t0 t1 s1 s2")
    own = student(patched=Patched(share=1.0, plans=(plan,)), recipe={"steps": 4}, train_embedding=False)
    expected = cost(folder, own, micro_batch=4)
    assert expected.flops == pytest.approx(flops_of(folder, own), rel=0.03)
    plain = cost(folder, student(recipe={"steps": 4}, train_embedding=False), micro_batch=4)
    assert plain.flops != pytest.approx(expected.flops, rel=0.03)
    behind = student(patched=Patched(share=1.0, plans=(read_layers("s0 t1 t2 t3"),)), train_embedding=False)
    assert cost(folder, behind).memory["activations"] > plain.memory["activations"]


def test_a_spec_trains_for_its_family(tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "store")

    def training(**sections: Any) -> Any:
        layers = {"teacher": {"pretrain": {"layers": 6}}, "student": {"keep": [0, 2, 4]}}
        graph = small.compiled(small.write_spec(tmp_path, **layers, **sections), store).graph
        return next(node.task.record for node in graph.nodes.values() if node.name == "distill student")

    family = training(distill={"patch_aware": {"share": 0.25}}, interpolate={"order": "first_to_last"})
    assert family.patched.share == 0.25
    assert list(map(layers_text, family.patched.plans)) == ["t0 t1 s1 s2", "t0 t1 t2 t3 s2"]
    anything = training(distill={"patch_aware": {"models": "any"}}, interpolate={"order": {"search": "klpatch"}})
    assert anything.patched == Patched(share=0.5)
    assert training().patched is None


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"distill": {"patch_aware": {}}, "student": {"keep": [0, 2, 3]}}, wording("patched.no_size_between")),
        (
            {"distill": {"patch_aware": {}}, "interpolate": {"order": {"search": "klpatch"}}},
            wording("patched.sizes_not_known"),
        ),
        ({"distill": {"patch_aware": {}, "losses": {"minilm": {}}}}, wording("patched.reads_attention")),
        (
            {"distill": {"patch_aware": {}, "losses": {"hidden_cosine": {"pairs": [0]}}}},
            wording("patched.learns_nothing"),
        ),
        ({"distill": {"patch_aware": {}, "generations": 2}}, wording("patched.not_with_generations")),
        (
            {"distill": {"patch_aware": {}}, "execution": {"distill": {"parallel": "fsdp", "workers": 2}}},
            wording("patched.shared_whole"),
        ),
        (
            {"distill": {"patch_aware": {}}, "execution": {"distill": {"compile": True}}},
            wording("patched.shared_whole"),
        ),
    ],
)
def test_what_cannot_be_trained_so_is_refused(tmp_path: Path, sections: dict[str, Any], message: str) -> None:
    layers = {"teacher": {"pretrain": {"layers": 4}}}
    with pytest.raises(SpecError, match=message):
        small.compiled(small.write_spec(tmp_path, **layers | sections), FolderStore(tmp_path / "store"))
