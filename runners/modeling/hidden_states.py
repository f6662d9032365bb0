"""Catch hidden states of a causal language model with forward hooks, and pair those of student and teacher.

A `Point` names one hidden state: EMBEDDING (what the first decoder layer reads), an integer i (the raw
output of decoder layer i) or FINAL_NORM (the trunk's result, which the head reads). No family is named
here: the layer stack is the list of modules that has as many entries as the config says.

Shapes: B sequences, T positions, D hidden size.
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

from torch import Tensor, nn

from boomspec.core.errors import BoomspecError

EMBEDDING: Literal["embedding"] = "embedding"
FINAL_NORM: Literal["final norm"] = "final norm"
Point = int | Literal["embedding", "final norm"]
Pair = tuple[Point, Point]  # (student, teacher)


def label(point: Point) -> str:
    """The name of a point for people: "embedding", "layer 3", "final norm"."""
    return f"layer {point}" if isinstance(point, int) else point


def hidden_pairs(
    kept: Sequence[int], teacher_layers: int, *, embedding: bool = True, final_norm: bool = True
) -> list[Pair]:
    """The states that are aligned, as (student point, teacher point), from the embedding upwards.

    Student layer i is compared with the teacher at the END of block i: layer kept[i + 1] - 1, and the
    teacher's last layer for the last block. `embedding` adds the pair of embedding outputs; `final_norm`
    takes the last pair after the final norm instead of the raw layer outputs (arXiv 2510.05064).
    """
    ends = [*(start - 1 for start in kept[1:]), teacher_layers - 1]
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
    """The outermost lists of `count` modules, by name."""
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
        raise BoomspecError(
            f"model type '{model.config.model_type}': expected one list of {count} layers,"
            f" found {', '.join(found) or 'none'}"
        )
    return next(iter(found.values()))


def embedding_parameters(model: Any) -> list[nn.Parameter]:
    """Parameters of the embedding tables (tokens and, where they are learned, positions)."""
    inside = set(decoder_layers(model).modules())
    tables = [m for m in base_model(model).modules() if isinstance(m, nn.Embedding) and m not in inside]
    return list(dict.fromkeys(parameter for table in tables for parameter in table.parameters()))


def trunk(model: Any, tokens_BT: Tensor) -> Tensor:
    """hidden_BTD after the final norm, under a causal mask over each whole row."""
    hidden_BTD: Tensor = base_model(model)(input_ids=tokens_BT, use_cache=False)[0]
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
