"""Packed rows whose documents do not see each other: each is what it is alone, in every task that reads text."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AttentionInterface

from boomspec.core.errors import BoomspecError, SpecError
from boomspec.core.layers import STUDENT, TEACHER, read_layers
from boomspec.core.losses import Losses
from boomspec.core.tasks import BlockStates, Calibration, Distill, During, Evaluate, HeldOut, TeacherOutputs, TopTokens
from boomspec.models.facts import read_facts
from boomspec.models.packing import refuse_apart
from boomspec.store import FolderStore
from runners.blockwise.layer import embedding, lone_layer
from runners.blockwise.states import StoredStates
from runners.data.tokens import TokenStream
from runners.modeling.documents import BEGINS, marked, marks_of, tokens_of
from runners.modeling.hidden_states import LMHead, capture, check_apart, trunk
from runners.modeling.labels import inputs_of, without_label
from runners.modeling.shared_forward import SharedForward
from runners.search.calibration import calibration_batches
from runners.tasks import block_states, distill, evaluate, teacher_outputs
from runners.tasks.distill import distillation_loss
from runners.training.output_files import StoredRows
from tests.messages import wording
from tests.runners import small, tiny

EOS, LENGTH, ROWS = 0, 24, 3
KEPT = (0, 2)
SLIDING = {"sliding_window": 4}
MIXED = {**SLIDING, "layer_types": ["sliding_attention", "full_attention"] * 2}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {}, "qwen3": {}, "gpt2": {}, "mistral": SLIDING, "gemma3_text": MIXED
}  # fmt: skip
LOSSES = ("cross_entropy", "kl", "hidden_cosine", "hidden_nmse", "minilmv2", "attention_maps")


def artifact(folder: Path, *, prefix: tuple[int, ...] = (), ends: bool = False) -> Path:
    """A token artifact of short documents of random tokens; with `ends` some have an end-of-text inside."""
    tiny.token_artifact(folder)
    numbers = np.random.default_rng(3)
    meta = json.loads((folder / "meta.json").read_text()) | ({"prefix": prefix} if prefix else {})
    for split, count in (("train", 60), ("held_out", 30)):
        front = [*prefix] if prefix not in ((), (EOS,)) else []
        stream: list[int] = [] if front else [EOS]
        places = []
        for document in range(count):
            text = numbers.integers(3, tiny.VOCABULARY, size=int(numbers.integers(1, 13))).tolist()
            if ends and document % 3 == 0:
                text.insert(len(text) // 2, EOS)
            stream += [*front, *text, EOS]
            places.append(len(stream))
        np.asarray(stream, "<u2").tofile(folder / f"{split}.bin")
        meta[split] = {"tokens": len(stream), "documents": count, "bytes": len(stream)}
        if ends:
            np.asarray(places, "<u8").tofile(folder / f"{split}.ends")
    (folder / "meta.json").write_text(json.dumps(meta | ({"ends": True} if ends else {})))
    return folder


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return artifact(tmp_path_factory.mktemp("tokens") / "tokens")


def batch_of(folder: Path, *, rows: int = ROWS) -> Tensor:
    return torch.from_numpy(TokenStream(folder, apart=True).drawn(0, rows, sequence_length=LENGTH, seed=0))


def documents(batch_BT: Tensor) -> Iterator[tuple[int, slice]]:
    """Row and place of every document among the inputs of a marked batch."""
    for row, begins_T in enumerate(marks_of(batch_BT[:, :-1]) != 0):
        starts = sorted({0, *begins_T.nonzero().flatten().tolist()})
        for start, end in zip(starts, [*starts[1:], begins_T.numel()], strict=True):
            yield row, slice(start, end)


def pair(family: str, **fields: Any) -> tuple[Any, Any]:
    fields = {**FAMILIES[family], **fields}
    half = {k: v[:2] if isinstance(v, list) else v for k, v in fields.items()}
    return tiny.model(family, layers=2, seed=1, **half), tiny.model(family, layers=4, seed=2, **fields).requires_grad_(
        False
    )


def graded(student: Any, teacher: Any, losses: Losses, parts: list[tuple[Tensor, Tensor]], count: int) -> Any:
    """The sum of the losses of these inputs and labels, and its gradients."""
    student.zero_grad(set_to_none=True)
    loss = distillation_loss(student, [teacher], losses, KEPT)
    total = torch.zeros(())
    for inputs_BT, labels_BT in parts:
        value, _ = loss(inputs_BT, labels_BT, count)
        value.backward()
        total = total + value.detach()
    return total, {name: p.grad.clone() for name, p in student.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_of_a_packed_row_is_that_of_one_document_at_a_time(tokens: Path, family: str, attention: str) -> None:
    student, teacher = pair(family)
    for model in (student, teacher):
        model.set_attn_implementation(attention)
    losses = Losses.model_validate({kind: {} for kind in LOSSES})
    batch_BT = batch_of(tokens)
    inputs_BT, labels_BT = inputs_of(batch_BT[:, :-1]), tokens_of(batch_BT[:, 1:])
    count, places = labels_BT.numel(), list(documents(batch_BT))
    assert len(places) > 3 * ROWS
    apart = [(tokens_of(inputs_BT[row, place])[None], labels_BT[row, place][None]) for row, place in places]
    expected, its = graded(student, teacher, losses, apart, count)
    found, own = graded(student, teacher, losses, [(inputs_BT, labels_BT)], count)
    together, other = graded(student, teacher, losses, [(tokens_of(inputs_BT), labels_BT)], count)
    assert float(abs(found - expected)) < 1e-5 * float(abs(expected))
    assert float(abs(together - expected)) > 1e-3 * float(abs(expected))
    assert own.keys() == its.keys() == other.keys()
    for name, gradient in its.items():
        torch.testing.assert_close(own[name], gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max()) + 1e-7)
    assert any(not torch.allclose(other[name], its[name], rtol=1e-2) for name in its)


CASES: dict[str, tuple[tuple[int, ...], bool]] = {
    "no token of its own": ((), False), "its end-of-text": ((EOS,), False), "a token": ((1,), False),
    "two tokens": ((1, 2), False), "ends inside": ((), True), "ends inside, a token": ((1,), True),
}  # fmt: skip


def test_a_mask_is_kept_once_for_all_layers(tokens: Path) -> None:
    def kept(layers: int, batch_BT: Tensor) -> int:
        found: dict[int, Tensor] = {}

        def pack(tensor: Tensor) -> Tensor:
            found[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        model = tiny.model("llama", layers=layers)
        hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
        with hooks, torch.autocast("cpu", torch.bfloat16):
            trunk(model, batch_BT)
        return sum(tensor.untyped_storage().nbytes() for tensor in found.values())

    marked_BT = inputs_of(batch_of(tokens))
    one, four = (kept(layers, marked_BT) - kept(layers, tokens_of(marked_BT)) for layers in (1, 4))
    assert one == four >= 2 * ROWS * (LENGTH + 1) ** 2  # bf16, as the products are


@pytest.mark.parametrize(("prefix", "ends"), CASES.values(), ids=CASES)
def test_marks_are_where_documents_begin(tmp_path: Path, prefix: tuple[int, ...], ends: bool) -> None:
    stream = TokenStream(artifact(tmp_path / "tokens", prefix=prefix, ends=ends), apart=True)
    plain = TokenStream(tmp_path / "tokens")
    own = stream.unlabelled != ()
    begins, stops = stream.bounds
    # Without tokens of their own documents begin with the end-of-text before them.
    places = {int(start) - (0 if own or prefix else 1) for start in begins}
    marks = {int(place) for place in np.flatnonzero(stream.begins(0, len(stream)))}
    assert marks | {0} == places | ({len(stream) - 1} if not own else set()) | {0}
    for at in range(0, 40, 7):
        assert stream.begins(at, at + 9).tolist() == stream.begins(0, at + 9)[at:].tolist()
    one, other = (s.drawn(0, 40, sequence_length=LENGTH, seed=0) for s in (stream, plain))
    assert one.dtype == np.int32
    assert np.array_equal(tokens_of(torch.from_numpy(one)).numpy(), other)
    for row in one:
        for place in np.flatnonzero(row & BEGINS):
            if own:
                assert tuple(row[place : place + len(prefix)] & ~BEGINS) == prefix[: len(row) - place]
            elif not ends:
                assert row[place] & ~BEGINS == EOS
    assert len(stops) == stream.documents


def test_marks_stay_with_tokens_that_are_no_labels() -> None:
    hidden = without_label(np.array([5, 6]))
    batch = torch.from_numpy(marked(np.array([4, hidden[0], hidden[1], 7, -1]), np.array([1, 1, 0, 1, 0], np.bool_)))
    read = inputs_of(batch)
    assert tokens_of(read).tolist() == [4, 5, 6, 7, 0]
    assert (marks_of(read) != 0).tolist() == [True, True, False, True, False]
    assert (tokens_of(batch) >= 0).tolist() == [True, False, False, True, False]


def test_layers_run_alone_and_shared_prefixes_keep_documents_apart(tokens: Path, tmp_path: Path) -> None:
    inputs_BT = inputs_of(batch_of(tokens)[:, :-1])
    for family in ("gpt2", "mistral"):
        student, teacher = pair(family)
        teacher.save_pretrained(tmp_path / family)
        with torch.no_grad(), capture(teacher, ["embedding", 0, 1, 2, 3]) as states:
            last_BTD = trunk(teacher, inputs_BT)
        with torch.no_grad(), embedding(tmp_path / family, dtype=torch.float32) as embed:
            hidden_BTD = embed(inputs_BT)
        torch.testing.assert_close(hidden_BTD, states["embedding"])
        for index in range(4):
            with torch.no_grad(), lone_layer(tmp_path / family, index, dtype=torch.float32) as layer:
                without_BTD = layer(hidden_BTD)
                hidden_BTD = layer(hidden_BTD, inputs_BT)
            torch.testing.assert_close(hidden_BTD, states[index], rtol=1e-5, atol=1e-5)
            assert not torch.allclose(hidden_BTD, without_BTD, atol=1e-3)
        found: dict[Any, Tensor] = {}

        def visit(_: int, plan: Any, state_BTD: Tensor, found: dict[Any, Tensor] = found) -> None:
            found[plan] = state_BTD

        shared = SharedForward({TEACHER: teacher, STUDENT: student}, [inputs_BT])
        plans = [read_layers("t0 t1 t2 t3"), read_layers("s0 s1"), read_layers("t0 t1 s1")]
        shared.run(plans, visit)
        torch.testing.assert_close(found[plans[0]], last_BTD, rtol=1e-5, atol=1e-5)
        with torch.no_grad():
            torch.testing.assert_close(found[plans[1]], trunk(student, inputs_BT), rtol=1e-5, atol=1e-5)


def test_a_search_reads_documents_apart(tokens: Path) -> None:
    model = tiny.model()
    text = Calibration(sequences=4, sequence_length=LENGTH, seed=0, isolate=True)
    [batch] = calibration_batches(text, tokens, batch_size=8, model=model)
    assert torch.equal(batch, inputs_of(batch_of(tokens, rows=4)[:, :-1]))


def test_held_out_text_is_measured_one_document_at_a_time(tokens: Path, tmp_path: Path) -> None:
    model = tiny.model("gpt2")
    model.save_pretrained(tmp_path / "artifact" / "model")

    def loss(isolate: bool) -> float:
        measure = HeldOut(sequence_length=LENGTH, isolate=True if isolate else None)
        record = Evaluate(measure=measure, precision="fp32")
        context = tiny.context(tmp_path / str(isolate), record, model=tmp_path / "artifact", tokens=tokens)
        evaluate.run(context)
        return float(json.loads((context.path / "results.json").read_text())["results"]["held_out"]["loss,none"])

    expected = held_out_alone(model, tokens)
    assert loss(True) == pytest.approx(expected, rel=1e-5)
    assert abs(loss(False) - expected) > 1e-3


def held_out_alone(model: Any, tokens: Path) -> float:
    """The held-out loss of a model that reads one document at a time."""
    stream = TokenStream(tokens, "held_out")
    total = count = 0.0
    for start in range(0, len(stream) - 1, LENGTH):
        window = torch.from_numpy(stream.tokens[start : start + LENGTH + 1].astype(np.int64))
        cuts = [0, *(i for i in range(1, len(window) - 1) if window[i] == EOS), len(window) - 1]
        for first, end in pairwise(cuts):
            with torch.no_grad():
                log_p = model(input_ids=window[None, first:end], use_cache=False).logits[0].log_softmax(-1)
            labels = window[first + 1 : end + 1]
            counted = labels != EOS
            total -= float(log_p.gather(1, labels[:, None])[:, 0][counted].double().sum())
            count += int(counted.sum())
    return total / count


def test_a_distillation_trains_on_documents_apart(tokens: Path, tmp_path: Path) -> None:
    teacher = tiny.model("gpt2", seed=3)
    teacher.save_pretrained(tmp_path / "teacher" / "model")
    losses = Losses.model_validate({"cross_entropy": {}, "kl": {}, "hidden_cosine": {}})
    found: dict[bool, Any] = {}
    for isolate in (True, False):
        recipe = tiny.recipe(sequence_length=LENGTH, sequences=4, steps=2, isolate=True if isolate else None)
        during = During(every=2, sizes=(), max_tokens=10_000)
        record = Distill(
            kept=KEPT, initial="teacher", train_embedding=True, losses=losses, recipe=recipe, during=during
        )
        context = tiny.context(tmp_path / str(isolate), record, teacher=tmp_path / "teacher", tokens=tokens)
        distill.run(context)
        rows = [json.loads(line) for line in (context.path / "metrics.jsonl").read_text().splitlines()]
        found[isolate] = (
            rows[0]["cross_entropy"],
            rows[0]["held_out.student"],
            (context.path / "similarity.json").read_text(),
        )
    student = tiny.model("gpt2", layers=2)
    weights = {name: tensor for name, tensor in teacher.state_dict().items() if not name.startswith("transformer.h.")}
    for new, old in enumerate(KEPT):
        own = f"transformer.h.{old}."
        weights |= {
            f"transformer.h.{new}.{name.removeprefix(own)}": tensor
            for name, tensor in teacher.state_dict().items()
            if name.startswith(own)
        }
    student.load_state_dict(weights)
    batch_BT = batch_of(tokens, rows=4)
    total, labels_BT = 0.0, tokens_of(batch_BT[:, 1:])
    for row, place in documents(batch_BT):
        inputs_BT = tokens_of(inputs_of(batch_BT[:, :-1]))[row, place][None]
        with torch.no_grad():
            log_p = student(input_ids=inputs_BT, use_cache=False).logits[0].log_softmax(-1)
        total -= float(log_p.gather(1, labels_BT[row, place][:, None]).double().sum())
    assert found[True][0] == pytest.approx(total / labels_BT.numel(), rel=1e-5)
    assert abs(found[False][0] - found[True][0]) > 1e-4
    assert found[True][1] == pytest.approx(held_out_alone(student, tokens), rel=1e-5)
    assert abs(found[False][1] - found[True][1]) > 1e-4
    assert found[False][2] != found[True][2]  # so are the states compared


def test_what_is_stored_of_a_teacher_is_of_documents_apart(tokens: Path, tmp_path: Path) -> None:
    teacher = tiny.model("gpt2")
    teacher.save_pretrained(tmp_path / "teacher" / "model")
    inputs_BT = inputs_of(batch_of(tokens)[:, :-1])
    with torch.no_grad(), capture(teacher, [1]) as states:
        log_p_BTV = LMHead(teacher)(trunk(teacher, inputs_BT)).log_softmax(-1)
    rows = TokenStream(tokens).windows(LENGTH)
    text: dict[str, Any] = {"seed": 0, "sequence_length": LENGTH, "isolate": True, "precision": "fp32"}
    folders = {"teacher": tmp_path / "teacher", "tokens": tokens}
    record = TeacherOutputs(stored=TopTokens(k=4), rows=rows, **text)
    outputs = tiny.context(tmp_path / "outputs", record, **folders)
    teacher_outputs.run(outputs)
    found = StoredRows(outputs.path)(range(ROWS), torch.device("cpu"))
    assert torch.equal(found.ids, log_p_BTV.topk(4, dim=-1).indices)
    boundary = tiny.context(tmp_path / "states", BlockStates(layer=2, sequences=rows, **text), **folders)
    block_states.run(boundary)
    torch.testing.assert_close(StoredStates(boundary.path).rows(range(ROWS)), states[1], rtol=1e-5, atol=1e-5)


def test_attention_without_masks_is_given_the_documents_lengths(tokens: Path) -> None:
    seen: list[Any] = []

    def flash_reference(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **options: Any) -> Any:
        """Flash attention for lengths that differ, as its kernels read them: all rows are one behind the other."""
        assert mask is None
        rows = torch.arange(query.shape[0] + 1) * query.shape[2]  # without lengths a row is one text
        bounds = options.get("cu_seq_lens_q", rows).tolist()
        seen.append(bounds)
        groups = query.shape[1] // key.shape[1]
        flat = [
            t.transpose(1, 2).flatten(0, 1) for t in (query, *(t.repeat_interleave(groups, 1) for t in (key, value)))
        ]
        parts = []
        for start, end in pairwise(bounds):
            q, k, v = (t[start:end].transpose(0, 1) for t in flat)
            parts.append(torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(0, 1))
        return torch.cat(parts).view(query.shape[0], query.shape[2], *flat[0].shape[1:]), None

    AttentionInterface.register("flash_reference", flash_reference)
    model, inputs_BT = tiny.model(), inputs_of(batch_of(tokens)[:, :-1])
    with torch.no_grad():
        expected = trunk(model, inputs_BT)
        model.config._attn_implementation = "flash_reference"  # its setter would look for a kernel
        found = trunk(model, inputs_BT)
        check_apart(model)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert seen[0][-1] == inputs_BT.numel()


@pytest.mark.parametrize("family", ["jamba", "bloom", "rwkv"])
def test_families_that_cannot_are_found_by_their_config_and_by_trying(tmp_path: Path, family: str) -> None:
    model = tiny.model(family, layers=4)
    with pytest.raises(BoomspecError, match=wording("documents.hint")):
        check_apart(model)
    model.save_pretrained(tmp_path / "model")
    assert refuse_apart(read_facts(tmp_path / "model")) is not None


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "generated": ({"generated": {"tokens": 512}}, wording("documents.does_not_go")),
    "on-policy": ({"on_policy": {"share": 0.5}}, wording("documents.does_not_go")),
    "padding": ({"faithful": {"padding": True}}, wording("documents.does_not_go")),
}


@pytest.mark.parametrize(("section", "message"), REFUSED.values(), ids=REFUSED)
def test_what_has_no_documents_beside_each_other_is_refused(tmp_path: Path, section: Any, message: str) -> None:
    spec = small.write_spec(tmp_path, data={"isolate_documents": True}, distill=section)
    with pytest.raises(SpecError, match=message):
        small.compiled(spec, FolderStore(tmp_path / "store"))


def test_every_task_that_reads_text_knows_it_and_no_other_id_changes(tmp_path: Path) -> None:
    sections: dict[str, Any] = {
        "interpolate": {"order": {"search": "klpatch"}, "seam": {"fit": "refit"}},
        "baselines": ["random_init", "naive_pruning"],
    }

    masks: dict[bool, int] = {}  # bytes that a plan counts for the student's training

    def tasks(**more: Any) -> dict[str, Any]:
        graph = small.compiled(small.write_spec(tmp_path, **sections, **more), FolderStore(tmp_path / "store")).graph
        student = next(node for node in graph.nodes.values() if node.name == "distill student")
        assert student.cost is not None
        masks["data" in more] = student.cost.memory.get("attention mask", 0)
        return {node.name: node.task for node in graph.nodes.values()}

    plain, apart = tasks(), tasks(data={"isolate_documents": True})
    assert masks[True] > masks[False] == 0
    assert tasks(data={"isolate_documents": False}).keys() == plain.keys()
    assert {task.id for task in tasks(data={"isolate_documents": False}).values()} == {t.id for t in plain.values()}
    for name, task in apart.items():
        params = json.dumps(task.record.to_json())
        assert ('"isolate": true' in params) == (task.kind not in ("tokenize", "interpolate", "check", "baseline")), (
            name
        )


def test_a_model_that_cannot_is_refused_at_its_place(tmp_path: Path) -> None:
    tiny.model("bloom").save_pretrained(tmp_path / "teacher")
    tiny.token_artifact(tmp_path / "tokens")
    for file in (tmp_path / "tokens" / "tokenizer").iterdir():
        (tmp_path / "teacher" / file.name).write_bytes(file.read_bytes())
    teacher = {"pretrain": None, "model": "./teacher"}
    spec = small.write_spec(tmp_path, teacher=teacher, data={"isolate_documents": True})
    with pytest.raises(SpecError, match=wording("documents.alibi")) as caught:
        small.compiled(spec, FolderStore(tmp_path / "store"))
    assert "data.isolate_documents" in str(caught.value)
