"""Write a tokenizer of transformers into a GGUF file, where llama.cpp splits text the same way; others are refused.

    gpt2     byte-level BPE. How text is split before the merges is one of the kinds that llama.cpp knows by name
             (`tokenizer.ggml.pre`). Its converter recognises them by a hash of the token ids of one text, for a list of
             published vocabularies. Here the rule itself is compared: a vocabulary of one's own is recognised, too.
    llama    BPE of SentencePiece, with bytes for what is not in the vocabulary. llama.cpp merges by the tokens' scores,
             which follow from the order of the merges.

A wrong kind would split text otherwise than the model was trained with, and say nothing: what is not recognised is an
error.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf

from boomspec.core.errors import BoomspecError

_ENGLISH = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_END = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CASED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+@"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*@"
)
_CASED_END = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# The rule by which text is split, and whether a whole piece that is a token is taken before any merge.
_SPLITS = {
    (rf"{_ENGLISH}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}{_END}", True): "llama-bpe",
    (rf"{_ENGLISH}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}{_END}", False): "dbrx",
    (rf"{_ENGLISH}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{_END}", False): "qwen2",
    (
        rf"{_ENGLISH}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}" + _END.replace(r"\s\p{L}", r"\s\p{L}\p{M}"),
        False,
    ): "qwen35",
    (_CASED.replace("@", f"{_ENGLISH}?") + r"|\p{N}{1,3}" + _CASED_END, False): "gpt-4o",
}
_KNOWN = ("gpt-2", "smollm", *sorted(_SPLITS.values()))
_SPACE = "\u2581"
_HINT = "export without --gguf, and convert the folder with llama.cpp's convert_hf_to_gguf.py"
_SPECIAL = ("bos", "eos", "unk", "sep", "pad", "mask")


@dataclass(frozen=True)
class Vocabulary:
    """What a GGUF file says of a tokenizer. `notes`: what people should know of it."""

    model: str
    pre: str
    tokens: Mapping[int, tuple[str, gguf.TokenType]]
    special: Mapping[str, int]
    adds: Mapping[str, bool]  # of "bos" and "eos": whether encoding a text adds it
    chat_template: Any
    merges: tuple[str, ...] | None = None
    scores: Mapping[int, float] | None = None
    space_prefix: bool | None = None
    notes: tuple[str, ...] = ()

    def write(self, writer: gguf.GGUFWriter, rows: int) -> None:
        """Write it for an embedding of so many rows. Raises BoomspecError for a token that has none."""
        if (last := max(self.tokens)) >= rows:
            raise BoomspecError(f"token {last} of the tokenizer has no row in the embedding, which has {rows}")
        unused = {i: (f"[PAD{i}]", gguf.TokenType.UNUSED) for i in range(rows)}
        listed = [(unused | dict(self.tokens))[i] for i in range(rows)]
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list([text for text, _ in listed])
        if self.scores is not None:
            writer.add_token_scores([self.scores.get(i, -1000.0) for i in range(rows)])
        writer.add_token_types([kind for _, kind in listed])
        if self.merges is not None:
            writer.add_token_merges(list(self.merges))
        for name, token in self.special.items():
            getattr(writer, f"add_{name}_token_id")(token)
        for name, adds in self.adds.items():
            getattr(writer, f"add_add_{name}_token")(adds)
        if self.space_prefix is not None:
            writer.add_add_space_prefix(self.space_prefix)
        if self.chat_template is not None:
            writer.add_chat_template(self.chat_template)


def vocabulary_of(tokenizer: Any, where: Path) -> Vocabulary:
    """What a GGUF file says of a tokenizer of transformers. Raises BoomspecError for one that llama.cpp lacks."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        message = f"{where}: a {type(tokenizer).__name__} is no tokenizer of the library tokenizers"
        raise BoomspecError(message, hint=_HINT)
    content = json.loads(backend.to_str())
    model = content["model"]
    if model.get("type") != "BPE":
        raise BoomspecError(
            f"{where}: a tokenizer of the kind {model.get('type')} is not written as GGUF here", hint=_HINT
        )
    bytes_level = not model.get("byte_fallback")
    pre, space_prefix, notes = _byte_level(content, where) if bytes_level else _sentencepiece(content, where)
    special = {name: token for name in _SPECIAL if (token := getattr(tokenizer, f"{name}_token_id", None)) is not None}
    merges = [tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair) for pair in model["merges"]]
    shared: dict[str, Any] = {
        "tokens": _tokens(content, special, bytes_level=bytes_level),
        "special": special,
        "adds": _added(tokenizer, special, where),
        "chat_template": _template(tokenizer),
        "notes": notes,
    }
    if not bytes_level:
        scores = _scores(model["vocab"], merges, shared["tokens"], where)
        return Vocabulary("llama", pre, scores=scores, space_prefix=space_prefix, **shared)
    return Vocabulary("gpt2", pre, merges=tuple(" ".join(pair) for pair in merges), space_prefix=space_prefix, **shared)


def _byte_level(content: Mapping[str, Any], where: Path) -> tuple[str, bool | None, tuple[str, ...]]:
    """The name of how text is split, whether a space is put in front, and what people should know."""
    notes: tuple[str, ...] = ()
    normalizer = (content.get("normalizer") or {}).get("type")
    if normalizer == "NFC":
        notes = (
            "the tokenizer composes characters (NFC) before it splits a text, and llama.cpp does not: NFC your texts",
        )
    elif normalizer is not None:
        raise BoomspecError(
            f"{where}: its tokenizer changes texts first ({normalizer}), llama.cpp's does not", hint=_HINT
        )
    split = content.get("pre_tokenizer") or {}
    steps = split.get("pretokenizers", [split])
    last = steps[-1]
    if last.get("type") == "ByteLevel" and not last.get("add_prefix_space"):
        ignores, by_rule = bool(content["model"].get("ignore_merges")), last.get("use_regex", True)
        before = steps[:-1]
        if by_rule and not ignores and not before:
            return "gpt-2", None, notes
        if by_rule and not ignores and before == [{"type": "Digits", "individual_digits": True}]:
            return "smollm", None, notes
        if not by_rule and len(before) == 1 and _plain_split(before[0]):
            rule = before[0]["pattern"]["Regex"]
            if (name := _SPLITS.get((rule, ignores))) is not None:
                return name, None, notes
    message = f"{where}: how its tokenizer splits text is none of the kinds that are known here ({', '.join(_KNOWN)})"
    raise BoomspecError(message, hint=_HINT)


def _plain_split(step: Mapping[str, Any]) -> bool:
    behaves = str(step.get("behavior")).lower() in ("isolated", "removed") and "Regex" in (step.get("pattern") or {})
    # What is "removed" by an inverted rule is what the rule does not match.
    inverted = bool(step.get("invert")) == (str(step.get("behavior")).lower() == "removed")
    return step.get("type") == "Split" and behaves and inverted


def _sentencepiece(content: Mapping[str, Any], where: Path) -> tuple[str, bool | None, tuple[str, ...]]:
    normalizer, split = content.get("normalizer") or {}, content.get("pre_tokenizer") or {}
    steps = normalizer.get("normalizers", [normalizer] if normalizer else [])
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    if steps == [{"type": "Prepend", "prepend": _SPACE}, replace] and not split:
        return "default", True, ()
    if steps == [replace] and not split:
        return "default", False, ()
    if not steps and split.get("type") == "Metaspace" and split.get("replacement") == _SPACE and not split.get("split"):
        return "default", split.get("prepend_scheme") != "never", ()
    message = f"{where}: how its tokenizer of SentencePiece handles spaces is not known here"
    raise BoomspecError(message, hint=_HINT)


def _tokens(
    content: Mapping[str, Any], special: Mapping[str, int], *, bytes_level: bool
) -> dict[int, tuple[str, gguf.TokenType]]:
    kinds = gguf.TokenType
    found = {i: (text, kinds.NORMAL) for text, i in content["model"]["vocab"].items()}
    if not bytes_level:
        found |= {i: (text, kinds.BYTE) for i, (text, _) in found.items() if len(text) == 6 and text.startswith("<0x")}
        if (unknown := special.get("unk")) in found:
            found[unknown] = (found[unknown][0], kinds.UNKNOWN)
    for added in content.get("added_tokens", ()):
        if not bytes_level and added["id"] == special.get("unk"):
            continue
        text = added["content"] if bytes_level or added["special"] else added["content"].replace(_SPACE, " ")
        found[added["id"]] = (text, kinds.CONTROL if added["special"] else kinds.USER_DEFINED)
    return found


def _scores(
    vocab: Mapping[str, int],
    merges: list[tuple[str, ...]],
    tokens: Mapping[int, tuple[str, gguf.TokenType]],
    where: Path,
) -> dict[int, float]:
    """Scores by which the merges come in their order. Raises BoomspecError where no scores can do that."""
    ranks: dict[int, int] = {}
    last = -1
    for pair in merges:
        token = vocab["".join(pair)]
        rank = ranks.setdefault(token, len(ranks))
        if rank < last:
            raise BoomspecError(f"{where}: the merges of its tokenizer are in an order that no scores give", hint=_HINT)
        last = rank
    whole = {i for i, (text, kind) in tokens.items() if kind == gguf.TokenType.NORMAL and len(text) > 1}
    if missing := whole - ranks.keys():
        message = f"{where}: no merge of its tokenizer makes '{tokens[min(missing)][0]}', and by scores one would"
        raise BoomspecError(message, hint=_HINT)
    lowest = -float(len(ranks))
    scores = {i: lowest - position for position, i in enumerate(sorted(tokens.keys() - ranks.keys()))}
    return scores | {token: -float(rank) for token, rank in ranks.items()}


def _added(tokenizer: Any, special: Mapping[str, int], where: Path) -> dict[str, bool]:
    """Whether the tokenizer puts its first and last token around a text. Raises BoomspecError where it adds others."""
    plain, whole = tokenizer.encode("a", add_special_tokens=False), tokenizer.encode("a")
    found = {}
    for name, there in (("bos", whole[:1]), ("eos", whole[-1:])):
        found[name] = special.get(name) is not None and there == [special[name]] and whole != plain
    first, last = ([special[name]] if found[name] else [] for name in ("bos", "eos"))
    if whole != [*first, *plain, *last]:
        message = f"{where}: its tokenizer adds other tokens to a text than its first and last one"
        raise BoomspecError(message, hint=_HINT)
    return found


def _template(tokenizer: Any) -> Any:
    found = getattr(tokenizer, "chat_template", None)
    if isinstance(found, dict):
        return [{"name": name, "template": text} for name, text in found.items()]
    return found
