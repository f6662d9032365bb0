"""Weight-delta transfer: the student is the formula's, bit for bit, and what does not fit together is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from boomspec.core.errors import BoomspecError, SpecError
from boomspec.core.layers import TEACHER, teacher_layers
from boomspec.core.tasks import Transfer
from boomspec.models.facts import read_facts
from boomspec.models.transfer import summed_tensors
from boomspec.models.weight_deltas import sampled_deltas
from boomspec.plan.transfers import transfer_plans
from boomspec.store import FolderStore
from runners.assembly.assemble import assemble
from runners.assembly.transfer import transfer
from runners.report.model_card import model_card
from tests.messages import wording
from tests.runners import small, tiny

KEPT = (0, 2, 3)
STACKS = {"gpt2": "transformer.h", "gpt_neox": "gpt_neox.layers"}
FIELDS: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": 8},
    "gemma3_text": {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"] * 2},
    "qwen3": {"layer_types": ["full_attention"] * 4},
}


def changed(model: Any, folder: Path, *, by: float, seed: int, dtype: torch.dtype = torch.float32) -> Path:
    """Save the model with every weight changed a little, in another dtype."""
    numbers = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=numbers) * by)
    model.to(dtype).save_pretrained(folder)
    return folder


def three(
    folder: Path,
    family: str = "llama",
    *,
    tied: bool = False,
    dtypes: tuple[torch.dtype, ...] = (torch.float32,) * 3,
    **fields: Any,
) -> tuple[Path, Path, Path]:
    """A variant, its base, and a student of the base that is trained a little."""
    options = {"tie_word_embeddings": tied, **FIELDS.get(family, {}), **fields}
    own, base_dtype, its = dtypes
    variant = changed(tiny.model(family, **options), folder / "variant", by=0.01, seed=1, dtype=own)
    base = changed(tiny.model(family, **options), folder / "base", by=0.0, seed=2, dtype=base_dtype)
    assemble({TEACHER: base}, teacher_layers(KEPT), folder / "start", tied=tied)
    start = AutoModelForCausalLM.from_pretrained(folder / "start", dtype=torch.float32)
    return variant, base, changed(start, folder / "distilled", by=0.02, seed=3, dtype=its)


def weights(folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found


def origin(name: str, family: str, kept: tuple[int, ...] = KEPT) -> str:
    """Of which tensor of the base a tensor of the student was a copy."""
    prefix = STACKS.get(family, "model.layers")
    if not name.startswith(f"{prefix}."):
        return name
    index, _, rest = name.removeprefix(f"{prefix}.").partition(".")
    return f"{prefix}.{kept[int(index)]}.{rest}"


def formula(variant: Path, base: Path, distilled: Path, family: str, kept: tuple[int, ...] = KEPT) -> dict[str, Tensor]:
    """init_from(variant) + (distilled - init_from(base)), of the files themselves."""
    v, b, d = map(weights, (variant, base, distilled))
    found = {}
    for name in d:
        of = origin(name, family, kept)
        found[name] = (v[of].float() + (d[name].float() - b[of].float())).to(v[of].dtype)
    return found


MIXED = (torch.bfloat16, torch.float32, torch.float16)
CASES = [
    ("llama", False, (torch.float32,) * 3), ("llama", True, MIXED), ("qwen3", True, (torch.bfloat16,) * 3),
    ("gpt2", True, (torch.float16, torch.bfloat16, torch.float32)), ("mistral", False, MIXED),
    ("gemma3_text", True, (torch.float32, torch.bfloat16, torch.bfloat16)), ("gpt_neox", False, MIXED),
]  # fmt: skip


@pytest.mark.parametrize(("family", "tied", "dtypes"), CASES, ids=[f"{c[0]}-{c[1]}-{c[2][0]}" for c in CASES])
def test_the_student_is_that_of_the_formula_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, tied: bool, dtypes: tuple[torch.dtype, ...]
) -> None:
    monkeypatch.setattr("runners.assembly.transfer._AT_ONCE", 100)  # a tensor takes several steps
    monkeypatch.setattr("runners.assembly.checkpoint_writer.SHARD_BYTES", 8_000)
    models = three(tmp_path, family, tied=tied, dtypes=dtypes)
    deltas = transfer(*models, tmp_path / "student", kept=KEPT)
    expected, found = formula(*models, family), weights(tmp_path / "student")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype == dtypes[0]
        assert torch.equal(found[name].view(torch.uint8), tensor.view(torch.uint8)), name
    assert len(list((tmp_path / "student").glob("*.safetensors"))) > 1
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "student")
    assert loaded.config.num_hidden_layers == len(KEPT)
    assert bool(loaded.config.tie_word_embeddings) == tied
    # The numbers, in float64, of all tensors at once.
    v, b, d = map(weights, models)
    rows = {row["group"]: row for row in deltas.rows()}
    pairs = [(name, origin(name, family)) for name in d]
    added = torch.cat([(d[name].double() - b[of].double()).flatten() for name, of in pairs])
    varied = torch.cat([(v[of].double() - b[of].double()).flatten() for _, of in pairs])
    assert rows["all"]["weights"] == len(added)
    assert rows["all"]["transferred_norm"] == pytest.approx(float(added.norm()), rel=1e-5)
    assert rows["all"]["variant_norm"] == pytest.approx(float(varied.norm()), rel=1e-5)
    cosine = float(torch.nn.functional.cosine_similarity(added, varied, dim=0))
    assert rows["all"]["cosine"] == pytest.approx(cosine, abs=1e-5)
    assert set(rows) == {"embedding", "attention", "MLP", "norms", *(() if tied else ("head",)), "all"}


def test_rows_that_only_the_variant_has_stay_its_own(tmp_path: Path) -> None:
    variant, base, distilled = three(tmp_path, "llama")
    large = AutoModelForCausalLM.from_pretrained(variant)
    large.resize_token_embeddings(tiny.VOCABULARY + 6)
    large.save_pretrained(tmp_path / "longer")
    transfer(tmp_path / "longer", base, distilled, tmp_path / "student", kept=KEPT)
    own, found = weights(tmp_path / "longer"), weights(tmp_path / "student")
    expected = formula(variant, base, distilled, "llama")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert torch.equal(found[name][: tiny.VOCABULARY], expected[name])
        assert torch.equal(found[name][tiny.VOCABULARY :], own[name][tiny.VOCABULARY :])
    with pytest.raises(BoomspecError, match=wording("transfer.shorter")):
        transfer(variant, tmp_path / "longer", distilled, tmp_path / "other", kept=KEPT)


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    variant, base, distilled = three(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(distilled)
    model.get_parameter("model.layers.1.mlp.up_proj.weight").data[0, 0] = float("nan")
    model.save_pretrained(distilled)
    with pytest.raises(BoomspecError, match=wording("transfer.not_finite")):
        transfer(variant, base, distilled, tmp_path / "student", kept=KEPT)


def test_a_sample_of_the_weights_tells_the_deltas_of_all(tmp_path: Path) -> None:
    models = three(tmp_path, hidden_size=64, intermediate_size=200, vocab_size=400)
    tensors = summed_tensors(*map(read_facts, models), KEPT)  # type: ignore[call-arg, arg-type]
    exact = {row["group"]: row for row in transfer(*models, tmp_path / "student", kept=KEPT).rows()}
    whole, read = sampled_deltas(tensors)
    assert read == exact["all"]["weights"]
    part, fewer = sampled_deltas(tensors, most=30_000)
    assert fewer < read / 3
    for deltas, within in ((whole, 1e-5), (part, 0.05)):
        for row in deltas.rows():
            for name in ("transferred_norm", "variant_norm"):
                assert row[name] == pytest.approx(exact[row["group"]][name], rel=max(within, 1e-5))
            assert row["cosine"] == pytest.approx(exact[row["group"]]["cosine"], abs=max(within, 1e-5))


OTHER = {
    "another base": ("base", tiny.model(seed=5), wording("transfer.no_student")),
    "another student": ("distilled", tiny.model(layers=3, seed=5), wording("transfer.no_student")),
    "another variant": ("variant", tiny.model(seed=5), wording("transfer.no_variant")),
}


@pytest.mark.parametrize(("which", "model", "message"), OTHER.values(), ids=OTHER)
def test_models_that_were_not_made_of_the_base_are_refused(
    tmp_path: Path, which: str, model: Any, message: str
) -> None:
    models = dict(zip(("variant", "base", "distilled"), three(tmp_path), strict=True))
    model.save_pretrained(models[which])
    with pytest.raises(BoomspecError, match=message):
        transfer(**models, target=tmp_path / "student", kept=KEPT)
    # Layers of the base that the student does not have: its mapping is another one.
    three(tmp_path / "whole")
    with pytest.raises(BoomspecError, match=wording("transfer.no_student")):
        transfer(
            *(tmp_path / "whole" / name for name in ("variant", "base", "distilled")),
            tmp_path / "other",
            kept=(0, 1, 2),
        )


def spec(folder: Path, *, keep: list[int] | None = None, **given: Any) -> Path:
    """A spec whose student is transferred."""
    written = {
        "boomspec": 1,
        "name": "variant",
        "teacher": {"model": "./variant"},
        "student": {"transfer": given, **({} if keep is None else {"keep": keep})},
    }
    (folder / "variant.yaml").write_text(yaml.safe_dump(written))
    return folder / "variant.yaml"


def mapping(folder: Path, kept: tuple[int, ...] = KEPT, layers: int = 4) -> None:
    pruned = [layer for layer in range(layers) if layer not in kept]
    text = json.dumps({"copied_teacher_layers": kept, "pruned_teacher_layers": pruned})
    (folder / "student_config.json").write_text(text)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("transfer")
    three(folder)
    mapping(folder / "distilled")
    for name, model in {
        "wide": tiny.model(hidden_size=32, head_dim=16),
        "mistral": tiny.model("mistral"),
        "long": tiny.model(layers=6),
        "tied": tiny.model(tie_word_embeddings=True),
        "short": tiny.model(vocab_size=48),
    }.items():
        model.save_pretrained(folder / name)
    return folder


def compiled(spec: Path) -> Any:
    return small.compiled(spec, FolderStore(spec.parent / "store"))


def test_a_student_in_a_folder_is_transferred_with_the_layers_that_it_keeps(folders: Path) -> None:
    found = compiled(spec(folders, **{"from": "./distilled", "base": "./base"}))
    [node] = [node for node in found.graph.nodes.values() if node.task.kind == "transfer"]
    assert node.task.record == Transfer(kept=KEPT)
    roles = {role: found.graph.sources[i].location["folder"] for role, i in node.task.inputs.items()}
    names = {"teacher": "variant", "base": "base", "distilled": "distilled"}
    assert roles == {role: str(folders / name) for role, name in names.items()}
    assert found.family.kept == KEPT
    assert found.graph.family.student == node.id
    read = found.graph.experiments[0].meaning["sources"]
    assert {"teacher", "transfer base", "transfer from"} <= read.keys()
    assert compiled(spec(folders, keep=[*KEPT], **{"from": "./distilled", "base": "./base"})).graph.nodes.keys() == (
        found.graph.nodes.keys()
    )
    [plan] = transfer_plans(found.graph, FolderStore(folders / "store"))
    assert [row.group for row in plan.deltas] == ["embedding", "attention", "MLP", "norms", "head", "all"]
    assert plan.warnings == ()


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no base": ({"from": "./distilled"}, wording("transfer.no_base")),
    "other layers": ({"keep": [0, 1, 2], "from": "./distilled", "base": "./base"}, wording("transfer.keeps")),
    "its shapes": ({"from": "./distilled", "base": "./wide"}, wording("transfer.differ")),
    "another family": ({"from": "./distilled", "base": "./mistral"}, wording("transfer.family")),
    "more layers": ({"from": "./distilled", "base": "./long"}, wording("transfer.count")),
    "no head to add to": ({"from": "./tied", "base": "./base", "keep": [0, 1, 2]}, wording("transfer.layers")),
    "a shorter vocabulary": ({"from": "./distilled", "base": "./short"}, wording("transfer.differ")),
    "itself": ({"from": "./base", "base": "./base", "keep": [0, 1, 2]}, wording("transfer.itself")),
    "no spec": ({"from": "nowhere.yaml"}, wording("transfer.no_spec")),
    "no folder": ({"from": "./nowhere", "base": "./base"}, wording("transfer.no_folder")),
    "a circle": ({"from": "variant.yaml"}, wording("transfer.circle")),
    "a base beside a spec": ({"from": "x.yaml", "base": "./base"}, wording("transfer.with_model")),
}


@pytest.mark.parametrize(("given", "message"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_refused_at_its_place(folders: Path, given: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message) as caught:
        compiled(spec(folders, **given))
    assert "variant.yaml" in str(caught.value)


WRITTEN: dict[str, tuple[dict[str, Any], str]] = {
    "distilled, too": ({"distill": {"tokens": 512, "batch_tokens": 256}}, wording("transfer.not_trained")),
    "of a teacher of its own": ({"teacher": small.SPEC["teacher"]}, wording("transfer.no_variant_here")),
    "and exists": ({"student": {"model": "./distilled"}}, wording("transfer.exists")),
    "searched": ({"student": {"keep": {"block_influence": 2}}}, wording("transfer.searched")),
    "foreign": ({"teacher": {"model": "./variant", "trust_remote_code": True}}, wording("transfer.own_code")),
}


@pytest.mark.parametrize(("sections", "message"), WRITTEN.values(), ids=WRITTEN)
def test_what_goes_with_no_transfer_is_refused(folders: Path, sections: dict[str, Any], message: str) -> None:
    path = spec(folders, **{"from": "./distilled", "base": "./base"})
    written = yaml.safe_load(path.read_text())
    for name, section in sections.items():
        written[name] = {**written.get(name, {}), **section} if name == "student" else section
    if "distill" in written or "pretrain" in written["teacher"] or "keep" in written["student"]:
        written["data"] = small.SPEC["data"]
    path.write_text(yaml.safe_dump(written))
    with pytest.raises(SpecError, match=message):
        compiled(path)


@pytest.fixture(scope="module")
def made(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, FolderStore]:
    """A base with its student, made by a spec, and a variant of the base in a folder."""
    folder = tmp_path_factory.mktemp("made")
    base, store = small.copied(finished, folder)
    graph = small.compiled(base, store).graph
    graph.write(store.run_folder(graph.name, graph.id) / "graph.json")
    teacher = store.path("pretrain", graph.family.teacher) / "model"  # type: ignore[union-attr]
    changed(AutoModelForCausalLM.from_pretrained(teacher), folder / "variant", by=0.02, seed=4)
    for file in teacher.glob("*token*"):
        (folder / "variant" / file.name).write_bytes(file.read_bytes())
    return folder, store


def variant_spec(folder: Path, source: str) -> Path:
    path = spec(folder, **{"from": source})
    written = yaml.safe_load(path.read_text()) | {name: small.SPEC[name] for name in ("data", "evaluate")}
    path.write_text(yaml.safe_dump(written | {"baselines": ["naive_pruning"]}))
    return path


def test_one_run_makes_the_student_of_another_spec_and_transfers_it(made: tuple[Path, FolderStore]) -> None:
    folder, store = made
    own = small.compiled(folder / "spec.yaml", store).graph
    graph = small.compiled(variant_spec(folder, "spec.yaml"), store).graph
    [node] = [node for node in graph.nodes.values() if node.task.kind == "transfer"]
    assert own.family is not None
    assert node.task.inputs["distilled"] == own.family.student
    assert node.task.inputs["base"] == own.family.teacher
    needed = {"pretrain", "tokenize", "distill"}
    assert {n.task.kind for n in graph.nodes.values() if n.name.startswith("small: ")} == needed
    nowhere = FolderStore(folder / "empty")
    [plan] = transfer_plans(graph, nowhere)
    assert plan.deltas == ()
    assert plan.unknown == wording("transfer.made_first", task="small: pretrain teacher")
    outcomes = small.execute(graph, store)
    assert not [name for name in outcomes if name.startswith("small: ")]  # they are there
    assert {"transfer student", "interpolate 3 layers"} <= outcomes.keys()
    pair = {"pretrain": "base", "distill": "distilled"}.items()
    models = [folder / "variant", *(store.path(kind, node.task.inputs[role]) / "model" for kind, role in pair)]
    expected = formula(*models, "llama", (0, 2))
    student = store.path("transfer", node.id)
    for name, tensor in weights(student / "model").items():
        assert torch.equal(tensor, expected[name]), name
    assert json.loads((student / "model" / "student_config.json").read_text())["copied_teacher_layers"] == [0, 2]
    rows = json.loads((student / "transfer.json").read_text())["groups"]
    [plan] = transfer_plans(graph, store)
    assert [row.model_dump() for row in plan.deltas] == rows
    assert math.isfinite(rows[-1]["cosine"])
    page = store.path("report", graph.targets[-1]) / "report.html"
    assert 'id="transfer"' in page.read_text()
    assert graph.family is not None
    card = model_card(graph, store, graph.family.trained, folder=student / "model", name="student")
    assert "student that was transferred" in card
    assert "# Weight-delta transfer" in card


def test_a_run_and_a_spec_lead_to_the_same_student(made: tuple[Path, FolderStore]) -> None:
    folder, store = made
    [run] = store.run_folders(beginning="small")
    graph = small.compiled(variant_spec(folder, str(run)), store).graph
    [node] = [node for node in graph.nodes.values() if node.task.kind == "transfer"]
    places = {role: graph.sources[i].location["folder"] for role, i in node.task.inputs.items()}
    kinds = {role: Path(place).parents[1].name for role, place in places.items() if role != "teacher"}
    assert kinds == {"base": "pretrain", "distilled": "distill"}
    assert node.task.record.kept == (0, 2)
    store_of = FolderStore(folder / "elsewhere")
    target = store_of.run_folder("small", "0" * 64)
    target.mkdir(parents=True)
    (target / "graph.json").write_text((run / "graph.json").read_text())
    with pytest.raises(SpecError, match=wording("transfer.not_in_a_store")):
        compiled(variant_spec(folder, str(target)))
