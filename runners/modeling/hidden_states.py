"""Catch hidden states of a causal language model with forward hooks, pair those of student and teacher, apply the head.

A `Point` names one hidden state: EMBEDDING (what the first decoder layer reads), an integer i (the raw output of
decoder layer i) or FINAL_NORM (the trunk's result, which the head reads). No family is named here: the layer stack is
the list of modules that has as many entries as the config says. Calling a model computes the logits of every position
at once. A training step must not (METHOD: a vocabulary of 151,936 makes 2.5 GB a copy), so the head is taken apart from
its trunk, and `check_head` proves at the start of a training that the two together are the model.

Shapes: B sequences, T positions, N positions of any sequence, D hidden size, V vocabulary.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from boomspec.core.errors import BoomspecError
from boomspec.models.families import LOGITS
from runners.modeling.documents import arguments_for, marked, tokens_of

EMBEDDING: Literal["embedding"] = "embedding"
FINAL_NORM: Literal["final norm"] = "final norm"
Point = int | Literal["embedding", "final norm"]
Pair = tuple[Point, Point]  # (student, teacher)
_DOCUMENTS = (7, 1, 9)  # lengths of those of the row that a model is tried with
_APART = "leave out data.isolate_documents: documents of one row then see each other, as they usually do"
# By name: the transform, and the gradient of what is in front of it, made in place of that of its output.
_TRANSFORMS: dict[str, tuple[Callable[[Tensor, float], Tensor], Callable[[Tensor, Tensor, float], Tensor]]] = {
    "capped": (
        lambda logits, cap: cap * torch.tanh(logits / cap),
        lambda gradient, output, cap: gradient.mul_(1 - (output / cap).square()),
    ),
    "divided": (lambda logits, divisor: logits / divisor, lambda gradient, _output, divisor: gradient.div_(divisor)),
    "multiplied": (lambda logits, factor: logits * factor, lambda gradient, _output, factor: gradient.mul_(factor)),
}


def hidden_pairs(kept: Sequence[int], layers: int, *, embedding: bool = True, final_norm: bool = True) -> list[Pair]:
    """The states that are aligned, as (student point, teacher point), from the embedding upwards.

    Student layer i is compared with the teacher, of `layers` layers, at the END of block i: layer kept[i + 1] - 1, and
    its last layer for the last block. `embedding` adds the pair of embedding outputs; `final_norm`
    takes the last pair after the final norm instead of the raw layer outputs (arXiv 2510.05064).
    """
    ends = [*(start - 1 for start in kept[1:]), layers - 1]
    pairs: list[Pair] = list(enumerate(ends))
    if final_norm:
        pairs[-1] = (FINAL_NORM, FINAL_NORM)
    return [(EMBEDDING, EMBEDDING), *pairs] if embedding else pairs


def base_model(model: Any) -> Any:
    """The trunk of a causal language model: all but its head. Raises BoomspecError where both are one module."""
    base = model.base_model
    if base is model:  # a class that calls its trunk otherwise than its family says (Llama 4)
        base = getattr(model, "model", None) or model.get_decoder()
    if base is None or base is model:
        raise BoomspecError(f"model type '{model.config.model_type}': it has no base model apart from its head")
    return base


def layer_lists(model: Any, count: int) -> dict[str, nn.ModuleList]:
    found: dict[str, nn.ModuleList] = {}
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if isinstance(module, nn.ModuleList) and len(module) == count and not inside:
            found[name] = module
    return found


def decoder_layers(model: Any) -> nn.ModuleList:
    """The one list of `config.num_hidden_layers` modules in the trunk. Raises BoomspecError unless there is one."""
    count = model.config.get_text_config().num_hidden_layers
    found = layer_lists(base_model(model), count)
    if len(found) != 1:
        names, model_type = ", ".join(found) or "none", model.config.model_type
        raise BoomspecError(f"model type '{model_type}': expected one list of {count} layers, found {names}")
    return next(iter(found.values()))


def embedding_parameters(model: Any) -> list[nn.Parameter]:
    """Parameters of the embedding tables (tokens and, where they are learned, positions)."""
    inside = set(decoder_layers(model).modules())
    tables = [m for m in base_model(model).modules() if isinstance(m, nn.Embedding) and m not in inside]
    return list(dict.fromkeys(parameter for table in tables for parameter in table.parameters()))


def trunk(model: Any, tokens_BT: Tensor, **arguments: Any) -> Tensor:
    """hidden_BTD after the final norm, under a causal mask over each whole row unless `arguments` hold another.

    Where the documents of a row are apart (`documents.py`), each has a mask and positions of its own.
    """
    arguments = arguments or arguments_for(model, tokens_BT)
    hidden_BTD: Tensor = base_model(model)(input_ids=tokens_of(tokens_BT), use_cache=False, **arguments)[0]
    return hidden_BTD


@contextmanager
def capture(model: Any, points: Collection[Point]) -> Iterator[dict[Point, Tensor]]:
    """Within the context, each forward puts the states at `points`, with their graph, into the dict that is yielded."""
    states_BTD: dict[Point, Tensor] = {}

    def at_output(point: Point) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            states_BTD[point] = output if isinstance(output, Tensor) else output[0]

        return hook

    def at_first_input(_module: nn.Module, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
        states_BTD[EMBEDDING] = positional[0] if positional else named["hidden_states"]

    with ExitStack() as hooks:
        for point in dict.fromkeys(points):
            if point == EMBEDDING:
                # Not the embedding module's output: positions, scales and norms may follow it.
                hook = decoder_layers(model)[0].register_forward_pre_hook(at_first_input, with_kwargs=True)
            else:
                module = base_model(model) if point == FINAL_NORM else decoder_layers(model)[point]
                hook = module.register_forward_hook(at_output(point))
            hooks.callback(hook.remove)
        yield states_BTD


class LMHead:
    """`head(hidden_ND) -> logits_NV` of a model, sharing the model's parameters."""

    def __init__(self, model: Any) -> None:
        self.output: Any = model.get_output_embeddings()  # the module that makes `raw` logits, before the transforms
        if self.output is None:
            raise BoomspecError(f"model type '{model.config.model_type}': it has no language-model head")
        config = model.config.get_text_config()
        values = {key: getattr(config, key, None) for key in LOGITS}
        self._transforms = [(*_TRANSFORMS[LOGITS[key]], value) for key, value in values.items() if value is not None]

    def __call__(self, hidden_ND: Tensor) -> Tensor:
        logits_NV: Tensor = self.output(hidden_ND)
        for transform, _, value in self._transforms:
            logits_NV = transform(logits_NV, value)
        return logits_NV

    def transformed(self, raw_NV: Tensor) -> list[Tensor]:
        """The raw logits, what each transform makes of them, and so at last the logits."""
        stages = [raw_NV]
        for transform, _, value in self._transforms:
            stages.append(transform(stages[-1], value))
        return stages

    def raw_gradient(self, gradient_NV: Tensor, stages: list[Tensor]) -> Tensor:
        """The gradient of the raw logits, in place of that of the logits; `stages`: what `transformed` gave."""
        for (_, backward, value), output_NV in zip(self._transforms[::-1], stages[:0:-1], strict=True):
            backward(gradient_NV, output_NV, value)
        return gradient_NV

    @property
    def linear(self) -> nn.Linear | None:
        """The module, where it is a product with a matrix and nothing else: no kind of its own, no hook."""
        plain = type(self.output) is nn.Linear and not self.output._forward_hooks
        return self.output if plain else None

    @property
    def vocabulary(self) -> int:
        return int(self.output.weight.shape[0])

    def parameters(self) -> list[nn.Parameter]:
        """The head's parameters that are trained. A tied head's matrix is the embedding's."""
        return [parameter for parameter in self.output.parameters() if parameter.requires_grad]


@torch.no_grad()
def check_head(model: Any) -> None:
    """Raise BoomspecError unless head and trunk, computed apart, give the model's own logits."""
    vocabulary = model.get_input_embeddings().weight.shape[0]
    tokens_BT = torch.arange(8, device=model.device).remainder(vocabulary).unsqueeze(0)
    expected_BTV = model(input_ids=tokens_BT, use_cache=False).logits.float()
    actual_BTV = LMHead(model)(trunk(model, tokens_BT)).float()
    if not same_result(actual_BTV, expected_BTV, model.dtype):
        raise BoomspecError(
            f"model type '{model.config.model_type}': its logits are not its head applied to its last hidden state",
            hint="the family changes its logits in a way not listed in LOGITS of boomspec/models/families.py",
        )


@torch.no_grad()
def check_apart(model: Any) -> None:
    """Raise BoomspecError unless the documents of a packed row give what each gives alone."""
    vocabulary = model.get_input_embeddings().weight.shape[0]
    total = sum(_DOCUMENTS)
    # Of no two documents the tokens are the same, so that what one sees of another shows.
    ids = (np.arange(total) * 5 + 1) % vocabulary
    begins = np.zeros(total, np.bool_)
    begins[np.cumsum(_DOCUMENTS)[:-1]] = True
    packed_BT = torch.from_numpy(marked(ids[None].astype(np.int64), begins[None])).to(model.device)
    kind = model.config.model_type
    try:
        actual_TD = trunk(model, packed_BT)[0].float()
        alone = torch.from_numpy(ids.astype(np.int64)).to(model.device).split(list(_DOCUMENTS))  # type: ignore[no-untyped-call]
        expected_TD = torch.cat([trunk(model, document_T[None])[0] for document_T in alone]).float()
    except BoomspecError:
        raise
    except Exception as error:  # a model that takes no such mask or positions says so in its own way
        message = f"model type '{kind}': the documents of a row cannot be kept apart: {type(error).__name__}: {error}"
        raise BoomspecError(message, hint=_APART) from error
    # Kernels for other shapes differ by rounding; a model that ignores mask or positions, by the size of its states.
    size = float(expected_TD.nan_to_num(0.0, 0.0, 0.0).abs().max())
    tolerance = torch.finfo(model.dtype).eps ** 0.5 * size
    if not torch.allclose(actual_TD, expected_TD, rtol=0.0, atol=tolerance, equal_nan=True):
        message = f"model type '{kind}': a document of a packed row is not what it is alone"
        raise BoomspecError(f"{message}: its layers carry something from one to the next", hint=_APART)


def same_result(actual: Tensor, expected: Tensor, dtype: torch.dtype) -> bool:
    """Whether two tensors come from the same operations in the same order, in a model of this dtype.

    Only kernels chosen by shape may differ, by a few last bits of the largest value. What is not finite does not count
    there: who measures with such a model says so.
    """
    largest = float(expected.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).abs().max())
    tolerance = 16 * torch.finfo(dtype).eps * largest
    return actual.shape == expected.shape and torch.allclose(actual, expected, rtol=0.0, atol=tolerance, equal_nan=True)
