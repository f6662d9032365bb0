"""Weights that sizes get of their own at their seams, against plain implementations in float64 and real models."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from boomspec.core.errors import BoomspecError
from boomspec.core.layers import STUDENT, TEACHER, blocks, ends_of, read_layers, teacher_layers
from boomspec.core.tasks import Calibration, Seam
from boomspec.models.facts import read_facts
from boomspec.models.writes import writes_of
from boomspec.store import FolderStore
from runners.assembly.assemble import assemble
from runners.assembly.seam import mend
from runners.cli.export import export
from runners.executor.sharing import sharing
from runners.modeling.family import load_family, load_member
from runners.modeling.family_folder import open_family_folder
from runners.modeling.layerwise import Batch, take_apart
from runners.modeling.models import load_frozen
from runners.tasks import seam
from tests.messages import wording
from tests.runners import small, tiny

LAYERS, KEPT = 7, (0, 2, 4, 5)  # blocks 0 1 | 2 3 | 4 | 5 6
BOTH = "t0 t1 s1 s2 t5 t6"  # a seam of each kind
INPUTS_BT = torch.from_numpy(np.random.default_rng(0).integers(0, tiny.VOCABULARY, (2, 11)))
CALIBRATION = Calibration(sequences=12, sequence_length=16, seed=3)
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": True},
    "mistral": {"tie_word_embeddings": False},
    "qwen2": {"tie_word_embeddings": False},
    "qwen3": {"tie_word_embeddings": True},
    "phi3": {"tie_word_embeddings": False},
    "gemma": {"tie_word_embeddings": True},
    "gpt2": {},
    "gpt_neox": {"tie_word_embeddings": False},
}


def make_pair(folder: Path, family: str) -> dict[Any, Path]:
    """A random teacher, and a student assembled from it whose every weight is then moved."""
    tiny.model(family, layers=LAYERS, seed=5, **FAMILIES[family]).save_pretrained(folder / "teacher" / "model")
    sources: dict[Any, Path] = {TEACHER: folder / "teacher" / "model", STUDENT: folder / "student" / "model"}
    tied = read_facts(sources[TEACHER]).tied
    assemble({TEACHER: sources[TEACHER]}, teacher_layers(KEPT), sources[STUDENT], tied=tied)
    student = AutoModelForCausalLM.from_pretrained(sources[STUDENT])
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.mul_(1.3).add_(torch.randn_like(parameter) * 0.02)
    student.save_pretrained(sources[STUDENT])
    return sources


def record(sources: dict[Any, Path], plan: str, **fields: Any) -> Seam:
    rest = {} if fields["fit"] == "scale" else {"reach": 1, "ridge": 0.01}
    known = {"kept": KEPT, "writes": writes_of(read_facts(sources[TEACHER])), "calibration": CALIBRATION}
    return Seam(plan=read_layers(plan), **{"precision": "fp32"} | known | rest | fields)


def fitted(folder: Path, sources: dict[Any, Path], of: Seam) -> tuple[Path, list[dict[str, Any]]]:
    """What the task writes: the file of the weights, and the rows of its numbers."""
    tokens = folder / "tokens"
    if not tokens.exists():
        tiny.token_artifact(tokens)
    inputs = {"teacher": sources[TEACHER].parent, "student": sources[STUDENT].parent, "tokens": tokens}
    context = tiny.context(folder / "fit", of, **inputs)
    seam.run(context)
    return context.path / "seam.safetensors", json.loads((context.path / "seam.json").read_text())["places"]


def logits_by_hand(
    sources: dict[Any, Path], of: Seam, at: Callable[[int, Tensor], Tensor], new: dict[str, Tensor]
) -> Tensor:
    """logits_BTV of a plan run layer by layer: `at` changes the stream in front of a place, `new` weights of it."""
    models = {owner: load_frozen(folder, dtype=torch.float32) for owner, folder in sources.items()}
    opened = {owner: Batch(take_apart(model, INPUTS_BT), INPUTS_BT) for owner, model in models.items()}
    stream_BTD = opened[of.plan[0].owner].embedding_BTD
    for place, layer in enumerate(of.plan):
        module = take_apart(models[layer.owner], INPUTS_BT).layers[layer.index]
        own = {name: tensor.clone() for name, tensor in module.state_dict().items()}
        module.load_state_dict(own | {n.partition(".")[2]: t for n, t in new.items() if n.startswith(f"{place}.")})
        stream_BTD = opened[layer.owner].layer(layer.index, at(place, stream_BTD))
        module.load_state_dict(own)
    last = ends_of(of.plan)[1]
    return take_apart(models[last], INPUTS_BT).head(opened[last].finish(stream_BTD))


def assembled(folder: Path, sources: dict[Any, Path], of: Seam, file: Path | None) -> torch.nn.Module:
    assemble(sources, of.plan, folder / "assembled", tied=False, fitted=file)
    return load_frozen(folder / "assembled", dtype=torch.float32)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_factor_of_the_stream_is_folded_exactly(tmp_path: Path, family: str) -> None:
    sources = make_pair(tmp_path, family)
    of = record(sources, BOTH, fit="scale")
    file, rows = fitted(tmp_path, sources, of)
    scales = {row["place"]: row["scale"] for row in rows}
    assert list(scales) == [2, 4]
    assert all(abs(scale - 1) > 0.01 for scale in scales.values())
    expected = logits_by_hand(sources, of, lambda place, stream: stream * scales.get(place, 1.0), {})
    actual = assembled(tmp_path, sources, of, file)(INPUTS_BT).logits
    # The norms add a small number to the squares, which no factor changes.
    assert torch.allclose(actual, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
    plain = assembled(tmp_path / "plain", sources, of, None)(INPUTS_BT).logits
    assert not torch.allclose(plain, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("fit", ["channels", "matrix", "refit"])
def test_a_size_is_written_with_the_weights_that_were_fitted(tmp_path: Path, family: str, fit: str) -> None:
    sources = make_pair(tmp_path, family)
    of = record(sources, BOTH, fit=fit)
    file, rows = fitted(tmp_path, sources, of)
    assert [(row["place"], row["layer"]) for row in rows] == [(2, "s1"), (3, "s2")]
    assert all(row["after"] < row["before"] for row in rows)
    new = load_file(file)
    assert sorted(new) == [f"{place}.{of.writes[1]}.weight" for place in (2, 3)]
    expected = logits_by_hand(sources, of, lambda _place, stream: stream, new)
    model = assembled(tmp_path, sources, of, file)
    assert torch.allclose(model(INPUTS_BT).logits, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    plain = assembled(tmp_path / "plain", sources, of, None)
    assert not torch.allclose(plain(INPUTS_BT).logits, expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("fit", ["channels", "matrix", "refit"])
def test_the_fit_is_the_solution_of_its_least_squares(tmp_path: Path, fit: str) -> None:
    """Against numpy's solver in fp64, of the same problem as rows: positions, and the pull towards what is there."""
    sources, ridge = make_pair(tmp_path, "llama"), 0.03
    of = record(sources, "t0 t1 s1 t4 t5 t6", fit=fit, ridge=ridge)
    models: dict[Any, Any] = {owner: load_frozen(folder, dtype=torch.float64) for owner, folder in sources.items()}
    tokens_BT = torch.from_numpy(np.random.default_rng(1).integers(0, tiny.VOCABULARY, (9, 16)))
    found = mend(of, models, list(tokens_BT.split(4)))
    opened = {owner: Batch(take_apart(model, tokens_BT), tokens_BT) for owner, model in models.items()}
    states = [opened[TEACHER].embedding_BTD]
    for index in range(4):
        states.append(opened[TEACHER].layer(index, states[-1]))
    module = models[STUDENT].model.layers[1].mlp.down_proj
    caught: list[Tensor] = []
    module.register_forward_pre_hook(lambda _module, given: caught.append(given[0]))
    behind = opened[STUDENT].layer(1, states[2])
    target_ND, residual_ND = (x.flatten(0, 1).numpy() for x in (states[4], states[4] - behind))
    weight_DF, features_NF = module.weight.numpy(), caught[0].flatten(0, 1).numpy()
    root_N1 = 1 / np.linalg.norm(target_ND, axis=1, keepdims=True)
    if fit != "refit":
        features_NF = features_NF @ weight_DF.T
    features_NF, residual_ND = features_NF * root_N1, residual_ND * root_N1
    pull = np.sqrt(ridge * np.square(features_NF).sum(0).mean())
    if fit == "channels":
        columns = zip(features_NF.T, residual_ND.T, strict=True)
        solved = [np.linalg.lstsq(np.r_[f, pull][:, None], np.r_[r, 0.0], rcond=None)[0][0] for f, r in columns]
        change_DF = np.asarray(solved)[:, None] * weight_DF
    else:
        width = features_NF.shape[1]
        rows = np.concatenate([features_NF, pull * np.eye(width)])
        wanted = np.concatenate([residual_ND, np.zeros((width, residual_ND.shape[1]))])
        change_DF = np.linalg.lstsq(rows, wanted, rcond=None)[0].T
        change_DF = change_DF @ weight_DF if fit == "matrix" else change_DF
    actual = found.tensors["2.mlp.down_proj.weight"].numpy()
    assert np.allclose(actual, weight_DF + change_DF, rtol=1e-4, atol=1e-5 * np.abs(weight_DF).max())


def test_which_layers_are_fitted_follows_from_the_plan() -> None:
    def places(plan: str, reach: int | None) -> tuple[int, ...]:
        settings = {"writes": ("a", "b"), "fit": "refit", "calibration": CALIBRATION, "precision": "fp32"}
        return Seam(plan=read_layers(plan), kept=KEPT, reach=reach, ridge=0.1, **settings).places

    assert places("t0 t1 s1 s2 s3", 1) == (2,)
    assert places("t0 t1 s1 s2 s3", 2) == (2, 3)
    assert places("t0 t1 s1 s2 s3", None) == (2, 3, 4)
    assert places("s0 s1 s2 t5 t6", 1) == (2,)
    assert places("s0 s1 s2 t5 t6", 2) == (1, 2)
    assert places("t0 t1 s1 s2 t5 t6", 1) == (2, 3)
    assert places("s0 t2 t3 s2 s3", 1) == (0, 3)


def test_later_places_see_what_the_earlier_ones_have_become(tmp_path: Path) -> None:
    """The error in front of the second fit is that of a stream with the weights that the first one gave."""
    sources = make_pair(tmp_path, "llama")
    models: dict[Any, Any] = {owner: load_frozen(folder, dtype=torch.float64) for owner, folder in sources.items()}
    tokens_BT = torch.from_numpy(np.random.default_rng(1).integers(0, tiny.VOCABULARY, (9, 16)))
    found = mend(record(sources, "t0 t1 s1 s2 s3", fit="refit", reach=2), models, list(tokens_BT.split(4)))
    opened = {owner: Batch(take_apart(model, tokens_BT), tokens_BT) for owner, model in models.items()}
    states = [opened[TEACHER].embedding_BTD]
    for index in range(5):
        states.append(opened[TEACHER].layer(index, states[-1]))

    def error(weight: Tensor) -> float:
        models[STUDENT].model.layers[1].mlp.down_proj.weight.data = weight.double()
        stream_BTD = opened[STUDENT].layer(2, opened[STUDENT].layer(1, states[2]))
        return float(((stream_BTD - states[5]).norm(dim=-1) / states[5].norm(dim=-1)).square().mean())

    own = models[STUDENT].model.layers[1].mlp.down_proj.weight.data.clone()
    assert blocks(KEPT, LAYERS)[2][-1] == 4
    assert found.rows[1]["before"] == pytest.approx(error(found.tensors["2.mlp.down_proj.weight"]), rel=1e-4)
    assert found.rows[1]["before"] != pytest.approx(error(own), rel=1e-2)


@pytest.mark.parametrize("fit", ["scale", "refit"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_weights_keep_their_bits_where_the_fit_computes_in_bf16(tmp_path: Path, family: str, fit: str) -> None:
    """A pull so strong that nothing is changed, or one factor, which is known: the weights are those of the files."""
    sources = make_pair(tmp_path, family)
    of = record(sources, "s0 s1 t4 t5 t6", fit=fit, precision="bf16", **({} if fit == "scale" else {"ridge": 1e12}))
    file, (row, *_) = fitted(tmp_path, sources, of)
    place, owner, index = (2, TEACHER, 4) if fit == "scale" else (1, STUDENT, 1)
    name = f"{of.writes[1]}.weight"
    model = load_frozen(sources[owner], dtype=torch.float32)
    wanted = take_apart(model, INPUTS_BT).layers[index].state_dict()[name] / row.get("scale", 1.0)
    assert not torch.equal(wanted, wanted.bfloat16().float())
    assert torch.allclose(load_file(file)[f"{place}.{name}"], wanted, rtol=1e-6, atol=1e-7)


def test_a_layer_that_multiplies_what_it_adds_is_refused(tmp_path: Path) -> None:
    tiny.model("granite", layers=LAYERS, residual_multiplier=0.5).save_pretrained(tmp_path / "teacher" / "model")
    sources: dict[Any, Path] = dict.fromkeys((TEACHER, STUDENT), tmp_path / "teacher" / "model")
    models = {owner: load_frozen(folder, dtype=torch.float32) for owner, folder in sources.items()}
    of = Seam(
        plan=read_layers("t0 t1 s2 s3"), kept=tuple(range(LAYERS)), writes=("self_attn.o_proj", "mlp.down_proj"),
        fit="refit", reach=1, ridge=1e-3, calibration=CALIBRATION, precision="fp32",
    )  # fmt: skip
    models[STUDENT].model.layers[2].mlp.down_proj.weight.data.mul_(3)
    with pytest.raises(BoomspecError, match=wording("seam.not_added_as_it_is")):
        mend(of, models, [INPUTS_BT])
    with pytest.raises(BoomspecError, match=wording("seam.not_known_where")):
        writes_of(read_facts(sources[TEACHER]))


def test_weights_that_are_not_of_the_model_are_refused(tmp_path: Path) -> None:
    sources = make_pair(tmp_path, "llama")
    of = record(sources, BOTH, fit="refit")
    for name, shape in (("9.mlp.down_proj.weight", (16, 24)), ("2.mlp.down_proj.weight", (24, 16))):
        save_file({name: torch.zeros(shape)}, tmp_path / "own.safetensors")
        with pytest.raises(BoomspecError, match=wording("seam.not_a_tensor", name=f"model.layers.{name}")):
            assembled(tmp_path, sources, of, tmp_path / "own.safetensors")


def test_sizes_with_weights_of_their_own_are_built_measured_and_exported_as_what_they_are(tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "store")
    fit = {"fit": "refit", "reach": "all", "calibration": {"sequences": 8}}
    spec = small.write_spec(tmp_path, interpolate={"seam": fit, "order": "first_to_last"})
    graph = small.compiled(spec, store).graph
    outcomes = small.execute(graph, store)
    assert "fit seams: interpolate 3 layers" in outcomes
    nodes = {node.name: node for node in graph.nodes.values()}
    size, held_out = nodes["interpolate 3 layers"], nodes["evaluate interpolated 3 layers: held_out"]
    built = store.path("interpolate", size.id) / "model"
    assert graph.family is not None
    member = next(one for one in graph.family.members if one.layers == 3)
    own = load_file(store.path("seam", size.task.inputs["seam"]) / "seam.safetensors")
    written = load_file(built / "model.safetensors")
    assert all(torch.equal(written[f"model.layers.{name}"], tensor) for name, tensor in own.items())

    # Not measured as layers of teacher and student.
    evaluations = [node.id for node in graph.nodes.values() if node.task.kind == "evaluate"]
    assert held_out.id not in sharing(graph, evaluations, has=lambda _: True, memory=0).models
    plain = small.compiled(small.write_spec(tmp_path / "plain", interpolate={"order": "first_to_last"}), store).graph
    same = [node.id for node in plain.nodes.values() if node.name == held_out.name]
    assert same != [held_out.id]

    text = " ".join(map(str, member.plan))
    export(graph, store, text, tmp_path / "one")
    export(graph, store, None, tmp_path / "every")
    for folder in (tmp_path / "one", next((tmp_path / "every").glob("3*"))):
        assert load_file(folder / "model.safetensors").keys() == written.keys()
        assert all(torch.equal(load_file(folder / "model.safetensors")[n], t) for n, t in written.items())
    assert torch.equal(
        load_member(graph, store, member)(INPUTS_BT % 60).logits,
        load_frozen(built, dtype=torch.float32)(INPUTS_BT % 60).logits,
    )
    with pytest.raises(BoomspecError, match=wording("seam.own_weights", layers=3)):
        load_family(graph, store).model("3 layers")
    export(graph, store, None, tmp_path / "family", shared=True)  # where they are beside the others
    together = open_family_folder(tmp_path / "family").model("3 layers").state_dict()
    assert all(torch.equal(together[n], t) for n, t in written.items())

    store.discard("interpolate", size.id)
    export(graph, store, text, tmp_path / "again")  # from what was fitted
    assert all(torch.equal(load_file(tmp_path / "again" / "model.safetensors")[n], t) for n, t in written.items())
    store.discard("seam", size.task.inputs["seam"])
    with pytest.raises(BoomspecError, match=wording("seam.not_in_the_store", layers=3)):
        export(graph, store, text, tmp_path / "gone")
    with pytest.raises(BoomspecError, match=wording("seam.own_weights", layers=3)):
        load_member(graph, store, member)
