"""The chat template of the teacher's tokenizer: read, and rendered without transformers, as transformers would.

transformers is slow to import, and only plans are made here. What is rendered tells whether a template takes a system
prompt; the prompts of an evaluation are rendered by transformers itself.
"""

import json
import re
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from boomspec.compile.model_sources import model_folder, tokenizer_folder
from boomspec.core.errors import BoomspecError
from boomspec.models.folder import read_object
from boomspec.models.hub import hub_folder
from boomspec.spec.spec_file import SpecFile, memoized_for

_FILES = ("chat_template.jinja", "tokenizer_config.json")
_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")
# What models think between, by their end; the first is that of most.
MARKERS = {
    "</think>": "<think>",
    "<|end_of_thought|>": "<|begin_of_thought|>",
    "[/THINK]": "[THINK]",
    "</seed:think>": "<seed:think>",
}


class RefusedError(Exception):
    """A template refuses the messages: it raised an exception itself."""


class ChatTemplate(NamedTuple):
    """`text` is empty where the tokenizer has none. `tokens`: by the names that templates use; `added`: all others."""

    text: str
    tokens: dict[str, str]
    added: frozenset[str] = frozenset()

    def knows(self, variable: str) -> bool:
        return re.search(rf"\b{re.escape(variable)}\b", self.text) is not None

    @property
    def marker(self) -> str | None:
        """The end of a thought that template or tokenizer know."""
        return next((end for end in MARKERS if end in self.text or end in self.added), None)

    def render(self, messages: list[dict[str, str]], variables: dict[str, Any]) -> str | None:
        """The prompt of messages; None where that cannot be told here. Raises RefusedError."""
        try:
            import jinja2
            from jinja2.sandbox import ImmutableSandboxedEnvironment
        except ImportError:  # a machine that only plans
            return None

        def refuse(message: str) -> None:
            raise RefusedError(message)

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = lambda value, **more: json.dumps(
            value, ensure_ascii=False, allow_nan=False, **more
        )
        environment.globals |= {"raise_exception": refuse, "strftime_now": datetime.now().strftime}
        text = re.sub(r"\{%-?\s*(end)?generation\s*-?%\}", "", self.text)
        try:
            rendered: str = environment.from_string(text).render(
                messages=messages, add_generation_prompt=True, **self.tokens, **variables
            )
        except (jinja2.TemplateError, TypeError, ValueError, AttributeError, KeyError):
            return None  # it needs more of transformers than is here
        return rendered


@memoized_for("teacher", "data")
def template_of(file: SpecFile) -> ChatTemplate | None:
    """That of the teacher; None where it cannot be told now."""
    if file.spec.teacher.pretrain is not None:
        return ChatTemplate("", {})
    folder = model_folder(file, "teacher")
    return _read(folder) if folder is not None else _of_hub(file)


def _of_hub(file: SpecFile) -> ChatTemplate | None:
    try:
        folder = tokenizer_folder(file, "teacher")  # the cache has one folder a commit
        name, commit = str(file.spec.teacher.model), folder.name
        hub_folder(name, commit, file="tokenizer_config.json")
    except BoomspecError:
        return None
    with suppress(BoomspecError):  # older tokenizers have it in their config
        hub_folder(name, commit, file="chat_template.jinja")
    return _read(folder)


def _read(folder: Path) -> ChatTemplate | None:
    with suppress(BoomspecError, OSError, UnicodeDecodeError):
        config = read_object(folder / "tokenizer_config.json")
        file = folder / "chat_template.jinja"
        text = file.read_text(encoding="utf-8") if file.is_file() else config.get("chat_template")
        if isinstance(text, list):  # several, by name
            named = {one.get("name"): one.get("template") for one in text if isinstance(one, dict)}
            text = named.get("default")
        tokens = {name: _content(config[name]) for name in _TOKENS if config.get(name)}
        decoder = config.get("added_tokens_decoder")
        listed = [*decoder.values()] if isinstance(decoder, dict) else []
        if (whole := folder / "tokenizer.json").is_file() and not listed:
            listed = _added(whole)
        return ChatTemplate(text if isinstance(text, str) else "", tokens, frozenset(map(_content, listed)))
    return None


def _added(path: Path) -> list[Any]:
    """The added tokens of a tokenizer.json, whose vocabulary is not parsed: that takes a second."""
    data = path.read_bytes()
    if (place := re.search(rb'"added_tokens"\s*:\s*(?=\[)', data)) is None:
        return []
    found, _ = json.JSONDecoder().raw_decode(data[place.end() : place.end() + (1 << 22)].decode(errors="replace"))
    return found if isinstance(found, list) else []


def _content(token: Any) -> str:
    return str(token.get("content")) if isinstance(token, dict) else str(token)
