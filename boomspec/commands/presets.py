"""`boomspec init --preset`: published recipes, as specs with comments.

Recipes that differ in a few values share one text, each a valid spec, in which these values take the place of its own.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from boomspec.core.errors import BoomspecError, did_you_mean

_FOLDER = Path(__file__).parent.parent / "templates"
_GATED = "The teacher is gated: HF_TOKEN must name an account that may read it."


@dataclass(frozen=True)
class Preset:
    """`values`: YAML by section and key. `words`: what else of the text is put otherwise, such as in its question."""

    about: str
    file: str
    values: Mapping[tuple[str, str], str] = field(default_factory=dict)
    words: Mapping[str, str] = field(default_factory=dict)

    def text(self) -> str:
        """The spec, but for its name."""
        found = (_FOLDER / self.file).read_text(encoding="utf-8")
        for old, new in self.words.items():
            assert old in found
            found = found.replace(old, new)
        for (section, key), value in self.values.items():
            found = with_value(found, f"{key}: ", value, after=f"{section}:")
        return found


def with_value(text: str, key: str, value: str, *, after: str = "") -> str:
    """The text with another value in the first line with this key; the comment after it stays in its column."""
    lines = text.splitlines()
    first = lines.index(after) if after else 0
    i = next(i for i in range(first, len(lines)) if lines[i].lstrip().startswith(key))
    old, hash_sign, comment = lines[i].partition("  #")
    new = old[: len(old) - len(old.lstrip())] + key + value
    lines[i] = f"{new:{len(old)}}{hash_sign}{comment}" if hash_sign else new
    return "\n".join(lines) + "\n"


def _boomerang(called: str, teacher: str, student: str, **values: str) -> Preset:
    """One of the published pairs."""
    places = {"keep": ("student", "keep"), "order": ("interpolate", "order")}
    words = {"Qwen3-4B grow": f"{called} grow", "Harvard-DCML/boomerang-qwen3-2.3B": f"Harvard-DCML/{student}"}
    if teacher.startswith("meta-llama/"):
        holds = "One GPU of 80 GB holds it. "
        words[holds] = f"{holds.rstrip()}\n# {_GATED}\n# "
    own = {places[name]: value for name, value in values.items()}
    about = f"boomerang distillation of {teacher}, as published (arXiv 2510.05064)"
    return Preset(about, "presets/boomerang.yaml", {("teacher", "model"): teacher, **own}, words)


def _adapt(called: str, teacher: str, tokens: str, read: str, *, chat: str | None = None) -> Preset:
    """A post-trained teacher, with so many tokens of each text."""
    spare = " " * (len("0.5B") - len(tokens))
    words = {
        "half of Qwen3-4B": f"half of {called}",
        "max_tokens: 0.51B": f"max_tokens: {read}",
        "{pile: 0.5B, sft: 0.5B}  ": f"{{pile: {tokens}, sft: {tokens}}}  {2 * spare}",
        ", tokens: 0.5B}": f", tokens: {tokens}}}",
    }
    if chat is not None:
        words["  chat: {template: {enable_thinking: false}}"] = f"  chat: {chat}"
    if teacher.startswith("meta-llama/"):
        words["`boomspec plan` shows"] = f"{_GATED}\n# `boomspec plan` shows"
    about = f"distillation of the post-trained {teacher}, as in ADAPT (arXiv 2608.22854)"
    return Preset(about, "presets/adapt.yaml", {("teacher", "model"): teacher}, words)


_LLAMA: Final = {"keep": "{every: 2, first: 2, last: 1}", "order": "first_to_last"}
PRESETS: Final[Mapping[str, Preset]] = {
    "quickstart": Preset("everything made here, in minutes on two CPU cores, with no download", "quickstart.yaml"),
    "boomerang-qwen3-4b": _boomerang("Qwen3-4B", "Qwen/Qwen3-4B-Base", "boomerang-qwen3-2.3B"),
    "boomerang-qwen3-8b": _boomerang("Qwen3-8B", "Qwen/Qwen3-8B-Base", "boomerang-qwen3-4.9B"),
    "boomerang-llama-3b": _boomerang("Llama-3.2-3B", "meta-llama/Llama-3.2-3B", "boomerang-llama-3.2-1.9B", **_LLAMA),
    "boomerang-pythia-2.8b": _boomerang("Pythia-2.8B", "EleutherAI/pythia-2.8b", "boomerang-pythia-1.6B"),
    "boomerang-pythia-6.9b": _boomerang("Pythia-6.9B", "EleutherAI/pythia-6.9b", "boomerang-pythia-3.8B"),
    "adapt-qwen3-4b": _adapt("Qwen3-4B", "Qwen/Qwen3-4B", "0.5B", "0.51B"),
    "adapt-qwen3-8b": _adapt("Qwen3-8B", "Qwen/Qwen3-8B", "1B", "1.02B"),
    "adapt-qwen3-14b": _adapt("Qwen3-14B", "Qwen/Qwen3-14B", "2B", "2.04B"),
    "adapt-llama-3b": _adapt("Llama-3.2-3B", "meta-llama/Llama-3.2-3B-Instruct", "0.5B", "0.51B", chat="true"),
    "adapt-llama-8b": _adapt("Llama-3.1-8B", "meta-llama/Llama-3.1-8B-Instruct", "1B", "1.02B", chat="true"),
}
# What a shorter name stands for.
SHORT: Final[Mapping[str, str]] = {
    "boomerang-qwen3": "boomerang-qwen3-4b",
    "boomerang-llama": "boomerang-llama-3b",
    "boomerang-pythia": "boomerang-pythia-2.8b",
    "adapt-qwen3": "adapt-qwen3-4b",
    "adapt-llama": "adapt-llama-3b",
}
LIST: Final = "list"


def preset_called(name: str) -> tuple[str, Preset]:
    """Its whole name and itself. Raises BoomspecError for a name that there is not."""
    whole = SHORT.get(name, name)
    if whole not in PRESETS:
        hint = did_you_mean(name, [*PRESETS, *SHORT]) or f"there are {', '.join(PRESETS)}"
        raise BoomspecError(f"there is no preset '{name}'", hint=hint)
    return whole, PRESETS[whole]


def listing() -> str:
    """Every preset with what it is, a line each."""
    short = {whole: name for name, whole in SHORT.items()}
    names = {name: f"{name} ({short[name]})" if name in short else name for name in PRESETS}
    width = max(map(len, names.values()))
    return "\n".join(f"{names[name]:{width}}  {preset.about}" for name, preset in PRESETS.items())
