"""Conversion between the floating-point types of safetensors, bytes to bytes, without torch.

Rule: rounding to nearest, ties to even; float64 becomes 16 bits by way of float32, as in torch. Infinities and NaN
stay what they are. A finite value too large for the new type is an error: it would become an infinity.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from boomspec.core.errors import BoomspecError

_NATIVE = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}


def convert(data: bytes, source: str, target: str) -> bytes:
    """The values of `data`, stored as `source`, stored as `target`. Raises BoomspecError where one does not fit."""
    values = _bfloat16_values(data) if source == "BF16" else np.frombuffer(data, _NATIVE[source])
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        narrow = values if target == "F64" else values.astype("<f4")
        if target == "BF16":
            result, converted = _to_bfloat16(narrow)
        else:
            converted = narrow.astype(_NATIVE[target])
            result = converted.tobytes()
    if bool(np.any(np.isinf(converted) & np.isfinite(values))):
        raise BoomspecError(f"a weight stored as {source} is too large for {target}")
    return result


def _bfloat16_values(data: bytes) -> NDArray[Any]:
    return (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4")


def _to_bfloat16(values: NDArray[Any]) -> tuple[bytes, NDArray[Any]]:
    bits = values.view("<u4")
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    # The addition would carry a NaN's bits over into the sign.
    halves = np.where(np.isnan(values), 0x7FC0, rounded).astype("<u2")
    return halves.tobytes(), _bfloat16_values(halves.tobytes())
