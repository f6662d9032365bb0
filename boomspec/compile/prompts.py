"""Read the prompts of `evaluate.texts` from their file. It imports little, for `boomspec validate` does it."""

import json
from dataclasses import replace

from boomspec.compile.places import resolve_path
from boomspec.spec.spec_file import SpecFile, memoized_for

_PLACE = ("evaluate", "texts", "file")
_MOST_PROMPTS = 1000  # they are part of a record


def with_prompts(file: SpecFile) -> SpecFile:
    """The file with the prompts in the place of the name of the file that holds them. Raises SpecError."""
    evaluate = file.spec.evaluate
    if evaluate is None or evaluate.texts is None or evaluate.texts.file is None:
        return file
    update = {"file": None, "prompts": _read(file, evaluate.texts.file)}
    asked = evaluate.model_copy(update={"texts": evaluate.texts.model_copy(update=update)})
    return replace(file, spec=file.spec.model_copy(update={"evaluate": asked}))


@memoized_for("evaluate")
def _read(file: SpecFile, name: str) -> tuple[str, ...]:
    place = _PLACE
    path = resolve_path(file, place, name)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeError) as error:
        reason = "it is no UTF-8 text" if isinstance(error, UnicodeError) else error.strerror
        raise file.error_at(place, f"'{path}' cannot be read: {reason}") from error
    found: list[str] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        prompt = line
        if path.suffix == ".jsonl":
            try:
                prompt = json.loads(line)["prompt"]
                if not isinstance(prompt, str) or not prompt.strip():
                    raise TypeError
            except (ValueError, KeyError, TypeError) as error:
                message = f"line {number} of '{path}' has no text in a field `prompt`"
                raise file.error_at(place, message, 'write {"prompt": "..."}') from error
        if prompt in found:
            raise file.error_at(place, f"line {number} of '{path}' is the same prompt again")
        found.append(prompt)
    if not 1 <= len(found) <= _MOST_PROMPTS:
        raise file.error_at(place, f"'{path}' has {len(found):,} prompts: 1 to {_MOST_PROMPTS:,} are allowed")
    return tuple(found)
