"""Problems of what a spec reads and does not make: paths that lead nowhere, names that are none."""

from __future__ import annotations

import re

from boomspec.compile.foreign_code import code_problems
from boomspec.compile.model_sources import Role, folder_problems, model_folder
from boomspec.compile.places import is_folder, path_text, resolve_path, variable_problems
from boomspec.compile.text_sources import text_problems
from boomspec.core.errors import Problem
from boomspec.spec.spec_file import SpecFile

_HUB_ID = re.compile(r"[\w.-]{1,96}(/[\w.-]{1,96})?")


def check_paths(file: SpecFile) -> list[Problem]:
    """Problems of what a spec names, without reading what it holds."""
    return file.known("paths", ("teacher", "student", "data", "evaluate", "execution"), lambda: _check_paths(file))


def _check_paths(file: SpecFile) -> list[Problem]:
    problems = list(variable_problems(file))
    if problems:
        return problems
    spec = file.spec
    if spec.evaluate is not None and spec.evaluate.held_out is not None and spec.data and not spec.data.held_out:
        hint = "set documents apart: data: {held_out: {every: 20}}"
        problems.append(file.problem(("evaluate", "held_out"), "there is no held-out text to measure", hint))
    roles: tuple[Role, ...] = ("teacher", "student")
    for role in roles:
        section = spec.teacher if role == "teacher" else spec.student
        name = path_text(file, (role, "model"), section.model) if section.model is not None else None
        if name is not None and model_folder(file, role) is None and not _HUB_ID.fullmatch(name):
            problems.append(file.problem((role, "model"), f"'{name}' is neither a folder nor a hub id (owner/name)"))
        if name is not None and section.revision is not None and model_folder(file, role) is not None:
            problems.append(file.problem((role, "revision"), "a folder has no revisions", "remove it"))
        if (folder := model_folder(file, role)) is not None:
            problems += folder_problems(file, role, folder) or code_problems(file, role, folder)
    if spec.data is not None:
        problems += text_problems(file, spec.data)
    if spec.evaluate is not None and spec.evaluate.tasks_folder is not None:
        tasks = resolve_path(file, ("evaluate", "tasks_folder"), spec.evaluate.tasks_folder)
        if not is_folder(tasks):
            problems.append(file.problem(("evaluate", "tasks_folder"), f"'{tasks}' is not a folder"))
    return problems
