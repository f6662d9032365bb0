"""Read which teacher layers a published student was copied from, from its student_config.json.

student_config.json: {"copied_teacher_layers": [0, 2, ...], "pruned_teacher_layers": [1, 3, ...]}; together they
are the teacher's layers, and student layer i was copied from the i-th of the first list.
"""

from __future__ import annotations

import json
from pathlib import Path

from boomspec.core.errors import BoomspecError

STUDENT_CONFIG = "student_config.json"
_HINT = "or give the mapping in the spec: student: {model: ..., keep: [0, 2, ...]}"


def read_student_mapping(folder: Path, *, layers: int | None = None) -> tuple[int, ...]:
    """The kept layers of a student's folder. Raises BoomspecError where they are missing or inconsistent.

    `layers`: of the teacher, which copied and pruned layers have to make up.
    """
    path = folder / STUDENT_CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BoomspecError(f"{folder}: no readable {STUDENT_CONFIG}: {error.strerror}", hint=_HINT) from error
    except ValueError as error:
        raise BoomspecError(f"{path}: not JSON: {error}", hint=_HINT) from error
    copied, pruned = (_layers(path, config, key) for key in ("copied_teacher_layers", "pruned_teacher_layers"))
    if both := sorted(set(copied) & set(pruned)):
        raise BoomspecError(f"{path}: layer {both[0]} is both copied and pruned", hint=_HINT)
    if sorted([*copied, *pruned]) != list(range(len(copied) + len(pruned))):
        raise BoomspecError(f"{path}: copied and pruned layers are not together all of a teacher's layers", hint=_HINT)
    if not copied:
        raise BoomspecError(f"{path}: no layer is copied", hint=_HINT)
    if layers is not None and len(copied) + len(pruned) != layers:
        message = f"{path}: is of a teacher of {len(copied) + len(pruned)} layers, this one has {layers}"
        raise BoomspecError(message, hint=_HINT)
    if list(copied) != sorted(copied):
        raise BoomspecError(f"{path}: copied_teacher_layers are not in order", hint=_HINT)
    return copied


def _layers(path: Path, config: object, key: str) -> tuple[int, ...]:
    layers = config.get(key) if isinstance(config, dict) else None
    if not isinstance(layers, list) or not all(type(layer) is int for layer in layers):
        raise BoomspecError(f"{path}: {key} is not a list of layers", hint=_HINT)
    return tuple(layers)
