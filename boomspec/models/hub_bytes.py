"""Whether two tensors of a model on the hub are one: a few places of their bytes are compared, by requests for ranges.

Matrices that were trained apart differ nearly everywhere, so one place mostly tells. Those that are equal wherever they
are looked at count as one; whoever has fetched the files looks again (`runners.modeling.models.model_folder`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from boomspec.models.checkpoint import TensorEntry

_BYTES = 1 << 14  # of each place
_PLACES = (0.0, 1.0, 0.5, 0.25, 0.75)  # from the first rows to the last ones, which are of added tokens


@dataclass(frozen=True)
class HubEntry(TensorEntry):
    """A tensor of which the header is known, and where its bytes are: [start, end) of `hub_file` behind its header."""

    hub_file: str = ""


def same_on_hub(model: str, commit: str) -> Callable[[TensorEntry, TensorEntry], bool | None]:
    """Compares two tensors of a commit: False where they differ, True where no place shows it, None without answer."""
    read = _reader(model, commit)

    @cache
    def header(file: str) -> int:
        return 8 + int.from_bytes(read(file, 0, 8), "little")

    def part(entry: HubEntry, at: int, length: int) -> bytes:
        return read(entry.hub_file, header(entry.hub_file) + entry.start + at, length)

    def same(one: TensorEntry, other: TensorEntry) -> bool | None:
        if (one.dtype, one.shape) != (other.dtype, other.shape):
            return False
        if not isinstance(one, HubEntry) or not isinstance(other, HubEntry):
            return None
        length = min(_BYTES, one.bytes)
        try:
            places = [round((one.bytes - length) * place) for place in _PLACES]
            return all(part(one, at, length) == part(other, at, length) for at in dict.fromkeys(places))
        except Exception:  # a failed connection raises what the HTTP library of the day has for it
            return None

    return same


def _reader(model: str, commit: str) -> Callable[[str, int, int], bytes]:
    """Reads bytes of a model's file: name, first byte, how many."""
    from huggingface_hub import get_session, hf_hub_url  # slow to import, and few models need it
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # documented, not in __all__

    def read(file: str, start: int, length: int) -> bytes:
        url, asked = hf_hub_url(model, file, revision=commit), {"range": f"bytes={start}-{start + length - 1}"}
        answer = get_session().get(url, headers={**build_hf_headers(), **asked}, timeout=10)
        answer.raise_for_status()
        found: bytes = answer.content
        if len(found) != length:
            raise ValueError(f"{len(found)} bytes of {length}")
        return found

    return read
