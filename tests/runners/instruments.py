"""Independent instruments: torch's counter of operations, and the bytes of all tensors that are alive."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, UntypedStorage
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count


class _NoModules:
    """FlopCounterMode's tracker of modules cannot follow a gradient that is taken inside of a forward pass."""

    parents = frozenset({"Global"})

    def __enter__(self) -> _NoModules:
        return self

    def __exit__(self, *error: object) -> None:
        pass


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward(gradient: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(gradient, query, key, value)


def _added_product(_total: Any, one: Any, other: Any, *_: Any, **__: Any) -> int:
    return 2 * int(one[0]) * int(one[1]) * int(other[1])


@contextmanager
def counted_flops() -> Iterator[FlopCounterMode]:
    """torch's counter. It knows the attention kernels of GPUs only: its own formulas are given to the CPU's."""
    kernels = torch.ops.aten
    counter = FlopCounterMode(
        display=False,
        custom_mapping={
            kernels._scaled_dot_product_flash_attention_for_cpu: _attention,
            kernels._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
            kernels.addmm_: _added_product,  # in place, which it leaves out
        },
    )
    counter.mod_tracker = _NoModules()
    with counter:
        yield counter


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of every storage from the operation that makes it until nothing holds it: `peak`, the most."""

    def __init__(self, *existing: Tensor) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen: set[int] = set()
        gc.collect()
        for tensor in existing:
            self._add(tensor)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = NotImplemented
        if torch.is_inference_mode_enabled():  # then operations come here before they are taken apart
            with self:
                result = function.decompose(*args, **(kwargs or {}))
        if result is NotImplemented:
            result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._add(leaf)
        self.peak = max(self.peak, self.now)
        return result

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._seen:
            self._seen.add(key)
            self.now += size
            weakref.finalize(storage, self._remove, key, size)

    def _remove(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size


class LiveBytesOfShards(LiveBytes):
    """The same where models are cut over workers, of whose tensors only the part that is here counts.

    Slower: FSDP empties and fills storages without an operation, so all are looked at after each.
    """

    def __init__(self, *existing: Tensor) -> None:
        self._alive: dict[int, weakref.ref[UntypedStorage]] = {}
        super().__init__(*existing)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_dispatch__(function, types, args, kwargs)
        # A list: a storage may die while they are counted.
        storages = [reference() for reference in list(self._alive.values())]
        self.now = sum(storage.nbytes() for storage in storages if storage is not None)
        self.peak = max(self.peak, self.now)
        return result

    def _add(self, tensor: Tensor) -> None:
        storage = getattr(tensor, "_local_tensor", tensor).untyped_storage()
        if storage._cdata not in self._alive:
            self._alive[storage._cdata] = weakref.ref(storage)
            weakref.finalize(storage, self._alive.pop, storage._cdata)
