"""Save a tiny random model with the config keys and tensor names of a given model.

    outline (config, names, shapes) --tiny config--> random model --its class's names--> the names of the files

A tensor that the class would not write (a mask that old versions stored, a head of another task) is in the folder, too,
as small as the sizes that it shares with others are.
"""

import json
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

from boomspec.core.errors import BoomspecError
from boomspec.core.tasks import Outline
from boomspec.models.checkpoint import TensorEntry, checkpoint_files
from boomspec.models.code import CONFIGS, code_files
from boomspec.models.families import row_of
from boomspec.models.folder import SINGLE
from boomspec.models.outline import config_of, tensors_of
from runners.checking.tiny import Config, tiny
from runners.modeling.foreign_code import prepare_custom_code

_LEFT_OUT = ("quantization_config", "torch_dtype", "dtype")  # of a tiny model in fp32
_SMALL = 8
_TYPES = {"I64": torch.int64, "I32": torch.int32, "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8}


class NotTinyError(BoomspecError):
    """No tiny model of an architecture could be built."""


def lay_out(outline: Outline, folder: Path, *, seed: int, own: Path | None = None, code: Collection[str] = ()) -> None:
    """Write the tiny model of an outline into `folder`. `own`: the model's folder, where it brings code along.

    Raises BoomspecError where transformers does not take the config, NotTinyError where only the tiny one fails.
    """
    folder.mkdir(parents=True)
    for name, file in code_files(own).items() if own is not None else ():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, folder / name)
    config = {key: value for key, value in config_of(outline.config).items() if key not in _LEFT_OUT}
    full = read_config(config, folder, code)
    small = tiny(config, json.loads(full.to_json_string(use_diff=False)))
    try:
        trusts = prepare_custom_code(folder, "model", code)
        model = random_model(read_config(small, folder, code), seed=seed, code=trusts)
        model.save_pretrained(folder / "saved")
    except Exception as error:  # each class has its own sizes that do not go together, and exceptions for it
        raise NotTinyError(f"a tiny {config.get('model_type')} cannot be built: {error}") from error
    saved: dict[str, Tensor] = {}
    for file in checkpoint_files(folder / "saved"):
        saved |= load_file(file)
    shutil.rmtree(folder / "saved")
    named = _named(saved, tensors_of(outline.tensors), model, tied=outline.tied)
    tensors = {name: tensor.contiguous() for name, tensor in named.items()}
    save_file(tensors, folder / SINGLE, metadata={"format": "pt"})


def read_config(config: Config, folder: Path, code: Collection[str]) -> Any:
    """transformers' config object of a config, which is then in the folder. Raises BoomspecError for one it refuses."""
    (folder / CONFIGS["model"]).write_text(json.dumps(config, indent=1), encoding="utf-8")
    trusts = prepare_custom_code(folder, "model", code)
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=trusts)
    except Exception as error:  # each config class has its own ideas of a wrong value, and of the exception for it
        raise BoomspecError(f"config.json: transformers refuses it: {error}") from error


def auto_class(config: Any) -> Any:
    masked = any("MaskedLM" in str(name) for name in getattr(config, "architectures", None) or ())
    return AutoModelForMaskedLM if masked else AutoModelForCausalLM


def random_model(config: Any, *, seed: int, code: bool = False) -> Any:
    """A model of a config object in fp32, with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = auto_class(config).from_config(config, dtype=torch.float32, trust_remote_code=code).eval()
    randomise(model, seed=seed)
    return model


@torch.no_grad()
def randomise(model: Any, *, seed: int) -> None:
    """Other weights, large enough that every layer shows in the logits, and none of which is that of another seed."""
    random = torch.Generator().manual_seed(seed)
    for parameter in filter(torch.is_floating_point, model.parameters()):
        drawn = torch.randn(parameter.shape, generator=random)
        if parameter.ndim < 2:  # norms, biases, gates: around what they begin as
            parameter.copy_(torch.nan_to_num(parameter).clamp(-4, 4) + drawn * 0.2)
        else:
            parameter.copy_(drawn * (0.3 if parameter.shape[-1] < 100 else 0.15))


def _named(
    saved: Mapping[str, Tensor], real: Mapping[str, TensorEntry], model: Any, *, tied: bool
) -> dict[str, Tensor]:
    """The tiny tensors under the names of the real files; what the class would save and is not there is left out."""
    row, prefix = row_of(model.config.model_type), f"{model.base_model_prefix}."
    result: dict[str, Tensor] = {}
    others: list[TensorEntry] = []
    sizes: dict[int, int] = {}
    for name, entry in real.items():
        bare = name.removeprefix("_orig_mod.")
        canonical = row.canonical_name(bare) or name
        spellings = (name, bare, canonical, f"{prefix}{bare}", bare.removeprefix(prefix))
        found = next((saved[spelling] for spelling in spellings if spelling in saved), None)
        if found is None:
            others.append(entry)
            continue
        result[name] = found.clone()
        if found.ndim == len(entry.shape):
            sizes.update(zip(entry.shape, found.shape, strict=True))
    embedding = model.get_input_embeddings().weight
    for entry in others:
        shape = [sizes.get(size, min(size, _SMALL)) for size in entry.shape]
        if shape == list(embedding.shape):  # a head that is stored although the class ties it
            result[entry.name] = embedding.detach().clone() * (1 if tied else -1)
        elif entry.dtype in _TYPES:
            result[entry.name] = torch.zeros(shape, dtype=_TYPES[entry.dtype])
        else:
            result[entry.name] = torch.full(shape, 0.1)
    return result
