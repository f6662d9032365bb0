"""Check that a folder holds a safetensors model, and explain every file that is refused.

    names    the files, relative to the folder; those of its subfolders, too, as far down as they were looked at

A model that is read: config.json, and the weights in model.safetensors, or in shards that an index names. All that
transformers would read besides, or instead, is refused: what was planned and what is loaded would not be the same.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from boomspec.core.errors import BoomspecError
from boomspec.models.families import row_of
from boomspec.models.files import CONFIG, INDEX, SINGLE, check_fetched, is_travelling_file

ADAPTER = "adapter_config.json"
_CONVERT = "load it where it was made, with transformers, and save it: model.save_pretrained(folder)"
_MERGE = "merge it: PeftModel.from_pretrained(base, adapter).merge_and_unload().save_pretrained(folder)"
_SHARD = re.compile(r"model-(\d{5})-of-(\d{5})\.safetensors")
_RANK_SHARD = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")  # read in place of model.safetensors
_NUMBERED = re.compile(r"checkpoint-(\d+)")
_FILES_KEYS = ("transformers_weights", "configuration_files")  # of config.json: other files that are read in its place

_TRAINING = {"trainer_state.json", "optimizer.pt", "scheduler.pt", "training_args.bin"}
_PIPELINE = "a pipeline of diffusers, not a language model"
_PICKLED = "weights that are pickled"

# Other things than a model in safetensors: what gives each away, what it is, what to do.
_OTHERS: tuple[tuple[tuple[str, ...], str, str], ...] = (
    (("model_index.json",), _PIPELINE, "give the folder of a causal model"),
    (("*.gguf",), "a model in GGUF", "give the model that it was converted from: GGUF is for inference"),
    (
        ("zero_to_fp32.py", "global_step*/*"),
        "a checkpoint of DeepSpeed",
        "join its parts: python zero_to_fp32.py . out --safe_serialization; then put config.json and tokenizer beside",
    ),
    (
        ("*.distcp", "*/*.distcp", "pytorch_model_fsdp*/*"),
        "a sharded checkpoint of torch.distributed",
        "join its parts: accelerate merge-weights FOLDER OUT; then put config.json and the tokenizer beside",
    ),
    (
        ("params.json", "consolidated.*"),
        "a model in the format of its makers (params.json, consolidated weights)",
        "give the folder that transformers reads, or convert it with the script of transformers for this family",
    ),
    (("*.nemo",), "a model of NeMo", "convert it to the format of transformers"),
    (("pytorch_model*.bin", "*.bin", "*.pt", "*.pth", "*.ckpt"), _PICKLED, _CONVERT),
    (("*.onnx", "onnx/*"), "a model in ONNX", "give the model that it was exported from"),
    (("tf_model.h5", "flax_model.msgpack", "*.msgpack"), "weights of TensorFlow or Flax", _CONVERT),
)


def check_folder(folder: Path) -> None:
    """Raise BoomspecError, which says what the folder is and what to do, unless it holds a model that is read here.

    Looks at names and at the beginnings of small files.
    """
    check_links(folder)
    names = list(names_in(folder))
    if (error := refusal(names, str(folder))) is not None:
        raise error
    for name in names:
        if name in (CONFIG, INDEX, SINGLE) or is_travelling_file(name):  # shards are looked at by their headers
            check_fetched(folder / name)


def names_in(folder: Path) -> Iterator[str]:
    """The names of a folder's files, and of those in its subfolders: no deeper, and nothing hidden."""
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if not path.is_dir():
            yield path.name
            continue
        try:
            yield from sorted(f"{path.name}/{inner.name}" for inner in path.iterdir() if not inner.is_dir())
        except OSError:
            continue  # it may not be read, and is not needed


def check_links(folder: Path) -> None:
    """Raise BoomspecError for a link that leads nowhere: to transformers and to us its file would not exist."""
    broken = [path for path in sorted(folder.iterdir()) if path.is_symlink() and not path.exists()]
    if not broken:
        return
    hint = "copy the folder with the files that its links lead to: cp -rL"
    if (folder.parent.name, folder.parent.parent.name[:8]) == ("snapshots", "models--"):
        hint = "it is of the hub's cache, whose `blobs` are gone or were not copied along: fetch it again (hf download)"
    some = f", and {len(broken) - 1} more" if len(broken) > 1 else ""
    raise BoomspecError(f"{broken[0]}: is a link to {broken[0].readlink()}, where nothing is{some}", hint=hint)


def refusal(names: Collection[str], where: str, *, local: bool = True) -> BoomspecError | None:
    """Why what has these files cannot be read as a model; None where it can. `local`: `where` is a folder."""
    top = {name for name in names if "/" not in name}
    if ADAPTER in top:
        what = "a PEFT adapter beside the model, which transformers would load" if CONFIG in top else "a PEFT adapter"
        hint = _MERGE
        if {SINGLE, INDEX} & top and CONFIG in top:
            hint += f"; or, if the weights have it already, remove {ADAPTER}"
        return BoomspecError(f"{where}: holds {what}", hint=hint)
    if rank := sorted(name for name in top if _RANK_SHARD.fullmatch(name)):
        message = f"{where}: holds {rank[0]}, one worker's part of a model, which transformers would load"
        return BoomspecError(message, hint="gather the model before it is saved, or remove what was left there")
    if CONFIG not in top:
        return _no_config(names, top, where, local)
    return None if {SINGLE, INDEX} & top else _no_weights(names, top, where, local)


def check_config(config: Mapping[str, Any], where: str) -> None:
    """Raise BoomspecError for a config with which transformers reads other files than we do."""
    for key in _FILES_KEYS:
        if config.get(key):
            message = f"{where}: '{key}' of its {CONFIG} has transformers read other files: {config[key]!r}"
            raise BoomspecError(message, hint="load it with transformers and save it: model.save_pretrained(folder)")
    if not config.get("model_type"):  # transformers would guess it from the folder's name
        raise BoomspecError(f"{where}: its {CONFIG} names no model_type", hint="is it the config of a language model?")
    if config.get("is_encoder_decoder", row_of(config["model_type"]).encoder_decoder):
        raise BoomspecError(
            f"{where}: a {config['model_type']} model is an encoder and a decoder, two stacks of layers of which one"
            " reads the other; boomspec interpolates models of one stack",
            hint="give a decoder (a causal language model) as teacher",
        )


def _no_config(names: Collection[str], top: set[str], where: str, local: bool) -> BoomspecError:
    if (found := _other(names)) and found[0] == _PIPELINE:  # its parts are folders of models, too
        return BoomspecError(f"{where}: holds {found[0]} ({found[1]})", hint=found[2])
    if inner := _models_inside(names):
        newest = inner[-1]
        what = f"the checkpoints of a training, the newest in {newest}" if "checkpoint-" in newest else newest
        return BoomspecError(f"{where}: no {CONFIG}, but {what}", hint=_meant(where, newest, local))
    if adapters := [name.split("/")[0] for name in names if name.endswith(f"/{ADAPTER}")]:
        newest = max(adapters, key=_number)
        return BoomspecError(f"{where}: holds a PEFT adapter in {newest} and no model", hint=_MERGE)
    if _TRAINING & top and (found is None or found[0] == _PICKLED):
        hint = "save the model there, too: trainer.save_model(folder); or give the folder where it was saved"
        return BoomspecError(f"{where}: holds the state of a training and no {CONFIG}", hint=hint)
    if found is not None:
        what, name, hint = found
        return BoomspecError(f"{where}: holds {what} ({name}), and no {CONFIG}", hint=hint)
    if {SINGLE, INDEX} & top or any(_SHARD.fullmatch(name) for name in top):
        hint = f"put the {CONFIG} of the model beside: model.config.save_pretrained(folder)"
        return BoomspecError(f"{where}: holds weights and no {CONFIG}", hint=hint)
    if any(name.startswith("tokenizer") for name in top):
        hint = "give the folder of the model; its tokenizer lies there, too"
        return BoomspecError(f"{where}: holds a tokenizer and no model", hint=hint)
    if not names:
        return BoomspecError(f"{where}: is empty", hint="give the folder of a model: config.json and safetensors")
    some = ", ".join(sorted(top)[:3]) or "only folders"
    return BoomspecError(f"{where}: no {CONFIG}: holds {some}", hint="give the folder of a model")


def _no_weights(names: Collection[str], top: set[str], where: str, local: bool) -> BoomspecError:
    shards = sorted(match[0] for name in top if (match := _SHARD.fullmatch(name)))
    if shards:
        return _no_index(shards, where)
    if checkpoints := [name for name in _models_inside(names) if name.startswith("checkpoint-")]:
        message = f"{where}: no weights in safetensors here, but in {checkpoints[-1]}, the newest checkpoint"
        return BoomspecError(message, hint=_meant(where, checkpoints[-1], local))
    if other := sorted(name for name in top if name.endswith(".safetensors")):
        hint = f"transformers reads {SINGLE}, or the shards that {INDEX} names: rename it if it is the model"
        return BoomspecError(f"{where}: no {SINGLE} and no {INDEX}, but {other[0]}", hint=hint)
    if found := _other(names):
        what, name, hint = found
        message = f"{where}: no {SINGLE} and no {INDEX}: holds {what} ({name})"
        return BoomspecError(message, hint=f"boomspec reads safetensors only; {hint}")
    return BoomspecError(f"{where}: no {SINGLE} and no {INDEX}", hint="the weights are missing: fetch or copy them")


def _meant(where: str, inner: str, local: bool) -> str:
    if local:
        return f"is {where.rstrip('/')}/{inner} meant?"
    return f"only the top of a repository is read: fetch {inner} (hf download) and give it as a folder"


def _no_index(shards: list[str], where: str) -> BoomspecError:
    last = _SHARD.fullmatch(shards[-1])
    assert last is not None
    of = int(last[2])
    have = {int(found[1]) for name in shards if (found := _SHARD.fullmatch(name)) and int(found[2]) == of}
    missing = [f"model-{i:05}-of-{of:05}.safetensors" for i in range(1, of + 1) if i not in have]
    named = shards[0] if len(shards) == 1 else f"{shards[0]} to {shards[-1]}"
    message = f"{where}: holds the shards {named} and no {INDEX}, which says what is in them"
    if missing:
        message += f"; {missing[0]} is missing, too" + (f" (and {len(missing) - 1} more)" if len(missing) > 1 else "")
        return BoomspecError(message, hint="fetch or copy the whole model again")
    return BoomspecError(message, hint=f"fetch or copy {INDEX}; it is a file of its own beside the shards")


def _models_inside(names: Collection[str]) -> list[str]:
    """The subfolders that hold a config and weights: the newest checkpoint last."""
    folders = {name.split("/")[0] for name in names if name.endswith(f"/{CONFIG}")}
    weighty = {name.split("/")[0] for name in names if name.count("/") == 1 and name.endswith(".safetensors")}
    return sorted(folders & weighty, key=_number)


def _number(folder: str) -> tuple[int, str]:
    match = _NUMBERED.fullmatch(folder)
    return (int(match[1]) if match else -1, folder)


def _other(names: Collection[str]) -> tuple[str, str, str] | None:
    """What a folder holds instead of a model: what it is, a file that says so, and what to do."""
    for patterns, what, hint in _OTHERS:
        for pattern in patterns:
            depth = pattern.count("/")
            found = sorted(name for name in names if name.count("/") == depth and fnmatch(name, pattern))
            if found:
                return what, found[0], hint
    return None
