"""Which code that a model brings along a spec trusts: what is run of it becomes part of the model's identity.

    trust_remote_code: false    transformers' own classes; an error where it has none
    trust_remote_code: true     the code of the folder, or of the pinned commit; an error where there is none to trust

A spec that trusts and one that does not never share an artifact: the digests of the code are in the source's identity.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from boomspec.core.errors import BoomspecError, Problem
from boomspec.models.code import (
    AUTO_MAP,
    CONFIGS,
    USED,
    check_named,
    check_native,
    code_digests,
    code_files,
    is_native,
    named_classes,
    read_config_of,
)
from boomspec.spec.spec_file import SpecFile

Role = Literal["teacher", "student"]
_CAUSAL = "AutoModelForCausalLM"
Digests = dict[str, str]  # sha256 by file name


def code_problems(file: SpecFile, role: Role, folder: Path) -> list[Problem]:
    """What is wrong with trusting, or not trusting, the code in a model's folder. Reads no more than its configs."""
    spec = file.spec
    section = spec.teacher if role == "teacher" else spec.student
    place = (role, "trust_remote_code" if section.trust_remote_code else "model")
    try:
        if section.trust_remote_code:
            _check_trusted(folder, str(section.model))
        else:
            for part in CONFIGS:
                check_native(folder, part, str(section.model))
    except BoomspecError as error:
        return [file.problem(place, error.message, error.hint)]
    return []


def trusted_code(file: SpecFile, role: Role, folder: Path) -> tuple[Digests, Digests]:
    """The code that may run of a model with its tokenizer, and of that tokenizer alone. Raises SpecError."""
    if problems := code_problems(file, role, folder):
        raise file.error(*problems)
    section = file.spec.teacher if role == "teacher" else file.spec.student
    if not section.trust_remote_code:
        return {}, {}
    digests = file.once(("code", folder), lambda: code_digests(folder))
    return digests, digests if named_classes(folder, "tokenizer") else {}


def check_alike(file: SpecFile, folders: tuple[Path, Path], code: tuple[Digests, Digests]) -> None:
    """Raise SpecError unless teacher and student run the same code: every size is made of layers of both."""
    named = [named_classes(folder, "model").get(_CAUSAL) for folder in folders]
    if named == [None, None]:
        return
    place = ("student", "trust_remote_code" if file.spec.student.trust_remote_code else "model")
    hint = "every size is made of layers of both"
    # Of a model that names none only the tokenizer's code is trusted.
    runs = [bool(trusted) and bool(named_classes(at, "model")) for at, trusted in zip(folders, code, strict=True)]
    if runs[0] != runs[1]:
        message = "the code of one of teacher and student is trusted, and not that of the other"
        raise file.error(file.problem(place, message, f"trust both or neither: {hint}"))
    other = [name for name in code[0].keys() & code[1].keys() if code[0][name] != code[1][name]]
    if runs[0] and (named[0] != named[1] or other):
        what = f"{min(other)} is not the same" if other else f"{named[0]} and {named[1]}"
        message = f"teacher and student bring different code: {what}"
        raise file.error(file.problem(place, message, f"it must be the same: {hint}"))


def _check_trusted(folder: Path, name: str) -> None:
    named = {part: named_classes(folder, part) for part in CONFIGS}
    if not any(named.values()):
        looked = " and ".join(CONFIGS.values())
        message = f"'{name}' brings no code along: there is no '{AUTO_MAP}' in its {looked}"
        raise BoomspecError(message, hint="remove it: transformers' own classes are used")
    files = code_files(folder)
    for part, classes in named.items():
        where = f"{CONFIGS[part]} of '{name}'"
        check_named([cls for auto in USED for cls in classes.get(auto, ())], files, where)
        missing = part == "model" and classes and _CAUSAL not in classes
        if missing and ("AutoConfig" in classes or is_native(read_config_of(folder, part), part) is False):
            hint = "it is the class that boomspec loads; others, such as AutoModel, have no head"
            raise BoomspecError(f"{where}: '{AUTO_MAP}' names no {_CAUSAL}", hint=hint)
