"""The chat template that conversations are rendered by: where it comes from, and what is wrong where there is none.

A source may bring a template of its own, as a file: its text is part of the task. Else it is the teacher's tokenizer's,
which the identity of the tokenizer covers. How a template is rendered is the tokenizer's library's; its version is
provenance, as that of the code that tokenizes text is.
"""

from collections.abc import Iterator
from pathlib import Path

from boomspec.compile.model_sources import hub_tokenizer_folder, model_folder
from boomspec.compile.places import path_text, resolve_path
from boomspec.compile.text_files import format_of
from boomspec.compile.text_sources import data_files, place_of_text
from boomspec.core.errors import BoomspecError, Problem
from boomspec.models.hub import UnreachableError
from boomspec.models.tokenizer import has_chat_template
from boomspec.spec.spec_file import SpecFile, memoized_for

_ONE = "a model has one: give both sources the same"
_HINT = "give one: chat_template, a file with a Jinja template"


def chat_problems(file: SpecFile) -> Iterator[Problem]:
    """What is wrong with the sources of conversations, without asking the hub."""
    data, templates = file.spec.data, dict[str, str]()
    texts = {} if data is None else data.texts
    brought = next((name for name, source in texts.items() if source.chat_template is not None), None)
    for name, source in texts.items():
        if not source.is_chat:
            continue
        at = place_of_text(name)
        paths = data_files(file, name)
        if source.format is None and paths and {format_of(path) for path in paths} == {"text"}:
            yield file.problem(
                (*at, "files"), "text files have no rows with conversations", "give jsonl, json or parquet"
            )
        if source.chat_template is not None:
            place = (*at, "chat_template")
            try:
                templates[name] = template_of(file, name) or ""
            except BoomspecError as error:
                yield file.problem(place, error.message, error.hint)
                continue
            if (other := next(iter(templates))) != name and templates[other] != templates[name]:
                message = f"it is not the chat template of the source '{other}'"
                yield file.problem(place, message, _ONE)
        elif brought is not None:
            message = f"it has the teacher's chat template, and the source '{brought}' brings another"
            yield file.problem(at, message, _ONE, key=True)
        elif file.spec.teacher.pretrain is not None:
            message = "the tokenizer that is trained here has no chat template"
            yield file.problem(at, message, _HINT, key=True)
        elif (folder := model_folder(file, "teacher")) is not None and not has_chat_template(folder):
            message = f"the teacher's tokenizer has no chat template ({folder})"
            yield file.problem(at, message, _HINT, key=True)


@memoized_for("data")
def template_of(file: SpecFile, name: str) -> str | None:
    """The text of the template that a source brings. Raises BoomspecError where its file cannot be read."""
    assert file.spec.data is not None
    if (written := file.spec.data.texts[name].chat_template) is None:
        return None
    place = (*place_of_text(name), "chat_template")
    path = Path(resolve_path(file, place, path_text(file, place, written)))
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise BoomspecError(f"'{path}' cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise BoomspecError(f"'{path}' is not UTF-8 text") from error
    if not text.strip():
        raise BoomspecError(f"'{path}' is empty", hint="it holds a Jinja template")
    return text


def check_hub_template(file: SpecFile, name: str) -> None:
    """Raise SpecError where a teacher on the hub has no chat template, and the source needs it."""
    assert file.spec.data is not None
    source, teacher = file.spec.data.texts[name], file.spec.teacher
    if not source.is_chat or source.chat_template is not None or teacher.model is None:
        return
    if model_folder(file, "teacher") is not None:
        return  # see `chat_problems`
    try:
        folder = hub_tokenizer_folder(file, "teacher")
    except UnreachableError:
        return  # the task says it
    if not has_chat_template(folder):
        message = f"the tokenizer of '{teacher.model}' has no chat template"
        raise file.error_at(place_of_text(name), message, _HINT)
