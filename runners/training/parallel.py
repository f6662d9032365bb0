"""Wrap a model for one worker, DDP or FSDP2.

    one worker   the model itself
    ddp          a copy on each worker
    fsdp         each parameter is sharded by rows over the workers (FSDP2) and whole only while its layer computes

Gradients are SUMS over the group: each micro batch's loss is already divided by the label count of the whole batch.
Torch's defaults are means.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from boomspec.core.errors import BoomspecError
from boomspec.core.execution import Parallel
from runners.modeling.hidden_states import base_model, decoder_layers
from runners.runtime.device import device
from runners.training import compiling
from runners.training.bf16_products import fast_linear_layers
from runners.training.process_group import ALONE, ProcessGroup


def is_sharded(group: ProcessGroup, parallel: str | None) -> bool:
    """Whether a model is sharded over the workers; then they load it into the memory of the host first."""
    return group.size > 1 and parallel in ("fsdp", "sharded")


class ParallelModel:
    """The parameters, forward and gradients of one model. In a group its methods are collectives.

    `losses`: parameters that losses train beside the model. Each worker has a copy. Raises BoomspecError for a model
    that is cut: a norm of gradients of which some are cut, and some are not, is none.
    """

    def __init__(
        self,
        model: nn.Module,
        group: ProcessGroup = ALONE,
        *,
        parallel: Parallel = "ddp",
        losses: nn.Module | None = None,
    ) -> None:
        self.model, self.group, self.losses = model, group, losses
        self.sharded = is_sharded(group, parallel)
        if self.sharded and losses is not None:
            raise BoomspecError("losses with parameters of their own are not trained with a student that is cut (fsdp)")
        self._root: Any = None if group.size == 1 else _sharded(model) if self.sharded else _replicated(model, losses)
        self._in_buckets = False  # whether gradients are views of DDP's buckets already

    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters of the model and, as "losses.<name>", those beside it."""
        beside = {} if self.losses is None else dict(self.losses.named_parameters(prefix="losses"))
        return {**dict(self.model.named_parameters()), **beside}

    def forward(self, loss: Callable[..., Any], *arguments: Any) -> Any:
        """`loss(*arguments)`, which calls the model, such that its backward adds up the gradients."""
        return loss(*arguments) if self._root is None else self._root(loss, *arguments)

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """`function(*arguments)`, which calls the model or parts of it, without gradients."""
        with torch.no_grad():
            if not self.sharded:
                return function(*arguments)
            result = self._root(function, *arguments)
            self._root.reshard()  # else the next forward would not see what is changed now
            return result

    @property
    def replicated(self) -> bool:
        """Each worker has a copy. Its gradients are views of DDP's buckets, and zeroed: dropped, they are made anew."""
        return self._root is not None and not self.sharded

    @contextmanager
    def accumulating(self, *, last: bool) -> Iterator[None]:
        """Around forward and backward of one micro batch. Copies exchange their gradients in the last."""
        # Sharded gradients, kept whole until the last, would need the memory that sharding saves.
        if not self.replicated:
            yield
        elif last or not self._in_buckets:
            # Only an exchange makes gradients views, so the first micro batch has one that adds up nothing. Else a
            # second set would lie beside the buckets in the first step, when a resumed training has its moments.
            self._root.module.adds_up = last
            yield
            self._in_buckets = True
        else:
            with self._root.no_sync():
                yield

    def full(self, tensor: Tensor) -> Tensor:
        """The whole tensor of a shard."""
        return tensor.full_tensor() if _is_shard(tensor) else tensor

    def local(self, tensor: Tensor) -> Tensor:
        """What this worker has of a tensor."""
        return tensor.to_local() if _is_shard(tensor) else tensor

    def rows(self, tensor: Tensor) -> tuple[int, int] | None:
        """Which rows `local` has: the first and the one after the last; None where it is whole."""
        if not _is_shard(tensor):
            return None
        block = -(-len(tensor) // self.group.size)  # the rule of DTensor's Shard(0)
        start, end = (min(rank * block, len(tensor)) for rank in (self.group.rank, self.group.rank + 1))
        assert end - start == len(self.local(tensor)), f"rows {start} to {end}, but {len(self.local(tensor))} are here"
        return start, end

    def gathered(self, fresh: Callable[[], nn.Module]) -> nn.Module | None:
        """The whole model on rank 0, None elsewhere. `fresh` makes another one of its shape on rank 0."""
        if not self.sharded:
            return self.model if self.group.is_leader else None
        target = fresh() if self.group.is_leader else None
        places = {} if target is None else dict(target.named_parameters())
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                value = self.full(parameter)  # a collective
                if target is not None:
                    places[name].copy_(value)
        return target


def shard_frozen(model: Any) -> None:
    """Shard the decoder layers of a model that is not trained; its embedding and head stay whole."""
    layers = decoder_layers(model)
    inside = {parameter for layer in layers for parameter in layer.parameters()}
    shard = _shard_function()
    for layer in layers:
        shard(layer)
    # The root lets a layer's parameters be fetched while the one before it computes.
    shard(base_model(model), ignored_params=set(model.parameters()) - inside)
    for tensor in [*model.parameters(), *model.buffers()]:
        if not _is_shard(tensor) and tensor.device.type != device().type:
            tensor.data = tensor.data.to(device())


@contextmanager
def with_checkpointing_or_compile(model: Any, *, checkpointing: bool = False, compiled: bool = False) -> Iterator[None]:
    """Within the context each decoder layer computes its activations again in the backward, and/or is compiled.

    Where nothing is compiled, a CPU without instructions for bf16 makes its products in another way.
    """
    # Of a layer its `forward` is replaced: its hooks stay outside, so hidden states can be captured.
    layers = list(decoder_layers(model)) if checkpointing or compiled else []
    for layer in layers:
        forward = compiling.compiled(layer.forward) if compiled else layer.forward
        if checkpointing:
            checkpoint: Any = torch.utils.checkpoint.checkpoint
            # There are no random numbers whose state would have to be kept.
            forward = partial(checkpoint, forward, use_reentrant=False, preserve_rng_state=False)
        layer.forward = forward
    try:
        with compiling.compiling() if compiled else fast_linear_layers([model]):
            yield
    finally:
        for layer in layers:
            del layer.forward  # the class has the plain one


class _Root(nn.Module):
    """A module around the model, for training does not call the model but parts of it."""

    adds_up = True  # whether DDP's next exchange adds up the gradients of the group

    def __init__(self, model: nn.Module, losses: nn.Module | None = None) -> None:
        super().__init__()
        self.model, self.losses = model, losses

    def forward(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)


def _replicated(model: nn.Module, losses: nn.Module | None) -> nn.Module:
    from torch.nn.parallel import DistributedDataParallel

    # A loss need not reach every parameter: the head, where only states are compared.
    root = DistributedDataParallel(_Root(model, losses), find_unused_parameters=True, gradient_as_bucket_view=True)

    def add_up(module: _Root, bucket: Any) -> Any:
        gradients: Tensor = bucket.buffer()
        # One number in place of nothing: a future of the backend's own is good on every device.
        work: Any = torch.distributed.all_reduce(gradients if module.adds_up else gradients.new_zeros(1), async_op=True)

        def added_up(done: Any) -> Tensor:
            done.value()  # raises the error of the exchange
            return gradients

        return work.get_future().then(added_up)

    # A lambda, because torch refuses a function whose annotations are not its own.
    root.register_comm_hook(root.module, lambda module, bucket: add_up(module, bucket))
    return root


def _sharded(model: nn.Module) -> nn.Module:
    from torch.distributed.fsdp import FSDPModule

    shard = _shard_function()
    for layer in decoder_layers(model):
        shard(layer)
    root = _Root(model)
    shard(root)
    for module in root.modules():
        if isinstance(module, FSDPModule):  # a torch without these methods must not take means in silence
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo knows no other
    return root


def _shard_function() -> Callable[..., Any]:
    # Not at the top: a group of one has no use for them, and they take time to import.
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device().type, (torch.distributed.get_world_size(),))
    return partial(fully_shard, mesh=mesh)


def _is_shard(tensor: Any) -> TypeGuard[Any]:
    return hasattr(tensor, "full_tensor")
