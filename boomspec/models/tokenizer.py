"""Read from a tokenizer's files how it begins a text, and how many rows of an embedding it needs.

Special tokens that are written out inside of a text are text (`runners.data.text_tokenizer`), so of the added tokens
only those that are not special count, and those that stand around documents. Gemma 3 1B, say, has one row less than its
tokenizer has tokens: the last one stands for an image.
"""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from boomspec.core.errors import BoomspecError
from boomspec.models.folder import CHAT_TEMPLATES, TOKENIZER, read_object

# A vocabulary of a quarter of a million entries, with its merges, takes a second to parse: only what is asked is read.
_VOCABULARY = re.compile(rb'"vocab"\s*:\s*\{')
_MERGES = re.compile(rb'"merges"\s*:\s*\[')
_ENTRY = re.compile(rb'(?<!\\)"\s*:\s*(\d+)\s*[,}]')


def needed_rows(folder: Path) -> int | None:
    """The largest token id that text may hold, plus one; None where the files do not say it cheaply."""
    config = read_object(folder / "tokenizer_config.json")
    ends = [config.get("bos_token"), config.get("eos_token")]
    around = {str(token.get("content") if isinstance(token, dict) else token) for token in ends}

    def is_text(token: Mapping[str, Any]) -> bool:
        return not token.get("special") or token.get("content") in around

    path, ids = folder / "tokenizer.json", [-1]
    try:
        if path.is_file():
            largest, tokens = _of_tokenizer_json(path.read_bytes())
            ids += [largest, *(int(token["id"]) for token in tokens if is_text(token))]
        else:  # a vocabulary in a file of its own, as older tokenizers have it
            lists = [path for path in (folder / "vocab.txt", *sorted(folder.glob("*.tiktoken"))) if path.is_file()]
            if vocabulary := read_object(folder / "vocab.json"):
                ids += [i for i in vocabulary.values() if isinstance(i, int)]
            elif lists:
                ids.append(lists[0].read_bytes().rstrip(b"\n").count(b"\n"))
            else:
                return None
            ids += [i for i in read_object(folder / "added_tokens.json").values() if isinstance(i, int)]
    except (ValueError, AttributeError, TypeError, KeyError) as error:
        raise BoomspecError(f"{path}: not a tokenizer of the tokenizers library: {error}") from error
    decoder = config.get("added_tokens_decoder")
    added = decoder.items() if isinstance(decoder, dict) else ()
    return max([*ids, *(int(i) for i, token in added if isinstance(token, dict) and is_text(token))]) + 1


def _of_tokenizer_json(data: bytes) -> tuple[int, Iterable[Mapping[str, Any]]]:
    """The largest id of its vocabulary, and its added tokens."""
    start = _VOCABULARY.search(data)
    if start is None:  # a list of pieces, in the order of their ids
        whole = json.loads(data)
        return len(whole.get("model", {}).get("vocab", ())) - 1, whole.get("added_tokens", ())
    end = _MERGES.search(data, start.end())
    ids = [int(found) for found in _ENTRY.findall(data, start.end(), end.start() if end else len(data))]
    added: list[Any] = []
    if place := re.search(rb'"added_tokens"\s*:\s*(?=\[)', data):
        rest = data[place.end() : place.end() + (1 << 22)].decode("utf-8", errors="replace")
        added, _ = json.JSONDecoder().raw_decode(rest)
    return max(ids, default=-1), added


def vocabulary(folder: Path) -> dict[str, int]:
    """The id of every token of a tokenizer.json, added ones included. Raises BoomspecError where there is none."""
    path = folder / TOKENIZER
    try:
        whole = json.loads(path.read_text(encoding="utf-8"))
        entries = whole["model"]["vocab"]
        found = dict(entries) if isinstance(entries, dict) else {piece: i for i, (piece, *_) in enumerate(entries)}
        return found | {str(token["content"]): int(token["id"]) for token in whole.get("added_tokens", ())}
    except FileNotFoundError as error:
        hint = "save one there: tokenizer.save_pretrained(folder)"
        raise BoomspecError(f"{folder} holds no {TOKENIZER}: its vocabulary cannot be compared", hint=hint) from error
    except (ValueError, AttributeError, TypeError, KeyError) as error:
        raise BoomspecError(f"{path}: not a tokenizer of the tokenizers library: {error}") from error


# Classes that take the post-processor of tokenizer.json as it is; a test holds each of them against transformers.
_FROM_FILE = {
    *("PreTrainedTokenizer", "PythonBackend", "TokenizersBackend", "LlamaTokenizer", "GemmaTokenizer"),
    *("GPT2Tokenizer", "Qwen2Tokenizer", "CohereTokenizer"),
}


def text_start(folder: Path) -> tuple[str, ...] | None:
    """The special tokens that the post-processor puts in front of every text; None where the files do not say it.

    tokenizer.json decides, and not `add_bos_token` of tokenizer_config.json, wherever transformers builds the tokenizer
    from that file alone; some classes make a post-processor of their own, so of those nothing is claimed.
    """
    try:
        config = read_object(folder / "tokenizer_config.json")
        if str(config["tokenizer_class"]).removesuffix("Fast") not in _FROM_FILE or "auto_map" in config:
            return None
        file = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        return tuple(_start(file.get("post_processor")))
    except (BoomspecError, OSError, ValueError, KeyError, TypeError, AttributeError):
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


def has_chat_template(folder: Path) -> bool:
    """Whether a tokenizer's files hold a chat template: a file of its own, several in a folder, or in its config."""
    files = [*folder.glob("chat_template.*"), *(folder / CHAT_TEMPLATES).glob("*.jinja")]
    return bool(files) or bool(read_object(folder / "tokenizer_config.json").get("chat_template"))
