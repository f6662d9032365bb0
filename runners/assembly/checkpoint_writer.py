"""Write safetensors checkpoints from byte ranges of others; each source range is read once for all files that need it.

Between two places that are equally far from a block's begin the kernel copies (copy_file_range, where there is one),
so where the tensors of a file begin is chosen (those of whole blocks come first):

    file systems with reflinks (btrfs, XFS)   at blocks: all files of one call share the blocks of the tensors that
                                              they have in common, and share them with a source whose tensors begin
                                              at blocks (those of `save_pretrained` hardly ever do)
    elsewhere (ext4)                          as far from a block's begin as in the source that most bytes are from
"""

import errno
import fcntl
import json
import os
import tempfile
import threading
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from boomspec.core.errors import BoomspecError
from boomspec.core.work_sizes import COPY_BUFFER
from boomspec.models.checkpoint import FLOAT_BYTES, TensorEntry, encode_header
from boomspec.models.fit import Made
from boomspec.models.folder import INDEX, SINGLE

SHARD_BYTES = 5 * 10**9
_NATIVE = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}
_BLOCK = 4096  # of the file systems in use
# What copy_file_range says between file systems, where one of them or the kernel does not know it, or a sandbox forbids
# it. Whether that was the reason shows the ordinary way of copying.
_NOT_IN_KERNEL = {
    *(errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EPERM, errno.EACCES),
    *(errno.EBADF, errno.ETXTBSY, errno.EOVERFLOW),
}
_FICLONE = 0x40049409  # linux/fs.h: share all blocks of another file
_THREADS = 2  # for several files; writes into one exclude each other, so that more than one thread only costs there
_BUFFER = 2**20  # of each thread. With 512 KiB or 4 MiB it takes longer
_RANGE = 64 * 2**20  # copied to one file after the other: what was read is still in the page cache


T = TypeVar("T")
_of_thread = threading.local()
_Place = tuple[Path, int]  # file and first byte
_Jobs = dict[tuple[TensorEntry, str], list[_Place]]  # source, its name left out, and dtype -> where it goes


def write_checkpoints(targets: Mapping[Path, Sequence[Made]]) -> None:
    """Write the tensors of each target folder as one safetensors file, or as shards with their index."""
    files: dict[Path, Sequence[Made]] = {}
    for folder, tensors in targets.items():
        shards = in_shards(tensors, [tensor.bytes for tensor, _ in tensors], SHARD_BYTES)
        files |= {folder / name: shard for name, shard in shards.items()}
        if len(shards) > 1:
            weight_map = {tensor.name: name for name, shard in shards.items() for tensor, _ in shard}
            write_index(folder, weight_map, sum(tensor.bytes for tensor, _ in tensors))
    write_files(files)


def write_index(folder: Path, weight_map: Mapping[str, str], total: int) -> None:
    """Say in which file each tensor of a checkpoint of `total` bytes is."""
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def write_files(targets: Mapping[Path, Sequence[Made]]) -> None:
    """Write the tensors of each target file."""
    jobs: _Jobs = defaultdict(list)
    for path, tensors in targets.items():
        _lay_out(tensors, path, jobs)
    in_order = sorted(jobs.items(), key=lambda job: (str(job[0][0].file), job[0][0].start))
    files = {file for places in jobs.values() for file, _ in places}
    with ThreadPoolExecutor(min(_THREADS, len(files))) as pool:
        running = [pool.submit(_write, source, dtype, places) for (source, dtype), places in in_order]
        try:
            for job in running:
                job.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def in_shards(tensors: Iterable[T], sizes: Iterable[int], shard_bytes: int) -> dict[str, list[T]]:
    """Tensors in their order, by the names of the files that take them; one that is too large has a file of its own."""
    shards: list[list[T]] = [[]]
    left = shard_bytes
    for tensor, size in zip(tensors, sizes, strict=True):
        if shards[-1] and size > left:
            shards.append([])
            left = shard_bytes
        shards[-1].append(tensor)
        left -= size
    count = len(shards)
    names = [SINGLE] if count == 1 else [f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]
    return dict(zip(names, shards, strict=True))


def _lay_out(tensors: Sequence[Made], path: Path, jobs: _Jobs) -> None:
    """Write a file's header, give it its length, and add to `jobs` what is to be written into it."""
    header, places, end = {}, [], 0
    bytes_at: dict[int, int] = defaultdict(int)  # how far from a block's begin so many bytes lie in their source
    for tensor, source in sorted(tensors, key=lambda made: made[0].bytes % _BLOCK != 0):
        header[tensor.name] = (tensor.dtype, tensor.shape, end, end + tensor.bytes)
        if source is not None:
            places.append((replace(source, name=""), tensor.dtype, end))
            if source.dtype == tensor.dtype and tensor.bytes % _BLOCK == 0:
                bytes_at[source.start % _BLOCK] += tensor.bytes
        end += tensor.bytes
    usual = max(bytes_at, key=lambda remainder: bytes_at[remainder], default=0)
    remainder = 0 if shares_blocks(path.parent) or usual % 8 else usual  # tensors begin aligned
    encoded = encode_header(header, alignment=_BLOCK, remainder=remainder)
    with path.open("wb") as output:
        output.write(encoded)
        output.truncate(len(encoded) + end)
    for of, dtype, start in places:
        jobs[of, dtype].append((path, len(encoded) + start))


@cache
def shares_blocks(folder: Path) -> bool:
    """Whether the file system of a folder can share blocks between files: asked by trying it."""
    with tempfile.TemporaryFile(dir=folder) as one, tempfile.TemporaryFile(dir=folder) as other:
        one.write(bytes(_BLOCK))
        one.flush()
        try:
            fcntl.ioctl(other.fileno(), _FICLONE, one.fileno())
        except OSError:
            return False
        return True


def _write(source: TensorEntry, dtype: str, places: Sequence[_Place]) -> None:
    assert source.file is not None
    handles = [os.open(source.file, os.O_RDONLY), *(os.open(file, os.O_RDWR) for file, _ in places)]
    try:
        read, first, *others = handles
        start, *starts = (start for _, start in places)
        if source.dtype != dtype:
            _convert(read, first, source, dtype, start)
        count = TensorEntry(source.name, dtype, source.shape).bytes
        for done in range(0, count, _RANGE):
            step = min(_RANGE, count - done)
            if source.dtype == dtype:
                _copy(read, first, source.start + done, start + done, step)
            for other, place in zip(others, starts, strict=True):
                _copy(first, other, start + done, place + done, step)
    finally:
        for handle in handles:
            os.close(handle)


def _convert(read: int, write: int, source: TensorEntry, dtype: str, start: int) -> None:
    for at in range(source.start, source.end, COPY_BUFFER):
        data = os.pread(read, min(COPY_BUFFER, source.end - at), at)
        if len(data) < min(COPY_BUFFER, source.end - at):
            raise BoomspecError(f"{source.file}: became shorter while it was read")
        try:
            converted = convert(data, source.dtype, dtype)
        except BoomspecError as error:
            raise BoomspecError(f"{source.file}: bytes {source.start} to {source.end}: {error.message}") from error
        _put(write, converted, start + (at - source.start) // FLOAT_BYTES[source.dtype] * FLOAT_BYTES[dtype])


def _copy(source: int, target: int, start: int, place: int, count: int) -> None:
    # Measured on ext4: across page boundaries the kernel's own copy takes half as long again as a buffer that is used
    # again and written at blocks, which is as fast as the kernel between places that are equally far from a block.
    if (start - place) % _BLOCK == 0:
        copied = _copy_in_kernel(source, target, start, place, count)
        start, place, count = start + copied, place + copied, count - copied
    buffer = _own_buffer()
    while count:
        step = min(len(buffer) - place % _BLOCK, count)
        if not (read := _read_into(buffer[:step], source, start)):
            raise BoomspecError("a checkpoint became shorter while it was read")
        _put(target, buffer[:read], place)
        start, place, count = start + read, place + read, count - read


def _own_buffer() -> memoryview:
    """This thread's buffer. A new one for each piece would be filled with zeros first, page by page."""
    if (buffer := getattr(_of_thread, "buffer", None)) is None:
        buffer = _of_thread.buffer = memoryview(bytearray(_BUFFER))
    return cast(memoryview, buffer)


def _read_into(buffer: memoryview, source: int, start: int) -> int:
    if hasattr(os, "preadv"):  # macOS has it since 11
        return os.preadv(source, [buffer], start)
    data = os.pread(source, len(buffer), start)
    buffer[: len(data)] = data
    return len(data)


def _copy_in_kernel(source: int, target: int, start: int, place: int, count: int) -> int:
    """Let the kernel copy as much of `count` bytes as it can. Returns how many: fewer where it does not do the rest."""
    copy_file_range = getattr(os, "copy_file_range", None)  # macOS has none
    copied = 0
    while copy_file_range is not None and copied < count:
        try:
            step = copy_file_range(source, target, count - copied, start + copied, place + copied)
        except OSError as error:
            if error.errno not in _NOT_IN_KERNEL:
                raise
            break
        if step == 0:  # the end of the source; and some file systems copy nothing without an error
            break
        copied += step
    return copied


def _put(target: int, data: bytes | memoryview, place: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(target, view, place)
        view, place = view[written:], place + written


def convert(data: bytes, source: str, target: str) -> bytes:
    """The values of `data`, stored as `source`, stored as `target`, floating-point types of safetensors.

    Rounds to nearest, ties to even; float64 becomes 16 bits by way of float32, as in torch. Infinities and NaN stay
    what they are. Raises BoomspecError for a finite value too large for the new type: it would become an infinity.
    """
    values = _bfloat16_values(data) if source == "BF16" else np.frombuffer(data, _NATIVE[source])
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        narrow = values if target == "F64" else values.astype("<f4")
        if target == "BF16":
            bits = narrow.view("<u4")
            rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
            # The addition would carry a NaN's bits over into the sign.
            result = np.where(np.isnan(narrow), 0x7FC0, rounded).astype("<u2").tobytes()
            converted = _bfloat16_values(result)
        else:
            converted = narrow.astype(_NATIVE[target])
            result = converted.tobytes()
    if bool(np.any(np.isinf(converted) & np.isfinite(values))):
        raise BoomspecError(f"a weight stored as {source} is too large for {target}")
    return result


def _bfloat16_values(data: bytes) -> NDArray[Any]:
    return (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4")
