"""Write checkpoints from byte ranges of others: every source range is read once for all the files that need it.

Tensors' bytes begin at a multiple of the block size in a file, and tensors of whole blocks come first. Between two
places that are equally far from a block's begin the kernel copies (copy_file_range): on a file system with reflinks
(btrfs, XFS) all files of one call then share the blocks of the tensors they have in common, and share them with the
source if its tensors begin at blocks (those that this module wrote do, those of `save_pretrained` hardly ever).
Elsewhere (ext4) everything is a plain copy.
"""

from __future__ import annotations

import errno
import json
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from boomspec.checkpoint import FLOAT_BYTES, INDEX, SINGLE, TensorEntry, encode_header
from boomspec.errors import BoomspecError
from runners.conversion import convert

_BLOCK = 4096  # of the file systems in use
_BUFFER = 2**18  # measured on ext4: 1 MB and more is slower
_THREADS = 2  # for several files; writes into one exclude each other, so that more than one thread only costs there
_RANGE = 64 * 2**20  # copied to one file after the other: what was read is still in the page cache


@dataclass(frozen=True)
class Piece:
    """One tensor of a result: what it is, and where its bytes are. Without a source it is zeros."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    source: TensorEntry | None

    @property
    def bytes(self) -> int:
        return TensorEntry(self.name, self.dtype, self.shape).bytes


@dataclass(frozen=True)
class _Place:
    file: Path
    start: int


_Jobs = dict[tuple[TensorEntry, str], list[_Place]]  # source, its name left out, and dtype -> where it goes


def write_checkpoints(targets: Mapping[Path, Sequence[Piece]], *, shard_bytes: int) -> None:
    """Write the tensors of each target folder as one safetensors file, or as shards with their index."""
    jobs: _Jobs = defaultdict(list)
    for folder, pieces in targets.items():
        shards = _shards(pieces, shard_bytes)
        if len(shards) == 1:
            _lay_out(shards[0], folder / SINGLE, jobs)
            continue
        names = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
        for name, shard in zip(names, shards, strict=True):
            _lay_out(shard, folder / name, jobs)
        weight_map = {piece.name: name for name, shard in zip(names, shards, strict=True) for piece in shard}
        total = sum(piece.bytes for piece in pieces)
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    in_order = sorted(jobs.items(), key=lambda job: (str(job[0][0].file), job[0][0].start))
    files = {place.file for places in jobs.values() for place in places}
    with ThreadPoolExecutor(min(_THREADS, len(files))) as pool:
        running = [pool.submit(_write, source, dtype, places) for (source, dtype), places in in_order]
        try:
            for job in running:
                job.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _shards(pieces: Sequence[Piece], shard_bytes: int) -> list[list[Piece]]:
    shards: list[list[Piece]] = [[]]
    room = shard_bytes
    for piece in pieces:
        if shards[-1] and piece.bytes > room:
            shards.append([])
            room = shard_bytes
        shards[-1].append(piece)
        room -= piece.bytes
    return shards


def _lay_out(pieces: Sequence[Piece], path: Path, jobs: _Jobs) -> None:
    """Write a file's header, give it its length, and add to `jobs` what is to be written into it."""
    header, end = {}, 0
    places: list[tuple[Piece, int]] = []
    for piece in sorted(pieces, key=lambda piece: piece.bytes % _BLOCK != 0):
        header[piece.name] = (piece.dtype, piece.shape, end, end + piece.bytes)
        places.append((piece, end))
        end += piece.bytes
    encoded = encode_header(header, alignment=_BLOCK)
    with path.open("wb") as output:
        output.write(encoded)
        output.truncate(len(encoded) + end)
    for piece, start in places:
        if piece.source is not None:
            jobs[replace(piece.source, name=""), piece.dtype].append(_Place(path, len(encoded) + start))


def _write(source: TensorEntry, dtype: str, places: Sequence[_Place]) -> None:
    if source.file is None:
        raise TypeError("a tensor to copy has no file")
    handles = [os.open(source.file, os.O_RDONLY), *(os.open(place.file, os.O_RDWR) for place in places)]
    try:
        read, first, *others = handles
        start, *starts = (place.start for place in places)
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
    for at in range(source.start, source.end, _BUFFER):
        data = os.pread(read, min(_BUFFER, source.end - at), at)
        if len(data) < min(_BUFFER, source.end - at):
            raise _became_shorter(source)
        try:
            converted = convert(data, source.dtype, dtype)
        except BoomspecError as error:
            raise BoomspecError(f"{source.file}: bytes {source.start} to {source.end}: {error.message}") from error
        _put(write, converted, start + (at - source.start) // FLOAT_BYTES[source.dtype] * FLOAT_BYTES[dtype])


def _copy(source: int, target: int, start: int, place: int, count: int) -> None:
    """Copy `count` bytes from `start` of one file to `place` of another."""
    # Measured on ext4: across page boundaries the kernel's own copy is slower than a buffer.
    in_kernel = (start - place) % _BLOCK == 0
    buffer = memoryview(bytearray(min(_BUFFER, count)))
    while count:
        if in_kernel:
            try:
                copied = os.copy_file_range(source, target, count, start, place)
            except OSError as error:
                if error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
                    raise
                in_kernel = False
                continue
        else:
            copied = os.preadv(source, [buffer[:count]], start)
            _put(target, buffer[:copied], place)
        if copied == 0:
            raise BoomspecError("a checkpoint became shorter while it was read")
        start, place, count = start + copied, place + copied, count - copied


def _put(target: int, data: bytes | memoryview, place: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(target, view, place)
        view, place = view[written:], place + written


def _became_shorter(source: TensorEntry) -> BoomspecError:
    return BoomspecError(f"{source.file}: became shorter while it was read")
