"""The public models that specs/ names, from tests/fixtures/hub: real configs and headers, and no weights.

That of SmolLM2-135M was not downloaded: its config and shapes are those of the instruct model's GGUF file.
"""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

from boomspec.models.checkpoint import TensorEntry, encode_header
from boomspec.models.facts import ModelFacts, model_facts, read_config
from boomspec.models.folder import INDEX, SINGLE

FIXTURES = Path(__file__).parent.parent / "fixtures" / "hub"
Headers = dict[str, dict[str, tuple[str, tuple[int, ...]]]]  # file -> tensor -> (dtype, shape)


def headers(fixture: Path) -> Headers:
    files = json.loads(gzip.decompress((fixture / "headers.json.gz").read_bytes()))
    return {
        file: {key: (dtype, tuple(shape)) for key, (dtype, shape) in found.items()} for file, found in files.items()
    }


def public_facts(model: str) -> ModelFacts:
    """The facts of a recorded model, as the compiler knows them from the hub."""
    fixture = FIXTURES / model.replace("/", "--")
    entries = [TensorEntry(name, *entry) for found in headers(fixture).values() for name, entry in found.items()]
    return model_facts(read_config(fixture), {entry.name: entry for entry in entries}, model)


def public_models(target: Path) -> dict[str, Path]:
    """Lay out every recorded model as a folder below `target`. The weights are sparse files: they take no room."""
    folders = {}
    for fixture in sorted(FIXTURES.iterdir()):
        folder = target / fixture.name
        folder.mkdir(parents=True)
        for file in fixture.glob("*.json"):
            (folder / file.name).write_bytes(file.read_bytes())
        files = headers(fixture)
        for name, tensors in files.items():
            _write_sparse(folder / name, tensors)
        if list(files) != [SINGLE]:
            weight_map = {tensor: name for name, tensors in files.items() for tensor in tensors}
            (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
        folders[fixture.name.replace("--", "/", 1)] = folder
    return folders


def _write_sparse(path: Path, tensors: dict[str, tuple[str, tuple[int, ...]]]) -> None:
    entries, offset = {}, 0
    for name, (dtype, shape) in tensors.items():
        end = offset + TensorEntry(name, dtype, shape).bytes
        entries[name] = (dtype, shape, offset, end)
        offset = end
    header = encode_header(entries)
    path.write_bytes(header)
    os.truncate(path, len(header) + offset)
