"""One training on several workers: the same result as on one, also when workers come and go."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from boomspec.core.errors import BoomspecError
from boomspec.core.execution import Execution, TrainingOptions, read_options
from boomspec.core.graph import Node, Task
from boomspec.core.layers import read_layers
from boomspec.core.losses import CrossEntropy, HiddenCosine, Losses
from boomspec.core.losses.attention import MiniLMv2
from boomspec.core.losses.jsd import JSD
from boomspec.core.losses.relations import SPKD
from boomspec.core.losses.reverse_kl import ReverseKL
from boomspec.core.losses.taid import TAID
from boomspec.core.losses.tvd import TVD
from boomspec.core.losses.weight import WeightCourse
from boomspec.core.tasks import Architecture, BuiltSize, Distill, During, Faithful, OnPolicy, Pretrain, Sampling
from boomspec.spec.sections.execution import ExecutionSpec
from runners.cluster.ray_cluster import check_feasible
from runners.data.tokens import TokenStream
from runners.runtime.context import Context
from runners.runtime.device import collective_backend
from runners.tasks import distill, pretrain
from runners.training import checkpoint_writer
from runners.training.checkpoint import SavedCheckpoint
from runners.training.parallel import with_checkpointing_or_compile
from runners.training.process_group import STOP, WORKERS, ProcessGroup
from tests.messages import wording
from tests.runners import tiny
from tests.runners.crew import Crew
from tests.runners.group_story import STEPS, GroupStory, differing, two_machines
from tests.runners.test_distill import record as recorded
from tests.runners.test_distill import teacher_artifact
from tests.runners.test_loss_parameters import WITH_OWN

MODEL = "model/model.safetensors"
TORCH_FOLDER = "torchinductor_root"
# A large eps keeps AdamW from blowing up the rounding of gradients that are nearly 0; 7 rows divide by no team.
UNEVEN = {"steps": 4, "sequences": 7, "optimizer": {"eps": 1e-3}}


@pytest.fixture(scope="module")
def crew() -> Iterator[Crew]:
    crew = Crew(4)
    yield crew
    crew.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tokens and two teachers."""
    folder = tmp_path_factory.mktemp("many")
    tiny.token_artifact(folder / "tokens")
    for name, tied in (("tied", True), ("untied", False)):
        teacher_artifact(folder / name, tie_word_embeddings=tied)
    return folder


def work(place: Path, record: Any, inputs: dict[str, Path], options: dict[str, Any]) -> list[str]:
    """What one worker of the crew does, in the folder that all of them share. Returns its notes."""
    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
    context: Context[Any] = tiny.context(place / f"worker-{rank}", record, resume=place / "resume", **inputs)
    notes = tiny.notes
    shared = place / "payload"
    shared.mkdir(exist_ok=True)
    own, context.path = context, shared
    tiny.set_training(context, **options)
    try:
        (distill if isinstance(record, Distill) else pretrain).run(context)
    except KeyboardInterrupt:
        if not (place / "resume" / WORKERS / STOP).exists():
            raise
    own.path = place / f"worker-{rank}" / "payload"
    return notes(own)


def same(one: Path, other: Path) -> None:
    """Two payloads have the same files, and the same content within the rounding of fp32."""
    names = [sorted(str(file.relative_to(folder)) for file in folder.rglob("*")) for folder in (one, other)]
    assert names[0] == names[1]
    for name in names[0]:
        left, right = one / name, other / name
        if name.endswith(".safetensors"):
            assert differing(left, right) == []
        elif name == "metrics.jsonl":
            rows = [[json.loads(line) for line in file.read_text().splitlines()] for file in (left, right)]
            for a, b in zip(*rows, strict=True):
                assert a == pytest.approx(b, rel=1e-4, abs=1e-6)
        elif name == "similarity.json":
            pairs = [json.loads(file.read_text())["pairs"] for file in (left, right)]
            for a, b in zip(*pairs, strict=True):
                assert a == pytest.approx(b, abs=1e-5)
        elif left.is_file():
            assert left.read_bytes() == right.read_bytes(), name


WRITING = OnPolicy(share=0.5, prompt_tokens=4, new_tokens=9, sampling=Sampling(), teacher_share=0.2, long_range=1.0)
MEASURED = During(every=2, sizes=(BuiltSize(plan=read_layers("s0 s1 t4 t5"), tied=False),), max_tokens=120)
CASES: dict[str, tuple[int, dict[str, Any], dict[str, Any], str]] = {
    "ddp on 2 that measure meanwhile, tied": (2, {"parallel": "ddp"}, {"during": MEASURED}, "tied"),
    "ddp on 4 with a sharded teacher, frozen embedding": (
        4,
        {"parallel": "ddp", "teacher": "sharded"},
        {"train_embedding": False},
        "untied",
    ),
    "ddp on 4 with fewer rows than workers, an unused head": (
        4,
        {"parallel": "ddp"},
        {"losses": Losses(hidden_cosine=HiddenCosine()), "recipe": {**UNEVEN, "sequences": 3}},
        "untied",
    ),
    "ddp on 3 that write themselves": (
        3,
        {"parallel": "ddp", "micro_batch": 2},
        {"on_policy": WRITING, "losses": Losses(cross_entropy=CrossEntropy(), reverse_kl=ReverseKL())},
        "untied",
    ),
    "fsdp on 2, untied": (2, {"parallel": "fsdp"}, {}, "untied"),
    "fsdp on 4 with a sharded teacher, tied": (4, {"parallel": "fsdp", "teacher": "sharded"}, {}, "tied"),
    "fsdp on 4, a random start and a frozen tied embedding, activations computed again": (
        4,
        {"parallel": "fsdp", "activation_checkpointing": True},
        {"train_embedding": False, "initial": "random"},
        "tied",
    ),
    "ddp on 2 with balanced terms and a TAID": (
        2,
        {"parallel": "ddp"},
        {"losses": Losses(cross_entropy=CrossEntropy(), taid=TAID(alpha=0.3), jsd=JSD()), "balance": "running"},
        "untied",
    ),
    "fsdp on 2 with balanced terms, one of them over the steps": (
        2,
        {"parallel": "fsdp", "teacher": "sharded"},
        {
            "losses": Losses(cross_entropy=CrossEntropy(), tvd=TVD(weight=WeightCourse(start=2.0, end=0.1))),
            "balance": "start",
        },
        "tied",
    ),
    "ddp on 2 with losses that train parameters of their own": (
        2,
        {"parallel": "ddp", "teacher": "sharded"},
        {"losses": WITH_OWN},
        "untied",
    ),
    "fsdp on 2 with losses on attention and relations": (
        2,
        {"parallel": "fsdp", "teacher": "sharded", "activation_checkpointing": True},
        {"losses": Losses(minilmv2=MiniLMv2(pairs="all"), spkd=SPKD(), cross_entropy=CrossEntropy())},
        "tied",
    ),
    "fsdp on 2 with KL on padding and summed gradients": (
        2,
        {"parallel": "fsdp"},
        {"faithful": Faithful(padding=True, kl_on_padding=True, summed_micro_batches=2)},
        "tied",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_several_workers_give_the_result_of_one(tmp_path: Path, crew: Crew, folder: Path, case: str) -> None:
    size, options, fields, teacher = CASES[case]
    record = recorded(**{"recipe": UNEVEN, **fields})
    inputs = {"teacher": folder / teacher, "tokens": folder / "tokens"}
    work(tmp_path / "one", record, inputs, {"micro_batch": 8})
    crew.run(size, work, tmp_path / "many", record, inputs, {"micro_batch": 2, **options})
    same(tmp_path / "many" / "payload", tmp_path / "one" / "payload")


def test_in_bf16_two_workers_give_the_result_of_one(tmp_path: Path, crew: Crew, folder: Path) -> None:
    """Row by row all compute the same in bf16, and what they add up is fp32: the rounding is that of fp32, but where a
    weight that lies between two numbers of bf16 falls to the other side."""
    inputs = {"teacher": folder / "untied", "tokens": folder / "tokens"}
    record = recorded(recipe={**UNEVEN, "precision": "bf16"})

    def weights(name: str) -> dict[str, torch.Tensor]:
        return load_file(tmp_path / name / "payload" / MODEL)

    work(tmp_path / "one", record, inputs, {"micro_batch": 1})
    for parallel in ("ddp", "fsdp"):
        crew.run(2, work, tmp_path / parallel, record, inputs, {"micro_batch": 1, "parallel": parallel})
        assert _distance(weights("one"), weights(parallel)) < 1e-4

    # Rows that go through a matrix product together are rounded to bf16 together.
    sharded = {"micro_batch": 2, "parallel": "fsdp", "teacher": "sharded", "activation_checkpointing": True}
    crew.run(2, work, tmp_path / "together", record, inputs, sharded)
    work(tmp_path / "fp32", recorded(recipe=UNEVEN), inputs, {"micro_batch": 1})
    assert 0 < _distance(weights("one"), weights("together")) < 2e-3
    assert _distance(weights("one"), weights("fp32")) > 1e-4


def _distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The norm of the difference of all weights, as a share of their norm."""
    gap, size = (sum(float((one[k] - other[k] * share).square().sum()) for k in one) for share in (1, 0))
    return float((gap / size) ** 0.5)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_teacher_is_pretrained_by_several_workers(tmp_path: Path, crew: Crew, folder: Path, parallel: str) -> None:
    architecture = Architecture(
        layers=2,
        hidden_size=16,
        intermediate_size=24,
        attention_heads=4,
        key_value_heads=2,
        vocabulary=tiny.VOCABULARY,
        context=32,
        tied=True,
        initializer_range=0.08,
    )
    record, inputs = Pretrain(architecture=architecture, recipe=tiny.recipe(**UNEVEN)), {"tokens": folder / "tokens"}
    work(tmp_path / "one", record, inputs, {})
    crew.run(2, work, tmp_path / "many", record, inputs, {"parallel": parallel, "micro_batch": 2})
    same(tmp_path / "many" / "payload", tmp_path / "one" / "payload")


def test_a_checkpoint_of_any_number_of_workers_is_continued_by_any_other(
    tmp_path: Path, crew: Crew, folder: Path
) -> None:
    record = recorded(recipe=UNEVEN)
    inputs = {"teacher": folder / "untied", "tokens": folder / "tokens"}
    work(tmp_path / "one", record, inputs, {})
    many, resume = tmp_path / "many", tmp_path / "many" / "resume"
    (resume / WORKERS).mkdir(parents=True)
    (resume / WORKERS / STOP).touch()  # each group makes one step, saves itself and stops

    def group(size: int, parallel: str) -> list[str]:
        for path in [many / "payload", *many.glob("worker-*")]:
            shutil.rmtree(path, ignore_errors=True)
        notes = crew.run(size, work, many, record, inputs, {"parallel": parallel, "micro_batch": 2})[0]
        return [note for note in notes if not note.startswith("warning: ")]

    assert group(4, "fsdp") == []
    files = {file.name for file in (resume / "step-00000001").iterdir()}
    kinds = [f"{kind}-{rank:05}-of-00004.safetensors" for kind in ("weights", "moments") for rank in range(1, 5)]
    assert files == {*kinds, "state.json"}
    assert group(2, "fsdp") == [wording("many_workers.continues_after_step")]
    damaged = resume / "step-00000002" / "moments-00002-of-00002.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-10])
    broken, continues = group(2, "ddp")
    assert "step-00000002 is broken" in broken
    assert continues == wording("many_workers.continues_after_step")
    assert {file.name for file in (resume / "step-00000002").iterdir()} == {
        "weights.safetensors",
        "moments.safetensors",
        "state.json",
    }
    assert group(4, "fsdp") == [wording("many_workers.continues_after_step_2")]
    shutil.rmtree(resume / WORKERS)
    for path in [many / "payload", many / "worker-0"]:
        shutil.rmtree(path)
    assert work(many, record, inputs, {}) == [wording("many_workers.continues_after_step_3")]
    same(many / "payload", tmp_path / "one" / "payload")


def with_a_slow_disk(place: Path, record: Any, inputs: dict[str, Path], options: dict[str, Any]) -> list[str]:
    """Like `work`; one of those that write writes no file of a checkpoint before the training is at its last step."""
    real, last = checkpoint_writer.write_tensors, place / "last step"
    real_batch = TokenStream.batch

    def batch(stream: TokenStream, step: int, **wanted: int) -> Any:
        if step + 1 == record.recipe.steps:
            last.touch()
        return real_batch(stream, step, **wanted)

    def slow(*arguments: Any) -> str:
        while torch.distributed.get_rank() == int(options["parallel"] == "fsdp") and not last.exists():
            time.sleep(0.01)
        return real(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint_writer, "write_tensors", slow)
        patch.setattr(TokenStream, "batch", batch)
        return work(place, record, inputs, options)


@pytest.mark.parametrize(("parallel", "files"), [("fsdp", 5), ("ddp", 3)])
def test_a_checkpoint_is_written_beside_the_steps_of_several_workers(
    tmp_path: Path, crew: Crew, folder: Path, parallel: str, files: int
) -> None:
    record = recorded(recipe=UNEVEN)
    inputs = {"teacher": folder / "untied", "tokens": folder / "tokens"}
    work(tmp_path / "one", record, inputs, {})
    options = {"parallel": parallel, "micro_batch": 2, "checkpoint_seconds": 0}
    crew.run(2, with_a_slow_disk, tmp_path / "many", record, inputs, options)
    same(tmp_path / "many" / "payload", tmp_path / "one" / "payload")
    newest = SavedCheckpoint(tmp_path / "many" / "resume" / "step-00000001", check=True)
    assert newest.steps == 1
    assert len(list((tmp_path / "many" / "resume" / "step-00000001").iterdir())) == files
    assert not list((tmp_path / "many" / "resume").glob(".part-*"))


def compiled(place: Path, record: Any, inputs: dict[str, Path]) -> int:
    """Like `work`, with compiled layers. Returns how many functions were compiled."""
    work(place, record, inputs, {"compile": True, "activation_checkpointing": True})
    return int(torch._dynamo.utils.counters["frames"]["ok"])


def test_compiled_layers_give_the_same_within_rounding(tmp_path: Path, crew: Crew, folder: Path) -> None:
    record = recorded(losses=Losses(cross_entropy=CrossEntropy()), recipe={**UNEVEN, "steps": 2})
    inputs = {"teacher": folder / "tied", "tokens": folder / "tokens"}
    work(tmp_path / "plain", record, inputs, {})
    assert crew.run(1, compiled, tmp_path / "compiled", record, inputs)[0] > 0
    same(tmp_path / "compiled" / "payload", tmp_path / "plain" / "payload")


def test_activations_are_computed_again_in_the_backward_only_when_asked_for() -> None:
    model, tokens = tiny.model(layers=3), torch.arange(8).view(1, 8)
    calls: list[int] = []
    model.model.layers[1].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    grads = []
    for checkpointing in (False, True):
        model.zero_grad()
        with with_checkpointing_or_compile(model, checkpointing=checkpointing):
            model(tokens).logits.sum().backward()
        grads.append(model.model.layers[0].mlp.up_proj.weight.grad.clone())
        assert len(calls) == (3 if checkpointing else 1)
    assert torch.equal(*grads)
    assert "forward" not in vars(model.model.layers[0])


@pytest.mark.parametrize("rows", [1, 3, 7, 8, 16])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("micro_batch", [1, 2, 8])
def test_each_row_of_a_batch_counts_once_and_every_worker_has_as_many_rounds(
    rows: int, size: int, micro_batch: int
) -> None:
    tokens = torch.arange(rows).view(rows, 1)
    dealt = [ProcessGroup(rank, size).micro_batches(tokens, micro_batch) for rank in range(size)]
    assert len({len(rounds) for rounds in dealt}) == 1
    counted = [(block, first) for rounds in dealt for block, first, counts in rounds if counts]
    assert torch.equal(torch.cat([block for block, _ in counted]), tokens)
    assert all(int(block[0]) == first for block, first in counted)
    assert all(1 <= len(block) <= micro_batch for rounds in dealt for block, _, _ in rounds)
    shares = [sum(len(block) for block, _, counts in rounds if counts) for rounds in dealt]
    assert max(shares) - min(shares) <= 1


def test_workers_talk_through_nccl_where_they_have_gpus() -> None:
    assert (collective_backend(0), collective_backend(1)) == ("gloo", "nccl")


def test_all_workers_of_a_training_must_find_room_in_the_cluster() -> None:
    task = Task(recorded(), {})
    four = Node(task, "distill", Execution(cpus=2, gpus=1, training=TrainingOptions(workers=4)))
    check_feasible([four], [{"CPU": 4.0, "GPU": 2.0}, {"CPU": 8.0, "GPU": 2.0}])
    with pytest.raises(BoomspecError, match=wording("many_workers.distill_asks_workers_cpus")):
        check_feasible([four], [{"CPU": 3.0, "GPU": 4.0}, {"CPU": 8.0, "GPU": 2.0}])
    tenths = Node(task, "distill", Execution(cpus=0.1, training=TrainingOptions(workers=3)))
    check_feasible([tenths], [{"CPU": 0.3}])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"parallel": "fsdp"}, wording("many_workers.one_worker_no_parallel")),
        ({"teacher": "sharded"}, wording("many_workers.one_worker_no_teacher")),
        ({"min_workers": 1}, wording("many_workers.one_worker_no_min")),
        ({"workers": 2, "min_workers": 3}, wording("many_workers.must_not_more_than")),
        ({"workers": 2, "gpus": 0.5}, "a whole GPU each"),
    ],
)
def test_execution_fields_that_cannot_mean_anything_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ExecutionSpec.model_validate({"distill": fields})


def test_how_many_workers_train_is_no_part_of_an_identity() -> None:
    task = Task(recorded(), {})
    execution = ExecutionSpec.model_validate({"distill": {"workers": 4, "parallel": "fsdp", "teacher": "sharded"}})
    options = execution.distill.model_dump(exclude={"cpus", "gpus", "memory", "resources"})
    node = Node(task, "distill", Execution(**read_options(options)))
    assert node.execution.workers == 4
    assert node.id == Node(task, "distill").id


def loads_ray_train() -> bool:
    """Whether what runs tasks loads Ray Train; in a process that has done trainings before."""
    importlib.import_module("runners.executor.worker")
    return "ray.train" in sys.modules


def test_one_worker_needs_no_ray_train(crew: Crew) -> None:
    assert crew.run(1, loads_ray_train) == [False]


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GroupStory]:
    temporary = Path(tempfile.mkdtemp(prefix="bx-", dir="/tmp"))  # Ray's sockets want a short path
    yield GroupStory(tmp_path_factory.mktemp("story"), temporary)
    shutil.rmtree(temporary, ignore_errors=True)


@pytest.fixture(scope="module")
def disturbed(story: GroupStory) -> str:
    """A run on one machine: a worker is killed, the controller of the next group, and the third group is interrupted.

    Returns its output.
    """
    process = story.start("--cpus", "2", "--plain")
    story.wait_for_a_checkpoint(process, groups=1)
    os.kill(story.groups()[0][1], signal.SIGKILL)
    story.wait_for_a_checkpoint(process, groups=2)
    os.kill(story.controller(), signal.SIGKILL)
    story.wait_for_a_checkpoint(process, groups=3)
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 130, output
    return output


@pytest.mark.chaos
def test_a_worker_that_is_killed_makes_the_group_start_again_from_its_last_checkpoint(
    story: GroupStory, disturbed: str
) -> None:
    first, second, _ = story.groups()
    assert len(first) == len(second) == 2
    assert not set(first) & set(second)
    assert re.search(wording("many_workers.lost_worker_group_starts"), disturbed)
    assert re.search(wording("failures.continues_after_step", steps=STEPS), disturbed)
    assert [event["event"] for event in story.events()].count("task_started") == 1  # the task itself was not retried


@pytest.mark.chaos
def test_a_controller_that_is_killed_costs_a_group_as_a_worker_does_and_its_room_is_given_back(
    story: GroupStory, disturbed: str
) -> None:
    _, second, third = story.groups()
    assert len(third) == 2  # of as many CPUs as there are: those of the second group were free
    assert not set(second) & set(third)
    assert wording("many_workers.lost_controller_group_group") in disturbed


@pytest.mark.chaos
def test_an_interrupt_leaves_a_checkpoint_and_no_process_and_no_file_of_rays(story: GroupStory, disturbed: str) -> None:
    assert wording("many_workers.same_command_continues_here") in disturbed
    assert story.checkpoint() > 0
    assert {path.name[:5] for path in story.resume.iterdir()} == {"step-"}
    assert story.alive() == []
    assert list(story.home.iterdir()) == []
    assert {path.name for path in story.temporary.iterdir()} <= {TORCH_FOLDER}
    assert not story.artifact.exists()


@pytest.fixture(scope="module")
def finished(story: GroupStory, disturbed: str) -> tuple[int, str]:
    """A run on two machines, one of which is lost. Returns the step that it began behind, and its output."""
    del disturbed
    began = story.checkpoint()
    with two_machines(story) as (address, variables, lose_one):
        process = story.start("--address", address, "--plain", **variables)
        story.wait_for_a_checkpoint(process, groups=1)
        lose_one()
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output
    return began, output


@pytest.mark.chaos
def test_a_training_whose_machine_is_lost_ends_on_those_that_are_left(
    story: GroupStory, finished: tuple[int, str]
) -> None:
    began, output = finished
    assert wording("many_workers.continues_after_step_4", began=began, steps=STEPS) in output
    assert [len(group) for group in story.groups()] == [2, 1]
    assert wording("many_workers.trains_workers_wanted") in output


@pytest.mark.chaos
def test_the_artifact_of_a_disturbed_training_is_that_of_an_undisturbed_one_on_one_worker(
    tmp_path: Path, story: GroupStory, finished: tuple[int, str]
) -> None:
    assert finished
    assert story.store.damage("distill", story.task.id, checksums=True) is None
    expected = story.reference(tmp_path / "one").path
    actual = tmp_path / "actual"
    shutil.copytree(story.artifact, actual, ignore=shutil.ignore_patterns("artifact.json"))
    same(actual, expected)
    assert not story.resume.exists()
