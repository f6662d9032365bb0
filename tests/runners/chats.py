"""Tiny tokenizers with the chat templates of real models, and conversations for them."""

from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from tests.runners import tiny as _  # noqa: F401 - settings of transformers for tests

TEMPLATES = Path(__file__).parents[1] / "fixtures/chat"
_CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_LLAMA = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
# Special tokens by template: end-of-text, beginning of a text, the others.
SPECIAL: dict[str, tuple[str, str | None, tuple[str, ...]]] = {
    "smollm2": ("<|im_end|>", None, _CHATML),
    "qwen3": ("<|endoftext|>", None, _CHATML),
    "llama3": ("<|eot_id|>", "<|begin_of_text|>", _LLAMA),
}
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": "€"}}}


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def answer(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "one turn": [user("What is 1 + 2?"), answer("It is 3.")],
    "a system prompt": [{"role": "system", "content": "Be brief."}, user("Hi"), answer("Hello € there"), user("Bye")],
    "several turns": [user("a"), answer("b"), user("c"), answer(" d\n"), user("e"), answer("b")],
    "an answer that is a question": [user("same"), answer("same"), user("same"), answer("same")],
    "thinking": [
        user("2 * 3?"),
        answer("<think>\nthat is 3 + 3\n</think>\n\n6"),
        user("and 3 * 3?"),
        answer("<think>\n3 + 3 + 3\n</think>\n\n9"),
    ],
    "thinking apart": [user("a"), answer("b", reasoning_content="hm"), user("c"), answer("d", reasoning_content="so")],
    "two answers in a row": [user("a"), answer("b"), answer("c"), user("d"), answer("e")],
    "what looks like a prompt": [user("assistant\n\nassistant\n"), answer("assistant\n"), user("x"), answer("user\n")],
}
WITH_TOOLS: dict[str, list[dict[str, Any]]] = {
    "a tool": [
        user("1 + €?"),
        {"role": "assistant", "content": "", "reasoning_content": "add them", "tool_calls": [CALL]},
        {"role": "tool", "content": "3"},
        answer("It is 3.", reasoning_content="done"),
        user("thanks"),
        answer("Welcome."),
    ],
}


def tokenizer(name: str, template: str | None = None) -> PreTrainedTokenizerFast:
    """Bytes, with the special tokens and the chat template of a model. `template`: another text for it."""
    eos, bos, special = SPECIAL[name]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ċ", "Ċ"), ("t", "h"), ("Ġ", "t"), ("Ġt", "h")]
    words = [*alphabet, *("".join(pair) for pair in merges)]
    made = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=merges))
    made.normalizer = normalizers.NFC() if name == "qwen3" else None  # type: ignore[assignment]
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(token, special=True) for token in special])
    made.add_tokens([AddedToken(token, special=False) for token in ("<think>", "</think>")])
    own = [(bos, made.token_to_id(bos))] if bos else []
    begin = processors.TemplateProcessing(single=f"{bos} $A" if bos else "$A", special_tokens=own)
    made.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=True), begin])
    found = PreTrainedTokenizerFast(tokenizer_object=made, eos_token=eos, bos_token=bos)
    found.chat_template = (TEMPLATES / f"{name}.jinja").read_text() if template is None else template
    return found


def marked(name: str) -> str:
    """The same template, which marks its responses itself."""
    return (TEMPLATES / f"{name}.marked.jinja").read_text()
