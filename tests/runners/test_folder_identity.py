"""All that loading a model folder reads is in the identities of model and tokenizer, and what nobody reads is not.

What is read is seen, not listed: Python says which files it opens (`sys.addaudithook`). Weights and tokenizer.json are
opened by libraries that do not say so; that they count is shown by changing them.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, CLIPImageProcessor, PreTrainedTokenizerFast

from boomspec.compile.compiler import compile_experiments
from boomspec.core.graph import Source
from boomspec.core.layers import read_layers
from boomspec.models.folder import tokenizer_context
from boomspec.spec.experiments import load_spec
from runners.assembly.assemble import assemble
from runners.data.text_tokenizer import copy_tokenizer
from runners.modeling.foreign_code import tokenizer_of
from runners.modeling.models import load
from tests.runners import corpora, foreign, tiny

_SPEC = """\
boomspec: 1
name: x
teacher: {{model: ./teacher{trust}}}
student: {{keep: [0, 2]}}
data: {{files: text.txt, sequence_length: 8}}
distill: {{tokens: 8, batch_tokens: 8}}
"""
_opened: list[str] | None = None


def _hear(event: str, arguments: tuple[object, ...]) -> None:
    if _opened is not None and event == "open" and isinstance(arguments[0], (str, bytes, os.PathLike)):
        _opened.append(os.fsdecode(arguments[0]))


sys.addaudithook(_hear)


@contextmanager
def opened(folder: Path) -> Iterator[set[str]]:
    """The files below `folder` that Python opens in this context, by their names in it."""
    global _opened
    found: set[str] = set()
    _opened = []
    try:
        yield found
    finally:
        paths, _opened = [Path(path) for path in _opened], None
        found |= {path.relative_to(folder).as_posix() for path in paths if path.is_relative_to(folder)}


def write_teacher(folder: Path) -> None:
    """A model, its tokenizer and its image processor, with every kind of file that loading may look for."""
    tiny.model(layers=4, vocab_size=300).save_pretrained(folder)
    write_byte_tokenizer(folder)
    CLIPImageProcessor().save_pretrained(folder)
    (folder / "special_tokens_map.json").write_text('{"eos_token": "<eos>"}')
    (folder / "added_tokens.json").write_text('{"<extra>": 257}')
    (folder / "processor_config.json").write_text('{"processor_class": "CLIPProcessor"}')
    (folder / "tokenizer.model").write_bytes(b"model")
    (folder / "vocab.json").write_text("{}")
    (folder / "merges.txt").write_text("")
    for name in UNREAD:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("{}")


def write_byte_tokenizer(folder: Path) -> None:
    foreign.write_tokenizer(folder, brings_code=False)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer.chat_template = {"default": "d{{ messages }}", "tool_use": "t{{ messages }}", "rag": "r{{ messages }}"}
    tokenizer.save_pretrained(folder)


UNREAD = (
    "README.md", "training_args.bin", "optimizer.pt", "pytorch_model.bin", ".gitattributes", "trainer_state.json",
    "m.gguf", "checkpoint-5/config.json", "consolidated.safetensors", "onnx/model.onnx", "original/params.json",
)  # fmt: skip
READ = {
    "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    "chat_template.jinja", "additional_chat_templates/tool_use.jinja", "additional_chat_templates/rag.jinja",
    "special_tokens_map.json", "added_tokens.json",
}  # fmt: skip


def sources(folder: Path, *, trust: bool = False) -> dict[str, Source]:
    """The model and the tokenizer of the teacher, as a compiled spec has them."""
    (folder / "text.txt").write_text("text")
    spec = folder / "spec.yaml"
    spec.write_text(_SPEC.format(trust=", trust_remote_code: true" if trust else ""))
    return {source.kind: source for source in compile_experiments([load_spec(spec)]).graph.sources.values()}


def test_what_loading_opens_is_in_the_identity(tmp_path: Path) -> None:
    teacher = tmp_path / "teacher"
    write_teacher(teacher)
    found = sources(tmp_path)
    with opened(teacher) as by_tokenizer:
        tokenizer_of(teacher)
    with opened(teacher) as by_model:
        load(teacher, dtype=torch.float32)
    assert {"tokenizer_config.json", "additional_chat_templates/rag.jinja", "config.json"} <= by_tokenizer
    assert {"config.json", "generation_config.json"} <= by_model
    assert by_tokenizer - {"config.json"} <= found["tokenizer"].identity["sha256"].keys()
    assert found["tokenizer"].identity["config"] == {"model_type": "llama"}
    assert by_model | by_tokenizer <= found["model"].identity["sha256"].keys()
    assert found["model"].identity["sha256"].keys() >= READ
    assert not set(UNREAD) & found["model"].identity["sha256"].keys()


def test_what_code_opens_is_in_the_identity(tmp_path: Path) -> None:
    teacher = tmp_path / "teacher"
    foreign.write(teacher)
    identity = sources(tmp_path, trust=True)["model"].identity
    code = list(identity["code"].values())
    with opened(teacher) as found:
        tokenizer_of(teacher, code)
        load(teacher, dtype=torch.float32, code=code)
    assert {"modeling_quiet.py", "parts.py", "tokenization_quiet.py"} <= found
    assert found <= identity["sha256"].keys() | identity["code"].keys()


def test_each_file_counts_where_it_is_read_and_only_there(tmp_path: Path) -> None:
    teacher = tmp_path / "teacher"
    write_teacher(teacher)
    before = {kind: source.id for kind, source in sources(tmp_path).items()}
    files = sorted(path for path in teacher.rglob("*") if path.is_file())
    changed: dict[str, set[str]] = {}
    for path in files:
        old = path.read_bytes()
        path.write_bytes(_other(path.name, old))
        now = {kind: source.id for kind, source in sources(tmp_path).items()}
        path.write_bytes(old)
        changed[path.relative_to(teacher).as_posix()] = {kind for kind in before if now[kind] != before[kind]}
    assert {kind: source.id for kind, source in sources(tmp_path).items()} == before
    of_model = {"config.json", "generation_config.json", "model.safetensors"}
    of_processor = {"preprocessor_config.json", "processor_config.json"}
    for name, kinds in changed.items():
        if name in UNREAD:
            assert kinds == set(), name
        elif name in of_model | of_processor:
            assert kinds == {"model"}, name
        else:  # the tokenizer goes along with every size
            assert kinds == {"model", "tokenizer"}, name
    assert {*UNREAD, *READ, *of_processor} <= changed.keys()


def _other(name: str, data: bytes) -> bytes:
    """The same kind of file with another content."""
    if name.endswith(".safetensors") and len(data) > 100:
        return data[:-1] + bytes([data[-1] ^ 1])
    if name.endswith(".json") and data:
        return json.dumps({**json.loads(data), "another": 1}).encode()
    return data + b" "


def _bytes(folder: Path) -> None:
    write_byte_tokenizer(folder)


def _words(folder: Path) -> None:
    """One whose pieces another class would cut otherwise."""
    words = Tokenizer(models.WordLevel({"<eos>": 0, "a": 1, "b": 2, "1": 3}, unk_token="<eos>"))
    words.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.Whitespace()]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>")
    tokenizer.add_tokens([AddedToken("<mark>", special=True)])
    tokenizer.save_pretrained(folder)


def _declared(name: str | None) -> Callable[[Path], None]:
    """Bytes, in a folder that names the class of its tokenizer, or none."""

    def write(folder: Path) -> None:
        _bytes(folder)
        path = folder / "tokenizer_config.json"
        config = {**json.loads(path.read_text()), "tokenizer_class": name}
        path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))

    return write


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3", "phi3", "mistral", "gpt2", "gemma2", "cohere"])
@pytest.mark.parametrize(
    "write",
    [_words, _bytes, *(_declared(name) for name in ("LlamaTokenizerFast", "GPT2Tokenizer", "Qwen2Tokenizer", None))],
    ids=["words", "bytes", "llama", "gpt2", "qwen2", "none"],
)
def test_text_is_cut_by_the_tokenizer_that_the_teacher_is_measured_with(
    tmp_path: Path, write: Callable[[Path], None], model_type: str
) -> None:
    """transformers chooses the class by the model's type, too: phi3 with `LlamaTokenizerFast` is not a Llama's."""
    teacher = tmp_path / "teacher"
    write(teacher)
    (teacher / "config.json").write_text(json.dumps({"model_type": model_type}))
    source = corpora.tokenizer_source(teacher)
    tokenizer = json.loads((teacher / "tokenizer_config.json").read_text())
    context = tokenizer_context({"model_type": model_type, "hidden_size": 7}, tokenizer)
    identity = {"sha256": {n: d for n, d in source.identity["sha256"].items() if n != "config.json"}, "config": context}
    copy_tokenizer(Source("tokenizer", identity, source.location), tmp_path / "copy")
    theirs, ours = AutoTokenizer.from_pretrained(teacher), tokenizer_of(tmp_path / "copy")
    assert type(ours) is type(theirs)
    for text in ("a b 12 <mark>", "hello  world\n123", "<eos>x"):
        assert _cut(ours, text) == _cut(theirs, text)
    assert ours.chat_template == theirs.chat_template
    assert ours.special_tokens_map == theirs.special_tokens_map


def _cut(tokenizer: Any, text: str) -> list[int] | str:
    try:
        found: list[int] = tokenizer(text).input_ids
    except Exception as error:  # a class that asks for a token which the vocabulary has not
        return str(error)
    return found


_READS = """
class QuietTokenizer(PreTrainedTokenizerFast):
    vocab_files_names = {"tokenizer_file": "tokenizer.json", "pieces_file": "pieces.dat"}

    def __init__(self, *arguments, pieces_file=None, **options):
        with open(pieces_file) as file:
            self.pieces = file.read()
        super().__init__(*arguments, **options)
"""


def test_what_trusted_code_names_counts_and_goes_along(tmp_path: Path) -> None:
    """Code may have a vocabulary in a file of any name; without trust nobody reads it."""
    teacher = tmp_path / "teacher"
    foreign.write(teacher)
    path = teacher / "tokenization_quiet.py"
    path.write_text(path.read_text().split("class QuietTokenizer")[0] + _READS)
    (teacher / "pieces.dat").write_text("one two")
    (teacher / "notes.dat").write_text("nobody names it")
    found = sources(tmp_path, trust=True)
    assert "pieces.dat" in found["model"].identity["sha256"].keys() & found["tokenizer"].identity["sha256"].keys()
    assert "notes.dat" not in found["model"].identity["sha256"]
    code = list(found["model"].identity["code"].values())
    copy_tokenizer(found["tokenizer"], tmp_path / "copy")
    assemble({"t": teacher}, read_layers("t0 t3"), tmp_path / "size", tied=False, code=code)
    for folder in (teacher, tmp_path / "copy", tmp_path / "size"):
        assert tokenizer_of(folder, code).pieces == "one two"
    assert not (tmp_path / "size" / "notes.dat").exists()
    (teacher / "pieces.dat").write_text("one two three")
    now = sources(tmp_path, trust=True)
    assert all(now[kind].id != found[kind].id for kind in ("model", "tokenizer"))
