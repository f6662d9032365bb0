"""What is given as a model and is none: said as what it is, with what to do; and files that are read besides."""

import json
from pathlib import Path

import pytest
import yaml

from boomspec.compile.compiler import compile_experiments
from boomspec.core.errors import BoomspecError, SpecError
from boomspec.models.checkpoint import checkpoint_files
from boomspec.models.facts import read_facts
from boomspec.models.folder import INDEX, SINGLE, check_config, check_folder
from boomspec.models.quantized import check_quantization
from boomspec.spec.experiments import load_spec
from tests.boomspec.model_folders import CONFIG, TENSORS, model, weights
from tests.messages import wording

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "4d" * 32 + "\nsize 988097824\n"


def empty(*names: str):
    def make(folder: Path) -> None:
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(b"")

    return make


def trainer(folder: Path) -> None:
    """As a training leaves it: checkpoints, and nothing at the top."""
    for step in (500, 1000, 1500):
        model(folder / f"checkpoint-{step}")
        empty("optimizer.pt", "trainer_state.json", "scheduler.pt")(folder / f"checkpoint-{step}")
    (folder / "checkpoint-1500" / SINGLE).unlink()  # it was stopped while it wrote
    empty("runs/events", "training_args.bin")(folder)


def shards(folder: Path) -> None:
    model(folder)
    (folder / SINGLE).unlink()
    for i in (1, 2, 3):
        weights(folder / f"model-0000{i}-of-00003.safetensors")


def pointer(name: str):
    def make(folder: Path) -> None:
        (model(folder) / name).write_text(POINTER)

    return make


def without_weights(*names: str):
    def make(folder: Path) -> None:
        (model(folder) / SINGLE).unlink()
        empty(*names)(folder)

    return make


def dangling(folder: Path) -> None:
    """A snapshot of the hub's cache without its blobs."""
    folder.mkdir(parents=True)
    for name in ("config.json", SINGLE):
        (folder / name).symlink_to(Path("../../blobs") / ("ab" * 20))


CASES = {
    "adapter": (empty("adapter_config.json", "adapter_model.safetensors"), "holds a PEFT adapter", "merge_and_unload"),
    "adapter-beside": (
        lambda folder: empty("adapter_config.json")(model(folder)),
        "holds a PEFT adapter beside the model, which transformers would load",
        "remove adapter_config.json",
    ),
    "adapters-of-a-training": (
        empty("checkpoint-9/adapter_config.json", "checkpoint-10/adapter_config.json", "training_args.bin"),
        "holds a PEFT adapter in checkpoint-10 and no model",
        "merge_and_unload",
    ),
    "trainer": (
        trainer,
        "no config.json, but the checkpoints of a training, the newest in checkpoint-1000",
        "x/m/checkpoint-1000 meant",
    ),
    "training-state": (
        empty("optimizer.pt", "trainer_state.json", "rng_state.pth"),
        "holds the state of a training",
        "save_model",
    ),
    "inner-folder": (lambda folder: model(folder / "hf"), "no config.json, but hf", "x/m/hf meant"),
    "bin-of-a-training": (
        empty("pytorch_model.bin", "optimizer.pt"),
        "holds the state of a training and no config",
        "save_model",
    ),
    "bin-only": (
        without_weights("pytorch_model.bin"),
        "holds weights that are pickled (pytorch_model.bin)",
        "save_pretrained",
    ),
    "shards": (
        shards,
        f"holds the shards model-00001-of-00003.safetensors to model-00003-of-00003.safetensors and no {INDEX}",
        f"fetch or copy {INDEX}",
    ),
    "shards-incomplete": (
        lambda folder: (shards(folder), (folder / "model-00002-of-00003.safetensors").unlink()),
        "model-00002-of-00003.safetensors is missing, too",
        "the whole model again",
    ),
    "one-shard-of-many": (
        without_weights("model-00007-of-00009.safetensors"),
        "model-00001-of-00009.safetensors is missing, too (and 7 more)",
        "the whole model again",
    ),
    "lfs-weights": (pointer(SINGLE), f"m/{SINGLE}: is a pointer of git-lfs", "git lfs pull"),
    "lfs-tokenizer": (pointer("tokenizer.json"), "m/tokenizer.json: is a pointer of git-lfs", "git lfs pull"),
    "lfs-config": (pointer("config.json"), "m/config.json: is a pointer of git-lfs", "git lfs pull"),
    "gguf": (empty("qwen-q4.gguf"), "holds a model in GGUF (qwen-q4.gguf)", "converted from"),
    "gguf-with-config": (without_weights("m.gguf"), "holds a model in GGUF (m.gguf)", "converted from"),
    "diffusers": (
        lambda folder: (model(folder / "text_encoder"), empty("model_index.json", "unet/config.json")(folder)),
        "a pipeline of diffusers",
        "causal model",
    ),
    "deepspeed": (
        without_weights("zero_to_fp32.py", "global_step9/mp_rank_00_model_states.pt"),
        "DeepSpeed",
        "zero_to_fp32.py",
    ),
    "fsdp": (without_weights("pytorch_model_fsdp_0/__0_0.distcp"), "torch.distributed", "accelerate merge-weights"),
    "original": (empty("params.json", "consolidated.00.pth"), "the format of its makers", "transformers reads"),
    "consolidated": (
        without_weights("consolidated.safetensors"),
        f"no {SINGLE} and no {INDEX}, but consolidated.safetensors",
        "rename",
    ),
    "onnx": (without_weights("onnx/model.onnx"), "a model in ONNX", "exported from"),
    "tensorflow": (without_weights("tf_model.h5"), "weights of TensorFlow or Flax", "save_pretrained"),
    "rank-shards": (
        lambda folder: empty("shard-00000-model-00001-of-00002.safetensors")(model(folder)),
        "one worker's part of a model, which transformers would load",
        "gather",
    ),
    "weights-alone": (
        lambda folder: (model(folder) / "config.json").unlink(),
        "holds weights and no config.json",
        "config",
    ),
    "tokenizer-alone": (
        empty("tokenizer.json", "tokenizer_config.json"),
        "holds a tokenizer and no model",
        "of the model",
    ),
    "nothing": (empty(), "is empty", "config.json and safetensors"),
    "something-else": (empty("notes.md"), "no config.json: holds notes.md", "give the folder of a model"),
    "no-weights": (without_weights(), f"no {SINGLE} and no {INDEX}", "missing"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_no_model_is_said_as_what_it_is(tmp_path, case):
    make, says, advice = CASES[case]
    folder = tmp_path / "x" / "m"
    folder.mkdir(parents=True)
    make(folder)
    with pytest.raises(BoomspecError) as caught:
        check_folder(folder)
    assert str(folder) in caught.value.message
    assert says in caught.value.message
    assert advice in caught.value.hint


@pytest.mark.parametrize("case", [case for case in CASES if not case.startswith(("adapter-b", "rank", "lfs-t"))])
def test_whoever_reads_it_says_the_same(tmp_path, case):
    """Not only a plan: a folder is read by tasks and by `boomspec.load`, too."""
    make, says, _ = CASES[case]
    (tmp_path / "m").mkdir()
    make(tmp_path / "m")
    with pytest.raises(BoomspecError) as caught:
        read_facts(tmp_path / "m")
    assert says.removeprefix("m/") in caught.value.message


def test_a_model_with_all_that_may_lie_beside_it_is_one(tmp_path):
    folder = model(tmp_path / "m")
    for make in (trainer, empty("optimizer.pt", "pytorch_model.bin", "m.gguf", "README.md", "original/params.json")):
        make(folder)
    check_folder(folder)
    assert checkpoint_files(folder) == [folder / SINGLE]


def test_links_that_lead_nowhere_are_named(tmp_path):
    folder = tmp_path / "models--maker--name" / "snapshots" / ("0" * 40)
    dangling(folder)
    with pytest.raises(BoomspecError, match=wording("contents.config_json_link_blobs")) as caught:
        check_folder(folder)
    assert "and 1 more" in caught.value.message
    assert "hub's cache" in caught.value.hint
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").symlink_to("gone")
    with pytest.raises(BoomspecError) as caught:
        check_folder(tmp_path / "m")
    assert "cp -rL" in caught.value.hint


def test_the_single_file_is_read_as_transformers_does_and_a_mixture_is_refused(tmp_path):
    folder = model(tmp_path / "m")
    (folder / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(TENSORS, SINGLE)}))
    assert checkpoint_files(folder) == [folder / SINGLE]
    weights(folder / "model-00001-of-00001.safetensors")
    index = {"weight_map": dict.fromkeys(TENSORS, "model-00001-of-00001.safetensors")}
    (folder / INDEX).write_text(json.dumps(index))
    with pytest.raises(BoomspecError, match=wording("contents.holds_index_names_model", single=SINGLE)) as caught:
        checkpoint_files(folder)
    assert f"transformers reads {SINGLE} alone" in caught.value.hint
    (folder / SINGLE).unlink()
    assert checkpoint_files(folder) == [folder / "model-00001-of-00001.safetensors"]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"transformers_weights": "other.safetensors"}, "'transformers_weights' .* 'other.safetensors'"),
        ({"configuration_files": ["config.4.0.0.json"]}, "'configuration_files'"),
        ({"model_type": None}, "names no model_type"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantization_config.* quant_method gptq"),
        ({"quantization_config": {"load_in_4bit": True}}, "quant_method bitsandbytes"),
        ({"text_config": {"quantization_config": {"quant_method": "awq"}}}, "quant_method awq"),
        ({"compression_config": {"quant_method": "compressed-tensors"}}, "quant_method compressed-tensors"),
    ],
)
def test_a_config_that_has_other_files_read_or_quantises_is_refused(fields, says):
    check = check_quantization if "quant" in says else check_config
    with pytest.raises(BoomspecError, match=says) as caught:
        check({**CONFIG, **fields}, "here")
    assert caught.value.hint


def spec(folder: Path, teacher: str, student: str | None = None) -> Path:
    path = folder / "spec.yaml"
    fields = {"boomspec": 1, "name": "x", "teacher": {"model": teacher}, "student": {"keep": [0]}}
    fields["data"] = {"files": "text.txt", "sequence_length": 8}
    if student:
        fields["student"]["model"] = student
        fields["evaluate"] = {"tasks": []}
        del fields["data"], fields["evaluate"]
    else:
        fields["distill"] = {"tokens": 8, "batch_tokens": 8}
    (folder / "text.txt").write_text("text")
    path.write_text(yaml.safe_dump(fields))
    return path


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_a_plan_says_it_with_the_line_of_the_spec(tmp_path, role):
    for name in ("teacher", "student"):
        model(tmp_path / name)
    (tmp_path / role / "adapter_config.json").write_text('{"base_model_name_or_path": "a/b"}')
    path = spec(tmp_path, "./teacher", "./student" if role == "student" else None)
    with pytest.raises(BoomspecError, match=wording("contents.spec_yaml_model_holds", role=role)):
        compile_experiments([load_spec(path)])


@pytest.mark.parametrize("role", ["teacher", "student"])
@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"num_hidden_layers": 5}, "config.json says 5 layers, the checkpoint holds 2"),
        ({"text_config": {"model_type": "no_such_family"}}, "transformers has no causal language model of that"),
        ({"text_config": {"model_type": "llama"}}, "no text decoder found"),
        ({"model_type": "t5"}, "a t5 model is an encoder and a decoder"),
        ({"model_type": "marian", "is_encoder_decoder": True}, "a marian model is an encoder and a decoder"),
        ({"model_type": "mine", "is_encoder_decoder": True}, "a mine model is an encoder and a decoder"),
    ],
)
def test_what_is_wrong_with_a_models_config_has_the_line_that_names_it(tmp_path, role, fields, says):
    for name in ("teacher", "student"):
        model(tmp_path / name, **(fields if name == role else {}))
    path = spec(tmp_path, "./teacher", "./student" if role == "student" else None)
    with pytest.raises(SpecError, match=rf"spec.yaml:\d+:\d+: {role}.model: .*{says}"):
        compile_experiments([load_spec(path)])


def test_a_decoder_of_a_family_of_encoders_and_decoders_is_no_such_pair(tmp_path):
    check_config({"model_type": "bart", "is_encoder_decoder": False}, "here")
    with pytest.raises(BoomspecError, match=wording("contents.bart_model_encoder_decoder")):
        check_config({"model_type": "bart"}, "here")


@pytest.mark.parametrize(
    ("written", "says", "hint"),
    [
        ("./models/qwne", "models/qwne' does not exist", wording("contents.did_you_mean_models")),
        ("./modls/qwen", "modls/qwen' does not exist", wording("contents.did_you_mean_models")),
        (
            "models/qwne",
            "model 'models/qwne': cannot be read from the hub",
            wording("contents.did_you_mean_models_qwen"),
        ),
        ("models/qwen/config.json", "is a file, not the folder of a model", wording("contents.folder_models_qwen")),
    ],
)
def test_a_misspelled_folder_is_asked_for(tmp_path, written, says, hint):
    model(tmp_path / "models" / "qwen")
    with pytest.raises(BoomspecError, match=says) as caught:
        compile_experiments([load_spec(spec(tmp_path, written))])
    assert hint.format(tmp_path) in str(caught.value)
    assert ": teacher.model: " in str(caught.value)


def test_nobody_is_asked_where_nothing_is_like_it(tmp_path):
    (tmp_path / "texts").mkdir()
    with pytest.raises(BoomspecError, match=wording("contents.cannot_read_hub")) as caught:
        compile_experiments([load_spec(spec(tmp_path, "maker/teacher"))])
    assert "did you mean" not in str(caught.value)
