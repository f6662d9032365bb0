"""A quantised teacher is dequantised once, to what the plan foresaw, with the numbers that transformers gives."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, FineGrainedFP8Config, Mxfp4Config

from boomspec.core.errors import BoomspecError, SpecError
from boomspec.core.graph import TaskGraph
from boomspec.core.tasks import Dequantize
from boomspec.models.checkpoint import read_checkpoint
from boomspec.models.facts import read_config, read_facts
from boomspec.models.quantized import foreseen
from boomspec.store import FolderStore, Store
from runners.executor import worker
from runners.modeling.models import load
from runners.runtime.context import Progress
from runners.runtime.job import Input, Job
from runners.runtime.journal import make_subfolders
from runners.tasks.dequantize import check_written, run, write_whole
from tests.messages import wording
from tests.runners import quantized, small, tiny

_INPUTS_BT = torch.arange(2 * 12).reshape(2, 12) % 64
_LOCAL = {"teacher": {"pretrain": None, "model": "teacher"}, "student": {"keep": [0, 2]}}
_TEACHERS: dict[str, Callable[[Path], Path]] = {
    **{name: (lambda folder, name=name: quantized.fp8(folder, name)) for name in quantized.FP8_FAMILIES},
    "gpt_oss": quantized.mxfp4,
}


def _dequantized(teacher: Path, dtype: str = "bfloat16") -> Path:
    context = tiny.context(teacher.parent / "task", Dequantize(dtype=dtype))
    source = small.source_of(teacher)
    context.inputs["model"] = Input(source.id, source=source)
    run(context)
    return context.path / "model"


@pytest.mark.parametrize("name", _TEACHERS)
def test_it_is_what_was_foreseen_and_gives_the_logits_of_transformers(tmp_path: Path, name: str) -> None:
    teacher = _TEACHERS[name](tmp_path / "teacher")
    config, tensors = foreseen(read_config(teacher), read_checkpoint(teacher), "teacher")
    made = _dequantized(teacher)
    assert {key: (entry.dtype, entry.shape) for key, entry in read_checkpoint(made).items()} == {
        key: (entry.dtype, entry.shape) for key, entry in tensors.items()
    }
    assert read_config(made) == config
    assert "quantization_config" not in config
    assert read_facts(made).count == 4

    settings = Mxfp4Config(dequantize=True) if name == "gpt_oss" else FineGrainedFP8Config(dequantize=True)
    theirs = AutoModelForCausalLM.from_pretrained(teacher, quantization_config=settings, dtype=torch.bfloat16)
    ours = load(made, dtype=torch.bfloat16)
    own = dict(ours.named_parameters())
    for key, parameter in theirs.named_parameters():
        assert torch.equal(own.pop(key), parameter), key
    assert own == {}
    with torch.no_grad():
        assert torch.equal(ours(_INPUTS_BT).logits, theirs.eval()(_INPUTS_BT).logits)


@pytest.mark.parametrize("per_tensor", [False, True])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float16"])
def test_each_number_is_its_own_times_the_scale_of_its_block(tmp_path: Path, dtype: str, per_tensor: bool) -> None:
    """Where a weight ends in the middle of a block, too: 24 rows in blocks of 20, of which transformers makes 12."""
    fields = {"hidden_size": 24, "intermediate_size": 44}
    teacher = quantized.fp8(tmp_path / "teacher", per_tensor=per_tensor, block=20, **fields)
    stored, made = (
        load_file(teacher / "model.safetensors"),
        load_file(_dequantized(teacher, dtype) / "model.safetensors"),
    )
    scaled = 0
    for name, weight in made.items():
        scales = stored.get(f"{name}_scale_inv")
        if scales is None:
            assert torch.equal(weight, stored[name])
            continue
        scaled += 1
        whole = scales if per_tensor else quantized.spread(scales, (20, 20), weight.shape)
        assert torch.equal(weight, (stored[name].float() * whole).to(getattr(torch, dtype)))
    assert scaled == 4 * 7
    assert not [name for name in made if "scale" in name]


def test_large_models_are_written_in_shards(tmp_path: Path) -> None:
    teacher = quantized.fp8(tmp_path / "teacher")
    for name, size in (("one", 2**30), ("many", 4000)):
        write_whole(teacher, tmp_path / name, dtype="bfloat16", progress=Progress(None), shard_bytes=size)
    files = sorted(path.name for path in (tmp_path / "many").glob("*.safetensors"))
    assert len(files) > 5
    one, many = (read_checkpoint(tmp_path / name) for name in ("one", "many"))
    assert one.keys() == many.keys()
    shards = [load_file(tmp_path / "many" / name) for name in files]
    for name, tensor in load_file(tmp_path / "one" / "model.safetensors").items():
        assert torch.equal(next(shard[name] for shard in shards if name in shard), tensor)


def _graph(folder: Path, store: Store) -> TaskGraph:
    return small.compiled(small.write_spec(folder, **_LOCAL), store).graph


def test_everything_reads_the_dequantised_teacher_and_it_is_made_once(tmp_path: Path) -> None:
    quantized.fp8(tmp_path / "teacher")
    store = FolderStore(tmp_path / "store")
    graph = _graph(tmp_path, store)
    [node] = [node for node in graph.nodes.values() if node.task.kind == "dequantize"]
    assert node.name == "dequantize teacher"
    [source] = [source for source in graph.sources.values() if source.kind == "model"]
    assert node.task.inputs == {"model": source.id}
    readers = [other for other in graph.nodes.values() if source.id in other.task.inputs.values()]
    assert readers == [node]
    kinds = {other.task.kind for other in graph.nodes.values() if node.id in other.task.inputs.values()}
    assert {"distill", "interpolate", "evaluate"} <= kinds
    assert graph.family is not None
    assert graph.family.teacher == node.id

    done = _execute(graph, store, node.id, {})
    facts = read_facts(store.path("dequantize", done) / "model")
    tensors = facts.tensors(range(facts.count), tied=facts.tied)
    assert sum(tensor.bytes for tensor in tensors) == graph.family.members[-1].bytes
    assert node.cost is not None
    assert node.cost.disk == graph.family.members[-1].bytes

    # And it is distilled from, by the real task.
    distill = next(other for other in graph.nodes.values() if other.task.kind == "distill")
    tokens = distill.task.inputs["tokens"]
    with store.workspace("tokenize", tokens) as workspace:
        tiny.token_artifact(workspace.path / "made", vocabulary=300)
        for path in (workspace.path / "made").iterdir():
            path.rename(workspace.path / path.name)
        (workspace.path / "made").rmdir()
        store.publish(workspace, "tokenize", tokens, graph.nodes[tokens].task.identity(), {})
    student = _execute(graph, store, distill.id, {tokens: "tokenize", done: "dequantize"})
    assert read_facts(store.path("distill", student) / "model").dtype == "BF16"


def _execute(graph: TaskGraph, store: Store, task: str, kinds: dict[str, str]) -> str:
    node, address = graph.nodes[task], str(store.root)
    inputs = {role: Input(i, source=graph.sources.get(i)) for role, i in node.task.inputs.items()}
    job = Job(node, inputs, kinds, address, address, Path("runs/x"), "", None, False)
    make_subfolders(job.folder(store))
    outcome = worker.execute([job])[node.id]
    assert outcome.state == "made", outcome.error
    return task


def test_a_student_that_exists_is_dequantised_too(tmp_path: Path) -> None:
    quantized.fp8(tmp_path / "teacher")
    quantized.fp8(tmp_path / "student", num_hidden_layers=2)
    sections = {**_LOCAL, "student": {"model": "student", "keep": [0, 2]}, "distill": None}
    graph = small.compiled(small.write_spec(tmp_path, **sections), FolderStore(tmp_path / "store")).graph
    named = {node.name: node for node in graph.nodes.values() if node.task.kind == "dequantize"}
    assert named.keys() == {"dequantize teacher", "dequantize student"}
    assert graph.family is not None
    assert graph.family.student == named["dequantize student"].id


def _without_scales(tensors: dict[str, torch.Tensor]) -> None:
    del tensors["model.layers.1.mlp.up_proj.weight_scale_inv"]


def _other_scales(tensors: dict[str, torch.Tensor]) -> None:
    name = "model.layers.1.mlp.up_proj.weight_scale_inv"
    tensors[name] = torch.cat([tensors[name]] * 2)


def _other_type(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.layers.1.mlp.up_proj.weight"] = tensors["model.layers.1.mlp.up_proj.weight"].view(torch.int8)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_without_scales, "up_proj.weight' is F8_E4M3, with no scales that belong to it"),
        (_other_scales, r"weight_scale_inv' has the shape \(12, 4\), which does not belong to \(48, 32\) in blocks of"),
        (_other_type, "up_proj.weight' is I8, not F8_E4M3"),
    ],
)
def test_what_cannot_be_dequantised_is_refused_when_a_plan_is_made(
    tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], None], says: str
) -> None:
    file = quantized.fp8(tmp_path / "teacher") / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(BoomspecError, match=says) as caught:
        _graph(tmp_path, FolderStore(tmp_path / "store"))
    assert wording("dequantize.give_model_made") in str(caught.value)


def test_quantised_weights_without_a_word_in_the_config_are_refused(tmp_path: Path) -> None:
    teacher = quantized.fp8(tmp_path / "teacher")
    config = read_config(teacher)
    del config["quantization_config"]
    (teacher / "config.json").write_text(json.dumps(config))
    with pytest.raises(BoomspecError, match=wording("dequantize.config_json_no_quantization")):
        _graph(tmp_path, FolderStore(tmp_path / "store"))


@pytest.mark.parametrize("method", ["gptq", "awq", "compressed-tensors", "bitsandbytes", "hqq", "torchao", "quark"])
def test_other_methods_are_refused_by_name(tmp_path: Path, method: str) -> None:
    teacher = quantized.fp8(tmp_path / "teacher")
    config = {**read_config(teacher), "quantization_config": {"quant_method": method}}
    (teacher / "config.json").write_text(json.dumps(config))
    with pytest.raises(SpecError, match=rf"teacher.model: .*quantization_config.*quant_method {method}"):
        _graph(tmp_path, FolderStore(tmp_path / "store"))


def test_a_quantised_model_is_never_loaded_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(BoomspecError, match=wording("dequantize.quantised_quant_method_fp")):
        load(quantized.fp8(tmp_path / "teacher"), dtype=torch.float32)


def test_numbers_that_are_not_finite_are_an_error(tmp_path: Path) -> None:
    teacher = quantized.fp8(tmp_path / "teacher")
    tensors = load_file(teacher / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight_scale_inv"][0, 0] = float("inf")
    save_file(tensors, teacher / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BoomspecError, match=wording("dequantize.layers_mlp_up_proj")):
        _dequantized(teacher)


def test_what_was_not_foreseen_is_an_error(tmp_path: Path) -> None:
    teacher = quantized.fp8(tmp_path / "teacher")
    made = _dequantized(teacher)
    _, tensors = foreseen(read_config(teacher), read_checkpoint(teacher), "teacher")
    check_written(made, list(tensors.values()))
    with pytest.raises(BoomspecError, match=wording("dequantize.dequantised_lm_head_weight")):
        check_written(made, [entry for name, entry in tensors.items() if name != "lm_head.weight"])
