"""Tokenizer, processor and generation config go along: an assembled folder behaves as the teacher's does."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoProcessor,
    AutoTokenizer,
    BertTokenizer,
    CLIPImageProcessorPil,
    CLIPProcessor,
    GenerationConfig,
    GPT2Tokenizer,
    LlamaTokenizer,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
    T5Tokenizer,
    WhisperFeatureExtractor,
)
from transformers.utils import CHAT_TEMPLATE_DIR, PROCESSOR_NAME, VIDEO_PROCESSOR_NAME

from boomspec.core.layers import read_layers
from boomspec.models.folder import is_hub_file, is_tokenizer_file, is_travelling_file
from runners.assembly.assemble import assemble
from tests.runners import tiny

_TEMPLATES = {"default": "{{ messages[0].content }}!", "rag": "{{ messages[0].content }} by rag"}
_ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
_BYTES = {"<|endoftext|>": 0, **{byte: i + 1 for i, byte in enumerate(_ALPHABET)}}
_PIECES = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁a", -1.0), ("b", -1.5), ("▁", -2.0)]
TOKENIZERS: dict[str, Callable[[], Any]] = {
    "gpt2": lambda: GPT2Tokenizer(vocab=_BYTES, merges=[]),
    "qwen2": lambda: Qwen2Tokenizer(vocab=_BYTES, merges=[]),
    "llama": lambda: LlamaTokenizer(vocab={"<unk>": 0, "<s>": 1, "</s>": 2, "▁": 3, "a": 4, "b": 5}, merges=[]),
    "bert": lambda: BertTokenizer(
        vocab={"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4, "a": 5, "b": 6, "##b": 7}
    ),
    "t5": lambda: T5Tokenizer(vocab=_PIECES, extra_ids=0),
    "words": lambda: PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"<eos>": 0, "a": 1, "b": 2}, unk_token="<eos>")),
        eos_token="<eos>",
        extra_special_tokens={"image_token": "<image>"},
    ),
}


def _assembled(teacher: Path) -> Path:
    target = teacher.parent / "assembled"
    assemble({"t": teacher}, read_layers("t0 t3"), target, tied=False)
    return target


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_tokenizer_goes_along_with_all_its_templates(tmp_path: Path, name: str) -> None:
    teacher = tmp_path / "teacher"
    tiny.model(layers=4, vocab_size=300).save_pretrained(teacher)
    tokenizer = TOKENIZERS[name]()
    tokenizer.chat_template = _TEMPLATES
    tokenizer.save_pretrained(teacher)
    assert (teacher / CHAT_TEMPLATE_DIR / "rag.jinja").is_file()
    theirs, ours = AutoTokenizer.from_pretrained(teacher), AutoTokenizer.from_pretrained(_assembled(teacher))
    assert type(ours) is type(theirs)
    assert ours.chat_template == theirs.chat_template == _TEMPLATES
    assert ours.special_tokens_map == theirs.special_tokens_map
    assert ours.get_vocab() == theirs.get_vocab()
    for text in ("ab a  b", "<image> a"):
        assert ours(text).input_ids == theirs(text).input_ids
    said = ours.apply_chat_template([{"role": "user", "content": "ab"}], chat_template="rag", tokenize=False)
    assert said == "ab by rag"


def test_a_processor_goes_along(tmp_path: Path) -> None:
    teacher = tmp_path / "teacher"
    tiny.model(layers=4, vocab_size=300).save_pretrained(teacher)
    images = CLIPImageProcessorPil(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8}, image_mean=[0.1] * 3)
    processor = CLIPProcessor(images, GPT2Tokenizer(vocab=_BYTES, merges=[]))
    processor.save_pretrained(teacher)
    images.save_pretrained(teacher)  # as older versions write it, beside processor_config.json
    picture = Image.fromarray((np.arange(12 * 9 * 3) % 256).astype("uint8").reshape(12, 9, 3))
    theirs, ours = AutoProcessor.from_pretrained(teacher), AutoProcessor.from_pretrained(_assembled(teacher))
    assert type(ours) is type(theirs) is CLIPProcessor
    assert ours.chat_template == theirs.chat_template
    for one, other in ((ours, theirs), (ours, processor)):
        found = [p(text="ab", images=picture, return_tensors="np") for p in (one, other)]
        assert np.array_equal(found[0]["pixel_values"], found[1]["pixel_values"])
        assert np.array_equal(found[0]["input_ids"], found[1]["input_ids"])


def test_what_else_is_configured_goes_along(tmp_path: Path) -> None:
    """A feature extractor, a video processor, what generation is asked for: byte for byte."""
    teacher = tmp_path / "teacher"
    tiny.model(layers=4, vocab_size=300).save_pretrained(teacher)
    WhisperFeatureExtractor(feature_size=8).save_pretrained(teacher)
    (teacher / VIDEO_PROCESSOR_NAME).write_text(json.dumps({"fps": 3}))
    (teacher / PROCESSOR_NAME).write_text(json.dumps({"image_seq_length": 7}))
    for name in ("tekken.json", "qwen.tiktoken", "spiece.model", "tokenizer.model", "chat_template.json"):
        (teacher / name).write_text('{"made": "up"}')
    GenerationConfig(temperature=0.7, top_k=3, do_sample=True).save_pretrained(teacher)
    own = {path.name for path in teacher.iterdir()} - {"config.json", "model.safetensors"}
    target = _assembled(teacher)
    assert {path.name for path in target.iterdir()} == own | {"config.json", "model.safetensors"}
    for name in own:
        assert (target / name).read_bytes() == (teacher / name).read_bytes()


def test_the_files_of_every_tokenizer_of_transformers_are_known() -> None:
    """As its modules name them (`VOCAB_FILES_NAMES`), those that cannot be imported here, too."""
    names: set[str] = set()
    for module in Path(transformers.__file__).parent.rglob("tokenization_*.py"):
        texts: dict[str, str] = {}
        for node in ast.parse(module.read_text(encoding="utf-8")).body:
            if not isinstance(node, ast.Assign) or not isinstance(node.targets[0], ast.Name):
                continue
            if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
                texts[node.targets[0].id] = node.value.value
            if node.targets[0].id == "VOCAB_FILES_NAMES" and isinstance(node.value, ast.Dict):
                values = (
                    texts.get(v.id) if isinstance(v, ast.Name) else ast.literal_eval(v) for v in node.value.values
                )
                names.update(value for value in values if value)
    assert {"tokenizer.json", "vocab.json", "merges.txt", "spiece.model", "source.spm", "bpe.codes"} <= names
    assert [name for name in sorted(names) if not is_tokenizer_file(name)] == []
    assert [name for name in sorted(names) if not is_hub_file(name)] == []


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "README.md", "training_args.bin", "vocab", "a.txt"]
)
def test_what_does_not_go_along(name: str) -> None:
    assert not is_travelling_file(name)
