"""A teacher's outputs are stored, and students learn from them without it: as online, interrupted, together."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from boomspec.compile.cost.shapes import model_of
from boomspec.core.errors import BoomspecError
from boomspec.core.losses import KL, CrossEntropy, Losses
from boomspec.core.tasks import Distill, Samples, TeacherOutputs, TopTokens
from boomspec.models.facts import read_facts
from boomspec.store import FolderStore
from runners.data.tokens import TokenStream
from runners.modeling.hidden_states import LMHead, trunk
from runners.modeling.models import load_frozen
from runners.runtime.context import Context
from runners.tasks import distill, teacher_outputs
from runners.training import output_files
from runners.training.output_files import StoredRows
from runners.training.process_group import ProcessGroup
from runners.training.teacher_outputs import numbers_of, sampled_tokens
from tests.messages import wording
from tests.runners import small, tiny
from tests.runners.instruments import counted_flops
from tests.runners.test_cohort import interrupted_at
from tests.runners.test_distill import metrics, payload, record, teacher_artifact

LENGTH, ROWS = 16, 48  # of tiny.recipe: 6 steps of 8 sequences
LOSSES = Losses(cross_entropy=CrossEntropy(), kl=KL(weight=0.5))
WHOLE, TOP, DRAWN = TopTokens(k=tiny.VOCABULARY), TopTokens(k=5), Samples(count=12, temperature=1.0)
WEIGHTED = Samples(count=6, temperature=1.4)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("inputs")
    tokens = tiny.token_artifact(folder / "tokens")
    return {"teacher": teacher_artifact(folder / "teacher", tie_word_embeddings=True), "tokens": tokens}


def stored(
    folder: Path, folders: dict[str, Path], how: TopTokens | Samples, *, batch_size: int = 8, **fields: Any
) -> Path:
    """The folder of the artifact of a `teacher_outputs` task."""
    plain = {"stored": how, "seed": 0, "rows": ROWS, "sequence_length": LENGTH, "precision": "fp32"}
    context = tiny.context(folder, TeacherOutputs(**plain | fields), **folders)
    context.execution = type(context.execution)(batch_size=batch_size)
    teacher_outputs.run(context)
    return context.path


def student(how: TopTokens | Samples | None, **fields: Any) -> Distill:
    return record(losses=LOSSES, teacher_outputs=how, **fields)


def context_of(place: Path, of: Distill, folders: dict[str, Path], **options: Any) -> Context[Any]:
    context = tiny.context(place, of, resume=options.pop("resume", None), **folders)
    tiny.set_training(context, **options)
    return context


def trained(place: Path, of: Distill, folders: dict[str, Path], **options: Any) -> Context[Any]:
    context = context_of(place, of, folders, **options)
    distill.run(context)
    return context


def counted(body: Callable[[], Any]) -> int:
    """Floating-point operations of a task's body."""
    with counted_flops() as counter:
        body()
    return counter.get_total_flops()


def log_probs(folders: dict[str, Path], rows: int = ROWS) -> torch.Tensor:
    """log_probs_BTV of the teacher at the rows of the training."""
    teacher = load_frozen(folders["teacher"] / "model", dtype=torch.float32)
    tokens = TokenStream(folders["tokens"]).drawn(0, rows, sequence_length=LENGTH, seed=0)
    with torch.no_grad():
        return LMHead(teacher)(trunk(teacher, torch.from_numpy(tokens[:, :-1]))).log_softmax(-1)


@pytest.mark.parametrize("how", [TOP, WHOLE])
def test_top_k_has_the_likeliest_tokens_and_the_rest_in_the_order_of_the_training(
    tmp_path: Path, folders: dict[str, Path], how: TopTokens
) -> None:
    found = StoredRows(stored(tmp_path, folders, how))(range(ROWS), torch.device("cpu"))
    expected = log_probs(folders)
    kept, ids = expected.topk(how.k, dim=-1)
    assert torch.equal(found.ids, ids)
    rest = expected.scatter(-1, ids, -torch.inf).logsumexp(-1, keepdim=True)
    kept = kept if how is WHOLE else torch.cat([kept, rest], dim=-1)
    torch.testing.assert_close(found.log_probs, kept, rtol=2**-11, atol=1e-5)  # of fp16
    assert found.log_probs.exp().sum(-1).sub(1).abs().max() < 2e-3


@pytest.mark.parametrize("how", [DRAWN, WEIGHTED])
def test_samples_are_drawn_from_the_distribution_with_weights_that_undo_it(
    tmp_path: Path, folders: dict[str, Path], how: Samples
) -> None:
    found = StoredRows(stored(tmp_path, folders, how))(range(ROWS), torch.device("cpu"))
    log_p = log_probs(folders)
    log_s = (log_p / how.temperature).log_softmax(-1)
    assert found.ids.shape == (ROWS, LENGTH, how.count)
    torch.testing.assert_close(found.entropy, -(log_p.exp() * log_p).sum(-1), rtol=1e-4, atol=1e-5)
    assert (found.log_weights is None) == (how is DRAWN)
    if found.log_weights is not None:
        torch.testing.assert_close(found.log_weights, (log_p - log_s).gather(-1, found.ids), rtol=2e-3, atol=2e-3)
    # Over all positions: how often each token is drawn, against how often it is to be, in standard errors.
    counts = torch.bincount(found.ids.flatten(), minlength=tiny.VOCABULARY).double()
    s = log_s.double().exp().flatten(0, 1)
    error = (how.count * s * (1 - s)).sum(0).sqrt()
    assert ((counts - how.count * s.sum(0)).abs() / error).max() < 5


def test_a_draw_depends_on_its_place_and_seed_alone() -> None:
    one, other = numbers_of(3, 7, 5, 4), numbers_of(3, 8, 5, 4)
    assert torch.equal(one, numbers_of(3, 7, 5, 4))
    assert not torch.equal(one, other)
    assert not torch.equal(one, numbers_of(4, 7, 5, 4))
    log_p = torch.randn(5, 1000, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    whole = sampled_tokens(log_p, DRAWN, one)["ids"]
    singly = [sampled_tokens(log_p[i : i + 1], DRAWN, one[i : i + 1])["ids"] for i in range(5)]
    assert torch.equal(whole, torch.cat(singly))
    ends = torch.tensor([[0.0, 1 - 2**-53]])
    assert (log_p[0].exp()[sampled_tokens(log_p[:1], DRAWN, ends)["ids"]] > 0).all()


@pytest.mark.parametrize("how", [TOP, DRAWN, WEIGHTED])
def test_how_rows_are_batched_changes_nothing_but_rounding(
    tmp_path: Path, folders: dict[str, Path], how: TopTokens | Samples
) -> None:
    one, other = (
        StoredRows(stored(tmp_path / str(size), folders, how, batch_size=size))(range(ROWS), torch.device("cpu"))
        for size in (1, 7)
    )
    assert torch.equal(one.ids, other.ids)
    for name in ("log_probs", "log_weights", "entropy"):
        if getattr(one, name, None) is not None:
            torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=2**-10, atol=1e-5)


@pytest.mark.parametrize("how", [TOP, WHOLE, DRAWN, WEIGHTED])
def test_the_files_have_the_bytes_that_the_plan_says(
    tmp_path: Path, folders: dict[str, Path], how: TopTokens | Samples
) -> None:
    folder = stored(tmp_path, folders, how)
    said = ROWS * LENGTH * how.bytes(tiny.VOCABULARY)
    shards = sorted(folder.glob("*.safetensors"))
    arrays = [array for shard in shards for array in load_file(shard).values()]
    assert sum(array.nbytes for array in arrays) == said
    assert {array.dtype for array in arrays} <= {np.dtype(name) for name in ("uint16", "float16", "float32")}
    assert said <= sum(file.stat().st_size for file in folder.iterdir()) <= said + 500 * len(shards)


def test_a_killed_task_goes_on_after_its_last_whole_shard_to_the_same_bytes(
    tmp_path: Path, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output_files, "OUTPUT_SHARD", 10 * LENGTH * WEIGHTED.bytes(tiny.VOCABULARY))
    whole = stored(tmp_path / "whole", folders, WEIGHTED)
    expected = {file.name: file.read_bytes() for file in whole.iterdir()}
    assert len(expected) == 6  # five shards and what says so

    resume, drawn = tmp_path / "resume", TokenStream.drawn
    plain = {"stored": WEIGHTED, "seed": 0, "rows": ROWS, "sequence_length": LENGTH, "precision": "fp32"}

    def attempt(name: str, stop: int) -> tuple[Context[Any], list[int]]:
        asked: list[int] = []

        def stopping(stream: TokenStream, first: int, count: int, **arguments: int) -> Any:
            asked.append(first)
            if first >= stop:
                raise KeyboardInterrupt
            return drawn(stream, first, count, **arguments)

        context = tiny.context(tmp_path / name, TeacherOutputs(**plain), resume=resume, **folders)
        with patch.object(TokenStream, "drawn", stopping):
            try:
                teacher_outputs.run(context)
            except KeyboardInterrupt:
                assert not list(context.path.iterdir())
        return context, asked

    attempt("first", 25)
    assert sorted(file.name for file in resume.iterdir()) == ["outputs-00000.safetensors", "outputs-00001.safetensors"]
    _, asked = attempt("second", 35)
    assert asked[0] == 20  # nothing that is whole is computed again
    damaged = resume / "outputs-00001.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\xff")
    last, asked = attempt("third", ROWS)
    assert asked[0] == 10
    assert {file.name: file.read_bytes() for file in last.path.iterdir()} == expected
    assert any(wording("teacher_outputs.continues", rows=10) in note for note in tiny.notes(last))


def test_the_whole_vocabulary_stored_is_as_good_as_the_teacher(tmp_path: Path, folders: dict[str, Path]) -> None:
    """Also where the training reads the text more than once: the rows of later epochs are those of the first."""
    few = {**folders, "tokens": tiny.token_artifact(tmp_path / "few", train=20 * LENGTH + 1)}
    online = trained(tmp_path / "online", student(None), few)
    outputs = stored(tmp_path / "outputs", few, WHOLE)
    assert json.loads((outputs / "meta.json").read_text())["rows"] == 20
    offline = trained(tmp_path / "offline", student(WHOLE), {**few, "outputs": outputs}, micro_batch=3)
    for one, other in zip(metrics(online), metrics(offline), strict=True):
        assert other["kl"] == pytest.approx(one["kl"], rel=2e-3, abs=1e-4)  # fp16
        assert other["cross_entropy"] == pytest.approx(one["cross_entropy"], rel=1e-3)
    assert json.loads((offline.path / "similarity.json").read_text()) == {"pairs": []}


@pytest.mark.parametrize("how", [TOP, DRAWN])
def test_a_student_of_stored_outputs_never_loads_its_teacher(
    tmp_path: Path, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, how: TopTokens | Samples
) -> None:
    given = {**folders, "outputs": stored(tmp_path / "outputs", folders, how)}

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("the teacher is loaded")

    monkeypatch.setattr(distill, "load_frozen", never)
    rows = metrics(trained(tmp_path / "student", student(how, recipe={"steps": 6}), given))
    assert set(rows[0]) == {"step", "tokens", "loss", "cross_entropy", "kl", "lr", "grad_norm"}
    assert rows[-1]["loss"] < rows[0]["loss"]


@pytest.mark.parametrize("how", [TOP, DRAWN])
def test_micro_batches_change_nothing_but_rounding(
    tmp_path: Path, folders: dict[str, Path], how: TopTokens | Samples
) -> None:
    given = {**folders, "outputs": stored(tmp_path / "outputs", folders, how)}
    one, other = (metrics(trained(tmp_path / str(n), student(how), given, micro_batch=n)) for n in (1, 8))
    for a, b in zip(one, other, strict=True):
        assert a == pytest.approx(b, rel=2e-4)


def test_workers_read_the_rows_of_their_own_micro_batches(tmp_path: Path, folders: dict[str, Path]) -> None:
    given = {**folders, "outputs": stored(tmp_path / "outputs", folders, TOP)}
    context = context_of(tmp_path / "student", student(TOP), given)
    targets_of = distill.stored_outputs(context)
    assert targets_of is not None
    tokens = torch.from_numpy(TokenStream(folders["tokens"]).batch(2, sequences=8, sequence_length=LENGTH, seed=0))
    moment = partial(distill.Moment, 2, 6)
    whole = targets_of(tokens[:, :-1], moment(0)).stored
    for size, micro_batch in ((1, 3), (3, 2), (2, 8)):
        parts = []
        for rank in range(size):
            for block, first_row, counts in ProcessGroup(rank, size).micro_batches(tokens, micro_batch):
                found = targets_of(block[:, :-1], moment(first_row)).stored
                parts += [found] if counts else []
        for name in ("ids", "log_probs"):
            assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))


def test_an_interrupted_student_goes_on_to_the_same_bits_and_a_cohort_has_those_of_each(
    tmp_path: Path, folders: dict[str, Path]
) -> None:
    given = {**folders, "outputs": stored(tmp_path / "outputs", folders, DRAWN)}
    records = [student(DRAWN), student(DRAWN, kept=(0, 3, 5), initial="random")]
    alone = [payload(trained(tmp_path / f"alone {n}", one, given, micro_batch=2)) for n, one in enumerate(records)]

    def contexts(place: str) -> list[Context[Any]]:
        return [
            context_of(tmp_path / place / str(n), one, given, micro_batch=2, resume=tmp_path / f"resume {n}")
            for n, one in enumerate(records)
        ]

    with interrupted_at(3), pytest.raises(KeyboardInterrupt):
        distill.run(contexts("first")[0])
    together = contexts("second")
    assert all(error is None for _, error in distill.run_together(together))
    assert [payload(context) for context in together] == alone


def test_outputs_of_fewer_rows_are_an_error(tmp_path: Path, folders: dict[str, Path]) -> None:
    given = {**folders, "outputs": stored(tmp_path / "outputs", folders, TOP, rows=ROWS - 1)}
    with pytest.raises(BoomspecError, match=wording("teacher_outputs.not_of_number", rows=ROWS - 1)):
        trained(tmp_path / "student", student(TOP), given)


OFFLINE = {"losses": {"cross_entropy": {}, "kl": {"weight": 0.5}}, "teacher_outputs": {"top_k": 8}}
VARIANTS = {
    "rate": {"distill": {"optimizer": {"lr": 0.01}}},
    "layers": {"student": {"keep": [0, 3]}},
    "weights": {"distill": {"losses": {"kl": {"weight": 0.1}}}},
    "other-text": {"distill": {"tokens": 256}},
}


def test_variants_share_one_artifact_and_what_reads_other_text_has_its_own(tmp_path: Path) -> None:
    spec = small.write_spec(tmp_path, distill=OFFLINE, variants=VARIANTS, baselines=["random_init"])
    graph = small.compiled(spec, FolderStore(tmp_path / "store")).graph
    made = [node for node in graph.nodes.values() if node.task.kind == "teacher_outputs"]
    read = [node.task.inputs["outputs"] for node in graph.nodes.values() if node.task.kind == "distill"]
    assert (len(made), len(set(read)), len(read)) == (2, 2, 10)
    assert sorted(read.count(node.id) for node in made) == [2, 8]
    whole = max(made, key=lambda node: node.cost.disk)
    assert whole.name == "teacher outputs"
    assert whole.cost.disk == 512 * TopTokens(k=8).bytes(300)
    [student] = [node for node in graph.nodes.values() if node.name == "distill student"]
    assert "teacher" not in student.cost.memory
    plain = small.write_spec(tmp_path, distill={**OFFLINE, "teacher_outputs": None})
    online = small.compiled(plain, FolderStore(tmp_path))
    [other] = [node for node in online.graph.nodes.values() if node.name == "distill student"]
    assert student.cost.flops < other.cost.flops


REFUSED = {
    "hidden states": ({"losses": {"kl": {}, "hidden_cosine": {}}}, wording("teacher_outputs.reads_more")),
    "another temperature": ({"losses": {"kl": {"temperature": 2.0}}}, wording("teacher_outputs.temperature")),
    "no reader": ({"losses": {"kl": None, "cross_entropy": {}}}, wording("teacher_outputs.no_reader")),
    "padding": ({"faithful": {"padding": True}}, wording("teacher_outputs.padding")),
    "both": ({"teacher_outputs": {"top_k": 4, "samples": 4}}, wording("teacher_outputs.both")),
    "too many": ({"teacher_outputs": {"top_k": 301}}, wording("teacher_outputs.too_many")),
    "a temperature of top k": ({"teacher_outputs": {"temperature": 2.0}}, wording("teacher_outputs.goes_with_samples")),
}


@pytest.mark.parametrize(("change", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_well_defined_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    losses = {**OFFLINE["losses"], **change.get("losses", {})}
    outputs = {**OFFLINE["teacher_outputs"], **change.get("teacher_outputs", {})}
    written = {kind: term for kind, term in losses.items() if term is not None}
    spec = small.write_spec(tmp_path, distill={**change, "losses": written, "teacher_outputs": outputs})
    with pytest.raises(BoomspecError, match=message):
        small.compiled(spec, FolderStore(tmp_path / "store"))


@pytest.mark.parametrize("outputs", [True, False])
def test_execution_of_what_is_not_run_is_refused(tmp_path: Path, *, outputs: bool) -> None:
    execution = {"distill": {"workers": 2, "teacher": "sharded"}} if outputs else {"teacher_outputs": {"cpus": 2}}
    spec = small.write_spec(tmp_path, distill=OFFLINE if outputs else {}, execution=execution)
    with pytest.raises(
        BoomspecError,
        match=wording("teacher_outputs.no_teacher") if outputs else wording("teacher_outputs.nothing_stored"),
    ):
        small.compiled(spec, FolderStore(tmp_path / "store"))


@pytest.mark.parametrize("kind", ["generate", "distill_block", "block_states"])
def test_execution_of_text_and_blocks_that_are_not_there_is_refused(tmp_path: Path, kind: str) -> None:
    spec = small.write_spec(tmp_path, execution={kind: {"cpus": 2}})
    message = wording("teacher_outputs.no_text") if kind == "generate" else wording("teacher_outputs.no_blocks")
    with pytest.raises(BoomspecError, match=message):
        small.compiled(spec, FolderStore(tmp_path / "store"))


@pytest.mark.parametrize("how", [TOP, WEIGHTED])
def test_the_plan_counts_the_operations(tmp_path: Path, folders: dict[str, Path], how: TopTokens | Samples) -> None:
    """Of the teacher alone; the check of its head takes as many, whatever is stored."""
    one, two = (counted(lambda rows=rows: stored(tmp_path / f"{rows}", folders, how, rows=rows)) for rows in (8, 16))
    rate = two - one
    teacher = model_of(read_facts(folders["teacher"] / "model"))
    assert rate == 8 * LENGTH * (teacher.forward(LENGTH) + teacher.head())
