"""How a tokenizer begins a text, as far as its files say so: the tokens that its post-processor puts in front.

tokenizer.json decides, and not `add_bos_token` of tokenizer_config.json, wherever transformers builds the tokenizer
from that file alone; some classes make a post-processor of their own, so of those nothing is claimed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

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
    """The special tokens in front of every text; None where the files alone do not say it."""
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
