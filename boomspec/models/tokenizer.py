"""Read from a tokenizer's files how it begins a text, and how many rows of an embedding it needs.

Special tokens that are written out inside of a text are text (`runners.data.text_tokenizer`), so of the added tokens
only those that are not special count, and those that stand around documents. Gemma 3 1B, say, has one row less than its
tokenizer has tokens: the last one stands for an image.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from boomspec.core.errors import BoomspecError

# A vocabulary of a quarter of a million entries, with its merges, takes a second to parse: only what is asked is read.
_VOCABULARY = re.compile(rb'"vocab"\s*:\s*\{')
_MERGES = re.compile(rb'"merges"\s*:\s*\[')
_ENTRY = re.compile(rb'(?<!\\)"\s*:\s*(\d+)\s*[,}]')
_AROUND = ("bos_token", "eos_token")


def needed_rows(folder: Path) -> int | None:
    """The largest token id that text may hold, plus one; None where the files do not say it cheaply."""
    config = _read(folder / "tokenizer_config.json")
    around = {str(token.get("content") if isinstance(token, dict) else token) for token in map(config.get, _AROUND)}
    ids = _of_tokenizer_json(folder / "tokenizer.json", around)
    if ids is None:
        ids = _of_vocabulary(folder)
    if ids is None:
        return None
    decoder = config.get("added_tokens_decoder")
    added = [
        int(i)
        for i, token in (decoder.items() if isinstance(decoder, dict) else ())
        if isinstance(token, dict) and (not token.get("special") or token.get("content") in around)
    ]
    return max([*ids, *added], default=-1) + 1


def _of_tokenizer_json(path: Path, around: set[str]) -> list[int] | None:
    """Ids of its vocabulary (or only the largest) and of its added tokens."""
    if not path.is_file():
        return None
    data = path.read_bytes()
    start = _VOCABULARY.search(data)
    try:
        if start is None:  # a list of pieces, in the order of their ids
            whole = json.loads(data)
            vocabulary = whole.get("model", {}).get("vocab", ())
            return [len(vocabulary) - 1, *_added(whole.get("added_tokens", ()), around)]
        end = _MERGES.search(data, start.end())
        ids = [int(found) for found in _ENTRY.findall(data, start.end(), end.start() if end else len(data))]
        return [max(ids, default=-1), *_added(_added_tokens(data), around)]
    except (ValueError, AttributeError, TypeError, KeyError) as error:
        raise BoomspecError(f"{path}: not a tokenizer of the tokenizers library: {error}") from error


def _added_tokens(data: bytes) -> list[Any]:
    """The value of "added_tokens", read without the rest."""
    place = re.search(rb'"added_tokens"\s*:\s*(?=\[)', data)
    if place is None:
        return []
    rest = data[place.end() : place.end() + (1 << 22)].decode("utf-8", errors="replace")
    found, _ = json.JSONDecoder().raw_decode(rest)
    return list(found)


def _added(tokens: Iterable[Mapping[str, Any]], around: set[str]) -> Iterator[int]:
    return (int(token["id"]) for token in tokens if not token.get("special") or token.get("content") in around)


def _of_vocabulary(folder: Path) -> list[int] | None:
    """Ids of a vocabulary in a file of its own, as older tokenizers have it."""
    added = [i for i in _read(folder / "added_tokens.json").values() if isinstance(i, int)]
    if vocabulary := _read(folder / "vocab.json"):
        return [i for i in vocabulary.values() if isinstance(i, int)] + added
    for path in (folder / "vocab.txt", *sorted(folder.glob("*.tiktoken"))):
        if path.is_file():
            return [path.read_bytes().rstrip(b"\n").count(b"\n"), *added]
    return None


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BoomspecError(f"{path}: not JSON: {error}") from error
    return found if isinstance(found, dict) else {}


# Classes that take the post-processor of tokenizer.json as it is; a test holds each of them against transformers.
_FROM_FILE = {
    "PreTrainedTokenizer",
    "PythonBackend",
    "TokenizersBackend",
    "LlamaTokenizer",
    "GemmaTokenizer",
    "GPT2Tokenizer",
    "Qwen2Tokenizer",
    "CohereTokenizer",
}


def text_start(folder: Path) -> tuple[str, ...] | None:
    """The special tokens that the post-processor puts in front of every text; None where the files do not say it.

    tokenizer.json decides, and not `add_bos_token` of tokenizer_config.json, wherever transformers builds the tokenizer
    from that file alone; some classes make a post-processor of their own, so of those nothing is claimed.
    """
    try:
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        file = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        if str(config["tokenizer_class"]).removesuffix("Fast") not in _FROM_FILE or "auto_map" in config:
            return None
        return tuple(_start(file.get("post_processor")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _start(processor: Any) -> list[str]:
    """What a post-processor puts in front. Raises ValueError for one that is not known."""
    match None if processor is None else processor["type"]:
        case None | "ByteLevel":
            return []
        case "TemplateProcessing":
            found: list[str] = []
            for piece in processor["single"]:
                if "Sequence" in piece:
                    return found
                found.append(str(piece["SpecialToken"]["id"]))
            raise ValueError("a template without a text")
        case "Sequence":
            # The last one is the outermost.
            return [token for inner in reversed(processor["processors"]) for token in _start(inner)]
    raise ValueError(f"post-processor {processor['type']}")
