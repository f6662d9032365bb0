"""A tokenizer that asks for more rows than the embedding has is found when a plan is made, and no other is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from boomspec.core.errors import SpecError
from boomspec.models.tokenizer import needed_rows
from boomspec.store import FolderStore
from runners.data.text_tokenizer import load_tokenizer
from tests.messages import wording
from tests.runners import foreign, small, tiny
from tests.runners.test_travelling import TOKENIZERS

_LOCAL = {"teacher": {"pretrain": None, "model": "teacher"}}
_BYTES = 257  # of the tokenizer of `foreign`: every byte, and the end of a text


def _rows(tokenizer: Any) -> int:
    """The largest id that text or the tokens around it can have, plus one, token by token."""
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    around = {i for i in (tokenizer.eos_token_id, tokenizer.bos_token_id) if i is not None}
    return max(set(tokenizer.get_vocab().values()) - special | around) + 1


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("indent", [None, 2])
def test_the_files_say_what_the_tokenizer_has(tmp_path: Path, name: str, special: bool, indent: int | None) -> None:
    tokenizer = TOKENIZERS[name]()
    awkward = ['"]: 99999,', '\\": 88888}', '{"vocab": {"x": 77777}}', "\\", "€"]
    tokenizer.add_tokens([AddedToken(text, special=special, normalized=False) for text in awkward])
    tokenizer.save_pretrained(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()), indent=indent, ensure_ascii=False))
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert needed_rows(tmp_path) == _rows(loaded)
    if loaded.eos_token_id is not None:
        assert load_tokenizer(tmp_path, (), bos=False).vocabulary == _rows(loaded)


@pytest.mark.parametrize(
    ("files", "rows"),
    [
        ({"vocab.json": '{"a": 0, "b": 7}', "merges.txt": ""}, 8),
        ({"vocab.json": '{"a": 0}', "added_tokens.json": '{"<x>": 9}'}, 10),
        ({"vocab.txt": "a\nb\nc\n"}, 3),
        ({"vocab.txt": "a\nb\nc"}, 3),
        ({"qwen.tiktoken": "IQ== 0\nIg== 1\n"}, 2),
        ({"tokenizer.model": "pieces"}, None),
        ({}, None),
    ],
)
def test_other_formats_where_they_say_it_cheaply(tmp_path: Path, files: dict[str, str], rows: int | None) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert needed_rows(tmp_path) == rows


def _teacher(folder: Path, *, rows: int, added: dict[str, bool]) -> None:
    tiny.model(layers=4, vocab_size=rows).save_pretrained(folder)
    foreign.write_tokenizer(folder, brings_code=False)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer.add_tokens([AddedToken(text, special=special) for text, special in added.items()])
    tokenizer.save_pretrained(folder)


def test_a_tokenizer_beyond_the_embedding_is_an_error_at_its_line(tmp_path: Path) -> None:
    _teacher(tmp_path / "teacher", rows=_BYTES, added={"<mine>": False})
    with pytest.raises(SpecError, match=wording("vocabulary.tokenizer_ids_up_embedding", bytes=_BYTES)) as caught:
        small.compiled(small.write_spec(tmp_path, **_LOCAL), FolderStore(tmp_path / "store"))
    assert "teacher.model" in str(caught.value)
    assert "resize_token_embeddings" in str(caught.value)


def test_a_token_that_no_text_gives_needs_no_row(tmp_path: Path) -> None:
    """As Gemma 3 1B has it, whose tokenizer knows an image and whose embedding does not."""
    _teacher(tmp_path / "teacher", rows=_BYTES, added={"<image>": True})
    assert small.compiled(small.write_spec(tmp_path, **_LOCAL), FolderStore(tmp_path / "store")).family is not None


def test_a_broken_tokenizer_is_an_error_at_its_line(tmp_path: Path) -> None:
    _teacher(tmp_path / "teacher", rows=_BYTES, added={})
    (tmp_path / "teacher" / "tokenizer.json").write_text("{")
    with pytest.raises(SpecError, match=wording("vocabulary.tokenizer_json_not_tokenizer")):
        small.compiled(small.write_spec(tmp_path, **_LOCAL), FolderStore(tmp_path / "store"))
