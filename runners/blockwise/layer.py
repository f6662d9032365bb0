"""Load one decoder layer of a model, and run it alone on hidden states, as the model would run it.

A layer lies in a model folder of its own: an ordinary one of the same family, of this layer alone, whose embedding and
head are cut to a few rows. So what a family makes of a layer (its weights' names and order, masks, rotations, what its
kind of attention is) is what transformers makes of it, and no other layer is read or built. The model's embedding is
loaded in the same way, with all of its rows.

Shapes: B sequences, T positions, D hidden size.
"""

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from boomspec.core.errors import BoomspecError
from boomspec.core.json_text import transformers_floats
from boomspec.core.layers import TEACHER, teacher_layers
from boomspec.models import code as own_code
from boomspec.models.checkpoint import TensorEntry
from boomspec.models.facts import ModelFacts, read_facts
from boomspec.models.fit import tensors_of_plan
from boomspec.models.folder import CONFIG
from runners.assembly.checkpoint_writer import write_checkpoints
from runners.modeling.documents import is_marked, marks_of
from runners.modeling.foreign_code import prepare_custom_code, runs_code, without_code
from runners.modeling.hidden_states import check_apart, decoder_layers, trunk
from runners.modeling.layerwise import Batch, Parts, take_apart
from runners.modeling.model_config import plan_config
from runners.modeling.models import Code, load_frozen

_ROWS = 8  # of embedding and head that the folder of a layer keeps
_CHECKED_TOKENS = 16


class LoneLayer:
    """A decoder layer by itself: `layer(hidden_BTD)` is its output on the states of whole sequences.

    Whose documents are apart the tokens say: `layer(hidden_BTD, tokens_BT)`.
    """

    def __init__(self, model: Any) -> None:
        self.model, self.module = model, decoder_layers(model)[0]
        self._tokens = torch.arange(_CHECKED_TOKENS, device=model.device).remainder(_ROWS).unsqueeze(0)
        self._parts: Parts = take_apart(model, self._tokens)
        self._is_tried = False  # whether it keeps documents apart

    def __call__(self, hidden_BTD: Tensor, tokens_BT: Tensor | None = None) -> Tensor:
        # Of the tokens only their number counts, and their marks: what is in front of a layer is not computed here.
        place = hidden_BTD.device
        if tokens_BT is not None and is_marked(tokens_BT):
            if not self._is_tried:
                check_apart(self.model)
                self._is_tried = True
            tokens_BT = marks_of(tokens_BT.to(place))
        else:
            tokens_BT = torch.zeros(hidden_BTD.shape[:2], dtype=torch.long, device=place)
        return Batch(self._parts, tokens_BT).layer(0, hidden_BTD)

    def train_alone(self) -> None:
        """Let the layer's parameters require gradients, and no other."""
        self.model.requires_grad_(False)
        for parameter in self.module.parameters():
            parameter.requires_grad_(torch.is_floating_point(parameter))


class Embedding:
    """What a model does in front of its layers: `embedding(tokens_BT)` is hidden_BTD."""

    def __init__(self, model: Any) -> None:
        self._parts = Parts(model)
        self._parts.layers[0].to("meta")  # it is not run
        self.device: torch.device = model.device

    def __call__(self, tokens_BT: Tensor) -> Tensor:
        def stop(_index: int, hidden_BTD: Tensor, _call: Any) -> Tensor:
            raise _ReachedError(hidden_BTD)

        try:
            with self._parts.hollow(stop):
                trunk(self._parts.model, tokens_BT)
        except _ReachedError as reached:
            return reached.hidden_BTD
        raise BoomspecError("the model runs no decoder layer")


class _ReachedError(Exception):
    """The first layer is reached: what follows need not be computed."""

    def __init__(self, hidden_BTD: Tensor) -> None:
        super().__init__()
        self.hidden_BTD = hidden_BTD


@contextmanager
def lone_layer(model: Path, index: int, *, dtype: torch.dtype, code: Code = ()) -> Iterator[LoneLayer]:
    """Layer `index` of the model in a folder, frozen, on this process's device. It is let go at the end."""
    with _folder_of(model, index, code) as folder, _let_go(load_frozen(folder, dtype=dtype, code=code)) as alone:
        yield LoneLayer(alone)


@contextmanager
def embedding(model: Path, *, dtype: torch.dtype, code: Code = ()) -> Iterator[Embedding]:
    """What the model in a folder does in front of its layers, frozen."""
    with (
        _folder_of(model, 0, code, whole=True) as folder,
        _let_go(load_frozen(folder, dtype=dtype, code=code)) as alone,
    ):
        yield Embedding(alone)


@contextmanager
def _let_go(model: Any) -> Iterator[Any]:
    """At the end the model's weights are given up, whoever still knows the model."""
    try:
        yield model
    finally:
        model.to("meta")


@contextmanager
def _folder_of(model: Path, index: int, code: Code, *, whole: bool = False) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="boomspec-layer-"))
    try:
        write_layer(read_facts(model), model, index, folder, code=code, whole=whole)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_layer(
    facts: ModelFacts, model: Path, index: int, target: Path, *, code: Code = (), whole: bool = False
) -> None:
    """Write the folder of one layer of the model in `model`. `whole`: with all rows of the embedding.

    Raises BoomspecError where the family's config cannot say what this layer is when it stands alone.
    """
    without_head = whole and not facts.tied and _is_plain(facts)  # the embedding is in its place
    plan, tied = teacher_layers([index]), facts.tied or without_head
    try:
        config = plan_config({TEACHER: facts}, plan, tied=tied, base=TEACHER)
    except BoomspecError as error:
        raise BoomspecError(f"layer {index} of the teacher alone: {error.message}", hint=error.hint) from error
    rows, heads = facts.token_embedding.shape[0], {entry.name for entry in facts.untied_head}

    def cut(entry: TensorEntry) -> TensorEntry:
        """The first rows of an entry, as a part of its bytes."""
        shape = (_ROWS, *entry.shape[1:])
        length = replace(entry, shape=shape).bytes
        return replace(entry, shape=shape, end=entry.start + length)

    made = []
    for entry, source in tensors_of_plan({TEACHER: facts}, plan, tied=tied):
        of_tokens = entry.name == facts.token_embedding.name or (entry.name in heads and entry.shape[:1] == (rows,))
        if without_head and entry.name in heads:
            continue
        if of_tokens and not whole:
            made.append((cut(entry), source and cut(source)))
        else:
            made.append((entry, source))
    if not whole:
        config |= {"vocab_size": _ROWS, "pad_token_id": None}
    target.mkdir(parents=True, exist_ok=True)
    write_checkpoints({target: made})
    trusted = runs_code(model, "model", code)
    for file in [*own_code.code_files(model).values(), *own_code.files_of_code(model)] if trusted else ():
        copied = target / file.relative_to(model)
        copied.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copied)
    text = json.dumps(transformers_floats(config if trusted else without_code(config)), indent=2, allow_nan=False)
    (target / CONFIG).write_text(text + "\n", encoding="utf-8")


def _is_plain(facts: ModelFacts) -> bool:
    """Whether the head is one matrix of the embedding's shape, so that its place may be taken by that."""
    shapes = [entry.shape for entry in facts.untied_head]
    return shapes == [facts.token_embedding.shape]


def redraw(layer: LoneLayer, folder: Path, *, seed: int, code: Code = ()) -> None:
    """Give a layer other weights, at random, as its class begins with; `folder`: of the layer."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        trusts = prepare_custom_code(folder, "model", code)
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trusts)
        drawn: nn.Module = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=trusts)
    with torch.no_grad():
        layer.module.load_state_dict(decoder_layers(drawn)[0].state_dict())
