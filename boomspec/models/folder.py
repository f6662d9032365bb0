"""What a model folder holds: the files that are read, those that travel with a model, and what is refused, and why.

    names    the files, relative to the folder; those of its subfolders, too, as far down as they were looked at

A model that is read: config.json, and the weights in model.safetensors, or in shards that an index names. All that
transformers would read besides, or instead, is refused: what was planned and what is loaded would not be the same.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from boomspec.core.errors import BoomspecError
from boomspec.core.files import read_json
from boomspec.models.families import row_of

CONFIG, INDEX, SINGLE = "config.json", "model.safetensors.index.json", "model.safetensors"
ADAPTER = "adapter_config.json"
TOKENIZER = "tokenizer.json"  # of the tokenizers library
CONTEXT = "config"  # of a tokenizer's identity: see `tokenizer_context`
CHAT_TEMPLATES = "additional_chat_templates"  # a folder
STUDENT_CONFIG = "student_config.json"  # see `read_student_mapping`
# What tokenizers of transformers read, by whatever class: its `VOCAB_FILES_NAMES`, and what all of them read.
_TOKENIZER = re.compile(
    r"(tokenizer.*|special_tokens_map\.json|added_tokens\.json|chat_template.*|merges\.txt|dict\.txt"
    r"|(.*_)?vocab([-_.].*)?\.(json|txt|bpe)|vocab\.bpe|encoder\.json|bpe\.codes|(normalizer|emoji|byte_maps|tekken)\.json"
    r"|word_(shape|pronunciation)\.json|.*\.(model|spm|tiktoken|jinja|tokenizer))"
    rf"|{CHAT_TEMPLATES}/[^/]*\.jinja"
)
# What else travels: how text is generated, and of a model that sees or hears, what its processor reads; a model of its
# layers needs it just as much.
_TRAVELS = re.compile(r"(generation_config|(video_|image_|audio_)?(pre)?processor_config|audio_tokenizer_config)\.json")
# Of a model's config, what decides which class its tokenizer is: transformers mends classes that are known to be wrong.
_DECIDES = ("model_type", "model_name", "tokenizer_class")
_REGEX = ("fix_mistral_regex", "transformers_version")  # a tokenizer that asks for the one is mended by the other
# All that a model folder may need, without the weights in other formats that many repositories also hold.
_ENDINGS = ("json", "safetensors", "txt", "model", "jinja", "tiktoken", "spm", "bpe", "codes", "tokenizer")
HUB_FILES = tuple(f"*.{ending}" for ending in _ENDINGS)
NOT_HUB_FILES = ("consolidated*.safetensors", "original/*")  # the same weights once more, as their makers read them

_CONVERT = "load it where it was made, with transformers, and save it: model.save_pretrained(folder)"
_MERGE = "merge it: PeftModel.from_pretrained(base, adapter).merge_and_unload().save_pretrained(folder)"
_SHARD = re.compile(r"model-(\d{5})-of-(\d{5})\.safetensors")
_RANK_SHARD = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")  # read in place of model.safetensors
_NUMBERED = re.compile(r"checkpoint-(\d+)")
_FILES_KEYS = ("transformers_weights", "configuration_files")  # of config.json: other files that are read in its place
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"  # how a file begins that git-lfs has not fetched
_TRAINING = {"trainer_state.json", "optimizer.pt", "scheduler.pt", "training_args.bin"}
_PIPELINE = "a pipeline of diffusers, not a language model"
_PICKLED = "weights that are pickled"

# Other things than a model in safetensors: what gives each away, what it is, what to do.
_OTHERS: tuple[tuple[tuple[str, ...], str, str], ...] = (
    (("model_index.json",), _PIPELINE, "give the folder of a causal model"),
    (("*.gguf",), "a model in GGUF", "give the model that it was converted from: GGUF is for inference"),
    (("zero_to_fp32.py", "global_step*/*"), "a checkpoint of DeepSpeed",
     "join its parts: python zero_to_fp32.py . out --safe_serialization; then put config.json and tokenizer beside"),
    (("*.distcp", "*/*.distcp", "pytorch_model_fsdp*/*"), "a sharded checkpoint of torch.distributed",
     "join its parts: accelerate merge-weights FOLDER OUT; then put config.json and the tokenizer beside"),
    (("params.json", "consolidated.*"), "a model in the format of its makers (params.json, consolidated weights)",
     "give the folder that transformers reads, or convert it with the script of transformers for this family"),
    (("*.nemo",), "a model of NeMo", "convert it to the format of transformers"),
    (("pytorch_model*.bin", "*.bin", "*.pt", "*.pth", "*.ckpt"), _PICKLED, _CONVERT),
    (("*.onnx", "onnx/*"), "a model in ONNX", "give the model that it was exported from"),
    (("tf_model.h5", "flax_model.msgpack", "*.msgpack"), "weights of TensorFlow or Flax", _CONVERT),
)  # fmt: skip


def is_tokenizer_file(name: str) -> bool:
    """`name`: relative to the model's folder."""
    return _TOKENIZER.fullmatch(name) is not None


def is_travelling_file(name: str) -> bool:
    """Whether a file goes along when a model is built from the one that it is beside."""
    return is_tokenizer_file(name) or _TRAVELS.fullmatch(name) is not None


def is_hub_file(name: str) -> bool:
    """Whether a file of a model on the hub is fetched."""
    return any(fnmatch(name, pattern) for pattern in HUB_FILES)


def travelling_files(folder: Path) -> list[Path]:
    """The files that go along when a model is built from this one, those of its tokenizer first."""
    found = model_files(folder, is_travelling_file)
    return sorted(found, key=lambda path: not is_tokenizer_file(path.relative_to(folder).as_posix()))


def model_files(folder: Path, wanted: Callable[[str], bool]) -> list[Path]:
    found = [*folder.iterdir(), *(folder / CHAT_TEMPLATES).glob("*.jinja")]
    return sorted(path for path in found if path.is_file() and wanted(path.relative_to(folder).as_posix()))


def tokenizer_context(config: Mapping[str, Any], tokenizer: Mapping[str, Any]) -> dict[str, Any]:
    """What a tokenizer takes from the model's config beside it: with that as its config.json it loads the same way."""
    keys = (*_DECIDES, _REGEX[1]) if _REGEX[0] in tokenizer else _DECIDES
    return {key: config[key] for key in keys if config.get(key) is not None}


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where there is no file, or something else in it."""
    try:
        found = read_json(path) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise BoomspecError(f"{path}: cannot be read as JSON: {error}") from error
    return found if isinstance(found, dict) else {}


def read_student_mapping(folder: Path, *, layers: int | None = None) -> tuple[int, ...]:
    """The layers of a teacher of `layers` that a published student was copied from, from its student_config.json.

    {"copied_teacher_layers": [0, 2, ...], "pruned_teacher_layers": [1, 3, ...]}: together all of the teacher's layers;
    student layer i was copied from the i-th of the first list. Raises BoomspecError where that is not so.
    """
    path, hint = folder / STUDENT_CONFIG, "or give the mapping in the spec: student: {model: ..., keep: [0, 2, ...]}"
    try:
        config = read_json(path)
    except OSError as error:
        raise BoomspecError(f"{folder}: no readable {STUDENT_CONFIG}: {error.strerror}", hint=hint) from error
    except ValueError as error:
        raise BoomspecError(f"{path}: not JSON: {error}", hint=hint) from error
    lists = []
    for key in ("copied_teacher_layers", "pruned_teacher_layers"):
        found = config.get(key) if isinstance(config, dict) else None
        if not isinstance(found, list) or not all(type(layer) is int for layer in found):
            raise BoomspecError(f"{path}: {key} is not a list of layers", hint=hint)
        lists.append(found)
    copied, pruned = lists
    both, count = sorted({*copied} & {*pruned}), len(copied) + len(pruned)
    wrong = {
        f"layer {next(iter(both), None)} is both copied and pruned": both,
        "copied and pruned layers are not together all of a teacher's layers": {*copied, *pruned} != {*range(count)},
        "no layer is copied": not copied,
        f"is of a teacher of {count} layers, this one has {layers}": layers not in (None, count),
        "copied_teacher_layers are not in order": copied != sorted(copied),
    }  # fmt: skip
    if what := next((what for what, is_so in wrong.items() if is_so), None):
        raise BoomspecError(f"{path}: {what}", hint=hint)
    return tuple(copied)


def check_folder(folder: Path) -> None:
    """Raise BoomspecError, which says what the folder is and what to do, unless it holds a model that is read here."""
    if broken := [path for path in sorted(folder.iterdir()) if path.is_symlink() and not path.exists()]:
        hint = "copy the folder with the files that its links lead to: cp -rL"
        if (folder.parent.name, folder.parent.parent.name[:8]) == ("snapshots", "models--"):
            hint = "it is of the hub's cache, whose `blobs` are gone or were not copied: fetch it again (hf download)"
        some = f", and {len(broken) - 1} more" if len(broken) > 1 else ""
        raise BoomspecError(f"{broken[0]}: is a link to {broken[0].readlink()}, where nothing is{some}", hint=hint)
    names = list(names_in(folder))
    if (error := refusal(names, str(folder))) is not None:
        raise error
    for name in names:
        if name in (CONFIG, INDEX, SINGLE) or is_travelling_file(name):  # shards are looked at by their headers
            check_fetched(folder / name)


def check_fetched(file: Path) -> None:
    """Raise BoomspecError for a file that is only a pointer of git-lfs."""
    with file.open("rb") as stream:
        if stream.read(len(_LFS_POINTER)) == _LFS_POINTER:
            hint = "fetch the files: `git lfs install`, then `git lfs pull` in the repository"
            raise BoomspecError(f"{file}: is a pointer of git-lfs, not the file itself", hint=hint)


def check_config(config: Mapping[str, Any], where: str) -> None:
    """Raise BoomspecError for a config with which transformers reads other files than we do."""
    for key in _FILES_KEYS:
        if config.get(key):
            message = f"{where}: '{key}' of its {CONFIG} has transformers read other files: {config[key]!r}"
            raise BoomspecError(message, hint="load it with transformers and save it: model.save_pretrained(folder)")
    if not config.get("model_type"):  # transformers would guess it from the folder's name
        raise BoomspecError(f"{where}: its {CONFIG} names no model_type", hint="is it the config of a language model?")
    if config.get("is_encoder_decoder", row_of(config["model_type"]).encoder_decoder):
        two = "an encoder and a decoder, two stacks of layers of which one reads the other"
        message = f"{where}: a {config['model_type']} model is {two}; boomspec interpolates models of one stack"
        raise BoomspecError(message, hint="give a decoder (a causal language model) as teacher")


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


def refusal(names: Collection[str], where: str, *, local: bool = True) -> BoomspecError | None:
    """Why what has these files cannot be read as a model; None where it can. `local`: `where` is a folder."""
    top = {name for name in names if "/" not in name}
    weights, shards = {SINGLE, INDEX} & top, sorted(name for name in top if _SHARD.fullmatch(name))
    rank = next(iter(sorted(name for name in top if _RANK_SHARD.fullmatch(name))), None)
    kept = f"; or, if the weights have it already, remove {ADAPTER}" if weights else ""
    # What is so, what that is, and what to do; the first row counts.
    rows: list[tuple[object, str, str]] = [
        (ADAPTER in top and CONFIG in top,
         "holds a PEFT adapter beside the model, which transformers would load", _MERGE + kept),
        (ADAPTER in top, "holds a PEFT adapter", _MERGE),
        (rank, f"holds {rank}, one worker's part of a model, which transformers would load",
         "gather the model before it is saved, or remove what was left there"),
    ]  # fmt: skip
    what, file, advice = _other(names)
    in_folders = {end: {name.split("/")[0] for name in names if name.count("/") == 1 and name.endswith(end)}
                  for end in (f"/{CONFIG}", f"/{ADAPTER}", ".safetensors")}  # fmt: skip
    models, adapter = in_folders[f"/{CONFIG}"] & in_folders[".safetensors"], _newest(in_folders[f"/{ADAPTER}"])
    checkpoint = _newest({folder for folder in models if folder.startswith("checkpoint-")})
    inner = checkpoint or _newest(models)
    meant = f"only the top of a repository is read: fetch {inner} (hf download) and give it as a folder"
    if local:
        meant = f"is {where.rstrip('/')}/{inner} meant?"
    if CONFIG not in top:
        rows += [
            (what == _PIPELINE, f"holds {what} ({file})", advice),  # its parts are folders of models, too
            (checkpoint, f"no {CONFIG}, but the checkpoints of a training, the newest in {inner}", meant),
            (inner, f"no {CONFIG}, but {inner}", meant),
            (adapter, f"holds a PEFT adapter in {adapter} and no model", _MERGE),
            (_TRAINING & top and what in ("", _PICKLED), f"holds the state of a training and no {CONFIG}",
             "save the model there, too: trainer.save_model(folder); or give the folder where it was saved"),
            (what, f"holds {what} ({file}), and no {CONFIG}", advice),
            (weights or shards, f"holds weights and no {CONFIG}",
             f"put the {CONFIG} of the model beside: model.config.save_pretrained(folder)"),
            (any(name.startswith("tokenizer") for name in top), "holds a tokenizer and no model",
             "give the folder of the model; its tokenizer lies there, too"),
            (not names, "is empty", "give the folder of a model: config.json and safetensors"),
            (True, f"no {CONFIG}: holds {', '.join(sorted(top)[:3]) or 'only folders'}", "give the folder of a model"),
        ]  # fmt: skip
    elif not weights:
        of = int(shards[-1][-17:-12]) if shards else 0
        missing = [name for i in range(of) if (name := f"model-{i + 1:05}-of-{of:05}.safetensors") not in shards]
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        named = " to ".join(dict.fromkeys([*shards[:1], *shards[-1:]]))
        unnamed = f"holds the shards {named} and no {INDEX}, which says what is in them"
        no_weights = f"no {SINGLE} and no {INDEX}"
        other = next(iter(sorted(name for name in top if name.endswith(".safetensors"))), None)
        rows += [
            (missing, f"{unnamed}; {''.join(missing[:1])} is missing, too{more}",
             "fetch or copy the whole model again"),
            (shards, unnamed, f"fetch or copy {INDEX}; it is a file of its own beside the shards"),
            (checkpoint, f"no weights in safetensors here, but in {inner}, the newest checkpoint", meant),
            (other, f"{no_weights}, but {other}",
             f"transformers reads {SINGLE}, or the shards that {INDEX} names: rename it if it is the model"),
            (what, f"{no_weights}: holds {what} ({file})", f"boomspec reads safetensors only; {advice}"),
            (True, no_weights, "the weights are missing: fetch or copy them"),
        ]  # fmt: skip
    return next((BoomspecError(f"{where}: {what}", hint=hint) for is_so, what, hint in rows if is_so), None)


def _newest(folders: Collection[str]) -> str:
    """The checkpoint with the highest number, else the last folder by name; "" of none."""
    match_of = {folder: _NUMBERED.fullmatch(folder) for folder in folders}
    return max(folders, key=lambda name: (int(match[1]) if (match := match_of[name]) else -1, name), default="")


def _other(names: Collection[str]) -> tuple[str, str, str]:
    """What a folder holds instead of a model: what it is, a file that says so, and what to do; "" where nothing."""
    for patterns, what, hint in _OTHERS:
        for pattern in patterns:
            found = sorted(n for n in names if n.count("/") == pattern.count("/") and fnmatch(n, pattern))
            if found:
                return what, found[0], hint
    return "", "", ""
