"""Write a whole family into one folder whose sizes share the files of their weights (`boomspec.models.family_file`).

Each tensor of teacher and student that any size has is stored once, in the dtype that the sizes have it in, under the
name that it has in the model it is from. A size is its config and an index of what it takes, so that a family takes
about as much room as teacher and student together, however many sizes it has.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from boomspec.core.errors import BoomspecError
from boomspec.core.json_text import json_text
from boomspec.core.layers import TEACHER, layers_text
from boomspec.core.sizes import Member
from boomspec.models.checkpoint import TensorEntry
from boomspec.models.code import named_classes
from boomspec.models.facts import read_as, read_facts
from boomspec.models.family_file import FAMILY_FILE, KEY_MAPPING, OWNERS, SHARDS, FamilyFile, SizeFiles, named_by, rule
from boomspec.models.fit import Made
from runners.assembly.assemble import Sources, planned, write_config
from runners.assembly.checkpoint_writer import write_files, write_index
from runners.modeling.foreign_code import copy_travelling

SHARD_BYTES = 2 * 10**9  # of a file of several layers: someone who takes one size from a hub fetches whole files
_GENERATION = "generation_config.json"

_Place = tuple[Path | None, int, str, str, int]  # where a stored tensor is from, in which dtype, and which copy it is


@dataclass
class _Stored:
    """The tensors of all sizes, each once, by where they are from."""

    names: dict[tuple[Path | None, int], str]  # what the tensors of teacher and student are called
    tensors: dict[_Place, Made] = field(default_factory=dict)

    def take(self, made: Sequence[Made], size: str) -> list[tuple[str, str]]:
        """Store the tensors of a size. Returns their stored names, and their names in the size."""
        taken: Counter[tuple[Path | None, int, str, str]] = Counter()
        pairs = []
        for tensor, source in made:
            key = (
                (None, 0, tensor.dtype, tensor.name)
                if source is None
                else (source.file, source.start, tensor.dtype, "")
            )
            copy = taken[key]  # a rule gives a stored tensor one name: for a second one it is stored again
            taken[key] += 1
            place = (*key, copy)
            if place not in self.tensors:
                name = f"zeros.{tensor.name}" if source is None else self.names.get((source.file, source.start))
                name = name or f"{size}.{tensor.name}"  # weights that only this size has
                stored = replace(tensor, name=f"copy-{copy}.{name}" if copy else name)
                self.tensors[place] = (stored, source)
            pairs.append((self.tensors[place][0].name, tensor.name))
        return pairs


def write_family(
    sources: Sources,
    sizes: Mapping[str, Member],
    target: Path,
    description: FamilyFile,
    *,
    rest: bool = False,
    fitted: Mapping[str, Path | None],
) -> None:
    """Write the sizes, by the names of their folders, into the folder `target`, with `description` as family.json.

    Raises BoomspecError, before anything is written, where the sources do not fit together, or bring code of their own.
    """
    if named_classes(sources[TEACHER], "model"):
        message = "a model with code of its own needs that code beside its weights, so its sizes cannot share files"
        raise BoomspecError(message, hint="write the sizes each into a folder of its own: --all")
    plans = {target / name: (member.plan, member.tied) for name, member in sizes.items()}
    made, configs = planned(sources, plans, rest=rest, fitted={target / name: file for name, file in fitted.items()})
    stored = _Stored(dict(_names(sources)))
    pairs = {folder: stored.take(tensors, folder.name) for folder, tensors in made.items()}
    shards = _in_shards([tensor for tensor, _ in stored.tensors.values()])
    by_name = {tensor.name: (tensor, source) for tensor, source in stored.tensors.values()}
    target.mkdir(parents=True, exist_ok=True)
    (target / SHARDS).mkdir()
    write_files({target / SHARDS / shard: [by_name[name] for name in names] for shard, names in shards.items()})
    copy_travelling(sources[TEACHER], target, ())
    place = {name: shard for shard, names in shards.items() for name in names}
    files = []
    for folder, tensors in pairs.items():
        folder.mkdir()
        taken = {name: f"../{SHARDS}/{place[name]}" for name, _ in tensors}
        write_index(folder, taken, sum(by_name[name][0].bytes for name, _ in tensors))
        (folder / KEY_MAPPING).write_text(
            json.dumps(_rules(tensors), indent=2, allow_nan=False) + "\n", encoding="utf-8"
        )
        if (generation := target / _GENERATION).is_file():
            (folder / _GENERATION).write_bytes(generation.read_bytes())
        write_config(folder, configs[folder])
        used = tuple(sorted({path.removeprefix("../") for path in taken.values()}))
        files.append(SizeFiles(folder=folder.name, plan=layers_text(sizes[folder.name].plan), shards=used))
    described = description.model_copy(update={"sizes": tuple(files)})
    text = json_text(described.model_dump(mode="json", exclude_none=True), indent=1, ensure_ascii=False)
    (target / FAMILY_FILE).write_text(text + "\n", encoding="utf-8")


def _names(sources: Sources) -> Iterable[tuple[tuple[Path | None, int], str]]:
    """What each tensor of teacher and student is called in the shards, by where it lies."""
    base = read_facts(sources[TEACHER])
    for owner, folder in sources.items():
        facts = read_as(read_facts(folder), base.model_type, str(folder))
        for entry in (*facts.left_out, *facts.tensors(range(facts.count), tied=True), *facts.head):
            yield (entry.file, entry.start), f"{OWNERS[owner]}.{entry.name}"


def _in_shards(tensors: Sequence[TensorEntry]) -> dict[str, list[str]]:
    """Names of stored tensors by the file that takes them. Layers stay whole, and models apart, where that can be."""
    groups: dict[str, dict[tuple[int, ...], list[TensorEntry]]] = {}
    for tensor in tensors:
        owner = tensor.name.split(".")[0]
        owner = owner if owner in OWNERS.values() else "own"
        found = re.search(r"\.(\d+)\.", tensor.name)
        place: tuple[int, ...] = (1, int(found[1])) if found and owner != "own" else (0,)
        groups.setdefault(owner, {}).setdefault(place, []).append(tensor)
    files: dict[str, list[str]] = {}
    for owner in sorted(groups):
        parts: list[list[str]] = [[]]
        left = SHARD_BYTES
        for place in sorted(groups[owner]):
            whole = groups[owner][place]
            pieces = [whole] if sum(t.bytes for t in whole) <= SHARD_BYTES else [[tensor] for tensor in whole]
            for piece in pieces:
                size = sum(tensor.bytes for tensor in piece)
                if parts[-1] and size > left:
                    parts.append([])
                    left = SHARD_BYTES
                parts[-1] += [tensor.name for tensor in piece]
                left -= size
        names = [f"{owner}-{i:05}-of-{len(parts):05}.safetensors" for i in range(1, len(parts) + 1)]
        files |= dict(zip(names, parts, strict=True))
    return files


def _rules(pairs: Sequence[tuple[str, str]]) -> dict[str, str]:
    """What turns the stored names of a size into its own: a rule for each layer, and for each other tensor."""
    rules: dict[str, str] = {}
    for stored, name in pairs:
        layer = re.search(r"\.\d+\.(.+)$", stored)
        rest = layer[1] if layer is not None and name.endswith(f".{layer[1]}") else ""
        pattern, becomes = rule(stored, name, rest)
        if rules.setdefault(pattern, becomes) != becomes:  # layers whose tensors are from several places
            pattern, becomes = rule(stored, name, "")
            rules = {pattern: becomes, **rules}
    assert all(named_by(rules, stored) == name for stored, name in pairs)
    return rules
